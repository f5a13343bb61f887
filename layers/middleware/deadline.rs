//! Ends connections whose peer is slow, silent, or has been here for too long.
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
//! # Ok::<_, tower_net::error::ConfigError>(drop(stack))
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
//! [`Duration::MAX`] turns a limit off; zero is refused when the layer is built. There is one timer for all of
//! them, and a connection that is busy and healthy does not touch it: see *Precision*.
//!
//! # Precision
//!
//! First byte and age pass on time. Idle and write stall pass on time or up to a sixteenth of the shorter of
//! the two later, which is what it saves to not read the clock at every read and write.
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

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_layer::Layer;
use tower_service::Service;

pub use crate::conn::Elapsed;
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
        time::require_driver,
    },
    conn::{
        CloseReason, Conn, ConnInfo, reset_on_drop,
        watch::{Limits, Verdict, Watch},
    },
};

/// The limits of a [`DeadlineLayer`]. The [module](self) says what each covers.
#[derive(Debug, Clone)]
pub struct Deadlines {
    limits: Limits,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            limits: Limits {
                first_byte: FIRST_BYTE,
                idle: IDLE,
                write_stall: WRITE_STALL,
                age_jitter: AGE_JITTER,
                age_grace: AGE_GRACE,
                rate_window: RATE_WINDOW,
                ..Limits::NONE
            },
        }
    }
}

impl Deadlines {
    /// Every limit off, to turn on one by one.
    #[must_use]
    pub fn none() -> Self {
        Self {
            limits: Limits {
                age_jitter: AGE_JITTER,
                age_grace: AGE_GRACE,
                rate_window: RATE_WINDOW,
                ..Limits::NONE
            },
        }
    }

    /// For the first byte from the peer. Default: 3 s.
    #[must_use]
    pub fn first_byte(mut self, limit: Duration) -> Self {
        self.limits.first_byte = limit;
        self
    }

    /// For silence between requests. Default: 90 s.
    #[must_use]
    pub fn idle(mut self, limit: Duration) -> Self {
        self.limits.idle = limit;
        self
    }

    /// For a write that cannot move a byte. Default: 30 s.
    #[must_use]
    pub fn write_stall(mut self, limit: Duration) -> Self {
        self.limits.write_stall = limit;
        self
    }

    /// For the whole life of a connection. Once it is over the connection is told to leave, and cut when the
    /// [grace](Self::age_grace) is over too. Default: off.
    #[must_use]
    pub fn max_age(mut self, limit: Duration) -> Self {
        self.limits.max_age = limit;
        self
    }

    /// The share by which a connection's maximum age is longer or shorter than the set one, chosen once for
    /// each, so that those that came together do not go together. Default: 0.1.
    #[must_use]
    pub fn age_jitter(mut self, share: f64) -> Self {
        self.limits.age_jitter = share;
        self
    }

    /// How long a connection that was told to leave for its age may take. Zero cuts at once;
    /// [`Duration::MAX`] never cuts. Default: 30 s.
    #[must_use]
    pub fn age_grace(mut self, grace: Duration) -> Self {
        self.limits.age_grace = grace;
        self
    }

    /// The least a peer must send while a request is in part here, in bytes a second. Default: off.
    ///
    /// It needs a crossing that knows where a request begins; a raw service has the idle timeout.
    #[must_use]
    pub fn min_receive_rate(mut self, bytes_per_second: u64) -> Self {
        self.limits.min_rate_in = bytes_per_second;
        self
    }

    /// The least a peer must take while a write is waiting for it, in bytes a second. Default: off.
    #[must_use]
    pub fn min_send_rate(mut self, bytes_per_second: u64) -> Self {
        self.limits.min_rate_out = bytes_per_second;
        self
    }

    /// The time over which the minimum rates are taken, which is also the grace at the beginning.
    /// Default: 5 s.
    #[must_use]
    pub fn rate_window(mut self, window: Duration) -> Self {
        self.limits.rate_window = window;
        self
    }

    fn check(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        for (setting, limit) in [
            ("first_byte", limits.first_byte),
            ("idle", limits.idle),
            ("write_stall", limits.write_stall),
            ("max_age", limits.max_age),
            ("rate_window", limits.rate_window),
        ] {
            if limit.is_zero() {
                return Err(ConfigError::zero(setting));
            }
        }
        if !(0.0..1.0).contains(&limits.age_jitter) {
            return Err(ConfigError::new(
                "age_jitter",
                "must be at least 0 and below 1",
            ));
        }
        Ok(())
    }
}

/// Ends slow, silent and old connections. See the [module](self).
#[derive(Debug, Clone)]
pub struct DeadlineLayer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Arc<Limits>,
    can_keep_time: AtomicBool,
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
                limits: Arc::new(deadlines.limits),
                can_keep_time: AtomicBool::new(false),
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
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline {
            inner,
            shared: Arc::clone(&self.shared),
        }
    }
}

