//! The requests of one connection that are being worked on, and their replies in order.
//!
//! # Invariants
//!
//! Either one handler waits alone, or all of those that wait are in a queue. Alone it is polled with the
//! connection's own waker and costs one allocation; in a queue each has a waker of its own, so that many
//! that wait do not poll each other. A handler that answers at once never gets this far: it is polled in a
//! box that is used again for the next one.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::stream::{FuturesOrdered, Stream};
use tokio::time::Instant;

use crate::{
    base::error::BoxError,
    conn::{Ambient, Deadline},
    middleware::frame::FrameError,
};

/// What became of a request: a reply, nothing to reply, or a failure.
pub(super) type Outcome<R> = Result<Option<R>, FrameError>;

/// A place for one handler's future, filled again and again.
type Slot<F> = Pin<Box<Option<F>>>;

/// What became of a request, and since when it was waited for, if it was.
pub(super) struct Done<R> {
    pub(super) outcome: Outcome<R>,
    pub(super) since: Option<Instant>,
}

/// How long one handler has been waited for, and how long it may be.
#[derive(Debug, Clone, Copy)]
struct Wait {
    due: Ambient,
    since: Option<Instant>,
}

impl Wait {
    fn new(due: Ambient) -> Self {
        Self { due, since: None }
    }

    /// Counts from `now` if it has only just begun; returns when it is due.
    fn stamp(&mut self, now: &mut impl FnMut() -> Instant) -> Option<Instant> {
        let since = *self.since.get_or_insert_with(&mut *now);
        if let Ambient::Fresh(limit) = self.due {
            self.due = Ambient::At(Deadline::after(since, limit));
        }
        match self.due {
            Ambient::At(deadline) => deadline.instant(),
            Ambient::Outside | Ambient::Fresh(_) => None,
        }
    }
}

/// The requests in flight.
pub(super) struct Flight<F: Future, R> {
    spare: Option<Slot<F>>,
    alone: Option<(Slot<F>, Wait)>,
    queue: Option<Box<Queue<F, R>>>,
    limit: Duration,
}

struct Queue<F: Future, R> {
    replies: FuturesOrdered<Queued<F, R>>,
    /// The wait of each, in the same order.
    waits: VecDeque<Arc<Mutex<Wait>>>,
}

impl<F: Future, R> Flight<F, R> {
    /// Handlers have `limit` each.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            spare: None,
            alone: None,
            queue: None,
            limit,
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

    /// Drops every handler where it stands.
    pub(super) fn clear(&mut self) {
        (self.alone, self.queue, self.spare) = (None, None, None);
    }

    /// Gives back what a connection that waits has no use for.
    pub(super) fn shrink(&mut self) {
        self.spare = None;
    }

    /// Gives every handler that has begun to wait its deadline, and returns the earliest of all.
    pub(super) fn stamp(&mut self, mut now: impl FnMut() -> Instant) -> Option<Instant> {
        if let Some((_, wait)) = &mut self.alone {
            return wait.stamp(&mut now);
        }
        let waits = self
            .queue
            .iter()
            .flat_map(|queue| &queue.waits);
        waits
            .filter_map(|wait| lock(wait).stamp(&mut now))
            .min()
    }
}

