//! Chooses the service of a connection by its first bytes: one port for several protocols.
//!
//! **Where it goes**: below what knows nothing of protocols (meter, limits, trace, a PROXY header); above TLS and
//! [`DeadlineLayer`](crate::deadline::DeadlineLayer), of which each route has its own.
//!
//! One port for TLS, HTTP and an RPC of length-prefixed frames:
//!
//! ```no_run
//! use bytes::Bytes;
//! use tower::{ServiceBuilder, service_fn};
//! use tower_net::{
//!     Conn, Server,
//!     deadline::DeadlineLayer,
//!     detect::{DetectLayer, Protocol},
//!     frame::{FrameLayer, LengthDelimited, Request},
//! };
//! # use tower_net::{error::BoxError, io::Io};
//! # async fn forward<I: Io>(_: Conn<I>) -> Result<(), BoxError> { Ok(()) }
//! # async fn web<I: Io>(_: Conn<I>) -> Result<(), BoxError> { Ok(()) }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), BoxError> {
//! let by_first_bytes = DetectLayer::new()
//!     .route(Protocol::sni(["*.internal.example"])?, service_fn(forward)) // as it came, not terminated
//!     .route(Protocol::http1(), service_fn(web))
//!     .route(Protocol::http2(), service_fn(web));
//! let stack = ServiceBuilder::new()
//!     .layer(by_first_bytes)
//!     .layer(DeadlineLayer::default()) // from here on: what none of the routes has matched
//!     .layer(FrameLayer::new(LengthDelimited::max_frame(1 << 20)))
//!     .service_fn(async |request: Request<Bytes>| Ok::<_, BoxError>(request.into_message()));
//! Server::bind("127.0.0.1:7000").await?.serve(stack).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The routes are asked in their order. Each says yes, no, or how many bytes it still needs, and is chosen as soon
//! as all before it have said no. What nothing has matched goes to the service that is layered over;
//! [`NothingElse`] is one that closes it. No byte is consumed: the chosen service reads all of them again.
//!
//! # Bounds
//!
//! | what | default | when it is reached |
//! |---|---|---|
//! | first bytes | 16 KiB | whoever needs more of them has said no |
//! | time | 3 s from here | closed: with `first_byte` if no byte has come, else with `detect` |
//! | memory | 512 bytes while a peer is silent | grows by what has arrived |
//!
//! The end of the peer's side counts as the bound does: what needs more has said no. A peer that leaves without a
//! byte is a health check: it is ended with `peer`, and is no error. One that is silent when the connection is told
//! to leave is ended at once.
//!
//! The time that PROXY headers and handshakes of a connection have together begins here at the latest, so that
//! TLS behind a route is not given it anew. It does begin anew if the chosen service had to be waited for.
//!
//! # A server that speaks first
//!
//! Its clients send nothing until they have been greeted. [`silent_is_other`](DetectLayer::silent_is_other) gives
//! those who have said nothing when the time is up to the service that is layered over.
//!
//! # Cost
//!
//! A few small allocations a connection: the bytes that were read, what looks until it has found, what it found; and
//! of a route its future, whose type is forgotten.
//!
//! # Readiness
//!
//! Always ready, and the first time it also checks that the runtime can keep time. Every connection has a clone
//! of its service and drives that one ready, once it is chosen; none of the others. So a route that has to wait
//! holds up its own connections and nobody's else: what it refuses is refused, but what it would leave in the
//! listener's backlog waits here, accepted.
//!
//! # Errors
//!
//! [`Elapsed`] if the time is up, the stream's own, and those of the chosen service.
//!
//! # On drop
//!
//! Dropping the future drops the stream, and whatever serves it.

mod look;
mod protocol;
mod route;

use std::{
    error::Error,
    fmt, future, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use metrics::{Counter, counter};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

pub use self::protocol::{Answer, Protocol};
use self::{
    look::{Looked, look},
    route::{Route, Serving, Started},
};
pub use crate::{
    base::client_hello::{ClientHello, HelloError},
    conn::Elapsed,
};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::{Io, RewoundIo},
        time::{FOREVER, KeepsTime},
    },
    conn::{CloseReason, Conn, ConnInfo, Safeguard, refusals::spared},
};

/// Chooses the service of a connection by its first bytes. See the [module](self).
pub struct DetectLayer<I> {
    routes: Vec<Route<I>>,
    settings: Settings,
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    within: Duration,
    max_bytes: usize,
    silent_is_other: bool,
    dry_run: bool,
}

