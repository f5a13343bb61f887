//! The places of those who spend bytes, on the [`Line`] of their rate.
//!
//! # Invariants
//!
//! - What was spent and has passed lies behind the line.
//! - What lies further behind it than a burst is forgotten.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::rates::Line;

/// What one stream may pass in one direction: its place.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    spent: u64,
}

impl Bucket {
    /// How many bytes are there now.
    pub(super) fn fill(&mut self, line: &Line, at: u64) -> u64 {
        self.spent = self
            .spent
            .max(at.saturating_sub(line.burst));
        at.saturating_sub(self.spent)
    }

    pub(super) fn take(&mut self, bytes: u64) {
        self.spent = self.spent.saturating_add(bytes);
    }

    /// Where the line is when so many bytes are there.
    pub(super) fn place_of(&self, bytes: u64) -> u64 {
        self.spent.saturating_add(bytes)
    }
}

/// What all streams together may pass in one direction.
///
/// Who finds nothing books what comes next, and waits until the line is there; who comes after books behind. So
/// they have their turns in their order, and nobody is passed over.
///
/// It is one number, and nothing else is published with it: relaxed order is enough.
#[derive(Debug, Default)]
pub(super) struct Pool {
    spent: AtomicU64,
}

impl Pool {
    /// Takes up to so many of the bytes that are there now.
    pub(super) fn take(&self, line: &Line, at: u64, most: u64) -> u64 {
        let mut spent = self.spent.load(Relaxed);
        loop {
            let from = spent.max(at.saturating_sub(line.burst));
            let taken = at.saturating_sub(from).min(most);
            if taken == 0 {
                return 0;
            }
            let next = from + taken;
            match self
                .spent
                .compare_exchange_weak(spent, next, Relaxed, Relaxed)
            {
                Ok(_) => return taken,
                Err(now) => spent = now,
            }
        }
    }

    /// Books so many bytes, there or not; they are there when the line has come to the place returned.
    pub(super) fn book(&self, line: &Line, at: u64, bytes: u64) -> u64 {
        let oldest = at.saturating_sub(line.burst);
        let after = |spent: u64| spent.max(oldest).saturating_add(bytes);
        let booked = self
            .spent
            .fetch_update(Relaxed, Relaxed, |spent| Some(after(spent)));
        after(booked.unwrap_or_else(|spent| spent))
    }

    /// Gives back what was taken or booked, and did not pass.
    pub(super) fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            self.spent.fetch_sub(bytes, Relaxed);
        }
    }
}
