//! The smallest honest service: echoes lines to a thousand clients, none of them silent or stalled for ever.
//! `cargo run --example lines`, then `nc 127.0.0.1 7001` in another shell; ctrl-c drains.
#![allow(clippy::print_stdout, reason = "a program for people to look at")]

use std::{env, time::Duration};

use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tower::ServiceBuilder;
use tower_net::deadline::{DeadlineLayer, Deadlines};
use tower_net::frame::{Delimited, FrameLayer, Request};
use tower_net::{Server, error::BoxError, limit::ConnectionLimitLayer};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Whoever types is slower than a program.
    let deadlines = Deadlines::default().first_byte(Duration::from_secs(60));
    let stack = ServiceBuilder::new()
        .layer(ConnectionLimitLayer::new(1_000)?)
        .layer(DeadlineLayer::new(deadlines)?)
        .layer(FrameLayer::new(Delimited::lines(1024)))
        .service_fn(async |line: Request<Bytes>| Ok::<_, BoxError>(line.into_message()));

    let mut ctrl_c = signal(SignalKind::interrupt())?;
    let addr = env::args().nth(1);
    let addr = addr
        .as_deref()
        .unwrap_or("127.0.0.1:7001");
    let server = Server::bind(addr).await?;
    println!("listening tcp {}", server.local_addr()?);

    let report = server
        .serve(stack)
        .with_graceful_shutdown(async move {
            let _signal = ctrl_c.recv().await;
        })
        .await?;
    println!("{report}");
    Ok(())
}
