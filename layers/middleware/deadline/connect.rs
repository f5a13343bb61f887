use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError},
        time::{KeepsTime, Timer},
    },
    conn::{Ambient, Deadline, Spent, spent::Allowance},
};

/// Gives the opening of a connection one deadline, from the lookup of its name to the last word of its handshake.
///
/// **Where it goes**: around everything that belongs to opening a connection, and inside whatever keeps connections.
/// Connectors and layers inside have limits of their own, for one address or for the handshake; this one they share.
///
/// The caller's [`Deadline`] holds as well, if it is earlier. What is inside finds the earlier of the two as the
/// [current](Deadline::current) one when it is called.
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
            keeps_time: Arc::default(),
        })
    }
}

impl<S> Layer<S> for ConnectDeadlineLayer {
    type Service = ConnectDeadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ConnectDeadline {
            inner,
            limit: self.limit,
            keeps_time: Arc::clone(&self.keeps_time),
        }
    }
}

/// The service of [`ConnectDeadlineLayer`].
#[derive(Debug, Clone)]
pub struct ConnectDeadline<S> {
    inner: S,
    limit: Duration,
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
        let allowed = Allowance::begin(self.limit, Deadline::current());
        let connecting = if allowed.is_over() {
            None
        } else if allowed.deadline() == Deadline::NEVER {
            Some(self.inner.call(target))
        } else {
            let ambient = Ambient::enter();
            ambient.set(Ambient::At(allowed.deadline()));
            Some(self.inner.call(target))
        };
        ConnectDeadlineFuture {
            connecting,
            allowed,
            timer: Timer::default(),
        }
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
        if let Poll::Ready(connected) = connecting.poll(cx) {
            return match connected {
                Ok(conn) => Poll::Ready(Ok(conn)),
                Err(error) if allowed.is_over() => elapsed(Some(error.into())),
                Err(error) => Poll::Ready(Err(error.into())),
            };
        }
        if let Some(by) = allowed.instant() {
            if !this.timer.is_armed() {
                this.timer.as_mut().arm(by);
            }
            if this.timer.poll(cx).is_ready() {
                this.connecting.set(None);
                return elapsed(None);
            }
        }
        Poll::Pending
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
