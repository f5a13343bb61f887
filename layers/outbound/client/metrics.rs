use std::{fmt, time::Duration};

use metrics::{Counter, Gauge, Histogram, Label, counter, gauge, histogram};

use crate::outbound::client::{CallCause, CallError};

/// What a client reports, through handles made once.
pub(super) struct Metrics {
    calls: [(Counter, Histogram); OUTCOMES.len()],
    pub(super) in_flight: Gauge,
    pub(super) connections: Gauge,
    pub(super) connected: Counter,
    pub(super) connect_failed: Counter,
    pub(super) reconnects: Counter,
    retried: Counter,
    not_retried: Counter,
    pub(super) late: Counter,
}

impl Metrics {
    pub(super) fn new(service: &str) -> Self {
        let service = Label::new("service", service.to_owned());
        let with = |name: &'static str, value: &'static str| {
            vec![service.clone(), Label::new(name, value)]
        };
        let alone = || vec![service.clone()];
        Self {
            calls: OUTCOMES.map(|outcome| {
                (
                    counter!("tower_net_client_calls_total", with("outcome", outcome)),
                    histogram!("tower_net_client_call_seconds", with("outcome", outcome)),
                )
            }),
            in_flight: gauge!("tower_net_client_in_flight", alone()),
            connections: gauge!("tower_net_client_connections", alone()),
            connected: counter!("tower_net_client_connects_total", with("outcome", "ok")),
            connect_failed: counter!("tower_net_client_connects_total", with("outcome", "failed")),
            reconnects: counter!("tower_net_client_reconnects_total", alone()),
            retried: counter!("tower_net_client_retries_total", with("outcome", "retried")),
            not_retried: counter!(
                "tower_net_client_retries_total",
                with("outcome", "no_budget")
            ),
            late: counter!("tower_net_client_late_replies_total", alone()),
        }
    }

    pub(super) fn answered(&self, took: Duration) {
        self.count(OK, took);
    }

    pub(super) fn failed(&self, error: &CallError, took: Duration) {
        let outcome = match error.cause() {
            CallCause::Failed(failure) if failure.was_never_started() => REFUSED,
            CallCause::Failed(_) => FAILED,
            CallCause::Spent(_) => SPENT,
            CallCause::Connect(_) | CallCause::NoTimer(_) => CONNECT,
            CallCause::Closed(_) => CLOSED,
            CallCause::Encode(_) => INVALID,
        };
        self.count(outcome, took);
    }

    /// Whether a call could be made again.
    pub(super) fn retry(&self, may: bool) {
        let counter = if may {
            &self.retried
        } else {
            &self.not_retried
        };
        counter.increment(1);
    }

    pub(super) fn cancelled(&self, took: Duration) {
        self.count(CANCELLED, took);
    }

    fn count(&self, outcome: usize, took: Duration) {
        let (calls, seconds) = &self.calls[outcome];
        calls.increment(1);
        seconds.record(took.as_secs_f64());
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .finish_non_exhaustive()
    }
}

const OUTCOMES: [&str; 8] = [
    "ok",
    "failed",
    "refused",
    "spent",
    "cancelled",
    "connect",
    "closed",
    "invalid",
];
const OK: usize = 0;
const FAILED: usize = 1;
const REFUSED: usize = 2;
const SPENT: usize = 3;
const CANCELLED: usize = 4;
const CONNECT: usize = 5;
const CLOSED: usize = 6;
const INVALID: usize = 7;
