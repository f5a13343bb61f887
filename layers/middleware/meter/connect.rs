use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll, ready},
};

use metrics::{Counter, Gauge, Histogram, Label, counter, gauge, histogram};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{io::Io, time::now},
    conn::Conn,
    middleware::meter::{MeterIo, Snapshot, Tally, tally::Names},
};

/// Counts what a connector opens, and the bytes of each connection until it ends.
///
/// **Where it goes**: around everything that belongs to opening a connection, and inside whatever keeps connections. It
/// counts plain text if TLS is inside; right around a [`TcpConnector`](crate::connect::TcpConnector) it counts the wire.
/// The innermost one also keeps the counts in [`ConnInfo`](crate::ConnInfo).
///
/// ```
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_net::{Conn, error::BoxError, meter::MeterConnectLayer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let (layer, tally) = MeterConnectLayer::pair("backend");
/// let connector = ServiceBuilder::new()
///     .layer(layer)
///     .service(service_fn(async |()| Ok::<_, BoxError>(Conn::new(tokio::io::duplex(64).0, ()))));
///
/// let conn = connector.oneshot(()).await?;
/// let counts = tally.snapshot();
/// assert_eq!((counts.begun(), counts.connections().active()), (1, 1));
/// # drop(conn);
/// # Ok(())
/// # }
/// ```
///
/// # Readiness
///
/// The connector's.
///
/// # Errors
///
/// The connector's, untouched.
///
/// # On drop
///
/// A future that is dropped before it is done counts as abandoned. A connection ends when its stream is dropped.
#[derive(Debug, Clone)]
pub struct MeterConnectLayer {
    tally: ConnectTally,
}

impl MeterConnectLayer {
    /// Counts under `service`, the value of the `service` label in the metrics: whom it connects to.
    ///
    /// The metrics' handles are made here, once: install the recorder first.
    #[must_use]
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            tally: ConnectTally::new(service.into()),
        }
    }

    /// A handle to read what it counts.
    #[must_use]
    pub fn tally(&self) -> ConnectTally {
        self.tally.clone()
    }

    /// The layer, and a handle to read what it counts.
    #[must_use]
    pub fn pair(service: impl Into<String>) -> (Self, ConnectTally) {
        let layer = Self::new(service);
        let tally = layer.tally();
        (layer, tally)
    }
}

impl<S> Layer<S> for MeterConnectLayer {
    type Service = MeterConnect<S>;

    fn layer(&self, inner: S) -> Self::Service {
        MeterConnect {
            inner,
            tally: self.tally.clone(),
        }
    }
}

/// The service of [`MeterConnectLayer`].
#[derive(Debug, Clone)]
pub struct MeterConnect<S> {
    inner: S,
    tally: ConnectTally,
}

impl<S, T, I> Service<T> for MeterConnect<S>
where
    S: Service<T, Response = Conn<I>>,
    I: Io,
{
    type Response = Conn<MeterIo<I>>;
    type Error = S::Error;
    type Future = MeterConnectFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, target: T) -> Self::Future {
        MeterConnectFuture {
            attempt: Attempt::begin(&self.tally),
            connecting: self.inner.call(target),
        }
    }
}

pin_project! {
    /// The future of [`MeterConnect`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct MeterConnectFuture<F> {
        #[pin]
        connecting: F,
        attempt: Attempt,
    }
}

impl<F, I, E> Future for MeterConnectFuture<F>
where
    F: Future<Output = Result<Conn<I>, E>>,
    I: Io,
{
    type Output = Result<Conn<MeterIo<I>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let connected = ready!(this.connecting.poll(cx));
        this.attempt
            .end(connected.as_ref().map(drop).is_ok());
        Poll::Ready(connected.map(|conn| {
            let tally = &this.attempt.tally.connections;
            MeterIo::around(conn, tally)
        }))
    }
}

/// One connection that is being opened, which has exactly one outcome: dropped without one, it was abandoned.
#[derive(Debug)]
struct Attempt {
    tally: ConnectTally,
    since: Instant,
    open: bool,
}

impl Attempt {
    fn begin(tally: &ConnectTally) -> Self {
        let counts = &tally.counts;
        counts.begun.fetch_add(1, Relaxed);
        counts.metrics.pending.increment(1.0);
        Self {
            tally: tally.clone(),
            since: now(),
            open: true,
        }
    }

