use std::{fmt, time::Duration};

use metrics::{Counter, Gauge, Histogram, Label, counter, gauge, histogram};

use crate::conn::{CloseReason, refusals::Spared};

/// What framed connections report, through handles made once.
pub(super) struct Metrics {
    ok: Counter,
    failed: Counter,
    ok_seconds: Histogram,
    failed_seconds: Histogram,
    pub(super) queued: Gauge,
    /// Where requests have ids.
    by_id: Option<ById>,
    /// In a dry run, what is late.
    spared: Option<Spared>,
}

/// What becomes of requests that were not begun, or not finished.
struct ById {
    refused: Counter,
    cancelled: Counter,
}

impl Metrics {
    pub(super) fn new(service: &str, dry_run: bool, by_id: bool) -> Self {
        let labels = |outcome: &'static str| {
            vec![
                Label::new("service", service.to_owned()),
                Label::new("outcome", outcome),
            ]
        };
        let service = vec![Label::new("service", service.to_owned())];
        Self {
            ok: counter!("tower_net_requests_total", labels("ok")),
            failed: counter!("tower_net_requests_total", labels("failed")),
            ok_seconds: histogram!("tower_net_request_seconds", labels("ok")),
            failed_seconds: histogram!("tower_net_request_seconds", labels("failed")),
            by_id: by_id.then(|| ById {
                refused: counter!("tower_net_requests_total", labels("refused")),
                cancelled: counter!("tower_net_requests_total", labels("cancelled")),
            }),
            queued: gauge!("tower_net_write_queue_bytes", service),
            spared: dry_run.then(|| {
                Spared::new([
                    CloseReason::Handler,
                    CloseReason::Reply,
                    CloseReason::Request,
                ])
            }),
        }
    }

    /// Adds what is late and spared.
    pub(super) fn spared(&self, which: CloseReason, times: u64) {
        if let Some(spared) = &self.spared {
            spared.count(which, times);
        }
    }

    /// Adds requests that were answered at once: nobody read the clock for them.
    pub(super) fn at_once(&self, requests: u32) {
        self.ok.increment(requests.into());
        self.ok_seconds
            .record_many(0.0, requests as usize);
    }

    /// Adds a request that failed at once.
    pub(super) fn failed_at_once(&self) {
        self.failed.increment(1);
        self.failed_seconds.record(0.0);
    }

    /// Adds a request that was not begun.
    pub(super) fn refused(&self) {
        if let Some(by_id) = &self.by_id {
            by_id.refused.increment(1);
        }
    }

    /// Adds a request that nobody waits for any more.
    pub(super) fn cancelled(&self) {
        if let Some(by_id) = &self.by_id {
            by_id.cancelled.increment(1);
        }
    }

    /// Adds requests whose handlers were dropped: too late, or with nobody left to answer.
    pub(super) fn dropped(&self, requests: usize) {
        self.failed.increment(requests as u64);
    }

    /// Adds a request that was waited for.
    pub(super) fn waited(&self, ok: bool, took: Duration) {
        let (count, seconds) = if ok {
            (&self.ok, &self.ok_seconds)
        } else {
            (&self.failed, &self.failed_seconds)
        };
        count.increment(1);
        seconds.record(took.as_secs_f64());
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .finish_non_exhaustive()
    }
}
