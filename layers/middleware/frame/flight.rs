//! The requests of one connection that are being worked on, and their replies in order.
//!
//! # Invariants
//!
//! Either one handler waits alone, or all of those that wait are in a queue. Alone it is polled with the
//! connection's own waker and costs one allocation; in a queue each has a waker of its own, so that many
//! that wait do not poll each other. A handler that answers at once never gets this far: it is polled in a
//! seat that is used again for the next one.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::stream::{FuturesOrdered, Stream};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::{
    base::error::BoxError,
    conn::{Ambient, Deadline, Entered},
    middleware::frame::FrameError,
};

/// What became of a request: a reply, nothing to reply, or a failure.
pub(super) type Outcome<R> = Result<Option<R>, FrameError>;

/// What became of a request, and since when it was waited for, if it was.
pub(super) struct Done<R> {
    pub(super) outcome: Outcome<R>,
    pub(super) since: Option<Instant>,
    /// It is in the metrics already.
    pub(super) counted: bool,
}

/// The requests in flight.
pub(super) struct Flight<F: Future, R> {
    spare: Option<Pin<Box<Seat<F>>>>,
    alone: Option<Pin<Box<Seat<F>>>>,
    queue: Option<Box<Queue<F, R>>>,
}

struct Queue<F: Future, R> {
    replies: FuturesOrdered<Queued<F, R>>,
    /// The wait of each, in the same order.
    waits: VecDeque<Arc<Mutex<Wait>>>,
}

pin_project! {
    /// A place for one handler, filled again and again.
    struct Seat<F> {
        #[pin]
        handler: Option<F>,
        wait: Wait,
    }
}

/// How long one handler has been waited for, and how long it may be.
#[derive(Debug, Clone, Copy)]
struct Wait {
    due: Ambient,
    since: Option<Instant>,
}

impl Wait {
    const NONE: Self = Self {
        due: Ambient::Outside,
        since: None,
    };

    fn extend(&mut self, by: Duration) {
        self.due = self.due.later(by);
    }

    /// Counts from `now` if it has only just begun; returns when it is due.
    fn stamp(&mut self, now: &mut impl FnMut() -> Instant) -> Option<Instant> {
        let since = *self.since.get_or_insert_with(&mut *now);
        self.due = self.due.from(since);
        self.due.deadline()?.instant()
    }

    /// Whether it is late, which it is only once.
    fn spare(&mut self, now: Instant) -> bool {
        let deadline = self.due.deadline();
        let by = deadline.and_then(Deadline::instant);
        let late = by.is_some_and(|by| by <= now);
        if late {
            self.due = self.due.at(Deadline::NEVER);
        }
        late
    }
}

