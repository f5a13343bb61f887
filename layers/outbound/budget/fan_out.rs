use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, Stream};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::{
    base::{
        error::{ConfigError, NoTimer},
        time::{Timer, now, require_driver},
    },
    conn::{Ambient, Deadline},
    outbound::budget::{BudgetError, Phase, Spent},
};

/// Does several things at once, [so many](FanOut::width) at the most, within one deadline: the
/// [current](Deadline::current) one where `fan_out` is called, which each of them finds as its own.
///
/// `calls` is asked for a future whenever there is room for one, and not once the deadline has passed: what it makes
/// lazily (a `map` over clients, say) is not begun before its turn. Its length must be known, so that the results can
/// be told apart from what never began.
pub fn fan_out<I: IntoIterator>(calls: I) -> FanOut<I::IntoIter> {
    FanOut {
        calls: calls.into_iter(),
        width: WIDTH,
        deadline: Deadline::current(),
        limit: None,
    }
}

/// Several things to be done at once; see [`fan_out`].
#[derive(Debug, Clone)]
#[must_use = "nothing is done before it is asked for"]
pub struct FanOut<I> {
    calls: I,
    width: usize,
    deadline: Deadline,
    limit: Option<Duration>,
}

impl<I> FanOut<I> {
    /// So many run at once; the others wait for one to be done. Default: 64, as many calls as a
    /// [client](crate::client) has in flight.
    ///
    /// # Errors
    ///
    /// Zero.
    pub fn width(self, width: usize) -> Result<Self, ConfigError> {
        if width == 0 {
            return Err(ConfigError::zero("width"));
        }
        Ok(Self { width, ..self })
    }

    /// All of it must be done this long from now, or by the deadline that holds already if that is earlier.
    pub fn limit(self, limit: Duration) -> Self {
        let own = Deadline::within(limit);
        if own >= self.deadline {
            return self;
        }
        Self {
            deadline: own,
            limit: Some(limit),
            ..self
        }
    }

    /// All results, in the order of the calls; or the first failure, for which all others are dropped.
    ///
    /// # Errors
    ///
    /// [`FanOutError`], which says whose failure it is.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops every call that is under way.
    pub async fn try_all<T, E>(self) -> Result<Vec<T>, FanOutError<E>>
    where
        I: ExactSizeIterator,
        I::Item: Future<Output = Result<T, E>>,
    {
        let results = self.run(true).await;
        results.into_iter().collect()
    }

    /// What became of each call, in their order: a failure of one is nothing to the others.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops every call that is under way.
    pub async fn all<T, E>(self) -> Vec<Result<T, FanOutError<E>>>
    where
        I: ExactSizeIterator,
        I::Item: Future<Output = Result<T, E>>,
    {
        self.run(false).await
    }

    /// The results in order; with `until_failed`, the first failure alone if there is one.
    async fn run<T, E>(self, until_failed: bool) -> Vec<Result<T, FanOutError<E>>>
    where
        I: ExactSizeIterator,
        I::Item: Future<Output = Result<T, E>>,
    {
        let mut results: Vec<_> = (0..self.calls.len())
            .map(|_| None)
            .collect();
        let mut running = Running {
            set: FuturesUnordered::new(),
            next: 0,
            begun: now(),
            timer: Box::pin(Timer::default()),
            fan_out: self,
        };
        let cause = loop {
            match std::future::poll_fn(|cx| running.poll_next(cx)).await {
                Ok(Some((index, Ok(value)))) => results[index] = Some(Ok(value)),
                Ok(Some((index, Err(error)))) => {
                    let error = FanOutError::new(index, FanOutCause::Failed(error));
                    if until_failed {
                        return vec![Err(error)];
                    }
                    results[index] = Some(Err(error));
                }
                Ok(None) => break None,
                Err(cause) => break Some(cause),
            }
        };
        let over = |(index, result): (usize, Option<_>)| {
            result.unwrap_or_else(|| {
                let cause = match &cause {
                    Some(BudgetError::NoTimer(error)) => FanOutCause::NoTimer(*error),
                    _ => FanOutCause::Spent(running.spent(index)),
                };
                Err(FanOutError::new(index, cause))
            })
        };
        results
            .into_iter()
            .enumerate()
            .map(over)
            .collect()
    }
}

