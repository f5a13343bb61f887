//! The `echo` example from outside: every flag, over real sockets, in a process of its own.

mod client;
mod drain;
mod flags;
mod guards;
mod identity;
mod limits;
mod replies;

use std::{
    env, fs,
    path::PathBuf,
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::Value;

use crate::support::process::{Listening, Process};

/// Starts the example on a free port.
fn echo(flags: &str) -> (Process, Listening) {
    let mut server = Process::start("echo", &format!("--listen 127.0.0.1:0 {flags}"));
    let at = server.listening();
    (server, at)
}

/// Drains a server from which nobody has to be cut. What it opened it has closed.
fn drained(server: Process) -> Value {
    server.terminate();
    let (report, code) = server.report();
    assert_eq!(code, 0, "{report}");
    let closed = report["closed"].as_object().unwrap();
    let closed: u64 = closed
        .values()
        .filter_map(Value::as_u64)
        .sum();
    assert_eq!(report["opened"], closed, "{report}");
    report
}

/// A path of this test alone.
fn socket_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = env::temp_dir().join(format!("tower-net-echo-{}-{next}", process::id()));
    // Of an earlier process of the same number.
    let _gone = fs::remove_file(&path);
    path
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
