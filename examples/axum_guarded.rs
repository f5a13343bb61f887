//! An axum application under `axum::serve`, as it is, with every guard in front of it.
//!
//! ```sh
//! cargo run --all-features --example axum_guarded -- --listen 127.0.0.1:3000
//! ```
//!
//! and in another shell:
//!
//! ```sh
//! curl http://127.0.0.1:3000/whoami
//! ```
//!
//! With `--tls own` it is `curl --insecure https://127.0.0.1:3000/whoami`. Say nothing (`nc 127.0.0.1 3000`) or drip, and
//! you are closed in time. SIGTERM and SIGINT drain, a second one cuts; then it says in a line of JSON what became of
//! every connection. `--help` lists the flags.

#[path = "web/app.rs"]
mod app;
#[path = "shell/mod.rs"]
#[allow(dead_code, reason = "each program uses its own part of it")]
mod shell;

use std::{env, net::SocketAddr, process::ExitCode, time::Duration};

use tower_net::{
    Incoming, Report, error::BoxError, guard::Guard, io::Io, listen::Tcp, tls::TlsAcceptLayer,
};

use crate::shell::{Signals, flags::Guards, say};

#[tokio::main]
async fn main() -> ExitCode {
    shell::exit("axum_guarded", run().await)
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
        say(format_args!(
            "{HELP}\n{}\n\n{}",
            shell::flags::HELP,
            app::HELP
        ))?;
        return Ok(ExitCode::SUCCESS);
    };
    shell::log(flags.log);
    let signals = Signals::new()?;
    let listener = Tcp::bind(flags.listen_or("127.0.0.1:3000")?).await?;

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

/// What anybody writes for axum, but for the listener.
async fn serve<I: Io>(
    incoming: Incoming<I>,
    request: Duration,
    drain: Duration,
    signals: Signals,
) -> Result<Report, BoxError> {
    let incoming = incoming
        .request_deadline(request)?
        .drain_for(drain);
    say(format_args!("listening tcp {}", incoming.local_addr()?))?;
    let (handle, closing) = (incoming.handle(), incoming.closing());

    let app = app::router().into_make_service_with_connect_info::<SocketAddr>();
    let serving = axum::serve(incoming.for_axum(), app).with_graceful_shutdown(closing);
    let served = async {
        serving.await?;
        // Also of what axum no longer knows, a WebSocket for one.
        Ok::<_, BoxError>(handle.report().await)
    };
    tokio::select! {
        report = served => report,
        never = signals.drain(handle.clone()) => match never {},
    }
}

const HELP: &str = "\
An axum application behind every guard, under axum::serve.

  --listen ADDR          HOST:PORT                                         [127.0.0.1:3000]
  --request TIME         from a request's first byte to its answer's first [30s]";