/// The calls that are under way, and those that are still to come.
struct Running<I: Iterator> {
    set: FuturesUnordered<Numbered<I::Item>>,
    next: usize,
    begun: Instant,
    timer: Pin<Box<Timer>>,
    fan_out: FanOut<I>,
}

impl<I, T, E> Running<I>
where
    I: ExactSizeIterator,
    I::Item: Future<Output = Result<T, E>>,
{
    /// The next that is done; none when all are, and an error when the time is up.
    #[expect(
        clippy::type_complexity,
        reason = "what it is made of is said right here"
    )]
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(usize, Result<T, E>)>, BudgetError>> {
        let deadline = self.fan_out.deadline;
        let entered = Ambient::enter();
        while self.set.len() < self.fan_out.width && self.fan_out.calls.len() > 0 {
            if self.next == 0 && deadline.instant().is_some() {
                require_driver().map_err(BudgetError::NoTimer)?;
            }
            if deadline.has_passed() {
                return Poll::Ready(Err(self.late()));
            }
            entered.set(Ambient::At(deadline));
            let Some(future) = self.fan_out.calls.next() else {
                break;
            };
            let index = self.next;
            self.next += 1;
            self.set
                .push(Numbered { future, index });
        }
        entered.set(Ambient::At(deadline));
        if let Poll::Ready(done) = Pin::new(&mut self.set).poll_next(cx) {
            return Poll::Ready(Ok(done));
        }
        let Some(at) = deadline.instant() else {
            return Poll::Pending;
        };
        if !self.timer.is_armed() {
            self.timer.as_mut().arm(at);
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Err(self.late()))
    }

    fn late(&mut self) -> BudgetError {
        self.set.clear();
        BudgetError::Spent(self.spent(self.next))
    }

    /// What became of a call that was not done when the time was up.
    fn spent(&self, index: usize) -> Spent {
        let phase = match index < self.next {
            true => Phase::Calling,
            false => Phase::Waiting,
        };
        let by = self
            .fan_out
            .deadline
            .instant()
            .unwrap_or(self.begun);
        let after = by.saturating_duration_since(self.begun);
        Spent::all_in(phase, after, self.fan_out.limit)
    }
}

pin_project! {
    /// A call that knows which one it is.
    struct Numbered<F> {
        #[pin]
        future: F,
        index: usize,
    }
}

impl<F: Future> Future for Numbered<F> {
    type Output = (usize, F::Output);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.future
            .poll(cx)
            .map(|output| (*this.index, output))
    }
}

/// One of several calls has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FanOutError<E> {
    index: usize,
    cause: FanOutCause<E>,
}

/// Why one of several calls has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FanOutCause<E> {
    /// It failed.
    Failed(E),
    /// The time was up first: [`Phase::Calling`] if it had begun, [`Phase::Waiting`] if it had not.
    Spent(Spent),
    /// The runtime cannot keep time, so that none was begun.
    NoTimer(NoTimer),
}

impl<E> FanOutError<E> {
    fn new(index: usize, cause: FanOutCause<E>) -> Self {
        Self { index, cause }
    }

    /// Which call it was, counted from zero.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Why.
    pub fn cause(&self) -> &FanOutCause<E> {
        &self.cause
    }

    /// Why, to be kept.
    pub fn into_cause(self) -> FanOutCause<E> {
        self.cause
    }
}

impl<E> fmt::Display for FanOutError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {} of those at once ", self.index)?;
        f.write_str(match &self.cause {
            FanOutCause::Failed(_) => "failed",
            FanOutCause::Spent(_) => "not done in time",
            FanOutCause::NoTimer(_) => "not begun",
        })
    }
}

impl<E: Error + 'static> Error for FanOutError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.cause {
            FanOutCause::Failed(error) => Some(error),
            FanOutCause::Spent(error) => Some(error),
            FanOutCause::NoTimer(error) => Some(error),
        }
    }
}

/// As many calls as a client has in flight.
const WIDTH: usize = 64;
