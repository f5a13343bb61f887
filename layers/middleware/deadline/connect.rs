use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError},
        time::{KeepsTime, Timer},
    },
    conn::{Ambient, CloseReason, Deadline, Entered, Spent, refusals::Spared, spent::Allowance},
};

/// Gives the opening of a connection one deadline, from the lookup of its name to the last word of its handshake.
///
/// **Where it goes**: around everything that belongs to opening a connection, and inside whatever keeps connections.
/// Connectors and layers inside have limits of their own, for one address or for the handshake; this one they share.
///
/// The caller's [`Deadline`] holds as well, if it is earlier. What is inside finds the earlier of the two as the
/// [current](Deadline::current) one, when it is called and whenever it is polled.
///
/// ```
/// use std::time::Duration;
/// use tower::ServiceBuilder;
/// use tower_net::{connect::TcpConnector, deadline::ConnectDeadlineLayer};
///
/// let connector = ServiceBuilder::new()
///     .layer(ConnectDeadlineLayer::new(Duration::from_secs(5))?)
///     .service(TcpConnector::new());
/// # drop(connector);
/// # Ok::<(), tower_net::error::ConfigError>(())
/// ```
///
/// # Readiness
///
/// The connector's; waiting for it is not part of the time. The first time, it also checks that the runtime can keep
/// time.
///
/// # Errors
///
/// [`ConnectElapsed`] when the time is over, with what the connector was at as its source if it says so; the
/// connector's own errors before that; [`NoTimer`](crate::error::NoTimer) on a runtime without a time driver. When the
/// caller's time is over already, the connector is not called.
///
/// # On drop
///
/// Dropping the future drops the connector's, and so does the deadline.
#[derive(Debug, Clone)]
pub struct ConnectDeadlineLayer {
    limit: Duration,
    /// In a dry run, what counts the limit when it passes.
    spared: Option<Spared>,
    keeps_time: Arc<KeepsTime>,
}

impl ConnectDeadlineLayer {
    /// With this limit. [`Duration::MAX`] leaves it to the caller.
    ///
    /// # Errors
    ///
    /// A limit of zero.
    pub fn new(limit: Duration) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::zero("connect_deadline"));
        }
        Ok(Self {
            limit,
            spared: None,
            keeps_time: Arc::default(),
        })
    }

    /// Only counts, as `upstream` in `tower_net_dry_run_total`, what is not open within the limit, and lets it go on; what
    /// is inside finds the caller's deadline alone, which holds as ever. The metric's handle is made here: install
    /// the recorder first. Default: off.
    #[must_use]
    pub fn dry_run(mut self, on: bool) -> Self {
        self.spared = on.then(|| Spared::new([CloseReason::Upstream]));
        self
    }
}

impl<S> Layer<S> for ConnectDeadlineLayer {
    type Service = ConnectDeadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ConnectDeadline {
            inner,
            limit: self.limit,
            spared: self.spared.clone(),
            keeps_time: Arc::clone(&self.keeps_time),
        }
    }
}

/// The service of [`ConnectDeadlineLayer`].
#[derive(Debug, Clone)]
pub struct ConnectDeadline<S> {
    inner: S,
    limit: Duration,
    spared: Option<Spared>,
    keeps_time: Arc<KeepsTime>,
}

impl<S, T> Service<T> for ConnectDeadline<S>
where
    S: Service<T, Error: Into<BoxError>>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ConnectDeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.keeps_time.check()?;
        self.inner
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, target: T) -> Self::Future {
        let limit = match self.spared {
            None => self.limit,
            Some(_) => Duration::MAX,
        };
        let allowed = Allowance::begin(limit, Deadline::current());
        let trial = self
            .spared
            .as_ref()
            .and_then(|spared| Trial::begin(self.limit, allowed, spared));
        let connecting = (!allowed.is_over()).then(|| {
            let _ambient = enter(allowed);
            self.inner.call(target)
        });
        ConnectDeadlineFuture {
            connecting,
            allowed,
            trial,
            timer: Timer::default(),
        }
    }
}

/// What is inside finds the time that it has.
fn enter(allowed: Allowance) -> Option<Entered> {
    if allowed.deadline() == Deadline::NEVER {
        return None;
    }
    let ambient = Ambient::enter();
    ambient.set(Ambient::At(allowed.deadline()));
    Some(ambient)
}

/// A limit that is only counted, once.
#[derive(Debug)]
struct Trial {
    by: Instant,
    spared: Spared,
}

impl Trial {
    /// None if it cannot pass before the time is over in earnest.
    fn begin(limit: Duration, allowed: Allowance, spared: &Spared) -> Option<Self> {
        let own = Deadline::within(limit);
        let by = own
            .instant()
            .filter(|_| own < allowed.deadline())?;
        let spared = spared.clone();
        Some(Self { by, spared })
    }
}

pin_project! {
    /// The future of [`ConnectDeadline`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ConnectDeadlineFuture<F> {
        // None if the time was over before.
        #[pin]
        connecting: Option<F>,
        allowed: Allowance,
        // In a dry run, until the limit has passed.
        trial: Option<Trial>,
        #[pin]
        timer: Timer,
    }
}

impl<F, C, E> Future for ConnectDeadlineFuture<F>
where
    F: Future<Output = Result<C, E>>,
    E: Into<BoxError>,
{
    type Output = Result<C, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let allowed = *this.allowed;
        let elapsed = |source: Option<BoxError>| {
            let spent = allowed.spent();
            Poll::Ready(Err(ConnectElapsed { spent, source }.into()))
        };
        let Some(connecting) = this.connecting.as_mut().as_pin_mut() else {
            return elapsed(None);
        };
        // First the connector, which may know where the time went.
        let ambient = enter(allowed);
        let connected = connecting.poll(cx);
        drop(ambient);
        if let Poll::Ready(connected) = connected {
            return match connected {
                Ok(conn) => Poll::Ready(Ok(conn)),
                Err(error) if allowed.is_over() => elapsed(Some(error.into())),
                Err(error) => Poll::Ready(Err(error.into())),
            };
        }
        if let Some(trial) = this.trial.as_ref() {
            if !this.timer.is_armed() {
                this.timer.as_mut().arm(trial.by);
            }
            ready!(this.timer.as_mut().poll(cx));
            trial
                .spared
                .count(CloseReason::Upstream, 1);
            *this.trial = None;
            if let Some(by) = allowed.instant() {
                this.timer.as_mut().arm(by);
            }
        }
        let Some(by) = allowed.instant() else {
            return Poll::Pending;
        };
        if !this.timer.is_armed() {
            this.timer.as_mut().arm(by);
        }
        ready!(this.timer.poll(cx));
        this.connecting.set(None);
        elapsed(None)
    }
}

/// A connection was not open in time.
///
/// Its source is what the connector was at, if that knows.
#[derive(Debug)]
pub struct ConnectElapsed {
    spent: Spent,
    source: Option<BoxError>,
}

impl ConnectElapsed {
    /// Whose time ran out: the layer's limit, or the caller's.
    #[must_use]
    pub fn spent(&self) -> Spent {
        self.spent
    }

    /// Whether it is certain that nothing of a request has been sent, so that it may be tried again: always.
    #[must_use]
    pub fn is_never_sent(&self) -> bool {
        true
    }
}

impl fmt::Display for ConnectElapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection not open {}", self.spent)
    }
}

impl Error for ConnectElapsed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|error| error as _)
    }
}

impl From<ConnectElapsed> for io::Error {
    fn from(error: ConnectElapsed) -> Self {
        Self::new(io::ErrorKind::TimedOut, error)
    }
}