/// The service of [`DeadlineLayer`].
#[derive(Debug, Clone)]
pub struct Deadline<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, I> Service<Conn<I>> for Deadline<S>
where
    S: Service<Conn<DeadlineIo<I>>>,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if !self.shared.can_keep_time.load(Relaxed) {
            require_driver()?;
            self.shared
                .can_keep_time
                .store(true, Relaxed);
        }
        self.inner
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, conn: Conn<I>) -> DeadlineFuture<S::Future> {
        let info = Arc::clone(conn.info());
        info.waits.watched.set(true);
        let for_io = Arc::clone(&info);
        DeadlineFuture {
            inner: Some(
                self.inner
                    .call(conn.map_io(|io| DeadlineIo { io, info: for_io })),
            ),
            watch: Watch::new(Arc::clone(&self.shared.limits)),
            info,
        }
    }
}

pin_project! {
    /// The future of [`Deadline`].
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
        let _own = OwnTask::enter(cx);
        loop {
            let inner = this.inner.as_mut().as_pin_mut();
            let inner = inner.expect("not polled again after it was ready");
            if let Poll::Ready(result) = inner.poll(cx) {
                return Poll::Ready(result.map_err(Into::into));
            }
            this.info.ending.register(cx.waker());
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

/// A stream that reports its progress, and that fails once a limit of its connection has passed.
///
/// The bound is here for the sake of the drop, which resets the socket when the reason asks for it.
#[derive(Debug)]
pub struct DeadlineIo<I: Io> {
    io: I,
    info: Arc<ConnInfo>,
}

impl<I: Io> DeadlineIo<I> {
    /// The error of a stream that must not be used any more.
    fn check(&self, late: bool) -> io::Result<()> {
        if self.info.ending.is_cut() {
            let which = self
                .info
                .close_reason()
                .unwrap_or(CloseReason::Cut);
            return Err(Elapsed::new(which, None).into());
        }
        if late {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    fn written<T>(&self, result: Poll<io::Result<T>>, cx: &Context<'_>) -> Poll<io::Result<T>> {
        let waits = &self.info.waits;
        match &result {
            Poll::Pending => {
                waits.blocked.set(true);
                register(&waits.writer, cx);
            }
            Poll::Ready(done) => {
                waits.blocked.set(false);
                if done.is_err() {
                    self.info.ending.saw_failure();
                }
            }
        }
        result
    }

    fn moved(&self, result: Poll<io::Result<usize>>, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            self.info.waits.move_out(*bytes as u64);
        }
        self.written(result, cx)
    }
}

impl<I: Io> Io for DeadlineIo<I> {
    delegate_socket!(io);
}

impl<I: Io> AsyncRead for DeadlineIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(self.info.waits.read_late.get())?;
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        let waits = &self.info.waits;
        waits.reading.set(result.is_pending());
        match &result {
            Poll::Pending => register(&waits.reader, cx),
            Poll::Ready(Err(_)) => self.info.ending.saw_failure(),
            Poll::Ready(Ok(())) => {
                let read = buf.filled().len() - before;
                if read > 0 {
                    waits.move_in(read as u64);
                } else if buf.remaining() > 0 {
                    self.info.ending.saw_end();
                }
            }
        }
        result
    }
}

impl<I: Io> AsyncWrite for DeadlineIo<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(self.info.waits.write_late.get())?;
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.moved(result, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(self.info.waits.write_late.get())?;
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.moved(result, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(self.info.waits.write_late.get())?;
        let result = Pin::new(&mut self.io).poll_flush(cx);
        self.written(result, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_shutdown(cx);
        self.written(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl<I: Io> Drop for DeadlineIo<I> {
    fn drop(&mut self) {
        if self.info.must_reset() {
            reset_on_drop(&self.io, &self.info);
        }
    }
}

/// While it lives, streams polled with this task's own waker need not remember it: when something is told to
/// the connection, its future polls its service again anyway.
struct OwnTask {
    outer: *const (),
}

impl OwnTask {
    fn enter(cx: &Context<'_>) -> Self {
        Self {
            outer: OWN_TASK.replace(cx.waker().data()),
        }
    }
}

impl Drop for OwnTask {
    fn drop(&mut self) {
        OWN_TASK.set(self.outer);
    }
}

/// Remembers whom to wake when the stream is to fail, unless it is the connection's own task.
fn register(waker: &AtomicWaker, cx: &Context<'_>) {
    // Compared by address and never followed: both are alive now, so the same address is the same waker.
    if OWN_TASK.get() != cx.waker().data() {
        waker.register(cx.waker());
    }
}

thread_local! {
    static OWN_TASK: Cell<*const ()> = const { Cell::new(std::ptr::null()) };
}

/// Time for a human to type, and for a client that opens before it knows what to ask, is not what raw
/// protocols need: their clients speak first and at once. Above 1 s, so that one lost packet costs nobody.
const FIRST_BYTE: Duration = Duration::from_secs(3);

/// As Go's `http.Transport` keeps its idle connections: a client pool of that kind never meets a close.
const IDLE: Duration = Duration::from_secs(90);

/// Longer than any pause of a peer that will go on; shorter than the minutes TCP itself would take.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// As gRPC spreads its connection ages.
const AGE_JITTER: f64 = 0.1;

/// Long enough for nearly every request under way.
const AGE_GRACE: Duration = Duration::from_secs(30);

/// Longer than one retransmission, so that a lost packet is not slowness.
const RATE_WINDOW: Duration = Duration::from_secs(5);
