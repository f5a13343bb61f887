//! Handlers that wait side by side, each woken on its own.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use pin_project_lite::pin_project;
use slab::Slab;
use tokio::time::Instant;

use crate::{
    base::error::BoxError,
    conn::{Ambient, Deadline, Entered},
    middleware::frame::{FrameError, bells::Bells},
};

/// What became of a request: a reply, nothing to reply, or a failure.
pub(super) type Outcome<R> = Result<Option<R>, FrameError>;

/// What became of a request, and since when it was waited for, if it was.
pub(super) struct Done<R, K> {
    pub(super) id: K,
    pub(super) outcome: Outcome<R>,
    pub(super) since: Option<Instant>,
    /// It is in the metrics already.
    pub(super) counted: bool,
}

pin_project! {
    /// A place for one handler, filled again and again.
    pub(super) struct Seat<F, K> {
        #[pin]
        pub(super) handler: Option<F>,
        pub(super) wait: Wait,
        pub(super) id: K,
    }
}

/// How long one handler has been waited for, and how long it may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub(super) due: Ambient,
    pub(super) since: Option<Instant>,
    /// It is the caller who does not wait any longer.
    pub(super) hasty: bool,
}

impl Wait {
    pub(super) const NONE: Self = Self {
        due: Ambient::Outside,
        since: None,
        hasty: false,
    };

    /// Counts from `now` if it has only just begun; returns when it is due.
    pub(super) fn stamp(&mut self, now: &mut impl FnMut() -> Instant) -> Option<Instant> {
        let since = *self.since.get_or_insert_with(&mut *now);
        self.due = self.due.from(since);
        self.due.deadline()?.instant()
    }

    /// Whether it is late, which it is only once.
    pub(super) fn spare(&mut self, now: Instant) -> bool {
        let late = self.due.is_late(now);
        if late {
            self.due = self.due.at(Deadline::NEVER);
        }
        late
    }
}

impl<F, K> Seat<F, K> {
    pub(super) fn vacate(mut self: Pin<Box<Self>>) -> Pin<Box<Self>> {
        let mut place = self.as_mut().project();
        place.handler.set(None);
        *place.wait = Wait::NONE;
        self
    }

    /// What has become of whoever sits here.
    pub(super) fn done<R>(&self, outcome: Outcome<R>) -> Done<R, K>
    where
        K: Copy,
    {
        Done {
            id: self.id,
            outcome,
            since: self.wait.since,
            counted: false,
        }
    }
}

/// The seats of one connection.
///
/// # Invariants
///
/// In order, each place that is taken is in `order`, once; else that is empty. Each is in `by_id`, if requests have ids:
/// many may be in flight, and a peer that cancels costs no look at all of them. A place that has changed without its
/// handler being polled is marked, so that the next round comes to it.
pub(super) struct Seats<F, R, K> {
    places: Slab<Place<F, R, K>>,
    order: VecDeque<usize>,
    by_id: BTreeMap<K, usize>,
    bells: Bells,
    ordered: bool,
}

enum Place<F, R, K> {
    Running(Pin<Box<Seat<F, K>>>),
    Done(Done<R, K>),
}

impl<F, R, K: Copy> Place<F, R, K> {
    fn id(&self) -> K {
        match self {
            Self::Running(seat) => seat.id,
            Self::Done(done) => done.id,
        }
    }

    /// Drops the handler, if it is running. Whether it was.
    fn end(&mut self, outcome: Outcome<R>) -> bool {
        let Self::Running(seat) = self else {
            return false;
        };
        *self = Self::Done(seat.done(outcome));
        true
    }
}

impl<F, R, K: Copy + Ord> Seats<F, R, K> {
    /// Where there are no ids, nobody is looked for by one.
    const BY_ID: bool = size_of::<K>() > 0;

    pub(super) fn new(ordered: bool) -> Self {
        Self {
            places: Slab::new(),
            order: VecDeque::new(),
            by_id: BTreeMap::new(),
            bells: Bells::default(),
            ordered,
        }
    }

    /// The bell of whoever sits down next.
    pub(super) fn next_bell(&mut self) -> &Waker {
        self.bells
            .bell(self.places.vacant_key())
    }

    /// Sits down a handler that was polled with the [bell](Self::next_bell).
    pub(super) fn sit(&mut self, seat: Pin<Box<Seat<F, K>>>) {
        self.insert(Place::Running(seat));
    }

    /// Sits down a handler that has yet to be polled here.
    pub(super) fn sit_unseen(&mut self, seat: Pin<Box<Seat<F, K>>>) {
        let at = self.insert(Place::Running(seat));
        self.bells.mark(at);
    }

    /// Puts what is done already in its place.
    pub(super) fn put(&mut self, done: Done<R, K>) {
        let at = self.insert(Place::Done(done));
        self.bells.mark(at);
    }

    fn insert(&mut self, place: Place<F, R, K>) -> usize {
        let id = place.id();
        let at = self.places.insert(place);
        if Self::BY_ID {
            self.by_id.insert(id, at);
        }
        if self.ordered {
            self.order.push_back(at);
        }
        at
    }

    /// All that are running.
    pub(super) fn running(&mut self) -> impl Iterator<Item = Pin<&mut Seat<F, K>>> {
        self.places
            .iter_mut()
            .filter_map(|(_, place)| match place {
                Place::Running(seat) => Some(seat.as_mut()),
                Place::Done(_) => None,
            })
    }

    pub(super) fn has(&self, id: K) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Drops every handler where it stands.
    pub(super) fn clear(&mut self) {
        self.order.clear();
        self.by_id.clear();
        self.places.drain().for_each(drop_apart);
    }

