//! A server in a process of its own: this test binary once more, told by its environment to serve.
//!
//! For whatever is a property of a process: its memory, its descriptors, its log. Parent and child talk in
//! lines: a command to the child's standard input, its answer, marked, on its standard output.

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io::{self, BufRead, BufReader, Write},
    net::SocketAddr,
    process::{self, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::runtime;
use tower_net::{Report, Server, ServerHandle, listen::Tcp, meter::Tally, open_descriptors};

use crate::{
    descriptors, drain, frames, kernel, multiplexed, pressure, slow, soak,
    stack::{STARTED, Settings},
};

/// A server that runs as another process, and ends with this value.
#[derive(Debug)]
pub(crate) struct Child {
    process: process::Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(crate) addr: SocketAddr,
}

/// The numbers of a report, by name.
pub(crate) type Numbers = BTreeMap<String, u64>;

impl Child {
    /// Starts a server with the settings of `role`.
    pub(crate) fn serve(role: &str) -> Self {
        Self::on_threads(role, 1)
    }

    /// On a runtime with so many threads; without any, on a current-thread runtime.
    pub(crate) fn on_threads(role: &str, threads: usize) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child::serves_for_a_test_in_another_process"])
            .args(["--nocapture", "--quiet"])
            .env(ROLE, role)
            .env(THREADS, threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = process.stdin.take().unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let addr = next_answer(&mut answers)
            .parse()
            .unwrap();
        Self {
            process,
            commands,
            answers,
            addr,
        }
    }

    pub(crate) fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        next_answer(&mut self.answers)
    }

    pub(crate) fn number(&mut self, command: &str) -> u64 {
        self.ask(command).parse().unwrap()
    }

    /// The server's report once it has ended, which somebody has asked for.
    pub(crate) fn report(mut self) -> Numbers {
        let numbers: Numbers = self
            .ask("report")
            .split(' ')
            .map(|pair| {
                let (name, number) = pair.split_once('=').unwrap();
                (name.to_owned(), number.parse().unwrap())
            })
            .collect();
        let closed: u64 = numbers
            .iter()
            .filter(|(name, _)| name.starts_with("closed."))
            .map(|(_, count)| count)
            .sum();
        assert_eq!(numbers["opened"], closed + numbers["stuck"], "{numbers:?}");
        numbers
    }

    /// Drains, and waits for that.
    pub(crate) fn drained(mut self) -> Numbers {
        self.ask("shutdown");
        self.report()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.process.kill();
        let _status = self.process.wait();
    }
}

fn next_answer(answers: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        let read = answers.read_line(&mut line).unwrap();
        assert!(read > 0, "the child has ended");
        // The test harness writes there as well, and not always whole lines.
        if let Some((_, answer)) = line.trim_end().split_once(MARK) {
            return answer.to_owned();
        }
    }
}

fn settings_of(role: &str) -> Settings {
    match role {
        "descriptors" | "nearly" => descriptors::settings(),
        "drain" => drain::settings(),
        "frames" => frames::settings(),
        "multiplexed" => multiplexed::settings(),
        "pressed" => pressure::settings(true),
        "unpressed" => pressure::settings(false),
        "slow" => slow::settings(),
        "soak" => soak::settings(),
        _ => panic!("no role {role}"),
    }
}

