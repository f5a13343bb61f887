use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::conn::{
    CloseReason, ConnInfo, Deadline,
    deadline::Ambient,
    turn::Turn,
    waits::{NEVER, Way},
};

/// The handle to the running connection, for the handler that needs more than the defaults give it.
impl ConnInfo {
    /// Gives the request being handled this much more time.
    ///
    /// Called from a handler, it moves that request's own handler deadline. Called from elsewhere, it moves
    /// the request, handler and reply deadlines that are running on the connection now.
    pub fn extend(&self, by: Duration) {
        if Turn::is_of(self) && Ambient::extend(by) {
            return;
        }
        self.waits.give_extra(by);
        self.ending.wake();
    }

    /// Stops every deadline of the connection but its maximum age, until the returned guard is dropped; what
    /// was left of each is left then.
    ///
    /// For a handler that streams, or hands the stream to something with deadlines of its own.
    #[must_use = "the deadlines run again as soon as the guard is dropped"]
    pub fn suspend(self: &Arc<Self>) -> Suspended {
        let suspended = &self.waits.suspended;
        if suspended.fetch_add(1, Ordering::Relaxed) == 0 {
            self.ending.wake();
        }
        Suspended {
            info: Arc::clone(self),
        }
    }

    /// Ends the connection, in order, once the reply to the present request is written.
    ///
    /// A framed connection does this by itself; a raw service sees it as the notice to leave.
    pub fn close_after_reply(&self) {
        self.ending
            .tell_to_leave(CloseReason::Served);
    }

    /// Whether the connection has been told to leave when it can: the server drains, or its age is reached.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.ending.leaving().is_some()
    }

    /// Waits until the connection is told to leave, and says why.
    ///
    /// A framed connection does this by itself. A raw service selects on it beside its reads, finishes what
    /// it has begun and returns; one that does not is cut when the drain's time is up.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the notice stays given.
    pub async fn told_to_leave(&self) -> CloseReason {
        self.ending.told_to_leave().await
    }

    /// Lets every read that is not done by `deadline` fail with [`io::ErrorKind::TimedOut`], as in Go.
    ///
    /// It holds until it is set again; [`Deadline::NEVER`] lifts it. Kept by the stream of
    /// [`DeadlineLayer`](crate::deadline::DeadlineLayer); without that layer it does nothing.
    ///
    /// [`io::ErrorKind::TimedOut`]: std::io::ErrorKind::TimedOut
    pub fn set_read_deadline(&self, deadline: Deadline) {
        self.set_deadline(Way::Read, deadline);
    }

    /// Lets every write that is not done by `deadline` fail, as [`set_read_deadline`](Self::set_read_deadline)
    /// does for reads.
    pub fn set_write_deadline(&self, deadline: Deadline) {
        self.set_deadline(Way::Write, deadline);
    }

    fn set_deadline(&self, way: Way, deadline: Deadline) {
        let by = self.stamp_of(deadline);
        self.waits
            .set_absolute(way, by, deadline.has_passed());
        self.ending.wake();
    }

    /// Ends the connection now, with `reason`, whatever it is doing.
    ///
    /// Kept by [`Server`](crate::Server) and by the stream of
    /// [`DeadlineLayer`](crate::deadline::DeadlineLayer).
    pub fn cut(&self, reason: CloseReason) {
        self.ending.cut(reason);
        self.waits.wake_strangers();
    }

    /// Whether the close must be a reset: what is unsent would stay in the kernel for a peer that does not
    /// take it.
    pub(crate) fn must_reset(&self) -> bool {
        self.close_reason()
            .is_some_and(CloseReason::resets)
            || (self.ending.is_cut() && self.waits.blocked.get())
    }

    /// What it is doing, in a word, for reports.
    pub(crate) fn phase(&self) -> &'static str {
        let waits = &self.waits;
        if waits.is_stalled() {
            "writing"
        } else if waits.busy.get() || waits.asked.get() {
            "handling"
        } else if waits.receiving.get() {
            "receiving"
        } else if waits.reading.get() {
            "reading"
        } else {
            "serving"
        }
    }

    fn stamp_of(&self, deadline: Deadline) -> u64 {
        deadline
            .instant()
            .map_or(NEVER, |instant| self.stamp(instant))
    }
}

/// Keeps a connection's deadlines stopped; see [`ConnInfo::suspend`].
///
/// When the last one of a connection is dropped, its deadlines run again from then on.
#[derive(Debug)]
pub struct Suspended {
    info: Arc<ConnInfo>,
}

impl Drop for Suspended {
    fn drop(&mut self) {
        self.info
            .waits
            .suspended
            .fetch_sub(1, Ordering::Relaxed);
        self.info.ending.wake();
    }
}