impl<F: Future, R> Flight<F, R> {
    pub(super) fn new() -> Self {
        Self {
            spare: None,
            alone: None,
            queue: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.alone.is_none() && self.queue.is_none()
    }

    pub(super) fn len(&self) -> usize {
        let queued = self
            .queue
            .as_ref()
            .map_or(0, |queue| queue.waits.len());
        usize::from(self.alone.is_some()) + queued
    }

    /// Whether handlers are queued, so that [`poll_next`](Self::poll_next) must see them before the
    /// connection parks: each has to be given a waker of its own.
    pub(super) fn is_queued(&self) -> bool {
        self.queue.is_some()
    }

    /// Drops every handler where it stands.
    pub(super) fn clear(&mut self) {
        (self.alone, self.queue, self.spare) = (None, None, None);
    }

    /// Drops the handler that waits alone, which panicked.
    pub(super) fn clear_alone(&mut self) -> bool {
        self.alone.take().is_some()
    }

    /// Gives back what a connection that waits has no use for.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() {
            self.spare = None;
        }
    }

    /// Gives every handler that has begun to wait its deadline, and returns the earliest of all.
    pub(super) fn stamp(&mut self, mut now: impl FnMut() -> Instant) -> Option<Instant> {
        if let Some(seat) = &mut self.alone {
            return seat
                .as_mut()
                .project()
                .wait
                .stamp(&mut now);
        }
        let waits = self
            .queue
            .iter()
            .flat_map(|queue| &queue.waits);
        waits
            .filter_map(|wait| lock(wait).stamp(&mut now))
            .min()
    }

    /// Lets every handler that is late go on for as long as it likes; returns how many those are.
    pub(super) fn spare(&mut self, now: Instant) -> u64 {
        if let Some(seat) = &mut self.alone {
            return seat
                .as_mut()
                .project()
                .wait
                .spare(now)
                .into();
        }
        let waits = self
            .queue
            .iter()
            .flat_map(|queue| &queue.waits);
        waits
            .map(|wait| u64::from(lock(wait).spare(now)))
            .sum()
    }

    /// Gives every handler so much more time.
    pub(super) fn extend(&mut self, by: Duration) {
        if let Some(seat) = &mut self.alone {
            seat.as_mut().project().wait.extend(by);
        }
        for wait in self
            .queue
            .iter()
            .flat_map(|queue| &queue.waits)
        {
            lock(wait).extend(by);
        }
    }

    /// Puts an outcome that is in the metrics already in its place behind what is in flight.
    pub(super) fn push_counted(&mut self, outcome: Outcome<R>) {
        self.push_done(outcome, true);
    }

    fn push_done(&mut self, outcome: Outcome<R>, counted: bool) {
        let settled = Settled { outcome, counted };
        self.push(Wait::NONE, |_| Queued::Done(Some(settled)));
    }

    fn push_running(&mut self, mut seat: Pin<Box<Seat<F>>>) {
        let wait = std::mem::replace(seat.as_mut().project().wait, Wait::NONE);
        self.push(wait, |wait| Queued::Running { seat, wait });
    }

    fn push(&mut self, wait: Wait, job: impl FnOnce(Arc<Mutex<Wait>>) -> Queued<F, R>) {
        if let Some(seat) = self.alone.take() {
            self.push_running(seat);
        }
        let queue = self.queue.get_or_insert_with(|| {
            Box::new(Queue {
                replies: FuturesOrdered::new(),
                waits: VecDeque::new(),
            })
        });
        let wait = Arc::new(Mutex::new(wait));
        queue.waits.push_back(Arc::clone(&wait));
        queue.replies.push_back(job(wait));
    }
}

impl<F, T, E> Flight<F, T>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    /// Calls a handler and polls it once. Ready if its reply is there and next in order.
    #[inline]
    pub(super) fn start(
        &mut self,
        call: impl FnOnce() -> F,
        due: Ambient,
        ambient: &Entered,
        cx: &mut Context<'_>,
    ) -> Poll<Result<T, E>> {
        let mut seat = self.spare.take().unwrap_or_else(|| {
            Box::pin(Seat {
                handler: None,
                wait: Wait::NONE,
            })
        });
        ambient.renew(due);
        let polled = {
            let mut place = seat.as_mut().project().handler;
            place.set(Some(call()));
            let polled = poll_seated(place.as_mut(), cx);
            if polled.is_ready() {
                place.set(None);
            }
            polled
        };
        if let Poll::Ready(answer) = polled {
            self.spare = Some(seat);
            if self.is_empty() {
                return Poll::Ready(answer);
            }
            self.push_done(outcome_of(answer), false);
            return Poll::Pending;
        }
        seat.as_mut().project().wait.due = ambient.get();
        if self.is_empty() {
            self.alone = Some(seat);
        } else {
            self.push_running(seat);
        }
        Poll::Pending
    }

    /// The next outcome in order; `None` if nothing is in flight.
    pub(super) fn poll_next(
        &mut self,
        ambient: &Entered,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Done<T>>> {
        if let Some(seat) = &mut self.alone {
            // It stays in place while it is polled, so that a panic leaves it where it is found.
            let place = seat.as_mut().project();
            ambient.set(place.wait.due);
            let polled = poll_seated(place.handler, cx);
            place.wait.due = ambient.get();
            let answer = ready!(polled);
            let since = place.wait.since;
            self.spare = self.alone.take().map(Seat::vacate);
            let outcome = outcome_of(answer);
            return Poll::Ready(Some(Done {
                outcome,
                since,
                counted: false,
            }));
        }
        let Some(queue) = &mut self.queue else {
            return Poll::Ready(None);
        };
        let (outcome, counted) = match ready!(Pin::new(&mut queue.replies).poll_next(cx)) {
            Some(Landed::Answered(answer)) => (outcome_of(answer), false),
            Some(Landed::Panicked) => (Err(FrameError::Panicked), false),
            Some(Landed::Settled(settled)) => (settled.outcome, settled.counted),
            None => return Poll::Ready(None),
        };
        let since = queue
            .waits
            .pop_front()
            .and_then(|wait| lock(&wait).since);
        if queue.waits.is_empty() {
            self.queue = None;
        }
        Poll::Ready(Some(Done {
            outcome,
            since,
            counted,
        }))
    }
}

