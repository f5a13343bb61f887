//! Instructions of a server for a piece of work, counted by valgrind: of the server's own code, not of the kernel's.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::{env, thread, time::Duration};

use anyhow::{Context, Result};

use crate::contestants::Contestant;

/// Prints a table of what a piece of work, of which `work` does so many, costs each contestant. The first is the
/// baseline of the ratios.
pub(crate) fn compare(
    contestants: &'static [Contestant],
    what: &str,
    server_core: usize,
    work: impl Fn(SocketAddr, u32) -> Result<()>,
) -> Result<()> {
    println!("instructions of the server for the same");
    println!("{:<16}{what:>14}{:>10}", "contestant", "ratio");
    let mut first = None;
    for contestant in contestants {
        // Two runs, whose difference is that of the work.
        let (few, many) = (220, 2220);
        let counted = |pieces| count(contestant, server_core, |server| work(server, pieces));
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

fn count(
    contestant: &Contestant,
    server_core: usize,
    work: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<f64> {
    let mut child = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["server", contestant.name])
        .args(["--core", &server_core.to_string()])
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
    work(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    // So that the last connection is closed there as well.
    thread::sleep(SETTLE);
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

/// For the server, many times slower than it is, to go back to waiting.
const SETTLE: Duration = Duration::from_millis(500);
