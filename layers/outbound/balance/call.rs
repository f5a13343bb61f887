use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, find},
        time::{Timer, now},
    },
    conn::{Ambient, Deadline},
    outbound::{
        balance::{Balanced, Shared, line::Place, lock},
        budget::{Phase, Spent},
        client::{CallError, RetryBudget},
    },
};

pin_project! {
    /// The future of [`Balanced`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives the call up, wherever it is.
    #[must_use = "futures do nothing unless polled"]
    pub struct BalancedFuture<B, F, Q> {
        #[pin]
        stage: Stage<F>,
        call: Q,
        shared: Arc<Shared<B>>,
        place: Place,
        deadline: Deadline,
        limit: Option<Duration>,
        begun: Instant,
        // In all attempts so far.
        calling: Duration,
        attempts: u32,
        most: u32,
        budget: RetryBudget,
        #[pin]
        timer: Timer,
        request: PhantomData<fn(Q)>,
    }
}

pin_project! {
    #[project = StageProj]
    enum Stage<F> {
        Waiting,
        Calling { #[pin] future: F, since: Instant },
        Over,
    }
}

impl<B, F, Q> BalancedFuture<B, F, Q> {
    pub(super) fn begin(balanced: &Balanced<B>, call: Q) -> Self {
        let begun = now();
        balanced.budget.deposit(begun);
        let (own, budget) = (Deadline::after(begun, balanced.limit), Deadline::current());
        Self {
            stage: Stage::Waiting,
            call,
            place: Place::before(&balanced.shared.line),
            shared: Arc::clone(&balanced.shared),
            deadline: own.min(budget),
            limit: (own < budget).then_some(balanced.limit),
            begun,
            calling: Duration::ZERO,
            attempts: 0,
            most: balanced.attempts,
            budget: balanced.budget.clone(),
            timer: Timer::default(),
            request: PhantomData,
        }
    }

    /// Ready once the time is up.
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
        let phase = match this.stage.project() {
            StageProj::Calling { since, .. } => {
                *this.calling += now.saturating_duration_since(*since);
                Phase::Calling
            }
            StageProj::Waiting | StageProj::Over => Phase::Waiting,
        };
        let whole = now.saturating_duration_since(*this.begun);
        let waiting = whole.saturating_sub(*this.calling);
        let times = [waiting, Duration::ZERO, *this.calling];
        Poll::Ready(Spent::new(phase, times, *this.limit))
    }
}

impl<B, Q> Future for BalancedFuture<B, B::Future, Q>
where
    B: Service<Q>,
    B::Error: Into<BoxError>,
    Q: Clone,
{
    type Output = Result<B::Response, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match self.as_mut().poll_call(cx) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Err(ready!(self.as_mut().poll_late(cx)).into()),
        };
        let mut this = self.project();
        this.place.leave();
        // Whatever is still under way ends now, and not when somebody drops the future.
        this.stage.set(Stage::Over);
        Poll::Ready(outcome)
    }
}

impl<B, Q> BalancedFuture<B, B::Future, Q>
where
    B: Service<Q>,
    B::Error: Into<BoxError>,
    Q: Clone,
{
    fn poll_call(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<B::Response, BoxError>> {
        loop {
            let this = self.as_mut().project();
            let (future, since) = match this.stage.project() {
                StageProj::Calling { future, since } => (future, since),
                StageProj::Waiting => {
                    ready!(self.as_mut().poll_peer(cx))?;
                    continue;
                }
                StageProj::Over => panic!("polled again after it was ready"),
            };
            let polled = {
                let entered = Ambient::enter();
                entered.set(Ambient::At(*this.deadline));
                let _counted = this.budget.counted(*this.attempts == 1);
                future.poll(cx)
            };
            let error = match ready!(polled) {
                Ok(response) => return Poll::Ready(Ok(response)),
                Err(error) => error.into(),
            };
            let may = find::<CallError>(error.as_ref()).is_some_and(CallError::is_retryable);
            let now = now();
            if !may || this.attempts == this.most || !this.budget.withdraw(now) {
                return Poll::Ready(Err(error));
            }
            *this.calling += now.saturating_duration_since(*since);
            self.as_mut()
                .project()
                .stage
                .set(Stage::Waiting);
        }
    }

    /// Waits for a peer, and calls it.
    fn poll_peer(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let mut this = self.project();
        loop {
            if this.place.is_taken() {
                this.place.take(cx.waker());
            }
            if !this.place.is_first() {
                if this.place.is_taken() {
                    return Poll::Pending;
                }
                this.place.take(cx.waker());
                continue;
            }
            if *this.deadline <= Deadline::at(now()) {
                // The timer tells.
                return Poll::Pending;
            }
            let entered = Ambient::enter();
            let waker = Waker::from(Arc::clone(&this.shared.line));
            // Somebody else's code, which is not run while others wait for the balance.
            let call = this.call.clone();
            let mut balance = lock(&this.shared.balance);
            // Not for this call alone is a peer looked for, nor connected.
            entered.set(Ambient::Outside);
            match balance.poll_ready(&mut Context::from_waker(&waker)) {
                Poll::Ready(Ok(())) => {
                    entered.set(Ambient::At(*this.deadline));
                    *this.attempts += 1;
                    let _counted = this.budget.counted(*this.attempts == 1);
                    let future = balance.call(call);
                    drop((balance, entered));
                    this.place.leave();
                    let since = now();
                    this.stage
                        .set(Stage::Calling { future, since });
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending if this.place.is_taken() => return Poll::Pending,
                // Once in the line it looks again, so that no change is missed.
                Poll::Pending => {
                    drop(balance);
                    this.place.take(cx.waker());
                }
            }
        }
    }
}

impl<B, F, Q> fmt::Debug for BalancedFuture<B, F, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalancedFuture")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
