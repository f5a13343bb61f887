//! One budget for all the work that a request causes: a deadline that is shared, spent once, and accounted for.
//!
//! The deadline of a request is [`Deadline::current`] in its handler, and whatever waits on its behalf takes the
//! earlier of that and of its own limit. Here is what is needed besides: to hold [one future](within) to it, to do
//! [several things at once](fan_out) within it, and to say [in which phase](Spent) the time went.
//!
//! ```
//! use std::{io, time::Duration};
//! use tower_net::budget;
//!
//! # async fn ask(_: &str) -> io::Result<usize> { Ok(1) }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let handler = async {
//!     // Three at once, and one deadline: the handler's.
//!     let asked = budget::fan_out(["stock", "price", "reviews"].map(ask));
//!     asked.try_all().await
//! };
//! let answers = budget::within(Duration::from_millis(500), handler).await??;
//! assert_eq!(answers, [1, 1, 1]);
//! # Ok(())
//! # }
//! ```
//!
//! To take a budget into a task of its own, see [`Deadline::scope`].

mod fan_out;

use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::{
    base::{
        error::NoTimer,
        time::{Timer, now, require_driver},
    },
    conn::{Deadline, DeadlineScope},
};

pub use self::fan_out::{FanOut, FanOutCause, FanOutError, fan_out};

/// What a piece of work is doing while its budget runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// It waits for a place: it has not begun.
    Waiting,
    /// A connection is being made for it.
    Connecting,
    /// It is under way.
    Calling,
}

impl Phase {
    /// In the order in which a call goes through them.
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Connecting, Self::Calling];
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting for a place",
            Self::Connecting => "connecting",
            Self::Calling => "calling",
        })
    }
}

/// A budget is spent: whose it was, in which phase it ran out, and how long each phase took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    phase: Phase,
    times: [Duration; 3],
    limit: Option<Duration>,
}

impl Spent {
    pub(crate) fn new(phase: Phase, times: [Duration; 3], limit: Option<Duration>) -> Self {
        Self {
            phase,
            times,
            limit,
        }
    }

    pub(crate) fn times(&self) -> [Duration; 3] {
        self.times
    }

    /// The same, where only one phase took any time.
    fn all_in(phase: Phase, after: Duration, limit: Option<Duration>) -> Self {
        let mut times = [Duration::ZERO; 3];
        times[phase as usize] = after;
        Self::new(phase, times, limit)
    }

    /// The phase in which it ran out.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How long the work was in `phase`.
    #[must_use]
    pub fn spent_in(&self, phase: Phase) -> Duration {
        self.times[phase as usize]
    }

    /// How long the work took until then, in all phases together. Zero if the budget was spent beforehand.
    #[must_use]
    pub fn after(&self) -> Duration {
        self.times.iter().sum()
    }

    /// The limit, if it was one of the layer that failed; `None` if it was the caller's own budget.
    #[must_use]
    pub fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// Whether nobody can have begun with the work, so that it may be done again elsewhere (if there is time).
    #[must_use]
    pub fn never_started(&self) -> bool {
        self.phase != Phase::Calling
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit {
            Some(limit) => write!(f, "limit of {limit:?} reached")?,
            None => f.write_str("budget spent")?,
        }
        write!(f, " {} (", self.phase)?;
        for (at, phase) in Phase::ALL.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{:.0?} {phase}", self.spent_in(*phase))?;
        }
        f.write_str(")")
    }
}

impl Error for Spent {}

/// Why there is no result within a budget.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BudgetError {
    /// The time is up, and the work was dropped.
    Spent(Spent),
    /// The runtime cannot keep time, so that nothing was begun.
    NoTimer(NoTimer),
}

impl fmt::Display for BudgetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spent(_) => f.write_str("work not done in time"),
            Self::NoTimer(_) => f.write_str("work not begun"),
        }
    }
}

impl Error for BudgetError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Spent(error) => Some(error),
            Self::NoTimer(error) => Some(error),
        }
    }
}

/// Gives `future` this long, and no longer than until the [current](Deadline::current) deadline; it finds the earlier
/// of the two as its own current one.
///
/// Both are taken when `within` is called. [`Duration::MAX`] adds no limit. With no time left, as with a limit of
/// zero, the future is not polled at all.
///
/// # Errors
///
/// [`BudgetError`]; the future is dropped then.
///
/// # On drop
///
/// The future is dropped with it.
pub fn within<F: Future>(limit: Duration, future: F) -> Within<F> {
    let budget = Deadline::current();
    let own = Deadline::within(limit);
    let bounded = own < budget;
    Within {
        scope: Some(own.min(budget).scope(future)),
        deadline: own.min(budget),
        limit: bounded.then_some(limit),
        begun: None,
        timer: Timer::default(),
    }
}

pin_project! {
    /// The future of [`within`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Within<F> {
        #[pin]
        scope: Option<DeadlineScope<F>>,
        #[pin]
        timer: Timer,
        deadline: Deadline,
        limit: Option<Duration>,
        begun: Option<Instant>,
    }
}

impl<F: Future> Future for Within<F> {
    type Output = Result<F::Output, BudgetError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(scope) = this.scope.as_mut().as_pin_mut() else {
            unreachable!("not polled again once ready");
        };
        let Some(at) = this.deadline.instant() else {
            return scope.poll(cx).map(Ok);
        };
        let begun = match *this.begun {
            Some(begun) => begun,
            None => {
                if let Err(error) = require_driver() {
                    this.scope.set(None);
                    return Poll::Ready(Err(BudgetError::NoTimer(error)));
                }
                let begun = now();
                if begun >= at {
                    this.scope.set(None);
                    let spent = Spent::all_in(Phase::Waiting, Duration::ZERO, *this.limit);
                    return Poll::Ready(Err(BudgetError::Spent(spent)));
                }
                *this.begun.insert(begun)
            }
        };
        if let Poll::Ready(output) = scope.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        if !this.timer.is_armed() {
            this.timer.as_mut().arm(at);
        }
        std::task::ready!(this.timer.as_mut().poll(cx));
        this.scope.set(None);
        let after = at.saturating_duration_since(begun);
        let spent = Spent::all_in(Phase::Calling, after, *this.limit);
        Poll::Ready(Err(BudgetError::Spent(spent)))
    }
}
