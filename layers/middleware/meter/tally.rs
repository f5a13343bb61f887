use std::{
    fmt,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed},
        },
    },
};

use metrics::{Counter, Gauge, Histogram, Label, counter, gauge, histogram};

use crate::conn::CloseReason;

/// Reads what a [`MeterLayer`](crate::meter::MeterLayer) counts; clones share the counts.
#[derive(Debug, Clone)]
pub struct Tally {
    pub(super) counts: Arc<Counts>,
}

impl Tally {
    pub(super) fn new(names: &Names, service: String) -> Self {
        Self {
            counts: Arc::new(Counts::new(names, service)),
        }
    }

    /// The counts now. Bytes of a connection that is busy at this moment may lag by 64 KiB.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let counts = &self.counts;
        // Closed before opened: a connection that comes and goes in between is seen as open, never as
        // closed without having been opened.
        let closed = std::array::from_fn(|index| counts.closed[index].load(Acquire));
        Snapshot {
            closed,
            opened: counts.opened.load(Acquire),
            read: counts.read.load(Relaxed),
            written: counts.written.load(Relaxed),
        }
    }
}

/// What a [`Tally`] held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    opened: u64,
    closed: [u64; REASONS],
    read: u64,
    written: u64,
}

impl Snapshot {
    /// Connections that reached the meter.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Connections that ended.
    #[must_use]
    pub fn closed(&self) -> u64 {
        self.closed.iter().sum()
    }

    /// Connections that ended for `reason`.
    #[must_use]
    pub fn closed_for(&self, reason: CloseReason) -> u64 {
        self.closed[reason.index()]
    }

    /// Connections open: what was opened and has not been closed.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.opened - self.closed()
    }

    /// Bytes received.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.read
    }

    /// Bytes sent.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }
}

/// What all connections add to. Each number stands for itself, so relaxed order is enough to count.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) opened: AtomicU64,
    pub(super) closed: [AtomicU64; REASONS],
    read: AtomicU64,
    written: AtomicU64,
    pub(super) metrics: Metrics,
}

impl Counts {
    fn new(names: &Names, service: String) -> Self {
        Self {
            opened: AtomicU64::new(0),
            closed: std::array::from_fn(|_| AtomicU64::new(0)),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            metrics: Metrics::new(names, service),
        }
    }
}

impl Counts {
    pub(super) fn add_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Relaxed);
        self.metrics.read.increment(bytes);
    }

    pub(super) fn add_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Relaxed);
        self.metrics.written.increment(bytes);
    }
}

/// The same counts for the outside, through handles made once.
pub(super) struct Metrics {
    pub(super) opened: Counter,
    pub(super) closed: [Counter; REASONS],
    pub(super) active: Gauge,
    read: Counter,
    written: Counter,
    pub(super) first_byte: Histogram,
    pub(super) lifetime: Histogram,
}

/// What they are called: what is accepted and what is opened are never mixed.
pub(super) struct Names {
    pub(super) opened: &'static str,
    pub(super) closed: &'static str,
    pub(super) active: &'static str,
    pub(super) read: &'static str,
    pub(super) written: &'static str,
    pub(super) first_byte: &'static str,
    pub(super) lifetime: &'static str,
}

impl Metrics {
    fn new(names: &Names, service: String) -> Self {
        let labels = [Label::new("service", service)];
        let closed = |index: usize| {
            let mut labels = labels.to_vec();
            labels.push(Label::new("reason", CloseReason::ALL[index].label()));
            counter!(names.closed, labels)
        };
        Self {
            closed: std::array::from_fn(closed),
            opened: counter!(names.opened, labels.iter()),
            active: gauge!(names.active, labels.iter()),
            read: counter!(names.read, labels.iter()),
            written: counter!(names.written, labels.iter()),
            first_byte: histogram!(names.first_byte, labels.iter()),
            lifetime: histogram!(names.lifetime, labels.iter()),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .finish_non_exhaustive()
    }
}

const REASONS: usize = CloseReason::ALL.len();
