//! What limits and deadlines have done, or in a dry run would have.

use std::sync::Arc;

use metrics::{Counter, counter};

use crate::conn::CloseReason;

/// Counts what one limit refuses, or in a dry run would have refused.
#[derive(Debug, Clone)]
pub(crate) struct Refusals {
    refused: Counter,
    spared: Counter,
    dry_run: bool,
}

impl Refusals {
    /// The metrics' handles are made here, once.
    pub(crate) fn new(reason: CloseReason) -> Self {
        Self {
            refused: counter!("tower_net_refused_total", "reason" => reason.label()),
            spared: spared(reason),
            dry_run: false,
        }
    }

    pub(crate) fn dry_run(&mut self, on: bool) {
        self.dry_run = on;
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Counts one; `true` if it is to be refused, `false` if it is only counted.
    pub(crate) fn refuse(&self) -> bool {
        if self.dry_run {
            self.spared.increment(1);
        } else {
            self.refused.increment(1);
        }
        !self.dry_run
    }
}

/// Counts what the deadlines of one layer spare in a dry run, by the reason that it would have ended for.
#[derive(Debug, Clone)]
pub(crate) struct Spared {
    counters: Arc<[(CloseReason, Counter)]>,
}

impl Spared {
    /// The metrics' handles are made here, once.
    pub(crate) fn new<const N: usize>(reasons: [CloseReason; N]) -> Self {
        Self {
            counters: Arc::new(reasons.map(|reason| (reason, spared(reason)))),
        }
    }

    /// Counts so many.
    pub(crate) fn count(&self, which: CloseReason, times: u64) {
        let mut counters = self.counters.iter();
        if let Some((_, counter)) = counters.find(|(reason, _)| *reason == which) {
            counter.increment(times);
        }
    }
}

/// The counter of what a limit or deadline in a dry run has spared.
pub(crate) fn spared(reason: CloseReason) -> Counter {
    counter!("tower_net_dry_run_total", "reason" => reason.label())
}