/// What all connections of a layer share.
struct Shared<I> {
    routes: Vec<Route<I>>,
    settings: Settings,
    other: Counter,
    spared_silent: Counter,
    spared_slow: Counter,
    keeps_time: KeepsTime,
}

impl<I: Io> DetectLayer<I> {
    /// Without routes: everything is for the service that is layered over.
    #[must_use]
    pub fn new() -> Self {
        Self {
            routes: Vec::new(),
            settings: Settings {
                within: WITHIN,
                max_bytes: MAX_BYTES,
                silent_is_other: false,
                dry_run: false,
            },
        }
    }

    /// Gives what speaks `protocol`, and nothing that an earlier route takes, to `service`.
    ///
    /// The metrics' handle is made here, once: install the recorder first.
    #[must_use]
    pub fn route<S>(mut self, protocol: Protocol, service: S) -> Self
    where
        S: Service<Conn<RewoundIo<I>>, Response = ()> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
    {
        self.routes
            .push(Route::new(protocol, service));
        self
    }

    /// How long it may take until the protocol is known, from when the connection comes here; [`Duration::MAX`] is
    /// for ever. Default: 3 s, as the first-byte deadline has.
    ///
    /// # Errors
    ///
    /// Zero, in which nobody could have spoken.
    pub fn within(mut self, limit: Duration) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::zero("within"));
        }
        self.settings.within = limit;
        Ok(self)
    }

    /// How many bytes are looked at, at the most. Default: 16 KiB, for the longest ClientHello with keys and
    /// certificates of after quantum computers, and what Envoy has.
    ///
    /// # Errors
    ///
    /// Zero, by which nothing could be told.
    pub fn max_bytes(mut self, bytes: usize) -> Result<Self, ConfigError> {
        if bytes == 0 {
            return Err(ConfigError::zero("max_bytes"));
        }
        self.settings.max_bytes = bytes;
        Ok(self)
    }

    /// Whether a peer that has said nothing when the time is up goes to the layered service, which then speaks
    /// first, rather than being closed. Default: no.
    #[must_use]
    pub fn silent_is_other(mut self, on: bool) -> Self {
        self.settings.silent_is_other = on;
        self
    }

    /// Only counts whom the deadline would have ended, once each, and waits on. Default: off.
    #[must_use]
    pub fn dry_run(mut self, on: bool) -> Self {
        self.settings.dry_run = on;
        self
    }
}

impl<I: Io> Default for DetectLayer<I> {
    fn default() -> Self {
        Self::new()
    }
}

impl<I> Clone for DetectLayer<I> {
    fn clone(&self) -> Self {
        Self {
            routes: self.routes.clone(),
            settings: self.settings,
        }
    }
}

impl<I> fmt::Debug for DetectLayer<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DetectLayer")
            .field("routes", &self.routes)
            .field("settings", &self.settings)
            .finish()
    }
}

impl<S, I> Layer<S> for DetectLayer<I> {
    type Service = Detect<S, I>;

    fn layer(&self, inner: S) -> Self::Service {
        Detect {
            inner,
            shared: Arc::new(Shared {
                routes: self.routes.clone(),
                settings: self.settings,
                other: counter!("tower_net_detected_total", "protocol" => OTHER),
                spared_silent: spared(CloseReason::FirstByte),
                spared_slow: spared(CloseReason::Detect),
                keeps_time: KeepsTime::default(),
            }),
        }
    }
}

/// The service of [`DetectLayer`].
pub struct Detect<S, I> {
    inner: S,
    shared: Arc<Shared<I>>,
}

impl<S: Clone, I> Clone for Detect<S, I> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S: fmt::Debug, I> fmt::Debug for Detect<S, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detect")
            .field("inner", &self.inner)
            .field("routes", &self.shared.routes)
            .finish_non_exhaustive()
    }
}

impl<S, I> Service<Conn<I>> for Detect<S, I>
where
    S: Service<Conn<RewoundIo<I>>, Response = ()> + Clone,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Response = ();
    type Error = BoxError;
    type Future = DetectFuture<S, I>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.shared.settings.within < FOREVER {
            self.shared.keeps_time.check()?;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, conn: Conn<I>) -> DetectFuture<S, I> {
        let settings = &self.shared.settings;
        if settings.within < FOREVER && !settings.silent_is_other && !settings.dry_run {
            let passed = &conn.info().passed;
            passed.mark(Safeguard::FirstByte);
        }
        DetectFuture {
            stage: Stage::Looking {
                looking: Box::pin(look(Arc::clone(&self.shared), conn)),
                other: Some(self.inner.clone()),
            },
        }
    }
}

