//! A TCP proxy: every connection goes on to one of several servers, with every guard as a flag.
//!
//! ```sh
//! cargo run --all-features --example echo -- --codec line --listen 127.0.0.1:7001
//! cargo run --all-features --example forward -- --listen 127.0.0.1:7000 --to 127.0.0.1:7001
//! nc 127.0.0.1 7000
//! ```
//!
//! Each in a shell of its own. With several `--to` connections go to them in turn, and a server that is not there is
//! passed over; `--tls own` takes TLS off, `--proxy-protocol-out v2` tells the server who the client is. It drains on
//! SIGTERM and SIGINT, a second one cuts. It ends with a report as one line of JSON, and with 0 if every connection left
//! in time, 1 if some had to be cut, 2 if it could not run. `--help` lists the flags.

mod flags;
#[path = "../shell/mod.rs"]
#[allow(dead_code, reason = "each program uses its own part of it")]
mod shell;

use std::{
    convert::Infallible,
    env,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::{net::TcpStream, time::timeout};
use tokio_util::net::Listener;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_net::{
    Addr, Conn, ConnInfo, Deadline, Report, Server,
    connect::TcpConnector,
    error::BoxError,
    forward::Forward,
    guard::Guard,
    listen::{Any, AnyIo},
    meter::Tally,
    proxy_protocol::{Header, ProxyConnectLayer},
    tls::TlsAcceptLayer,
};

use crate::{
    flags::Flags,
    shell::{Signals, flags::HELP, say},
};

fn main() -> ExitCode {
    shell::exit("forward", start())
}

#[tokio::main]
async fn start() -> Result<ExitCode, BoxError> {
    let Some(flags) = Flags::parse(env::args().skip(1))? else {
        say(format_args!(
            "{}\n{HELP}\n{}",
            flags::HELP,
            flags::MORE_HELP
        ))?;
        return Ok(ExitCode::SUCCESS);
    };
    shell::log(flags.guards.log);
    let (report, tally) = run(flags).await?;
    shell::tell(&report, &tally)
}

/// Where a connection goes, and on whose behalf.
#[derive(Clone)]
struct Route {
    /// The same for all: lookups are bounded by it.
    connect: TcpConnector,
    servers: Arc<[String]>,
    /// Which of them is tried first.
    first: usize,
    announce: Option<Header>,
}

/// The first server in turn that is there. Each of those left has the same share of the time that is left.
async fn dial(route: Route) -> Result<Conn<TcpStream>, BoxError> {
    let mut left = route.servers.len() as u32;
    let mut turn = route.first;
    loop {
        let server = &route.servers[turn % route.servers.len()];
        let share = Deadline::current().remaining() / left;
        let connecting = route
            .connect
            .clone()
            .oneshot(server.clone());
        let error: BoxError = match timeout(share, connecting).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error.into(),
            Err(elapsed) => elapsed.into(),
        };
        tracing::warn!(%server, error = &*error, "not there");
        left -= 1;
        turn += 1;
        if left == 0 {
            return Err(error);
        }
    }
}

async fn run(flags: Flags) -> Result<(Report, Tally), BoxError> {
    let servers: Arc<[String]> = flags.to.clone().into();
    let (announce, turn) = (flags.announce, AtomicUsize::new(0));
    let connect = TcpConnector::new();
    let choose = move |client: &ConnInfo| Route {
        connect: connect.clone(),
        servers: Arc::clone(&servers),
        first: turn.fetch_add(1, Relaxed),
        announce: announce.map(|version| Header::announcing(version, client)),
    };
    if announce.is_none() {
        return guarded(Forward::new(service_fn(dial), choose), flags).await;
    }
    let announcing = ProxyConnectLayer::new(|route: &Route, _| {
        let header = route.announce.clone();
        Ok::<_, Infallible>(header.expect("every client is announced"))
    });
    guarded(
        Forward::new(announcing.layer(service_fn(dial)), choose),
        flags,
    )
    .await
}

/// Every guard around the proxy.
async fn guarded<C>(
    forward: Forward<C, Route>,
    mut flags: Flags,
) -> Result<(Report, Tally), BoxError>
where
    C: Service<Route, Response = Conn<TcpStream>> + Clone + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    let mut forward = forward.timeouts(flags.timeouts.clone())?;
    if !flags.splice {
        forward = forward.without_splice();
    }
    let guard = Guard::new(flags.guards.guard.clone())?;
    let tally = guard.tally();
    let report = match flags.guards.tls.take() {
        None => serve(guard.layer(forward), flags).await,
        Some(tls) => {
            let tls = TlsAcceptLayer::new(tls.config()?).handshakes(guard.handshakes());
            serve(guard.handshake(tls).layer(forward), flags).await
        }
    };
    Ok((report?, tally))
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
        let listener = Any::bind(&addr)
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
