//! An axum application as the innermost service of one stack, from the socket to the route: nothing but layers.
//!
//! ```sh
//! cargo run --all-features --example axum_stack -- --listen 127.0.0.1:3443 --tls own
//! ```
//!
//! and in another shell:
//!
//! ```sh
//! curl --insecure https://127.0.0.1:3443/whoami
//! ```
//!
//! The certificate is made at the start, and TLS agrees on HTTP/2 or HTTP/1.1; without `--tls` it is plain, and both
//! versions are told by their first bytes (`curl --http2-prior-knowledge http://127.0.0.1:3443/whoami`). SIGTERM and SIGINT
//! drain, a second one cuts; then it says in a line of JSON what became of every connection. `--help` lists the flags.

#[path = "web/app.rs"]
mod app;
#[path = "shell/mod.rs"]
#[allow(dead_code, reason = "each program uses its own part of it")]
mod shell;

use std::{env, process::ExitCode};

use tokio::net::TcpStream;
use tower::{Service, ServiceBuilder};
use tower_net::{
    Conn, Report, Server,
    error::BoxError,
    guard::Guard,
    http::{Http, HttpLayer},
    listen::Tcp,
    tls::TlsAcceptLayer,
};

use crate::shell::{Signals, flags::Guards, say};

#[tokio::main]
async fn main() -> ExitCode {
    shell::exit("axum_stack", run().await)
}

async fn run() -> Result<ExitCode, BoxError> {
    let mut http = Http::default().service("web");
    let flags = Guards::parse("web", env::args().skip(1), |value| {
        let set = http.clone();
        match value.flag() {
            "--head" => http = set.head_deadline(value.time()?),
            "--handler" => http = set.handler_deadline(value.time()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let Some(mut flags) = flags else {
        say(format_args!(
            "{HELP}\n{}\n\n{}",
            shell::flags::HELP,
            app::HELP
        ))?;
        return Ok(ExitCode::SUCCESS);
    };
    shell::log(flags.log);

    let guard = Guard::new(flags.guard.clone())?;
    let tally = guard.tally();
    let crossing = HttpLayer::new(http)?;
    let report = match flags.tls.take() {
        None => {
            let stack = ServiceBuilder::new()
                .layer(guard) // limits, deadlines, meter, trace
                .layer(crossing) // connections become requests
                .service(app::router());
            serve(stack, flags).await?
        }
        Some(tls) => {
            let config = tls
                .alpn_or(&["h2", "http/1.1"])
                .config()?;
            let tls = TlsAcceptLayer::new(config).handshakes(guard.handshakes());
            let stack = ServiceBuilder::new()
                .layer(guard.handshake(tls)) // the same, and TLS before the deadlines
                .layer(crossing)
                .service(app::router());
            serve(stack, flags).await?
        }
    };
    shell::tell(&report, &tally)
}

async fn serve<S>(stack: S, flags: Guards) -> Result<Report, BoxError>
where
    S: Service<Conn<TcpStream>, Response = (), Error = BoxError> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let signals = Signals::new()?;
    let server = Server::new(Tcp::bind(flags.listen_or("127.0.0.1:3443")?).await?);
    say(format_args!("listening tcp {}", server.local_addr()?))?;
    let serving = server
        .serve(stack)
        .drain_for(flags.drain);
    let handle = serving.handle();
    tokio::select! {
        report = serving.into_future() => Ok(report?),
        never = signals.drain(handle) => match never {},
    }
}

const HELP: &str = "\
An axum application in one stack, from the socket to the route.

  --listen ADDR          HOST:PORT                                         [127.0.0.1:3443]
  --head TIME            from a request's first byte to the end of its head [10s]
  --handler TIME         from there to the first byte of the answer        [30s]";