    fn end(&mut self, connected: bool) {
        self.open = false;
        let counts = &self.tally.counts;
        counts.metrics.pending.decrement(1.0);
        if connected {
            let took = now().saturating_duration_since(self.since);
            counts
                .metrics
                .seconds
                .record(took.as_secs_f64());
            counts.metrics.connected.increment(1);
            // Release: whoever sees the outcome has also seen the beginning before it.
            counts.connected.fetch_add(1, Release);
        } else {
            counts.metrics.failed.increment(1);
            counts.failed.fetch_add(1, Release);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.open {
            let counts = &self.tally.counts;
            counts.metrics.pending.decrement(1.0);
            counts.metrics.abandoned.increment(1);
            counts.abandoned.fetch_add(1, Release);
        }
    }
}

/// Reads what a [`MeterConnectLayer`] counts; clones share the counts.
#[derive(Debug, Clone)]
pub struct ConnectTally {
    connections: Tally,
    counts: Arc<Counts>,
}

impl ConnectTally {
    fn new(service: String) -> Self {
        Self {
            counts: Arc::new(Counts {
                begun: AtomicU64::new(0),
                connected: AtomicU64::new(0),
                failed: AtomicU64::new(0),
                abandoned: AtomicU64::new(0),
                metrics: Metrics::new(&service),
            }),
            connections: Tally::new(OPENED, service),
        }
    }

    /// The counts now. Bytes of a connection that is busy at this moment may lag by 64 KiB.
    #[must_use]
    pub fn snapshot(&self) -> ConnectSnapshot {
        let counts = &self.counts;
        let connections = self.connections.snapshot();
        // Outcomes before beginnings: what begins and ends in between is seen as under way.
        let outcomes = [&counts.connected, &counts.failed, &counts.abandoned];
        let [connected, failed, abandoned] = outcomes.map(|count| count.load(Acquire));
        ConnectSnapshot {
            begun: counts.begun.load(Acquire),
            connected,
            failed,
            abandoned,
            connections,
        }
    }
}

/// What a [`ConnectTally`] held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectSnapshot {
    begun: u64,
    connected: u64,
    failed: u64,
    abandoned: u64,
    connections: Snapshot,
}

impl ConnectSnapshot {
    /// Connections that were begun.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Connections that are being opened: begun, and without an outcome yet.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.begun - self.connected - self.failed - self.abandoned
    }

    /// Connections that could not be opened.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Connections that nobody waited for any more.
    #[must_use]
    pub fn abandoned(&self) -> u64 {
        self.abandoned
    }

    /// Those that were opened: how many are open, why the others ended, and their bytes.
    #[must_use]
    pub fn connections(&self) -> &Snapshot {
        &self.connections
    }
}

/// Each number stands for itself; `begun` is what all outcomes add up to.
#[derive(Debug)]
struct Counts {
    begun: AtomicU64,
    connected: AtomicU64,
    failed: AtomicU64,
    abandoned: AtomicU64,
    metrics: Metrics,
}

/// The same counts for the outside, through handles made once.
struct Metrics {
    connected: Counter,
    failed: Counter,
    abandoned: Counter,
    pending: Gauge,
    seconds: Histogram,
}

impl Metrics {
    fn new(service: &str) -> Self {
        let service = Label::new("service", service.to_owned());
        let outcome = |outcome: &'static str| {
            let labels = [service.clone(), Label::new("outcome", outcome)];
            counter!("tower_net_connects_total", labels.iter())
        };
        let labels = std::slice::from_ref(&service);
        Self {
            connected: outcome("ok"),
            failed: outcome("failed"),
            abandoned: outcome("abandoned"),
            pending: gauge!("tower_net_connects_pending", labels.iter()),
            seconds: histogram!("tower_net_connect_seconds", labels.iter()),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .finish_non_exhaustive()
    }
}

const OPENED: &Names = &Names {
    opened: "tower_net_outgoing_opened_total",
    closed: "tower_net_outgoing_closed_total",
    active: "tower_net_outgoing_active",
    read: "tower_net_outgoing_received_bytes_total",
    written: "tower_net_outgoing_sent_bytes_total",
    first_byte: "tower_net_outgoing_first_byte_seconds",
    lifetime: "tower_net_outgoing_seconds",
};
