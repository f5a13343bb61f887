//! Getting a connection out of a pool and giving it back: time by rounds in which the contestants take turns.
//!
//! The connections do nothing, so that what is measured is the pool. One contestant has real sockets, to show what
//! asking the kernel for each of them costs.

mod contestants;

use std::time::Duration;

use anyhow::{Context, Result};

use crate::args::PoolArgs;
use crate::cpu;
use crate::stats::Spread;
use contestants::{CONTESTANTS, Contestant, Work};

/// What all contestants are asked to do, and against whom they are held.
struct Cell {
    title: &'static str,
    baseline: &'static str,
    cores: usize,
    /// How it is shared, if it is.
    shared: Option<Shared>,
}

#[derive(Clone, Copy)]
struct Shared {
    threads: Option<usize>,
    held: bool,
}

impl Cell {
    fn time(&self, contestant: &Contestant, gets: u32) -> Duration {
        match self.shared {
            None => (contestant.alone)(gets),
            Some(Shared { threads, held }) => (contestant.shared)(Work {
                gets,
                threads,
                held,
            }),
        }
    }
}

const fn shared(title: &'static str, threads: Option<usize>, held: bool) -> Cell {
    Cell {
        title,
        baseline: "stack",
        cores: match threads {
            Some(threads) => threads,
            None => 1,
        },
        shared: Some(Shared { threads, held }),
    }
}

const CELLS: &[Cell] = &[
    Cell {
        title: "alone, CPU time",
        baseline: "hyper_cache",
        cores: 1,
        shared: None,
    },
    shared(
        "64 tasks on 8 connections, nobody waits, one thread, CPU time",
        None,
        false,
    ),
    shared(
        "64 tasks on 8 connections, held over a yield, one thread, CPU time",
        None,
        true,
    ),
    shared("the same, two threads, wall time", Some(2), true),
];

pub(crate) fn run(args: &PoolArgs) -> Result<()> {
    let cores = [args.core, args.other_core];
    for cell in CELLS {
        cpu::pin_to(&cores[..cell.cores])?;
        println!("{} ({} rounds)", cell.title, args.rounds);
        println!("{:<18}{:>8}{:>24}", "contestant", "ns", "ratio");
        let mut times = vec![Vec::new(); CONTESTANTS.len()];
        for round in 0..=args.rounds as usize {
            for turn in 0..CONTESTANTS.len() {
                let next = (round + turn) % CONTESTANTS.len();
                let taken = cell.time(&CONTESTANTS[next], args.gets);
                if round > 0 {
                    times[next].push(taken.as_nanos() as f64 / f64::from(args.gets));
                }
            }
        }
        let mut all = CONTESTANTS.iter();
        let baseline = all
            .position(|contestant| contestant.name == cell.baseline)
            .context("there is a baseline")?;
        for (contestant, ns) in CONTESTANTS.iter().zip(&times) {
            let none = "a round at least";
            let ratio = Spread::of_ratios(ns, &times[baseline]).context(none)?;
            let ns = Spread::of(ns.iter().copied()).context(none)?;
            let ratio = format!("{:.2} [{:.2}..{:.2}]", ratio.median, ratio.min, ratio.max);
            println!("{:<18}{:>8.1}{ratio:>24}", contestant.name, ns.median);
        }
    }
    Ok(())
}
