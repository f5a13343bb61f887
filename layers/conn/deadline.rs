use std::{
    cell::Cell,
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::base::time::{later, now};

/// A point in time by which everything must be done, however many steps it takes and whoever takes them.
///
/// A deadline is absolute and never resets. Every layer below takes the earlier of its own and the one it
/// was given, so that parts of a request share one budget rather than each having its own.
///
/// ```
/// use std::time::Duration;
/// use tower_net::Deadline;
///
/// let request = Deadline::within(Duration::from_secs(5));
/// let lookup = request.min(Deadline::within(Duration::from_secs(60)));
/// assert_eq!(lookup, request);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Deadline {
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum At {
    // In this order: never is later than any time.
    By(Instant),
    Never,
}

impl Deadline {
    /// No deadline at all.
    pub const NEVER: Self = Self { at: At::Never };

    /// This long from now. [`Duration::MAX`], or anything beyond a century, is [`NEVER`](Self::NEVER); zero
    /// has passed already.
    #[must_use]
    pub fn within(budget: Duration) -> Self {
        Self::after(now(), budget)
    }

    /// At `instant`.
    #[must_use]
    pub fn at(instant: Instant) -> Self {
        Self {
            at: At::By(instant),
        }
    }

    pub(crate) fn after(start: Instant, budget: Duration) -> Self {
        Self {
            at: later(start, budget).map_or(At::Never, At::By),
        }
    }

    fn later(self, by: Duration) -> Self {
        self.instant()
            .map_or(Self::NEVER, |instant| Self::after(instant, by))
    }

    /// The point in time, or `None` for never.
    #[must_use]
    pub fn instant(self) -> Option<Instant> {
        match self.at {
            At::By(instant) => Some(instant),
            At::Never => None,
        }
    }

    /// The time left: zero once it has passed, [`Duration::MAX`] for never.
    #[must_use]
    pub fn remaining(self) -> Duration {
        match self.at {
            At::By(instant) => instant.saturating_duration_since(now()),
            At::Never => Duration::MAX,
        }
    }

    /// Whether the time has come.
    #[must_use]
    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }

    /// This much earlier, so that there is time left to say that it has passed: a handler that gives its own calls
    /// `Deadline::current().less(reserve)` can still answer its caller what has become of them. What cannot be earlier
    /// has passed; never stays never.
    #[must_use]
    pub fn less(self, reserve: Duration) -> Self {
        match self.at {
            At::By(instant) => Self::at(
                instant
                    .checked_sub(reserve)
                    .unwrap_or_else(now),
            ),
            At::Never => Self::NEVER,
        }
    }

    /// The earlier of the two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Ord::min(self, other)
    }

    /// The deadline of the request whose handler is being polled on this thread.
    ///
    /// Read it in the handler itself; it does not follow into tasks that the handler spawns, nor outside a
    /// handler, where it is [`NEVER`](Self::NEVER): [`scope`](Self::scope) takes it there. The clock is read at the
    /// first question and not before.
    #[must_use]
    pub fn current() -> Self {
        match AMBIENT.get() {
            Ambient::Outside | Ambient::Spared(_) | Ambient::SparedBy(_) => Self::NEVER,
            Ambient::At(deadline) => deadline,
            Ambient::Fresh(limit) => {
                let deadline = Self::within(limit);
                AMBIENT.set(Ambient::At(deadline));
                deadline
            }
        }
    }

    /// Has `future` find this deadline as the [current](Self::current) one, wherever and by whom it is polled.
    ///
    /// It is the earlier of this one and of the one that is current where `scope` is called, so that nobody gives
    /// away more than he has. It is only told: the future is not ended when the time comes, which is what
    /// [`budget::within`](crate::budget::within) is for.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_net::Deadline;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let budget = Deadline::within(Duration::from_secs(2));
    /// let seen = budget.scope(async { Deadline::current() }).await;
    /// assert_eq!(seen, budget);
    /// assert_eq!(Deadline::current(), Deadline::NEVER);
    /// # }
    /// ```
    ///
    /// To take the budget of a handler into a task: `tokio::spawn(Deadline::current().scope(work))`.
    pub fn scope<F: Future>(self, future: F) -> DeadlineScope<F> {
        DeadlineScope {
            future,
            ambient: Ambient::At(self.min(Self::current())),
        }
    }
}

