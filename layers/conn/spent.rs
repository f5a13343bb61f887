use std::{fmt, time::Duration};

use tokio::time::Instant;

use crate::conn::Deadline;

/// Which of two times ran out first: a layer's own limit, or the deadline of whoever called it.
///
/// The first says that the other end, or the limit, is to be looked at; the second that the time was gone before, or
/// was short from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Spent {
    /// The layer's own limit, of this length.
    Limit(Duration),
    /// The [`Deadline`] that was [current](Deadline::current) when the layer was called.
    Caller,
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(limit) => write!(f, "within {limit:?}"),
            Self::Caller => f.write_str("before the caller's deadline"),
        }
    }
}

/// The time for something that has a limit of its own and a caller with a deadline.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    by: Deadline,
    spent: Spent,
}

impl Allowance {
    /// At most `limit` from now, and not beyond the caller's deadline.
    pub(crate) fn begin(limit: Duration, caller: Deadline) -> Self {
        let own = Deadline::within(limit);
        if caller < own {
            Self {
                by: caller,
                spent: Spent::Caller,
            }
        } else {
            Self {
                by: own,
                spent: Spent::Limit(limit),
            }
        }
    }

    /// The end of it.
    pub(crate) fn deadline(self) -> Deadline {
        self.by
    }

    /// The same for a timer; `None` is never.
    pub(crate) fn instant(self) -> Option<Instant> {
        self.by.instant()
    }

    /// Whose time it is that runs out.
    pub(crate) fn spent(self) -> Spent {
        self.spent
    }

    /// Whether it was over before it began.
    pub(crate) fn is_over(self) -> bool {
        self.by.has_passed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_the_two_ends_it_and_is_named() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));

        let own = Allowance::begin(second, Deadline::within(hour));
        let theirs = Allowance::begin(hour, Deadline::within(second));
        let nobodys = Allowance::begin(Duration::MAX, Deadline::NEVER);

        assert_eq!(own.spent(), Spent::Limit(second));
        assert_eq!(theirs.spent(), Spent::Caller);
        assert_eq!(own.deadline(), theirs.deadline());
        assert_eq!(nobodys.instant(), None);
        assert!(Allowance::begin(hour, Deadline::within(Duration::ZERO)).is_over());
    }
}
