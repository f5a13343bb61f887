//! Every way out of a connection, at random: whatever happens, the books balance.

use std::{collections::BTreeMap, io::ErrorKind, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::yield_now,
    time::{sleep, timeout},
};
use tower::ServiceBuilder;
use tower_net::{
    CloseReason, Server,
    deadline::{DeadlineLayer, Deadlines},
    frame::{Delimited, FrameLayer, Framing},
    io::BoxedIo,
    limit::{ConnectionLimitLayer, OverLimit},
    meter::{MeterLayer, Tally},
    trace::TraceLayer,
};

use crate::support::{
    io::{Dialler, Queue, Script},
    random::Random,
    readings::{Readings, recorded},
    service::{millis, obey, secs},
};

#[tokio::test(start_paused = true)]
async fn whatever_way_connections_end_the_books_balance_and_each_has_one_reason() {
    let mut seen = BTreeMap::new();
    for seed in 1..=80 {
        for (reason, count) in life_of_a_server(seed).await {
            *seen.entry(reason).or_insert(0) += count;
        }
    }

    let unseen: Vec<_> = CloseReason::ALL
        .iter()
        .filter(|reason| !seen.contains_key(*reason) && !ELSEWHERE.contains(reason))
        .collect();
    assert!(
        unseen.is_empty(),
        "no connection ended for {unseen:?}: {seen:?}"
    );
}

/// What only layers that are not in this stack end a connection for; each is reached in the tests of its room.
const ELSEWHERE: &[CloseReason] = &[
    CloseReason::ConnectRate,
    CloseReason::Detect,
    CloseReason::Filter,
    CloseReason::HalfClose,
    CloseReason::Handshake,
    CloseReason::HandshakeFailed,
    CloseReason::HandshakeLimit,
    CloseReason::PerPeerLimit,
    CloseReason::Pressure,
    CloseReason::ProxyHeader,
    CloseReason::ProxyTimeout,
    CloseReason::Reclaimed,
    CloseReason::Upstream,
];

/// A server with settings and peers at random; returns how often connections ended for each reason.
async fn life_of_a_server(seed: u64) -> Vec<(CloseReason, u64)> {
    let mut random = Random::new(seed);
    let ((meter, tally), metrics) = recorded(|| MeterLayer::pair("test"));
    let over = [
        OverLimit::Reset,
        OverLimit::Wait,
        OverLimit::WaitUpTo(secs(2)),
    ];
    let limit = ConnectionLimitLayer::new(random.among(4, 12)).unwrap();
    let limit = limit.over_limit(random.pick(&over));
    let service = ServiceBuilder::new()
        .layer(meter)
        .layer(TraceLayer::new())
        .layer(limit.clone())
        .layer(DeadlineLayer::new(deadlines(&mut random)).unwrap())
        .layer(FrameLayer::with_framing(Delimited::lines(40), framing(&mut random)).unwrap())
        .service_fn(obey);
    let (queue, dialler) = Queue::pair();
    let serve = Server::new(queue)
        .serve(service)
        .drain_for(millis(random.below(6_000)))
        .keep_descriptor_limit();
    let handle = serve.handle();
    let books = Books {
        seed,
        tally,
        metrics,
        limit: Box::new(move || limit.handle().in_use()),
        open: Box::new({
            let handle = handle.clone();
            move || handle.open()
        }),
    };
    let server = tokio::spawn(serve.into_future());

    let mut peers = Vec::new();
    for _ in 0..60 {
        peers.extend((0..random.below(3)).map(|_| peer(&mut random, &dialler)));
        sleep(millis(random.below(700))).await;
        books.balance().await;
    }
    let report = if random.below(4) == 0 {
        server.abort();
        None
    } else {
        handle.shutdown();
        sleep(millis(random.below(2_000))).await;
        books.balance().await;
        if random.below(4) == 0 {
            handle.cut();
        }
        Some(server.await.unwrap().unwrap())
    };
    sleep(millis(1)).await;

    let closed = books.closed().await;
    if let Some(report) = report {
        assert!(
            report
                .closed()
                .eq(closed.iter().copied()),
            "seed {seed}: {report} {closed:?}"
        );
        let opened = report
            .closed()
            .map(|(_, count)| count)
            .sum::<u64>()
            + report.stuck();
        assert_eq!(
            (report.opened(), report.stuck()),
            (opened, 0),
            "seed {seed}: {report}"
        );
    }
    for peer in peers {
        peer.abort();
    }
    closed
}

/// Everybody who counts connections.
struct Books {
    seed: u64,
    tally: Tally,
    metrics: Readings,
    limit: Box<dyn Fn() -> usize>,
    open: Box<dyn Fn() -> usize>,
}

