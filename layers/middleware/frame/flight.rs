//! The requests of one connection that are being worked on, and their replies: in order, or as they come.
//!
//! # Invariants
//!
//! Either one handler waits alone, or all of those that wait have a [seat](Seats) each. Alone it is polled with the
//! connection's own waker and costs one allocation; otherwise each has a waker of its own, so that many that wait do
//! not poll each other. A handler that answers at once never gets this far: it is polled in the spare seat, which is
//! then the next one's.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    base::error::BoxError,
    conn::{Ambient, Entered},
    middleware::frame::{
        FrameError,
        seats::{Done, Outcome, Seat, Seats, Wait, drop_apart, outcome_of, poll_seated},
    },
};

/// The requests in flight.
pub(super) struct Flight<F: Future, R, K> {
    spare: Option<Pin<Box<Seat<F, K>>>>,
    alone: Option<Pin<Box<Seat<F, K>>>>,
    /// Those that wait, if it is not one alone; kept for the next ones when it is empty.
    seats: Option<Box<Seats<F, R, K>>>,
    /// How many there are, alone or in a seat.
    count: usize,
    /// Replies go out in the order of their requests.
    ordered: bool,
    /// Seats have changed that only a round of them shows.
    changed: bool,
}

/// A request that is about to be started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start<K> {
    pub(super) id: K,
    pub(super) due: Ambient,
    /// It is due when the caller says, which is before anybody else does.
    pub(super) hasty: bool,
}

impl<F: Future, R, K: Copy + Ord> Flight<F, R, K> {
    pub(super) fn new(ordered: bool) -> Self {
        Self {
            spare: None,
            alone: None,
            seats: None,
            count: 0,
            ordered,
            changed: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Whether an outcome would have to wait for those of others.
    pub(super) fn holds_back(&self) -> bool {
        self.ordered && !self.is_empty()
    }

    /// Whether there must be a [round](Self::listen) before the connection parks: some handler has not been polled with
    /// its own waker yet, or is done already.
    pub(super) fn has_changed(&self) -> bool {
        self.changed
    }

    /// Whether a request of this id is in flight.
    pub(super) fn has(&self, id: K) -> bool {
        let alone = self.alone.as_ref();
        let seats = self.seats.as_ref();
        alone.is_some_and(|seat| seat.id == id) || seats.is_some_and(|seats| seats.has(id))
    }

    /// Drops every handler where it stands; one that panics at that keeps the others from nothing.
    pub(super) fn clear(&mut self) {
        drop_apart(self.alone.take());
        if let Some(mut seats) = self.seats.take() {
            seats.clear();
        }
        self.spare = None;
        (self.count, self.changed) = (0, false);
    }

    /// Drops what panicked as it was begun, where it stands.
    pub(super) fn clear_begun(&mut self) {
        drop_apart(self.spare.take());
    }

    /// Drops the handler that waits alone, which panicked.
    pub(super) fn clear_alone(&mut self) -> Option<K> {
        let alone = self.alone.take()?;
        let id = alone.id;
        drop_apart(alone);
        self.count -= 1;
        Some(id)
    }

    /// Gives back what a connection that waits has no use for.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() {
            self.spare = None;
            self.seats = None;
        }
    }

    /// All that have begun to wait.
    fn waiting(&mut self) -> impl Iterator<Item = Pin<&mut Seat<F, K>>> {
        let seats = self
            .seats
            .iter_mut()
            .flat_map(|seats| seats.running());
        let alone = self.alone.iter_mut().map(Pin::as_mut);
        alone.chain(seats)
    }

    /// Gives every handler that has begun to wait its deadline, and returns the earliest of all.
    pub(super) fn stamp(&mut self, mut now: impl FnMut() -> Instant) -> Option<Instant> {
        if self.is_empty() {
            return None;
        }
        self.waiting()
            .filter_map(|seat| seat.project().wait.stamp(&mut now))
            .min()
    }

    /// Lets every handler that is late go on for as long as it likes; returns how many those are.
    pub(super) fn spare(&mut self, now: Instant) -> u64 {
        self.waiting()
            .map(|seat| u64::from(seat.project().wait.spare(now)))
            .sum()
    }

    /// Gives every handler so much more time.
    pub(super) fn extend(&mut self, by: Duration) {
        for seat in self.waiting() {
            let wait = seat.project().wait;
            wait.due = wait.due.later(by);
        }
    }

    /// Drops the handlers that are late, whose outcome is what `why` makes of who did not wait: the caller, or we.
    pub(super) fn end_late(&mut self, now: Instant, why: impl Fn(bool) -> FrameError) {
        let why = |seat: &Seat<F, K>| {
            let is_late = seat.wait.due.is_late(now);
            is_late.then(|| Err(why(seat.wait.hasty)))
        };
        self.end_alone(why);
        if let Some(seats) = &mut self.seats {
            self.changed |= seats.end(why);
        }
    }

