use std::time::Duration;

use crate::{
    base::error::ConfigError,
    conn::{refusals::Spared, watch::Limits},
};

/// The limits of a [`DeadlineLayer`](crate::deadline::DeadlineLayer). The [module](crate::deadline) says what each covers.
#[derive(Debug, Clone)]
pub struct Deadlines {
    limits: Limits,
    dry_run: bool,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            limits: Limits {
                first_byte: FIRST_BYTE,
                idle: IDLE,
                write_stall: WRITE_STALL,
                age_jitter: AGE_JITTER,
                age_grace: AGE_GRACE,
                rate_window: RATE_WINDOW,
                ..Limits::NONE
            },
            dry_run: false,
        }
    }
}

impl Deadlines {
    /// Every limit off, to turn on one by one.
    #[must_use]
    pub fn none() -> Self {
        Self {
            limits: Limits {
                age_jitter: AGE_JITTER,
                age_grace: AGE_GRACE,
                rate_window: RATE_WINDOW,
                ..Limits::NONE
            },
            dry_run: false,
        }
    }

    /// For the first byte from the peer. Default: 3 s.
    #[must_use]
    pub fn first_byte(mut self, limit: Duration) -> Self {
        self.limits.first_byte = limit;
        self
    }

    /// For silence between requests. Default: 90 s.
    #[must_use]
    pub fn idle(mut self, limit: Duration) -> Self {
        self.limits.idle = limit;
        self
    }

    /// For a write that cannot move a byte. Default: 30 s.
    #[must_use]
    pub fn write_stall(mut self, limit: Duration) -> Self {
        self.limits.write_stall = limit;
        self
    }

    /// For the whole life of a connection. Once it is over the connection is told to leave, and cut when the
    /// [grace](Self::age_grace) is over too. Default: off.
    #[must_use]
    pub fn max_age(mut self, limit: Duration) -> Self {
        self.limits.max_age = limit;
        self
    }

    /// The share by which a connection's maximum age is longer or shorter than the set one, chosen once for
    /// each, so that those that came together do not go together. Default: 0.1.
    #[must_use]
    pub fn age_jitter(mut self, share: f64) -> Self {
        self.limits.age_jitter = share;
        self
    }

    /// How long a connection that was told to leave for its age may take. Zero cuts at once;
    /// [`Duration::MAX`] never cuts. Default: 30 s.
    #[must_use]
    pub fn age_grace(mut self, grace: Duration) -> Self {
        self.limits.age_grace = grace;
        self
    }

    /// The least a peer must send while a request is in part here, in bytes a second. Default: off.
    ///
    /// It needs a crossing that knows where a request begins; a raw service has the idle timeout.
    #[must_use]
    pub fn min_receive_rate(mut self, bytes_per_second: u64) -> Self {
        self.limits.min_rate_in = bytes_per_second;
        self
    }

    /// The least a peer must take while a write is waiting for it, in bytes a second. Default: off.
    #[must_use]
    pub fn min_send_rate(mut self, bytes_per_second: u64) -> Self {
        self.limits.min_rate_out = bytes_per_second;
        self
    }

    /// The time over which the minimum rates are taken, which is also the grace at the beginning.
    /// Default: 5 s.
    #[must_use]
    pub fn rate_window(mut self, window: Duration) -> Self {
        self.limits.rate_window = window;
        self
    }

    /// Only counts what passes, by the same reasons, in `tower_net_dry_run_total`, so that limits can be found
    /// from data. What a handler sets for its own reads and writes is kept all the same, and so are the deadlines of
    /// [`Framing`](crate::frame::Framing), which has a dry run of its own. Default: off.
    #[must_use]
    pub fn dry_run(mut self, on: bool) -> Self {
        self.dry_run = on;
        self
    }

    /// The metrics' handles are made here, once.
    pub(super) fn into_limits(self) -> Limits {
        Limits {
            spared: self
                .dry_run
                .then(|| Spared::new(Limits::REASONS)),
            ..self.limits
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        for (setting, limit) in [
            ("first_byte", limits.first_byte),
            ("idle", limits.idle),
            ("write_stall", limits.write_stall),
            ("max_age", limits.max_age),
            ("rate_window", limits.rate_window),
        ] {
            if limit.is_zero() {
                return Err(ConfigError::zero(setting));
            }
        }
        if !(0.0..1.0).contains(&limits.age_jitter) {
            return Err(ConfigError::new(
                "age_jitter",
                "must be at least 0 and below 1",
            ));
        }
        Ok(())
    }
}

/// Time for a human to type, and for a client that opens before it knows what to ask, is not what raw
/// protocols need: their clients speak first and at once. Above 1 s, so that one lost packet costs nobody.
const FIRST_BYTE: Duration = Duration::from_secs(3);

/// As Go's `http.Transport` keeps its idle connections: a client pool of that kind never meets a close.
const IDLE: Duration = Duration::from_secs(90);

/// Longer than any pause of a peer that will go on; shorter than the minutes TCP itself would take.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// As gRPC spreads its connection ages.
const AGE_JITTER: f64 = 0.1;

/// Long enough for nearly every request under way.
const AGE_GRACE: Duration = Duration::from_secs(30);

/// Longer than one retransmission, so that a lost packet is not slowness.
const RATE_WINDOW: Duration = Duration::from_secs(5);
