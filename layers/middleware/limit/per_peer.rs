use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use ipnet::IpNet;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    peers::{self, CAPACITY, Counts, TrackedPeer},
    places::{Held, Places},
    settings::{self, Settings, peer_setters},
    surplus::{Room, Surplus},
};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::{GuardedIo, Io},
        time::{later, now},
    },
    conn::{
        CloseReason, Conn, Networks, Safeguard,
        staged::{Staged, take_ready},
    },
};

/// Limits how many connections of one peer are open. See the [module](crate::limit).
#[derive(Debug, Clone)]
pub struct PerPeerLimitLayer {
    shared: Arc<Places>,
    settings: Settings<PeerFull>,
}

impl PerPeerLimitLayer {
    /// At most `limit` connections of each peer; more than a `u32` holds is no limit.
    ///
    /// Layers cloned from this one count together.
    ///
    /// # Errors
    ///
    /// A limit of zero, which would let nobody in.
    pub fn new(limit: usize) -> Result<Self, ConfigError> {
        let limit = settings::not_zero("limit", limit)?;
        Ok(Self {
            shared: Arc::new(places(limit, CAPACITY)),
            settings: Settings::new(CloseReason::PerPeerLimit),
        })
    }

    peer_setters!(PeerFull);

    /// A view of the peers, which can also change the limit.
    #[must_use]
    pub fn handle(&self) -> PerPeerLimitHandle {
        PerPeerLimitHandle {
            places: Arc::clone(&self.shared),
            room: Arc::clone(self.settings.room()),
            ipv6_prefix: self.settings.peers.ipv6_prefix,
        }
    }
}

fn places(limit: usize, capacity: usize) -> Places {
    Places::new(limit, settings::table(capacity, CloseReason::PerPeerLimit))
}

impl Places {
    /// The same, all free, for another number of peers.
    fn with_capacity(&self, peers: usize) -> Self {
        places(self.limit(), peers)
    }
}

impl<S> Layer<S> for PerPeerLimitLayer {
    type Service = PerPeerLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PerPeerLimit {
            inner,
            places: Arc::clone(&self.shared),
            settings: Arc::new(self.settings.clone()),
        }
    }
}

/// The service of [`PerPeerLimitLayer`].
#[derive(Debug, Clone)]
pub struct PerPeerLimit<S> {
    inner: S,
    places: Arc<Places>,
    settings: Arc<Settings<PeerFull>>,
}

impl<S, I> Service<Conn<I>> for PerPeerLimit<S>
where
    S: Service<Conn<GuardedIo<I, PeerPlace>>> + Clone,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = PerPeerLimitFuture<S, I>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.settings.check_time()?;
        self.inner
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, conn: Conn<I>) -> PerPeerLimitFuture<S, I> {
        let (settings, info) = (&self.settings, conn.info());
        let counts = settings.peers.of(info);
        let limits = !settings.refusals.is_dry_run() && self.places.limit() < NO_LIMIT;
        if counts != Counts::ForNobody && limits {
            info.passed
                .mark(Safeguard::PerPeerLimit);
        }
        let Counts::For(peer) = counts else {
            let serving = self.inner.call(place(conn, None));
            return Staged::at_once(serving).into();
        };
        let number = info.id().get();
        let held = self.places.take(peer, number);
        // In a dry run the surplus has no place, as if it were not there: it keeps nobody else from one.
        if held.is_some() || (settings.refusals.is_dry_run() && !settings.refusals.refuse()) {
            let serving = self.inner.call(place(conn, held));
            return Staged::at_once(serving).into();
        }
        let full = PeerFull {
            network: peers::network(peer, settings.peers.ipv6_prefix),
            limit: self.places.limit(),
        };
        let Some((time, seat)) = settings.may_wait() else {
            return settings
                .turn_away(conn, full, &self.inner)
                .into();
        };
        let waiting = self.places.wait(peer, number);
        let waits = settings.hold(conn, seat, later(now(), time), waiting, full);
        let waits = async {
            waits
                .await
                .map(|(conn, held)| place(conn, Some(held)))
        };
        Staged::after(waits, take_ready(&mut self.inner)).into()
    }
}

