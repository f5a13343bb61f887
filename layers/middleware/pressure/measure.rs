//! What is measured, and what of it everybody can see.

use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use metrics::{Gauge, gauge};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

use crate::{
    base::{
        error::ConfigError,
        process::{ResidentMemory, descriptor_limit, is_out_of_descriptors, open_descriptors},
        time::now,
    },
    middleware::pressure::{Overloaded, Thresholds, settings::cannot_measure},
};

/// What a process can be short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// Open descriptors; measured as a share of their limit.
    Descriptors,
    /// Resident memory; measured in bytes.
    Memory,
    /// Time: how late the runtime comes to what is due; measured in seconds.
    Lag,
    /// A figure of the user's own, by its name; measured as a level.
    Own(&'static str),
}

impl Resource {
    /// The fixed name in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
            Self::Lag => "lag",
            Self::Own(name) => name,
        }
    }

    /// Whether a connection that does nothing holds any of it.
    fn is_held_by_the_idle(self) -> bool {
        self != Self::Lag
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A figure of the user's own.
#[derive(Clone)]
pub(super) struct Figure(pub(super) Arc<dyn Fn() -> f32 + Send + Sync>);

impl Figure {
    fn ask(&self) -> f64 {
        // The figure is the user's: the rest of the measuring goes on without it.
        let level = catch_unwind(AssertUnwindSafe(|| (self.0)()));
        level.unwrap_or(0.0).into()
    }
}

impl fmt::Debug for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figure")
            .finish_non_exhaustive()
    }
}

/// Where a resource becomes short, and where there is no more of it to give.
#[derive(Debug, Clone, Copy)]
pub(super) struct Points {
    pub(super) soft: f64,
    pub(super) hard: f64,
}

impl Points {
    fn level(self, measured: f64) -> f32 {
        if measured.is_nan() {
            return 0.0;
        }
        let level = (measured - self.soft) / (self.hard - self.soft);
        level.clamp(0.0, 1.0) as f32
    }
}

/// What was measured last, and what was done: for everybody to see.
pub(super) struct Readings {
    resources: Vec<Reading>,
    descriptors: Descriptors,
    pub(super) open: AtomicUsize,
    pub(super) refused: AtomicU64,
    pub(super) reclaimed: AtomicU64,
}

/// One resource.
struct Reading {
    resource: Resource,
    points: Points,
    /// The bits of a number; relaxed, since nothing else goes by them.
    measured: AtomicU64,
    level: AtomicU32,
    gauge: Gauge,
}

/// How many descriptors are open, at any time between two counts.
#[derive(Debug, Default)]
struct Descriptors {
    /// Zero while it is not known.
    limit: AtomicU64,
    /// Those that were open when they were counted, but for connections of this layer.
    others: AtomicI64,
}

impl Descriptors {
    /// The share of the limit that is in use with so many connections.
    fn share(&self, open: usize) -> f64 {
        match self.limit.load(Relaxed) {
            0 => 0.0,
            limit => (self.others.load(Relaxed) + open as i64) as f64 / limit as f64,
        }
    }

    fn learn(&self, count: &Count) {
        let limit = descriptor_limit();
        let descriptors = match (&count.descriptors, limit) {
            (Ok(descriptors), _) => *descriptors as i64,
            // None is left to count them with.
            (Err(error), Some(limit)) if is_out_of_descriptors(error) => limit as i64,
            (Err(_), _) => return,
        };
        self.others
            .store(descriptors - count.connections as i64, Relaxed);
        self.limit
            .store(limit.unwrap_or(0), Relaxed);
    }
}

impl Reading {
    fn new(resource: Resource, points: Points) -> Self {
        Self {
            resource,
            points,
            measured: AtomicU64::new(0_f64.to_bits()),
            level: AtomicU32::new(0_f32.to_bits()),
            gauge: gauge!("tower_net_pressure", "resource" => resource.label()),
        }
    }

    fn set(&self, measured: f64) {
        let level = self.points.level(measured);
        self.measured
            .store(measured.to_bits(), Relaxed);
        self.level
            .store(level.to_bits(), Relaxed);
        self.gauge.set(f64::from(level));
    }

