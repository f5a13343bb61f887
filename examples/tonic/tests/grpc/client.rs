//! `client.py` as a process.

use std::{
    env,
    ffi::OsString,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use serde_json::Value;

use crate::support::process::PATIENCE;

/// A client with one channel and one call; killed on drop.
pub(crate) struct Client {
    child: Child,
    input: Option<ChildStdin>,
    /// What it tells, line by line.
    told: Receiver<String>,
}

impl Client {
    /// Calls once. `ca` is a file, or `-` for no TLS.
    pub(crate) fn say(to: SocketAddr, ca: &str, text: &str, note: &str) -> Self {
        Self::start(&[&to.to_string(), ca, "say", text, note])
    }

    /// Opens a stream.
    pub(crate) fn chat(to: SocketAddr, ca: &str) -> Self {
        Self::start(&[&to.to_string(), ca, "chat"])
    }

    fn start(args: &[&str]) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/grpc/client.py");
        let mut child = Command::new("python3")
            .arg(script)
            .args(args)
            .env("PYTHONPATH", python_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`python3` is not installed, and these tests speak with its gRPC client");
        let input = child.stdin.take();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, told) = channel();
        thread::spawn(move || {
            for line in out.lines() {
                // Nobody reads any more once the test is over.
                let _over = sender.send(line.unwrap());
            }
        });
        Self { child, input, told }
    }

    /// Sends a line on its stream: what is answered.
    pub(crate) fn ask(&mut self, text: &str) -> Value {
        let input = self.input.as_mut();
        writeln!(input.expect("it has hung up"), "{text}").unwrap();
        self.next("said")["said"].take()
    }

    /// Ends its side of the stream.
    pub(crate) fn hang_up(&mut self) {
        self.input = None;
    }

    /// The next that it tells of this.
    pub(crate) fn next(&mut self, what: &str) -> Value {
        loop {
            let line = self.told.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| {
                panic!(
                    "told nothing of `{what}`; is grpcio there (`.ci/run tools`, or `pip install grpcio`)?"
                )
            });
            let told: Value = serde_json::from_str(&line).unwrap();
            assert!(
                told.get("status").is_none() || what == "status",
                "ended before it told of `{what}`: {told}"
            );
            if told.get(what).is_some() {
                return told;
            }
        }
    }

    /// Waits until its channel is in this state.
    pub(crate) fn wait_for_state(&mut self, state: &str) {
        while self.next("state")["state"] != state {}
    }

    /// Waits for its end: what came of the call.
    pub(crate) fn status(&mut self) -> String {
        let told = self.next("status");
        told["status"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It has usually ended by now.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Where `.ci/run tools` puts what is installed for Python, before where it is looked for anyway.
fn python_path() -> OsString {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .unwrap();
    let mut paths = vec![target.join("ci/python")];
    if let Some(known) = env::var_os("PYTHONPATH") {
        paths.extend(env::split_paths(&known).collect::<Vec<PathBuf>>());
    }
    env::join_paths(paths).unwrap()
}
