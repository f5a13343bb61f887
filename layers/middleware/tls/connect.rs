use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio_rustls::rustls::{ClientConfig, pki_types::ServerName};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
        time::KeepsTime,
    },
    conn::{Conn, Deadline},
    edge::connect::{Target, TargetError},
    middleware::tls::{
        ServerNameError, TlsClientIo, TlsConnectError, handshake::Handshake, metrics::Metrics,
    },
};

/// By which name a target must know itself.
type Choose<T> = dyn Fn(&T) -> Result<ServerName<'static>, BoxError> + Send + Sync;

/// Speaks TLS on every connection that a connector opens.
///
/// **Where it goes**: around the connector and the PROXY header, which is outside of the encryption; inside of meters of
/// plain text and of whatever keeps connections.
///
/// The configuration is yours, and so is its crypto provider: the authorities that are trusted, protocols (ALPN), a
/// certificate of our own. Sessions are kept in it: connectors that share one `Arc` resume each other's.
///
/// ```
/// use std::sync::Arc;
/// use tower::ServiceBuilder;
/// use tower_net::{connect::TcpConnector, tls::{TlsConnectLayer, rustls::ClientConfig}};
///
/// # fn connector(config: Arc<ClientConfig>) {
/// // `config` is an `Arc<ClientConfig>`.
/// let connector = ServiceBuilder::new()
///     .layer(TlsConnectLayer::new(config))
///     .service(TcpConnector::new());
/// # fn check<S: tower::Service<&'static str>>(_: S) {}
/// # check(connector);
/// # }
/// # let _ = connector;
/// ```
///
/// What the handshake settled is in [`ConnInfo::tls`](crate::ConnInfo::tls). Shut the stream down, or
/// [`linger`](crate::io::linger), for an end in order; without that the other end cannot tell it from a cut.
///
/// | what | bound |
/// |---|---|
/// | the handshake | 10 s from its beginning, and the caller's deadline |
/// | encrypted and not yet written | 64 KiB a connection, before a write waits |
///
/// # Readiness
///
/// The connector's. The first time, it also checks that the runtime can keep time.
///
/// # Errors
///
/// The connector's; [`ServerNameError`], [`TargetError`] or what your closure failed with, and nothing was opened then;
/// [`TlsConnectError`]; of a runtime without a time driver [`NoTimer`](crate::error::NoTimer).
///
/// # On drop
///
/// Dropping the future drops the connection.
pub struct TlsConnectLayer<T> {
    choose: Arc<Choose<T>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Clone)]
struct Shared {
    config: Arc<ClientConfig>,
    within: Duration,
    metrics: Arc<Metrics>,
    keeps_time: Arc<KeepsTime>,
}

impl<T> TlsConnectLayer<T> {
    /// Expects the server to have a certificate for the host of the target, be it a name or an address.
    ///
    /// The metrics' handles are made here, once: install the recorder first.
    #[must_use]
    pub fn new(config: impl Into<Arc<ClientConfig>>) -> Self
    where
        T: Clone + TryInto<Target, Error: Into<TargetError>>,
    {
        Self::with_names(config, |target: &T| {
            let target = target.clone().try_into();
            name_of(&target.map_err(Into::into)?)
        })
    }

    /// Expects every server to have a certificate for this name.
    #[must_use]
    pub fn to(config: impl Into<Arc<ClientConfig>>, name: ServerName<'static>) -> Self {
        Self::with_names(config, move |_| Ok::<_, BoxError>(name.clone()))
    }

    /// Expects the server to have a certificate for the name that `choose` makes of the target.
    #[must_use]
    pub fn with_names<F, E>(config: impl Into<Arc<ClientConfig>>, choose: F) -> Self
    where
        F: Fn(&T) -> Result<ServerName<'static>, E> + Send + Sync + 'static,
        E: Into<BoxError>,
    {
        Self {
            choose: Arc::new(move |target| choose(target).map_err(Into::into)),
            shared: Arc::new(Shared {
                config: config.into(),
                within: WITHIN,
                metrics: Arc::new(Metrics::outgoing()),
                keeps_time: Arc::default(),
            }),
        }
    }

    /// For the handshake alone, from its beginning. The caller's [`Deadline`] holds as well, if it is earlier; it is
    /// read when the connector is called. [`Duration::MAX`] leaves it to the caller. Default: 10 s.
    ///
    /// # Errors
    ///
    /// A time of zero.
    pub fn handshake_timeout(mut self, limit: Duration) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::zero("handshake_timeout"));
        }
        Arc::make_mut(&mut self.shared).within = limit;
        Ok(self)
    }
}

