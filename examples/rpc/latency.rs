//! Latencies in buckets: of each power of two, 32 equal parts, so that a percentile is at most 3 % too high.

use std::time::Duration;

#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: Duration,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self {
            buckets: vec![0; bucket_of(u64::MAX) + 1],
            count: 0,
            max: Duration::ZERO,
        }
    }

    pub(crate) fn record(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(nanos)] += 1;
        self.count += 1;
        self.max = self.max.max(took);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (bucket, more) in self
            .buckets
            .iter_mut()
            .zip(&other.buckets)
        {
            *bucket += more;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The latency that `percent` of all did not exceed.
    pub(crate) fn percentile(&self, percent: f64) -> Duration {
        let rank = (self.count as f64 * percent / 100.0).ceil() as u64;
        let mut below = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            below += count;
            if below >= rank {
                return Duration::from_nanos(top_of(bucket)).min(self.max);
            }
        }
        self.max
    }

    pub(crate) fn max(&self) -> Duration {
        self.max
    }
}

/// Values below 32 have a bucket each; above, the five bits after the leading one choose the part.
fn bucket_of(value: u64) -> usize {
    let shift = (value | PARTS).ilog2() - PARTS.ilog2();
    (u64::from(shift) * PARTS + (value >> shift)) as usize
}

/// The largest value in a bucket.
fn top_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / PARTS).saturating_sub(1);
    let part = bucket - shift * PARTS;
    (part << shift) + ((1 << shift) - 1)
}

const PARTS: u64 = 32;
