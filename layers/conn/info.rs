use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tracing::Span;

use crate::{
    base::time::now,
    conn::{
        Addr, CloseReason, Safeguard,
        ending::Ending,
        facts::Facts,
        safeguard::Safeguards,
        waits::{NEVER, Stamp, Waits},
    },
};

/// The number of a connection, unique while the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(u64);

impl ConnId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The plain number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is known of a connection, and the handle to it while it runs.
///
/// One allocation a connection, made at accept and shared from then on by its stack, its handler and the
/// server. Facts are written once, by the layer that learns them, before the handler sees them. The handle
/// is for the handler that needs more than the defaults give it: see
/// [`extend`](Self::extend), [`suspend`](Self::suspend), [`close_after_reply`](Self::close_after_reply).
pub struct ConnInfo {
    id: ConnId,
    wire_peer: Addr,
    origin: Arc<Origin>,
    accepted_at: Instant,
    span: OnceLock<Span>,
    /// Bytes, as the outermost meter sees them.
    read: AtomicU64,
    written: AtomicU64,
    metered: AtomicBool,
    pub(crate) ending: Ending,
    pub(crate) waits: Waits,
    pub(crate) facts: Facts,
    pub(crate) passed: Safeguards,
    /// When the first of its handshakes began, while they are under way.
    pub(crate) handshake_since: AtomicU64,
}

/// Who the client is, as a trusted proxy has it.
struct Announced(Addr);

/// What all connections of one listener have in common.
#[derive(Debug, Default)]
pub(crate) struct Origin {
    pub(crate) local: Addr,
    pub(crate) listener: Option<Arc<str>>,
}

type Extensions = HashMap<TypeId, Box<dyn Any + Send + Sync>>;

impl ConnInfo {
    /// A connection accepted now from `wire_peer`, at `local`; or opened now to it.
    #[must_use]
    pub fn new(wire_peer: Addr, local: Addr) -> Self {
        let listener = None;
        Self::from_origin(wire_peer, Arc::new(Origin { local, listener }))
    }

    pub(crate) fn from_origin(wire_peer: Addr, origin: Arc<Origin>) -> Self {
        Self {
            id: ConnId::next(),
            wire_peer,
            origin,
            accepted_at: now(),
            span: OnceLock::new(),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            metered: AtomicBool::new(false),
            ending: Ending::new(),
            waits: Waits::new(),
            facts: Facts::default(),
            passed: Safeguards::default(),
            handshake_since: AtomicU64::new(NEVER),
        }
    }

    /// The connection's number, the same in logs, reports and errors.
    #[must_use]
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// The client: as announced by a trusted proxy, or else the address on the socket.
    #[must_use]
    pub fn peer(&self) -> &Addr {
        self.facts
            .get()
            .map_or(&self.wire_peer, |Announced(peer)| peer)
    }

    /// Says who the client is, on the word of a proxy that is trusted. Only the first word counts.
    pub fn announce_peer(&self, peer: impl Into<Addr>) {
        // A second announcement is ignored: what was counted under the first name stays with it.
        self.facts.add(Announced(peer.into()));
    }

    /// The address on the socket, which is a proxy's if there is one in front.
    #[must_use]
    pub fn wire_peer(&self) -> &Addr {
        &self.wire_peer
    }

    /// Our end of the connection.
    #[must_use]
    pub fn local(&self) -> &Addr {
        &self.origin.local
    }

    /// The name of the listener that accepted it, if it was given one.
    #[must_use]
    pub fn listener(&self) -> Option<&str> {
        self.origin.listener.as_deref()
    }

    /// When it was accepted, or opened if it is one of ours.
    #[must_use]
    pub fn accepted_at(&self) -> Instant {
        self.accepted_at
    }

    /// How long it has been open.
    #[must_use]
    pub fn age(&self) -> Duration {
        now().saturating_duration_since(self.accepted_at)
    }

