use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tokio_util::sync::PollSemaphore;

use crate::{
    base::time::{Timer, now},
    conn::Deadline,
    outbound::{
        budget::{Phase, Spent},
        client::{
            CallError,
            shared::{Shared, due, no_timer},
            table::{Entry, lock},
        },
    },
};

pin_project! {
    /// The future of a call: its reply, or why there is none.
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives the call up: one that was not sent never is, of one that was the peer is told, and its reply is
    /// thrown away. The place is free at once.
    #[must_use = "futures do nothing unless polled"]
    pub struct CallFuture<Q, R> {
        shared: Arc<Shared<Q, R>>,
        state: State<Q>,
        begun: Instant,
        deadline: Deadline,
        limit: Option<Duration>,
        #[pin]
        timer: Timer,
    }

    impl<Q, R> PinnedDrop for CallFuture<Q, R> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            let shared = this.shared;
            shared.metrics.in_flight.decrement(1.0);
            if let State::Over = this.state {
                return;
            }
            let now = now();
            if let State::Entered { key, .. } = *this.state {
                let (_, todo) = lock(&shared.table).leave(key, now);
                shared.settle(todo);
            }
            shared.metrics.cancelled(now.saturating_duration_since(*this.begun));
        }
    }
}

enum State<Q> {
    /// Waits for a place, with the call until then.
    Waiting(PollSemaphore, Option<Q>),
    /// In the table.
    Entered {
        key: usize,
        // Given back when the call is over, or given up.
        _place: OwnedSemaphorePermit,
    },
    /// It came to nothing before it had begun.
    Failed(Option<CallError>),
    Over,
}

impl<Q, R> CallFuture<Q, R> {
    /// A call that has its place.
    pub(super) fn begin(shared: &Arc<Shared<Q, R>>, call: Q, place: OwnedSemaphorePermit) -> Self {
        let mut future = Self::idle(shared);
        future.state = future.enter(call, future.begun, place);
        future
    }

    /// A call that may have to wait for its place.
    pub(super) fn wait(shared: &Arc<Shared<Q, R>>, call: Q) -> Self {
        let mut future = Self::idle(shared);
        // Whoever waits is served first: while somebody does, there is no place to be had.
        let place = Arc::clone(&shared.places).try_acquire_owned();
        future.state = match (shared.check(), place) {
            (Err(error), _) => State::Failed(Some(no_timer(error))),
            (_, Ok(place)) => future.enter(call, future.begun, place),
            _ => State::Waiting(PollSemaphore::new(Arc::clone(&shared.places)), Some(call)),
        };
        future
    }

    fn idle(shared: &Arc<Shared<Q, R>>) -> Self {
        shared.metrics.in_flight.increment(1.0);
        let begun = now();
        let (deadline, limit) = due(begun, shared.settings.call);
        Self {
            shared: Arc::clone(shared),
            state: State::Over,
            begun,
            deadline,
            limit,
            timer: Timer::default(),
        }
    }

    fn enter(&self, call: Q, now: Instant, place: OwnedSemaphorePermit) -> State<Q> {
        let waited = now.saturating_duration_since(self.begun);
        if self
            .deadline
            .instant()
            .is_some_and(|by| by <= now)
        {
            let times = [waited, Duration::ZERO, Duration::ZERO];
            let spent = Spent::new(Phase::Waiting, times, self.limit);
            return State::Failed(Some(CallError::spent(spent)));
        }
        let entered = self.shared.enter(Entry {
            call,
            deadline: self.deadline,
            limit: self.limit,
            now,
            waited,
        });
        match entered {
            Ok(key) => State::Entered { key, _place: place },
            Err(error) => State::Failed(Some(error)),
        }
    }
}

impl<Q, R> Future for CallFuture<Q, R> {
    type Output = Result<R, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let this = self.as_mut().project();
            let outcome = match this.state {
                State::Waiting(places, call) => match places.poll_acquire(cx) {
                    Poll::Ready(place) => {
                        let (place, call) = place
                            .zip(call.take())
                            .expect("places are never closed");
                        let state = self.enter(call, now(), place);
                        *self.as_mut().project().state = state;
                        continue;
                    }
                    Poll::Pending => None,
                },
                State::Entered { key, .. } => {
                    let polled = lock(&this.shared.table).poll(*key, cx);
                    match polled {
                        Poll::Ready((outcome, todo)) => {
                            this.shared.settle(todo);
                            Some(outcome)
                        }
                        Poll::Pending => None,
                    }
                }
                State::Failed(error) => {
                    let error = error.take();
                    Some(Err(error.expect("a failure is told once")))
                }
                State::Over => panic!("polled again after it was ready"),
            };
            let outcome = match outcome {
                Some(outcome) => outcome,
                None => Err(CallError::spent(ready!(self.as_mut().poll_late(cx)))),
            };
            return Poll::Ready(self.end(outcome));
        }
    }
}

impl<Q, R> CallFuture<Q, R> {
    /// Ready once the time is up; the call is given up then.
    fn poll_late(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Spent> {
        let mut this = self.project();
        let Some(by) = this.deadline.instant() else {
            return Poll::Pending;
        };
        if !this.timer.is_armed() {
            this.timer.as_mut().arm(by);
        }
        ready!(this.timer.poll(cx));
        let now = now();
        Poll::Ready(match *this.state {
            State::Entered { key, .. } => {
                let (spent, todo) = lock(&this.shared.table).leave(key, now);
                this.shared.settle(todo);
                spent
            }
            _ => {
                let waited = now.saturating_duration_since(*this.begun);
                let times = [waited, Duration::ZERO, Duration::ZERO];
                Spent::new(Phase::Waiting, times, *this.limit)
            }
        })
    }

    fn end(self: Pin<&mut Self>, outcome: Result<R, CallError>) -> Result<R, CallError> {
        let this = self.project();
        // The place is free now, and not when somebody drops the future.
        *this.state = State::Over;
        let took = now().saturating_duration_since(*this.begun);
        match &outcome {
            Ok(_) => this.shared.metrics.answered(took),
            Err(error) => this.shared.metrics.failed(error, took),
        }
        outcome
    }
}

impl<Q, R> fmt::Debug for CallFuture<Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallFuture")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
