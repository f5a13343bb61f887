//! Forwards each connection to an upstream: dials, then copies both ways until both have ended.
//!
//! **Where it goes**: in the place of the handler, innermost. Whatever is stacked around it holds for the client: TLS,
//! limits, deadlines. What is stacked around the connector holds for the upstream: TLS, a PROXY header, a meter.
//!
//! ```no_run
//! use tower::ServiceBuilder;
//! use tower_net::{Server, connect::TcpConnector, forward::Forward, meter::MeterLayer};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stack = ServiceBuilder::new()
//!     .layer(MeterLayer::new("proxy"))
//!     .service(Forward::to(TcpConnector::new(), "db.example.org:5432"));
//! Server::bind("0.0.0.0:5432").await?.serve(stack).await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Forward::new`] chooses the target for each connection by what is known of it: its listener, its peer, the name that
//! TLS or [`detect`](crate::detect) found. The target is whatever the connector takes, and may carry more than an
//! address, as the client's for a PROXY header.
//!
//! # The life of a tunnel
//!
//! Nothing is read from the client before the upstream is there: until then TCP holds its bytes back, and a client that
//! cannot be served has lost none. Deadlines of the client's stack are stopped meanwhile, all but its maximum age.
//!
//! Then each way is copied for itself. An end (FIN, or the goodbye of TLS) is passed on once all bytes before it are
//! written, and the other way goes on, so that an answer may come after the question has ended. A TLS peer that just
//! closes, without a goodbye, has ended as well, unless one is [required](Forward::require_goodbye). When both ways have
//! ended, so has the tunnel.
//!
//! | what happens | the tunnel | client | upstream | reason |
//! |---|---|---|---|---|
//! | both ended, the client first | is over | closed in order | closed in order | [`Peer`] |
//! | both ended, the upstream first | is over | closed in order | closed in order | [`Served`] |
//! | the upstream is not there, or not in time | never begins | reset | | [`Upstream`] |
//! | the client resets or breaks | is over | | reset | [`Reset`] |
//! | the client has ended, and then is gone | is over | | closed | [`Reset`] |
//! | the upstream resets or breaks | is over | reset | | [`Upstream`] |
//! | the upstream takes no more, but ends its answer in order | is over after it | closed in order, lingering | closed | [`Served`] |
//! | both are silent for `idle` | is over | closed | closed | [`Idle`] |
//! | one has ended, nothing moves for `half_close` | is over | reset | reset | [`HalfClose`] |
//! | one takes nothing for `write_stall` | is over | reset | reset | [`WriteStall`] |
//! | both are silent, and the process is short of something | is over | closed | closed | [`Reclaimed`] |
//! | the future is dropped: a drain's cut, an abort | is over | reset | reset | whose it was |
//!
//! So between sockets no end is made up that was none: whoever is told that all is sent has been sent all. When somebody
//! can no longer be written to, what it has still to say is read and passed on first: all of it if it has ended in order,
//! and after a reset as much as the other takes without a wait. A TLS peer that closes without a goodbye is taken to have
//! ended, though somebody on the way may have cut it short; see [`require_goodbye`](Forward::require_goodbye).
//!
//! A reset is seen at once by whoever reads or writes. A side that is neither read from nor written to, since the other
//! takes nothing or it has itself ended, is asked within two seconds, and then once a second. What is asked is the socket
//! below, through whatever is wrapped around it: of a stream that has [none to show](crate::io::Io::socket), and of a
//! peer that vanishes without a word, it is `write_stall` or `half_close` that finds out.
//!
//! A notice to leave changes nothing but for that: nobody but its two ends knows when a tunnel has said all. It goes on until it ends
//! by itself or is cut with the rest of the drain, which the server's report counts.
//!
//! # Deadlines
//!
//! | [`Timeouts`] | default | begins | reset by | because |
//! |---|---|---|---|---|
//! | `connect` | 5 s | when the service is called | nothing | a lost SYN is sent again after 1 s and 3 s |
//! | `idle` | 1 h | when nothing moves | any byte, either way | connections may be idle on purpose, but an end that was lost must not be for ever |
//! | `half_close` | 60 s | at the first end | any byte | as long as the kernel keeps an end that waits for the other |
//! | `write_stall` | 30 s | when a write has to wait | any byte written | longer than any pause of a peer that will go on |
//!
//! [`Duration::MAX`](std::time::Duration::MAX) turns one off. There is one timer, which a busy tunnel does not touch: idle, half-close and write stall
//! pass on time, or up to a sixteenth of the shortest of them later.
//!
//! While it connects, [`Deadline::current`](crate::Deadline::current) is the end of the connect timeout: one budget for whatever the connector
//! does in several steps. A deadline that is current when the service is called holds as well, if it is earlier.
//!
//! A [`DeadlineLayer`](crate::deadline::DeadlineLayer) around it has its own: its idle timeout of 90 s comes before the hour here, and its first-byte
//! deadline closes clients of a protocol in which the server speaks first, unless it is turned off.
//!
//! # How bytes are copied
//!
//! Between two sockets the bytes of a large transfer never come up into the process (splice(2)): when a read brought
//! 16 KiB or more, the next goes through a pipe of the kernel, for as long as it brings much. What only counts the bytes
//! (meter, deadlines, limits, trace) leaves it so; what must see them (TLS, a throttle, a stream of your own) turns it
//! off by itself, and then they go through a buffer of 64 KiB, or 256 KiB for those that fill it.
//!
//! A pipe or a buffer is held only while bytes are under way. So a tunnel that is idle has neither, and one that is busy
//! each way has two of them at the most: 2 MiB in the kernel and four descriptors, or 512 KiB. In an instant that is
//! mostly those whose receiver does not keep up. 16 pipes of the process are kept open for whoever needs one next, which
//! are 32 descriptors, and four buffers a thread.
//!
//! The system counts pipes by user, all processes together: 64 MiB in all (`fs.pipe-user-pages-soft`) for one without
//! privileges, of which those that are kept take a quarter. Beyond that, or without descriptors to spare, a tunnel copies
//! through buffers. A machine on which many tunnels have much under way at once is given more, or goes
//! [without](Forward::without_splice).
//!
//! (A write through a pipe to a socket that is gone raises SIGPIPE, which a Rust program ignores unless it has been told
//! otherwise.)
//!
//! # Cost
//!
//! CPU of the proxy for a byte, one stream over the loopback, as a ratio to [`tokio::io::copy_bidirectional`] in the same
//! run (`rivals forward` in `benches/rivals`, which also says how to read it):
//!
//! | | ratio |
//! |---|---|
//! | `copy_bidirectional` | 1 |
//! | between two sockets | 0.21 |
//! | the same below every guard | 0.21 |
//! | through buffers | 0.31 |
//! | HAProxy | 0.51 |
//! | HAProxy with `splice-request`, `splice-response` | 0.26 |
//!
//! # Readiness
//!
//! The connector's. The first time, it also checks that the runtime can keep time.
//!
//! # Errors
//!
//! [`ConnectError`] without an upstream, [`TunnelError`] if one side broke, [`Elapsed`] once a deadline has passed, and
//! [`NoTimer`](crate::error::NoTimer) on a runtime without a time driver.
//!
//! # On drop
//!
//! Both sides are reset, as what was under way is lost; see above.
//!
//! [`Peer`]: crate::CloseReason::Peer
//! [`Served`]: crate::CloseReason::Served
//! [`Upstream`]: crate::CloseReason::Upstream
//! [`Reset`]: crate::CloseReason::Reset
//! [`Idle`]: crate::CloseReason::Idle
//! [`Reclaimed`]: crate::CloseReason::Reclaimed
//! [`HalfClose`]: crate::CloseReason::HalfClose
//! [`WriteStall`]: crate::CloseReason::WriteStall
//! [`Elapsed`]: crate::deadline::Elapsed