/// Ties a place to the stream.
fn place<I>(conn: Conn<I>, held: Option<Held>) -> Conn<GuardedIo<I, PeerPlace>> {
    conn.map_io(|io| GuardedIo::new(io, PeerPlace { _held: held }))
}

pin_project! {
    /// The future of [`PerPeerLimit`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct PerPeerLimitFuture<S, I>
    where
        S: Service<Conn<GuardedIo<I, PeerPlace>>>,
    {
        #[pin]
        staged: Staged<S, GuardedIo<I, PeerPlace>>,
    }
}

impl<S, I> From<Staged<S, GuardedIo<I, PeerPlace>>> for PerPeerLimitFuture<S, I>
where
    S: Service<Conn<GuardedIo<I, PeerPlace>>>,
{
    fn from(staged: Staged<S, GuardedIo<I, PeerPlace>>) -> Self {
        Self { staged }
    }
}

impl<S, I> Future for PerPeerLimitFuture<S, I>
where
    S: Service<Conn<GuardedIo<I, PeerPlace>>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().staged.poll(cx)
    }
}

/// A place of a peer, which the stream holds; nothing for a peer that is not counted.
#[derive(Debug)]
pub struct PeerPlace {
    _held: Option<Held>,
}

/// Reads who has how many connections open, and changes the limit; see [`PerPeerLimitLayer::handle`].
#[derive(Debug, Clone)]
pub struct PerPeerLimitHandle {
    places: Arc<Places>,
    room: Arc<Room>,
    ipv6_prefix: u8,
}

impl PerPeerLimitHandle {
    /// The limit.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.places.limit()
    }

    /// Changes the limit for connections to come. A lower one closes none that is open; with a higher one those
    /// that wait come in at once.
    ///
    /// # Errors
    ///
    /// Zero; the limit stays as it is.
    pub fn set_limit(&self, limit: usize) -> Result<(), ConfigError> {
        self.places
            .set_limit(settings::not_zero("limit", limit)?);
        Ok(())
    }

    /// How many of the surplus wait, or are being told their last word.
    #[must_use]
    pub fn surplus_held(&self) -> usize {
        self.room.seated()
    }

    /// How many peers have a connection open. It goes through the table, as [`top`](Self::top) does.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.places.table.count(0)
    }

    /// The memory that the table takes once every slot of it has been used, in bytes. Until then it takes less, and
    /// never more.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        self.places.table.bytes()
    }

    /// The peers with the most connections, most first.
    ///
    /// It goes through the whole table, 36 bytes for each peer of its capacity: about a millisecond for the default
    /// one. A sixty-fourth of it is locked at a time, for microseconds, so that connections go on coming; the result
    /// is no snapshot of one moment.
    #[must_use]
    pub fn top(&self, peers: usize) -> Vec<TrackedPeer> {
        let heaviest = self.places.table.heaviest(0, peers);
        heaviest
            .into_iter()
            .map(|(peer, weight)| TrackedPeer::new(peer, self.ipv6_prefix, Places::open(weight)))
            .collect()
    }
}

/// The peer has as many connections open as it may have: this one was refused before a byte of it was read.
///
/// Nothing was started, so the peer may safely try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerFull {
    network: Option<IpNet>,
    limit: usize,
}

impl PeerFull {
    /// The peer's network; `None` stands for all peers without an IP address.
    #[must_use]
    pub fn network(&self) -> Option<IpNet> {
        self.network
    }

    /// The limit that was reached.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether the refused work was never begun: always.
    #[must_use]
    pub fn never_started(&self) -> bool {
        true
    }
}

impl fmt::Display for PeerFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limit of {} connections a peer reached", self.limit)
    }
}

impl Error for PeerFull {}

impl From<PeerFull> for io::Error {
    fn from(error: PeerFull) -> Self {
        Self::new(io::ErrorKind::ConnectionRefused, error)
    }
}

/// From here on it keeps nobody from anything.
const NO_LIMIT: usize = u32::MAX as usize;
