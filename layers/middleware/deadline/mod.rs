//! Ends connections whose peer is slow, silent, or has been here for too long; and, around a connector, the opening of
//! one that takes too long: [`ConnectDeadlineLayer`].
//!
//! **Where it goes**: below TLS and whatever else talks first, so that the first-byte deadline begins after
//! the handshake; above the crossing ([`FrameLayer`](crate::frame::FrameLayer)), whose request deadlines
//! then run on the same timer.
//!
//! ```
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//! use tower_net::deadline::{DeadlineLayer, Deadlines};
//!
//! let layer = DeadlineLayer::new(
//!     Deadlines::default()
//!         .first_byte(Duration::from_secs(5))
//!         .max_age(Duration::from_secs(3600)),
//! )?;
//! let stack = ServiceBuilder::new().layer(layer);
//! # drop(stack);
//! # Ok::<(), tower_net::error::ConfigError>(())
//! ```
//!
//! | limit | default | begins | reset by | does not cover |
//! |---|---|---|---|---|
//! | first byte | 3 s | when the connection reaches this layer | nothing | what comes after the first byte |
//! | idle | 90 s | when the service waits for the peer | any byte, either way | a request being worked on |
//! | write stall | 30 s | when a write has to wait | any byte written | what the kernel has already taken |
//! | maximum age | off | at accept | nothing | |
//! | minimum rate | off | when a request is in part here, or a write waits | each window | silence between requests |
//!
//! [`Duration::MAX`](std::time::Duration::MAX) turns a limit off; zero is refused when the layer is built. There is one timer for all of
//! them, and a connection that is busy and healthy does not touch it: see *Precision*.
//!
//! # Dry run
//!
//! With [`Deadlines::dry_run`] a limit that passes adds one to `tower_net_dry_run_total{reason}` and does nothing else. It
//! is counted again when its wait has begun anew: at the next idle period, the next stall, the next request; first byte
//! and age once for each connection. A dry run goes by what would happen to a connection that stays, so one that
//! would have been closed goes on to be counted for its later waits.
//!
//! # Precision
//!
//! First byte and age pass on time. Idle and write stall pass on time or up to a sixteenth of the shorter of
//! the two later, which is what it saves to not read the clock at every read and write.
//!
//! Below a [`PressureLayer`](crate::pressure::PressureLayer), first byte and idle are shorter while the process is short of
//! something.
//!
//! # Readiness
//!
//! The inner service's. The first time, it also checks that the runtime can keep time.
//!
//! # Errors
//!
//! [`Elapsed`] once a limit has passed, from the service and from every later use of the stream, and
//! [`NoTimer`](crate::error::NoTimer) on a runtime without a time driver.
//!
//! # On drop
//!
//! Dropping the future drops the inner one. When a limit passes, the inner future is dropped where it stands
//! and the stream closed: for a peer that does not read (write stall, minimum rate) with a reset, so that
//! nothing unsent stays behind in the kernel.

mod connect;
mod settings;
mod stream;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

pub use self::{
    connect::{ConnectDeadline, ConnectDeadlineFuture, ConnectDeadlineLayer, ConnectElapsed},
    settings::Deadlines,
    stream::DeadlineIo,
};
pub use crate::conn::Elapsed;
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
        time::{FOREVER, KeepsTime},
    },
    conn::{
        Conn, ConnInfo, Safeguard,
        turn::Turn,
        watch::{Limits, Verdict, Watch},
    },
};

/// Ends slow, silent and old connections. See the [module](self).
#[derive(Debug, Clone)]
pub struct DeadlineLayer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Arc<Limits>,
    keeps_time: KeepsTime,
}

impl DeadlineLayer {
    /// With these limits.
    ///
    /// # Errors
    ///
    /// A limit of zero, or a jitter that is no share.
    pub fn new(deadlines: Deadlines) -> Result<Self, ConfigError> {
        deadlines.check()?;
        Ok(Self::unchecked(deadlines))
    }

    fn unchecked(deadlines: Deadlines) -> Self {
        Self {
            shared: Arc::new(Shared {
                limits: Arc::new(deadlines.into_limits()),
                keeps_time: KeepsTime::default(),
            }),
        }
    }
}

impl Default for DeadlineLayer {
    fn default() -> Self {
        Self::unchecked(Deadlines::default())
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DeadlineService {
            inner,
            shared: Arc::clone(&self.shared),
        }
    }
}

/// The service of [`DeadlineLayer`].
#[derive(Debug, Clone)]
pub struct DeadlineService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, I> Service<Conn<I>> for DeadlineService<S>
where
    S: Service<Conn<DeadlineIo<I>>>,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.shared.keeps_time.check()?;
        self.inner
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, conn: Conn<I>) -> DeadlineFuture<S::Future> {
        let info = Arc::clone(conn.info());
        info.waits.watched.set(true);
        info.handshakes_done();
        let limits = &self.shared.limits;
        for (limit, safeguard) in [
            (limits.first_byte, Safeguard::FirstByte),
            (limits.idle, Safeguard::Idle),
            (limits.write_stall, Safeguard::WriteStall),
        ] {
            // In a dry run it keeps nobody from anything.
            if limit < FOREVER && limits.spared.is_none() {
                info.passed.mark(safeguard);
            }
        }
        let for_io = Arc::clone(&info);
        DeadlineFuture {
            inner: Some(
                self.inner
                    .call(conn.map_io(|io| DeadlineIo::new(io, for_io))),
            ),
            watch: Watch::new(Arc::clone(&self.shared.limits)),
            info,
        }
    }
}

pin_project! {
    /// The future of [`DeadlineService`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct DeadlineFuture<F> {
        #[pin]
        inner: Option<F>,
        #[pin]
        watch: Watch,
        info: Arc<ConnInfo>,
    }
}

impl<F, T, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let _turn = Turn::take(cx, this.info);
        loop {
            let inner = this.inner.as_mut().as_pin_mut();
            let inner = inner.expect("not polled again after it was ready");
            if let Poll::Ready(result) = inner.poll(cx) {
                return Poll::Ready(result.map_err(Into::into));
            }
            match ready!(this.watch.as_mut().poll(cx, this.info)) {
                Verdict::Told => {}
                Verdict::Over(elapsed) => {
                    this.info.cut(elapsed.which());
                    // Closes the stream, unless the service gave it away: then its next use fails.
                    this.inner.set(None);
                    return Poll::Ready(Err(elapsed.into()));
                }
            }
        }
    }
}
