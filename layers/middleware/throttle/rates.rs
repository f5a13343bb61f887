use std::time::Duration;

use tokio::time::Instant;

use crate::base::{error::ConfigError, time::later};

/// So many bytes a second, and how many may pass at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_second: u64,
    burst: u64,
}

impl Rate {
    /// So many bytes a second, from 1 to 64 GiB.
    #[must_use]
    pub fn per_second(bytes: u64) -> Self {
        Self {
            per_second: bytes,
            burst: (bytes / 10).max(LEAST_BURST),
        }
    }

    /// How many bytes may pass at once after a pause: from what passes in 10 ms, since timers are no finer than
    /// some of those, to 1 TiB. Default: what passes in 100 ms, and at least 1 KiB.
    #[must_use]
    pub fn burst(mut self, bytes: u64) -> Self {
        self.burst = bytes;
        self
    }

    /// The bytes a second.
    #[must_use]
    pub fn bytes_per_second(&self) -> u64 {
        self.per_second
    }

    /// The bytes that may pass at once.
    #[must_use]
    pub fn burst_bytes(&self) -> u64 {
        self.burst
    }

    fn check(&self, setting: &'static str) -> Result<(), ConfigError> {
        if self.per_second == 0 || self.burst == 0 {
            return Err(ConfigError::zero(setting));
        }
        if self.per_second > MOST_PER_SECOND || self.burst > MOST_BURST {
            let problem = "must be at most 64 GiB a second, in bursts of at most 1 TiB";
            return Err(ConfigError::new(setting, problem));
        }
        let least = self.per_second / 100;
        if self.burst < least {
            let problem = format!("needs bursts of {least} bytes, what passes in 10 ms, at least");
            return Err(ConfigError::new(setting, problem));
        }
        Ok(())
    }
}

/// The rates of a [`ThrottleLayer`](super::ThrottleLayer): each is optional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rates {
    /// In the order of [`Direction`].
    pub(super) stream: [Option<Rate>; 2],
    pub(super) shared: [Option<Rate>; 2],
}

/// Seen from here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
    Receive = 0,
    Send = 1,
}

impl Rates {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What each stream may receive.
    #[must_use]
    pub fn receive(mut self, rate: Rate) -> Self {
        self.stream[Direction::Receive as usize] = Some(rate);
        self
    }

    /// What each stream may send.
    #[must_use]
    pub fn send(mut self, rate: Rate) -> Self {
        self.stream[Direction::Send as usize] = Some(rate);
        self
    }

    /// What all streams together may receive.
    #[must_use]
    pub fn receive_shared(mut self, rate: Rate) -> Self {
        self.shared[Direction::Receive as usize] = Some(rate);
        self
    }

    /// What all streams together may send.
    #[must_use]
    pub fn send_shared(mut self, rate: Rate) -> Self {
        self.shared[Direction::Send as usize] = Some(rate);
        self
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let [receive, send] = self.stream;
        let [receive_shared, send_shared] = self.shared;
        let mut any = false;
        for (setting, rate) in [
            ("receive", receive),
            ("send", send),
            ("receive_shared", receive_shared),
            ("send_shared", send_shared),
        ] {
            if let Some(rate) = rate {
                any = true;
                rate.check(setting)?;
            }
        }
        if !any {
            return Err(ConfigError::new("rates", "has none"));
        }
        Ok(())
    }
}

/// A rate as a line: where it has come to at a point in time, in bytes.
///
/// Whoever spends bytes has a place on the line, which never overtakes it. So nothing is rounded but the line
/// itself, by less than a byte however long it goes on; and a change of the rate bends the line, and moves nobody.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    since: Instant,
    base: u64,
    /// Zero if there is none.
    rate: u64,
    pub(super) burst: u64,
}

impl Line {
    pub(super) fn new(since: Instant, rate: Option<Rate>) -> Self {
        Self {
            since,
            // So that a whole burst lies behind it.
            base: MOST_BURST,
            rate: rate.map_or(0, |rate| rate.per_second),
            burst: rate.map_or(0, |rate| rate.burst),
        }
    }

    /// The same line, which goes on at another rate from now.
    pub(super) fn bent(&self, now: Instant, rate: Option<Rate>) -> Self {
        Self {
            base: self.at(now),
            ..Self::new(now, rate)
        }
    }

    pub(super) fn is_limit(&self) -> bool {
        self.rate > 0
    }

    /// Where it has come to.
    pub(super) fn at(&self, now: Instant) -> u64 {
        let nanos = now
            .saturating_duration_since(self.since)
            .as_nanos();
        let passed = nanos.saturating_mul(self.rate.into()) / NANOS;
        u64::try_from(passed).map_or(u64::MAX, |passed| self.base.saturating_add(passed))
    }

    /// When it comes to `place`; `None` if that is too far away for a clock.
    pub(super) fn when(&self, place: u64) -> Option<Instant> {
        let bytes = u128::from(place.saturating_sub(self.base));
        let nanos = (bytes * NANOS).div_ceil(self.rate.max(1).into());
        let nanos = u64::try_from(nanos).ok()?;
        later(self.since, Duration::from_nanos(nanos))
    }

    /// How many bytes a stream that found nothing left waits for, at the most.
    pub(super) fn portion(&self) -> u64 {
        (self.burst / 2).clamp(1, MOST_AT_ONCE)
    }

    /// How many bytes of what all share a stream has at a time, at the most.
    pub(super) fn share(&self) -> u64 {
        (self.burst / 16).clamp(1, MOST_AT_ONCE)
    }
}

/// The lines of all rates, each in the order of [`Direction`].
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) rates: Rates,
    pub(super) stream: [Line; 2],
    pub(super) shared: [Line; 2],
}

impl Lines {
    pub(super) fn new(now: Instant, rates: Rates) -> Self {
        let line = |rate| Line::new(now, rate);
        Self {
            rates,
            stream: rates.stream.map(line),
            shared: rates.shared.map(line),
        }
    }

    pub(super) fn bent(&self, now: Instant, rates: Rates) -> Self {
        let bent = |lines: &[Line; 2], rates: &[Option<Rate>; 2]| {
            std::array::from_fn(|at| lines[at].bent(now, rates[at]))
        };
        Self {
            rates,
            stream: bent(&self.stream, &rates.stream),
            shared: bent(&self.shared, &rates.shared),
        }
    }
}

/// So that a slow rate lets a small message pass whole.
const LEAST_BURST: u64 = 1024;

/// More than any card moves; a line this steep has room for eight years.
const MOST_PER_SECOND: u64 = 1 << 36;

const MOST_BURST: u64 = 1 << 40;

/// More than this is rarely read or written at once, and others would wait for longer.
const MOST_AT_ONCE: u64 = 64 * 1024;

const NANOS: u128 = 1_000_000_000;
