//! What the server did, as one line of JSON.

use std::collections::BTreeMap;

use serde::Serialize;
use tower_net::Report;

#[derive(Serialize)]
struct Line {
    opened: u64,
    closed: BTreeMap<&'static str, u64>,
    drain: Drain,
}

#[derive(Serialize)]
struct Drain {
    /// Left in time. Which of them were in a call only tonic knows.
    left: u64,
    cut: u64,
    seconds: f64,
}

pub(crate) fn json(report: &Report) -> serde_json::Result<String> {
    let closed = report.closed();
    serde_json::to_string(&Line {
        opened: report.opened(),
        closed: closed
            .map(|(reason, count)| (reason.label(), count))
            .collect(),
        drain: Drain {
            left: report.finished() + report.closed_idle(),
            cut: report.cut(),
            seconds: report.drained_in().as_secs_f64(),
        },
    })
}
