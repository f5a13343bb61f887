use std::{fmt, time::Duration};

use metrics::{Counter, Gauge, Histogram, Label, counter, gauge, histogram};

use super::{
    books::Counts,
    fates::{Gone, Outcome},
};

/// The pool's figures for the outside, through handles made once.
pub(super) struct Metrics {
    idle: Gauge,
    in_use: Gauge,
    connecting: Gauge,
    waiting: Gauge,
    wait: Histogram,
    gets: Box<[Counter]>,
    connects: Box<[Counter]>,
    closed: Box<[Counter]>,
}

/// How a dial ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialled {
    Ok,
    Failed,
    Elapsed,
    Abandoned,
}

const DIALLED: &[&str] = &["ok", "failed", "elapsed", "abandoned"];

impl Metrics {
    pub(super) fn new(pool: &str) -> Self {
        let labels = [Label::new("pool", pool.to_owned())];
        let with = |name, value| [labels[0].clone(), Label::new(name, value)];
        let state = |state| {
            let labels = with("state", state);
            gauge!("tower_net_pool_connections", labels.iter())
        };
        let each = |all: &'static [&'static str], make: &dyn Fn(&'static str) -> Counter| {
            all.iter().copied().map(make).collect()
        };
        Self {
            idle: state("idle"),
            in_use: state("in_use"),
            connecting: state("connecting"),
            waiting: gauge!("tower_net_pool_waiting", labels.iter()),
            wait: histogram!("tower_net_pool_wait_seconds", labels.iter()),
            gets: each(Outcome::LABELS, &|outcome| {
                counter!("tower_net_pool_gets_total", with("outcome", outcome).iter())
            }),
            connects: each(DIALLED, &|outcome| {
                counter!(
                    "tower_net_pool_connects_total",
                    with("outcome", outcome).iter()
                )
            }),
            closed: each(Gone::LABELS, &|reason| {
                counter!("tower_net_pool_closed_total", with("reason", reason).iter())
            }),
        }
    }

    /// What has changed.
    pub(super) fn moved(&self, before: Counts, now: Counts) {
        if before == now {
            return;
        }
        let shift = |gauge: &Gauge, before: usize, now: usize| {
            if before != now {
                gauge.increment(now as f64 - before as f64);
            }
        };
        shift(&self.idle, before.idle, now.idle);
        shift(&self.in_use, before.in_use(), now.in_use());
        shift(&self.connecting, before.dials, now.dials);
        shift(&self.waiting, before.waiting, now.waiting);
    }

    // The same for the changes that are nearly all of them.

    /// One that was idle is in use.
    pub(super) fn taken(&self) {
        self.idle.decrement(1.0);
        self.in_use.increment(1.0);
    }

    /// One that was in use is idle.
    pub(super) fn given_back(&self) {
        self.in_use.decrement(1.0);
        self.idle.increment(1.0);
    }

    /// One more waits.
    pub(super) fn waits(&self) {
        self.waiting.increment(1.0);
    }

    /// One that was in use is somebody's who has waited.
    pub(super) fn handed(&self) {
        self.waiting.decrement(1.0);
    }

    /// A get that did not have to wait.
    pub(super) fn got_at_once(&self) {
        self.gets[Outcome::Idle as usize].increment(1);
    }

    pub(super) fn got(&self, outcome: Outcome, waited: Duration) {
        self.gets[outcome as usize].increment(1);
        self.wait.record(waited);
    }

    pub(super) fn dialled(&self, outcome: Dialled) {
        self.connects[outcome as usize].increment(1);
    }

    pub(super) fn closed(&self, gone: Gone) {
        self.closed[gone as usize].increment(1);
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .finish_non_exhaustive()
    }
}
