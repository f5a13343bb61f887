//! A connection for each call, or connections out of a pool: the same calls at the same rate, both ways.
//!
//! ```sh
//! cargo run --release --example pool_or_not
//! cargo run --release --example pool_or_not -- --rate 4000 --seconds 10 --tasks 32
//! ```
//!
//! Who closes a connection keeps its port in TIME_WAIT for a minute. A client that opens one for each call so uses up
//! its ports at a few hundred calls a second for each address it calls, and pays a round trip more each time.
#![allow(clippy::print_stdout, reason = "a program for people to look at")]
#![allow(
    clippy::disallowed_methods,
    reason = "the tasks of this program end with it"
)]

use std::{
    env, fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tower::{Layer, Service, service_fn};
use tower_net::{
    Conn, Server,
    error::BoxError,
    pool::{PoolLayer, Pooling},
};

/// What is measured.
#[derive(Clone, Copy)]
struct Load {
    /// Calls a second, of all tasks.
    rate: u64,
    seconds: u64,
    tasks: u64,
}

/// What came of it.
struct Outcome {
    calls: u64,
    connects: u64,
    seconds: f64,
    /// Of all calls together, from when they were due.
    waited: Duration,
    /// Sockets in TIME_WAIT, after each second.
    time_wait: Vec<usize>,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let load = arguments()?;
    let mut outcomes = Vec::new();
    for pooled in [false, true] {
        // Each has a server of its own, and so sockets of its own to count.
        let server = Server::bind("127.0.0.1:0").await?;
        let addr = server.local_addr()?;
        let serving = server
            .serve(service_fn(echo))
            .drain_for(Duration::ZERO);
        let handle = serving.handle();
        let serving = tokio::spawn(serving.into_future());
        outcomes.push(run(addr, load, pooled).await?);
        handle.cut();
        serving.await??;
    }
    let [without, with] = &outcomes[..] else {
        return Err("two ways were measured".into());
    };
    println!("{:<24}{:>12}{:>12}", "", "without", "with a pool");
    let row = |name, number: &dyn Fn(&Outcome) -> String| {
        println!("{name:<24}{:>12}{:>12}", number(without), number(with));
    };
    row("calls", &|it| it.calls.to_string());
    row("calls a second", &|it| {
        format!("{:.0}", it.calls as f64 / it.seconds)
    });
    row("connects", &|it| it.connects.to_string());
    row("sockets in TIME_WAIT", &|it| {
        it.time_wait
            .last()
            .unwrap_or(&0)
            .to_string()
    });
    row("microseconds a call", &|it| {
        (it.waited.as_micros() / u128::from(it.calls.max(1))).to_string()
    });
    println!("\nsockets in TIME_WAIT, second by second");
    plot("without", without, without);
    plot("with", with, without);
    Ok(())
}

/// Makes the calls that are due, each on a connection of its own or on one out of a pool.
async fn run(addr: SocketAddr, load: Load, pooled: bool) -> Result<Outcome, BoxError> {
    let connects = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&connects);
    let connector = service_fn(move |to: SocketAddr| {
        counted.fetch_add(1, Relaxed);
        async move {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            Conn::try_from(stream)
        }
    });
    let idle = if pooled { 100 } else { 0 };
    let pooling = Pooling::default().max_idle_per_target(idle);
    let pool = PoolLayer::new("calls", pooling)?.layer(connector);

    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..load.tasks {
        let mut pool = pool.clone();
        tasks.spawn(async move {
            let mut waited = Duration::ZERO;
            let calls = load.rate * load.seconds / load.tasks;
            for turn in 0..calls {
                let due = (turn * load.tasks + task) as f64 / load.rate as f64;
                let due = begun + Duration::from_secs_f64(due);
                sleep_until(due).await;
                let mut conn = pool.call(addr).await?;
                conn.write_all(b"ping").await?;
                conn.read_exact(&mut [0; 4]).await?;
                conn.reuse();
                waited += due.elapsed();
            }
            Ok::<_, BoxError>((calls, waited))
        });
    }
    let mut time_wait = Vec::new();
    for second in 1..=load.seconds {
        sleep_until(begun + Duration::from_secs(second)).await;
        time_wait.push(in_time_wait(addr.port())?);
    }
    let (mut calls, mut waited) = (0, Duration::ZERO);
    while let Some(task) = tasks.join_next().await {
        let (of_task, waits) = task??;
        calls += of_task;
        waited += waits;
    }
    let seconds = begun.elapsed().as_secs_f64();
    // The last of them are closed there as well.
    sleep(Duration::from_millis(100)).await;
    time_wait.push(in_time_wait(addr.port())?);
    Ok(Outcome {
        calls,
        connects: connects.load(Relaxed),
        seconds,
        waited,
        time_wait,
    })
}

async fn echo(mut conn: Conn<TcpStream>) -> Result<(), BoxError> {
    let mut request = [0; 4];
    while conn
        .read_exact(&mut request)
        .await
        .is_ok()
    {
        conn.write_all(&request).await?;
    }
    Ok(())
}

/// Connections to or from a port that wait for what may still be under way.
fn in_time_wait(port: u16) -> Result<usize, BoxError> {
    let end = format!(":{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp")?;
    let waits = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, peer, state) = (fields.next(), fields.next(), fields.next());
        let is_ours = [local, peer]
            .into_iter()
            .flatten()
            .any(|addr| addr.ends_with(&end));
        is_ours && state == Some("06")
    };
    Ok(table.lines().filter(waits).count())
}

/// A bar for each second, against the most of one of them.
fn plot(name: &str, outcome: &Outcome, scale: &Outcome) {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = *scale
        .time_wait
        .iter()
        .max()
        .unwrap_or(&0);
    let bar = |count: &usize| BARS[(count * 8).div_ceil(most.max(1)).min(8)];
    let bars: String = outcome
        .time_wait
        .iter()
        .map(bar)
        .collect();
    let last = outcome.time_wait.last().unwrap_or(&0);
    println!("{name:>8} {bars} {last}");
}

fn arguments() -> Result<Load, BoxError> {
    let mut load = Load {
        rate: 2_000,
        seconds: 8,
        tasks: 16,
    };
    let mut arguments = env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments
            .next()
            .ok_or("every flag has a value")?
            .parse()?;
        match flag.as_str() {
            "--rate" => load.rate = value,
            "--seconds" => load.seconds = value,
            "--tasks" => load.tasks = value,
            _ => {
                let flags = "--rate CALLS, --seconds N, --tasks N";
                return Err(format!("{flag}: no such flag: {flags}").into());
            }
        }
    }
    if load.rate == 0 || load.seconds == 0 || load.tasks == 0 || load.tasks > load.rate {
        return Err("nothing may be zero, and a task makes one call a second at the least".into());
    }
    Ok(load)
}
