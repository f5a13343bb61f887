//! One handshake under way, and how it ends.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use crate::conn::{
    CloseReason, Elapsed,
    handshakes::{HandshakeLimit, Ticket},
    opening::{Opened, Opening},
};

pin_project! {
    /// A handshake, until it is done, late, evicted, or not begun when the server drains.
    #[must_use = "futures do nothing unless polled"]
    pub(crate) struct Running<'a, F> {
        limit: &'a HandshakeLimit,
        ticket: Arc<Ticket>,
        #[pin]
        opening: Opening<F>,
    }
}

impl<'a, F: Future> Running<'a, F> {
    pub(super) fn new(limit: &'a HandshakeLimit, ticket: Arc<Ticket>, opening: Opening<F>) -> Self {
        Self {
            limit,
            ticket,
            opening,
        }
    }
}

impl<F: Future> Future for Running<'_, F> {
    type Output = Result<F::Output, Unfinished>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let ticket = this.ticket;
        let opened = this
            .opening
            .poll(cx, ticket.info(), || ticket.has_spoken());
        let unfinished = match opened {
            Poll::Ready(Opened::Said(done)) => return Poll::Ready(Ok(done)),
            _ if ticket.is_evicted() => Unfinished::Evicted,
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Opened::Left(reason)) => Unfinished::Left(reason),
            Poll::Ready(Opened::Late) => match this.limit.late(ticket.has_spoken()) {
                Some(elapsed) => Unfinished::Elapsed(elapsed),
                None => return Poll::Pending,
            },
        };
        // Now, since the stream may be in the handshake that is dropped next, and whoever counts its end asks then.
        ticket
            .info()
            .end_with(unfinished.reason());
        Poll::Ready(Err(unfinished))
    }
}

/// Why a handshake was ended before it was done.
#[derive(Debug)]
pub(crate) enum Unfinished {
    /// It was not done in time.
    Elapsed(Elapsed),
    /// It made room for another.
    Evicted,
    /// The peer had said nothing when the connection was told to leave.
    Left(CloseReason),
}

impl Unfinished {
    /// What the connection ends with.
    pub(crate) fn reason(&self) -> CloseReason {
        match self {
            Self::Elapsed(elapsed) => elapsed.which(),
            Self::Evicted => CloseReason::HandshakeLimit,
            Self::Left(reason) => *reason,
        }
    }
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elapsed(elapsed) => elapsed.fmt(f),
            Self::Evicted => f.write_str("made room for another handshake"),
            Self::Left(_) => f.write_str("told to leave before it said anything"),
        }
    }
}

impl Error for Unfinished {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Elapsed(elapsed) => Some(elapsed),
            Self::Evicted | Self::Left(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use tokio::time::{Instant, sleep};
    use tokio_test::{assert_pending, task};

    use super::*;
    use crate::conn::{Addr, ConnInfo, Handshakes};

    /// Within ten seconds.
    fn limit() -> HandshakeLimit {
        HandshakeLimit::new(Handshakes::default(), CloseReason::Handshake)
    }

    fn begin(limit: &HandshakeLimit, info: &Arc<ConnInfo>) -> Arc<Ticket> {
        Arc::new(limit.begin(info).unwrap())
    }

    fn info() -> Arc<ConnInfo> {
        Arc::new(ConnInfo::new(Addr::Unnamed, Addr::Unnamed))
    }

    #[tokio::test(start_paused = true)]
    async fn two_handshakes_of_a_connection_share_their_time_until_all_are_done() {
        let (limit, info, start) = (limit(), info(), Instant::now());
        let begin = || {
            let ticket = begin(&limit, &info);
            ticket.spoke();
            ticket
        };
        let came_to = |result: Result<(), Unfinished>| {
            let reason = result
                .err()
                .map(|unfinished| unfinished.reason());
            (reason, start.elapsed().as_secs())
        };

        let first = limit.run(begin(), sleep(Duration::from_secs(6)));
        let first = came_to(first.await);
        let second = limit.run(begin(), pending::<()>());
        let second = came_to(second.await);
        info.handshakes_done();
        let third = limit.run(begin(), sleep(Duration::from_secs(9)));
        let third = came_to(third.await);

        assert_eq!((first, third), ((None, 6), (None, 19)));
        assert_eq!(second, (Some(CloseReason::Handshake), 10));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_spoken_may_finish_when_told_to_leave() {
        let (limit, info) = (limit(), info());
        let ticket = begin(&limit, &info);
        let mut run = task::spawn(limit.run(Arc::clone(&ticket), pending::<()>()));
        assert_pending!(run.poll());
        ticket.spoke();

        info.ending
            .tell_to_leave(CloseReason::Drain);

        assert!(run.is_woken());
        assert_pending!(run.poll());
    }
}
