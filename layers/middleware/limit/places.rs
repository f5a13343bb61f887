//! The places of each peer, and those who wait for one.
//!
//! # Invariants
//!
//! - A peer's weight in the table is the number of its [`Held`] places since it was last remembered, together with
//!   a mark that tells those from the ones before: a place that was forgotten is given back to nobody.
//! - Whoever waits is given a place before a newcomer of the same peer is, in the order of their coming.
//! - Who waits looks for a place under the lock of the queue; who gives one back does so first and looks at the
//!   queue then. One of the two finds the other.
//! - The lock of the queue is taken before the table's, never the other way round; nobody is woken under either.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use crate::base::sync::{AtomicUsize, Mutex, MutexGuard, Ordering, PoisonError};

use super::table::Table;

/// So many places for each peer.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) table: Table,
    limit: AtomicUsize,
    queue: Mutex<Queue>,
    /// How many are in the queue, to know without its lock that there are none. Relaxed is enough: who waits adds
    /// itself before it takes the table's lock, and who gives back looks after it had the same lock.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<(u128, u64), Waiter>,
}

#[derive(Debug)]
struct Waiter {
    conn: u64,
    waker: Option<Waker>,
    /// The mark of the place that it was given.
    given: Option<u32>,
}

impl Places {
    pub(super) fn new(limit: usize, table: Table) -> Self {
        Self {
            table,
            limit: AtomicUsize::new(limit),
            queue: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes the number of places. Those who wait get what is free now.
    pub(super) fn set_limit(&self, limit: usize) {
        self.limit
            .store(limit, Ordering::Relaxed);
        let woken: Vec<_> = {
            let mut queue = self.lock();
            let waiting = queue.waiting.iter_mut();
            waiting
                .filter_map(|((peer, _), waiter)| self.give(*peer, waiter))
                .collect()
        };
        woken
            .into_iter()
            .flatten()
            .for_each(Waker::wake);
    }

    /// A place of `peer` for the connection of this number, unless there is none or others wait for one.
    pub(super) fn take(self: &Arc<Self>, peer: u128, conn: u64) -> Option<Held> {
        if self.waiting.load(Ordering::Relaxed) > 0 && self.lock().first(peer).is_some() {
            return None;
        }
        let mark = self.mark(peer, conn)?;
        Some(self.held(peer, mark))
    }

    /// Waits for a place of `peer`, behind those who wait already.
    pub(super) fn wait(self: &Arc<Self>, peer: u128, conn: u64) -> Waiting {
        self.waiting
            .fetch_add(1, Ordering::Relaxed);
        let mut queue = self.lock();
        let mut waiter = Waiter {
            conn,
            waker: None,
            given: None,
        };
        if queue.first(peer).is_none() {
            self.give(peer, &mut waiter);
        }
        let number = queue.next;
        queue.next += 1;
        queue
            .waiting
            .insert((peer, number), waiter);
        Waiting {
            places: Arc::clone(self),
            peer,
            number,
        }
    }

    /// Takes a place, and returns the mark of all that were taken since the peer was last remembered.
    fn mark(&self, peer: u128, conn: u64) -> Option<u32> {
        let limit = self.limit();
        self.table.update(peer, 0, |weight| {
            let (open, mut mark) = (Self::open(*weight), *weight as u32);
            if open as usize >= limit || open == u64::from(u32::MAX) {
                return None;
            }
            if open == 0 {
                mark = conn as u32;
            }
            *weight = (open + 1) << 32 | u64::from(mark);
            Some(mark)
        })
    }

    /// The number of open connections in a weight.
    pub(super) fn open(weight: u64) -> u64 {
        weight >> 32
    }

    fn held(self: &Arc<Self>, peer: u128, mark: u32) -> Held {
        Held {
            places: Arc::clone(self),
            peer,
            mark,
        }
    }

    /// Gives `waiter` a place if there is one; its waker is to be called without the lock.
    fn give(&self, peer: u128, waiter: &mut Waiter) -> Option<Option<Waker>> {
        if waiter.given.is_none() {
            waiter.given = Some(self.mark(peer, waiter.conn)?);
            return Some(waiter.waker.take());
        }
        None
    }

    fn give_back(&self, peer: u128, mark: u32) {
        self.table.update(peer, 0, |weight| {
            let open = Self::open(*weight);
            if open > 0 && *weight as u32 == mark {
                *weight = match open - 1 {
                    0 => 0,
                    left => left << 32 | u64::from(mark),
                };
            }
        });
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let woken = {
            let mut queue = self.lock();
            let first = queue.first(peer);
            first.and_then(|waiter| self.give(peer, waiter))
        };
        if let Some(Some(waker)) = woken {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// The first who waits for a place of `peer` and has none yet.
    fn first(&mut self, peer: u128) -> Option<&mut Waiter> {
        let mut waiting = self
            .waiting
            .range_mut((peer, 0)..=(peer, u64::MAX));
        waiting
            .find(|(_, waiter)| waiter.given.is_none())
            .map(|(_, waiter)| waiter)
    }
}

/// A place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    places: Arc<Places>,
    peer: u128,
    mark: u32,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.places
            .give_back(self.peer, self.mark);
    }
}

/// Resolves to a place; whoever is dropped before leaves the queue, and passes on what it was given.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub(super) struct Waiting {
    places: Arc<Places>,
    peer: u128,
    number: u64,
}

impl Waiting {
    fn leave(&self) -> Option<Held> {
        let mut queue = self.places.lock();
        let waiter = queue
            .waiting
            .remove(&(self.peer, self.number))?;
        drop(queue);
        self.places
            .waiting
            .fetch_sub(1, Ordering::Relaxed);
        let mark = waiter.given?;
        Some(self.places.held(self.peer, mark))
    }
}

impl Future for Waiting {
    type Output = Held;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Held> {
        {
            let mut queue = self.places.lock();
            let waiter = queue
                .waiting
                .get_mut(&(self.peer, self.number));
            let waiter = waiter.expect("not polled again after it was ready");
            if waiter.given.is_none() {
                waiter.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let held = self.leave();
        Poll::Ready(held.expect("given, as was just seen"))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.leave());
    }
}
