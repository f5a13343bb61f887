use std::{fmt, sync::Arc, time::Duration};

use crate::{
    base::{error::ConfigError, process, time::FOREVER},
    middleware::pressure::measure::{Figure, Points, Resource},
};

/// From when on a process is short of something, and how a [`PressureLayer`](crate::pressure::PressureLayer) then
/// goes about it. Every threshold is off unless it is set.
#[derive(Clone)]
pub struct Thresholds {
    descriptors: Option<Points>,
    memory: Option<Memory>,
    lag: Option<(Duration, Duration)>,
    own: Vec<(&'static str, Figure)>,
    pub(super) shrink_to: f32,
    pub(super) reclaim: usize,
    pub(super) every: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Memory {
    Bytes { soft: u64, hard: u64 },
    OfLimit(Points),
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            descriptors: None,
            memory: None,
            lag: None,
            own: Vec::new(),
            shrink_to: SHRINK_TO,
            reclaim: RECLAIM,
            every: EVERY,
        }
    }
}

impl Thresholds {
    /// Open descriptors, as shares of the process's limit, whatever that is at the time. A process without a limit is
    /// never short of them. What goes well: 0.8 and 0.95.
    #[must_use]
    pub fn descriptors(mut self, soft: f64, hard: f64) -> Self {
        self.descriptors = Some(Points { soft, hard });
        self
    }

    /// Resident memory of the process, in bytes.
    #[must_use]
    pub fn memory(mut self, soft: u64, hard: u64) -> Self {
        self.memory = Some(Memory::Bytes { soft, hard });
        self
    }

    /// Resident memory of the process, as shares of the limit of its control group (either version), which is read when the
    /// layer is built: what a container's memory limit is to the process inside. Whatever else is charged to the
    /// group, other processes and the files that they read, is not seen. What goes well: 0.8 and 0.95.
    #[must_use]
    pub fn memory_of_limit(mut self, soft: f64, hard: f64) -> Self {
        self.memory = Some(Memory::OfLimit(Points { soft, hard }));
        self
    }

    /// How late the runtime comes to what is due, two ticks in a row. Timers are a millisecond coarse, so that a soft point
    /// below 10 ms is noise.
    #[must_use]
    pub fn lag(mut self, soft: Duration, hard: Duration) -> Self {
        self.lag = Some((soft, hard));
        self
    }

    /// A level of your own: the share of a queue that is full, say. `level` is asked once a tick, on a thread of the
    /// runtime, so it must not block; 0 or less is no pressure, 1 or more refuses newcomers, and what is no
    /// number, or a panic, is 0. `name` is the `resource` in metrics and errors.
    #[must_use]
    pub fn own(
        mut self,
        name: &'static str,
        level: impl Fn() -> f32 + Send + Sync + 'static,
    ) -> Self {
        self.own
            .push((name, Figure(Arc::new(level))));
        self
    }

    /// The share of the first-byte and idle limits that is left at the hard point. 1 leaves them as they are. Whatever the
    /// share, 1 s is left, or the limit itself if it is shorter. Default: 0.1.
    #[must_use]
    pub fn shrink_to(mut self, share: f32) -> Self {
        self.shrink_to = share;
        self
    }

    /// How many idle connections are told to leave in one tick. Zero leaves them alone. Default: 32.
    #[must_use]
    pub fn reclaim(mut self, in_a_tick: usize) -> Self {
        self.reclaim = in_a_tick;
        self
    }

    /// The tick: how often it measures and acts. Default: 100 ms.
    #[must_use]
    pub fn every(mut self, tick: Duration) -> Self {
        self.every = tick;
        self
    }

