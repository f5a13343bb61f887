//! Server CPU of a piece of work, contestant after contestant.

use std::net::SocketAddr;

use anyhow::Result;

use crate::contestants::Contestant;
use crate::server::ServerProcess;
use crate::stats::Spread;

/// How often, and how much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turns {
    /// Turns of each contestant that count; one more comes first and is thrown away.
    pub(crate) rounds: u32,
    /// Pieces of work in a turn.
    pub(crate) pieces: u32,
    pub(crate) server_core: usize,
}

impl Turns {
    /// Lets contestants take their turns, each with a client of its own, and prints a table of server CPU. The first
    /// contestant is the baseline of the ratios, and each round begins with the next one.
    ///
    /// `work` is told how many pieces it is to do.
    pub(crate) fn compare<C>(
        self,
        contestants: &'static [Contestant],
        client: impl Fn(&Contestant, SocketAddr) -> Result<C>,
        work: impl Fn(&mut C, u32) -> Result<()>,
    ) -> Result<()> {
        let mut all = Vec::new();
        for contestant in contestants {
            let server = ServerProcess::start(contestant, self.server_core)?;
            let client = client(contestant, server.address())?;
            let clock = server.cpu_clock()?;
            all.push((contestant.name, server, client, clock, Vec::new(), 0));
        }
        for round in 0..=self.rounds as usize {
            for turn in 0..all.len() {
                let turn = (turn + round) % all.len();
                let (_, server, client, clock, figures, sleeps) = &mut all[turn];
                let (before, slept) = (clock.read()?, server.sleeps()?);
                work(client, self.pieces)?;
                let cpu = clock.read()? - before;
                if round > 0 {
                    *sleeps += server.sleeps()? - slept;
                    figures.push(cpu.as_secs_f64() * 1e6 / f64::from(self.pieces));
                }
            }
        }
        println!(
            "{:<16}{:>10}{:>28}{:>10}",
            "contestant", "us", "ratio", "sleeps"
        );
        let baseline = all[0].4.clone();
        let pieces = f64::from(self.rounds) * f64::from(self.pieces);
        for (name, .., figures, sleeps) in &all {
            let (Some(cpu), Some(ratio)) = (
                Spread::of(figures.iter().copied()),
                Spread::of_ratios(figures, &baseline),
            ) else {
                continue;
            };
            println!(
                "{name:<16}{:>10.1}{:>12.3} [{:.3}..{:.3}]{:>10.3}",
                cpu.median,
                ratio.median,
                ratio.min,
                ratio.max,
                *sleeps as f64 / pieces
            );
        }
        Ok(())
    }
}
