//! The whole thing under load: one server, many good clients, and bad peers at the same time.

use std::{
    convert::Infallible,
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tower::{ServiceExt, service_fn};
use tower_net::{
    CloseReason, Report,
    client::Settings as Calling,
    deadline::Deadlines,
    error::BoxError,
    listen::Tcp,
    meter::{MeterLayer, Snapshot, Tally},
};

use crate::{
    bell,
    client::{self, Client},
    load::{Seen, Shared, Worker},
    peers::Ledger,
    protocol::{Call, Mode},
    server::{self, Settings},
    store::Store,
    table,
};

/// Everything there is to say about a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) served_for: Duration,
    pub(crate) seen: Seen,
    pub(crate) peers: Ledger,
    pub(crate) wire: Snapshot,
    pub(crate) report: Report,
}

impl Outcome {
    /// How many connections should have ended for `reason`, by what their peers saw.
    pub(crate) fn expected(&self, reason: CloseReason) -> u64 {
        match reason {
            CloseReason::Drain => GOOD,
            CloseReason::Peer => self.peers.polite,
            _ => self
                .peers
                .ended
                .iter()
                .filter(|(why, _)| *why == reason)
                .count() as u64,
        }
    }

    /// What is not as it should be.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let seen = &self.seen;
        for (what, count) in [
            ("replies were wrong", seen.wrong),
            ("calls of good clients were lost", seen.lost),
            ("keys do not hold what the replies said", seen.astray),
            ("connections had to be cut", self.report.cut()),
        ] {
            if count > 0 {
                faults.push(format!("{count} {what}"));
            }
        }
        if seen.answered == 0 {
            faults.push("no call was answered".to_owned());
        }
        for reason in CloseReason::ALL {
            let (closed, expected) = (self.report.closed_for(*reason), self.expected(*reason));
            if closed != expected {
                faults.push(format!(
                    "{closed} connections ended for {reason}, not {expected}"
                ));
            }
        }
        faults.extend(
            self.peers
                .complaints
                .iter()
                .chain(&seen.complaints)
                .cloned(),
        );
        faults
    }
}

/// Runs it for about so long; a round of bad peers that has begun is seen to its end. `true` if all went well.
pub(crate) async fn run(duration: Duration) -> Result<bool, BoxError> {
    let listener = Tcp::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let (meter, tally) = MeterLayer::pair("rpc");
    let store = Store::default();
    eprintln!("{}", table::opening(addr, duration));

    let (shutdown, told) = oneshot::channel::<()>();
    let told = async {
        // Sent or dropped: either way it is over.
        let _told = told.await;
    };
    let mut serving = JoinSet::new();
    serving.spawn(server::serve(
        listener,
        store.clone(),
        settings(meter),
        told,
    ));

    let begun = Instant::now();
    let shared = Arc::new(Shared::default());
    let mut clients = start_clients(addr, &store, &shared).await?;
    let peers = tokio::select! {
        peers = misbehave(addr, &tally, begun, duration) => peers,
        never = show_progress(&tally, &shared, begun) => match never {},
    };
    let served_for = begun.elapsed();
    if io::stderr().is_terminal() {
        eprintln!();
    }

    // In the middle of everything: what the server has begun it must still finish.
    shared.draining.store(true, Relaxed);
    drop(shutdown);
    let mut report = serving.join_all().await;
    let report = report.pop().ok_or("server is gone")??;
    let mut seen = Seen::new();
    while let Some(client) = clients.join_next().await {
        seen.add(client?);
    }
    let outcome = Outcome {
        served_for,
        seen,
        peers,
        wire: tally.snapshot(),
        report,
    };
    io::stdout().write_all(outcome.to_string().as_bytes())?;
    Ok(outcome.faults().is_empty())
}

/// The server's own settings, but for deadlines short enough to see each of them pass within seconds.
fn settings(meter: MeterLayer) -> Settings {
    let usual = Settings::default();
    Settings {
        meter,
        max_connections: MAX_CONNECTIONS,
        deadlines: Deadlines::default()
            .first_byte(FIRST_BYTE)
            .idle(IDLE)
            .write_stall(WRITE_STALL),
        framing: usual.framing.request_deadline(REQUEST),
        drain: Duration::from_secs(5),
        ..usual
    }
}

