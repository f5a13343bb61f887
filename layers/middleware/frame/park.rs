//! How a framed connection waits: what it is told, what it waits for, what it gives back meanwhile.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use tower_service::Service;

use crate::{
    base::{
        error::BoxError,
        io::{Io, has_unread},
        time::now,
    },
    conn::{
        CloseReason, Elapsed,
        waits::{Late, NEVER, plus},
    },
    middleware::frame::{
        FrameError, Request,
        driver::Driver,
        protocol::{Replies, Requests},
    },
};

impl<I, S, P> Driver<I, S, P>
where
    I: Io,
    S: Service<Request<<P as Requests>::Message>>,
    S::Error: Into<BoxError>,
    P: Requests + Replies<S::Response>,
{
    /// What others have said to the connection since the last poll.
    pub(super) fn hear(&mut self) {
        if self.shared.framing.dry_run {
            self.spare_late();
        } else {
            self.end_late();
        }
        self.leaving = self.info.ending.leaving();
        if let Some(extra) = self.info.waits.take_extra() {
            self.flight.extend(extra);
            self.info.waits.request_by.extend(extra);
            self.info.waits.reply_by.extend(extra);
        }
    }

    fn end_late(&mut self) {
        if P::BY_ID && self.info.waits.take_late(Late::Handler) {
            self.end_apart(Self::end_late_by_id);
        } else if self.info.waits.take_late(Late::Handler) {
            let limit = Some(self.shared.framing.handler);
            self.fail(FrameError::Elapsed(Elapsed::new(
                CloseReason::Handler,
                limit,
            )));
        }
        if self.info.waits.take_late(Late::Request) {
            let limit = Some(self.shared.framing.request);
            self.fail_behind(FrameError::Elapsed(Elapsed::new(
                CloseReason::Request,
                limit,
            )));
        }
    }

    /// Ends some of what is in flight. A handler that panics as it is dropped takes all others along, and is still one of
    /// those in flight: it is counted with them.
    pub(super) fn end_apart(&mut self, end: impl FnOnce(&mut Self)) {
        // Unwind safety: what panicked is gone, and so is all that it was with.
        if catch_unwind(AssertUnwindSafe(|| end(self))).is_err() {
            self.fail(FrameError::Panicked);
        }
    }

    /// A dry run: counts what is late, each once, and lets it be.
    fn spare_late(&mut self) {
        let (waits, metrics) = (&self.info.waits, &self.shared.metrics);
        if waits.take_late(Late::Handler) {
            let now = now();
            let mut late = self.flight.spare(now);
            if let Some(waiting) = &mut self.waiting {
                late += u64::from(waiting.spare(now));
            }
            metrics.spared(CloseReason::Handler, late);
        }
        for (which, reason) in [
            (Late::Request, CloseReason::Request),
            (Late::Reply, CloseReason::Reply),
        ] {
            if waits.take_late(which) {
                metrics.spared(reason, 1);
            }
        }
    }

    pub(super) fn wants_input(&self) -> bool {
        self.ending.is_none()
            && !self.ended
            && self.waiting.is_none()
            && self.turn < self.last_turn
            && !(self.sealed && self.last_turn == u64::MAX)
            && self.has_room()
    }

    /// About to park, told to leave: what has arrived by now is the last of it. `true` if that leaves
    /// something to do at once.
    pub(super) fn seal(&mut self) -> bool {
        let Some(reason) = self.leaving.filter(|_| !self.sealed) else {
            return false;
        };
        let idle =
            self.dry && self.input.is_empty() && self.flight.is_empty() && self.output.is_clear();
        if idle
            && self
                .conn
                .as_ref()
                .is_some_and(has_unread)
        {
            // Not idle after all: the runtime is about to tell.
            return false;
        }
        self.sealed = true;
        if !self.dry {
            // Whole requests may be here that there is no room for yet.
            return false;
        }
        if idle {
            // Nothing of the peer's is here that a close would turn into a reset.
            self.end(reason, false);
            return true;
        }
        self.take_last();
        self.last_turn == self.turn
    }

    /// Sealed, and no whole request is here any more: one that has begun to arrive is the last. Once that is
    /// taken and answered, the connection leaves.
    pub(super) fn take_last(&mut self) {
        if self.sealed && self.dry && self.last_turn == u64::MAX {
            self.last_turn = self.turn + u64::from(!self.input.is_empty());
        }
        if self.ending.is_none() {
            if self.ended && self.dry {
                self.end(CloseReason::Peer, false);
            } else if self.turn >= self.last_turn {
                self.end(
                    self.leaving
                        .unwrap_or(CloseReason::Served),
                    true,
                );
            }
        }
    }

    /// Handlers were not polled while the peer took no replies: that time is not theirs.
    pub(super) fn give_back_held_time(&mut self) {
        let since = std::mem::replace(&mut self.held_since, NEVER);
        if since != NEVER {
            let held = self
                .info
                .stamp(now())
                .saturating_sub(since);
            self.flight
                .extend(Duration::from_nanos(held));
        }
    }

    /// A request is being worked on, or the end.
    #[inline]
    pub(super) fn is_busy(&self) -> bool {
        !self.flight.is_empty() || self.waiting.is_some() || self.ending.is_some()
    }

    /// Notes what is waited for, and gives back what is not needed meanwhile.
    pub(super) fn park(&mut self) {
        let mut clock = None;
        let mut now = || *clock.get_or_insert_with(now);
        let (info, waits) = (&self.info, &self.info.waits);
        let framing = &self.shared.framing;
        waits.busy.set(self.is_busy());

        let receiving = !self.input.is_empty() && self.wants_input();
        waits.receiving.set(receiving);
        if !receiving {
            self.timed_turn = 0;
            waits.request_by.clear();
        } else if self.timed_turn != self.turn + 1 {
            self.timed_turn = self.turn + 1;
            waits
                .turn
                .store(self.timed_turn, Relaxed);
            let by = plus(info.stamp(now()), framing.request);
            waits.request_by.set(by);
        }

        let handlers = self.flight.stamp(&mut now);
        let waiting = self
            .waiting
            .as_mut()
            // A request that the service is not ready for waits as well, and for no longer than a handler.
            .and_then(|waiting| waiting.stamp(&mut now));
        match handlers
            .into_iter()
            .chain(waiting)
            .min()
        {
            Some(by) if !self.congested => waits.handler_by.set(info.stamp(by)),
            _ => waits.handler_by.clear(),
        }
        if self.congested && !self.flight.is_empty() {
            self.held_since = self.held_since.min(info.stamp(now()));
        }
        if P::BY_ID && !self.dry && self.here_since == NEVER {
            self.here_since = info.stamp(now());
        }

        if self.output.is_clear() {
            self.timed_reply = 0;
            waits.reply_by.clear();
        } else if self.output.written() >= self.timed_reply
            && self.output.queued() > self.timed_reply
        {
            self.timed_reply = self.output.queued();
            waits
                .reply_by
                .set(plus(info.stamp(now()), framing.reply));
        }

        self.input.park();
        self.output.park();
        self.flight.shrink();
        self.report();
    }

    pub(super) fn report(&mut self) {
        if self.at_once > 0 {
            self.shared
                .metrics
                .at_once(self.at_once);
            self.at_once = 0;
        }
        let queued = u32::try_from(self.output.len()).unwrap_or(u32::MAX);
        if queued != self.reported {
            let change = f64::from(queued) - f64::from(self.reported);
            self.shared
                .metrics
                .queued
                .increment(change);
            self.reported = queued;
        }
    }
}
