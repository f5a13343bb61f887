use std::time::Duration;

use tokio::runtime::Handle;

use super::{
    books::Limits,
    health::{ConnectBackoff, chance},
};
use crate::base::{
    error::ConfigError,
    time::{FOREVER, require_driver},
};

/// The bounds of a [`PoolLayer`](crate::pool::PoolLayer); each setter says what it bounds.
#[derive(Debug, Clone)]
pub struct Pooling {
    limits: Limits,
    pub(super) lifetime: Duration,
    pub(super) jitter: f64,
    pub(super) within: Duration,
    pub(super) dial_within: Duration,
    runtime: Option<Handle>,
}

impl Default for Pooling {
    fn default() -> Self {
        Self {
            limits: Limits {
                open: OPEN,
                open_per_target: usize::MAX,
                idle_per_target: IDLE_PER_TARGET,
                waiting: WAITING,
                idle_for: Some(IDLE),
                backoff: ConnectBackoff::default(),
            },
            lifetime: Duration::MAX,
            jitter: JITTER,
            within: WITHIN,
            dial_within: DIAL_WITHIN,
            runtime: None,
        }
    }
}

impl Pooling {
    /// Connections in all, whether idle, in use or being opened. Where all are taken, the one to another target that
    /// has been idle longest makes room; else one waits. Default: 1000.
    #[must_use]
    pub fn max_open(mut self, connections: usize) -> Self {
        self.limits.open = connections;
        self
    }

    /// The same for each target. Default: as many as in all.
    #[must_use]
    pub fn max_open_per_target(mut self, connections: usize) -> Self {
        self.limits.open_per_target = connections;
        self
    }

    /// Connections to a target that are kept while nobody uses them. Zero keeps none: every get dials, unless somebody
    /// waits for what is given back. Default: 100.
    #[must_use]
    pub fn max_idle_per_target(mut self, connections: usize) -> Self {
        self.limits.idle_per_target = connections;
        self
    }

    /// Those who wait for a place, of all targets. One more who comes is refused at once. Zero has nobody wait.
    /// Default: 1024.
    ///
    /// Whoever has had a place to dial in is not counted, also while a connection that comes first is somebody else's;
    /// and one who was given a connection that turned out to be dead stands in line again, however many there are. Both
    /// have to do with a place each, so that there are not many more of them than there are places.
    #[must_use]
    pub fn max_waiting(mut self, gets: usize) -> Self {
        self.limits.waiting = gets;
        self
    }

    /// A connection that nobody has used for so long is closed; [`Duration::MAX`] never closes it. It should be
    /// shorter than the idle timeout of the servers. Default: 90 s.
    #[must_use]
    pub fn idle_timeout(mut self, limit: Duration) -> Self {
        self.limits.idle_for = (limit < FOREVER).then_some(limit);
        self
    }

    /// A connection that was opened so long ago is closed: while it is idle, or when it comes back; never while it is
    /// in use. Default: off, as [`Duration::MAX`] is.
    #[must_use]
    pub fn max_lifetime(mut self, limit: Duration) -> Self {
        self.lifetime = limit;
        self
    }

    /// The share of the maximum lifetime by which a connection may go earlier, chosen by chance for each, so that
    /// those that came together do not go together. Default: 0.1.
    #[must_use]
    pub fn lifetime_jitter(mut self, share: f64) -> Self {
        self.jitter = share;
        self
    }

    /// For a get, from its first poll on, whatever it meets on its way: the queue, dead connections, a dial. The
    /// caller's own [`Deadline`](crate::Deadline) comes first if it is earlier; [`Duration::MAX`] leaves it to that one
    /// alone. Default: 30 s.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.within = limit;
        self
    }

    /// For a dial, handshakes and all, whether or not somebody still waits for it: the connectors below see it as
    /// their [`Deadline`](crate::Deadline). With [`Duration::MAX`] a dial that hangs holds a place until they end it.
    /// Default: 10 s.
    #[must_use]
    pub fn dial_within(mut self, limit: Duration) -> Self {
        self.dial_within = limit;
        self
    }

    /// When to stop dialling a target that cannot be reached. Default: see [`ConnectBackoff`].
    #[must_use]
    pub fn backoff(mut self, backoff: ConnectBackoff) -> Self {
        self.limits.backoff = backoff;
        self
    }

    /// Where the pool's own tasks run: one that looks after it, and one for each dial. Default: the runtime in which
    /// the layer is made.
    #[must_use]
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn check(&self) -> Result<Handle, ConfigError> {
        let limits = &self.limits;
        for (setting, is_zero) in [
            ("max_open", limits.open == 0),
            ("max_open_per_target", limits.open_per_target == 0),
            ("idle_timeout", limits.idle_for == Some(Duration::ZERO)),
            ("max_lifetime", self.lifetime.is_zero()),
            ("within", self.within.is_zero()),
            ("dial_within", self.dial_within.is_zero()),
            ("backoff", limits.backoff.after == Some(0)),
            ("backoff", limits.backoff.first.is_zero()),
        ] {
            if is_zero {
                return Err(ConfigError::zero(setting));
            }
        }
        if limits.backoff.most < limits.backoff.first {
            return Err(ConfigError::new(
                "backoff",
                "must not have a longest pause below the first",
            ));
        }
        if !(0.0..1.0).contains(&self.jitter) {
            return Err(ConfigError::new(
                "lifetime_jitter",
                "must be at least 0 and below 1",
            ));
        }
        let runtime = match &self.runtime {
            Some(runtime) => Some(runtime.clone()),
            None => Handle::try_current().ok(),
        };
        let Some(runtime) = runtime else {
            return Err(ConfigError::new(
                "runtime",
                "must be given where the layer is made outside of one",
            ));
        };
        let entered = runtime.enter();
        let keeps_time = require_driver();
        drop(entered);
        keeps_time
            .map_err(|error| ConfigError::new("runtime", format!("cannot keep time: {error}")))?;
        Ok(runtime)
    }

    /// How long a connection that is opened now may live.
    pub(super) fn lifetime(&self) -> Option<Duration> {
        if self.lifetime >= FOREVER {
            return None;
        }
        Some(
            self.lifetime
                .mul_f64(1.0 - self.jitter * chance()),
        )
    }
}

/// Far below the descriptors that a process has, far above what one service needs at once.
const OPEN: usize = 1000;

/// What a burst leaves behind, and no more.
const IDLE_PER_TARGET: usize = 100;

/// As many as there are connections: those who come later would hardly be served in time.
const WAITING: usize = 1024;

/// As Go's `http.Transport` keeps them.
const IDLE: Duration = Duration::from_secs(90);

/// As deadlines spread the ages of connections.
const JITTER: f64 = 0.1;

/// What callers wait before they give up themselves.
const WITHIN: Duration = Duration::from_secs(30);

/// A few lost packets and a handshake.
const DIAL_WITHIN: Duration = Duration::from_secs(10);
