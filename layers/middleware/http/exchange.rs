//! What a connection's requests are at, shared by its stream, its handlers and its task.

use std::{
    io,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    conn::ConnInfo,
    middleware::http::progress::{BodyLength, Partial, Progress},
};

/// The requests of one connection. The stream's bytes are followed only until it is upgraded.
#[derive(Debug)]
pub(super) struct Exchange {
    progress: Mutex<Progress>,
    /// Requests taken so far.
    taken: AtomicU64,
    /// Requests whose response is not over.
    open: AtomicUsize,
    /// Time that was given to all that is under way, in nanoseconds.
    given: AtomicU64,
    /// The peer has ended its side, or the stream has failed.
    ended: AtomicBool,
    /// Hyper is done, and whoever it was upgraded for has the stream.
    upgraded: AtomicBool,
    /// Bytes have arrived that were not read, as seen in a drain.
    unread: AtomicBool,
    /// The last request had a body, of which some may never be read.
    body: AtomicBool,
}

impl Exchange {
    pub(super) fn new() -> Self {
        Self {
            progress: Mutex::new(Progress::new()),
            taken: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            given: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            body: AtomicBool::new(false),
        }
    }

    /// Looks at what was read; nothing, where there was room for it, is the end.
    pub(super) fn read(&self, bytes: &[u8], had_room: bool, info: &ConnInfo) {
        if bytes.is_empty() {
            if had_room {
                info.ending.saw_end();
                self.ended.store(true, Relaxed);
            }
        } else if !self.upgraded.load(Relaxed) {
            let windows = self.progress().read(bytes);
            if windows > 0 {
                info.waits.give_room(windows);
            }
        }
    }

    /// Reading has failed. Hyper says so only if it was in need.
    pub(super) fn fail(&self, error: &io::Error, info: &ConnInfo) {
        info.ending.saw_failure(error);
        self.ended.store(true, Relaxed);
    }

    /// The head of a request is here; a body may follow.
    pub(super) fn take(&self, body: BodyLength) {
        self.body
            .store(body != BodyLength::None, Relaxed);
        self.progress().take(body);
        self.taken.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
    }

    /// A response is over.
    pub(super) fn end(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// How much time, in nanoseconds, was ever given to what is under way: also what was just said to the connection.
    pub(super) fn given(&self, info: &ConnInfo) -> u64 {
        let Some(extra) = info.waits.take_extra() else {
            return self.given.load(Relaxed);
        };
        let extra = u64::try_from(extra.as_nanos()).unwrap_or(u64::MAX);
        let before = self.given.fetch_add(extra, Relaxed);
        before.wrapping_add(extra)
    }

    /// The time that was given since `before`, which this renews.
    pub(super) fn given_since(&self, before: &mut u64, info: &ConnInfo) -> Duration {
        let given = self.given(info);
        Duration::from_nanos(given.wrapping_sub(std::mem::replace(before, given)))
    }

    /// The stream is hyper's no more.
    pub(super) fn upgrade(&self) {
        self.upgraded.store(true, Relaxed);
    }

    /// Gives the reason that a connection ends with that ends well, as it is found out from what was seen.
    pub(super) fn settle(&self, info: &ConnInfo) {
        if self.progress().is_http2() && !info.is_leaving() {
            // Only the peer ends it then. It may say so before its side ends.
            info.ending.saw_end();
        }
        info.ending.settle();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    pub(super) fn set_unread(&self, unread: bool) {
        self.unread.store(unread, Relaxed);
    }

    /// Bytes of a request are here that has not been taken: there is more to come before it can be said to be the last.
    pub(super) fn has_more(&self) -> bool {
        self.unread.load(Relaxed) || self.progress().has_begun()
    }

    /// Whether the peer may still be sending when the last response is written.
    pub(super) fn has_body(&self) -> bool {
        self.body.load(Relaxed)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.open.load(Relaxed) > 0
    }

    /// What of a request is here in part.
    pub(super) fn partial(&self) -> Option<Partial> {
        if self.upgraded.load(Relaxed) {
            return None;
        }
        self.progress()
            .partial(self.taken.load(Relaxed), self.is_busy())
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
