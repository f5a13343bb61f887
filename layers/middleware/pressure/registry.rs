//! The connections that a layer has let in, and for how long each has been idle.
//!
//! # Invariants
//!
//! - An entry for each open connection that was let in, from its call until its stream is dropped.
//! - Nobody is spoken to under the lock: what they wake may be anybody's.

use std::{
    collections::BinaryHeap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

use slab::Slab;

use crate::{
    conn::{ConnInfo, progress::progress, strain::Strain},
    middleware::pressure::rounds::Shared,
};

/// A connection's entry in the layer's books, which the stream holds.
#[derive(Debug)]
pub struct Enrolled {
    entry: Option<(Arc<Shared>, usize)>,
}

impl Enrolled {
    /// Of a connection that is no business of the layer's.
    pub(super) fn nowhere() -> Self {
        Self { entry: None }
    }

    pub(super) fn with(shared: &Arc<Shared>, info: &Arc<ConnInfo>) -> Self {
        shared
            .readings
            .open
            .fetch_add(1, Relaxed);
        let key = shared.registry.enter(info);
        Self {
            entry: Some((Arc::clone(shared), key)),
        }
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        if let Some((shared, key)) = &self.entry {
            shared
                .readings
                .open
                .fetch_sub(1, Relaxed);
            // Without the lock: facts that a user has put there may do anything when they are dropped.
            let entry = shared
                .registry
                .lock()
                .connections
                .remove(*key);
            drop(entry);
        }
    }
}

#[derive(Debug)]
pub(super) struct Registry {
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    connections: Slab<Entry>,
    /// The number of the last tick, which goes on when another task measures.
    tick: u64,
    strain: Strain,
    /// Where the next walk begins.
    cursor: usize,
}

#[derive(Debug)]
struct Entry {
    info: Arc<ConnInfo>,
    /// Its progress, when it was last looked at.
    seen: u64,
    /// The first tick that found it so, and idle; or `TOLD`.
    since: u64,
    /// What this layer has told it. What another layer tells it is that one's business.
    strain: Strain,
}

impl Entry {
    /// Looks whether it has moved, or is at work.
    fn look(&mut self, tick: u64) {
        let seen = progress(&self.info);
        if seen != self.seen || !is_idle(&self.info) {
            self.seen = seen;
            self.since = tick;
        }
    }

    fn tell(&mut self, strain: Strain) {
        if self.strain != strain {
            self.strain = strain;
            self.info.waits.strain.tell(strain);
        }
    }
}

impl Registry {
    pub(super) fn new() -> Self {
        Self {
            books: Mutex::new(Books {
                connections: Slab::new(),
                tick: 0,
                strain: Strain::NONE,
                cursor: 0,
            }),
        }
    }

    fn enter(&self, info: &Arc<ConnInfo>) -> usize {
        let mut books = self.lock();
        let mut entry = Entry {
            info: Arc::clone(info),
            seen: progress(info),
            since: books.tick,
            strain: Strain::NONE,
        };
        entry.tell(books.strain);
        books.connections.insert(entry)
    }

    /// One tick: looks at some of the connections, in turn, and tells them the strain; returns those that have to be
    /// woken for it.
    pub(super) fn walk(&self, strain: Strain) -> Vec<Arc<ConnInfo>> {
        let mut books = self.lock();
        let tick = books.tick + 1;
        books.tick = tick;
        books.strain = strain;
        let mut woken = Vec::new();
        let places = books.connections.capacity();
        let (mut looked_at, mut passed) = (0, 0);
        while looked_at < WALK && passed < places.min(WALK * 8) {
            let key = books.cursor;
            books.cursor = if key + 1 < places { key + 1 } else { 0 };
            passed += 1;
            let Some(entry) = books.connections.get_mut(key) else {
                continue;
            };
            looked_at += 1;
            entry.look(tick);
            entry.tell(strain);
            // One at work looks when it next parks.
            let waits_for_peer = is_idle(&entry.info) || is_silent(&entry.info);
            let is_behind = entry.info.waits.strain.is_behind();
            if strain != Strain::NONE && is_behind && waits_for_peer {
                woken.push(Arc::clone(&entry.info));
            }
        }
        woken
    }

    /// The longest idle, so many at the most, that have been so for `ticks`. Each is returned once, unless it moves.
    pub(super) fn reclaim(&self, ticks: u64, most: usize) -> Vec<Arc<ConnInfo>> {
        let mut books = self.lock();
        let tick = books.tick;
        let Some(before) = tick.checked_sub(ticks) else {
            return Vec::new();
        };
        // More than are wanted: some will turn out to have moved since they were last looked at.
        let wanted = most.saturating_mul(4);
        let mut longest = BinaryHeap::new();
        for (key, entry) in &books.connections {
            if entry.since <= before {
                longest.push((entry.since, key));
                if longest.len() > wanted {
                    longest.pop();
                }
            }
        }
        let mut reclaimed = Vec::new();
        for (since, key) in longest.into_sorted_vec() {
            let entry = &mut books.connections[key];
            entry.look(tick);
            if entry.since == since && reclaimed.len() < most {
                entry.since = TOLD;
                if entry.info.ending.leaving().is_none() {
                    reclaimed.push(Arc::clone(&entry.info));
                }
            }
        }
        reclaimed
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for its peer and for nothing else, as far as a watch can see.
fn is_idle(info: &ConnInfo) -> bool {
    let waits = &info.waits;
    let at_work = waits.receiving.get() || waits.asked.get();
    waits.watched.get() && waits.is_idle() && !at_work
}

/// Its first byte is waited for.
fn is_silent(info: &ConnInfo) -> bool {
    info.waits.watched.get() && info.waits.moved_in() == 0
}

/// No tick: it was told to leave.
const TOLD: u64 = u64::MAX;

/// So many are looked at in one tick: a tenth of a millisecond, however many there are.
const WALK: usize = 1024;