    fn measured(&self) -> f64 {
        f64::from_bits(self.measured.load(Relaxed))
    }

    fn level(&self) -> f32 {
        f32::from_bits(self.level.load(Relaxed))
    }
}

impl Readings {
    /// The metrics' handles are made here, once.
    pub(super) fn new(resources: Vec<(Resource, Points)>) -> Self {
        Self {
            resources: resources
                .into_iter()
                .map(|(resource, points)| Reading::new(resource, points))
                .collect(),
            descriptors: Descriptors::default(),
            open: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            reclaimed: AtomicU64::new(0),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    pub(super) fn levels(&self) -> impl Iterator<Item = (Resource, f32)> {
        self.resources
            .iter()
            .map(|reading| (reading.resource, reading.level()))
    }

    /// The highest level of what those hold who do nothing.
    pub(super) fn level_of_the_idle(&self) -> f32 {
        self.levels()
            .filter(|(resource, _)| resource.is_held_by_the_idle())
            .map(|(_, level)| level)
            .fold(0.0, f32::max)
    }

    /// What there is nothing left of. Descriptors as of now, the rest as of the last tick.
    pub(super) fn overloaded(&self) -> Option<Overloaded> {
        self.resources
            .iter()
            .find_map(|reading| {
                let measured = match reading.resource {
                    Resource::Descriptors => self
                        .descriptors
                        .share(self.open.load(Relaxed)),
                    _ => reading.measured(),
                };
                let hard = reading.points.hard;
                (measured >= hard).then(|| Overloaded::new(reading.resource, measured, hard))
            })
    }

    /// Nobody measures any more.
    pub(super) fn clear(&self) {
        self.descriptors.limit.store(0, Relaxed);
        for reading in &self.resources {
            reading.set(0.0);
        }
    }
}

impl fmt::Debug for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readings")
            .field("levels", &self.levels().collect::<Vec<_>>())
            .field("open", &self.open)
            .field("refused", &self.refused)
            .field("reclaimed", &self.reclaimed)
            .finish_non_exhaustive()
    }
}

/// Where the figures come from.
#[derive(Debug)]
pub(super) struct Sources {
    memory: Option<ResidentMemory>,
    figures: Vec<Figure>,
}

impl Sources {
    pub(super) fn open(thresholds: &Thresholds, readings: &Readings) -> Result<Self, ConfigError> {
        let mut resources = readings.levels();
        let measures_memory = resources.any(|(resource, _)| resource == Resource::Memory);
        let memory = measures_memory
            .then(ResidentMemory::open)
            .transpose()
            .map_err(|error| cannot_measure("memory", &error.to_string()))?;
        Ok(Self {
            memory,
            figures: thresholds.figures().cloned().collect(),
        })
    }
}

/// What one who measures remembers from tick to tick.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    /// How late the last tick was.
    late: Duration,
    /// Descriptors are being counted, on another thread.
    counting: Option<JoinHandle<Count>>,
    /// When descriptors were last counted, and how long that took.
    counted_at: Option<Instant>,
    took: Duration,
}

/// Descriptors, and the connections that are among them.
#[derive(Debug)]
struct Count {
    descriptors: io::Result<usize>,
    connections: usize,
    took: Duration,
}

impl Count {
    /// Counts, which takes a while. What opens or closes meanwhile may or may not be in the count: it is taken to be,
    /// so that a burst is not counted twice and refused for that. The next count sets it right.
    fn take(readings: &Readings) -> Self {
        let (begun, before) = (now(), readings.open.load(Relaxed));
        let descriptors = open_descriptors();
        let after = readings.open.load(Relaxed);
        Self {
            descriptors,
            connections: before.max(after),
            took: now() - begun,
        }
    }
}

