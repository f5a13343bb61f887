//! Hyper in an accept loop of one's own, with every guard in front of it.
//!
//! ```sh
//! cargo run --all-features --example hyper_guarded -- --listen 127.0.0.1:3001
//! ```
//!
//! and in another shell:
//!
//! ```sh
//! curl http://127.0.0.1:3001/
//! ```
//!
//! It answers with who the client is, by HTTP/1.1 and HTTP/2. SIGTERM and SIGINT drain, a second one cuts; then it says
//! in a line of JSON what became of every connection. `--help` lists the flags.

#[path = "shell/mod.rs"]
#[allow(dead_code, reason = "each program uses its own part of it")]
mod shell;

use std::{convert::Infallible, env, process::ExitCode, sync::Arc, time::Duration};

use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming as Body},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tower_net::{
    ConnInfo, Incoming, IncomingIo, Report, error::BoxError, guard::Guard, io::Io, listen::Tcp,
    tls::TlsAcceptLayer,
};

use crate::shell::{Signals, flags::Guards, say};

#[tokio::main]
async fn main() -> ExitCode {
    shell::exit("hyper_guarded", run().await)
}

async fn run() -> Result<ExitCode, BoxError> {
    let mut request = Duration::from_secs(30);
    let flags = Guards::parse("web", env::args().skip(1), |value| match value.flag() {
        "--request" => {
            request = value.time()?;
            Ok(true)
        }
        _ => Ok(false),
    })?;
    let Some(flags) = flags else {
        say(format_args!("{HELP}\n{}", shell::flags::HELP))?;
        return Ok(ExitCode::SUCCESS);
    };
    shell::log(flags.log);
    let signals = Signals::new()?;
    let listener = Tcp::bind(flags.listen_or("127.0.0.1:3001")?).await?;

    let guard = Guard::new(flags.guard)?;
    let tally = guard.tally();
    let report = match flags.tls {
        None => serve(guard.listen(listener), request, flags.drain, signals).await?,
        Some(tls) => {
            let config = tls
                .alpn_or(&["h2", "http/1.1"])
                .config()?;
            let tls = TlsAcceptLayer::new(config).handshakes(guard.handshakes());
            let incoming = guard.handshake(tls).listen(listener);
            serve(incoming, request, flags.drain, signals).await?
        }
    };
    shell::tell(&report, &tally)
}

async fn serve<I: Io>(
    incoming: Incoming<I>,
    request: Duration,
    drain: Duration,
    signals: Signals,
) -> Result<Report, BoxError> {
    let mut incoming = incoming
        .request_deadline(request)?
        .drain_for(drain);
    say(format_args!("listening tcp {}", incoming.local_addr()?))?;
    let handle = incoming.handle();
    let accepting = async {
        while let Some(conn) = incoming.accept().await {
            #[expect(
                clippy::disallowed_methods,
                reason = "a task of hyper's for each connection, which the stack behind it knows and ends"
            )]
            tokio::spawn(speak(conn));
        }
        incoming.report().await
    };
    tokio::select! {
        report = accepting => Ok(report?),
        never = signals.drain(handle) => match never {},
    }
}

/// One connection, until it ends, or is told to leave and idle.
async fn speak<I: Io>(conn: IncomingIo<I>) {
    let info = Arc::clone(conn.info());
    let service = service_fn(|request| answer(Arc::clone(&info), request));
    let hyper = auto::Builder::new(TokioExecutor::new());
    let serving = hyper.serve_connection_with_upgrades(TokioIo::new(conn), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        _drain = info.told_to_leave() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection failed");
    }
}

async fn answer(
    info: Arc<ConnInfo>,
    request: Request<Body>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let said = format!("{} {:?}\n", info.peer(), request.version());
    Ok(Response::new(Full::from(said)))
}

const HELP: &str = "\
A hyper loop behind every guard.

  --listen ADDR          HOST:PORT                                         [127.0.0.1:3001]
  --request TIME         from a request's first byte to its answer's first [30s]";