mod buffer;
mod dial;
mod direction;
mod error;
mod metrics;
mod relay;
mod silence;
mod tunnel;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_service::Service;

pub use self::{
    error::{ConnectError, TunnelError},
    silence::Timeouts,
    tunnel::{Side, Tunnel},
};
use self::{metrics::Metrics, relay::Stage};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
        time::{FOREVER, KeepsTime, Timer},
    },
    conn::{CloseReason, Conn, ConnInfo, Safeguard, refusals::Spared},
};

/// Forwards each connection to an upstream. See the [module](self).
pub struct Forward<C, T> {
    connector: C,
    choose: Arc<dyn Fn(&ConnInfo) -> T + Send + Sync>,
    shared: Arc<Shared>,
}

/// What all tunnels of one service share.
#[derive(Debug, Clone)]
struct Shared {
    timeouts: Timeouts,
    /// In a dry run, what counts the deadlines that pass.
    spared: Option<Spared>,
    keeps_time: Arc<KeepsTime>,
    /// Bytes may go through pipes.
    splices: bool,
    /// A TLS peer that closes without a goodbye has broken.
    wants_goodbye: bool,
    metrics: Arc<Metrics>,
}

impl<C, T> Forward<C, T> {
    /// Forwards to what `choose` makes of the connection, through `connector`.
    ///
    /// The metrics' handles are made here, once: install the recorder first.
    pub fn new<F>(connector: C, choose: F) -> Self
    where
        F: Fn(&ConnInfo) -> T + Send + Sync + 'static,
    {
        Self {
            connector,
            choose: Arc::new(choose),
            shared: Arc::new(Shared {
                timeouts: Timeouts::default(),
                spared: None,
                keeps_time: Arc::default(),
                splices: true,
                wants_goodbye: false,
                metrics: Arc::default(),
            }),
        }
    }

