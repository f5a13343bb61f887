//! How a connection learns that it must leave, and the one reason it ends with.
//!
//! # Invariants
//!
//! The reason is written once, by whoever gives it first. The notice to leave is given at most once and
//! never taken back.

use std::{
    io,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence},
    },
    task::Waker,
};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use crate::conn::CloseReason;

/// The ending of one connection, shared by everybody who knows it.
#[derive(Debug)]
pub(crate) struct Ending {
    /// An index into `CloseReason::ALL`, or `OPEN`.
    reason: AtomicU8,
    /// The index of the reason to end with when leaving, or `OPEN` while there is no notice.
    leave: AtomicU8,
    /// No more bytes: whoever touches the stream is told that it is over.
    cut: AtomicBool,
    ended: AtomicBool,
    broken: AtomicBool,
    /// The task that drives the connection.
    task: Mutex<Option<Waker>>,
    /// How often that task has changed, if somebody keeps watch of it; zero if nobody does.
    task_epoch: AtomicU32,
    /// Most connections never have any.
    others: OnceLock<Box<Others>>,
}

/// Who else hears what is told to a connection.
#[derive(Debug, Default)]
struct Others {
    /// For those who await the notice.
    notify: Notify,
    /// Another task, on which somebody polls the layers of the connection.
    task: AtomicWaker,
}

impl Ending {
    pub(crate) fn new() -> Self {
        Self {
            reason: AtomicU8::new(OPEN),
            leave: AtomicU8::new(OPEN),
            cut: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            task: Mutex::new(None),
            task_epoch: AtomicU32::new(0),
            others: OnceLock::new(),
        }
    }

    pub(crate) fn reason(&self) -> Option<CloseReason> {
        from_index(self.reason.load(Ordering::Acquire))
    }

    /// Gives the reason, unless there is one already; returns the one that holds.
    pub(crate) fn give(&self, reason: CloseReason) -> CloseReason {
        let given =
            self.reason
                .compare_exchange(OPEN, reason as u8, Ordering::AcqRel, Ordering::Acquire);
        match given {
            Ok(_) => reason,
            Err(held) => from_index(held).unwrap_or(reason),
        }
    }

    /// The reason of a stream that is being dropped now, found out from what was seen if nobody gave one.
    pub(crate) fn settle(&self) -> CloseReason {
        if let Some(reason) = self.reason() {
            return reason;
        }
        self.give(if std::thread::panicking() {
            CloseReason::Panic
        } else if self.broken.load(Ordering::Relaxed) {
            CloseReason::Reset
        } else if self.ended.load(Ordering::Relaxed) {
            CloseReason::Peer
        } else {
            self.leaving()
                .unwrap_or(CloseReason::Served)
        })
    }

    /// The stream gave its last byte.
    pub(crate) fn saw_end(&self) {
        self.ended
            .store(true, Ordering::Relaxed);
    }

    /// The stream failed. One that just ended, as that of a TLS peer that leaves without a goodbye, was left by its
    /// peer.
    pub(crate) fn saw_failure(&self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => return self.saw_end(),
            // That it does not know how is no failure of a stream.
            io::ErrorKind::Unsupported => return,
            _ => {}
        }
        self.broken
            .store(true, Ordering::Relaxed);
    }

    /// Tells the connection to leave when it can, and to call `reason` the reason.
    pub(crate) fn tell_to_leave(&self, reason: CloseReason) {
        let told =
            self.leave
                .compare_exchange(OPEN, reason as u8, Ordering::AcqRel, Ordering::Acquire);
        if told.is_ok() {
            // With the fence in `told_to_leave`: either we see its `Notify`, or it sees the notice.
            fence(Ordering::SeqCst);
            if let Some(others) = self.others.get() {
                others.notify.notify_waiters();
            }
            self.wake();
        }
    }

    pub(crate) fn leaving(&self) -> Option<CloseReason> {
        from_index(self.leave.load(Ordering::Acquire))
    }

    /// Waits for the notice to leave.
    pub(crate) async fn told_to_leave(&self) -> CloseReason {
        loop {
            let others = self.others.get_or_init(Box::default);
            let notified = others.notify.notified();
            let mut notified = std::pin::pin!(notified);
            // Registered before the look: a notice between the two is seen by one of them.
            notified.as_mut().enable();
            fence(Ordering::SeqCst);
            if let Some(reason) = self.leaving() {
                return reason;
            }
            notified.await;
        }
    }

    /// Ends the stream for whoever still holds it.
    pub(crate) fn cut(&self, reason: CloseReason) {
        self.give(reason);
        self.cut.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Remembers the task to wake, which is the one that polls the connection's layers. Called before they
    /// are polled, so that nothing said meanwhile is lost.
    pub(crate) fn register(&self, waker: &Waker) {
        if self.task_epoch.load(Ordering::Relaxed) == 0 {
            self.remember(waker);
        } else {
            let others = self.others.get_or_init(Box::default);
            others.task.register(waker);
            fence(Ordering::SeqCst);
        }
    }

    /// Remembers the task to wake, and that the caller does so whenever it changes.
    pub(crate) fn keep_registered(&self, waker: &Waker) {
        let before = self.remember(waker);
        if self
            .task_epoch
            .fetch_add(1, Ordering::Relaxed)
            == 0
        {
            // Layers that were polled on another task before this one was ever polled.
            if let Some(other) = before {
                self.register(&other);
            }
        }
    }

    /// Returns the waker that is replaced.
    fn remember(&self, waker: &Waker) -> Option<Waker> {
        let mut task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if task
            .as_ref()
            .is_some_and(|known| known.will_wake(waker))
        {
            return None;
        }
        task.replace(waker.clone())
    }

    /// A number that changes with the task that is kept registered.
    pub(crate) fn task_epoch(&self) -> u32 {
        self.task_epoch.load(Ordering::Relaxed)
    }

    /// Wakes the connection's task, so that it looks at what was changed from outside.
    pub(crate) fn wake(&self) {
        // It stays registered: there may be more to say before the task has come round.
        let task = self.task.lock();
        let task = task
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(task) = task {
            task.wake();
        }
        fence(Ordering::SeqCst);
        if let Some(others) = self.others.get() {
            others.task.wake();
        }
    }
}

fn from_index(index: u8) -> Option<CloseReason> {
    CloseReason::ALL
        .get(usize::from(index))
        .copied()
}

/// No reason yet.
const OPEN: u8 = u8::MAX;
