//! The memory of an idle connection: how much a server's anonymous memory grows when many
//! connections stay open after one exchange each.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::args::IdleArgs;
use crate::client::exchange;
use crate::contestants::{self, Contestant};
use crate::report::write_json;
use crate::server::ServerProcess;
use crate::stats::Spread;
use crate::wire::Pattern;

const PAYLOAD: usize = 64;
/// For the server to go back to waiting after the last reply.
const SETTLE: Duration = Duration::from_millis(100);

#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    connections: u32,
    bytes_per_connection: Spread,
}

pub(crate) fn run(args: &IdleArgs) -> Result<()> {
    let contestants = contestants::for_idle(&args.only)?;
    let mut grown = vec![Vec::new(); contestants.len()];
    for _ in 0..args.rounds {
        for (contestant, grown) in contestants.iter().zip(&mut grown) {
            let bytes = measure(contestant, args).with_context(|| contestant.name)?;
            grown.push(bytes);
        }
    }
    println!(
        "{} idle connections ({} rounds)",
        args.connections, args.rounds
    );
    println!("{:<16}{:>18}", "contestant", "bytes/connection");
    let mut rows = Vec::new();
    for (contestant, grown) in contestants.iter().zip(grown) {
        let Some(bytes) = Spread::of(grown) else {
            continue;
        };
        println!(
            "{:<16}{:>18.0} [{:.0}..{:.0}]",
            contestant.name, bytes.median, bytes.min, bytes.max
        );
        rows.push(Row {
            name: contestant.name,
            connections: args.connections,
            bytes_per_connection: bytes,
        });
    }
    if let Some(path) = &args.json {
        write_json(path, &rows)?;
    }
    Ok(())
}

fn measure(contestant: &Contestant, args: &IdleArgs) -> Result<f64> {
    let server = ServerProcess::start(contestant, args.cores.server_core)?;
    let pattern = Pattern::new(PAYLOAD);
    // What the first connection sets up for all of them is not theirs.
    let first = exchange(server.address(), 0, &pattern)?;
    thread::sleep(SETTLE);
    let before = server.anonymous_memory()?;
    let mut open = vec![first];
    for id in 1..=u64::from(args.connections) {
        open.push(exchange(server.address(), id, &pattern)?);
    }
    thread::sleep(SETTLE);
    let after = server.anonymous_memory()?;
    drop(open);
    Ok((after as f64 - before as f64) / f64::from(args.connections))
}
