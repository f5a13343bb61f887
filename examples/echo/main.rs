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
#[path = "../shell/mod.rs"]
#[allow(dead_code, reason = "each program uses its own part of it")]
mod shell;
mod whoami;

use std::{env, process::ExitCode};

use bytes::Bytes;
use memchr::memmem;
use tokio::{runtime::Builder, time::sleep};
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
    meter::Tally,
    throttle::{Rate, Rates, ThrottleLayer},
    tls::TlsAcceptLayer,
};

use crate::{
    flags::{Codec, Faults, Flags},
    shell::{Signals, flags::HELP, say},
};

fn main() -> ExitCode {
    shell::exit("echo", start())
}

fn start() -> Result<ExitCode, BoxError> {
    let Some(flags) = Flags::parse(env::args().skip(1))? else {
        say(format_args!(
            "{}\n{HELP}\n{}",
            flags::HELP,
            flags::MORE_HELP
        ))?;
        return Ok(ExitCode::SUCCESS);
    };
    shell::log(flags.guards.log);
    let (report, tally) = match flags.codec {
        Codec::Length => run(LengthDelimited::max_frame(flags.max_frame), flags),
        Codec::Line => run(Delimited::lines(flags.max_frame), flags),
    }?;
    shell::tell(&report, &tally)
}

/// The stack, from the socket at the top to the handler at the bottom.
fn run<C>(codec: C, mut flags: Flags) -> Result<(Report, Tally), BoxError>
where
    C: Decoder<Item = Bytes, Error = CodecError> + Encoder<Bytes, Error = CodecError>,
    C: Clone + Send + 'static,
{
    let guard = Guard::new(flags.guards.guard.clone())?;
    let throttle = flags
        .throttle
        .map(throttle)
        .transpose()?;
    let throttle = throttle.map(|layer| layer.dry_run(flags.guards.dry_run));
    let frames = FrameLayer::with_framing(codec, flags.framing.clone())?;
    let (whoami, faults) = (flags.whoami, flags.faults.clone());

    let requests = ServiceBuilder::new()
        .option_layer(throttle)
        .layer(frames)
        .service_fn(move |request: Request<Bytes>| answer(request, whoami, faults.clone()));

    let tally = guard.tally();
    let report = match flags.guards.tls.take() {
        None => start_runtime(guard.layer(requests), flags),
        Some(tls) => {
            let tls = TlsAcceptLayer::new(tls.config()?).handshakes(guard.handshakes());
            start_runtime(guard.handshake(tls).layer(requests), flags)
        }
    };
    Ok((report?, tally))
}

/// So many bytes a second of each connection, each way.
fn throttle(bytes: u64) -> Result<ThrottleLayer, ConfigError> {
    let rate = Rate::per_second(bytes);
    ThrottleLayer::new(Rates::new().receive(rate).send(rate))
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
    let signals = Signals::new()?;

    let mut server = Server::from_listeners([]);
    for addr in flags.guards.listen {
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
        .drain_for(flags.guards.drain);
    let handle = serving.handle();
    tokio::select! {
        report = serving.into_future() => Ok(report?),
        never = signals.drain(handle) => match never {},
    }
}