pin_project! {
    /// The future of [`Deadline::scope`].
    ///
    /// Inside of it, [`extend`](crate::ConnInfo::extend) moves the deadline of what is inside, and of nothing else.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct DeadlineScope<F> {
        #[pin]
        future: F,
        ambient: Ambient,
    }
}

impl<F: Future> Future for DeadlineScope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let entered = Ambient::enter();
        entered.set(*this.ambient);
        let polled = this.future.poll(cx);
        *this.ambient = entered.get();
        polled
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            At::By(instant) => f
                .debug_tuple("Deadline")
                .field(&instant)
                .finish(),
            At::Never => f.write_str("Deadline(never)"),
        }
    }
}

/// What [`Deadline::current`] answers on this thread.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ambient {
    /// No handler is being polled.
    Outside,
    /// A request that has only just begun: so much from now, if anybody asks.
    Fresh(Duration),
    /// A known point.
    At(Deadline),
    /// As `Fresh`, in a dry run: it is kept count of, and the handler sees none.
    Spared(Duration),
    /// As `At`, in a dry run.
    SparedBy(Deadline),
}

impl Ambient {
    /// Moves the deadline of the handler being polled; `false` outside one.
    pub(crate) fn extend(by: Duration) -> bool {
        let ambient = AMBIENT.get();
        AMBIENT.set(ambient.later(by));
        !matches!(ambient, Self::Outside)
    }

    /// The point in time, if it is known.
    pub(crate) fn deadline(self) -> Option<Deadline> {
        match self {
            Self::At(deadline) | Self::SparedBy(deadline) => Some(deadline),
            Self::Outside | Self::Fresh(_) | Self::Spared(_) => None,
        }
    }

    /// Whether it is known, and has come by `now`.
    pub(crate) fn is_late(self, now: Instant) -> bool {
        self.deadline()
            .is_some_and(|deadline| deadline <= Deadline::at(now))
    }

    /// The same for what has only just begun, with no more time than `limit`.
    #[inline]
    pub(crate) fn within(self, limit: Duration) -> Self {
        match self {
            Self::Fresh(own) => Self::Fresh(own.min(limit)),
            Self::Spared(own) => Self::Spared(own.min(limit)),
            Self::Outside | Self::At(_) | Self::SparedBy(_) => self,
        }
    }

    /// The same, at a known point for what begins at `start`.
    pub(crate) fn from(self, start: Instant) -> Self {
        match self {
            Self::Fresh(limit) => Self::At(Deadline::after(start, limit)),
            Self::Spared(limit) => Self::SparedBy(Deadline::after(start, limit)),
            Self::Outside | Self::At(_) | Self::SparedBy(_) => self,
        }
    }

    /// The same, with another point in time.
    pub(crate) fn at(self, deadline: Deadline) -> Self {
        match self {
            Self::Spared(_) | Self::SparedBy(_) => Self::SparedBy(deadline),
            Self::Outside | Self::Fresh(_) | Self::At(_) => Self::At(deadline),
        }
    }

    /// The same, with more time.
    pub(crate) fn later(self, by: Duration) -> Self {
        match self {
            Self::Outside => Self::Outside,
            Self::Fresh(limit) => Self::Fresh(limit.saturating_add(by)),
            Self::Spared(limit) => Self::Spared(limit.saturating_add(by)),
            Self::At(deadline) | Self::SparedBy(deadline) => self.at(deadline.later(by)),
        }
    }

    /// Has handlers polled while the guard lives find their own answer, which [`set`](Entered::set) gives.
    pub(crate) fn enter() -> Entered {
        Entered {
            outer: AMBIENT.get(),
        }
    }
}

/// Restores on drop what [`Deadline::current`] answered before.
#[derive(Debug)]
pub(crate) struct Entered {
    outer: Ambient,
}

impl Entered {
    /// What the next handler finds.
    pub(crate) fn set(&self, ambient: Ambient) {
        AMBIENT.set(ambient);
    }

    /// What the last handler left: a fresh deadline may be fixed now, a fixed one moved.
    pub(crate) fn get(&self) -> Ambient {
        AMBIENT.get()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        AMBIENT.set(self.outer);
    }
}

thread_local! {
    static AMBIENT: Cell<Ambient> = const { Cell::new(Ambient::Outside) };
}
