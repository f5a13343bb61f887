//! slowhttptest: heads, bodies and readers that take for ever. Judged by our own report, and by somebody who visits.

use std::process::Command;

use super::{BOTH, Site, client::Visitor, closed};
use crate::support::tool::output;

/// Aims so many slow clients of a kind at a site: who was closed for `reason`, and everything else that happened.
fn slow(example: &str, flags: &str, tool: &str, path: &str, reason: &str) {
    let site = Site::start(example, flags);
    let visitor = Visitor::of(&site);
    let said = output(
        Command::new("slowhttptest")
            .args(format!("-c {SLOW} -r {SLOW} -l 8 -p 3 {tool} -u").split_whitespace())
            .arg(site.url(path)),
    );
    let visits = visitor.leave();
    assert!(!said.contains("NO"), "not always available: {said}");

    let (report, code) = site.drained();
    assert_eq!(code, 0, "{report}");
    assert_eq!(closed(&report)[reason], SLOW, "{example} {tool}: {report}");
    // Each of which was answered.
    assert!(visits > 0);
}

#[test]
fn slow_heads_are_closed_for_it_and_cost_nobody_else() {
    let deadlines = ["--request 1s", "--head 1s"];
    for (example, deadline) in BOTH.into_iter().zip(deadlines) {
        slow(example, deadline, "-H -i 1 -x 24", "/", "request");
    }
}

#[test]
fn slow_bodies_are_closed_for_it_and_cost_nobody_else() {
    let (tool, path) = ("-B -i 1 -x 24 -s 4096", "/length");
    slow("axum_guarded", "--request 1s", tool, path, "request");
    // Here the handler has the request, and wants its body whole.
    slow("axum_stack", "--handler 1s", tool, path, "handler");
}

#[test]
fn slow_readers_are_closed_for_it_and_cost_nobody_else() {
    let tool = "-X -w 1 -y 2 -n 1 -z 8 -k 1";
    for example in BOTH {
        slow(
            example,
            "--write-stall 1s",
            tool,
            "/bytes/8000000",
            "write_stall",
        );
    }
}

/// Slow clients at once.
const SLOW: u64 = 100;
