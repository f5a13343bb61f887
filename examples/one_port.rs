//! One port for HTTPS, HTTP and an RPC of length-prefixed frames, told apart by their first bytes.
//!
//! ```sh
//! cargo run --all-features --example one_port -- --listen 127.0.0.1:3002
//! ```
//!
//! and in another shell:
//!
//! ```sh
//! curl http://127.0.0.1:3002/
//! curl --insecure https://127.0.0.1:3002/
//! printf '\0\0\0\5hello' | nc -q 1 127.0.0.1 3002
//! ```
//!
//! TLS ends here, with a certificate made at the start or that of `--tls CERT,KEY`. SIGTERM and SIGINT drain, a second one
//! cuts; then it says in a line of JSON what became of every connection. `--help` lists the flags.

#[path = "web/app.rs"]
mod app;
#[path = "shell/mod.rs"]
#[allow(dead_code, reason = "each program uses its own part of it")]
mod shell;

use std::{env, process::ExitCode};

use bytes::Bytes;
use tower::ServiceBuilder;
use tower_net::{
    Server,
    detect::{DetectLayer, Protocol},
    error::BoxError,
    frame::{FrameLayer, LengthDelimited, Request},
    guard::Guard,
    http::{Http, HttpLayer},
    listen::Tcp,
    tls::TlsAcceptLayer,
};

use crate::shell::{Signals, flags::Guards, say, tls::Tls};

#[tokio::main]
async fn main() -> ExitCode {
    shell::exit("one_port", run().await)
}

async fn run() -> Result<ExitCode, BoxError> {
    let Some(flags) = Guards::parse("one_port", env::args().skip(1), |_| Ok(false))? else {
        say(format_args!(
            "{HELP}\n{}\n\n{}",
            shell::flags::HELP,
            app::HELP
        ))?;
        return Ok(ExitCode::SUCCESS);
    };
    shell::log(flags.log);
    let signals = Signals::new()?;
    let server = Server::new(Tcp::bind(flags.listen_or("127.0.0.1:3002")?).await?);

    let guard = Guard::new(flags.guard)?;
    let (tally, handshakes, deadlines) = (guard.tally(), guard.handshakes(), guard.deadlines());
    let tls = flags.tls.unwrap_or_else(Tls::own);
    let config = tls
        .alpn_or(&["h2", "http/1.1"])
        .config()?;

    // Each route has its own deadlines, of which that for the first byte begins after the handshake.
    let web = ServiceBuilder::new()
        .layer(deadlines.clone())
        .layer(HttpLayer::new(Http::default().service("web"))?)
        .service(app::router());
    let encrypted = ServiceBuilder::new()
        .layer(TlsAcceptLayer::new(config).handshakes(handshakes))
        .layer(deadlines)
        .layer(HttpLayer::new(Http::default().service("web"))?)
        .service(app::router());
    let by_first_bytes = DetectLayer::new()
        .route(Protocol::tls(), encrypted)
        .route(Protocol::http1(), web.clone())
        .route(Protocol::http2(), web);

    let stack = ServiceBuilder::new()
        .layer(guard.handshake(by_first_bytes))
        .layer(FrameLayer::new(LengthDelimited::max_frame(1 << 20))) // what nothing else has matched
        .service_fn(async |request: Request<Bytes>| Ok::<_, BoxError>(request.into_message()));

    say(format_args!("listening tcp {}", server.local_addr()?))?;
    let serving = server
        .serve(stack)
        .drain_for(flags.drain);
    let handle = serving.handle();
    let report = tokio::select! {
        report = serving.into_future() => report?,
        never = signals.drain(handle) => match never {},
    };
    shell::tell(&report, &tally)
}

const HELP: &str = "\
HTTPS, HTTP and an RPC of length-prefixed frames on one port.

  --listen ADDR          HOST:PORT                                         [127.0.0.1:3002]";
