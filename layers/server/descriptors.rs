use std::{io, time::Duration};

use metrics::gauge;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::{MissedTickBehavior, interval};

use crate::base::process::{descriptor_limit, is_out_of_descriptors, open_descriptors};

/// How many descriptors a process may have open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptors {
    soft: Option<u64>,
    hard: Option<u64>,
}

impl Descriptors {
    fn of(limit: Rlimit) -> Self {
        Self {
            soft: limit.current,
            hard: limit.maximum,
        }
    }

    /// The limit in force; `None` for none.
    #[must_use]
    pub fn soft(&self) -> Option<u64> {
        self.soft
    }

    /// What the limit may be raised to; `None` for anything.
    #[must_use]
    pub fn hard(&self) -> Option<u64> {
        self.hard
    }
}

/// Raises this process's limit of open descriptors as far as it may, as Go's runtime does at its start, and
/// returns the limit now in force.
///
/// # Errors
///
/// What the kernel answered.
pub fn raise_descriptor_limit() -> io::Result<Descriptors> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit)?;
    }
    Ok(Descriptors::of(limit))
}

/// Reports the open descriptors for ever, and warns once each time they come near the limit.
pub(crate) async fn watch() {
    let (open_gauge, limit_gauge) = (
        gauge!("tower_net_open_descriptors"),
        gauge!("tower_net_descriptor_limit"),
    );
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warned = false;
    loop {
        ticks.tick().await;
        let Some(limit) = descriptor_limit() else {
            return;
        };
        // Off the runtime's threads: with many descriptors it takes milliseconds.
        let counted = tokio::task::spawn_blocking(open_descriptors).await;
        let open = match counted {
            Ok(Ok(open)) => open as u64,
            // None is left to count them with.
            Ok(Err(error)) if is_out_of_descriptors(&error) => limit,
            Ok(Err(_)) | Err(_) => continue,
        };
        open_gauge.set(open as f64);
        limit_gauge.set(limit as f64);
        let near = open >= limit / 10 * 9;
        if near && !warned {
            tracing::warn!(open, limit, "nearly out of descriptors");
        }
        warned = near;
    }
}

/// Often enough for a graph, seldom enough to cost nothing.
const EVERY: Duration = Duration::from_secs(10);
