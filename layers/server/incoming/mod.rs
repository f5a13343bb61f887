//! The bridge: a stack in front of a server that has an accept loop of its own.

mod hand_out;
mod speech;

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::stream::Stream;
use tokio::{
    sync::{
        Semaphore,
        mpsc::{UnboundedReceiver, unbounded_channel},
    },
    task::JoinHandle,
    time::sleep,
};
use tokio_util::{net::Listener, sync::CancellationToken};
use tower_layer::Layer;
use tower_service::Service;

use self::hand_out::Arrival;
pub use self::hand_out::{HandOut, HandOutFuture, IncomingIo};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
    },
    conn::{Addr, Conn},
    server::{
        backoff::Backoff,
        live::Phase,
        report::Report,
        serve::{Serve, ServeError, ServeFuture, Server, ServerHandle},
    },
};

/// Accepts connections, takes each through a stack, and hands it out to whoever serves it: `axum::serve`, tonic,
/// a hyper loop, an accept loop of your own.
///
/// ```no_run
/// use tower::ServiceBuilder;
/// use tower_net::{Server, deadline::DeadlineLayer, limit::ConnectionLimitLayer, meter::MeterLayer};
///
/// # async fn serve(_: impl tokio::io::AsyncRead) {}
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let layers = ServiceBuilder::new()
///     .layer(MeterLayer::new("web"))
///     .layer(ConnectionLimitLayer::new(10_000)?)
///     .layer(DeadlineLayer::default())
///     .into_inner();
/// let mut incoming = Server::bind("127.0.0.1:3000").await?.incoming(layers);
/// while let Some(conn) = incoming.accept().await {
///     tokio::spawn(serve(conn));
/// }
/// # Ok(())
/// # }
/// ```
///
/// The stack runs as under [`Server`]: handshakes side by side, one that fails is nobody's error but its own, and
/// what layers hold (a place under a limit, a meter, a span) they hold until the stream that was handed out is
/// dropped, through upgrades and wherever it is moved. In a drain it counts, and is cut, for as long.
///
/// A task of its own begins to accept with the first call of [`accept`](Self::accept). Connections that are ready and
/// not yet claimed are [bounded](Self::unclaimed): beyond that nothing is accepted, and the kernel's queue holds
/// clients back.
///
/// # On drop
///
/// Nothing more is handed out: what is queued is closed, every connection is told to leave, and what is open goes on
/// for as long as [`drain_for`](Self::drain_for) allows, on the task of its own.
pub struct Incoming<I> {
    arriving: UnboundedReceiver<Arrival<I>>,
    places: Arc<Semaphore>,
    request: Arc<OnceLock<Duration>>,
    handle: ServerHandle,
    /// Nothing more will be handed out.
    over: CancellationToken,
    local: io::Result<Addr>,
    state: State,
}

enum State {
    /// Nothing was accepted yet: settings can still be set.
    Fresh(Box<Fresh>),
    Running(JoinHandle<Result<Report, ServeError>>),
    Ended,
}

struct Fresh {
    settings: Settings,
    start: Box<dyn FnOnce(Settings) -> ServeFuture + Send>,
}

struct Settings {
    unclaimed: usize,
    request: Duration,
    grace: Option<Duration>,
    backoff: Option<Backoff>,
    shutdown: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    keep_descriptor_limit: bool,
}

impl<L> Server<L>
where
    L: Listener + Send + 'static,
    L::Io: Io,
    L::Addr: Into<Addr>,
{
    /// Takes every connection through `layer` and hands it out, rather than serving it.
    pub fn incoming<T, I>(self, layer: T) -> Incoming<I>
    where
        T: Layer<HandOut<I>>,
        T::Service: Service<Conn<L::Io>, Response = ()> + Clone + Send + 'static,
        <T::Service as Service<Conn<L::Io>>>::Error: Into<BoxError>,
        <T::Service as Service<Conn<L::Io>>>::Future: Send + 'static,
    {
        let (sender, arriving) = unbounded_channel();
        // None before it runs, as many as are set from then on.
        let places = Arc::new(Semaphore::new(0));
        let request = Arc::new(OnceLock::new());
        let local = self.local_addr().map(Into::into);
        let hand_out = HandOut::new(sender, &places, &request);
        let serve = self.serve(layer.layer(hand_out));
        Incoming {
            arriving,
            places,
            request,
            handle: serve.handle(),
            over: CancellationToken::new(),
            local,
            state: State::Fresh(Box::new(Fresh {
                settings: Settings {
                    unclaimed: UNCLAIMED,
                    request: Duration::MAX,
                    grace: None,
                    backoff: None,
                    shutdown: None,
                    keep_descriptor_limit: false,
                },
                start: Box::new(|settings| settings.apply(serve).into_future()),
            })),
        }
    }
}

