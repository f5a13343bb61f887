//! An echo server with every guard as a flag: the one to aim slow, silent and greedy clients at.
//!
//! In one shell:
//!
//! ```sh
//! cargo run --all-features --example echo -- --codec line --first-byte 10s --idle 20s --log info
//! ```
//!
//! and in another:
//!
//! ```sh
//! nc 127.0.0.1 7000
//! ```
//!
//! Without `--codec line` it echoes frames with a big-endian `u32` length in front. It drains on SIGTERM and
//! SIGINT, a second one cuts. It ends with a report as one line of JSON, and with 0 if every connection left
//! in time, 1 if some had to be cut, 2 if it could not run. `--help` lists the flags.

mod flags;
mod report;
mod whoami;

use std::{
    convert::Infallible,
    env,
    fmt::Display,
    future::pending,
    io::{self, Write},
    process::ExitCode,
};

use bytes::Bytes;
use memchr::memmem;
use tokio::{
    runtime::Builder,
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tokio_rustls::rustls::crypto::ring;
use tokio_util::{
    codec::{Decoder, Encoder},
    net::Listener,
};
use tower::{Layer, Service, ServiceBuilder};
use tower_net::{
    Addr, Conn, Report, Server,
    error::{BoxError, ConfigError},
    frame::{CodecError, Delimited, FrameLayer, LengthDelimited, Request},
    guard::Guard,
    listen::{Any, AnyIo},
    meter::Snapshot,
    throttle::{Rate, Rates, ThrottleLayer},
    tls::{PemFiles, TlsAcceptLayer, TlsConfig},
};

use crate::flags::{Codec, Faults, Flags, Tls};

fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("echo: {}", with_causes(&*error));
            ExitCode::from(2)
        }
    }
}

fn start() -> Result<ExitCode, BoxError> {
    let Some(flags) = Flags::parse(env::args().skip(1))? else {
        say(flags::HELP)?;
        return Ok(ExitCode::SUCCESS);
    };
    tracing_subscriber::fmt()
        .with_max_level(flags.log)
        .with_writer(io::stderr)
        .init();

    let (report, bytes) = match flags.codec {
        Codec::Length => run(LengthDelimited::max_frame(flags.max_frame), flags),
        Codec::Line => run(Delimited::lines(flags.max_frame), flags),
    }?;
    say(report::json(&report, &bytes)?)?;
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The stack, from the socket at the top to the handler at the bottom.
fn run<C>(codec: C, flags: Flags) -> Result<(Report, Snapshot), BoxError>
where
    C: Decoder<Item = Bytes, Error = CodecError> + Encoder<Bytes, Error = CodecError>,
    C: Clone + Send + 'static,
{
    let guard = Guard::new(flags.guard.clone())?;
    let throttle = flags
        .throttle
        .map(throttle)
        .transpose()?;
    let throttle = throttle.map(|layer| layer.dry_run(flags.dry_run));
    let frames = FrameLayer::with_framing(codec, flags.framing.clone())?;
    let (whoami, faults) = (flags.whoami, flags.faults.clone());

    let requests = ServiceBuilder::new()
        .option_layer(throttle)
        .layer(frames)
        .service_fn(move |request: Request<Bytes>| answer(request, whoami, faults.clone()));

    let tally = guard.tally();
    let report = match &flags.tls {
        None => start_runtime(guard.layer(requests), flags),
        Some(files) => {
            let tls = TlsAcceptLayer::new(config(files)?).handshakes(guard.handshakes());
            start_runtime(guard.handshake(tls).layer(requests), flags)
        }
    };
    Ok((report?, tally.snapshot()))
}

/// So many bytes a second of each connection, each way.
fn throttle(bytes: u64) -> Result<ThrottleLayer, ConfigError> {
    let rate = Rate::per_second(bytes);
    ThrottleLayer::new(Rates::new().receive(rate).send(rate))
}

fn config(files: &Tls) -> Result<TlsConfig, BoxError> {
    let mut pem = PemFiles::new(&files.certificate, &files.key)
        .provider(ring::default_provider())
        .alpn(&files.alpn);
    if let Some(authorities) = &files.client_ca {
        pem = pem.require_client_certificates(authorities);
    }
    Ok(pem.load()?.config())
}

fn start_runtime<S>(stack: S, flags: Flags) -> Result<Report, BoxError>
where
    S: Service<Conn<AnyIo>, Response = (), Error = BoxError> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let mut builder = match flags.threads {
        Some(1) => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if let Some(threads) = flags.threads {
        builder.worker_threads(threads);
    }
    let runtime = builder.enable_all().build()?;
    let report = runtime.block_on(serve(stack, flags));
    // Whatever has not ended by now never will.
    runtime.shutdown_background();
    report
}

/// Answers a frame with itself or with who sent it, unless the flags ask for trouble.
async fn answer(
    request: Request<Bytes>,
    whoami: bool,
    faults: Faults,
) -> Result<Bytes, serde_json::Error> {
    let frame = request.message();
    let has = |word: &Bytes| memmem::find(frame, word).is_some();
    if faults
        .panic_word
        .as_ref()
        .is_some_and(has)
    {
        panic!("the frame has the word to panic on");
    }
    if let Some((_, delay)) = faults
        .slow
        .filter(|(word, _)| has(word))
    {
        sleep(delay).await;
    }
    if whoami {
        return whoami::json(request.conn());
    }
    Ok(request.into_message())
}

/// Listens, serves until a signal comes, and drains.
async fn serve<S>(stack: S, flags: Flags) -> Result<Report, BoxError>
where
    S: Service<Conn<AnyIo>, Response = (), Error = BoxError> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    // Before the first line is out: whoever reads it may send a signal right away.
    let mut signals = Signals::new()?;

    let mut server = Server::from_listeners([]);
    for addr in flags.listen {
        let listener = Any::bind_with(&addr, &flags.tcp, &flags.unix)
            .await
            .map_err(|error| format!("cannot listen on {addr}: {error}"))?;
        let name = match listener.local_addr()? {
            Addr::Unix(Some(path)) => format!("unix {}", path.display()),
            local => format!("tcp {local}"),
        };
        say(format_args!("listening {name}"))?;
        server = server.named(name, listener);
    }

    let serving = server
        .serve(stack)
        .drain_for(flags.drain);
    let handle = serving.handle();
    let on_signals = async {
        signals.next().await;
        handle.shutdown();
        signals.next().await;
        handle.cut();
        pending::<Infallible>().await
    };
    tokio::select! {
        report = serving.into_future() => Ok(report?),
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
