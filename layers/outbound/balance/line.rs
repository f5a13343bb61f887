//! Those who wait for a peer, in the order in which they came.
//!
//! # Why nobody is forgotten
//!
//! A balance knows one waker, which is the line's, and the line wakes its first. Whoever is first looks at the balance
//! once he knows that he is, and whoever leaves wakes the one who is first then. So there is always one who has looked
//! since the last change, or has been woken to.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex},
    task::{Wake, Waker},
};

use crate::outbound::balance::lock;

/// The line before a balance.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The number of the last who came.
    last: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Waiting {
    fn first(&self) -> Option<&Waker> {
        let (_, waker) = self.wakers.first_key_value()?;
        Some(waker)
    }
}

impl Wake for Line {
    fn wake(self: Arc<Self>) {
        let first = lock(&self.waiting).first().cloned();
        if let Some(first) = first {
            first.wake();
        }
    }
}

/// A place in the line, for whoever has to wait, and again for whoever has waited before.
#[derive(Debug)]
pub(super) struct Place {
    line: Arc<Line>,
    /// Zero before it is taken for the first time.
    number: u64,
    is_taken: bool,
}

impl Place {
    pub(super) fn before(line: &Arc<Line>) -> Self {
        Self {
            line: Arc::clone(line),
            number: 0,
            is_taken: false,
        }
    }

    pub(super) fn is_taken(&self) -> bool {
        self.is_taken
    }

    /// Whether nobody who waits came before.
    pub(super) fn is_first(&self) -> bool {
        let waiting = lock(&self.line.waiting);
        let first = waiting.wakers.keys().next();
        first.is_none_or(|first| self.number != 0 && self.number <= *first)
    }

    /// Waits here, and is woken when he is first and something has changed.
    pub(super) fn take(&mut self, waker: &Waker) {
        // Somebody else's code, which is not run while others wait for the line.
        let waker = waker.clone();
        let left = {
            let mut waiting = lock(&self.line.waiting);
            if self.number == 0 {
                waiting.last += 1;
                self.number = waiting.last;
            }
            self.is_taken = true;
            waiting
                .wakers
                .insert(self.number, waker)
        };
        drop(left);
    }

    /// Waits no longer.
    pub(super) fn leave(&mut self) {
        if !mem::take(&mut self.is_taken) {
            return;
        }
        let (own, first) = {
            let mut waiting = lock(&self.line.waiting);
            let own = waiting.wakers.remove(&self.number);
            (own, waiting.first().cloned())
        };
        drop(own);
        if let Some(first) = first {
            first.wake();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}
