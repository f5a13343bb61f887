//! Wait until the stack has room, then take a socket.

use std::{
    future::poll_fn,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::join;
use metrics::counter;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::net::Listener;
use tower_service::Service;

use crate::{
    base::{error::BoxError, io::Io, time::now},
    conn::{Addr, CloseReason, Conn, ConnInfo, Origin},
    server::{
        backoff::{AcceptError, Backoff, Next},
        connection::Connection,
        live::{Live, Phase},
        serve::ServeCause,
    },
};

/// One listener and the stack its connections go through.
pub(crate) struct Acceptor<L, S> {
    pub(crate) listener: L,
    pub(crate) service: S,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) backoff: Backoff,
    pub(crate) live: Arc<Live>,
    pub(crate) burst: Option<Burst>,
}

enum Failure {
    Accept(io::Error),
    Service(BoxError),
}

impl<L, S> Acceptor<L, S>
where
    L: Listener,
    L::Io: Io,
    L::Addr: Into<Addr>,
    S: Service<Conn<L::Io>, Response = ()> + Clone,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    /// Accepts until the server drains, then takes what is still queued, since closing the listener would
    /// reset it.
    pub(crate) async fn run(mut self) -> Result<(), ServeCause> {
        let local = self.listener.local_addr();
        let origin = Arc::new(Origin {
            local: local.map_or(Addr::Unnamed, Into::into),
            listener: self.name.clone(),
        });
        let live = Arc::clone(&self.live);
        let mut draining = pin!(live.reached(Phase::Draining));
        while !live.is_draining() {
            // The notice is waited for once there is nothing to accept, and not asked for at each accept.
            let accepted = tokio::select! {
                biased;
                accepted = poll_fn(|cx| self.poll_accept(cx)) => accepted,
                () = &mut draining => break,
            };
            match accepted {
                Ok((io, peer)) => {
                    self.succeeded();
                    self.spawn(io, peer, &origin);
                }
                Err(Failure::Service(error)) => return Err(ServeCause::Service(error)),
                Err(Failure::Accept(error)) => match self.failed(&error) {
                    Next::Retry => {}
                    Next::Wait(wait) => {
                        // A connection of ours that ends has freed what was missing.
                        let hope = join(sleep(self.backoff.pause()), live.one_ended());
                        tokio::select! {
                            () = &mut draining => break,
                            _ = timeout(wait, hope) => {}
                        }
                    }
                    Next::Stop => return Err(ServeCause::Listener(error)),
                },
            }
        }
        tokio::select! {
            () = self.take_queue(&origin) => {}
            () = live.reached(Phase::Cutting) => {}
        }
        Ok(())
    }

    /// Takes what is queued, for as long as the service needs to become ready for it, but not what goes on
    /// arriving. One that arrived a moment ago may not have been announced to us yet, so silence for a moment
    /// is the end of the queue, and not the first pending accept.
    async fn take_queue(&mut self, origin: &Arc<Origin>) {
        let mut patience = PATIENCE;
        for _ in 0..QUEUE {
            let ready = poll_fn(|cx| {
                self.service
                    .poll_ready(cx)
                    .map(|ready| ready.is_ok())
            });
            if !ready.await || patience.is_zero() {
                return;
            }
            let (begun, mut waited) = (now(), false);
            let accepting = poll_fn(|cx| {
                let accepted = self.listener.poll_accept(cx);
                waited |= accepted.is_pending();
                accepted.map_ok(|(io, peer)| (io, peer.into()))
            });
            let accepted = timeout(SETTLED, accepting).await;
            if waited {
                patience = patience.saturating_sub(now() - begun);
            }
            match accepted {
                Ok(Ok((io, peer))) => self.spawn(io, peer, origin),
                Ok(Err(error)) => match self.failed(&error) {
                    Next::Retry => {}
                    // Only connections of our own free anything that we may wait for.
                    Next::Wait(_) if self.live.len() > 0 => sleep(self.backoff.pause()).await,
                    Next::Wait(_) => return,
                    Next::Stop => return,
                },
                Err(_) => return,
            }
        }
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<(L::Io, Addr), Failure>> {
        let ready = ready!(self.service.poll_ready(cx));
        ready.map_err(|error| Failure::Service(error.into()))?;
        let accepted = self.listener.poll_accept(cx);
        if accepted.is_pending() {
            // A place that was reserved must not wait here for a connection while another listener needs
            // it. A clone has reserved nothing.
            self.service = self.service.clone();
        }
        accepted
            .map_ok(|(io, peer)| (io, peer.into()))
            .map_err(Failure::Accept)
    }

    fn spawn(&mut self, io: L::Io, peer: Addr, origin: &Arc<Origin>) {
        let info = ConnInfo::from_origin(peer, Arc::clone(origin));
        let conn = Conn::with_info(io, info);
        let info = Arc::clone(conn.info());
        let alive = self.live.enter(Arc::clone(&info));
        // Put in its place rather than returned: a future of a kilobyte is moved often enough.
        let mut serving = None;
        let called = catch_unwind(AssertUnwindSafe(|| serving = Some(self.service.call(conn))));
        if called.is_err() {
            info.end_with(CloseReason::Panic);
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "one task a connection; `Live` knows it until it ends"
        )]
        tokio::spawn(Connection::new(serving, info, alive));
    }

    fn failed(&mut self, error: &io::Error) -> Next {
        let kind = AcceptError::of(error).label();
        self.live.count_accept_error(kind);
        counter!("tower_net_accept_errors_total", "kind" => kind).increment(1);
        if AcceptError::of(error) != AcceptError::Connection {
            let burst = self.burst.get_or_insert_with(|| {
                tracing::warn!(%error, kind, listener = self.name.as_deref(), "accept failed");
                Burst::default()
            });
            burst.failures += 1;
            burst.last = Some(now());
        }
        self.backoff.after(error)
    }

    fn succeeded(&mut self) {
        self.backoff.succeeded();
        // Near the limit accepts fail and succeed in turn: that is one burst, and one line in the log.
        if let Some(burst) = self
            .burst
            .take_if(|burst| burst.is_over())
        {
            let failures = burst.failures;
            tracing::info!(failures, listener = self.name.as_deref(), "accepting again");
        }
    }
}

/// Failures that belong together.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    failures: u64,
    last: Option<Instant>,
}

impl Burst {
    fn is_over(&self) -> bool {
        self.last
            .is_none_or(|last| now() - last >= QUIET)
    }
}

/// No kernel queues more by default.
const QUEUE: usize = 4096;

/// Spent waiting for the next one, in all: a client that goes on connecting does not keep the drain from it.
const PATIENCE: Duration = Duration::from_millis(250);

/// Long beside a handshake on a local network, short beside any drain.
const SETTLED: Duration = Duration::from_millis(10);

/// After so long without a failure, the next one is news again.
const QUIET: Duration = Duration::from_secs(1);
