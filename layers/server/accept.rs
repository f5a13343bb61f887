//! Wait until the stack has room, then take a socket.

use std::{
    future::poll_fn,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use metrics::counter;
use tokio::time::{sleep, timeout};
use tokio_util::net::Listener;
use tower_service::Service;

use crate::{
    base::{error::BoxError, io::Io},
    conn::{Addr, CloseReason, Conn, ConnInfo},
    server::{
        backoff::{AcceptError, Backoff, Next},
        connection::Connection,
        live::{Live, Phase},
        serve::ServeError,
    },
};

/// One listener and the stack its connections go through.
pub(crate) struct Acceptor<L, S> {
    pub(crate) listener: L,
    pub(crate) service: S,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) backoff: Backoff,
    pub(crate) live: Arc<Live>,
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
    pub(crate) async fn run(mut self) -> Result<(), ServeError> {
        let local = self.listener.local_addr();
        let local = local.map_or(Addr::Unnamed, Into::into);
        let live = Arc::clone(&self.live);
        let mut draining = pin!(live.reached(Phase::Draining));
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut draining => break,
                accepted = poll_fn(|cx| self.poll_accept(cx)) => accepted,
            };
            match accepted {
                Ok((io, peer)) => {
                    self.recovered();
                    self.spawn(io, peer, &local);
                }
                Err(Failure::Service(error)) => return Err(ServeError::Service(error)),
                Err(Failure::Accept(error)) => match self.failed(&error) {
                    Next::Retry => {}
                    Next::Wait(wait) => {
                        let hope = async {
                            // A connection of ours that ends has freed what was missing.
                            sleep(self.backoff.pause()).await;
                            live.one_ended().await;
                        };
                        tokio::select! {
                            () = &mut draining => break,
                            _ = timeout(wait, hope) => {}
                        }
                    }
                    Next::Stop => return Err(ServeError::Listener(error)),
                },
            }
        }
        for _ in 0..QUEUE {
            let next = poll_fn(|cx| Poll::Ready(self.poll_accept(cx))).await;
            match next {
                Poll::Ready(Ok((io, peer))) => self.spawn(io, peer, &local),
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
        }
        Ok(())
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

    fn spawn(&mut self, io: L::Io, peer: Addr, local: &Addr) {
        let mut info = ConnInfo::new(peer, local.clone());
        if let Some(name) = &self.name {
            info = info.from_listener(Arc::clone(name));
        }
        let conn = Conn::with_info(io, info);
        let info = Arc::clone(conn.info());
        let alive = self.live.enter(Arc::clone(&info));
        let called = catch_unwind(AssertUnwindSafe(|| self.service.call(conn)));
        if called.is_err() {
            info.end_with(CloseReason::Panic);
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "one task a connection; `Live` knows it until it ends"
        )]
        tokio::spawn(Connection::new(called.ok(), info, alive));
    }

    fn failed(&mut self, error: &io::Error) -> Next {
        let kind = AcceptError::of(error).label();
        self.live.count_accept_error(kind);
        counter!("tower_net_accept_errors_total", "kind" => kind).increment(1);
        let next = self.backoff.after(error);
        if self.backoff.failures() == 1 {
            tracing::warn!(%error, kind, listener = self.name.as_deref(), "accept failed");
        }
        next
    }

    fn recovered(&mut self) {
        let failures = self.backoff.succeeded();
        if failures > 0 {
            tracing::info!(failures, listener = self.name.as_deref(), "accepting again");
        }
    }
}

/// No kernel queues more by default; whoever set a longer queue loses the rest in a drain.
const QUEUE: usize = 4096;
