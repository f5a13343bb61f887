//! What the metrics facade was told.

use std::{cell::RefCell, collections::HashMap};

use metrics::{Key, with_local_recorder};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

/// Runs `make`, which makes layers and their handles, and reads what those report from then on.
pub fn recorded<T>(make: impl FnOnce() -> T) -> (T, Readings) {
    let recorder = DebuggingRecorder::new();
    let made = with_local_recorder(&recorder, make);
    let readings = Readings {
        snapshotter: recorder.snapshotter(),
        sums: RefCell::default(),
    };
    (made, readings)
}

pub struct Readings {
    snapshotter: Snapshotter,
    // A snapshot takes what it shows away.
    sums: RefCell<HashMap<Key, f64>>,
}

impl Readings {
    /// A counter, a gauge, or how many values a histogram has: the sum over all that have these labels.
    pub fn of(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let mut sums = self.sums.borrow_mut();
        for (key, _, _, value) in self.snapshotter.snapshot().into_vec() {
            *sums
                .entry(key.key().clone())
                .or_default() += match value {
                DebugValue::Counter(count) => count as f64,
                DebugValue::Gauge(change) => change.into_inner(),
                DebugValue::Histogram(values) => values.len() as f64,
            };
        }
        let has = |key: &Key, (name, value)| {
            key.labels()
                .any(|label| (label.key(), label.value()) == (name, value))
        };
        sums.iter()
            .filter(|(key, _)| key.name() == name)
            .filter(|(key, _)| {
                labels
                    .iter()
                    .all(|label| has(key, *label))
            })
            .map(|(_, sum)| sum)
            .sum()
    }
}
