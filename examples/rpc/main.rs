//! A typed key-value service with the full stack, a client for it, and a demo of both under load and attack.
//!
//! ```sh
//! cargo run --release --example rpc                           # the demo: some seconds, then a table
//! alias rpc='cargo run --release --features balance --example rpc --'
//! rpc serve --listen 127.0.0.1:7000
//! rpc call --to 127.0.0.1:7000 put greeting hello
//! rpc bench --servers 2 --mode multiplexed
//! ```
//!
//! To build a service of your own, copy `server.rs`, which is the whole stack on one page, and `protocol.rs`,
//! which makes typed messages of frames, and `client.rs`, which makes them into calls.

#![expect(clippy::print_stdout, reason = "a program's results belong there")]

mod bell;
mod bench;
mod client;
mod demo;
mod flags;
mod latency;
mod load;
mod peers;
mod protocol;
mod server;
mod store;
mod table;

use std::{io, process::ExitCode, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tower_net::{budget, client::Settings as Calling, error::BoxError, listen::Tcp};

use crate::{
    client::Client,
    flags::{Ask, Command},
    protocol::{Call, Mode, Reply},
    server::Settings,
    store::Store,
};

#[tokio::main]
async fn main() -> ExitCode {
    let command = match flags::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(misuse) => {
            eprintln!("rpc: {misuse}\nTry --help.");
            return ExitCode::from(2);
        }
    };
    let result = match command {
        Command::Help => {
            println!("{}", flags::HELP);
            Ok(true)
        }
        Command::Demo { duration } => demo::run(duration).await,
        Command::Serve { listen, mode } => serve(&listen, mode).await,
        Command::Call(call) => ask(call).await,
        Command::Bench(bench) => bench::run(bench).await,
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprint!("rpc: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

/// Serves until SIGTERM or SIGINT; `true` if every connection then left in time.
async fn serve(listen: &str, mode: Mode) -> Result<bool, BoxError> {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .init();
    // Before anybody can know of the server, so that no signal finds it unprepared.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = Tcp::bind(listen).await?;
    println!("listening tcp {}", listener.local_addr()?);
    let signalled = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let settings = Settings::default().mode(mode);
    let report = server::serve(listener, Store::default(), settings, signalled).await?;
    println!("{report}");
    Ok(report.is_clean())
}

/// Makes one call and prints the reply, all within its time; `true` unless it was refused.
async fn ask(ask: Ask) -> Result<bool, BoxError> {
    let settings = Calling::default().call_deadline(Duration::MAX);
    let client = Client::new(ask.mode, &ask.to, settings, client::tcp())?;
    // However many calls it takes: each takes what is left, and the server knows.
    let reply = budget::within(ask.within, reply_to(&client, ask.call)).await??;
    println!("{reply}");
    Ok(!matches!(reply, Reply::Refused(_)))
}

/// Asks until there is something to say.
async fn reply_to(client: &Client, mut call: Call) -> Result<Reply, BoxError> {
    if let Call::Wait { key, seen } = &mut call {
        // A wait is for another value than there is now.
        let now = client
            .call(Call::Get { key: key.clone() })
            .await?;
        if let Reply::Value(value) = now {
            *seen = value;
        }
    }
    loop {
        match client.call(call.clone()).await? {
            Reply::Unchanged => {}
            reply => return Ok(reply),
        }
    }
}