    /// What is to be measured, each with its points.
    pub(super) fn check(&self) -> Result<Vec<(Resource, Points)>, ConfigError> {
        if self.every.is_zero() {
            return Err(ConfigError::zero("every"));
        }
        if self.every >= FOREVER {
            return Err(ConfigError::new("every", "must be a time that passes"));
        }
        if !(0.0..=1.0).contains(&self.shrink_to) {
            let problem = "must be at least 0 and at most 1";
            return Err(ConfigError::new("shrink_to", problem));
        }
        let mut resources = Vec::new();
        if let Some(points) = self.descriptors {
            let points = points.check_shares("descriptors")?;
            process::open_descriptors()
                .map_err(|error| cannot_measure("descriptors", &error.to_string()))?;
            resources.push((Resource::Descriptors, points));
        }
        if let Some(memory) = self.memory {
            resources.push((Resource::Memory, memory.points()?));
        }
        if let Some((soft, hard)) = self.lag {
            let [soft, hard] = [soft, hard].map(|lag| lag.as_secs_f64());
            let points = Points { soft, hard }.check("lag")?;
            resources.push((Resource::Lag, points));
        }
        for (name, _) in &self.own {
            let mut known = resources.iter();
            if known.any(|(resource, _)| resource.label() == *name) || is_built_in(name) {
                let problem = format!("has `{name}`, which is measured already");
                return Err(ConfigError::new("own", problem));
            }
            let points = Points {
                soft: 0.0,
                hard: 1.0,
            };
            resources.push((Resource::Own(name), points));
        }
        Ok(resources)
    }

    /// What is asked, in the order of the resources.
    pub(super) fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.own
            .iter()
            .map(|(_, figure)| figure)
    }
}

impl Memory {
    fn points(self) -> Result<Points, ConfigError> {
        match self {
            Self::Bytes { soft, hard } => Points {
                soft: soft as f64,
                hard: hard as f64,
            }
            .check("memory"),
            Self::OfLimit(shares) => {
                let shares = shares.check_shares("memory_of_limit")?;
                let limit = process::memory_limit().ok_or_else(|| {
                    cannot_measure("memory_of_limit", "no control group has a limit")
                })?;
                Ok(Points {
                    soft: shares.soft * limit as f64,
                    hard: shares.hard * limit as f64,
                })
            }
        }
    }
}

impl Points {
    fn check(self, setting: &'static str) -> Result<Self, ConfigError> {
        if self.soft > 0.0 && self.soft < self.hard {
            return Ok(self);
        }
        let problem = "must have a soft point above zero and below the hard one";
        Err(ConfigError::new(setting, problem))
    }

    fn check_shares(self, setting: &'static str) -> Result<Self, ConfigError> {
        if self.hard > 1.0 {
            return Err(ConfigError::new(setting, "must be shares, of at most 1"));
        }
        self.check(setting)
    }
}

pub(super) fn cannot_measure(setting: &'static str, why: &str) -> ConfigError {
    ConfigError::new(setting, format!("cannot be measured here: {why}"))
}

/// A name that is not free even while nothing is measured under it.
fn is_built_in(name: &str) -> bool {
    let built_in = [Resource::Descriptors, Resource::Memory, Resource::Lag];
    built_in
        .iter()
        .any(|resource| resource.label() == name)
}

impl fmt::Debug for Thresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own: Vec<_> = self
            .own
            .iter()
            .map(|(name, _)| name)
            .collect();
        f.debug_struct("Thresholds")
            .field("descriptors", &self.descriptors)
            .field("memory", &self.memory)
            .field("lag", &self.lag)
            .field("own", &own)
            .field("shrink_to", &self.shrink_to)
            .field("reclaim", &self.reclaim)
            .field("every", &self.every)
            .finish()
    }
}

/// Far enough to matter, and still several round trips for limits of some seconds.
const SHRINK_TO: f32 = 0.1;

/// As nginx closes in one round: a few hundred a second, so that those who reconnect do not come all at once.
const RECLAIM: usize = 32;

/// Often enough that a burst does not go far, seldom enough to cost nothing.
const EVERY: Duration = Duration::from_millis(100);
