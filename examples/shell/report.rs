//! What the server did, as one line of JSON.

use std::collections::BTreeMap;

use serde::Serialize;
use tower_net::{Report, meter::Snapshot};

#[derive(Serialize)]
struct Line {
    opened: u64,
    closed: BTreeMap<&'static str, u64>,
    drain: Drain,
    accept_errors: BTreeMap<&'static str, u64>,
    bytes: Bytes,
    stragglers: Vec<Straggler>,
}

#[derive(Serialize)]
struct Drain {
    finished: u64,
    idle: u64,
    cut: u64,
    seconds: f64,
}

#[derive(Serialize)]
struct Bytes {
    read: u64,
    written: u64,
}

#[derive(Serialize)]
struct Straggler {
    id: u64,
    peer: String,
    phase: &'static str,
    seconds: f64,
}

/// The report of the server, with the bytes that its meter counted.
pub(crate) fn json(report: &Report, bytes: &Snapshot) -> serde_json::Result<String> {
    let closed = report.closed();
    let stragglers = report.stragglers().iter();
    serde_json::to_string(&Line {
        opened: report.opened(),
        closed: closed
            .map(|(reason, count)| (reason.label(), count))
            .collect(),
        drain: Drain {
            finished: report.finished(),
            idle: report.closed_idle(),
            cut: report.cut(),
            seconds: report.drained_in().as_secs_f64(),
        },
        accept_errors: report.accept_errors().collect(),
        bytes: Bytes {
            read: bytes.read(),
            written: bytes.written(),
        },
        stragglers: stragglers
            .map(|one| Straggler {
                id: one.id().get(),
                peer: one.peer().to_string(),
                phase: one.phase(),
                seconds: one.age().as_secs_f64(),
            })
            .collect(),
    })
}
