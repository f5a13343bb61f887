//! What a connection's requests are at, shared by its stream, its handlers and its task.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use crate::middleware::http::progress::Progress;

/// The requests of one connection. The stream's bytes are followed only until it is upgraded.
#[derive(Debug)]
pub(super) struct Exchange {
    progress: Mutex<Progress>,
    /// HTTP/1: bytes have come since the last request was taken.
    begun: AtomicBool,
    /// Requests taken so far.
    taken: AtomicU64,
    /// Requests whose response is not over.
    open: AtomicUsize,
    /// The peer has ended its side.
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
            begun: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            body: AtomicBool::new(false),
        }
    }

    /// Looks at what was read; nothing, where there was room for it, is the end.
    pub(super) fn read(&self, bytes: &[u8], had_room: bool) {
        if bytes.is_empty() {
            self.ended.fetch_or(had_room, Relaxed);
        } else if !self.upgraded.load(Relaxed) {
            self.begun.store(true, Relaxed);
            self.progress().read(bytes);
        }
    }

    /// The head of a request is here; a body may follow.
    pub(super) fn take(&self, body: bool) {
        self.body.store(body, Relaxed);
        self.begun.store(false, Relaxed);
        self.taken.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
    }

    /// A response is over. What came meanwhile was the body of its request; of a request in line behind it, which
    /// hyper has by now if it is whole, more will be heard.
    pub(super) fn end(&self) {
        self.begun.store(false, Relaxed);
        self.open.fetch_sub(1, Relaxed);
    }

    /// The stream is hyper's no more.
    pub(super) fn upgrade(&self) {
        self.upgraded.store(true, Relaxed);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    pub(super) fn set_unread(&self, unread: bool) {
        self.unread.store(unread, Relaxed);
    }

    pub(super) fn has_unread(&self) -> bool {
        self.unread.load(Relaxed)
    }

    /// Whether the peer may still be sending when the last response is written.
    pub(super) fn must_linger(&self) -> bool {
        self.body.load(Relaxed)
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.open.load(Relaxed) > 0
    }

    /// A head, or a frame, is here in part; or HTTP/2 has begun, and no request has come yet.
    pub(super) fn is_receiving(&self) -> bool {
        if self.upgraded.load(Relaxed) {
            return false;
        }
        let progress = self.progress();
        if progress.is_http2() {
            return progress.is_partial() || self.taken() == 0;
        }
        // What comes while a request is worked on is its body, or the next one in line.
        progress.is_partial() || (self.begun.load(Relaxed) && !self.is_busy())
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
