//! Many calls at once for some seconds, to servers of its own or of others: how many, and how long each took.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tower_net::{client::Settings as Calling, error::BoxError, listen::Tcp};

use crate::{
    client::{self, Client},
    flags::Bench,
    latency::Histogram,
    protocol::{Call, Mode, Reply},
    server::{self, Settings},
    store::Store,
    table::{grouped, short},
};

/// What was measured.
struct Measured {
    calls: u64,
    took: Duration,
    latency: Histogram,
}

/// Measures, and prints a line for each depth; `true` if every call was answered rightly.
pub(crate) async fn run(bench: Bench) -> Result<bool, BoxError> {
    let mut servers = bench.to;
    let mut serving = JoinSet::new();
    let mut shutdown = Vec::new();
    if servers.is_empty() {
        for _ in 0..bench.servers {
            let listener = Tcp::bind("127.0.0.1:0").await?;
            servers.push(listener.local_addr()?);
            let (stop, told) = oneshot::channel::<()>();
            shutdown.push(stop);
            serving.spawn(async move {
                let settings = Settings::default().mode(bench.mode);
                let told = async {
                    let _told = told.await;
                };
                server::serve(listener, Store::default(), settings, told).await
            });
        }
    }
    println!(
        "{} calls, {} server(s), 64-byte values",
        bench.mode,
        servers.len()
    );
    println!("  at once      calls/s        p50        p99        max");
    for depth in [1, bench.depth] {
        let measured = measure(bench.mode, &servers, depth, bench.duration).await?;
        let rate = (measured.calls as f64 / measured.took.as_secs_f64()) as u64;
        println!(
            "  {depth:>7} {:>12} {:>10} {:>10} {:>10}",
            grouped(rate),
            short(measured.latency.percentile(50.0)),
            short(measured.latency.percentile(99.0)),
            short(measured.latency.max()),
        );
    }
    drop(shutdown);
    while let Some(report) = serving.join_next().await {
        report??;
    }
    Ok(true)
}

/// So many callers, one call each at a time.
async fn measure(
    mode: Mode,
    servers: &[SocketAddr],
    depth: usize,
    duration: Duration,
) -> Result<Measured, BoxError> {
    let client = Client::new(mode, servers, Calling::default(), client::tcp())?;
    let value = "v".repeat(64);
    // Connected, and the code paths warm.
    for _ in 0..WARM_UP {
        client
            .call(Call::Get {
                key: "key".to_owned(),
            })
            .await?;
    }
    let begun = Instant::now();
    let end = begun + duration;
    let mut callers = JoinSet::new();
    for _ in 0..depth {
        let (client, value) = (client.clone(), value.clone());
        callers.spawn(async move {
            let mut latency = Histogram::new();
            let mut calls = 0;
            loop {
                let asked = Instant::now();
                if asked >= end {
                    return Ok((calls, latency));
                }
                let key = "key".to_owned();
                let call = Call::Put {
                    key,
                    value: value.clone(),
                };
                match timeout_at(end + PATIENCE, client.call(call)).await?? {
                    Reply::Stored { .. } => {}
                    other => return Err::<_, BoxError>(format!("wrong reply: {other}").into()),
                }
                latency.record(asked.elapsed());
                calls += 1;
            }
        });
    }
    let mut measured = Measured {
        calls: 0,
        took: Duration::ZERO,
        latency: Histogram::new(),
    };
    while let Some(caller) = callers.join_next().await {
        let (calls, latency) = caller??;
        measured.calls += calls;
        measured.latency.add(&latency);
    }
    measured.took = begun.elapsed();
    Ok(measured)
}

/// Calls before the clock runs.
const WARM_UP: usize = 16;

/// For the last calls to be answered.
const PATIENCE: Duration = Duration::from_secs(10);
