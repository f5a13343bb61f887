//! Counts connections and bytes as they pass.
//!
//! **Where it goes**: outermost, to count the wire and everything that layers below refuse; below TLS, to
//! count plain text. The outermost one also keeps the counts in [`ConnInfo`].
//!
//! ```
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_net::{Conn, meter::{MeterIo, MeterLayer}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let (layer, tally) = MeterLayer::pair("greeter");
//! let greeter = ServiceBuilder::new().layer(layer).service_fn(
//!     async |mut conn: Conn<MeterIo<_>>| tokio::io::AsyncWriteExt::write_all(&mut conn, b"hi").await,
//! );
//!
//! let (near, _far) = tokio::io::duplex(64);
//! greeter.oneshot(Conn::new(near, ())).await?;
//! assert_eq!((tally.snapshot().opened(), tally.snapshot().written()), (1, 2));
//! # Ok(())
//! # }
//! ```
//!
//! # Cost
//!
//! A read or write adds to two plain numbers of the connection. The shared ones take the sum when the
//! connection waits, or after 64 KiB without waiting: no lock, allocation or look-up of a name per operation.
//!
//! # Readiness
//!
//! The inner service's.
//!
//! # Errors
//!
//! None of its own. The stream's errors are passed on untouched, and not kept.
//!
//! # On drop
//!
//! A connection ends when its stream is dropped, wherever it was moved to, and is counted with its
//! [`CloseReason`] at that moment: every one that was opened is closed exactly once.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    task::{Context, Poll},
};

use metrics::{Counter, Gauge, Histogram, IntoF64, Label, counter, gauge, histogram};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::io::Io,
    conn::{CloseReason, Conn, ConnInfo, Safeguard},
};

/// Counts the connections and bytes of a service. See the [module](self).
#[derive(Debug, Clone)]
pub struct MeterLayer {
    tally: Tally,
}

impl MeterLayer {
    /// Counts under `service`, the value of the `service` label in the metrics.
    ///
    /// The metrics' handles are made here, once: install the recorder first.
    #[must_use]
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            tally: Tally::new(service.into()),
        }
    }

    /// A handle to read what it counts.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// The layer, and a handle to read what it counts.
    #[must_use]
    pub fn pair(service: impl Into<String>) -> (Self, Tally) {
        let layer = Self::new(service);
        let tally = layer.tally();
        (layer, tally)
    }
}

impl<S> Layer<S> for MeterLayer {
    type Service = Meter<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Meter {
            inner,
            tally: self.tally.clone(),
        }
    }
}

/// The service of [`MeterLayer`].
#[derive(Debug, Clone)]
pub struct Meter<S> {
    inner: S,
    tally: Tally,
}

impl<S, I> Service<Conn<I>> for Meter<S>
where
    S: Service<Conn<MeterIo<I>>>,
    I: Io,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, conn: Conn<I>) -> S::Future {
        let meter = Open::new(&self.tally, Arc::clone(conn.info()));
        self.inner
            .call(conn.map_io(|io| MeterIo { io, meter }))
    }
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub struct MeterIo<I> {
    // Closed first, counted after.
    io: I,
    meter: Open,
}

impl<I: Io> Io for MeterIo<I> {
    delegate_socket!(io);
}

impl<I: Io> AsyncRead for MeterIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let had_room = buf.remaining() > 0;
        match Pin::new(&mut self.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                let read = buf.filled().len() - before;
                self.meter.read(read, had_room);
                Poll::Ready(Ok(()))
            }
            other => self.meter.waits_or_fails(other),
        }
    }
}

impl<I: Io> AsyncWrite for MeterIo<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.meter.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.meter.wrote(written)
    }

    delegate_write!(except poll_write io);
}

/// One open connection; closes the books on drop.
#[derive(Debug)]
struct Open {
    tally: Tally,
    info: Arc<ConnInfo>,
    own: bool,
    first: bool,
    // Not yet in the shared counts.
    read: u32,
    written: u32,
}

impl Open {
    fn new(tally: &Tally, info: Arc<ConnInfo>) -> Self {
        tally
            .counts
            .opened
            .fetch_add(1, Relaxed);
        tally.counts.metrics.opened.increment(1);
        tally
            .counts
            .metrics
            .active
            .increment(1.0);
        info.passed.mark(Safeguard::Meter);
        Self {
            own: info.claim_bytes(),
            tally: tally.clone(),
            info,
            first: true,
            read: 0,
            written: 0,
        }
    }

    fn read(&mut self, bytes: usize, had_room: bool) {
        if bytes == 0 {
            if had_room {
                self.info.ending.saw_end();
            }
            return;
        }
        let bytes = bytes as u64;
        if self.first {
            self.first = false;
            let metrics = &self.tally.counts.metrics;
            metrics
                .first_byte
                .record(Age(&self.info));
        }
        if self.own {
            self.info.count_read(bytes);
        }
        match u64::from(self.read) + bytes {
            sum @ ..FOLD_AT => self.read = sum as u32,
            sum => {
                self.read = 0;
                self.tally.counts.add_read(sum);
            }
        }
    }

