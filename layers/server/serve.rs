use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, future, stream::FuturesUnordered};
use tokio::net::ToSocketAddrs;
use tokio_util::net::Listener;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, NoTimer},
        io::Io,
        time::{FOREVER, require_driver},
    },
    conn::{Addr, CloseReason, Conn, Safeguard},
    edge::listen::Tcp,
    server::{
        accept::Acceptor,
        backoff::Backoff,
        descriptors,
        drain::{cut_after, drain},
        live::{Live, Phase},
        report::Report,
    },
};

/// Accepts connections and serves each with a stack, on the runtime of the caller.
///
/// ```no_run
/// use std::time::Duration;
/// use tower::service_fn;
/// use tower_net::{Conn, Server};
///
/// # async fn shutdown_signal() {}
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let greet = service_fn(async |mut conn: Conn<_>| {
///     tokio::io::AsyncWriteExt::write_all(&mut conn, b"hello\n").await
/// });
/// let report = Server::bind("127.0.0.1:0")
///     .await?
///     .serve(greet)
///     .with_graceful_shutdown(shutdown_signal())
///     .drain_for(Duration::from_secs(30))
///     .await?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Server<L> {
    listeners: Vec<(Option<Arc<str>>, L)>,
}

impl Server<Tcp> {
    /// Listens on `addr` with the defaults of [`listen::Tcp`](crate::listen::Tcp).
    ///
    /// # Errors
    ///
    /// The address cannot be resolved or bound.
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        Ok(Self::new(Tcp::bind(addr).await?))
    }
}

impl<L: Listener> Server<L> {
    /// Accepts from `listener`, ours or anybody's.
    pub fn new(listener: L) -> Self {
        Self {
            listeners: vec![(None, listener)],
        }
    }

    /// Accepts from all of `listeners`, each in a loop of its own. Without any, it only drains.
    pub fn from_listeners(listeners: impl IntoIterator<Item = L>) -> Self {
        Self {
            listeners: listeners
                .into_iter()
                .map(|one| (None, one))
                .collect(),
        }
    }

    /// Accepts from `listener` as well; its connections carry `name`.
    #[must_use]
    pub fn named(mut self, name: impl Into<Arc<str>>, listener: L) -> Self {
        self.listeners
            .push((Some(name.into()), listener));
        self
    }

    /// The address of the first listener, with the port the system chose.
    ///
    /// # Errors
    ///
    /// The listener does not know, or there is none.
    pub fn local_addr(&self) -> io::Result<L::Addr> {
        let (_, listener) = self
            .listeners
            .first()
            .ok_or(io::ErrorKind::NotFound)?;
        listener.local_addr()
    }

    /// Serves every connection with `service`.
    ///
    /// The service is made ready before each accept: while it is not, connections stay in the kernel's queue.
    pub fn serve<S>(self, service: S) -> Serve<L, S> {
        Serve {
            listeners: self.listeners,
            service,
            live: Live::new(),
            shutdown: None,
            grace: GRACE,
            backoff: Backoff::default(),
            raise_descriptors: true,
        }
    }
}

/// A server about to run: await it.
#[must_use = "a server does nothing unless awaited"]
pub struct Serve<L, S> {
    listeners: Vec<(Option<Arc<str>>, L)>,
    service: S,
    live: Arc<Live>,
    shutdown: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    grace: Duration,
    backoff: Backoff,
    raise_descriptors: bool,
}

impl<L, S> Serve<L, S> {
    /// Drains once `signal` is ready: every connection is told to leave, what is queued is still accepted.
    /// A second signal that is to cut is a matter of [`ServerHandle::cut`].
    /// Without it, and without a [handle](Self::handle), it runs for ever.
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.shutdown = Some(Box::pin(signal));
        self
    }

    /// Connections have so long to leave once the drain has begun, then they are cut. Zero
    /// leaves no time: what does not end there and then is cut. [`Duration::MAX`] never cuts. Default: 30 s.
    pub fn drain_for(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How accept loops get over errors. Default: [`Backoff::default`].
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Leaves this process's limit of open descriptors as it is. Default: it is raised as far as it may be.
    pub fn keep_descriptor_limit(mut self) -> Self {
        self.raise_descriptors = false;
        self
    }

    /// A handle to end the server from elsewhere.
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        ServerHandle {
            live: Arc::clone(&self.live),
        }
    }
}

impl<L, S> IntoFuture for Serve<L, S>
where
    L: Listener + Send + 'static,
    L::Io: Io,
    L::Addr: Into<Addr>,
    S: Service<Conn<L::Io>, Response = ()> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Output = Result<Report, ServeError>;
    type IntoFuture = ServeFuture;

    fn into_future(self) -> ServeFuture {
        ServeFuture {
            inner: Box::pin(run(self)),
        }
    }
}

