//! How much sooner a connection's first-byte and idle limits pass while the process is short of something.
//!
//! Whoever measures tells the connection, and wakes it if it should look at once; the watch looks when it parks.
//! Telling and looking are plain loads and stores: a connection that is never told pays for a comparison.

use std::{
    sync::atomic::{AtomicU8, Ordering::Relaxed},
    time::Duration,
};

use crate::base::time::FOREVER;

/// What is taken away from a limit, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Strain(u8);

impl Strain {
    /// Nothing is taken away.
    pub(crate) const NONE: Self = Self(0);

    /// Takes away so much of a limit: a share, of which only whole percents count.
    pub(crate) fn taking(share: f32) -> Self {
        Self((share.clamp(0.0, 1.0) * 100.0).round() as u8)
    }

    /// What is left of `limit`: at the least [`SHORTEST`], unless it is shorter by itself.
    pub(crate) fn of(self, limit: Duration) -> Duration {
        if self == Self::NONE || limit >= FOREVER {
            return limit;
        }
        let left = limit / 100 * u32::from(100 - self.0.min(100));
        left.max(SHORTEST.min(limit))
    }
}

/// What a connection was told, and how much of that its watch has seen.
#[derive(Debug)]
pub(crate) struct Strained {
    told: AtomicU8,
    seen: AtomicU8,
}

impl Default for Strained {
    fn default() -> Self {
        Self {
            told: AtomicU8::new(Strain::NONE.0),
            seen: AtomicU8::new(Strain::NONE.0),
        }
    }
}

impl Strained {
    pub(crate) fn tell(&self, strain: Strain) {
        self.told.store(strain.0, Relaxed);
    }

    pub(crate) fn told(&self) -> Strain {
        Strain(self.told.load(Relaxed))
    }

    /// What was told, which is seen by this.
    pub(crate) fn see(&self) -> Strain {
        let told = self.told();
        self.seen.store(told.0, Relaxed);
        told
    }

    /// Whether a timer may be set for later than it should go off. (One that goes off too early costs a look.)
    pub(crate) fn is_behind(&self) -> bool {
        self.told() > Strain(self.seen.load(Relaxed))
    }
}

/// One lost packet, and the time for its retransmission, must not look like silence however great the need.
const SHORTEST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_a_share_and_never_too_little() {
        let left = |share, secs| Strain::taking(share).of(Duration::from_secs_f64(secs));

        assert_eq!(left(0.0, 90.0), Duration::from_secs(90));
        assert_eq!(left(0.5, 90.0), Duration::from_secs(45));
        assert_eq!(left(0.9, 90.0), Duration::from_secs(9));
        assert_eq!(left(0.9, 3.0), Duration::from_secs(1));
        assert_eq!(left(1.0, 90.0), Duration::from_secs(1));
        assert_eq!(left(0.9, 0.2), Duration::from_millis(200));
        assert_eq!(Strain::taking(1.0).of(Duration::MAX), Duration::MAX);
        assert_eq!(Strain::taking(f32::NAN), Strain::NONE);
    }
}
