//! Many handlers behind the one waker of their connection: each has a bell, and only those that rang are looked at.
//!
//! Bells are made once and belong to a seat, whoever sits there: one that is rung late, for somebody who has left,
//! costs whoever sits there now a poll and no more.
//!
//! # Why no ring is lost
//!
//! Who rings marks the bell first, and then takes the connection's waker. The connection leaves its waker first, and
//! then collects the marks. So either the mark is seen, or the waker is found.

use std::{
    mem,
    sync::Arc,
    task::{Wake, Waker},
};

use crate::base::sync::{
    AtomicUsize, Mutex, MutexGuard,
    Ordering::{AcqRel, Relaxed},
    PoisonError,
};

/// The bells of one connection, in rows of as many as a number has bits.
#[derive(Debug, Default)]
pub(super) struct Bells {
    desk: Arc<Desk>,
    rows: Vec<Arc<Row>>,
    bells: Vec<Waker>,
    /// The row after the one that is being answered.
    next: usize,
    /// What is left to answer of that.
    rung: usize,
}

/// Where the connection waits.
#[derive(Debug, Default)]
struct Desk(Mutex<Option<Waker>>);

#[derive(Debug)]
struct Row {
    rung: AtomicUsize,
    desk: Arc<Desk>,
}

#[derive(Debug)]
struct Bell {
    row: Arc<Row>,
    bit: usize,
}

impl Bells {
    /// The bell of seat `at`.
    pub(super) fn bell(&mut self, at: usize) -> &Waker {
        while self.bells.len() <= at {
            self.add();
        }
        &self.bells[at]
    }

    fn add(&mut self) {
        let at = self.bells.len();
        if at / WIDTH == self.rows.len() {
            self.rows.push(Arc::new(Row {
                rung: AtomicUsize::new(0),
                desk: Arc::clone(&self.desk),
            }));
        }
        let bell = Bell {
            row: Arc::clone(&self.rows[at / WIDTH]),
            bit: 1 << (at % WIDTH),
        };
        self.bells.push(Arc::new(bell).into());
    }

    /// Has seat `at` answered in the next round, and wakes nobody.
    pub(super) fn mark(&mut self, at: usize) {
        self.bell(at);
        self.rows[at / WIDTH]
            .rung
            .fetch_or(1 << (at % WIDTH), AcqRel);
    }

    /// Begins a round: `waker` is woken for whatever rings from now on.
    pub(super) fn listen(&mut self, waker: &Waker) {
        // What the last round has not come to.
        if self.rung != 0 {
            self.rows[self.next - 1]
                .rung
                .fetch_or(mem::take(&mut self.rung), AcqRel);
        }
        self.next = 0;
        let mut left = self.desk.lock();
        if !left
            .as_ref()
            .is_some_and(|left| left.will_wake(waker))
        {
            *left = Some(waker.clone());
        }
    }

    /// A seat whose bell has rung; each once in a round.
    pub(super) fn answer(&mut self) -> Option<usize> {
        while self.rung == 0 {
            let row = self.rows.get(self.next)?;
            // A look first: mostly there is nothing, and taking locks the bus.
            if row.rung.load(Relaxed) != 0 {
                self.rung = row.rung.swap(0, AcqRel);
            }
            self.next += 1;
        }
        let bit = self.rung.trailing_zeros() as usize;
        self.rung &= self.rung - 1;
        Some((self.next - 1) * WIDTH + bit)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let before = self.row.rung.fetch_or(self.bit, AcqRel);
        // Who rang first sees to it.
        if before & self.bit == 0 {
            let waker = self.row.desk.lock().take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Option<Waker>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bells in a row.
const WIDTH: usize = usize::BITS as usize;