impl Settings {
    fn apply<L, S>(self, mut serve: Serve<L, S>) -> Serve<L, S> {
        if let Some(grace) = self.grace {
            serve = serve.drain_for(grace);
        }
        if let Some(backoff) = self.backoff {
            serve = serve.backoff(backoff);
        }
        if let Some(shutdown) = self.shutdown {
            serve = serve.with_graceful_shutdown(shutdown);
        }
        if self.keep_descriptor_limit {
            serve = serve.keep_descriptor_limit();
        }
        serve
    }
}

impl<I> Incoming<I> {
    /// Drains once `signal` is ready, as [`Serve::with_graceful_shutdown`] does: what is queued is still handed
    /// out, then [`accept`](Self::accept) says that there is no more.
    #[must_use]
    pub fn with_graceful_shutdown(self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.set(|settings| settings.shutdown = Some(Box::pin(signal)))
    }

    /// How long streams that were handed out may live on once the drain has begun. Default: 30 s.
    #[must_use]
    pub fn drain_for(self, grace: Duration) -> Self {
        self.set(|settings| settings.grace = Some(grace))
    }

    /// How the accept loop gets over errors. Default: [`Backoff::default`].
    #[must_use]
    pub fn backoff(self, backoff: Backoff) -> Self {
        self.set(|settings| settings.backoff = Some(backoff))
    }

    /// Leaves this process's limit of open descriptors as it is. Default: it is raised as far as it may be.
    #[must_use]
    pub fn keep_descriptor_limit(self) -> Self {
        self.set(|settings| settings.keep_descriptor_limit = true)
    }

    /// At most so many connections are ready and not yet claimed. While there are, nothing is accepted; handshakes
    /// under way then are finished, and wait. Default: 64.
    ///
    /// # Errors
    ///
    /// Zero, which would hand out nothing.
    pub fn unclaimed(self, connections: usize) -> Result<Self, ConfigError> {
        if connections == 0 {
            return Err(ConfigError::zero("unclaimed"));
        }
        let connections = connections.min(Semaphore::MAX_PERMITS);
        Ok(self.set(|settings| settings.unclaimed = connections))
    }

