//! What the programs here have around their service: flags, signals, and what they say in the end.

pub(crate) mod flags;
mod report;
pub(crate) mod tls;
pub(crate) mod value;

use std::{
    convert::Infallible,
    fmt::Display,
    future::pending,
    io::{self, Write},
    process::ExitCode,
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tower_net::{Report, ServerHandle, error::BoxError, meter::Tally};
use tracing::level_filters::LevelFilter;

/// The end of `program`: 2 if it could not run, and why on one line.
pub(crate) fn exit(program: &str, ended: Result<ExitCode, BoxError>) -> ExitCode {
    ended.unwrap_or_else(|error| {
        eprintln!("{program}: {}", with_causes(&*error));
        ExitCode::from(2)
    })
}

/// Has the log on standard error.
pub(crate) fn log(level: LevelFilter) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .init();
}

/// Says what the server did, as one line of JSON: 0 if every connection left in time, 1 if some had to be cut.
pub(crate) fn tell(report: &Report, tally: &Tally) -> Result<ExitCode, BoxError> {
    say(report::json(report, &tally.snapshot())?)?;
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// One line on standard output, there at once even if that is a pipe.
pub(crate) fn say(line: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// SIGTERM and SIGINT, one after the other as they come.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they end nothing by themselves. To be had before the first line is out: whoever reads it may send one
    /// right away.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Drains on the first, cuts on the second.
    pub(crate) async fn drain(mut self, handle: ServerHandle) -> Infallible {
        self.next().await;
        handle.shutdown();
        self.next().await;
        handle.cut();
        pending().await
    }
}

/// An error and what caused it, on one line.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line += &format!(": {error}");
        cause = error.source();
    }
    line
}
