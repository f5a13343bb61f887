use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    base::{error::ConfigError, time::now},
    outbound::client::counted::Counted,
};

/// How many calls may be made a second time, so that retries never make much of a load of their own.
///
/// Each call adds a share of a retry, each retry takes a whole one, and both are forgotten after 10 s; a floor lets
/// retries through where there are few calls. As Finagle and Envoy have it: 20 %, and never less than 10 a second.
///
/// Clones share the budget, so that several clients, or a client and what is around it, can have one between them. A call
/// that is balanced over clients counts once, however many of them it is taken to; unless there is a task in between, as
/// in tower's `Buffer`, which hides that from them.
#[derive(Clone)]
pub struct RetryBudget {
    share: i64,
    reserve: i64,
    window: Arc<Mutex<Window>>,
}

/// What was added and taken in each of the last seconds.
struct Window {
    begun: Instant,
    /// The second that was counted last, since the beginning.
    second: u64,
    changes: [i64; SECONDS],
}

impl RetryBudget {
    /// So many percent of the calls, and so many a second whatever the calls are. Zero of both lets none be retried.
    ///
    /// # Errors
    ///
    /// More than 100 percent, which would let a failing peer see more retries than calls.
    pub fn new(percent: u32, floor_per_second: u32) -> Result<Self, ConfigError> {
        if percent > 100 {
            return Err(ConfigError::new("percent", "must be at most 100"));
        }
        Ok(Self::unchecked(percent, floor_per_second))
    }

    /// No call is retried.
    #[must_use]
    pub fn none() -> Self {
        Self::unchecked(0, 0)
    }

    fn unchecked(percent: u32, floor_per_second: u32) -> Self {
        Self {
            share: i64::from(percent),
            reserve: i64::from(floor_per_second) * SECONDS as i64 * ONE,
            window: Arc::new(Mutex::new(Window {
                begun: now(),
                second: 0,
                changes: [0; SECONDS],
            })),
        }
    }

    /// Counts a call, unless whoever is around has [counted](Self::counted) it.
    pub(crate) fn deposit(&self, now: Instant) {
        if self.share > 0 && !Counted::is_in(self.address()) {
            let mut window = self
                .window
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *window.at(now) += self.share;
        }
    }

    /// While the guard lives, what is called on this thread is part of a call that has been counted in this budget; if it
    /// is not `new`, but made once more, then in every other as well.
    #[cfg_attr(
        not(feature = "balance"),
        expect(dead_code, reason = "only a balance is around clients")
    )]
    pub(crate) fn counted(&self, new: bool) -> Counted {
        Counted::mark(new.then(|| self.address()))
    }

    /// What tells it apart from others, and not from its clones.
    fn address(&self) -> usize {
        Arc::as_ptr(&self.window) as usize
    }

    /// Takes a retry, if there is one left.
    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        let mut window = self
            .window
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let this_second = window.at(now);
        *this_second -= ONE;
        let left = self.reserve + window.changes.iter().sum::<i64>();
        if left < 0 {
            *window.at(now) += ONE;
        }
        left >= 0
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::unchecked(PERCENT, FLOOR)
    }
}

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryBudget")
            .field("percent", &self.share)
            .field("floor_per_second", &(self.reserve / SECONDS as i64 / ONE))
            .finish_non_exhaustive()
    }
}

impl Window {
    /// The count of the second that is `now`; those that are over by then are cleared.
    fn at(&mut self, now: Instant) -> &mut i64 {
        let since = now.saturating_duration_since(self.begun);
        let second = since.as_secs().max(self.second);
        let passed = (second - self.second).min(SECONDS as u64);
        for over in 0..passed {
            self.changes[((second - over) % SECONDS as u64) as usize] = 0;
        }
        self.second = second;
        &mut self.changes[(second % SECONDS as u64) as usize]
    }
}

/// How long what was added and taken counts.
const SECONDS: usize = 10;

/// A retry, in hundredths.
const ONE: i64 = 100;

/// What retries may add to the load: as Finagle and Envoy have it.
const PERCENT: u32 = 20;

/// So that a client with few calls is not left without.
const FLOOR: u32 = 10;

/// How long to wait before the next attempt to connect: twice as long after each failure, of which a half is left to
/// chance, so that many clients do not come back at the same moment.
pub(super) fn pause(failures: u32, first: Duration, most: Duration) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(20));
    let whole = doubled.min(most);
    whole / 2 + (whole / 2).mul_f64(chance())
}

/// From zero to below one. Nothing here must be secret.
fn chance() -> f64 {
    use std::hash::{BuildHasher, RandomState};

    let random = RandomState::new().hash_one(0);
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_up_to_the_longest_and_half_of_it_is_chance() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(1));
        for (failures, whole) in [(1, 100), (2, 200), (3, 400), (5, 1000), (4_000_000, 1000)] {
            for _ in 0..100 {
                let pause = pause(failures, first, most).as_millis();
                assert!((whole / 2..=whole).contains(&pause), "{failures}: {pause}");
            }
        }
    }

    #[test]
    fn pauses_differ() {
        let some = pause(1, Duration::from_secs(1), Duration::from_secs(1));
        assert!((0..100).any(|_| pause(1, Duration::from_secs(1), Duration::from_secs(1)) != some));
    }

    fn taken(budget: &RetryBudget, now: Instant) -> usize {
        (0..10_000)
            .take_while(|_| budget.withdraw(now))
            .count()
    }

    #[test]
    fn a_fifth_of_the_calls_and_ten_a_second_may_be_retried() {
        let budget = RetryBudget::default();
        let start = now();
        for _ in 0..1000 {
            budget.deposit(start);
        }
        assert_eq!(taken(&budget, start), 200 + 100);
        assert_eq!(taken(&budget, start + Duration::from_secs(9)), 0);
        // What was taken is forgotten as what was added is.
        assert_eq!(taken(&budget, start + Duration::from_secs(10)), 100);
    }

    #[test]
    fn an_addition_is_worth_nothing_after_ten_seconds() {
        let budget = RetryBudget::new(50, 0).unwrap();
        let start = now();
        budget.deposit(start);
        budget.deposit(start);
        assert_eq!(taken(&budget, start + Duration::from_secs(9)), 1);
        budget.deposit(start);
        assert_eq!(taken(&budget, start + Duration::from_secs(30)), 0);
    }

    #[test]
    fn clones_share_one_budget_and_none_has_nothing() {
        let budget = RetryBudget::new(0, 1).unwrap();
        let start = now();
        assert_eq!(taken(&budget.clone(), start), 10);
        assert_eq!(taken(&budget, start), 0);
        assert_eq!(taken(&RetryBudget::none(), start), 0);
        assert!(RetryBudget::new(101, 0).is_err());
    }
}
