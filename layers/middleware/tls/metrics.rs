use std::fmt;

use metrics::{Counter, Histogram, counter, histogram};
use tokio::time::Instant;

use crate::{base::time::now, middleware::tls::HandshakeFailure};

/// The handles of one layer, made once.
pub(super) struct Metrics {
    full: Counter,
    resumed: Counter,
    abandoned: Counter,
    failed: [Counter; FAILURES],
    seconds: Histogram,
}

impl Metrics {
    /// Of handshakes that clients begin.
    pub(super) fn accepted() -> Self {
        Self::new("tower_net_handshakes_total", "tower_net_handshake_seconds")
    }

    /// Of handshakes that we begin.
    pub(super) fn outgoing() -> Self {
        Self::new(
            "tower_net_outgoing_handshakes_total",
            "tower_net_outgoing_handshake_seconds",
        )
    }

    fn new(total: &'static str, seconds: &'static str) -> Self {
        let outcome = |outcome: &'static str| counter!(total, "outcome" => outcome);
        Self {
            full: outcome("ok_full"),
            resumed: outcome("ok_resumed"),
            abandoned: outcome("abandoned"),
            failed: std::array::from_fn(|at| outcome(HandshakeFailure::ALL[at].label())),
            seconds: histogram!(seconds),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .finish_non_exhaustive()
    }
}

/// One handshake, which has exactly one outcome: dropped without one, it was abandoned.
pub(super) struct Attempt<'a> {
    metrics: &'a Metrics,
    since: Instant,
    open: bool,
}

impl<'a> Attempt<'a> {
    pub(super) fn begin(metrics: &'a Metrics) -> Self {
        Self {
            metrics,
            since: now(),
            open: true,
        }
    }

    pub(super) fn succeeded(mut self, resumed: bool) {
        self.open = false;
        let took = now().saturating_duration_since(self.since);
        self.metrics
            .seconds
            .record(took.as_secs_f64());
        let outcome = if resumed {
            &self.metrics.resumed
        } else {
            &self.metrics.full
        };
        outcome.increment(1);
    }

    pub(super) fn failed(mut self, failure: HandshakeFailure) {
        self.open = false;
        self.metrics.failed[failure as usize].increment(1);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.open {
            self.metrics.abandoned.increment(1);
        }
    }
}

const FAILURES: usize = HandshakeFailure::ALL.len();
