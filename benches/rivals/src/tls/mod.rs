//! TLS: what a handshake and one byte behind it cost a server, and what an idle connection holds.

mod client;

use std::{thread, time::Duration};

use anyhow::Result;

use self::client::Client;
use crate::args::TlsArgs;
use crate::contestants::TLS;
use crate::instructions;
use crate::server::ServerProcess;
use crate::turns::Turns;

pub(crate) fn run(args: &TlsArgs) -> Result<()> {
    handshakes(args)?;
    idle(args)?;
    if args.instructions {
        let core = args.cores.server_core;
        instructions::compare(TLS, "a handshake", core, |server, handshakes| {
            Client::new(args.resumed).exchange_times(server, handshakes)
        })?;
    }
    Ok(())
}

/// Server CPU of a handshake, by turns.
fn handshakes(args: &TlsArgs) -> Result<()> {
    let kind = if args.resumed { "resumed" } else { "full" };
    println!(
        "TLS 1.3, a {kind} handshake and one byte ({} rounds of {}), server CPU",
        args.rounds, args.handshakes
    );
    let turns = Turns {
        rounds: args.rounds,
        pieces: args.handshakes,
        server_core: args.cores.server_core,
    };
    let client = |_: &_, server| {
        let client = Client::new(args.resumed);
        // The first session is nobody's to resume, and what it sets up is not the others'.
        client.exchange(server)?;
        Ok((client, server))
    };
    turns.compare(TLS, client, |(client, server), handshakes| {
        client.exchange_times(*server, handshakes)
    })
}

/// Growth of the server's memory over many connections that have had one exchange each.
fn idle(args: &TlsArgs) -> Result<()> {
    println!("{} idle TLS connections", args.connections);
    println!("{:<16}{:>18}", "contestant", "bytes/connection");
    for contestant in TLS {
        let server = ServerProcess::start(contestant, args.cores.server_core)?;
        let client = Client::new(false);
        let first = client.open(server.address())?;
        thread::sleep(SETTLE);
        let before = server.anonymous_memory()?;
        let mut open = vec![first];
        for _ in 0..args.connections {
            open.push(client.open(server.address())?);
        }
        thread::sleep(SETTLE);
        let grown = server.anonymous_memory()? - before;
        println!(
            "{:<16}{:>18.0}",
            contestant.name,
            grown as f64 / f64::from(args.connections)
        );
    }
    Ok(())
}

/// For the server to go back to waiting.
const SETTLE: Duration = Duration::from_millis(100);
