use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ipnet::IpNet;
use pin_project_lite::pin_project;
use tokio::time::{Instant, sleep_until};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    gcra::Gcra,
    peers::{self, CAPACITY, Counts, TrackedPeer},
    settings::{self, Settings, peer_setters},
    surplus::{Room, Surplus},
    table::Table,
};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
        time::{FOREVER, now},
    },
    conn::{
        CloseReason, Conn, ConnInfo, Networks,
        staged::{Staged, take_ready},
    },
};

/// Limits how fast one peer may open connections. See the [module](crate::limit).
#[derive(Debug, Clone)]
pub struct ConnectRateLayer {
    shared: Arc<Shared>,
    settings: Settings<TooFast>,
}

#[derive(Debug)]
struct Shared {
    table: Table,
    gcra: Gcra,
    /// Where the table's time begins.
    beginning: Instant,
}

impl ConnectRateLayer {
    /// Of each peer, `burst` new connections at once and `per_second` over time: a peer that has used up its burst
    /// may connect again each `1 / per_second` seconds, and has the whole burst again after `burst / per_second`.
    ///
    /// A rate below one is one in several seconds: `3.0 / 60.0` is three a minute. A burst of one spaces connections
    /// evenly; clients that open several at once need as many. Layers cloned from this one count together.
    ///
    /// # Errors
    ///
    /// A rate that is not above zero, or not finite; a burst of zero; a burst that takes more than a century to
    /// come back.
    pub fn new(per_second: f64, burst: u32) -> Result<Self, ConfigError> {
        let interval = interval(per_second, burst)?;
        Ok(Self {
            shared: Arc::new(Shared::new(Gcra::new(interval, burst), CAPACITY)),
            settings: Settings::new(CloseReason::ConnectRate),
        })
    }

    peer_setters!(TooFast);

    /// A view of the peers, which can also change the rate.
    #[must_use]
    pub fn handle(&self) -> ConnectRateHandle {
        ConnectRateHandle {
            shared: Arc::clone(&self.shared),
            room: Arc::clone(self.settings.room()),
            ipv6_prefix: self.settings.peers.ipv6_prefix,
        }
    }
}

impl Shared {
    fn new(gcra: Gcra, capacity: usize) -> Self {
        Self {
            table: settings::table(capacity, CloseReason::ConnectRate),
            gcra,
            beginning: now(),
        }
    }

    /// The same rate, not used by anybody, for another number of peers.
    fn with_capacity(&self, peers: usize) -> Self {
        Self::new(self.gcra.clone(), peers)
    }

    /// Never zero, which the table takes for long ago.
    fn stamp(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.beginning);
        nanos(since).saturating_add(1)
    }

    fn too_fast(&self, network: Option<IpNet>, wait: u64) -> TooFast {
        TooFast {
            network,
            per_second: per_second(self.gcra.interval()),
            burst: self.gcra.burst(),
            retry_after: Duration::from_nanos(wait),
        }
    }
}

/// The nanoseconds from one connection to the next.
fn interval(per_second: f64, burst: u32) -> Result<u64, ConfigError> {
    // Also what is no number.
    if !(per_second > 0.0 && per_second.is_finite()) {
        return Err(ConfigError::new(
            "per_second",
            "must be a number above zero",
        ));
    }
    if burst == 0 {
        return Err(ConfigError::zero("burst"));
    }
    let interval = (SECOND / per_second).max(1.0);
    if interval * f64::from(burst) > FOREVER.as_nanos() as f64 {
        let problem = "must bring the burst back within a century";
        return Err(ConfigError::new("per_second", problem));
    }
    Ok(interval.round() as u64)
}

fn per_second(interval: u64) -> f64 {
    SECOND / interval as f64
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl<S> Layer<S> for ConnectRateLayer {
    type Service = ConnectRate<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ConnectRate {
            inner,
            shared: Arc::clone(&self.shared),
            settings: Arc::new(self.settings.clone()),
        }
    }
}

/// The service of [`ConnectRateLayer`].
#[derive(Debug, Clone)]
pub struct ConnectRate<S> {
    inner: S,
    shared: Arc<Shared>,
    settings: Arc<Settings<TooFast>>,
}

impl<S, I> Service<Conn<I>> for ConnectRate<S>
where
    S: Service<Conn<I>> + Clone,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ConnectRateFuture<S, I>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.settings.check_time()?;
        self.inner
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, conn: Conn<I>) -> ConnectRateFuture<S, I> {
        let (settings, shared) = (&self.settings, &*self.shared);
        let Counts::For(peer) = settings.peers.of(conn.info()) else {
            return Staged::at_once(self.inner.call(conn)).into();
        };
        let at = shared.stamp(conn.info().accepted_at());
        let take = |patience| {
            shared
                .gcra
                .take(&shared.table, peer, at, patience)
        };
        let Err(early) = take(0) else {
            return Staged::at_once(self.inner.call(conn)).into();
        };
        if settings.refusals.is_dry_run() {
            settings.refusals.refuse();
            return Staged::at_once(self.inner.call(conn)).into();
        }
        let network = peers::network(peer, settings.peers.ipv6_prefix);
        let mut wait = early.wait;
        if let Some((time, seat)) = settings.may_wait() {
            match take(nanos(time)) {
                Ok(wait) => {
                    let until = sleep_until(come_at(conn.info(), wait));
                    let too_fast = shared.too_fast(network, wait);
                    let waits = settings.hold(conn, seat, None, until, too_fast);
                    let waits = async { waits.await.map(|(conn, ())| conn) };
                    return Staged::after(waits, take_ready(&mut self.inner)).into();
                }
                Err(early) => wait = early.wait,
            }
        }
        let too_fast = shared.too_fast(network, wait);
        settings
            .turn_away(conn, too_fast, &self.inner)
            .into()
    }
}

