//! Time by rounds in which the contestants take turns; memory in a process for each.

use std::hint::black_box;
use std::process::Command;
use std::{env, fmt};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::{BASELINE, CONTESTANTS, Checks, Contestant, OURS, find};
use crate::args::ChecksArgs;
use crate::cpu;
use crate::report::write_json;
use crate::server::anonymous_memory;
use crate::stats::Spread;

#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    keys: u32,
    ns: Spread,
    /// To the baseline, round by round.
    ratio: Spread,
    bytes_per_key: f64,
}

pub(crate) fn run(args: &ChecksArgs) -> Result<()> {
    cpu::pin(args.core)?;
    let mut rows = Vec::new();
    for &keys in &args.keys {
        println!("{keys} keys ({} rounds)", args.rounds);
        println!(
            "{:<22}{:>8}{:>24}{:>14}",
            "contestant", "ns", "ratio", "bytes/key"
        );
        for row in measure(keys, args)? {
            println!("{row}");
            rows.push(row);
        }
    }
    println!("resident after {} different keys", args.flood);
    for name in [BASELINE, OURS] {
        let bytes = grown(name, CAPACITY, args.flood)?;
        println!("{name:<22}{:>8.1} MiB", bytes as f64 / f64::from(1 << 20));
    }
    match &args.json {
        Some(path) => write_json(path, &rows),
        None => Ok(()),
    }
}

fn measure(keys: u32, args: &ChecksArgs) -> Result<Vec<Row>> {
    ensure!(keys > 0, "there is nothing to check without keys");
    let built = CONTESTANTS
        .iter()
        .map(|contestant| (contestant.build)(keys as usize));
    let built: Vec<_> = built.collect();
    built
        .iter()
        .for_each(|it| fill(&**it, keys));
    let mut times = vec![Vec::new(); built.len()];
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for round in 0..args.rounds as usize {
        let numbers: Vec<_> = (0..args.checks)
            .map(|_| random.below(keys))
            .collect();
        for turn in 0..built.len() {
            let next = (round + turn) % built.len();
            let begun = cpu::of_this_thread()?;
            built[next].check(black_box(&numbers));
            let taken = cpu::of_this_thread()? - begun;
            times[next].push(taken.as_nanos() as f64 / f64::from(args.checks));
        }
    }
    let baseline = CONTESTANTS
        .iter()
        .position(|it| it.name == BASELINE)
        .context("there is a baseline")?;
    let mut rows = Vec::new();
    for (contestant, ns) in CONTESTANTS.iter().zip(&times) {
        let none = "a round at least";
        rows.push(Row {
            name: contestant.name,
            keys,
            ns: Spread::of(ns.iter().copied()).context(none)?,
            ratio: Spread::of_ratios(ns, &times[baseline]).context(none)?,
            bytes_per_key: grown(contestant.name, keys, keys)? as f64 / f64::from(keys),
        });
    }
    Ok(rows)
}

fn fill(checks: &dyn Checks, keys: u32) {
    for first in (0..keys).step_by(CHUNK as usize) {
        let numbers: Vec<_> = (first..keys.min(first + CHUNK)).collect();
        checks.check(&numbers);
    }
}

/// The library's default.
const CAPACITY: u32 = 65_536;

/// Not all numbers at once: they would be memory of their own.
const CHUNK: u32 = 1024;

/// How much a process grows by so many keys.
fn grown(name: &str, capacity: u32, keys: u32) -> Result<u64> {
    let output = Command::new(env::current_exe()?)
        .args(["checks-memory", name])
        .args([capacity.to_string(), keys.to_string()])
        .output()?;
    ensure!(output.status.success(), "{name} failed");
    let text = String::from_utf8(output.stdout)?;
    text.trim()
        .parse()
        .with_context(|| format!("{name} said {text}"))
}

/// The process of [`grown`].
pub(crate) fn memory(name: &str, capacity: u32, keys: u32) -> Result<()> {
    let Contestant { build, .. } = find(name)?;
    // What the first check sets up is not the keys'.
    fill(&*build(1), 1);
    let before = anonymous_memory("self")?;
    let checks = build(capacity as usize);
    fill(&*checks, keys);
    println!("{}", anonymous_memory("self")?.saturating_sub(before));
    drop(checks);
    Ok(())
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = format!(
            "{:.2} [{:.2}..{:.2}]",
            self.ratio.median, self.ratio.min, self.ratio.max
        );
        write!(
            f,
            "{:<22}{:>8.1}{ratio:>24}{:>14.1}",
            self.name, self.ns.median, self.bytes_per_key
        )
    }
}

/// xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (((self.0 >> 32) * u64::from(bound)) >> 32) as u32
    }
}