    /// Ends the one with this id, if it is running: it comes to nothing, in the next round. Whether it was.
    pub(super) fn cancel(&mut self, id: K) -> bool {
        let Some(&at) = self.by_id.get(&id) else {
            return false;
        };
        let place = self.places.get_mut(at);
        let has_ended = place.is_some_and(|place| place.end(Ok(None)));
        if has_ended {
            self.bells.mark(at);
        }
        has_ended
    }

    /// Ends those that are running and of which `why` knows a reason. They come out in the next round; `true` if any do.
    pub(super) fn end(&mut self, mut why: impl FnMut(&Seat<F, K>) -> Option<Outcome<R>>) -> bool {
        let mut any = false;
        for (at, place) in &mut self.places {
            let Place::Running(seat) = &*place else {
                continue;
            };
            if let Some(outcome) = why(seat) {
                self.bells.mark(at);
                any |= place.end(outcome);
            }
        }
        any
    }

    /// Begins a round: what rings from now on wakes the connection.
    pub(super) fn listen(&mut self, waker: &Waker) {
        self.bells.listen(waker);
    }

    /// What is done at a place, which is free then.
    fn take_done(&mut self, at: usize) -> Option<Done<R, K>> {
        if !matches!(self.places.get(at), Some(Place::Done(_))) {
            return None;
        }
        // In order it is only ever asked for the first.
        self.order.pop_front();
        match self.places.remove(at) {
            Place::Done(done) => {
                if Self::BY_ID {
                    self.by_id.remove(&done.id);
                }
                Some(done)
            }
            Place::Running(_) => None,
        }
    }
}

impl<F, R, E, K> Seats<F, R, K>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
    K: Copy + Ord,
{
    /// The next outcome, of this round or in order; a seat that is left goes to `spare`.
    pub(super) fn poll_next(
        &mut self,
        ambient: &Entered,
        spare: &mut Option<Pin<Box<Seat<F, K>>>>,
    ) -> Option<Done<R, K>> {
        loop {
            if let Some(&first) = self.order.front() {
                if let Some(done) = self.take_done(first) {
                    return Some(done);
                }
            }
            let at = self.bells.answer()?;
            // Somebody may have rung for one who is gone.
            let Some(place) = self.places.get_mut(at) else {
                continue;
            };
            if let Place::Running(seat) = place {
                let Poll::Ready(outcome) = poll_apart(seat.as_mut(), ambient, self.bells.bell(at))
                else {
                    continue;
                };
                let done = Place::Done(seat.done(outcome));
                if let Place::Running(seat) = std::mem::replace(place, done) {
                    *spare = Some(seat.vacate());
                }
            }
            if !self.ordered {
                return self.take_done(at);
            }
        }
    }
}

/// Polls a handler with its own bell. A panic is its own, and here it must not tear the seats.
fn poll_apart<F, R, E, K>(
    seat: Pin<&mut Seat<F, K>>,
    ambient: &Entered,
    bell: &Waker,
) -> Poll<Outcome<R>>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
{
    let place = seat.project();
    ambient.set(place.wait.due);
    let mut cx = Context::from_waker(bell);
    // Unwind safety: the handler is not polled again, and what it shares with others is its own.
    let polled = catch_unwind(AssertUnwindSafe(|| poll_seated(place.handler, &mut cx)));
    place.wait.due = ambient.get();
    match polled {
        Ok(polled) => polled.map(outcome_of),
        Err(_) => Poll::Ready(Err(FrameError::Panicked)),
    }
}

/// Drops what may panic at that. In a row of several the second that did so while the first one's panic is under way would
/// be the end of the process.
pub(super) fn drop_apart<T>(value: T) {
    // Unwind safety: nobody has it any more.
    let _panicked = catch_unwind(AssertUnwindSafe(|| drop(value)));
}

pub(super) fn outcome_of<T, E: Into<BoxError>>(answer: Result<T, E>) -> Outcome<T> {
    match answer {
        Ok(reply) => Ok(Some(reply)),
        Err(error) => Err(FrameError::Service(error.into())),
    }
}

#[inline]
pub(super) fn poll_seated<F: Future>(
    handler: Pin<&mut Option<F>>,
    cx: &mut Context<'_>,
) -> Poll<F::Output> {
    let handler = handler.as_pin_mut();
    handler
        .expect("a seat in use holds a handler")
        .poll(cx)
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        cmp::Ordering,
        future::{Pending, pending},
    };

    use super::*;

    thread_local! {
        static COMPARED: Cell<usize> = const { Cell::new(0) };
    }

    /// Counts how often one is compared with another.
    #[derive(Debug, Clone, Copy)]
    struct Id(u64);

    impl PartialEq for Id {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other).is_eq()
        }
    }

    impl Eq for Id {}

    impl PartialOrd for Id {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl Ord for Id {
        fn cmp(&self, other: &Self) -> Ordering {
            COMPARED.set(COMPARED.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    #[test]
    fn who_cancels_one_of_many_has_few_looked_at() {
        let mut seats = Seats::<Pending<()>, (), Id>::new(false);
        for id in 1..=10_000 {
            seats.sit(Box::pin(Seat {
                handler: Some(pending()),
                wait: Wait::NONE,
                id: Id(id),
            }));
        }
        COMPARED.set(0);

        assert!(seats.has(Id(5_000)) && seats.cancel(Id(5_000)));
        assert!(!seats.cancel(Id(5_000)) && !seats.has(Id(10_001)));

        assert!(COMPARED.get() < 1_000, "{}", COMPARED.get());
    }
}
