//! HTTP/1.1: what a request costs a server that keeps its connections, and how many there are in a second.

mod load;

use std::time::Duration;

use anyhow::{Context, Result};

use self::load::Load;
use crate::args::WebArgs;
use crate::client::Sample;
use crate::contestants::WEB;
use crate::server::ServerProcess;
use crate::stats::Spread;

/// What every server answers.
pub(crate) const ANSWER: &str = "Hello, World!";
/// The path of a handler that answers where it stands.
pub(crate) const AT_ONCE: &str = "/";
/// The path of one that waits once before it does.
pub(crate) const LATER: &str = "/later";

pub(crate) fn run(args: &WebArgs) -> Result<()> {
    let path = if args.waiting { LATER } else { AT_ONCE };
    let window = Duration::from_millis(args.window_ms);
    let mut lanes = Vec::new();
    for contestant in WEB {
        let server = ServerProcess::start(contestant, args.cores.server_core)?;
        let clock = server.cpu_clock()?;
        let load = Load::open(server.address(), path, args.connections)
            .with_context(|| contestant.name)?;
        // The client closes first.
        lanes.push((contestant.name, load, clock, server, Vec::new()));
    }
    // The first turn is thrown away: by then all have been asked, and have what memory they need.
    for round in 0..=args.rounds as usize {
        for turn in 0..lanes.len() {
            let next = (round + turn) % lanes.len();
            let (name, load, clock, _, samples) = &mut lanes[next];
            let sample = load
                .window(window, *clock)
                .with_context(|| *name)?;
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    println!(
        "HTTP/1.1, GET {path}, {} connections kept alive ({} rounds of {} ms)",
        args.connections, args.rounds, args.window_ms
    );
    println!(
        "{:<12}{:>11}{:>24}{:>9}{:>24}{:>6}",
        "contestant", "requests/s", "ratio", "CPU us", "ratio", "busy"
    );
    let (rates, cpus) = (each(&lanes[0].4, rate), each(&lanes[0].4, cpu_us));
    for (name, .., samples) in &lanes {
        let none = "a round at least";
        let (rate, cpu) = (each(samples, rate), each(samples, cpu_us));
        println!(
            "{name:<12}{:>11.0}{:>24}{:>9.2}{:>24}{:>6.2}",
            Spread::of(rate.iter().copied())
                .context(none)?
                .median,
            shown(Spread::of_ratios(&rate, &rates).context(none)?),
            Spread::of(cpu.iter().copied())
                .context(none)?
                .median,
            shown(Spread::of_ratios(&cpu, &cpus).context(none)?),
            Spread::of(each(samples, busy))
                .context(none)?
                .median,
        );
    }
    Ok(())
}

fn each(samples: &[Sample], figure: fn(&Sample) -> f64) -> Vec<f64> {
    samples.iter().map(figure).collect()
}

fn rate(sample: &Sample) -> f64 {
    sample.replies as f64 / sample.wall.as_secs_f64()
}

fn cpu_us(sample: &Sample) -> f64 {
    sample.cpu.as_secs_f64() * 1e6 / sample.replies as f64
}

fn busy(sample: &Sample) -> f64 {
    sample.cpu.as_secs_f64() / sample.wall.as_secs_f64()
}

fn shown(ratio: Spread) -> String {
    format!("{:.3} [{:.3}..{:.3}]", ratio.median, ratio.min, ratio.max)
}