impl<F, T, E> Flight<F, T>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    /// Calls a handler and polls it once. Ready if its reply is there and next in order.
    pub(super) fn start(
        &mut self,
        call: impl FnOnce() -> F,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome<T>> {
        let mut slot = self
            .spare
            .take()
            .unwrap_or_else(|| Box::pin(None));
        let mut due = Ambient::Fresh(self.limit);
        let polled = due.scope(|| {
            catch(|| {
                slot.set(Some(call()));
                poll_slot(&mut slot, cx)
            })
        });
        if let Poll::Ready(answer) = polled {
            slot.set(None);
            self.spare = Some(slot);
            let outcome = outcome_of(answer);
            if self.is_empty() {
                return Poll::Ready(outcome);
            }
            self.push_done(outcome);
        } else if self.is_empty() {
            self.alone = Some((slot, Wait::new(due)));
        } else {
            self.push_running(slot, Wait::new(due));
        }
        Poll::Pending
    }

    /// Puts an outcome in its place behind what is in flight.
    pub(super) fn push_done(&mut self, outcome: Outcome<T>) {
        let wait = Wait::new(Ambient::Outside);
        self.push(wait, |_| Queued::Done(Some(outcome)));
    }

    fn push_running(&mut self, slot: Slot<F>, wait: Wait) {
        self.push(wait, |wait| Queued::Running { slot, wait });
    }

    fn push(&mut self, wait: Wait, job: impl FnOnce(Arc<Mutex<Wait>>) -> Queued<F, T>) {
        if let Some((slot, wait)) = self.alone.take() {
            self.push_running(slot, wait);
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

    /// Whether handlers are queued, so that [`poll_next`](Self::poll_next) must see them before the
    /// connection parks: each has to be given a waker of its own.
    pub(super) fn is_queued(&self) -> bool {
        self.queue.is_some()
    }

    /// The next outcome in order; `None` if nothing is in flight.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Done<T>>> {
        if let Some((slot, wait)) = &mut self.alone {
            let polled = wait
                .due
                .scope(|| catch(|| poll_slot(slot, cx)));
            let outcome = outcome_of(ready!(polled));
            let since = wait.since;
            self.spare = self.alone.take().map(|(mut slot, _)| {
                slot.set(None);
                slot
            });
            return Poll::Ready(Some(Done { outcome, since }));
        }
        let Some(queue) = &mut self.queue else {
            return Poll::Ready(None);
        };
        let outcome = match ready!(Pin::new(&mut queue.replies).poll_next(cx)) {
            Some(Landed::Answered(answer)) => outcome_of(answer),
            Some(Landed::Settled(outcome)) => outcome,
            None => return Poll::Ready(None),
        };
        let since = queue
            .waits
            .pop_front()
            .and_then(|wait| lock(&wait).since);
        if queue.waits.is_empty() {
            self.queue = None;
        }
        Poll::Ready(Some(Done { outcome, since }))
    }
}

/// A request whose reply has others before it, or behind it.
enum Queued<F, R> {
    Running {
        slot: Slot<F>,
        wait: Arc<Mutex<Wait>>,
    },
    Done(Option<Outcome<R>>),
}

/// How a queued request comes out.
enum Landed<O, R> {
    Answered(Answer<O>),
    Settled(Outcome<R>),
}

// Nothing in it is pinned in place: the handler is pinned in its own box.
impl<F, R> Unpin for Queued<F, R> {}

impl<F: Future, R> Future for Queued<F, R> {
    type Output = Landed<F::Output, R>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Running { slot, wait } => {
                let mut due = lock(wait).due;
                let polled = due.scope(|| catch(|| poll_slot(slot, cx)));
                // What has ended is not due any more.
                lock(wait).due = if polled.is_ready() {
                    Ambient::Outside
                } else {
                    due
                };
                polled.map(Landed::Answered)
            }
            Self::Done(outcome) => match outcome.take() {
                Some(outcome) => Poll::Ready(Landed::Settled(outcome)),
                None => Poll::Pending,
            },
        }
    }
}

/// What a handler came to: its output, or a panic.
type Answer<O> = Result<O, Panicked>;

struct Panicked;

fn outcome_of<T, E: Into<BoxError>>(answer: Answer<Result<T, E>>) -> Outcome<T> {
    match answer {
        Ok(Ok(reply)) => Ok(Some(reply)),
        Ok(Err(error)) => Err(FrameError::Service(error.into())),
        Err(Panicked) => Err(FrameError::Panicked),
    }
}

fn poll_slot<F: Future>(slot: &mut Slot<F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    let handler = slot.as_mut().as_pin_mut();
    handler
        .expect("a slot in flight holds a handler")
        .poll(cx)
}

/// A panic of a handler ends its request, and nothing else.
///
/// Unwind safety: a handler that panicked is not polled again, and what it shares with others is its own.
fn catch<O>(poll: impl FnOnce() -> Poll<O>) -> Poll<Answer<O>> {
    match catch_unwind(AssertUnwindSafe(poll)) {
        Ok(polled) => polled.map(Ok),
        Err(_) => Poll::Ready(Err(Panicked)),
    }
}

fn lock(wait: &Mutex<Wait>) -> MutexGuard<'_, Wait> {
    wait.lock()
        .unwrap_or_else(PoisonError::into_inner)
}