async fn run<L, S>(serve: Serve<L, S>) -> Result<Report, ServeError>
where
    L: Listener + Send + 'static,
    L::Io: Io,
    L::Addr: Into<Addr>,
    S: Service<Conn<L::Io>, Response = ()> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    let live = serve.live;
    // Whatever way it ends, whoever waits for its report has one.
    let cut_on_drop = CutOnDrop(Arc::clone(&live));
    require_driver()?;
    if serve.raise_descriptors {
        match descriptors::raise_descriptor_limit() {
            Ok(limit) => {
                tracing::debug!(limit = limit.soft(), "descriptor limit raised");
                live.passed.mark(Safeguard::Descriptors);
            }
            Err(error) => tracing::warn!(%error, "descriptor limit not raised"),
        }
    }
    if serve.grace < FOREVER {
        live.passed.mark(Safeguard::Drain);
    }
    // A service may tell by the last of its clones that nothing more will come: none is kept here.
    let service = serve.service;
    let acceptors = serve
        .listeners
        .into_iter()
        .map(|(name, listener)| Acceptor {
            listener,
            service: service.clone(),
            name,
            backoff: serve.backoff.clone(),
            live: Arc::clone(&live),
            burst: None,
        });
    let mut loops: FuturesUnordered<_> = acceptors
        .map(|one| Box::pin(one.run()))
        .collect();
    drop(service);
    let signal = serve
        .shutdown
        .unwrap_or_else(|| Box::pin(future::pending()));
    let background = async {
        let signalled = async {
            signal.await;
            live.advance(Phase::Draining);
        };
        let cut = cut_after(&live, serve.grace);
        future::join3(signalled, cut, descriptors::watch()).await;
        future::pending().await
    };
    // Polled when it is woken itself, and not with every accept.
    let mut background = FuturesUnordered::from_iter([background]);
    let accepting = async {
        let mut failed = None;
        while let Some(ended) = loops.next().await {
            if let Err(error) = ended {
                // One listener that is gone ends the server, in order: half a service is a riddle.
                tracing::error!(?error, "accept loop ended");
                failed.get_or_insert(error);
                live.advance(Phase::Draining);
            }
        }
        live.reached(Phase::Draining).await;
        failed
    };
    let serving = async {
        let failed = accepting.await;
        (failed, drain(&live).await)
    };
    let (failed, report) = tokio::select! {
        ended = serving => ended,
        Some(never) = background.next() => never,
    };
    drop(cut_on_drop);
    match failed {
        None => Ok(report),
        Some(cause) => Err(ServeError::new(cause, report)),
    }
}

/// Nobody waits for the report any more: ends what is open.
struct CutOnDrop(Arc<Live>);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        self.0.advance(Phase::Cutting);
        self.0.cut(CloseReason::Aborted);
        // Nobody waits for them to end, so what is open now has not; after a drain its report stands.
        self.0.ended_with(&self.0.account());
    }
}

/// The future of a [`Serve`]: ready with the report once every connection has ended.
///
/// # Cancel safety
///
/// Dropping it closes the listeners and cuts every connection, with
/// [`CloseReason::Aborted`](crate::CloseReason::Aborted).
#[must_use = "futures do nothing unless polled"]
pub struct ServeFuture {
    inner: Pin<Box<dyn Future<Output = Result<Report, ServeError>> + Send>>,
}

impl Future for ServeFuture {
    type Output = Result<Report, ServeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.inner.as_mut().poll(cx)
    }
}

/// Ends a server from elsewhere; see [`Serve::handle`].
#[derive(Debug, Clone)]
pub struct ServerHandle {
    pub(super) live: Arc<Live>,
}

impl ServerHandle {
    /// Begins the drain. Once more does nothing.
    pub fn shutdown(&self) {
        self.live.advance(Phase::Draining);
    }

    /// Cuts what is still open, without waiting for the drain's time to be up.
    pub fn cut(&self) {
        self.live.advance(Phase::Cutting);
    }

    /// Waits until the server has ended, and every connection with it: its report, for whoever has given the server
    /// away, as an [`Incoming`](crate::Incoming) to `axum::serve`.
    ///
    /// Somebody has to begin the drain. A server that never ran has no report, and is waited for for ever; one that was
    /// dropped while it ran has cut what was open, and counts it as [stuck](Report::stuck).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn report(&self) -> Report {
        self.live.report().await
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.live.len()
    }
}

/// Why a server could not run, or had to end.
#[derive(Debug)]
pub struct ServeError {
    cause: ServeCause,
    report: Option<Box<Report>>,
}

/// What a [`ServeError`] comes from.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeCause {
    /// The runtime that it ran on was shut down.
    Aborted,
    /// The runtime cannot keep time.
    NoTimer(NoTimer),
    /// A listener is no listener any more. The others were drained.
    Listener(io::Error),
    /// The service said, when asked to be ready, that it never will be. What was open was drained.
    Service(BoxError),
}

impl ServeError {
    fn new(cause: ServeCause, report: Report) -> Self {
        Self {
            cause,
            report: Some(Box::new(report)),
        }
    }

    pub(super) fn aborted() -> Self {
        Self {
            cause: ServeCause::Aborted,
            report: None,
        }
    }

    /// What it comes from.
    #[must_use]
    pub fn cause(&self) -> &ServeCause {
        &self.cause
    }

    /// What the server did before, if it came to run.
    #[must_use]
    pub fn report(&self) -> Option<&Report> {
        self.report.as_deref()
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.cause {
            ServeCause::Aborted => "server was aborted",
            ServeCause::NoTimer(_) => "server cannot keep time",
            ServeCause::Listener(_) => "listener failed",
            ServeCause::Service(_) => "service is never ready",
        })
    }
}

impl Error for ServeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(match &self.cause {
            ServeCause::Aborted => return None,
            ServeCause::NoTimer(error) => error,
            ServeCause::Listener(error) => error,
            ServeCause::Service(error) => error.as_ref(),
        })
    }
}

impl From<NoTimer> for ServeError {
    fn from(error: NoTimer) -> Self {
        Self {
            cause: ServeCause::NoTimer(error),
            report: None,
        }
    }
}

impl<L, S> fmt::Debug for Serve<L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("listeners", &self.listeners.len())
            .field("grace", &self.grace)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ServeFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeFuture")
            .finish_non_exhaustive()
    }
}

/// Beyond what nearly every request takes, and within what process managers allow before they kill.
const GRACE: Duration = Duration::from_secs(30);
