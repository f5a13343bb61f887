//! What was asked and is not begun yet: by when it is due, and what is not begun at all.

use std::time::Duration;

use tokio::time::Instant;
use tower_service::Service;

use crate::{
    base::{
        error::BoxError,
        io::Io,
        time::{FOREVER, now},
    },
    conn::{CloseReason, Deadline, Elapsed, waits::NEVER},
    middleware::frame::{
        CodecError, FrameError, Request, RpcCode, RpcFailure,
        driver::Driver,
        flight::Start,
        protocol::{Inbound, Replies, Requests},
    },
};

/// A request that is not begun yet. When it is due is a known point once it has waited.
pub(super) struct Asked<K, M> {
    pub(super) message: M,
    pub(super) start: Start<K>,
}

impl<K, M> Asked<K, M> {
    /// Counts from `now` if it has only just begun to wait; returns when it is due.
    pub(super) fn stamp(&mut self, now: &mut impl FnMut() -> Instant) -> Option<Instant> {
        let due = &mut self.start.due;
        if due.deadline().is_none() {
            *due = due.from(now());
        }
        due.deadline()?.instant()
    }

    /// Whether it is late, which it is only once.
    pub(super) fn spare(&mut self, now: Instant) -> bool {
        let due = &mut self.start.due;
        let late = due.is_late(now);
        if late {
            *due = due.at(Deadline::NEVER);
        }
        late
    }
}

impl<I, S, P> Driver<I, S, P>
where
    I: Io,
    S: Service<Request<<P as Requests>::Message>>,
    S::Error: Into<BoxError>,
    P: Requests + Replies<S::Response>,
{
    /// Whether a request is to be begun and not answered already: due as `start` has it, or when the caller says.
    #[inline]
    pub(super) fn is_to_begin(
        &mut self,
        id: P::Id,
        left: Option<Duration>,
        start: &mut Start<P::Id>,
    ) -> bool {
        start.id = id;
        self.is_new(id)
            && left
                .filter(|left| *left < FOREVER)
                .is_none_or(|left| self.hasten(start, left))
    }

    /// What is no request, but about one.
    #[inline(never)]
    pub(super) fn heed(&mut self, frame: Inbound<P::Id, P::Message>) {
        match frame {
            Inbound::Cancel(id) => self.end_apart(|driver| driver.flight.cancel(id)),
            Inbound::Refuse(id, failure) => {
                if self.is_new(id) {
                    self.turn_away(id, failure);
                }
            }
            Inbound::Bad(error) => self.fail_behind(FrameError::Decode(error.into())),
            Inbound::Request { .. } | Inbound::Nothing => {}
        }
    }

    /// Whether a request of this id may be taken; else it is the end.
    fn is_new(&mut self, id: P::Id) -> bool {
        // Where ids rise nobody has to look.
        if id > self.taken {
            self.taken = id;
            return true;
        }
        let is_used = self.flight.has(id) || id == P::Id::default();
        if is_used {
            self.fail_behind(FrameError::Decode(
                CodecError::BadId { id: P::number(id) }.into(),
            ));
        }
        !is_used
    }

    /// A request for which its caller gives so much time, from when it came in; `false` if that is refused.
    #[inline]
    fn hasten(&mut self, start: &mut Start<P::Id>, left: Duration) -> bool {
        // As long as nothing has to wait, nobody reads a clock.
        if self.here_since == NEVER && !left.is_zero() {
            start.hasty = left < self.shared.framing.handler;
            start.due = start.due.within(left);
            return true;
        }
        match self.hasten_waited(start.id, left) {
            Hastened::Due { by, hasty } => {
                start.due = start.due.at(by);
                start.hasty = hasty;
            }
            Hastened::AsItWas => {}
            Hastened::Refused => return false,
        }
        true
    }

    /// The same for one that has waited to be taken, or whose time is up. (`start` is not lent to it: what is lent to a
    /// call that is not inlined has to be in memory, for all the others too.)
    #[cold]
    fn hasten_waited(&mut self, id: P::Id, left: Duration) -> Hastened {
        let now = now();
        let since = self.info.instant(self.here_since);
        let by = Deadline::after(since.unwrap_or(now), left);
        if by > Deadline::at(now) {
            let ours = Deadline::after(now, self.shared.framing.handler);
            return Hastened::Due {
                by: by.min(ours),
                hasty: by < ours,
            };
        }
        if self.shared.framing.dry_run {
            self.shared
                .metrics
                .spared(CloseReason::Handler, 1);
            return Hastened::AsItWas;
        }
        // Else it has no deadline but ours: what this caller says of its time is not to be believed.
        if self.protocol.may_refuse(now) {
            self.turn_away(id, RpcFailure::spent(true));
            return Hastened::Refused;
        }
        Hastened::AsItWas
    }

    /// Answers a request that is not begun.
    fn turn_away(&mut self, id: P::Id, failure: RpcFailure) {
        self.shared.metrics.refused();
        self.place(id, Err(FrameError::Service(failure.into())));
    }

    /// The service will never be ready again, which a request has found out.
    pub(super) fn fail_unready(&mut self, id: P::Id, error: BoxError) {
        let error = FrameError::Service(error);
        if P::BY_ID {
            self.turn_away(id, RpcFailure::leaving());
        }
        self.fail_behind(error);
    }

    /// Ends what is late, each on its own.
    pub(super) fn end_late_by_id(&mut self) {
        let (now, limit) = (now(), self.shared.framing.handler);
        self.flight.end_late(now, |hasty| {
            if hasty {
                FrameError::Service(RpcFailure::spent(false).into())
            } else {
                FrameError::Elapsed(Elapsed::new(CloseReason::Handler, Some(limit)))
            }
        });
        let waiting = self.waiting.as_ref();
        if waiting.is_some_and(|waiting| waiting.start.due.is_late(now)) {
            self.turn_waiting_away(|hasty| {
                if hasty {
                    RpcFailure::spent(true)
                } else {
                    RpcFailure::never_started(RpcCode::Refused, "no room for it in time")
                }
            });
        }
    }

    /// Answers the request that waits for the service, if there is one, which it then does no longer.
    pub(super) fn turn_waiting_away(&mut self, why: impl FnOnce(bool) -> RpcFailure) {
        if let Some(waiting) = self.waiting.take() {
            // It may have been promised a place that nobody would take now, and others would want.
            self.service = (self.renew)(&self.service);
            self.turn_away(waiting.start.id, why(waiting.start.hasty));
        }
    }
}

/// What a caller's word on its time comes to.
enum Hastened {
    /// It is due then; `hasty` if that is before it would be otherwise.
    Due { by: Deadline, hasty: bool },
    /// Its time is up, and it is begun all the same.
    AsItWas,
    /// Its time is up, and it was told so.
    Refused,
}
