//! A typed key-value service with the full stack, a client for it, and a demo of both under load and attack.
//!
//! ```sh
//! cargo run --release --example rpc                                  # the demo: some seconds, then a table
//! cargo run --release --example rpc serve --listen 127.0.0.1:7000
//! cargo run --release --example rpc call --to 127.0.0.1:7000 put greeting hello
//! ```
//!
//! To build a service of your own, copy `server.rs`, which is the whole stack on one page, and `protocol.rs`,
//! which makes typed messages of frames.

#![expect(clippy::print_stdout, reason = "a program's results belong there")]

mod bell;
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

use std::{io, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};
use tower_net::{error::BoxError, listen::Tcp};

use crate::{
    client::Client,
    flags::Command,
    protocol::{Call, Reply},
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
        Command::Serve { listen } => serve(&listen).await,
        Command::Call { to, call } => ask(&to, call).await,
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rpc: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until SIGTERM or SIGINT; `true` if every connection then left in time.
async fn serve(listen: &str) -> Result<bool, BoxError> {
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
    let report = server::serve(listener, Store::default(), Settings::default(), signalled).await?;
    println!("{report}");
    Ok(report.is_clean())
}

/// Makes one call and prints the reply; `true` unless it was refused.
async fn ask(to: &str, call: Call) -> Result<bool, BoxError> {
    let client = Client::connect(to).await?;
    let mut call = call;
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
            reply => {
                println!("{reply}");
                return Ok(!matches!(reply, Reply::Refused(_)));
            }
        }
    }
}
