//! Whether a target may be dialled: failures in a row, and the pause after them.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::time::Instant;

use crate::base::time::FOREVER;

/// When a pool stops dialling a target that it cannot reach.
///
/// After so many failures in a row whoever needs a new connection to that target is refused at once, unless some of
/// its connections are in use and may come back; when the pause is over one dial is let through, and its success ends
/// it. Each further failure doubles the pause. Half of a pause is by chance, so that many clients do not come back
/// together.
///
/// Dials that are under way together fail together, and count as one failure.
///
/// A pool that has never known more than one target at a time does not back off: to refuse the only one there is would
/// make an outage of a failure. Ask for it with [`even_alone`](Self::even_alone).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectBackoff {
    /// None for never.
    pub(super) after: Option<u32>,
    pub(super) first: Duration,
    pub(super) most: Duration,
    pub(super) alone: bool,
}

impl ConnectBackoff {
    /// Never. What is [kept warm](crate::pool::Pool::keep_warm) is dialled with pauses all the same.
    #[must_use]
    pub fn off() -> Self {
        Self {
            after: None,
            ..Self::default()
        }
    }

    /// After so many failures in a row. Default: 3. Zero is an error when the layer is made.
    #[must_use]
    pub fn after(mut self, failures: u32) -> Self {
        self.after = Some(failures);
        self
    }

    /// The first pause. Default: 200 ms. Zero is an error when the layer is made.
    #[must_use]
    pub fn first(mut self, pause: Duration) -> Self {
        self.first = pause;
        self
    }

    /// The longest pause. Default: 5 s. With [`Duration::MAX`] they grow without end.
    #[must_use]
    pub fn most(mut self, pause: Duration) -> Self {
        self.most = pause;
        self
    }

    /// Also in a pool that has never known more than one target at a time. Default: off.
    #[must_use]
    pub fn even_alone(mut self, on: bool) -> Self {
        self.alone = on;
        self
    }

    /// The pause after so many failures, for a share of chance between 0 and 1.
    fn pause(&self, failures: u32, chance: f64) -> Duration {
        let doublings = failures
            .saturating_sub(self.after.unwrap_or(1))
            .min(30);
        let whole = self
            .first
            .saturating_mul(1 << doublings)
            .min(self.most)
            .min(FOREVER);
        whole / 2 + (whole / 2).mul_f64(chance)
    }
}

impl Default for ConnectBackoff {
    fn default() -> Self {
        Self {
            after: Some(AFTER),
            first: FIRST,
            most: MOST,
            alone: false,
        }
    }
}

/// What is remembered of the dials to one target.
#[derive(Debug, Default)]
pub(super) struct Health {
    failures: u32,
    /// The end of the pause after the last failure.
    until: Option<Instant>,
    /// The last number that had been given when the last failure was counted: a dial up to that one was under way
    /// then, and its own failure says nothing new.
    counted: u64,
}

impl Health {
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether there is anything to remember.
    pub(super) fn is_clean(&self) -> bool {
        self.failures == 0
    }

    /// Whether it has failed often enough to be refused.
    pub(super) fn is_down(&self, backoff: &ConnectBackoff) -> bool {
        backoff
            .after
            .is_some_and(|after| self.failures >= after)
    }

    /// Whether the pause is over.
    pub(super) fn has_rested(&self, now: Instant) -> bool {
        self.until
            .is_none_or(|until| until <= now)
    }

    /// Whether what becomes of this dial says something new.
    pub(super) fn is_news(&self, dial: u64) -> bool {
        dial > self.counted
    }

    pub(super) fn succeeded(&mut self) {
        (self.failures, self.until) = (0, None);
    }

    /// Begins anew: whatever becomes of dials up to the `last` number says nothing.
    pub(super) fn forget(&mut self, last: u64) {
        self.succeeded();
        self.counted = last;
    }

    pub(super) fn failed(&mut self, dial: u64, last: u64, now: Instant, backoff: &ConnectBackoff) {
        if !self.is_news(dial) {
            return;
        }
        self.counted = last;
        self.failures = self.failures.saturating_add(1);
        let pause = backoff.pause(self.failures, chance());
        self.until = now.checked_add(pause);
    }

    /// When it is no longer worth remembering.
    pub(super) fn forget_at(&self, backoff: &ConnectBackoff) -> Option<Instant> {
        self.until?
            .checked_add(backoff.most.min(FOREVER))
    }
}

/// A number from 0 up to 1. Nobody gains from guessing it.
pub(super) fn chance() -> f64 {
    let bits = RandomState::new().hash_one(0) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

/// One may be a lost packet, and the next one as well.
const AFTER: u32 = 3;

/// Above a round trip to anywhere.
const FIRST: Duration = Duration::from_millis(200);

/// What a target that has come back is made to wait at the most.
const MOST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_to_the_longest_and_half_of_it_is_by_chance() {
        let backoff = ConnectBackoff::default();
        let millis = |failures, chance| {
            backoff
                .pause(failures, chance)
                .as_millis()
        };

        assert_eq!([3, 4, 5, 99].map(|n| millis(n, 0.0)), [100, 200, 400, 2500]);
        assert_eq!([3, 4, 5, 99].map(|n| millis(n, 1.0)), [200, 400, 800, 5000]);
    }

    #[test]
    fn the_longest_of_pauses_is_one_and_not_none() {
        let (now, mut health) = (Instant::now(), Health::default());
        let backoff = ConnectBackoff::off()
            .first(Duration::MAX)
            .most(Duration::MAX);

        health.failed(1, 1, now, &backoff);

        assert!(!health.has_rested(now + FOREVER / 3));
        assert!(
            health
                .forget_at(&backoff)
                .is_some_and(|at| at > now)
        );
    }

    #[test]
    fn a_failure_counts_if_its_dial_began_after_the_last_one_was_known() {
        let (now, mut health) = (Instant::now(), Health::default());
        let mut failures = |dial, last| {
            health.failed(dial, last, now, &ConnectBackoff::default());
            health.failures()
        };

        assert_eq!(
            [(1, 3), (3, 4), (2, 5), (4, 5), (5, 6)].map(|(dial, last)| failures(dial, last)),
            [1, 1, 1, 2, 2]
        );
    }

    #[test]
    fn chance_is_a_share_and_differs() {
        let many: Vec<_> = (0..64).map(|_| chance()).collect();

        assert!(
            many.iter()
                .all(|share| (0.0..1.0).contains(share))
        );
        assert!(many.iter().any(|share| *share < 0.5) && many.iter().any(|share| *share > 0.5));
    }
}