#[test]
fn serves_for_a_test_in_another_process() {
    let Ok(role) = env::var(ROLE) else { return };
    let threads = env::var(THREADS)
        .unwrap()
        .parse()
        .unwrap();
    let mut runtime = match threads {
        0 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime
        .worker_threads(threads.max(1))
        .enable_all()
        .build();
    // What the child itself holds, so that it begins near its limit.
    let mut held = Vec::new();
    match role.as_str() {
        "descriptors" | "pressed" | "unpressed" => {}
        "nearly" => {
            held.extend((0..100).map(|_| File::open("/dev/null").unwrap()));
            kernel::leave_room_for(10);
        }
        // As many systems have it; the server is to raise it.
        _ => kernel::limit_descriptors(256),
    }
    let log = Log::default();
    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    let watched = matches!(
        role.as_str(),
        "descriptors" | "nearly" | "pressed" | "unpressed"
    );
    if watched {
        // The recorder keeps every value it is given: not for the roles whose memory is watched.
        recorder.install().unwrap();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
    }
    runtime.unwrap().block_on(async {
        let settings = settings_of(&role);
        let (drain, backoff) = (settings.drain, settings.backoff.clone());
        let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stack = settings.stack();
        let mut serve = Server::new(listener)
            .serve(stack.service)
            .drain_for(drain)
            .backoff(backoff);
        if watched {
            serve = serve.keep_descriptor_limit();
        }
        let (ended, report) = mpsc::channel();
        let desk = Desk {
            tally: stack.tally,
            handle: serve.handle(),
            log,
            metrics,
            report,
        };
        say(&addr.to_string());
        let desk = thread::spawn(move || desk.answer_until_the_parent_has_gone());
        ended
            .send(serve.await.unwrap())
            .unwrap();
        // Keeps the report until it was asked for.
        tokio::task::spawn_blocking(|| desk.join().unwrap())
            .await
            .unwrap();
    });
}

/// Where the parent's commands come in.
struct Desk {
    tally: Tally,
    handle: ServerHandle,
    log: Log,
    metrics: Snapshotter,
    report: mpsc::Receiver<Report>,
}

impl Desk {
    fn answer_until_the_parent_has_gone(self) {
        for command in io::stdin().lines() {
            say(&self.answer(&command.unwrap()));
        }
        self.handle.cut();
    }

    fn answer(&self, command: &str) -> String {
        match command {
            "memory" => kernel::own_memory().to_string(),
            "descriptors" => open_descriptors().unwrap().to_string(),
            "descriptor limit" => kernel::descriptor_limit().to_string(),
            "opened" => self
                .tally
                .snapshot()
                .opened()
                .to_string(),
            "read" => self.tally.snapshot().read().to_string(),
            "active" => self
                .tally
                .snapshot()
                .active()
                .to_string(),
            "started" => STARTED
                .load(std::sync::atomic::Ordering::Relaxed)
                .to_string(),
            "accept errors" => {
                let [errors] = self.metrics(["tower_net_accept_errors_total"]);
                errors.to_string()
            }
            "refused" => {
                let [refused] = self.metrics(["tower_net_refused_total"]);
                refused.to_string()
            }
            "pressure" => {
                let [level] = self.metrics(["tower_net_pressure"]);
                level.to_string()
            }
            "descriptor gauges" => {
                let names = ["tower_net_open_descriptors", "tower_net_descriptor_limit"];
                let [open, limit] = self.metrics(names);
                format!("{open} of {limit}")
            }
            "shutdown" => {
                self.handle.shutdown();
                DONE.to_owned()
            }
            "cut" => {
                self.handle.cut();
                DONE.to_owned()
            }
            "report" => numbers(&self.report.recv().unwrap()),
            "hog" => {
                thread::spawn(|| {
                    let mut held = Vec::new();
                    loop {
                        held.extend(File::open("/dev/null"));
                    }
                });
                DONE.to_owned()
            }
            _ => match command.split_once(": ") {
                Some(("room", more)) => {
                    kernel::leave_room_for(more.parse().unwrap());
                    DONE.to_owned()
                }
                Some(("warnings", of)) => self.log.warnings(of).to_string(),
                _ => panic!("no command {command}"),
            },
        }
    }

    /// The sum under each name, since any were last asked for.
    fn metrics<const N: usize>(&self, names: [&str; N]) -> [u64; N] {
        let metrics = self.metrics.snapshot().into_vec();
        names.map(|name| {
            metrics
                .iter()
                .filter(|(key, ..)| key.key().name() == name)
                .map(|(.., value)| match value {
                    DebugValue::Counter(count) => *count,
                    DebugValue::Gauge(value) => value.into_inner() as u64,
                    DebugValue::Histogram(_) => 0,
                })
                .sum()
        })
    }
}

fn numbers(report: &Report) -> String {
    let mut numbers = vec![
        format!("opened={}", report.opened()),
        format!("finished={}", report.finished()),
        format!("idle={}", report.closed_idle()),
        format!("cut={}", report.cut()),
        format!("stuck={}", report.stuck()),
        format!("millis={}", report.drained_in().as_millis()),
    ];
    for (reason, count) in report.closed() {
        numbers.push(format!("closed.{reason}={count}"));
    }
    for (kind, count) in report.accept_errors() {
        numbers.push(format!("errors.{kind}={count}"));
    }
    numbers.join(" ")
}

fn say(answer: &str) {
    let mut out = io::stdout().lock();
    writeln!(out, "{MARK}{answer}").unwrap();
    out.flush().unwrap();
}

/// The log of this process.
#[derive(Debug, Clone, Default)]
struct Log {
    text: Arc<Mutex<Vec<u8>>>,
}

impl Log {
    fn warnings(&self, of: &str) -> usize {
        let text = self.text.lock().unwrap();
        let text = String::from_utf8_lossy(&text);
        text.lines()
            .filter(|line| line.contains("WARN") && line.contains(of))
            .count()
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.text.lock().unwrap().extend(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const ROLE: &str = "TOWER_NET_WIRE_ROLE";
const THREADS: &str = "TOWER_NET_WIRE_THREADS";

const DONE: &str = "done";

/// What every answer begins with.
const MARK: &str = "answer: ";
