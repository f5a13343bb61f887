//! The upstream of a tunnel, until it is connected.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::time::Instant;

use crate::{
    base::{
        error::BoxError,
        io::Io,
        time::{Timer, now},
    },
    conn::{Ambient, CloseReason, Conn, Deadline, Entered, Suspended, spent::Allowance},
    middleware::forward::{ConnectError, Shared, relay::Relay},
};

/// A client that waits for its upstream.
pub(super) struct Dial<F, I> {
    // Dropped in this order.
    connecting: Pin<Box<F>>,
    client: Conn<I>,
    /// The client cannot be late with what is not read.
    suspended: Suspended,
    begun: Instant,
    allowed: Allowance,
    /// In a dry run, the time has passed and was counted.
    spared: bool,
}

impl<F, I> Dial<F, I> {
    pub(super) fn begin(client: Conn<I>, shared: &Shared, connect: impl FnOnce() -> F) -> Self {
        let caller = match shared.spared {
            None => Deadline::current(),
            // Whoever has it keeps it; of ours there is none.
            Some(_) => Deadline::NEVER,
        };
        let begun = now();
        let allowed = Allowance::begin(shared.timeouts.connect, caller);
        let ambient = enter(allowed, shared);
        let connecting = Box::pin(connect());
        drop(ambient);
        Self {
            suspended: client.info().suspend(),
            connecting,
            client,
            begun,
            allowed,
            spared: false,
        }
    }
}

impl<F, I, O, E> Dial<F, I>
where
    F: Future<Output = Result<Conn<O>, E>>,
    E: Into<BoxError>,
    I: Io,
    O: Io,
{
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Timer>,
        shared: &Shared,
    ) -> Poll<Result<Conn<O>, ConnectError>> {
        let ambient = enter(self.allowed, shared);
        let connecting = self.connecting.as_mut().poll(cx);
        drop(ambient);
        if let Poll::Ready(connected) = connecting {
            return Poll::Ready(connected.map_err(ConnectError::failed));
        }
        let by = self.allowed.instant();
        let Some(at) = by.filter(|_| !self.spared) else {
            return Poll::Pending;
        };
        if !timer.is_armed() {
            timer.as_mut().arm(at);
        }
        ready!(timer.poll(cx));
        if let Some(spared) = &shared.spared {
            spared.count(CloseReason::Upstream, 1);
            self.spared = true;
            return Poll::Pending;
        }
        Poll::Ready(Err(ConnectError::late(self.allowed.spent())))
    }

    pub(super) fn end(
        self,
        dialled: Result<Conn<O>, ConnectError>,
        shared: &Arc<Shared>,
    ) -> Result<Relay<I, O>, ConnectError> {
        drop(self.suspended);
        let metrics = &shared.metrics;
        match dialled {
            Ok(upstream) => {
                metrics.connected.increment(1);
                let took = now().saturating_duration_since(self.begun);
                Ok(Relay::new(self.client, upstream, took, Arc::clone(shared)))
            }
            Err(error) => {
                // The connector has the same deadline, and may be the first to see it pass.
                let is_late = error.spent().is_some() || self.allowed.is_over();
                let counter = match is_late {
                    true => &metrics.late,
                    false => &metrics.failed,
                };
                counter.increment(1);
                // Nothing was read, so nothing is lost: it may try elsewhere at once.
                self.client
                    .refuse(CloseReason::Upstream);
                Err(error)
            }
        }
    }
}

/// Whatever the connector does in several steps, they have this one budget; in a dry run what they had before.
fn enter(allowed: Allowance, shared: &Shared) -> Option<Entered> {
    if shared.spared.is_some() {
        return None;
    }
    let ambient = Ambient::enter();
    ambient.set(Ambient::At(allowed.deadline()));
    Some(ambient)
}
