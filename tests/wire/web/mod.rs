//! The web examples from outside: an axum application and a hyper loop, behind us, and what clients do to them.

mod client;
mod drain;
mod hostile;
mod one_port;
mod proxy;
mod slow;
mod tools;
mod upgrade;

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::Value;
use tokio_rustls::rustls::ClientConfig;

use crate::support::{
    pki::{Authority, Folder},
    process::{Listening, Process},
};

/// A running example.
struct Site {
    process: Process,
    at: Listening,
    tls: Option<Trust>,
}

/// What clients of TLS need.
struct Trust {
    config: ClientConfig,
    file: PathBuf,
    _folder: Folder,
}

impl Site {
    fn start(example: &str, flags: &str) -> Self {
        let mut process = Process::start(example, &format!("--listen 127.0.0.1:0 {flags}"));
        let at = process.listening();
        Self {
            process,
            at,
            tls: None,
        }
    }

    fn encrypted(example: &str, flags: &str) -> Self {
        let authority = Authority::new("town hall");
        let folder = Folder::new();
        let (chain, key) = authority
            .server(&["localhost"])
            .write(&folder, "site");
        let file = folder.write("ca.pem", &authority.pem());
        let flags = format!("--tls {},{} {flags}", chain.display(), key.display());
        Self {
            tls: Some(Trust {
                config: authority.trusting(),
                file,
                _folder: folder,
            }),
            ..Self::start(example, &flags)
        }
    }

    fn port(&self) -> u16 {
        match &self.at {
            Listening::Tcp(addr) => addr.port(),
            Listening::Unix(path) => panic!("not on TCP: {}", path.display()),
        }
    }

    fn url(&self, path: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://localhost:{}{path}", self.port())
    }

    /// Drains it: its report, in which what it opened has been closed, and what it exits with.
    fn drained(self) -> (Value, i32) {
        self.process.terminate();
        let (report, code) = self.process.report();
        let closed: u64 = closed(&report).values().sum();
        assert_eq!(report["opened"], closed, "{report}");
        (report, code)
    }
}

/// How many connections ended for which reason.
fn closed(report: &Value) -> BTreeMap<String, u64> {
    let closed = report["closed"].as_object().unwrap();
    closed
        .iter()
        .map(|(reason, count)| (reason.clone(), count.as_u64().unwrap()))
        .collect()
}

/// Those under which one application runs, and is to behave the same.
const BOTH: [&str; 2] = ["axum_guarded", "axum_stack"];
