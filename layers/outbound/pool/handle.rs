use std::{fmt, sync::Arc};

use super::books::Counts;
use crate::base::error::ConfigError;

/// Looks into a pool, and closes it. A handle keeps the pool, as each of its clones does.
#[derive(Clone)]
pub struct PoolHandle {
    pool: Arc<dyn Managed>,
}

impl PoolHandle {
    pub(super) fn new(pool: Arc<dyn Managed>) -> Self {
        Self { pool }
    }

    /// How many connections there are now, and how many wait.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.pool.snapshot()
    }

    /// Closes the pool for good: what is idle there and then, what is in use when it comes back; dials are called off,
    /// nothing is kept warm any more, and whoever waits or comes later is refused with
    /// [`PoolCause::Closed`](crate::pool::PoolCause::Closed).
    pub fn close(&self) {
        self.pool.close();
    }

    /// Begins anew, as after a change of addresses or credentials: what is idle is closed there and then, what is in
    /// use when it comes back, what is being opened once it is open; then new ones are opened as they are needed. Nor
    /// is what has failed so far held against a target: whoever waits for [a pause](crate::pool::ConnectBackoff) to end
    /// dials at once.
    pub fn renew(&self) {
        self.pool.renew();
    }

    /// Changes [`Pooling::max_open`](crate::pool::Pooling::max_open). Where there are more connections than that, idle
    /// ones are closed there and then, and those in use when they come back.
    ///
    /// # Errors
    ///
    /// Zero: say [`close`](Self::close).
    pub fn set_max_open(&self, connections: usize) -> Result<(), ConfigError> {
        self.pool.set_max_open(connections)
    }
}

impl fmt::Debug for PoolHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PoolHandle")
            .field(&self.snapshot())
            .finish()
    }
}

/// What a pool held at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    counts: Counts,
    targets: usize,
}

impl Snapshot {
    pub(super) fn new(counts: Counts, targets: usize) -> Self {
        Self { counts, targets }
    }

    /// Connections in all, those that are being opened included.
    #[must_use]
    pub fn open(&self) -> usize {
        self.counts.open
    }

    /// Those that nobody uses.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.counts.idle
    }

    /// Those that somebody has.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.counts.in_use()
    }

    /// Those that are being opened.
    #[must_use]
    pub fn connecting(&self) -> usize {
        self.counts.dials
    }

    /// Those who wait, for a place or for a dial.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.counts.waiting
    }

    /// Targets that the pool knows of: those with a connection, with somebody who waits, to be kept warm, or whose
    /// last dial failed a moment ago. The first two are no more than connections and those who wait, what is kept warm
    /// is for the caller to say, and of the last a new one is remembered only if there are fewer than places.
    #[must_use]
    pub fn targets(&self) -> usize {
        self.targets
    }
}

/// A pool, as its handles know it.
pub(super) trait Managed: Send + Sync {
    fn snapshot(&self) -> Snapshot;
    fn close(&self);
    fn renew(&self);
    fn set_max_open(&self, connections: usize) -> Result<(), ConfigError>;
}
