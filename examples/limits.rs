//! Who may come, how many at once and how fast: limits from a file, changed while it runs, and who hits them.
//!
//! ```sh
//! echo '{ "per_peer": 2, "deny": ["127.0.0.66"] }' > limits.json
//! cargo run --all-features --example limits -- --listen 127.0.0.1:7003 --settings limits.json
//! ```
//!
//! and in another shell `nc 127.0.0.1 7003`, three times at once: the third is reset. SIGHUP reads the file once more,
//! SIGUSR1 says who has how many connections open. SIGTERM and ctrl-c drain.
#![allow(clippy::print_stdout, reason = "a program for people to look at")]

use std::{convert::Infallible, env, fs, future::pending, path::PathBuf};

use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tower::ServiceBuilder;
use tower_net::{
    Server,
    error::BoxError,
    frame::{Delimited, FrameLayer, Request},
    guard::{Guard, Settings},
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (listen, file) = arguments()?;
    let guard = Guard::new(settings(&file)?)?;
    let stack = ServiceBuilder::new()
        .layer(guard.clone())
        .layer(FrameLayer::new(Delimited::lines(1024)))
        .service_fn(async |line: Request<Bytes>| Ok::<_, BoxError>(line.into_message()));

    let mut ends = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
    let server = Server::bind(&*listen).await?;
    println!("listening tcp {}", server.local_addr()?);

    let serving = server
        .serve(stack)
        .with_graceful_shutdown(async move {
            let [Ok(terminate), Ok(interrupt)] = &mut ends else {
                return pending().await;
            };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
    let handle = serving.handle();
    tokio::select! {
        report = serving => println!("{}", report?),
        failed = on_signals(&guard, &file) => match failed? {},
    }
    print!("{}", handle.checklist());
    Ok(())
}

/// Swaps what a new file says, and shows who is there.
async fn on_signals(guard: &Guard, file: &Option<PathBuf>) -> Result<Infallible, BoxError> {
    let (mut hangup, mut show) = (
        signal(SignalKind::hangup())?,
        signal(SignalKind::user_defined1())?,
    );
    loop {
        tokio::select! {
            _ = hangup.recv() => match settings(file).and_then(|new| Ok(guard.adopt(&new)?)) {
                Ok(()) => println!("limits changed"),
                // What held goes on.
                Err(error) => println!("limits kept: {error}"),
            },
            _ = show.recv() => {
                println!("{} open", guard.connections().in_use());
                for peer in guard.per_peer().top(10) {
                    let network = peer.network().map_or_else(|| "unnamed".to_owned(), |network| network.to_string());
                    println!("{network} {}", peer.used());
                }
            }
        }
    }
}

fn settings(file: &Option<PathBuf>) -> Result<Settings, BoxError> {
    match file {
        Some(file) => Ok(serde_json::from_str(&fs::read_to_string(file)?)?),
        None => Ok(Settings::default().per_peer(2)),
    }
}

fn arguments() -> Result<(String, Option<PathBuf>), BoxError> {
    let (mut listen, mut file) = ("127.0.0.1:7003".to_owned(), None);
    let mut arguments = env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .ok_or("every flag has a value")?;
        match flag.as_str() {
            "--listen" => listen = value,
            "--settings" => file = Some(value.into()),
            _ => {
                return Err(format!("{flag}: no such flag: --listen ADDR, --settings FILE").into());
            }
        }
    }
    Ok((listen, file))
}