impl Sampler {
    /// Measures everything, at a tick that comes so late.
    pub(super) async fn measure(
        &mut self,
        sources: &Sources,
        readings: &Arc<Readings>,
        now: Instant,
        late: Duration,
    ) {
        let lag = late.min(std::mem::replace(&mut self.late, late));
        let mut figures = sources.figures.iter();
        for reading in &readings.resources {
            let measured = match reading.resource {
                Resource::Descriptors => {
                    self.count_descriptors(reading, readings, now)
                        .await
                }
                Resource::Memory => sources
                    .memory
                    .as_ref()
                    .and_then(|memory| memory.bytes().ok())
                    .map_or_else(|| reading.measured(), |bytes| bytes as f64),
                Resource::Lag => lag.as_secs_f64(),
                Resource::Own(_) => figures.next().map_or(0.0, Figure::ask),
            };
            reading.set(measured);
        }
    }

    /// The share in use: by the last count, and by what has opened and closed since.
    async fn count_descriptors(
        &mut self,
        reading: &Reading,
        readings: &Arc<Readings>,
        now: Instant,
    ) -> f64 {
        let descriptors = &readings.descriptors;
        if let Some(counting) = self
            .counting
            .take_if(|counting| counting.is_finished())
        {
            // Ready, since it is finished; an error only if the runtime is ending.
            if let Ok(count) = counting.await {
                descriptors.learn(&count);
                self.took = count.took;
            }
        }
        let open = readings.open.load(Relaxed);
        let share = descriptors.share(open);
        let is_near = share >= reading.points.soft;
        let is_due = |at| now - at >= pause(is_near, self.took);
        if self.counting.is_none() && self.counted_at.is_none_or(is_due) {
            self.counted_at = Some(now);
            let readings = Arc::clone(readings);
            self.counting = Some(spawn_blocking(move || Count::take(&readings)));
        }
        share
    }
}

/// How long after the last count, which took so long, the next one may begin: when few are left in the next tick,
/// but in a tenth of the time at the most, since whoever opens connections must not keep a processor busy with it.
fn pause(is_near: bool, took: Duration) -> Duration {
    let least = if is_near { Duration::ZERO } else { COUNT_EVERY };
    least.max(took.saturating_mul(10))
}

/// With many descriptors it takes milliseconds, and connections are added in between.
const COUNT_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn connections_that_come_and_go_between_two_counts_are_added_and_subtracted() {
        let descriptors = Descriptors::default();
        let unknown = descriptors.share(1_000);
        let limit = descriptor_limit().unwrap_or(0) as f64;

        descriptors.learn(&Count {
            descriptors: Ok(30),
            connections: 20,
            took: Duration::ZERO,
        });
        let open = [20, 25, 0].map(|open| (descriptors.share(open) * limit).round());
        descriptors.learn(&Count {
            descriptors: Err(Errno::MFILE.into()),
            connections: 20,
            took: Duration::ZERO,
        });
        let none_left = descriptors.share(20);
        descriptors.learn(&Count {
            descriptors: Err(io::ErrorKind::NotFound.into()),
            connections: 0,
            took: Duration::ZERO,
        });

        assert_eq!((unknown, open), (0.0, [30.0, 35.0, 10.0]));
        assert_eq!((none_left, descriptors.share(20)), (1.0, 1.0));
    }

    #[test]
    fn counting_takes_a_tenth_of_the_time_at_the_most() {
        let millis = Duration::from_millis;
        let pauses = [(false, 1), (false, 300), (true, 0), (true, 300)];

        let pauses = pauses.map(|(is_near, took)| pause(is_near, millis(took)));

        assert_eq!(pauses, [1_000, 3_000, 0, 3_000].map(millis));
        assert_eq!(pause(true, Duration::MAX), Duration::MAX);
    }

    #[test]
    fn a_level_goes_from_the_soft_point_to_the_hard_one() {
        let points = Points {
            soft: 2.0,
            hard: 4.0,
        };
        let measured = [0.0, 2.0, 2.5, 4.0, 9.0, f64::NAN, f64::INFINITY];

        let levels = measured.map(|measured| points.level(measured));

        assert_eq!(levels, [0.0, 0.0, 0.25, 1.0, 1.0, 0.0, 1.0]);
    }
}
