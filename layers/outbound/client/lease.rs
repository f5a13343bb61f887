use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tower_service::Service;

use crate::{base::io::Io, conn::Conn, outbound::pool::PooledIo};

/// A connection that may serve one exchange after the other, and is given back only on purpose.
///
/// Implemented by the connections of a [pool](crate::pool), and by those of [`Unpooled`]. A pool of your own implements
/// it.
pub trait Lease: AsyncRead + AsyncWrite + Unpin {
    /// Whether it has served somebody before.
    fn is_reused(&self) -> bool;

    /// Whether it writes straight to a socket, so that of what a write refuses nothing was sent.
    ///
    /// A stream that keeps bytes of its own, as TLS does, may have sent some and then fail: what such a one refuses may
    /// have been processed, and is not made a second time. Default: no.
    fn is_plain(&self) -> bool {
        false
    }

    /// Gives it back for the next one. Dropped instead, it is closed.
    fn give_back(self);
}

/// A connector whose connections serve once: each [exchange](super::Serial) has a new one, which is closed after it.
///
/// For few calls to many peers. Where the same peer is called again and again, every call pays for a handshake, and
/// leaves a socket in TIME_WAIT.
#[derive(Debug, Clone)]
pub struct Unpooled<C> {
    connector: C,
}

impl<C> Unpooled<C> {
    /// Has the connections of `connector` serve once.
    #[must_use]
    pub fn new(connector: C) -> Self {
        Self { connector }
    }
}

impl<C, T, I> Service<T> for Unpooled<C>
where
    C: Service<T, Response = Conn<I>>,
    I: Io,
{
    type Response = Once<I>;
    type Error = C::Error;
    type Future = UnpooledFuture<C::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, target: T) -> Self::Future {
        UnpooledFuture {
            connecting: self.connector.call(target),
        }
    }
}

pin_project! {
    /// The future of [`Unpooled`].
    #[must_use = "futures do nothing unless polled"]
    pub struct UnpooledFuture<F> {
        #[pin]
        connecting: F,
    }
}

impl<F, I, E> Future for UnpooledFuture<F>
where
    F: Future<Output = Result<Conn<I>, E>>,
{
    type Output = Result<Once<I>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let conn = ready!(self.project().connecting.poll(cx))?;
        Poll::Ready(Ok(Once { conn }))
    }
}

impl<F> fmt::Debug for UnpooledFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnpooledFuture")
            .finish_non_exhaustive()
    }
}

/// A connection that serves one exchange; see [`Unpooled`].
#[derive(Debug)]
pub struct Once<I> {
    conn: Conn<I>,
}

impl<I: Io> Lease for Once<I> {
    fn is_reused(&self) -> bool {
        false
    }

    fn is_plain(&self) -> bool {
        self.conn.takes_pipes()
    }

    fn give_back(self) {}
}

impl<I: Io> AsyncRead for Once<I> {
    delegate_read!(conn);
}

impl<I: Io> AsyncWrite for Once<I> {
    delegate_write!(conn);
}

impl<I: Io> Lease for Conn<PooledIo<I>> {
    fn is_reused(&self) -> bool {
        self.acquired().is_reused()
    }

    fn is_plain(&self) -> bool {
        self.io().is_plain()
    }

    fn give_back(self) {
        // A connection that is not good any more is closed, which is all there is to do.
        let _kept = self.reuse();
    }
}
