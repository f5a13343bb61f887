use std::fmt;

use metrics::{Counter, counter};

/// The handles of one service, made once.
pub(super) struct Metrics {
    pub(super) connected: Counter,
    pub(super) failed: Counter,
    pub(super) late: Counter,
    pub(super) spliced: Counter,
    pub(super) copied: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let outcome = |outcome| counter!("tower_net_forward_connects_total", "outcome" => outcome);
        let by = |by| counter!("tower_net_forwarded_bytes_total", "by" => by);
        Self {
            connected: outcome("ok"),
            failed: outcome("failed"),
            late: outcome("timeout"),
            spliced: by("splice"),
            copied: by("copy"),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .finish_non_exhaustive()
    }
}
