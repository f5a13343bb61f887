use metrics::{Counter, Histogram, Label, counter, histogram};
use tokio::time::Instant;

use crate::{
    base::time::now,
    conn::{CloseReason, refusals::Spared},
};

/// What HTTP connections report, through handles made once.
#[derive(Debug)]
pub(super) struct Metrics {
    ok: Counter,
    failed: Counter,
    ok_seconds: Histogram,
    failed_seconds: Histogram,
    /// In a dry run, what is late.
    spared: Option<Spared>,
}

impl Metrics {
    pub(super) fn new(service: &str, dry_run: bool) -> Self {
        let labels = |outcome: &'static str| {
            vec![
                Label::new("service", service.to_owned()),
                Label::new("outcome", outcome),
            ]
        };
        Self {
            ok: counter!("tower_net_requests_total", labels("ok")),
            failed: counter!("tower_net_requests_total", labels("failed")),
            ok_seconds: histogram!("tower_net_request_seconds", labels("ok")),
            failed_seconds: histogram!("tower_net_request_seconds", labels("failed")),
            spared: dry_run.then(|| Spared::new([CloseReason::Handler, CloseReason::Request])),
        }
    }

    /// A deadline has passed: whether that is only counted, which this does.
    pub(super) fn spares(&self, which: CloseReason) -> bool {
        if let Some(spared) = &self.spared {
            spared.count(which, 1);
        }
        self.spared.is_some()
    }

    /// Adds a request whose response has begun, or that will have none; `since` is when it first had to wait.
    pub(super) fn answered(&self, ok: bool, since: Option<Instant>) {
        let (count, seconds) = if ok {
            (&self.ok, &self.ok_seconds)
        } else {
            (&self.failed, &self.failed_seconds)
        };
        count.increment(1);
        seconds.record(since.map_or(0.0, |since| (now() - since).as_secs_f64()));
    }
}
