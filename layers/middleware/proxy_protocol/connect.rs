use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::io::AsyncWrite;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{error::BoxError, io::Io},
    conn::{Conn, ConnInfo},
    middleware::proxy_protocol::header::{Header, Version},
};

/// Which header a new connection to a target begins with.
type Choose<T> = dyn Fn(&T, &ConnInfo) -> Result<Header, BoxError> + Send + Sync;

/// Sends a PROXY header on every connection that a connector opens, before anything else.
///
/// **Where it goes**: right around the connector; TLS, meters of plain text and whatever else speaks come outside of
/// it, and so does the timeout, which then covers both.
///
/// A connection says once for whom it is: one that is kept in a pool may only be used again for the same client.
///
/// ```
/// use std::net::SocketAddr;
/// use tokio::net::TcpStream;
/// use tower::{ServiceBuilder, service_fn};
/// use tower_net::{Conn, proxy_protocol::{Header, ProxyConnectLayer, Version}};
///
/// // Whom to reach, and for which client.
/// #[derive(Clone)]
/// struct Route { to: SocketAddr, client: SocketAddr, reached: SocketAddr }
///
/// let connector = ServiceBuilder::new()
///     .layer(ProxyConnectLayer::new(|route: &Route, _| {
///         Header::tcp(Version::V2, route.client, route.reached)
///     }))
///     .service(service_fn(async |route: Route| TcpStream::connect(route.to).await?.try_into()));
/// # fn check<S>(_: S) where S: tower::Service<Route, Response = Conn<TcpStream>> {}
/// # check(connector);
/// ```
///
/// # Readiness
///
/// The connector's.
///
/// # Errors
///
/// The connector's; [`EncodeError`](super::EncodeError) or what the closure failed with, and nothing was sent then;
/// or the [`io::Error`] of the write.
///
/// # On drop
///
/// Dropping the future drops the connection, of whose header any part may have been sent.
pub struct ProxyConnectLayer<T> {
    choose: Arc<Choose<T>>,
}

impl<T> ProxyConnectLayer<T> {
    /// Sends the header that `choose` makes of the target and the new connection, whose
    /// [`local`](ConnInfo::local) and [`wire_peer`](ConnInfo::wire_peer) addresses are known by then.
    ///
    /// For a connection that is opened on behalf of one that was accepted there is [`Header::announcing`].
    pub fn new<F, E>(choose: F) -> Self
    where
        F: Fn(&T, &ConnInfo) -> Result<Header, E> + Send + Sync + 'static,
        E: Into<BoxError>,
    {
        Self {
            choose: Arc::new(move |target, conn| choose(target, conn).map_err(Into::into)),
        }
    }

    /// Says that the client is always this one, and that it reached the address that is connected to.
    ///
    /// On a connection whose other end has no IP address, or one of the other family, it says
    /// [`local`](Header::local).
    #[must_use]
    pub fn from_source(version: Version, source: SocketAddr) -> Self {
        Self::new(move |_, conn: &ConnInfo| {
            let reached = conn.wire_peer().tcp();
            let header = reached.and_then(|reached| Header::tcp(version, source, reached).ok());
            Ok::<_, BoxError>(header.unwrap_or_else(|| Header::local(version)))
        })
    }

    /// Says that the connection is our own, as for a health check.
    #[must_use]
    pub fn local(version: Version) -> Self {
        Self::new(move |_, _: &ConnInfo| Ok::<_, BoxError>(Header::local(version)))
    }
}

impl<T> Clone for ProxyConnectLayer<T> {
    fn clone(&self) -> Self {
        Self {
            choose: Arc::clone(&self.choose),
        }
    }
}

impl<T> fmt::Debug for ProxyConnectLayer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyConnectLayer")
            .finish_non_exhaustive()
    }
}

impl<S, T> Layer<S> for ProxyConnectLayer<T> {
    type Service = ProxyConnect<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        ProxyConnect {
            inner,
            choose: Arc::clone(&self.choose),
        }
    }
}

/// The service of [`ProxyConnectLayer`].
pub struct ProxyConnect<S, T> {
    inner: S,
    choose: Arc<Choose<T>>,
}

impl<S: Clone, T> Clone for ProxyConnect<S, T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            choose: Arc::clone(&self.choose),
        }
    }
}

impl<S: fmt::Debug, T> fmt::Debug for ProxyConnect<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyConnect")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, T, I> Service<T> for ProxyConnect<S, T>
where
    S: Service<T, Response = Conn<I>>,
    S::Error: Into<BoxError>,
    T: Clone,
    I: Io,
{
    type Response = Conn<I>;
    type Error = BoxError;
    type Future = ProxyConnectFuture<S::Future, T, I>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, target: T) -> Self::Future {
        ProxyConnectFuture {
            stage: Stage::Connecting {
                connecting: self.inner.call(target.clone()),
                target,
                choose: Arc::clone(&self.choose),
            },
        }
    }
}

pin_project! {
    /// The future of [`ProxyConnect`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ProxyConnectFuture<F, T, I> {
        #[pin]
        stage: Stage<F, T, I>,
    }
}

pin_project! {
    #[project = StageProj]
    enum Stage<F, T, I> {
        Connecting {
            #[pin]
            connecting: F,
            target: T,
            choose: Arc<Choose<T>>,
        },
        Sending {
            // Until it is handed out.
            conn: Option<Conn<I>>,
            header: Vec<u8>,
            sent: usize,
        },
    }
}

impl<F, T, I, E> Future for ProxyConnectFuture<F, T, I>
where
    F: Future<Output = Result<Conn<I>, E>>,
    E: Into<BoxError>,
    I: Io,
{
    type Output = Result<Conn<I>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut stage = self.project().stage;
        loop {
            match stage.as_mut().project() {
                StageProj::Connecting {
                    connecting,
                    target,
                    choose,
                } => {
                    let conn = ready!(connecting.poll(cx)).map_err(Into::into)?;
                    let header = choose(target, conn.info())?.encode()?;
                    stage.set(Stage::Sending {
                        conn: Some(conn),
                        header,
                        sent: 0,
                    });
                }
                StageProj::Sending { conn, header, sent } => {
                    let io = conn.as_mut();
                    let io = io.expect("not polled again after it was ready");
                    let written = ready!(poll_send(io, &header[..], sent, cx));
                    let conn = conn
                        .take()
                        .expect("it was there a moment ago");
                    return Poll::Ready(match written {
                        Ok(()) => Ok(conn),
                        Err(error) => Err(error.into()),
                    });
                }
            }
        }
    }
}

impl<F, T, I> fmt::Debug for ProxyConnectFuture<F, T, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.stage {
            Stage::Connecting { .. } => "Connecting",
            Stage::Sending { .. } => "Sending",
        })
    }
}

/// Writes what has not been sent yet, and sees that it leaves.
fn poll_send<I: Io>(
    conn: &mut Conn<I>,
    header: &[u8],
    sent: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while *sent < header.len() {
        let left = &header[*sent..];
        match ready!(Pin::new(&mut *conn).poll_write(cx, left))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => *sent += written,
        }
    }
    Pin::new(conn).poll_flush(cx)
}