    /// Bytes received so far, as the outermost meter of the stack sees them; zero without one. Of a connection of ours,
    /// which meters are layered around as it is made, it is the innermost.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes sent so far, as [`bytes_read`](Self::bytes_read) has those received.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// The span of the connection, for a layer that wants to add a field to it; disabled without
    /// [`TraceLayer`](crate::trace::TraceLayer).
    #[must_use]
    pub fn span(&self) -> &Span {
        static NONE: Span = Span::none();
        self.span.get().unwrap_or(&NONE)
    }

    /// Gives the connection its span; the first one stays.
    pub(crate) fn set_span(&self, span: Span) {
        self.span.get_or_init(|| span);
    }

    /// Why it ended, or is about to; `None` while it is open.
    #[must_use]
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.ending.reason()
    }

    /// Says why it is about to end; returns the reason that holds, since the first one given wins.
    ///
    /// This only names the end. To bring it about, return from the service.
    pub fn end_with(&self, reason: CloseReason) -> CloseReason {
        self.ending.give(reason)
    }

    /// Adds a fact of a type of your own, replacing one of the same type.
    ///
    /// The way out for what the typed fields do not know; takes a lock.
    pub fn insert<T: Any + Send + Sync>(&self, value: T) {
        let mut map = self
            .facts
            .add(Mutex::<Extensions>::default())
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        map.insert(TypeId::of::<T>(), Box::new(value));
    }

    /// A copy of the fact of type `T`, if there is one; takes a lock.
    #[must_use]
    pub fn get<T: Any + Clone>(&self) -> Option<T> {
        let map = self.facts.get::<Mutex<Extensions>>()?;
        let map = map
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        map.get(&TypeId::of::<T>())?
            .downcast_ref()
            .cloned()
    }

    /// Whether the connection has passed a guard of the production checklist.
    #[must_use]
    pub fn has_passed(&self, safeguard: Safeguard) -> bool {
        self.passed.has(safeguard)
    }

    /// When the first handshake of this connection began, which is now if none has.
    pub(crate) fn handshake_since(&self) -> Stamp {
        let since = self
            .handshake_since
            .load(Ordering::Relaxed);
        if since != NEVER {
            return since;
        }
        let since = self.stamp(now());
        self.handshake_since
            .store(since, Ordering::Relaxed);
        since
    }

    /// The peer has said who it is: a handshake that comes after this has its time anew.
    ///
    /// PROXY headers, detection and TLS of one connection share [one time](crate::Handshakes), which a TLS handshake ends
    /// that succeeds. A service that begins TLS in the middle of a connection (`STARTTLS`), below one of the others, says
    /// so here first.
    pub fn handshakes_done(&self) {
        self.handshake_since
            .store(NEVER, Ordering::Relaxed);
    }

    /// Whether the caller is the first meter, whose counts are the connection's own.
    pub(crate) fn claim_bytes(&self) -> bool {
        !self
            .metered
            .swap(true, Ordering::Relaxed)
    }

    // Only the stream's owner counts, so a load and a store are enough and no bus is locked.

    pub(crate) fn count_read(&self, bytes: u64) {
        let sum = self
            .read
            .load(Ordering::Relaxed)
            .wrapping_add(bytes);
        self.read.store(sum, Ordering::Relaxed);
    }

    pub(crate) fn count_written(&self, bytes: u64) {
        let sum = self
            .written
            .load(Ordering::Relaxed)
            .wrapping_add(bytes);
        self.written
            .store(sum, Ordering::Relaxed);
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnInfo")
            .field("id", &self.id)
            .field("peer", self.peer())
            .field("wire_peer", &self.wire_peer)
            .field("origin", &self.origin)
            .field("bytes_read", &self.bytes_read())
            .field("bytes_written", &self.bytes_written())
            .field("close_reason", &self.close_reason())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_connection_carries_stays_small() {
        // It is most of what an idle one costs beside its task, as `rivals idle` measures.
        assert!(size_of::<ConnInfo>() <= 328);
    }
}
