//! What the demo shows: an opening, a line a second, and a table at the end.

use std::{fmt, net::SocketAddr, time::Duration};

use tower_net::{CloseReason, meter::Snapshot};

use crate::demo::{
    CALLERS, CLIENTS, FIRST_BYTE, IDLE, LISTENERS, MAX_CONNECTIONS, Outcome, REQUEST, WRITE_STALL,
};

/// What is about to happen.
pub(crate) fn opening(addr: SocketAddr, duration: Duration) -> String {
    format!(
        "rpc on {addr} for {duration:?}: {CLIENTS} good clients with {CALLERS} calls in flight each, and bad \
         peers beside them.\nDeadlines are shorter than their defaults, so that each is seen: first byte \
         {FIRST_BYTE:?}, idle {IDLE:?}, request {REQUEST:?}, write stall {WRITE_STALL:?}; at most \
         {MAX_CONNECTIONS} connections."
    )
}

/// How far it has come.
pub(crate) fn progress(at: Duration, answered: u64, in_last: u64, wire: &Snapshot) -> String {
    let mut line = format!(
        "{:>3} s  {:>11} requests  {:>9}/s  {:>3} open  ended:",
        at.as_secs(),
        grouped(answered),
        grouped(in_last),
        wire.active(),
    );
    for reason in CloseReason::ALL {
        let count = wire.closed_for(*reason);
        if count > 0 {
            line += &format!(" {reason} {count}");
        }
    }
    line
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seen, report) = (&self.seen, &self.report);
        let seconds = self.served_for.as_secs_f64();
        writeln!(
            f,
            "good clients ({CLIENTS} with {CALLERS} calls in flight each, {LISTENERS} that wait for changes)"
        )?;
        row(f, "requests", seen.answered, "answered, each reply checked")?;
        let rate = (seen.answered as f64 / seconds) as u64;
        row(f, "requests/s", rate, &format!("over {seconds:.1} s"))?;
        row(f, "wrong replies", seen.wrong, "")?;
        row(f, "lost calls", seen.lost, "")?;
        write!(f, "  latency        ")?;
        for (name, percent) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)] {
            write!(f, " {name} {}  ", short(seen.latency.percentile(percent)))?;
        }
        writeln!(f, " max {}", short(seen.latency.max()))?;

        writeln!(f, "\nbytes")?;
        row(f, "received", self.wire.read(), "")?;
        row(f, "sent", self.wire.written(), "")?;

        writeln!(f, "\nconnections ({} opened)", report.opened())?;
        writeln!(
            f,
            "  {:<12}{:>7}{:>10}{:>10}  what the peer did",
            "reason", "ended", "expected", "after"
        )?;
        for reason in CloseReason::ALL {
            let (ended, expected) = (report.closed_for(*reason), self.expected(*reason));
            if ended + expected > 0 {
                let (label, after) = (reason.label(), self.typically_after(*reason));
                let what = meaning(*reason);
                writeln!(
                    f,
                    "  {label:<12}{ended:>7}{expected:>10}{after:>10}  {what}"
                )?;
            }
        }

        writeln!(
            f,
            "\ndrain (begun under full load, took {})",
            short(report.drained_in())
        )?;
        row(
            f,
            "finished",
            report.finished(),
            "connections had calls unanswered, and answered them",
        )?;
        row(f, "idle", report.closed_idle(), "had none at that moment")?;
        row(f, "cut", report.cut(), "had not left in time")?;
        row(
            f,
            "turned away",
            seen.turned_away,
            "calls came too late, and were not begun",
        )?;
        row(
            f,
            "astray",
            seen.astray,
            "keys differ from what the replies promised",
        )?;

        match &self.faults()[..] {
            [] => writeln!(
                f,
                "\nAll good requests were right, and every bad peer was ended for what it did."
            ),
            faults => {
                writeln!(f, "\nNot as it should be:")?;
                let shown = faults.iter().take(FAULTS);
                shown
                    .into_iter()
                    .try_for_each(|fault| writeln!(f, "  {fault}"))?;
                match faults.len().saturating_sub(FAULTS) {
                    0 => Ok(()),
                    more => writeln!(f, "  and {more} more"),
                }
            }
        }
    }
}

impl Outcome {
    /// The median of how long peers took to be ended for `reason`.
    fn typically_after(&self, reason: CloseReason) -> String {
        let ended = self
            .peers
            .ended
            .iter()
            .filter(|(why, _)| *why == reason);
        let mut times: Vec<_> = ended.map(|(_, took)| *took).collect();
        times.sort_unstable();
        times
            .get(times.len() / 2)
            .map_or_else(String::new, |median| short(*median))
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, count: u64, what: &str) -> fmt::Result {
    let line = format!("  {name:<14}{:>15}  {what}", grouped(count));
    writeln!(f, "{}", line.trim_end())
}

/// What the peers of this demo did, whose connections end for `reason`.
fn meaning(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::Drain => "left when the server asked, after its last reply",
        CloseReason::FirstByte => "never sent a byte",
        CloseReason::Idle => "fell silent after its first request",
        CloseReason::Limit => "came when every place was taken",
        CloseReason::Oversize => "announced too large a frame",
        CloseReason::Peer => "left by itself",
        CloseReason::Protocol => "sent a frame that holds no call",
        CloseReason::Request => "sent a frame byte by byte",
        CloseReason::WriteStall => "read none of its replies",
        _ => "not expected here",
    }
}

/// Digits in groups of three.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Three digits are all that one run can tell.
pub(crate) fn short(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds if seconds >= 0.1 => format!("{:.0} ms", seconds * 1e3),
        seconds if seconds >= 0.01 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{:.2} ms", seconds * 1e3),
    }
}

/// So many things that went wrong are shown; what matters is that there are any.
const FAULTS: usize = 20;