/// The host of a target as certificates have it, in which no name ends with a dot.
fn name_of(target: &Target) -> Result<ServerName<'static>, BoxError> {
    match (target.name(), target.addr()) {
        (Some(name), _) => {
            let name = name.without_dot();
            let parsed = ServerName::try_from(name.to_owned());
            parsed.map_err(|_| ServerNameError::new(name).into())
        }
        (None, Some(addr)) => Ok(addr.ip().into()),
        (None, None) => unreachable!("a target is a name or an address"),
    }
}

impl<T> Clone for TlsConnectLayer<T> {
    fn clone(&self) -> Self {
        Self {
            choose: Arc::clone(&self.choose),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> fmt::Debug for TlsConnectLayer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnectLayer")
            .field("within", &self.shared.within)
            .finish_non_exhaustive()
    }
}

impl<S, T> Layer<S> for TlsConnectLayer<T> {
    type Service = TlsConnect<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        TlsConnect {
            inner,
            choose: Arc::clone(&self.choose),
            shared: Arc::clone(&self.shared),
        }
    }
}

/// The service of [`TlsConnectLayer`].
pub struct TlsConnect<S, T> {
    inner: S,
    choose: Arc<Choose<T>>,
    shared: Arc<Shared>,
}

impl<S: Clone, T> Clone for TlsConnect<S, T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            choose: Arc::clone(&self.choose),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S: fmt::Debug, T> fmt::Debug for TlsConnect<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnect")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, T, I> Service<T> for TlsConnect<S, T>
where
    S: Service<T, Response = Conn<I>>,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Response = Conn<TlsClientIo<I>>;
    type Error = BoxError;
    type Future = TlsConnectFuture<S::Future, I>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.shared.keeps_time.check()?;
        self.inner
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, target: T) -> Self::Future {
        let stage = match (self.choose)(&target) {
            Ok(name) => Stage::Connecting {
                connecting: self.inner.call(target),
                next: Some(Handshake {
                    config: Arc::clone(&self.shared.config),
                    metrics: Arc::clone(&self.shared.metrics),
                    within: self.shared.within,
                    caller: Deadline::current(),
                    name,
                }),
            },
            Err(error) => Stage::Refused { error: Some(error) },
        };
        TlsConnectFuture { stage }
    }
}

pin_project! {
    /// The future of [`TlsConnect`].
    #[must_use = "futures do nothing unless polled"]
    pub struct TlsConnectFuture<F, I> {
        #[pin]
        stage: Stage<F, I>,
    }
}

/// Boxed once a connection: it is large, and gone when it is done.
type Shaking<I> =
    Pin<Box<dyn Future<Output = Result<Conn<TlsClientIo<I>>, TlsConnectError>> + Send>>;

pin_project! {
    #[project = StageProj]
    enum Stage<F, I> {
        Refused { error: Option<BoxError> },
        Connecting {
            #[pin]
            connecting: F,
            // Until there is something to shake hands over.
            next: Option<Handshake>,
        },
        Shaking { shaking: Shaking<I> },
    }
}

impl<F, I, E> Future for TlsConnectFuture<F, I>
where
    F: Future<Output = Result<Conn<I>, E>>,
    E: Into<BoxError>,
    I: Io,
{
    type Output = Result<Conn<TlsClientIo<I>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut stage = self.project().stage;
        loop {
            match stage.as_mut().project() {
                StageProj::Refused { error } => {
                    let error = error.take();
                    return Poll::Ready(Err(error.expect("not polled again after it was ready")));
                }
                StageProj::Connecting { connecting, next } => {
                    let conn = ready!(connecting.poll(cx)).map_err(Into::into)?;
                    let next = next
                        .take()
                        .expect("not polled again after it was ready");
                    let shaking = Box::pin(next.shake(conn));
                    stage.set(Stage::Shaking { shaking });
                }
                StageProj::Shaking { shaking } => {
                    return shaking
                        .as_mut()
                        .poll(cx)
                        .map_err(Into::into);
                }
            }
        }
    }
}

impl<F, I> fmt::Debug for TlsConnectFuture<F, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.stage {
            Stage::Refused { .. } => "Refused",
            Stage::Connecting { .. } => "Connecting",
            Stage::Shaking { .. } => "Shaking",
        })
    }
}

/// As for handshakes that are accepted: a few lost packets, no more.
const WITHIN: Duration = Duration::from_secs(10);