pin_project! {
    /// The future of [`Detect`].
    #[must_use = "futures do nothing unless polled"]
    pub struct DetectFuture<S, I>
    where
        S: Service<Conn<RewoundIo<I>>>,
    {
        #[pin]
        stage: Stage<S, I>,
    }
}

pin_project! {
    #[project = StageProj]
    enum Stage<S, I>
    where
        S: Service<Conn<RewoundIo<I>>>,
    {
        Looking { looking: Looking<I>, other: Option<S> },
        Other { #[pin] started: Started<S, RewoundIo<I>> },
        Route { serving: Serving },
    }
}

/// Boxed, and gone once it has found what it looks for.
type Looking<I> = Pin<Box<dyn Future<Output = Looked<I>> + Send>>;

impl<S, I> Future for DetectFuture<S, I>
where
    S: Service<Conn<RewoundIo<I>>, Response = ()>,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut stage = self.project().stage;
        loop {
            let next = match stage.as_mut().project() {
                StageProj::Other { started } => return started.poll(cx),
                StageProj::Route { serving } => return serving.as_mut().poll(cx),
                StageProj::Looking { looking, other } => match ready!(looking.as_mut().poll(cx)) {
                    Looked::Over(result) => return Poll::Ready(result),
                    Looked::Route(serving) => Stage::Route { serving },
                    Looked::Other(conn) => {
                        let other = other.take();
                        let other = other.expect("not polled again after it was ready");
                        Stage::Other {
                            started: Started::new(other, conn),
                        }
                    }
                },
            };
            stage.set(next);
        }
    }
}

impl<S, I> fmt::Debug for DetectFuture<S, I>
where
    S: Service<Conn<RewoundIo<I>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.stage {
            Stage::Looking { .. } => "DetectFuture(looking)",
            Stage::Other { .. } => "DetectFuture(other)",
            Stage::Route { .. } => "DetectFuture(route)",
        })
    }
}

/// What was found out of a connection by its first bytes; see [`ConnInfo::detected`].
#[derive(Debug)]
pub struct Detected {
    protocol: &'static str,
    hello: Option<ClientHello>,
}

impl Detected {
    /// The name of the route's protocol; `other` if no route has matched.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        self.protocol
    }

    /// What the client asks for in TLS, if a route had to read it.
    #[must_use]
    pub fn client_hello(&self) -> Option<&ClientHello> {
        self.hello.as_ref()
    }
}

impl ConnInfo {
    /// What a [`DetectLayer`] has found out; of several, the outermost.
    #[must_use]
    pub fn detected(&self) -> Option<&Detected> {
        self.facts.get()
    }
}

/// The service for what no route has matched, where nothing else is served: closes it with
/// [`CloseReason::Detect`], in order and without a word.
#[derive(Debug, Clone, Copy, Default)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a stack names it as the value that it is, and there is nothing to set"
)]
pub struct NothingElse;

impl<I: Io> Service<Conn<I>> for NothingElse {
    type Response = ();
    type Error = UnknownProtocol;
    type Future = future::Ready<Result<(), UnknownProtocol>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UnknownProtocol>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, conn: Conn<I>) -> Self::Future {
        conn.info().passed.cut_short();
        conn.info()
            .end_with(CloseReason::Detect);
        future::ready(Err(UnknownProtocol { _private: () }))
    }
}

/// The first bytes of a connection are of no protocol that is served here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownProtocol {
    _private: (),
}

impl fmt::Display for UnknownProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("first bytes of no protocol that is served here")
    }
}

impl Error for UnknownProtocol {}

impl From<UnknownProtocol> for io::Error {
    fn from(error: UnknownProtocol) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What nothing has matched, in metrics.
const OTHER: &str = "other";

/// As the first-byte deadline has: whoever is not a server's client that waits for a greeting speaks at once.
const WITHIN: Duration = Duration::from_secs(3);

/// Above every hello that is seen, and below what would tempt anybody to send more. Envoy has the same.
const MAX_BYTES: usize = 16 * 1024;
