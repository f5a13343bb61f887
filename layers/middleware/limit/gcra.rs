//! How often something may happen: the generic cell rate algorithm, one number a key.
//!
//! The number is the time until which a key has used up its rate (GCRA's theoretical arrival time): each event moves
//! it on by the interval of the rate, and it may be ahead of now by what the burst allows. Nothing has to be
//! refilled, and a number that has passed says nothing and can be forgotten.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::table::Table;

/// A rate and a burst, which can be changed while they are in use. Times are nanoseconds since a beginning.
///
/// Two numbers, read one after the other: an event at the very moment of a change may see one of each.
#[derive(Debug)]
pub(super) struct Gcra {
    interval: AtomicU64,
    burst: AtomicU32,
}

/// It is too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooEarly {
    /// How much too early.
    pub(super) wait: u64,
}

impl Gcra {
    /// An event each `interval`, and `burst` of them at once. Neither is zero, and their product fits.
    pub(super) fn new(interval: u64, burst: u32) -> Self {
        Self {
            interval: AtomicU64::new(interval),
            burst: AtomicU32::new(burst),
        }
    }

    /// Changes both. Of what keys have used up, the number of events stays, if the new burst has so many.
    ///
    /// An event that happens meanwhile may be counted at either rate.
    pub(super) fn set(&self, table: &Table, now: u64, interval: u64, burst: u32) {
        let old = u128::from(self.interval.swap(interval, Relaxed));
        self.burst.store(burst, Relaxed);
        let ahead = interval.saturating_mul(burst.into());
        table.for_each(now, |_, used_until| {
            let used = u128::from(*used_until - now);
            let scaled = used * u128::from(interval) / old;
            let used = u64::try_from(scaled).map_or(ahead, |used| used.min(ahead));
            *used_until = now.saturating_add(used);
        });
    }

    pub(super) fn interval(&self) -> u64 {
        self.interval.load(Relaxed)
    }

    pub(super) fn burst(&self) -> u32 {
        self.burst.load(Relaxed)
    }

    /// Takes an event of `key`, which happens `now` or, if that is too early, at most `patience` later.
    /// Returns how much later.
    ///
    /// What is too early takes nothing: those who try all the time get their rate, and not less.
    pub(super) fn take(
        &self,
        table: &Table,
        key: u128,
        now: u64,
        patience: u64,
    ) -> Result<u64, TooEarly> {
        let interval = self.interval();
        let ahead = interval.saturating_mul(self.burst().into());
        table.update(key, now, |used_until| {
            let until = used_until.saturating_add(interval);
            let wait = until.saturating_sub(now.saturating_add(ahead));
            if wait > patience {
                return Err(TooEarly { wait });
            }
            *used_until = until;
            Ok(wait)
        })
    }

    /// How much of the burst a key has used at `now`, in events, rounded up.
    pub(super) fn used(&self, used_until: u64, now: u64) -> u64 {
        used_until
            .saturating_sub(now)
            .div_ceil(self.interval())
    }
}

impl Clone for Gcra {
    fn clone(&self) -> Self {
        Self::new(self.interval(), self.burst())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn admitted(gcra: &Gcra, table: &Table, times: impl IntoIterator<Item = u64>) -> usize {
        let takes = |now: &u64| gcra.take(table, 1, *now, 0).is_ok();
        times.into_iter().filter(takes).count()
    }

    #[test]
    fn a_burst_at_once_and_then_the_rate() {
        let (gcra, table) = (Gcra::new(SECOND / 10, 5), Table::new(1, || {}));

        assert_eq!(admitted(&gcra, &table, [SECOND; 50]), 5);
        let each_millisecond = (0..2_000).map(|at| SECOND + at * 1_000_000);
        assert_eq!(admitted(&gcra, &table, each_millisecond), 19);
        assert_eq!(admitted(&gcra, &table, [10 * SECOND; 50]), 5);
    }

    #[test]
    fn what_is_too_early_takes_nothing_and_is_told_when_to_come_again() {
        let (gcra, table) = (Gcra::new(SECOND, 1), Table::new(1, || {}));

        assert_eq!(gcra.take(&table, 1, 1, 0), Ok(0));
        for _ in 0..100 {
            let early = gcra.take(&table, 1, 1, 0);
            assert_eq!(early, Err(TooEarly { wait: SECOND }));
        }
        assert_eq!(gcra.take(&table, 1, 1 + SECOND, 0), Ok(0));
    }

    #[test]
    fn who_waits_is_spread_over_time_up_to_the_patience() {
        let (gcra, table) = (Gcra::new(SECOND, 2), Table::new(1, || {}));
        let waits = [(); 6].map(|()| gcra.take(&table, 1, 1, 3 * SECOND).ok());

        assert_eq!(
            waits,
            [0, 0, 1, 2, 3, 9].map(|wait| (wait < 9).then_some(wait * SECOND))
        );
    }

    #[test]
    fn a_change_of_rate_keeps_the_number_of_events() {
        for (interval, burst, left) in [(SECOND, 10, 6), (SECOND / 1_000, 6, 2), (SECOND, 2, 0)] {
            let (gcra, table) = (Gcra::new(SECOND * 1_000, 10), Table::new(1, || {}));
            assert_eq!(admitted(&gcra, &table, [1; 4]), 4);

            gcra.set(&table, 1, interval, burst);

            assert_eq!(admitted(&gcra, &table, [1; 20]), left);
            assert_eq!(admitted(&gcra, &table, [1 + interval]), 1);
        }
    }

    #[test]
    fn the_ends_of_the_scale_do_not_overflow() {
        let (fastest, slowest) = (Gcra::new(1, u32::MAX), Gcra::new(u64::MAX, u32::MAX));

        for now in [0, 1, u64::MAX - 1, u64::MAX] {
            for gcra in [&fastest, &slowest] {
                for patience in [0, u64::MAX] {
                    let table = Table::new(1, || {});
                    assert_eq!(gcra.take(&table, 1, now, patience), Ok(0));
                    gcra.set(&table, now, gcra.interval(), gcra.burst());
                    assert!(gcra.used(u64::MAX, now) <= u64::MAX - now);
                }
            }
        }
    }
}
