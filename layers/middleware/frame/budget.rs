//! How many requests may be refused because their time is used up.
//!
//! Work that nobody waits for is best not begun. But a client whose clock is wrong, or whose sums are, would have
//! everything refused and never learn why: so each refusal is paid for by requests that were served.

use std::time::Duration;

use tokio::time::Instant;

/// One connection's budget of refusals.
///
/// The clock is read at a refusal and never for a request that is served: what was served since the last look is taken
/// to have come evenly, and of that, only what is younger than the window counts.
#[derive(Debug)]
pub(super) struct RefusalBudget {
    /// Served requests that a refusal costs.
    cost: u32,
    window: Duration,
    /// Served since the last look.
    served: u32,
    /// What was left at the last look, in served requests.
    balance: f64,
    looked: Instant,
}

impl RefusalBudget {
    pub(super) fn new(cost: u32, window: Duration, now: Instant) -> Self {
        Self {
            cost,
            window,
            served: 0,
            balance: 0.0,
            looked: now,
        }
    }

    /// A request was served.
    #[inline]
    pub(super) fn served(&mut self) {
        self.served = self.served.saturating_add(1);
    }

    /// Takes what a refusal costs, if it is there.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.looked);
        // Of an even stream so much is as young as the window; and of what was there, so much has not expired.
        let (young, kept) = if since <= self.window {
            let gone = since.as_secs_f64() / self.window.as_secs_f64();
            (1.0, 1.0 - gone)
        } else {
            let young = self.window.as_secs_f64() / since.as_secs_f64();
            (young, 0.0)
        };
        self.balance = self.balance * kept + f64::from(self.served) * young;
        (self.served, self.looked) = (0, now);
        let is_enough = self.balance >= f64::from(self.cost);
        if is_enough {
            self.balance -= f64::from(self.cost);
        }
        is_enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(budget: &mut RefusalBudget, requests: u32) {
        for _ in 0..requests {
            budget.served();
        }
    }

    /// How many refusals in a row are granted at one time.
    fn granted(budget: &mut RefusalBudget, now: Instant) -> u32 {
        (0..)
            .find(|_| !budget.take(now))
            .expect("a budget ends")
    }

    #[test]
    fn a_refusal_costs_so_many_served_requests() {
        let now = Instant::now();
        let mut budget = RefusalBudget::new(5, Duration::from_secs(10), now);

        assert_eq!(granted(&mut budget, now), 0);
        serve(&mut budget, 14);
        assert_eq!(granted(&mut budget, now), 2);
        serve(&mut budget, 1);
        assert_eq!(granted(&mut budget, now), 1);
        assert_eq!(granted(&mut budget, now), 0);
    }

    #[test]
    fn what_was_served_long_ago_pays_for_nothing() {
        let start = Instant::now();
        let later = |secs| start + Duration::from_secs(secs);
        let mut budget = RefusalBudget::new(5, Duration::from_secs(10), start);
        serve(&mut budget, 100);

        // A tenth of an even stream is as young as ten seconds after a hundred.
        assert_eq!(granted(&mut budget, later(100)), 2);
        serve(&mut budget, 100);
        assert!(budget.take(later(105)));
        // Half of what was there has expired after five seconds more, all of it after ten.
        assert_eq!(granted(&mut budget, later(110)), 9);
        serve(&mut budget, 9);
        assert!(budget.take(later(111)));
        assert_eq!(granted(&mut budget, later(121)), 0);
    }

    #[test]
    fn any_window_will_do() {
        let start = Instant::now();
        for window in [Duration::from_nanos(1), Duration::MAX] {
            let mut budget = RefusalBudget::new(1, window, start);
            serve(&mut budget, 3);
            let later = start + Duration::from_nanos(1);

            assert_eq!(granted(&mut budget, later), 3);
            budget.served = u32::MAX;
            budget.served();
            assert!(budget.take(later));
        }
    }
}