impl Books {
    /// All agree on how many are open.
    async fn balance(&self) {
        // What was begun in this instant is finished: a refusal ends in the task of its connection.
        for _ in 0..4 {
            yield_now().await;
        }
        let counts = self.tally.snapshot();
        let reasons = CloseReason::ALL.iter();
        let by_reason: u64 = reasons
            .map(|reason| counts.closed_for(*reason))
            .sum();
        let gauge = self
            .metrics
            .of("tower_net_connections_active", &[]);
        let opened = self
            .metrics
            .of("tower_net_connections_opened_total", &[]);
        let closed = self
            .metrics
            .of("tower_net_connections_closed_total", &[]);

        let open = counts.opened() - by_reason;
        let by_others = [
            counts.active() as usize,
            gauge as usize,
            (self.limit)(),
            (self.open)(),
        ];
        assert_eq!(by_others, [open as usize; 4], "seed {}", self.seed);
        let told = (opened as u64, closed as u64);
        assert_eq!(told, (counts.opened(), by_reason), "seed {}", self.seed);
    }

    /// All is over: nothing is open, and these are the reasons.
    async fn closed(&self) -> Vec<(CloseReason, u64)> {
        self.balance().await;
        let counts = self.tally.snapshot();
        assert_eq!(counts.active(), 0, "seed {}", self.seed);
        let reasons = CloseReason::ALL.iter().copied();
        reasons
            .map(|reason| (reason, counts.closed_for(reason)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

fn deadlines(random: &mut Random) -> Deadlines {
    Deadlines::default()
        .first_byte(secs(3))
        .idle(secs(5))
        .write_stall(secs(4))
        .max_age(random.pick(&[secs(9), secs(20), Duration::MAX]))
        .age_jitter(0.0)
        .age_grace(random.pick(&[Duration::ZERO, secs(2), Duration::MAX]))
        .min_receive_rate(random.pick(&[0, 0, 5]))
        .min_send_rate(random.pick(&[0, 0, 5]))
        .rate_window(secs(2))
}

fn framing(random: &mut Random) -> Framing {
    Framing::default()
        .pipelined(random.among(1, 5))
        .request_deadline(random.pick(&[secs(1), secs(4)]))
        .handler_deadline(random.pick(&[secs(2), secs(4)]))
        .reply_deadline(random.pick(&[secs(3), secs(60)]))
        .high_water(200)
}

/// A peer that does one thing or another, in its own time.
fn peer(random: &mut Random, dialler: &Dialler<BoxedIo>) -> tokio::task::JoinHandle<()> {
    let pause = millis(random.below(3_000));
    if random.below(12) == 0 {
        let script = Script::new()
            .bytes("one\nwait 500 two\n")
            .pause(pause);
        dialler.offer(BoxedIo::new(script.fail(ErrorKind::ConnectionReset)));
        return tokio::spawn(async {});
    }
    let (near, far) = duplex(64);
    dialler.offer(BoxedIo::new(near));
    let requests = (0..random.below(4)).map(|_| random.pick(REQUESTS));
    let requests = requests.collect();
    let (reads, stays) = (random.below(3) > 0, random.below(3) > 0);
    tokio::spawn(behave(far, requests, pause, reads, stays))
}

/// What peers send: whole requests, half ones, too long ones, and what goes wrong in a handler.
const REQUESTS: &[&str] = &[
    "one\n",
    "one\nwait 300 two\nthree\n",
    "wait 2500 slow\n",
    "wait 60000 late\n",
    "more 4000 wait 5000 x\n",
    "hold 6000 x\n",
    "cut\n",
    "wait 200 one\ncut\n",
    "long 30\nlong 30\nlong 30\nlong 30\nlong 30\nlong 30\nlong 30\nlong 30\n",
    "long 41\n",
    "fail\n",
    "wait 100 one\nfail 200\n",
    "panic\n",
    "one\npanic 300\n",
    "bye one\n",
    "half",
    "whole\nhalf",
    "this line is much longer than the forty bytes that a line may have\n",
    "",
];

/// Sends one request after the other, reads what comes or does not, and stays or leaves.
async fn behave(
    mut io: DuplexStream,
    requests: Vec<&'static str>,
    pause: Duration,
    reads: bool,
    stays: bool,
) {
    for request in requests {
        let sent = timeout(secs(30), io.write_all(request.as_bytes())).await;
        if !matches!(sent, Ok(Ok(()))) {
            break;
        }
        if reads {
            // What it says, if anything, is no matter here.
            let _heard = timeout(pause, io.read(&mut [0; 256])).await;
        }
        sleep(pause / 2).await;
    }
    if stays {
        sleep(secs(3_600)).await;
    }
}
