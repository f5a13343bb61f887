//! A gRPC service of tonic, unmodified, behind every guard.
//!
//! ```sh
//! cargo run --package tonic_guarded -- --listen 127.0.0.1:50051 --max-connections 1000 --idle 5m --ping 1m
//! ```
//!
//! `proto/talk.proto` is what it speaks: one call with one answer, and one that is a stream both ways. It drains on
//! SIGTERM and SIGINT: clients are told (GOAWAY) and finish the calls they have, what is left when the time is over is
//! cut; a second signal cuts at once. It ends with a report as one line of JSON, and with 0 if every connection left in
//! time, 1 if some had to be cut, 2 if it could not run. `--help` lists the flags.
//!
//! What the guards know are bytes, and not calls: silence in a stream of calls is silence. With `--ping` shorter than
//! `--idle` a client that is there answers in time, and for one that is not it is as if there were none.

mod flags;
mod report;
mod talk;

use std::{
    convert::Infallible,
    env,
    fmt::Display,
    future::pending,
    io::{self, Write},
    process::ExitCode,
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_rustls::rustls::crypto::ring;
use tonic::transport::Server;
use tower_net::{
    Addr, Incoming, Report,
    error::BoxError,
    guard::Guard,
    io::Io,
    listen::Any,
    tls::{PemFiles, TlsAcceptLayer},
};

use crate::{
    flags::Flags,
    talk::{Talk, TalkServer},
};

#[tokio::main]
async fn main() -> ExitCode {
    match start().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tonic_guarded: {}", with_causes(&*error));
            ExitCode::from(2)
        }
    }
}

async fn start() -> Result<ExitCode, BoxError> {
    let Some(flags) = Flags::parse(env::args().skip(1))? else {
        say(flags::HELP)?;
        return Ok(ExitCode::SUCCESS);
    };
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .init();

    // Before it says where it listens: whoever reads that may send a signal right away.
    let signals = Signals::new()?;
    let listener = Any::bind(&flags.listen)
        .await
        .map_err(|error| format!("cannot listen on {}: {error}", flags.listen))?;
    let guard = Guard::new(flags.guard.clone())?;
    let report = match &flags.tls {
        None => serve(guard.listen(listener), &flags, signals).await?,
        Some((certificate, key)) => {
            let pem = PemFiles::new(certificate, key)
                .provider(ring::default_provider())
                .alpn(["h2"]);
            let tls = TlsAcceptLayer::new(pem.load()?.config()).handshakes(guard.handshakes());
            serve(guard.handshake(tls).listen(listener), &flags, signals).await?
        }
    };
    say(report::json(&report)?)?;
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Serves until a signal comes, and drains.
async fn serve<I: Io>(
    incoming: Incoming<I>,
    flags: &Flags,
    mut signals: Signals,
) -> Result<Report, BoxError> {
    let mut incoming = incoming.drain_for(flags.drain);
    say(match incoming.local_addr()? {
        Addr::Unix(Some(path)) => format!("listening unix {}", path.display()),
        local => format!("listening tcp {local}"),
    })?;

    let (handle, closing) = (incoming.handle(), incoming.closing());
    let on_signals = async {
        signals.next().await;
        // Tonic tells its connections once those that are queued are with it.
        handle.shutdown();
        signals.next().await;
        handle.cut();
        pending::<Infallible>().await
    };
    let serving = async {
        Server::builder()
            .max_concurrent_streams(flags.streams)
            .http2_keepalive_interval(flags.ping)
            .add_service(TalkServer::new(Talk))
            .serve_with_incoming_shutdown(&mut incoming, closing)
            .await?;
        Ok(incoming.report().await?)
    };
    tokio::select! {
        report = serving => report,
        never = on_signals => match never {},
    }
}

/// SIGTERM and SIGINT, one after the other as they come.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// One line on standard output, there at once even if that is a pipe.
fn say(line: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
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
