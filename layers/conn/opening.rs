//! What a peer has to say before it is served, and the time it has for that.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;

use crate::{
    base::time::Timer,
    conn::{
        CloseReason, ConnInfo,
        turn::Turn,
        waits::{NEVER, Stamp},
    },
};

pin_project! {
    /// Something that a peer has to say, until it is said, is late, or the connection is told to leave.
    #[must_use = "it does nothing unless polled"]
    pub(crate) struct Opening<F> {
        by: Stamp,
        #[pin]
        timer: Timer,
        #[pin]
        said: F,
    }
}

/// How far it has come.
#[derive(Debug)]
pub(crate) enum Opened<T> {
    /// It is said.
    Said(T),
    /// The connection was told to leave, and the peer has said nothing at all.
    Left(CloseReason),
    /// The time is up. Said once: whoever polls on waits without a deadline.
    Late,
}

impl<F: Future> Opening<F> {
    /// Until `by`, or without a deadline.
    pub(crate) fn new(by: Stamp, said: F) -> Self {
        Self {
            by,
            timer: Timer::default(),
            said,
        }
    }

    /// `spoke` tells whether the peer has said anything, which is asked after `said` was polled.
    pub(crate) fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        info: &ConnInfo,
        spoke: impl FnOnce() -> bool,
    ) -> Poll<Opened<F::Output>> {
        let mut this = self.project();
        // Whoever tells the connection something wakes its task.
        let _turn = Turn::take(cx, info);
        if let Poll::Ready(said) = this.said.poll(cx) {
            return Poll::Ready(Opened::Said(said));
        }
        if let Some(reason) = info.ending.leaving() {
            if !spoke() {
                return Poll::Ready(Opened::Left(reason));
            }
        }
        let Some(at) = info.instant(*this.by) else {
            return Poll::Pending;
        };
        if !this.timer.is_armed() {
            this.timer.as_mut().arm(at);
        }
        ready!(this.timer.poll(cx));
        *this.by = NEVER;
        Poll::Ready(Opened::Late)
    }
}
