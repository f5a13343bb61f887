//! The examples as processes: spawned, spoken to, told to leave, and asked what they did.

use std::{
    env,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a test waits for what must happen. Only a failure ever takes this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running example; killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Its standard output, line by line; disconnected at the end.
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

/// Where a process listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listening {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Process {
    /// Starts an example with arguments separated by spaces.
    pub fn start(example: &str, args: &str) -> Self {
        Self::run(&path_of(example), args)
    }

    /// Starts the program at this path.
    pub fn run(program: &Path, args: &str) -> Self {
        let mut child = Command::new(program)
            .args(args.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut err = child.stderr.take().unwrap();
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in out.lines() {
                // Nobody reads any more once the test is over.
                let _over = sender.send(line.unwrap());
            }
        });
        let errors = thread::spawn(move || {
            let mut text = String::new();
            err.read_to_string(&mut text).unwrap();
            text
        });
        Self {
            child,
            lines,
            errors: Some(errors),
        }
    }

    /// Its number among processes.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next `listening …` line.
    pub fn listening(&mut self) -> Listening {
        let line = self.line().unwrap_or_else(|| {
            let (code, errors) = self.end();
            panic!("ended with {code} before it listened: {errors}")
        });
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["listening", "tcp", addr] => Listening::Tcp(addr.parse().unwrap()),
            ["listening", "unix", path] => Listening::Unix(path.into()),
            _ => panic!("no listening line: {line}"),
        }
    }

    /// The next line of standard output, or `None` at its end.
    pub fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line within {PATIENCE:?}"),
        }
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGINT.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Sends SIGHUP.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// Sends SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end: its report, and what it exits with.
    pub fn report(mut self) -> (Value, i32) {
        let line = self.line();
        let (code, errors) = self.end();
        let line = line.unwrap_or_else(|| panic!("ended with {code} and no report: {errors}"));
        (serde_json::from_str(&line).unwrap(), code)
    }

    /// Waits for its end: what it exits with, and its standard error. What it still prints is a mistake.
    pub fn end(&mut self) -> (i32, String) {
        assert_eq!(self.line(), None);
        let code = self
            .child
            .wait()
            .unwrap()
            .code()
            .unwrap();
        let errors = self.errors.take().unwrap();
        (code, errors.join().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has usually ended by now.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Listening {
    /// A connection to it by TCP, which gives up in the end.
    pub fn tcp(&self) -> TcpStream {
        let Self::Tcp(addr) = self else {
            panic!("not a TCP listener: {self:?}");
        };
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
            .set_read_timeout(Some(PATIENCE))
            .unwrap();
        stream
            .set_write_timeout(Some(PATIENCE))
            .unwrap();
        stream
    }

    /// A connection to it by its path, which gives up in the end.
    pub fn unix(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream
            .set_read_timeout(Some(PATIENCE))
            .unwrap();
        stream
            .set_write_timeout(Some(PATIENCE))
            .unwrap();
        stream
    }

    /// The path of a Unix listener.
    pub fn path(&self) -> &PathBuf {
        match self {
            Self::Unix(path) => path,
            Self::Tcp(addr) => panic!("not a Unix listener: {addr}"),
        }
    }
}

/// Cargo builds the examples of a package before it runs its tests, beside them.
fn path_of(example: &str) -> PathBuf {
    let this = env::current_exe().unwrap();
    let profile = this
        .parent()
        .and_then(|deps| deps.parent())
        .unwrap();
    let path = profile.join("examples").join(example);
    assert!(
        path.exists(),
        "{} is missing: `cargo test` builds it, `cargo test --test` does not",
        path.display(),
    );
    path
}
