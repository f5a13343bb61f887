//! A service of lines behind HAProxy, which knows its clients all the same.
//!
//! ```sh
//! cargo run --features proxy-protocol --example behind_proxy
//! haproxy -f examples/behind_proxy/haproxy.cfg
//! nc 127.0.0.1 7003
//! ```
//!
//! Each in a shell of its own. Every line is answered with who sent it, through whom, and what else HAProxy said. What
//! connects without a header (`nc 127.0.0.1 7002`) is closed at its first wrong byte, and what does from elsewhere
//! than this host (with `--listen 0.0.0.0:7002`) is reset. It drains on SIGTERM and SIGINT.
#![allow(clippy::print_stdout, reason = "a program for people to look at")]

use std::{env, fmt::Write, time::Duration};

use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tower::ServiceBuilder;
use tower_net::{
    ConnInfo, Server,
    deadline::{DeadlineLayer, Deadlines},
    error::BoxError,
    frame::{Delimited, FrameLayer, Request},
    limit::ConnectionLimitLayer,
    proxy_protocol::{Command, Header, ProxyProtocolLayer, TlvClass},
    trace::TraceLayer,
};
use tracing::level_filters::LevelFilter;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let addr = listen_addr(env::args().skip(1))?;
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::DEBUG)
        .with_writer(std::io::stderr)
        .init();

    // Whoever types is slower than a program.
    let deadlines = Deadlines::default().first_byte(Duration::from_secs(60));
    let stack = ServiceBuilder::new()
        .layer(ConnectionLimitLayer::new(1_000)?)
        .layer(TraceLayer::new())
        .layer(ProxyProtocolLayer::required_from(["127.0.0.0/8", "::1"])?)
        .layer(DeadlineLayer::new(deadlines)?)
        .layer(FrameLayer::new(Delimited::lines(1024)))
        .service_fn(async |line: Request<Bytes>| Ok::<_, BoxError>(greeting(line.conn())));

    // Before the first line is out: whoever reads it may send a signal right away.
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let server = Server::bind(&addr).await?;
    println!("listening tcp {}", server.local_addr()?);

    let report = server
        .serve(stack)
        .with_graceful_shutdown(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await?;
    println!("{report}");
    Ok(())
}

fn listen_addr(mut args: impl Iterator<Item = String>) -> Result<String, BoxError> {
    match (args.next().as_deref(), args.next(), args.next()) {
        (None, None, None) => Ok("127.0.0.1:7002".to_owned()),
        (Some("--listen"), Some(addr), None) => Ok(addr),
        _ => Err("usage: behind_proxy [--listen HOST:PORT]".into()),
    }
}

/// Who the client is, through whom it came, and what the proxy says of it.
fn greeting(conn: &ConnInfo) -> String {
    let mut greeting = format!("hello {}, through {}", conn.peer(), conn.wire_peer());
    match conn.proxy() {
        Some(header) if header.command() == Command::Proxy => describe(header, &mut greeting),
        _ => greeting += ", which speaks for itself",
    }
    greeting
}

fn describe(header: &Header, greeting: &mut String) {
    let mut say = |what: std::fmt::Arguments<'_>| {
        // A string takes whatever is written to it.
        let _written = greeting.write_fmt(what);
    };
    if let Some(destination) = header.destination() {
        say(format_args!(", to {destination}"));
    }
    let tlvs = header.tlvs();
    if let Some(host) = tlvs.authority() {
        say(format_args!(", for {host}"));
    }
    if let Some(id) = tlvs.unique_id() {
        say(format_args!(", as {}", id.escape_ascii()));
    }
    if let Some(sum) = tlvs.crc32c() {
        say(format_args!(", checksum {sum:08x}"));
    }
    for tlv in tlvs {
        if tlv.class() != TlvClass::Registered {
            let (kind, value) = (tlv.kind(), tlv.value().escape_ascii());
            say(format_args!(", {kind:#04x} {value}"));
        }
    }
}
