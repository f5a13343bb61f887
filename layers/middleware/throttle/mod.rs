//! Slows streams down to so many bytes a second: each for itself, all together, or both.
//!
//! **Where it goes**: right below [`DeadlineLayer`](crate::deadline::DeadlineLayer), which then sees the bytes after
//! they were held back: a stream that is made to wait here is neither idle nor stalled. Above it, it would be both.
//! A minimum rate of the deadlines must be below the rate here, and absolute deadlines run on while a
//! request is slowed. Below TLS it counts plain text, above it the wire.
//!
//! ```
//! use tower::ServiceBuilder;
//! use tower_net::{deadline::DeadlineLayer, throttle::{Rate, Rates, ThrottleLayer}};
//!
//! let throttle = ThrottleLayer::new(
//!     Rates::new()
//!         .send(Rate::per_second(1 << 20))              // each stream 1 MiB/s, after a burst of a tenth of it
//!         .send_shared(Rate::per_second(64 << 20))      // all together 64 MiB/s
//!         .receive(Rate::per_second(64 << 10).burst(16 << 10)),
//! )?;
//! let handle = throttle.handle();                       // changes them while they run
//! let stack = ServiceBuilder::new().layer(DeadlineLayer::default()).layer(throttle);
//! # drop((stack, handle));
//! # Ok::<(), tower_net::error::ConfigError>(())
//! ```
//!
//! # What passes
//!
//! Over any stretch of time, at most *burst + rate × time* bytes, and one byte that is the rounding of a second into
//! bytes. Of a shared rate, besides: one byte for each stream that has just begun to read when nothing was left; what
//! streams had booked that were closed while they waited, if others have taken it at once; and what the rate gives
//! in the time that a single read or write takes.
//!
//! Reads and writes are cut to what may pass. One that finds too little waits until there is what it asks for, or half
//! a burst of it, and at most 64 KiB: so a slowed stream moves in few and large steps. Vectored
//! writes stay vectored, and flush, shutdown and the end of the stream are never held back for shared bytes.
//!
//! # Who has its turn
//!
//! A stream that finds nothing left of a shared rate books the next share of it, a sixteenth of the burst and at
//! most 64 KiB, and waits until that is due. Who comes later books behind it. So of *n* busy streams each has an *n*th,
//! and waits for *n* shares at the most, however greedy the others are. A stream with nothing to read books nothing.
//!
//! # Cost
//!
//! The clock is read once for each read or write of a direction that has a rate, and once more after each wait. A
//! waiting stream has one timer for each direction, which is allocated at its first wait and armed once a wait. A
//! stream holds no bytes: there is nothing to lose.
//!
//! # Readiness
//!
//! The inner service's. The first time, it also checks that the runtime can keep time.
//!
//! # Errors
//!
//! [`NoTimer`](crate::error::NoTimer) on a runtime without a time driver; none of its own on the stream.
//!
//! # On drop
//!
//! What a stream had booked of a shared rate is given back.

mod bucket;
mod gate;
mod rates;
mod stream;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Release},
    },
    task::{Context, Poll},
};

use metrics::counter;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use self::{
    bucket::Pool,
    gate::HeldBack,
    rates::{Direction, Lines},
};
pub use self::{
    rates::{Rate, Rates},
    stream::ThrottleIo,
};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
        time::{KeepsTime, now},
    },
    conn::Conn,
};

/// Slows streams down. See the [module](self).
#[derive(Debug, Clone)]
pub struct ThrottleLayer {
    shared: Arc<Shared>,
    dry_run: bool,
}

/// What all streams of a layer share; pairs are in the order of [`Direction`].
#[derive(Debug)]
struct Shared {
    /// Counts the changes, so that a stream sees that there was one without taking the lock.
    version: AtomicU32,
    lines: Mutex<Arc<Lines>>,
    pools: [Pool; 2],
    held_back: [HeldBack; 2],
    spared: [HeldBack; 2],
    keeps_time: KeepsTime,
}

