use std::{error::Error, fmt, time::Duration};

use super::fates::{Outcome, Refusal};
use crate::base::error::BoxError;

/// A pool gave no connection. Whatever was to be done with it was never begun.
#[derive(Debug)]
pub struct PoolError {
    // Boxed: it is rare, and moves with every get.
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    cause: PoolCause,
    waited: Duration,
}

/// Why a pool gave no connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum PoolCause {
    /// The target has failed so often that it is left alone for a while.
    #[non_exhaustive]
    Backoff {
        /// Failures in a row.
        failures: u32,
        /// Until it is tried again; zero while one dial tries it.
        left: Duration,
    },
    /// The pool was closed.
    Closed,
    /// The dial failed: what the connector answered, or [`DialElapsed`], or [`DialPanicked`].
    Connect(BoxError),
    /// Time was up.
    #[non_exhaustive]
    Elapsed {
        /// What the time went into.
        phase: PoolPhase,
        /// It was the caller's deadline that passed, and not the pool's own limit.
        is_callers: bool,
    },
    /// So many wait already.
    #[non_exhaustive]
    QueueFull {
        /// The bound of the queue.
        bound: usize,
    },
}

/// What a get waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PoolPhase {
    /// A place in the pool, or a connection that somebody gives back.
    Waiting,
    /// A dial.
    Connecting,
}

impl PoolError {
    pub(super) fn new(refusal: Refusal, waited: Duration, is_callers: bool) -> Self {
        let cause = match refusal {
            Refusal::Backoff { failures, left } => PoolCause::Backoff { failures, left },
            Refusal::Closed => PoolCause::Closed,
            Refusal::Connect(error) => PoolCause::Connect(error),
            Refusal::Elapsed { connecting } => PoolCause::Elapsed {
                phase: if connecting {
                    PoolPhase::Connecting
                } else {
                    PoolPhase::Waiting
                },
                is_callers,
            },
            Refusal::QueueFull { bound } => PoolCause::QueueFull { bound },
        };
        Self {
            inner: Box::new(Inner { cause, waited }),
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        match self.inner.cause {
            PoolCause::Backoff { .. } => Outcome::Backoff,
            PoolCause::Closed => Outcome::Closed,
            PoolCause::Connect(_) => Outcome::Connect,
            PoolCause::Elapsed { .. } => Outcome::Elapsed,
            PoolCause::QueueFull { .. } => Outcome::QueueFull,
        }
    }

    /// Why.
    #[must_use]
    pub fn cause(&self) -> &PoolCause {
        &self.inner.cause
    }

    /// How long the get took until then.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.inner.waited
    }

    /// Whether it may be worth asking again, here or at another target. Not when the caller's own deadline has passed,
    /// nor of a pool that is closed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        !matches!(
            self.inner.cause,
            PoolCause::Closed
                | PoolCause::Elapsed {
                    is_callers: true,
                    ..
                }
        )
    }
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waited = self.inner.waited;
        match &self.inner.cause {
            PoolCause::Backoff { failures, left } if left.is_zero() => write!(
                f,
                "target failed {failures} times in a row and is being tried by another"
            ),
            PoolCause::Backoff { failures, left } => write!(
                f,
                "target failed {failures} times in a row and is left alone for another {left:?}"
            ),
            PoolCause::Closed => f.write_str("pool is closed"),
            PoolCause::Connect(_) => write!(f, "connect failed after {waited:?}"),
            PoolCause::Elapsed { phase, is_callers } => {
                let whose = if *is_callers {
                    "the caller's deadline"
                } else {
                    "the pool's limit"
                };
                let what = match phase {
                    PoolPhase::Waiting => "waiting for a place in the pool",
                    PoolPhase::Connecting => "connecting",
                };
                write!(
                    f,
                    "no connection after {waited:?}: {whose} passed while {what}"
                )
            }
            PoolCause::QueueFull { bound } => {
                write!(
                    f,
                    "{bound} wait for a connection already, which is the limit"
                )
            }
        }
    }
}

impl Error for PoolError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.inner.cause {
            PoolCause::Connect(error) => Some(&**error),
            _ => None,
        }
    }
}

/// A dial was not done within [`Pooling::dial_within`](crate::pool::Pooling::dial_within).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DialElapsed {
    limit: Duration,
}

impl DialElapsed {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit }
    }

    /// The limit.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit
    }
}

impl fmt::Display for DialElapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not connected within {:?}", self.limit)
    }
}

impl Error for DialElapsed {}

/// A connector panicked. The panic's own message is on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DialPanicked;

impl fmt::Display for DialPanicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connector panicked")
    }
}

impl Error for DialPanicked {}