    fn wrote(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Ok(bytes)) => {
                if self.own {
                    self.info.count_written(bytes as u64);
                }
                match u64::from(self.written) + bytes as u64 {
                    sum @ ..FOLD_AT => self.written = sum as u32,
                    sum => {
                        self.written = 0;
                        self.tally.counts.add_written(sum);
                    }
                }
                Poll::Ready(Ok(bytes))
            }
            other => self.waits_or_fails(other),
        }
    }

    fn waits_or_fails<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &result {
            Poll::Pending => self.fold(),
            Poll::Ready(Err(error)) => self.info.ending.saw_failure(error),
            Poll::Ready(Ok(_)) => {}
        }
        result
    }

    /// Adds what this connection has counted to what all have.
    fn fold(&mut self) {
        let counts = &self.tally.counts;
        if self.read > 0 {
            counts.add_read(std::mem::take(&mut self.read).into());
        }
        if self.written > 0 {
            counts.add_written(std::mem::take(&mut self.written).into());
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.fold();
        let reason = self.info.ending.settle();
        let counts = &self.tally.counts;
        // Release: whoever sees the close has also seen the opening before it.
        counts.closed[reason.index()].fetch_add(1, Release);
        counts.metrics.closed[reason.index()].increment(1);
        counts.metrics.active.decrement(1.0);
        counts
            .metrics
            .lifetime
            .record(Age(&self.info));
    }
}

/// The age of a connection in seconds: without a recorder nobody reads the clock for it.
struct Age<'a>(&'a ConnInfo);

impl IntoF64 for Age<'_> {
    fn into_f64(self) -> f64 {
        self.0.age().as_secs_f64()
    }
}

/// Reads what a [`MeterLayer`] counts; clones share the counts.
#[derive(Debug, Clone)]
pub struct Tally {
    counts: Arc<Counts>,
}

impl Tally {
    fn new(service: String) -> Self {
        Self {
            counts: Arc::new(Counts::new(service)),
        }
    }

    /// The counts now. Bytes of a connection that is busy at this moment may lag by 64 KiB.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let counts = &self.counts;
        // Closed before opened: a connection that comes and goes in between is seen as open, never as
        // closed without having been opened.
        let closed = std::array::from_fn(|index| counts.closed[index].load(Acquire));
        Snapshot {
            closed,
            opened: counts.opened.load(Acquire),
            read: counts.read.load(Relaxed),
            written: counts.written.load(Relaxed),
        }
    }
}

/// What a [`Tally`] held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    opened: u64,
    closed: [u64; REASONS],
    read: u64,
    written: u64,
}

impl Snapshot {
    /// Connections that reached the meter.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Connections that ended.
    #[must_use]
    pub fn closed(&self) -> u64 {
        self.closed.iter().sum()
    }

    /// Connections that ended for `reason`.
    #[must_use]
    pub fn closed_for(&self, reason: CloseReason) -> u64 {
        self.closed[reason.index()]
    }

    /// Connections open: what was opened and has not been closed.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.opened - self.closed()
    }

    /// Bytes received.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.read
    }

    /// Bytes sent.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }
}

/// What all connections add to. Each number stands for itself, so relaxed order is enough to count.
#[derive(Debug)]
struct Counts {
    opened: AtomicU64,
    closed: [AtomicU64; REASONS],
    read: AtomicU64,
    written: AtomicU64,
    metrics: Metrics,
}

impl Counts {
    fn new(service: String) -> Self {
        Self {
            opened: AtomicU64::new(0),
            closed: std::array::from_fn(|_| AtomicU64::new(0)),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            metrics: Metrics::new(service),
        }
    }
}

impl Counts {
    fn add_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Relaxed);
        self.metrics.read.increment(bytes);
    }

    fn add_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Relaxed);
        self.metrics.written.increment(bytes);
    }
}

/// The same counts for the outside, through handles made once.
struct Metrics {
    opened: Counter,
    closed: [Counter; REASONS],
    active: Gauge,
    read: Counter,
    written: Counter,
    first_byte: Histogram,
    lifetime: Histogram,
}

impl Metrics {
    fn new(service: String) -> Self {
        let labels = [Label::new("service", service)];
        let closed = |index: usize| {
            let mut labels = labels.to_vec();
            labels.push(Label::new("reason", CloseReason::ALL[index].label()));
            counter!("tower_net_connections_closed_total", labels)
        };
        Self {
            closed: std::array::from_fn(closed),
            opened: counter!("tower_net_connections_opened_total", labels.iter()),
            active: gauge!("tower_net_connections_active", labels.iter()),
            read: counter!("tower_net_received_bytes_total", labels.iter()),
            written: counter!("tower_net_sent_bytes_total", labels.iter()),
            first_byte: histogram!("tower_net_first_byte_seconds", labels.iter()),
            lifetime: histogram!("tower_net_connection_seconds", labels.iter()),
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .finish_non_exhaustive()
    }
}

const REASONS: usize = CloseReason::ALL.len();

/// Bytes after which a connection that never waits adds what it has counted all the same.
const FOLD_AT: u64 = 64 * 1024;