    /// A peer that has begun to speak must have had the first byte of an answer within this time. Begins when the
    /// server first waits for more of what has begun, or for its own answer; ends with any byte written.
    ///
    /// It is what a request deadline can be where requests are not known here: it ends a head or body that drips, and a
    /// handler that is late. So it must be longer than the longest upload, and is nothing for streams on which only the
    /// peer speaks. After an upgrade of HTTP/1 it is off. Not covered is a handler that neither reads its body nor answers:
    /// then nothing is waited for.
    ///
    /// HTTP/2, known by its preface, has many requests at once. There it is for preface and SETTINGS together, and then
    /// for each head, from its first byte to its last; bodies and handlers have no deadline then. Where a crossing of this
    /// crate fits ([`http`](crate::http), [`frame`](crate::frame)), that knows better. Default: off.
    ///
    /// # Errors
    ///
    /// Zero.
    pub fn request_deadline(self, limit: Duration) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::zero("request_deadline"));
        }
        Ok(self.set(|settings| settings.request = limit))
    }

    /// Settings hold from the start on, and are taken until then.
    fn set(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        if let State::Fresh(fresh) = &mut self.state {
            set(&mut fresh.settings);
        }
        self
    }

    /// A handle to end it from elsewhere, and to see what is open.
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Ready when whoever takes the connections should begin to shut down itself: there are no more to
    /// [accept](Self::accept), since the drain has handed out what was queued, or the listener failed; or a handshake
    /// that began before the drain is not done a second later.
    ///
    /// What `axum::serve` and tonic take for a graceful shutdown. The signal goes
    /// [here](Self::with_graceful_shutdown), so that nobody in the queue is lost to it:
    ///
    /// ```no_run
    /// # #![allow(dead_code)]
    /// # #[cfg(feature = "axum")]
    /// # use tower_net::{Server, listen::Tcp};
    /// # #[cfg(feature = "axum")]
    /// # use tower_layer::Identity;
    /// # async fn signal() {}
    /// # #[cfg(feature = "axum")]
    /// # async fn run(app: axum::Router) -> std::io::Result<()> {
    /// let incoming = Server::new(Tcp::bind("127.0.0.1:3000").await?)
    ///     .incoming(Identity::new())
    ///     .with_graceful_shutdown(signal());
    /// let closing = incoming.closing();
    /// axum::serve(incoming.for_axum(), app)
    ///     .with_graceful_shutdown(closing)
    ///     .await
    /// # }
    /// ```
    pub fn closing(&self) -> impl Future<Output = ()> + Send + 'static + use<I> {
        let over = self.over.clone();
        let live = Arc::clone(&self.handle.live);
        async move {
            let late = async {
                live.reached(Phase::Draining).await;
                sleep(LAST_HANDSHAKE).await;
            };
            tokio::select! {
                () = over.cancelled() => {}
                () = late => {}
            }
        }
    }

    /// The address of the first listener, with the port the system chose.
    ///
    /// # Errors
    ///
    /// The listener does not know.
    pub fn local_addr(&self) -> io::Result<Addr> {
        match &self.local {
            Ok(addr) => Ok(addr.clone()),
            Err(error) => Err(error.kind().into()),
        }
    }

    /// The next connection, once it has come through the stack; `None` when there will be no more.
    ///
    /// # Panics
    ///
    /// The first call, outside a tokio runtime.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what is not claimed by this call is by the next.
    pub async fn accept(&mut self) -> Option<IncomingIo<I>> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`accept`](Self::accept), in the manner of a poll.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<IncomingIo<I>>> {
        self.start();
        let arrival = ready!(self.arriving.poll_recv(cx));
        if arrival.is_none() {
            self.over.cancel();
        }
        Poll::Ready(arrival.map(Arrival::claim))
    }

    /// Begins to accept, if it has not begun.
    fn start(&mut self) {
        if let State::Fresh(_) = self.state {
            let State::Fresh(fresh) = std::mem::replace(&mut self.state, State::Ended) else {
                return;
            };
            // Before the first connection, so that all have it.
            self.request
                .get_or_init(|| fresh.settings.request);
            self.places
                .add_permits(fresh.settings.unclaimed);
            let serving = (fresh.start)(fresh.settings);
            #[expect(
                clippy::disallowed_methods,
                reason = "the accept loop must go on beside a consumer that is busy; it ends with its handle"
            )]
            let running = tokio::spawn(serving);
            self.state = State::Running(running);
        }
    }

    /// Waits until everything that was handed out is closed, which is when the drain is over.
    ///
    /// What is not claimed yet is closed. Somebody has to [begin](ServerHandle::shutdown) the drain.
    ///
    /// # Errors
    ///
    /// As [`Serve`] has them: a listener that is none any more, or a runtime that cannot keep time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future is dropping the `Incoming`.
    pub async fn report(mut self) -> Result<Report, ServeError> {
        self.start();
        self.arriving.close();
        while self.arriving.recv().await.is_some() {}
        let State::Running(running) = std::mem::replace(&mut self.state, State::Ended) else {
            unreachable!("it was started above");
        };
        match running.await {
            Ok(report) => report,
            Err(ended) => match ended.try_into_panic() {
                // A listener or layer of the user's, in the accept loop.
                Ok(panicked) => std::panic::resume_unwind(panicked),
                Err(_) => Err(ServeError::aborted()),
            },
        }
    }
}

impl<I> Drop for Incoming<I> {
    fn drop(&mut self) {
        self.over.cancel();
        self.handle.shutdown();
    }
}

/// Hands out connections without end, and then the end: for `serve_with_incoming` of tonic.
impl<I> Stream for Incoming<I> {
    type Item = io::Result<IncomingIo<I>>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<IncomingIo<I>>>> {
        self.poll_accept(cx)
            .map(|conn| conn.map(Ok))
    }
}

impl<I> fmt::Debug for Incoming<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

/// Longer than a handshake takes on most lines, and little of a drain: the others are not told before it.
const LAST_HANDSHAKE: Duration = Duration::from_secs(1);

/// What a consumer takes in a moment; more would only wait for it where nobody sees them.
const UNCLAIMED: usize = 64;