    /// Drops the handler of a request that nobody waits for, if it is in flight: it comes to nothing.
    pub(super) fn cancel(&mut self, id: K) {
        self.end_alone(|seat| (seat.id == id).then_some(Ok(None)));
        if let Some(seats) = &mut self.seats {
            self.changed |= seats.cancel(id);
        }
    }

    fn end_alone(&mut self, why: impl Fn(&Seat<F, K>) -> Option<Outcome<R>>) {
        let Some(seat) = self.alone.take() else {
            return;
        };
        match why(&seat) {
            Some(outcome) => {
                let done = seat.done(outcome);
                self.spare = Some(seat.vacate());
                self.count -= 1;
                self.put(done);
            }
            None => self.alone = Some(seat),
        }
    }

    /// Puts an outcome that is in the metrics already in its place behind what is in flight.
    pub(super) fn push_counted(&mut self, id: K, outcome: Outcome<R>) {
        self.put(Done {
            id,
            outcome,
            since: None,
            counted: true,
        });
    }

    fn put(&mut self, done: Done<R, K>) {
        self.seats().put(done);
        self.count += 1;
        self.changed = true;
    }

    /// The seats, with whoever was alone in one of them.
    fn seats(&mut self) -> &mut Seats<F, R, K> {
        let ordered = self.ordered;
        let seats = self
            .seats
            .get_or_insert_with(|| Box::new(Seats::new(ordered)));
        if let Some(seat) = self.alone.take() {
            seats.sit_unseen(seat);
            self.changed = true;
        }
        seats
    }
}

impl<F, T, E, K> Flight<F, T, K>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
    K: Copy + Ord,
{
    /// Calls a handler and polls it once. Ready if its reply is there, and no other must go out before it.
    #[inline]
    pub(super) fn start(
        &mut self,
        call: impl FnOnce() -> F,
        start: Start<K>,
        ambient: &Entered,
        cx: &mut Context<'_>,
    ) -> Poll<Result<T, E>> {
        let seat = self.spare.get_or_insert_with(|| {
            Box::pin(Seat {
                handler: None,
                wait: Wait::NONE,
                id: start.id,
            })
        });
        ambient.set(start.due);
        // With nobody, or one alone, there is no bell to be polled with yet.
        let seated = self.count > 0 && self.alone.is_none();
        let mut place = seat.as_mut().project().handler;
        place.set(Some(call()));
        let polled = match &mut self.seats {
            Some(seats) if seated => {
                poll_seated(place.as_mut(), &mut Context::from_waker(seats.next_bell()))
            }
            _ => poll_seated(place.as_mut(), cx),
        };
        if let Poll::Ready(answer) = polled {
            place.set(None);
            if !self.holds_back() {
                return Poll::Ready(answer);
            }
            self.put(Done {
                id: start.id,
                outcome: outcome_of(answer),
                since: None,
                counted: false,
            });
            return Poll::Pending;
        }
        let seat = self.spare.take();
        let mut seat = seat.expect("it was polled in the spare seat");
        let place = seat.as_mut().project();
        place.wait.due = ambient.get();
        place.wait.hasty = start.hasty;
        *place.id = start.id;
        self.count += 1;
        if self.count == 1 {
            self.alone = Some(seat);
        } else if seated {
            self.seats().sit(seat);
        } else {
            self.seats().sit_unseen(seat);
        }
        Poll::Pending
    }

    /// Begins a round of those that have been woken.
    pub(super) fn listen(&mut self, cx: &Context<'_>) {
        if let Some(seats) = &mut self.seats {
            seats.listen(cx.waker());
        }
        self.changed = false;
    }

    /// The next outcome of this round, or in order; `None` if nothing is in flight.
    pub(super) fn poll_next(
        &mut self,
        ambient: &Entered,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Done<T, K>>> {
        if let Some(seat) = &mut self.alone {
            // It stays in place while it is polled, so that a panic leaves it where it is found.
            let place = seat.as_mut().project();
            ambient.set(place.wait.due);
            let polled = poll_seated(place.handler, cx);
            place.wait.due = ambient.get();
            let answer = ready!(polled);
            let done = seat.done(outcome_of(answer));
            self.spare = self.alone.take().map(Seat::vacate);
            self.count = 0;
            return Poll::Ready(Some(done));
        }
        let seats = self.seats.as_mut();
        let Some(seats) = seats.filter(|_| self.count > 0) else {
            return Poll::Ready(None);
        };
        match seats.poll_next(ambient, &mut self.spare) {
            Some(done) => {
                self.count -= 1;
                Poll::Ready(Some(done))
            }
            None => Poll::Pending,
        }
    }
}
