//! The one task of a layer: measures, shortens limits, makes room.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use metrics::Counter;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    base::{
        error::{ConfigError, NoTimer},
        time::{KeepsTime, now},
    },
    conn::{
        CloseReason,
        refusals::{Refusals, spared},
        strain::Strain,
    },
    middleware::pressure::{
        Thresholds,
        measure::{Readings, Sampler, Sources},
        registry::Registry,
    },
};

/// What all clones of a layer and all its connections have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) readings: Arc<Readings>,
    pub(super) registry: Registry,
    pub(super) dry_run: AtomicBool,
    sources: Sources,
    shrink_to: f32,
    reclaim: usize,
    every: Duration,
    refusals: Refusals,
    spared_refusals: Refusals,
    spared_idle: Counter,
    keeps_time: KeepsTime,
    /// Somebody measures.
    going: AtomicBool,
    /// Dropped with this: then there is nothing left to measure for.
    end: watch::Sender<()>,
}

impl Shared {
    pub(super) fn new(thresholds: Thresholds) -> Result<Arc<Self>, ConfigError> {
        let readings = Readings::new(thresholds.check()?);
        let mut spared_refusals = Refusals::new(CloseReason::Pressure);
        spared_refusals.dry_run(true);
        Ok(Arc::new(Self {
            sources: Sources::open(&thresholds, &readings)?,
            readings: Arc::new(readings),
            registry: Registry::new(),
            dry_run: AtomicBool::new(false),
            shrink_to: thresholds.shrink_to,
            reclaim: thresholds.reclaim,
            every: thresholds.every,
            refusals: Refusals::new(CloseReason::Pressure),
            spared_refusals,
            spared_idle: spared(CloseReason::Reclaimed),
            keeps_time: KeepsTime::default(),
            going: AtomicBool::new(false),
            end: watch::Sender::new(()),
        }))
    }

    /// Whether there is anything to measure.
    pub(super) fn measures(&self) -> bool {
        !self.readings.is_empty()
    }

    pub(super) fn check_time(&self) -> Result<(), NoTimer> {
        if self.measures() {
            self.keeps_time.check()?;
        }
        Ok(())
    }

    /// Counts a connection that there is not enough for; `true` if it is to be refused.
    pub(super) fn refuse(&self) -> bool {
        self.readings
            .refused
            .fetch_add(1, Relaxed);
        if self.dry_run.load(Relaxed) {
            self.spared_refusals.refuse()
        } else {
            self.refusals.refuse()
        }
    }

    /// One tick: tells everybody who has to know what was measured.
    fn act(&self, steps: &mut Steps) {
        let dry_run = self.dry_run.load(Relaxed);
        let level = self.readings.level_of_the_idle();
        let step = steps.follow(level, self.ticks_in(LONGER_AFTER));
        let strain = if dry_run {
            Strain::NONE
        } else {
            let share = f32::from(step) / f32::from(STEPS);
            Strain::taking(share * (1.0 - self.shrink_to))
        };
        for info in self.registry.walk(strain) {
            info.ending.wake();
        }
        if level <= 0.0 || self.reclaim == 0 {
            return;
        }
        let idle_for = self.ticks_in(IDLE_FOR);
        for info in self
            .registry
            .reclaim(idle_for, self.reclaim)
        {
            self.readings
                .reclaimed
                .fetch_add(1, Relaxed);
            if dry_run {
                self.spared_idle.increment(1);
            } else {
                info.ending
                    .tell_to_leave(CloseReason::Reclaimed);
            }
        }
    }

    /// How many ticks it takes for so long to pass.
    fn ticks_in(&self, time: Duration) -> u64 {
        let ticks = time
            .as_nanos()
            .div_ceil(self.every.as_nanos());
        // At most a billion, for a tick of a nanosecond.
        ticks as u64
    }
}

/// Sees to it that somebody measures.
pub(super) fn keep_going(shared: &Arc<Shared>) {
    // A look first: taking it locks the bus.
    if shared.going.load(Relaxed) || shared.going.swap(true, Relaxed) {
        return;
    }
    let (going, end) = (Going(Arc::downgrade(shared)), shared.end.subscribe());
    #[expect(
        clippy::disallowed_methods,
        reason = "one task a layer, which ends with the last of its clones and connections"
    )]
    tokio::spawn(go(going, end));
}

/// Whoever measures; the next connection finds somebody else if it ends early, with its runtime.
struct Going(Weak<Shared>);

impl Drop for Going {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.readings.clear();
            shared.going.store(false, Relaxed);
        }
    }
}

async fn go(going: Going, mut end: watch::Receiver<()>) {
    let (mut sampler, mut steps) = (Sampler::default(), Steps::default());
    let mut due = now();
    loop {
        let next = {
            let Some(shared) = going.0.upgrade() else {
                return;
            };
            let now = now();
            let late = now.saturating_duration_since(due);
            let readings = &shared.readings;
            sampler
                .measure(&shared.sources, readings, now, late)
                .await;
            shared.act(&mut steps);
            next_tick(shared.every)
        };
        due = next;
        tokio::select! {
            biased;
            // Nothing is ever sent: it ends.
            _ = end.changed() => return,
            () = sleep_until(due) => {}
        }
    }
}

fn next_tick(every: Duration) -> Instant {
    now() + every
}

/// The level in steps, which are taken up at once and down slowly, so that what is told does not flap.
#[derive(Debug, Default)]
struct Steps {
    now: u8,
    /// For how many ticks it has been lower, and how high in that time.
    lower_for: u64,
    highest: u8,
}

impl Steps {
    fn follow(&mut self, level: f32, patience: u64) -> u8 {
        let step = (level * f32::from(STEPS)) as u8;
        if step >= self.now {
            (self.now, self.lower_for, self.highest) = (step, 0, 0);
            return step;
        }
        self.lower_for += 1;
        self.highest = self.highest.max(step);
        if self.lower_for >= patience {
            (self.now, self.lower_for, self.highest) = (self.highest, 0, 0);
        }
        self.now
    }
}

/// Coarse, since at each of them those who wait are woken.
const STEPS: u8 = 8;

/// Longer than what wavers at a step.
const LONGER_AFTER: Duration = Duration::from_secs(1);

/// One that has moved more lately is between two requests, and not idle.
const IDLE_FOR: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_go_up_at_once_and_down_when_it_lasts() {
        let mut steps = Steps::default();
        let mut follow = |level| steps.follow(level, 3);

        assert_eq!(
            [0.0, 0.12, 0.13, 0.9, 1.0].map(&mut follow),
            [0, 0, 1, 7, 8]
        );
        assert_eq!(
            [0.5, 0.1, 0.9, 0.1, 0.1, 0.3].map(&mut follow),
            [8, 8, 7, 7, 7, 2]
        );
        assert_eq!([0.2, 0.1, 0.25, 0.1, 0.0].map(&mut follow), [2, 2, 2, 2, 2]);
        assert_eq!([0.0, 0.0].map(&mut follow), [0, 0]);
    }
}
