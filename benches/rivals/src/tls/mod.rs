//! TLS: what a handshake and one byte behind it cost a server, and what an idle connection holds.

mod client;

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::{env, thread, time::Duration};

use anyhow::{Context, Result};

use self::client::Client;
use crate::args::TlsArgs;
use crate::contestants::{Contestant, TLS};
use crate::server::ServerProcess;
use crate::stats::Spread;

pub(crate) fn run(args: &TlsArgs) -> Result<()> {
    handshakes(args)?;
    idle(args)?;
    if args.instructions {
        instructions(args)?;
    }
    Ok(())
}

/// Server CPU of a handshake, by turns.
fn handshakes(args: &TlsArgs) -> Result<()> {
    let mut all = Vec::new();
    for contestant in TLS {
        let server = ServerProcess::start(contestant, args.cores.server_core)?;
        let client = Client::new(args.resumed);
        // The first session is nobody's to resume, and what it sets up is not the others'.
        client.exchange(server.address())?;
        let clock = server.cpu_clock()?;
        all.push((contestant.name, server, client, clock, Vec::new()));
    }
    // The first turn is thrown away.
    for round in 0..=args.rounds as usize {
        for turn in 0..all.len() {
            let turn = (turn + round) % all.len();
            let (_, server, client, clock, figures) = &mut all[turn];
            let before = clock.read()?;
            for _ in 0..args.handshakes {
                client.exchange(server.address())?;
            }
            let cpu = clock.read()? - before;
            if round > 0 {
                figures.push(cpu.as_secs_f64() * 1e6 / f64::from(args.handshakes));
            }
        }
    }
    let kind = if args.resumed { "resumed" } else { "full" };
    println!(
        "TLS 1.3, a {kind} handshake and one byte ({} rounds of {}), server CPU",
        args.rounds, args.handshakes
    );
    println!("{:<16}{:>10}{:>28}", "contestant", "us", "ratio");
    let baseline = all[0].4.clone();
    for (name, .., figures) in &all {
        let (Some(cpu), Some(ratio)) = (
            Spread::of(figures.iter().copied()),
            Spread::of_ratios(figures, &baseline),
        ) else {
            continue;
        };
        println!(
            "{name:<16}{:>10.1}{:>12.3} [{:.3}..{:.3}]",
            cpu.median, ratio.median, ratio.min, ratio.max
        );
    }
    Ok(())
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

/// Instructions of the server for a handshake: two runs under valgrind, whose difference is that of the handshakes.
fn instructions(args: &TlsArgs) -> Result<()> {
    println!("instructions of the server for the same");
    println!("{:<16}{:>14}{:>10}", "contestant", "a handshake", "ratio");
    let mut first = None;
    for contestant in TLS {
        let (few, many) = (20, 220);
        let counted = |handshakes| count(contestant, handshakes, args);
        let each = (counted(many)? - counted(few)?) / f64::from(many - few);
        let baseline = *first.get_or_insert(each);
        println!(
            "{:<16}{each:>14.0}{:>10.3}",
            contestant.name,
            each / baseline
        );
    }
    Ok(())
}

fn count(contestant: &Contestant, handshakes: u32, args: &TlsArgs) -> Result<f64> {
    let mut child = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["server", contestant.name])
        .args(["--core", &args.cores.server_core.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start valgrind")?;
    let stdout = child
        .stdout
        .take()
        .context("no output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let port = line
        .trim()
        .parse()
        .context("the server printed no port")?;
    let client = Client::new(args.resumed);
    for _ in 0..handshakes {
        client.exchange(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    }
    // So that the last connection is closed there as well.
    thread::sleep(SETTLE * 5);
    drop(child.stdin.take());
    let mut report = String::new();
    child
        .stderr
        .take()
        .context("no report")?
        .read_to_string(&mut report)?;
    child.wait()?;
    let collected = report
        .lines()
        .find_map(|line| line.split_once("Collected : "))
        .context("valgrind counted nothing")?;
    Ok(collected.1.trim().parse()?)
}

/// For the server to go back to waiting.
const SETTLE: Duration = Duration::from_millis(100);
