//! What is printed and what is written: the table of a cell, and the JSON of a run.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::args::RpcArgs;
use crate::cell::Cell;
use crate::rpc::Series;
use crate::stats::Spread;

/// The figures of all contestants in one cell.
#[derive(Debug, Serialize)]
pub(crate) struct CellReport {
    #[serde(flatten)]
    cell: Cell,
    rounds: u32,
    window_ms: u64,
    baseline: String,
    contestants: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    /// Server CPU, microseconds per request.
    cpu_us: Spread,
    requests_per_s: Spread,
    /// Share of its core the server used.
    busy: Spread,
    /// CPU per request over that of the baseline in the same round.
    ratio: Option<Spread>,
    /// `cpu_us` of each round, in order.
    cpu_us_by_round: Vec<f64>,
}

impl CellReport {
    pub(crate) fn new(cell: Cell, args: &RpcArgs, all: &[Series]) -> Self {
        let baseline = all
            .iter()
            .find(|series| series.name == args.baseline)
            .map(cpu_us);
        Self {
            cell,
            rounds: args.rounds,
            window_ms: args.window_ms,
            baseline: args.baseline.clone(),
            contestants: all
                .iter()
                .filter_map(|s| Row::new(s, baseline.as_deref()))
                .collect(),
        }
    }
}

impl Row {
    /// `None` if there was no round.
    fn new(series: &Series, baseline: Option<&[f64]>) -> Option<Self> {
        let samples = &series.samples;
        let cpu_us_by_round = cpu_us(series);
        Some(Self {
            name: series.name,
            cpu_us: Spread::of(cpu_us_by_round.iter().copied())?,
            requests_per_s: Spread::of(
                samples
                    .iter()
                    .map(|s| s.replies as f64 / s.wall.as_secs_f64()),
            )?,
            busy: Spread::of(
                samples
                    .iter()
                    .map(|s| s.cpu.as_secs_f64() / s.wall.as_secs_f64()),
            )?,
            ratio: baseline.and_then(|base| Spread::of_ratios(&cpu_us_by_round, base)),
            cpu_us_by_round,
        })
    }
}

fn cpu_us(series: &Series) -> Vec<f64> {
    series
        .samples
        .iter()
        .map(|s| s.cpu.as_secs_f64() * 1e6 / s.replies as f64)
        .collect()
}

impl fmt::Display for CellReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell {
            payload,
            depth,
            connections,
        } = self.cell;
        writeln!(
            f,
            "{payload} B, depth {depth}, {connections} connections ({} rounds x {} ms)",
            self.rounds, self.window_ms
        )?;
        writeln!(
            f,
            "{:<16}{:>8} {:<16}{:>12}{:>6}  ratio to {}",
            "contestant", "CPU us", "per request", "requests/s", "busy", self.baseline
        )?;
        for row in &self.contestants {
            write!(
                f,
                "{:<16}{:>8} {:<16}{:>12.0}{:>6.2}  ",
                row.name,
                three_digits(row.cpu_us.median),
                range(row.cpu_us),
                row.requests_per_s.median,
                row.busy.median
            )?;
            match row.ratio {
                Some(ratio) => writeln!(f, "{:>6} {}", three_digits(ratio.median), range(ratio))?,
                None => writeln!(f, "{:>6}", "-")?,
            }
        }
        Ok(())
    }
}

fn range(spread: Spread) -> String {
    format!(
        "[{}..{}]",
        three_digits(spread.min),
        three_digits(spread.max)
    )
}

/// Three significant digits or so: 0.193, 1.05, 13.7, 112.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        v if v < 0.9995 => 3,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

pub(crate) fn write_json(path: &Path, figures: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(figures)?;
    text.push('\n');
    fs::write(path, text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::three_digits;

    #[test]
    fn figures_keep_three_digits() {
        let shown = [0.1934, 1.0, 1.049, 13.66, 112.4].map(three_digits);
        assert_eq!(shown, ["0.193", "1.00", "1.05", "13.7", "112"]);
    }
}
