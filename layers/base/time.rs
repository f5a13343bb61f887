//! The clock and the one timer of a connection.
//!
//! Everything reads the clock through [`now`] and arms a timer through [`Timer`], so that a test can count
//! both: a connection that is busy and healthy must do neither for a request.

use std::{
    panic::catch_unwind,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    runtime::Handle,
    time::{Instant, Sleep},
};

use crate::base::error::NoTimer;

/// Reads the clock. A test on a paused runtime sees the paused time.
pub(crate) fn now() -> Instant {
    #[cfg(test)]
    count::CLOCK_READS.set(count::CLOCK_READS.get() + 1);
    Instant::now()
}

/// `at + after`, where a sum that no clock can hold is "never".
pub(crate) fn later(at: Instant, after: Duration) -> Option<Instant> {
    if after >= FOREVER {
        return None;
    }
    at.checked_add(after)
}

pin_project! {
    /// A timer that is made when it is first armed and moved, not made anew, from then on.
    #[derive(Debug, Default)]
    pub(crate) struct Timer {
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl Timer {
    /// Sets the timer to go off at `at`, whatever it was set to before.
    pub(crate) fn arm(self: Pin<&mut Self>, at: Instant) {
        #[cfg(test)]
        count::TIMERS_ARMED.set(count::TIMERS_ARMED.get() + 1);
        let mut this = self.project();
        match this.sleep.as_mut().as_pin_mut() {
            Some(sleep) => sleep.reset(at),
            None => this
                .sleep
                .set(Some(tokio::time::sleep_until(at))),
        }
    }

    /// Whether it was ever armed.
    pub(crate) fn is_armed(&self) -> bool {
        self.sleep.is_some()
    }

    /// Whether the time has come, without a poll: nobody will be woken for it.
    pub(crate) fn has_gone_off(&self) -> bool {
        self.sleep
            .as_ref()
            .is_some_and(Sleep::is_elapsed)
    }

    /// Ready once the time has come; pending for ever if the timer was never armed.
    pub(crate) fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.project().sleep.as_pin_mut() {
            Some(sleep) => sleep.poll(cx),
            None => Poll::Pending,
        }
    }
}

/// Checks that the current runtime can keep time at all.
///
/// Tokio has no question for this, only a panic when the first timer is made: ask for one here, while the
/// server is being built, rather than on the first connection. (The panic's own message still reaches
/// standard error, before this error reaches the caller.)
pub(crate) fn require_driver() -> Result<(), NoTimer> {
    if Handle::try_current().is_err() {
        return Err(NoTimer::no_runtime());
    }
    catch_unwind(|| drop(tokio::time::sleep(Duration::ZERO))).map_err(|_| NoTimer::no_driver())
}

/// Remembers that the runtime can keep time, once somebody has made sure.
#[derive(Debug, Default)]
pub(crate) struct KeepsTime(AtomicBool);

impl KeepsTime {
    pub(crate) fn check(&self) -> Result<(), NoTimer> {
        if !self.0.load(Relaxed) {
            require_driver()?;
            self.0.store(true, Relaxed);
        }
        Ok(())
    }
}

/// What counts as "never": beyond it sums of times overflow on some systems, and nobody waits a century.
pub(crate) const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

#[cfg(test)]
pub(crate) mod count {
    use std::cell::Cell;

    thread_local! {
        pub(crate) static CLOCK_READS: Cell<u64> = const { Cell::new(0) };
        pub(crate) static TIMERS_ARMED: Cell<u64> = const { Cell::new(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_without_a_time_driver_is_told_apart_from_one_with() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let without = builder.build().unwrap();
        let with = builder.enable_time().build().unwrap();

        assert!(
            without
                .block_on(async { require_driver() })
                .is_err()
        );
        assert!(
            with.block_on(async { require_driver() })
                .is_ok()
        );
        assert!(require_driver().is_err());
    }

    #[test]
    fn the_longest_duration_is_never() {
        assert_eq!(later(Instant::now(), Duration::MAX), None);
        assert!(later(Instant::now(), Duration::from_secs(1)).is_some());
    }
}
