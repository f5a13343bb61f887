//! Who is under way, and who of them makes room.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{base::time::now, conn::ConnInfo};

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) pending: usize,
    /// The number of the next one.
    next: u64,
    /// Those who have not said all of their first message, the oldest first.
    waiting: BTreeMap<u64, Arc<Slot>>,
    /// Those who have, and since when, in the order in which they did.
    heard: BTreeMap<u64, (Instant, Arc<Slot>)>,
}

/// One that can be made to leave.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) info: Arc<ConnInfo>,
    evicted: AtomicBool,
}

impl Slot {
    pub(super) fn new(info: &Arc<ConnInfo>) -> Arc<Self> {
        Arc::new(Self {
            info: Arc::clone(info),
            evicted: AtomicBool::new(false),
        })
    }

    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Relaxed)
    }
}

impl Table {
    /// One begins; returns its number.
    pub(super) fn begin(&mut self, slot: &Arc<Slot>) -> u64 {
        let number = self.number();
        self.waiting
            .insert(number, Arc::clone(slot));
        number
    }

    /// One has said all of its first message; returns its new number.
    #[cfg(any(test, feature = "tls"))]
    pub(super) fn hear(&mut self, number: u64) -> u64 {
        let Some(slot) = self.waiting.remove(&number) else {
            return number;
        };
        let number = self.number();
        self.heard.insert(number, (now(), slot));
        number
    }

    /// One is over that was not evicted.
    pub(super) fn end(&mut self, number: u64) {
        self.waiting.remove(&number);
        self.heard.remove(&number);
        self.pending -= 1;
    }

    /// Takes a place from the one that has kept us waiting for longest, if any may lose it: of those who have said
    /// all of their first message one that did so `patience` ago.
    pub(super) fn evict(&mut self, patience: Duration) -> Option<Arc<Slot>> {
        let silent = self.waiting.pop_first();
        let slot = match silent {
            Some((_, slot)) => slot,
            None => self.pop_stalled(patience)?,
        };
        slot.evicted.store(true, Relaxed);
        Some(slot)
    }

    fn pop_stalled(&mut self, patience: Duration) -> Option<Arc<Slot>> {
        let first = self.heard.first_entry()?;
        let (since, _) = first.get();
        if now().saturating_duration_since(*since) < patience {
            return None;
        }
        let (_, slot) = first.remove();
        Some(slot)
    }

    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }
}