impl ThrottleLayer {
    /// At these rates. Layers cloned from this one share what is shared.
    ///
    /// The metrics' handles are made here, once: install the recorder first.
    ///
    /// # Errors
    ///
    /// No rate at all; one of zero, under which nothing would move; or one that is out of the bounds of [`Rate`].
    pub fn new(rates: Rates) -> Result<Self, ConfigError> {
        rates.check()?;
        let held_back = |dry_run: &'static str| {
            ["receive", "send"].map(|direction| {
                HeldBack::new(counter!(
                    "tower_net_throttled_bytes_total",
                    "direction" => direction,
                    "dry_run" => dry_run,
                ))
            })
        };
        Ok(Self {
            shared: Arc::new(Shared {
                version: AtomicU32::new(0),
                lines: Mutex::new(Arc::new(Lines::new(now(), rates))),
                pools: Default::default(),
                held_back: held_back("false"),
                spared: held_back("true"),
                keeps_time: KeepsTime::default(),
            }),
            dry_run: false,
        })
    }

    /// Only counts the bytes that it would have held back. Default: off.
    #[must_use]
    pub fn dry_run(mut self, on: bool) -> Self {
        self.dry_run = on;
        self
    }

    /// A handle to change the rates, and to read what was held back.
    #[must_use]
    pub fn handle(&self) -> ThrottleHandle {
        ThrottleHandle {
            shared: Arc::clone(&self.shared),
            dry_run: self.dry_run,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Arc<Lines>> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lines(&self) -> (u32, Arc<Lines>) {
        let lines = self.lock();
        // Under the lock, the two belong together.
        let version = self
            .version
            .load(std::sync::atomic::Ordering::Relaxed);
        (version, Arc::clone(&lines))
    }

    fn held_back(&self, dry_run: bool) -> &[HeldBack; 2] {
        if dry_run {
            &self.spared
        } else {
            &self.held_back
        }
    }
}

impl<S> Layer<S> for ThrottleLayer {
    type Service = Throttle<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Throttle {
            inner,
            shared: Arc::clone(&self.shared),
            dry_run: self.dry_run,
        }
    }
}

/// The service of [`ThrottleLayer`].
#[derive(Debug, Clone)]
pub struct Throttle<S> {
    inner: S,
    shared: Arc<Shared>,
    dry_run: bool,
}

impl<S, I> Service<Conn<I>> for Throttle<S>
where
    S: Service<Conn<ThrottleIo<I>>>,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ThrottleFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.shared.keeps_time.check()?;
        self.inner
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, conn: Conn<I>) -> ThrottleFuture<S::Future> {
        let (shared, info) = (Arc::clone(&self.shared), Arc::clone(conn.info()));
        let conn = conn.map_io(|io| ThrottleIo::new(io, shared, info, self.dry_run));
        ThrottleFuture {
            inner: self.inner.call(conn),
        }
    }
}

pin_project! {
    /// The future of [`Throttle`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ThrottleFuture<F> {
        #[pin]
        inner: F,
    }
}

impl<F, T, E> Future for ThrottleFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project()
            .inner
            .poll(cx)
            .map_err(Into::into)
    }
}

/// Changes the rates of a [`ThrottleLayer`] while it runs, and reads what it has held back.
#[derive(Debug, Clone)]
pub struct ThrottleHandle {
    shared: Arc<Shared>,
    dry_run: bool,
}

impl ThrottleHandle {
    /// The rates now.
    #[must_use]
    pub fn rates(&self) -> Rates {
        self.shared.lock().rates
    }

    /// Sets the rates, from now on: those of open streams as well, from their next read or write on, and within a
    /// second for one that is waiting. What was spent stays spent.
    ///
    /// # Errors
    ///
    /// As for [`ThrottleLayer::new`]; the rates stay as they were.
    pub fn set(&self, rates: Rates) -> Result<(), ConfigError> {
        rates.check()?;
        let mut lines = self.shared.lock();
        *lines = Arc::new(lines.bent(now(), rates));
        self.shared
            .version
            .fetch_add(1, Release);
        Ok(())
    }

    /// Bytes received that were made to wait first; in a dry run, that would have been.
    #[must_use]
    pub fn held_back_received(&self) -> u64 {
        self.shared.held_back(self.dry_run)[Direction::Receive as usize].bytes()
    }

    /// Bytes sent that were made to wait first; in a dry run, that would have been.
    #[must_use]
    pub fn held_back_sent(&self) -> u64 {
        self.shared.held_back(self.dry_run)[Direction::Send as usize].bytes()
    }
}