async fn start_clients(
    addr: SocketAddr,
    store: &Store,
    shared: &Arc<Shared>,
) -> Result<JoinSet<Seen>, BoxError> {
    // All are connected before the first one calls in earnest.
    let mut connected = Vec::new();
    for _ in 0..GOOD {
        connected.push(connect(addr, shared).await?);
    }
    let mut clients = JoinSet::new();
    for (number, client) in (0..).zip(connected) {
        if number >= CLIENTS {
            clients.spawn(bell::listen(client, Arc::clone(shared)));
            continue;
        }
        for caller in 0..CALLERS {
            let number = number * CALLERS + caller;
            let worker = Worker::new(client.clone(), number, Arc::clone(shared));
            clients.spawn(worker.run(store.clone()));
        }
        if number == 0 {
            clients.spawn(bell::ring(client, Arc::clone(shared)));
        }
    }
    Ok(clients)
}

/// A client that is connected, and stays so until the drain: after that, nobody is called any more.
async fn connect(addr: SocketAddr, shared: &Arc<Shared>) -> Result<Client, BoxError> {
    let shared = Arc::clone(shared);
    let connect = service_fn(move |addr| {
        let is_over = shared.draining.load(Relaxed);
        let connecting = client::tcp().oneshot(addr);
        async move {
            if is_over {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
            }
            connecting.await.map_err(Into::into)
        }
    });
    // The server's own deadlines are long enough for whoever waits.
    let settings = Calling::default().call_deadline(Duration::MAX);
    let client = Client::new(Mode::Pipelined, &[addr], settings, connect)?;
    let key = String::new();
    client.call(Call::Get { key }).await?;
    Ok(client)
}

/// Rounds of bad peers, for as long as another one fits in.
async fn misbehave(addr: SocketAddr, tally: &Tally, begun: Instant, duration: Duration) -> Ledger {
    let mut ledger = Ledger::default();
    loop {
        let round = Instant::now();
        ledger.round(addr).await;
        ledger
            .crowd(addr, MAX_CONNECTIONS)
            .await;
        // Until the crowd has left, the next round would find no room.
        while tally.snapshot().active() > GOOD {
            sleep(Duration::from_millis(5)).await;
        }
        if begun.elapsed() + round.elapsed() > duration {
            break;
        }
    }
    sleep(duration.saturating_sub(begun.elapsed())).await;
    ledger
}

/// A line a second: each its own, or all in one place if somebody watches.
async fn show_progress(tally: &Tally, shared: &Shared, begun: Instant) -> Infallible {
    let (before, after) = match io::stderr().is_terminal() {
        true => ("\r\x1b[K", ""),
        false => ("", "\n"),
    };
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    seconds.tick().await;
    let mut last = 0;
    loop {
        seconds.tick().await;
        let answered = shared.answered.load(Relaxed);
        let line = table::progress(
            begun.elapsed(),
            answered,
            answered - last,
            &tally.snapshot(),
        );
        last = answered;
        eprint!("{before}{line}{after}");
    }
}

/// Good clients, and the calls that each has in flight.
pub(crate) const CLIENTS: u64 = 64;
pub(crate) const CALLERS: u64 = 8;

/// Good clients that do nothing but wait for a change.
pub(crate) const LISTENERS: u64 = 8;

/// Connections that stay until the drain.
const GOOD: u64 = CLIENTS + LISTENERS;

/// Room for the good clients and a round of bad ones; a crowd fills it.
pub(crate) const MAX_CONNECTIONS: usize = 128;

pub(crate) const FIRST_BYTE: Duration = Duration::from_secs(1);
pub(crate) const IDLE: Duration = Duration::from_secs(2);
pub(crate) const REQUEST: Duration = Duration::from_secs(2);
pub(crate) const WRITE_STALL: Duration = Duration::from_secs(2);