impl<F> Seat<F> {
    fn vacate(mut self: Pin<Box<Self>>) -> Pin<Box<Self>> {
        let mut place = self.as_mut().project();
        place.handler.set(None);
        *place.wait = Wait::NONE;
        self
    }
}

/// A request whose reply has others before it, or behind it.
enum Queued<F, R> {
    Running {
        seat: Pin<Box<Seat<F>>>,
        wait: Arc<Mutex<Wait>>,
    },
    Done(Option<Settled<R>>),
}

/// How a queued request comes out.
enum Landed<O, R> {
    Answered(O),
    Panicked,
    Settled(Settled<R>),
}

/// An outcome that nobody has to be polled for.
struct Settled<R> {
    outcome: Outcome<R>,
    counted: bool,
}

// Nothing in it is pinned in place: the handler is pinned in its own seat.
impl<F, R> Unpin for Queued<F, R> {}

impl<F: Future, R> Future for Queued<F, R> {
    type Output = Landed<F::Output, R>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Running { seat, wait } => {
                let ambient = Ambient::enter();
                ambient.set(lock(wait).due);
                let handler = seat.as_mut().project().handler;
                // A panic here must not tear the queue. The handler is not polled again, and what it shares
                // with others is its own.
                let polled = catch_unwind(AssertUnwindSafe(|| poll_seated(handler, cx)));
                // What has ended is not due any more.
                let ended = !matches!(polled, Ok(Poll::Pending));
                lock(wait).due = if ended {
                    Ambient::Outside
                } else {
                    ambient.get()
                };
                match polled {
                    Ok(polled) => polled.map(Landed::Answered),
                    Err(_) => Poll::Ready(Landed::Panicked),
                }
            }
            Self::Done(outcome) => match outcome.take() {
                Some(outcome) => Poll::Ready(Landed::Settled(outcome)),
                None => Poll::Pending,
            },
        }
    }
}

pub(super) fn outcome_of<T, E: Into<BoxError>>(answer: Result<T, E>) -> Outcome<T> {
    match answer {
        Ok(reply) => Ok(Some(reply)),
        Err(error) => Err(FrameError::Service(error.into())),
    }
}

#[inline]
fn poll_seated<F: Future>(handler: Pin<&mut Option<F>>, cx: &mut Context<'_>) -> Poll<F::Output> {
    let handler = handler.as_pin_mut();
    handler
        .expect("a seat in use holds a handler")
        .poll(cx)
}

fn lock(wait: &Mutex<Wait>) -> MutexGuard<'_, Wait> {
    wait.lock()
        .unwrap_or_else(PoisonError::into_inner)
}