    /// Forwards every connection to `target`.
    pub fn to(connector: C, target: T) -> Self
    where
        T: Clone + Send + Sync + 'static,
    {
        Self::new(connector, move |_| target.clone())
    }

    /// How long each wait may take.
    ///
    /// # Errors
    ///
    /// A timeout of zero.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Result<Self, ConfigError> {
        timeouts.check()?;
        self.shared = Arc::new(Shared {
            spared: timeouts
                .is_dry_run()
                .then(|| Spared::new(REASONS)),
            timeouts,
            ..(*self.shared).clone()
        });
        Ok(self)
    }

    /// Copies all bytes through buffers, even between two sockets: to compare, or for a kernel with a fault in splice.
    #[must_use]
    pub fn without_splice(mut self) -> Self {
        self.shared = Arc::new(Shared {
            splices: false,
            ..(*self.shared).clone()
        });
        self
    }

    /// Takes a TLS peer, on either side, that closes without a goodbye (close_notify) for one that has broken, rather than
    /// for one that has ended: the tunnel is over, and the other side is reset. Default: off, as many peers never say
    /// it and protocols mostly know from their own bytes whether all is there; HAProxy and nginx do so too.
    ///
    /// For a protocol whose messages end where the stream does: without it somebody on the way can cut one short, and it
    /// looks whole.
    #[must_use]
    pub fn require_goodbye(mut self, on: bool) -> Self {
        self.shared = Arc::new(Shared {
            wants_goodbye: on,
            ..(*self.shared).clone()
        });
        self
    }
}

impl<C: Clone, T> Clone for Forward<C, T> {
    fn clone(&self) -> Self {
        Self {
            connector: self.connector.clone(),
            choose: Arc::clone(&self.choose),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<C: fmt::Debug, T> fmt::Debug for Forward<C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forward")
            .field("connector", &self.connector)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl<C, T, I, O> Service<Conn<I>> for Forward<C, T>
where
    C: Service<T, Response = Conn<O>>,
    C::Error: Into<BoxError>,
    I: Io,
    O: Io,
{
    type Response = ();
    type Error = BoxError;
    type Future = ForwardFuture<C::Future, I, O>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.shared.keeps_time.check()?;
        self.connector
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, client: Conn<I>) -> Self::Future {
        let target = (self.choose)(client.info());
        let timeouts = &self.shared.timeouts;
        let longest = timeouts
            .idle
            .max(timeouts.half_close)
            .max(timeouts.write_stall);
        for (limit, safeguard) in [
            (timeouts.idle, Safeguard::Idle),
            (timeouts.write_stall, Safeguard::WriteStall),
            // Whatever a tunnel waits for, it does not wait for ever.
            (longest, Safeguard::Handler),
        ] {
            // In a dry run it keeps nobody from anything.
            if limit < FOREVER && !timeouts.is_dry_run() {
                client.info().passed.mark(safeguard);
            }
        }
        ForwardFuture {
            stage: Stage::connecting(client, &self.shared, || self.connector.call(target)),
            shared: Arc::clone(&self.shared),
            timer: Timer::default(),
        }
    }
}

pin_project! {
    /// The future of [`Forward`]: the dial, then the tunnel.
    #[must_use = "futures do nothing unless polled"]
    pub struct ForwardFuture<F, I, O>
    where
        I: Io,
        O: Io,
    {
        stage: Stage<F, I, O>,
        shared: Arc<Shared>,
        #[pin]
        timer: Timer,
    }
}

impl<F, I, O, E> Future for ForwardFuture<F, I, O>
where
    F: Future<Output = Result<Conn<O>, E>>,
    E: Into<BoxError>,
    I: Io,
    O: Io,
{
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.stage
            .poll(cx, this.timer, this.shared)
    }
}

impl<F, I: Io, O: Io> fmt::Debug for ForwardFuture<F, I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ForwardFuture")
            .field(&self.stage.name())
            .finish()
    }
}

/// What only is counted in a dry run.
const REASONS: [CloseReason; 4] = [
    CloseReason::Upstream,
    CloseReason::Idle,
    CloseReason::HalfClose,
    CloseReason::WriteStall,
];