fn come_at(info: &ConnInfo, wait: u64) -> Instant {
    // A wait is no longer than what is refused when it is set, and the clock goes on for longer than that.
    let wait = Duration::from_nanos(wait).min(FOREVER);
    info.accepted_at() + wait
}

pin_project! {
    /// The future of [`ConnectRate`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ConnectRateFuture<S, I>
    where
        S: Service<Conn<I>>,
    {
        #[pin]
        staged: Staged<S, I>,
    }
}

impl<S: Service<Conn<I>>, I> From<Staged<S, I>> for ConnectRateFuture<S, I> {
    fn from(staged: Staged<S, I>) -> Self {
        Self { staged }
    }
}

impl<S, I> Future for ConnectRateFuture<S, I>
where
    S: Service<Conn<I>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().staged.poll(cx)
    }
}

/// Reads who connects how fast, and changes the rate; see [`ConnectRateLayer::handle`].
#[derive(Debug, Clone)]
pub struct ConnectRateHandle {
    shared: Arc<Shared>,
    room: Arc<Room>,
    ipv6_prefix: u8,
}

impl ConnectRateHandle {
    /// The rate, in connections a second: as it was set, to the nanosecond between two of them.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        per_second(self.shared.gcra.interval())
    }

    /// The burst.
    #[must_use]
    pub fn burst(&self) -> u32 {
        self.shared.gcra.burst()
    }

    /// Changes rate and burst. A peer that had some connections of its burst left has as many less of the new one as
    /// it had used; those that wait come in at the time that they were given.
    ///
    /// It goes through the table, as [`top`](Self::top) does. A connection that is accepted meanwhile may be counted
    /// by the old rate or the new.
    ///
    /// # Errors
    ///
    /// As [`ConnectRateLayer::new`]; the rate stays as it is.
    pub fn set_rate(&self, per_second: f64, burst: u32) -> Result<(), ConfigError> {
        let (shared, interval) = (&*self.shared, interval(per_second, burst)?);
        let now = shared.stamp(now());
        shared
            .gcra
            .set(&shared.table, now, interval, burst);
        Ok(())
    }

    /// How many of the surplus wait, or are being told their last word.
    #[must_use]
    pub fn surplus_held(&self) -> usize {
        self.room.seated()
    }

    /// How many peers have not their whole burst. It goes through the table, as [`top`](Self::top) does.
    #[must_use]
    pub fn peers(&self) -> usize {
        let now = self.shared.stamp(now());
        self.shared.table.count(now)
    }

    /// The memory that the table takes once every slot of it has been used, in bytes. Until then it takes less, and
    /// never more.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        self.shared.table.bytes()
    }

    /// The peers that have used up the most of their burst, most first; one that waits has used more than all of it.
    ///
    /// It goes through the whole table, 36 bytes for each peer of its capacity: about a millisecond for the default
    /// one. A sixty-fourth of it is locked at a time, for microseconds, so that connections go on coming; the result
    /// is no snapshot of one moment.
    #[must_use]
    pub fn top(&self, peers: usize) -> Vec<TrackedPeer> {
        let (shared, now) = (&*self.shared, self.shared.stamp(now()));
        let heaviest = shared.table.heaviest(now, peers);
        heaviest
            .into_iter()
            .map(|(peer, until)| {
                let used = shared.gcra.used(until, now);
                TrackedPeer::new(peer, self.ipv6_prefix, used)
            })
            .collect()
    }
}

/// The peer opens connections faster than it may: this one was refused before a byte of it was read.
///
/// Nothing was started, so the peer may safely try again, after [`retry_after`](Self::retry_after).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TooFast {
    network: Option<IpNet>,
    per_second: f64,
    burst: u32,
    retry_after: Duration,
}

impl TooFast {
    /// The peer's network; `None` stands for all peers without an IP address.
    #[must_use]
    pub fn network(&self) -> Option<IpNet> {
        self.network
    }

    /// The rate, in connections a second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.per_second
    }

    /// The burst.
    #[must_use]
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// When the peer's next connection will be let in, counted from when this one was accepted.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        self.retry_after
    }

    /// Whether the refused work was never begun: always.
    #[must_use]
    pub fn never_started(&self) -> bool {
        true
    }
}

impl fmt::Display for TooFast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, burst) = (self.per_second, self.burst);
        write!(
            f,
            "rate of {rate} new connections a second and burst of {burst} a peer used up"
        )
    }
}

impl Error for TooFast {}

impl From<TooFast> for io::Error {
    fn from(error: TooFast) -> Self {
        Self::new(io::ErrorKind::ConnectionRefused, error)
    }
}

/// In nanoseconds.
const SECOND: f64 = 1e9;
