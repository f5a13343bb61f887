//! The connections that are open, and what became of those that were.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use slab::Slab;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    base::time::now,
    conn::{CloseReason, ConnInfo},
    server::{
        checklist::Passed,
        report::{Counts, Report, Straggler},
    },
};

/// How far a server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    Draining,
    Cutting,
}

/// Everything that the parts of one server share.
#[derive(Debug)]
pub(crate) struct Live {
    open: Mutex<Open>,
    phase: watch::Sender<Phase>,
    draining_since: OnceLock<Instant>,
    /// A connection ended, while somebody waits for that.
    ended: Notify,
    watched: AtomicBool,
    report: watch::Sender<Option<Report>>,
    pub(crate) passed: Passed,
}

#[derive(Debug, Default)]
struct Open {
    connections: Slab<Entry>,
    counts: Counts,
}

#[derive(Debug)]
struct Entry {
    info: Arc<ConnInfo>,
    /// It was at work when it was told to leave.
    busy: bool,
    /// It had not left in time.
    cut: bool,
}

impl Live {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            phase: watch::Sender::new(Phase::Serving),
            draining_since: OnceLock::new(),
            ended: Notify::new(),
            watched: AtomicBool::new(false),
            report: watch::Sender::new(None),
            passed: Passed::default(),
        })
    }

    /// Whether it has come to the drain, by one look at what is set before the phase is.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining_since.get().is_some()
    }

    /// Moves on to `phase`; never back. With the drain every connection is told to leave, there and then.
    pub(crate) fn advance(&self, phase: Phase) {
        if phase >= Phase::Draining {
            // Before anybody can see the phase.
            self.draining_since.get_or_init(now);
        }
        let moved = self.phase.send_if_modified(|held| {
            let moves = *held < phase;
            *held = (*held).max(phase);
            moves
        });
        if moved && phase == Phase::Draining {
            self.tell_to_leave();
        }
    }

    /// When the drain began.
    pub(crate) fn draining_since(&self) -> Instant {
        *self.draining_since.get_or_init(now)
    }

    /// Waits until the server has come as far as `phase`.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut seen = self.phase.subscribe();
        // The sender is ours, so it cannot be gone.
        let _held = seen
            .wait_for(|held| *held >= phase)
            .await;
    }

    /// A connection begins. It is over when the entry is dropped.
    pub(crate) fn enter(self: &Arc<Self>, info: Arc<ConnInfo>) -> Alive {
        let key = {
            let mut open = self.lock();
            open.counts.opened += 1;
            open.connections.insert(Entry {
                info: Arc::clone(&info),
                busy: false,
                cut: false,
            })
        };
        if self.is_draining() {
            // It came off the queue of a listener that is about to close.
            info.ending
                .tell_to_leave(CloseReason::Drain);
        }
        Alive {
            live: Arc::clone(self),
            key,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().connections.len()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    pub(crate) fn count_accept_error(&self, kind: &'static str) {
        *self
            .lock()
            .counts
            .accept_errors
            .entry(kind)
            .or_default() += 1;
    }

    /// Every connection that is open.
    pub(crate) fn open_connections(&self) -> Vec<Arc<ConnInfo>> {
        self.mark(|_, _| ())
    }

    /// Tells every connection to leave.
    fn tell_to_leave(&self) {
        for info in self.mark(|entry, _| {
            let waits = &entry.info.waits;
            entry.busy = waits.busy.get()
                || waits.asked.get()
                || waits.receiving.get()
                || waits.blocked.get();
        }) {
            info.ending
                .tell_to_leave(CloseReason::Drain);
        }
    }

    /// Ends every connection, and remembers a few of those that it had to end.
    pub(crate) fn cut(&self, reason: CloseReason) {
        for info in self.mark(|entry, counts| {
            // One that has said everything and lingers for the peer has finished.
            let waits = &entry.info.waits;
            let finished = entry.info.close_reason().is_some() && !waits.blocked.get();
            entry.cut = !finished;
            if entry.cut && counts.stragglers.len() < STRAGGLERS {
                counts
                    .stragglers
                    .push(Straggler::new(&entry.info));
            }
        }) {
            info.cut(reason);
        }
    }

    /// Marks every connection, and returns them all: they are spoken to without the lock, since what they
    /// wake may be anybody's.
    fn mark(&self, mut mark: impl FnMut(&mut Entry, &mut Counts)) -> Vec<Arc<ConnInfo>> {
        let mut open = self.lock();
        let Open {
            connections,
            counts,
        } = &mut *open;
        let entries = connections.iter_mut();
        entries
            .map(|(_, entry)| {
                mark(entry, counts);
                Arc::clone(&entry.info)
            })
            .collect()
    }

    /// Waits for the next connection to end.
    pub(crate) async fn one_ended(&self) {
        self.watched
            .store(true, Ordering::SeqCst);
        self.ended.notified().await;
    }

    /// Waits until no connection is open.
    pub(crate) async fn all_ended(&self) {
        loop {
            self.watched
                .store(true, Ordering::SeqCst);
            let ended = self.ended.notified();
            if self.len() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// The server has ended with this; the first one counts.
    pub(crate) fn ended_with(&self, report: &Report) {
        self.report.send_if_modified(|held| {
            let first = held.is_none();
            held.get_or_insert_with(|| report.clone());
            first
        });
    }

    /// What it has ended with, once it has.
    pub(crate) async fn report(&self) -> Report {
        let mut seen = self.report.subscribe();
        loop {
            if let Some(report) = &*seen.borrow_and_update() {
                return report.clone();
            }
            // The sender is ours, so it cannot be gone.
            let _held = seen.changed().await;
        }
    }

    /// What is known by now.
    pub(crate) fn account(&self) -> Report {
        let took = now().saturating_duration_since(self.draining_since());
        Report::new(self.counts(), self.len(), took)
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open connection; counts its end on drop.
#[derive(Debug)]
pub(crate) struct Alive {
    live: Arc<Live>,
    key: usize,
}

impl Drop for Alive {
    fn drop(&mut self) {
        let draining = self.live.is_draining();
        let (entry, reason) = {
            let mut open = self.live.lock();
            let entry = open.connections.remove(self.key);
            let reason = entry.info.ending.settle();
            let counts = &mut open.counts;
            counts.closed[reason.index()] += 1;
            if draining {
                match entry {
                    Entry { cut: true, .. } => counts.cut += 1,
                    Entry { busy: true, .. } => counts.finished += 1,
                    _ => counts.idle += 1,
                }
            }
            (entry, reason)
        };
        self.live
            .passed
            .end(&entry.info, reason);
        // Without the lock: facts that a user has put there may do anything when they are dropped.
        drop(entry);
        if self.live.watched.load(Ordering::SeqCst) {
            self.live.ended.notify_waiters();
        }
    }
}

/// How long a cut may take: tasks have to be polled once to notice, and then it is over whatever they do.
pub(crate) const CUT_WITHIN: Duration = Duration::from_secs(1);

/// So many of those that had to be cut are named.
const STRAGGLERS: usize = 16;
