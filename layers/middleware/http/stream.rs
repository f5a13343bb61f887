use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
};

use crate::{
    base::io::{Io, has_unread},
    conn::Conn,
    middleware::http::exchange::Exchange,
};

/// A stream whose requests are looked after, wherever an upgrade takes it.
///
/// Hyper drops a stream to close it. What is below goes back to the crossing then, which closes it in order.
#[derive(Debug)]
pub struct HttpIo<I> {
    /// Until the drop.
    conn: Option<Conn<I>>,
    exchange: Arc<Exchange>,
    back: Option<oneshot::Sender<Conn<I>>>,
}

impl<I> HttpIo<I> {
    pub(super) fn new(
        conn: Conn<I>,
        exchange: Arc<Exchange>,
        back: oneshot::Sender<Conn<I>>,
    ) -> Self {
        Self {
            conn: Some(conn),
            exchange,
            back: Some(back),
        }
    }

    fn conn(&self) -> &Conn<I> {
        let conn = self.conn.as_ref();
        conn.expect("only the drop takes it")
    }
}

impl<I: Io> HttpIo<I> {
    fn pinned(&mut self) -> Pin<&mut Conn<I>> {
        let conn = self.conn.as_mut();
        Pin::new(conn.expect("only the drop takes it"))
    }
}

impl<I> Drop for HttpIo<I> {
    fn drop(&mut self) {
        if let (Some(conn), Some(back)) = (self.conn.take(), self.back.take()) {
            // A crossing that is gone wants nothing back: then this closes it.
            let _gone = back.send(conn);
        }
    }
}

impl<I: Io> Io for HttpIo<I> {
    fn socket(&self) -> Option<SockRef<'_>> {
        self.conn().socket()
    }
}

impl<I: Io> AsyncRead for HttpIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, had_room) = (buf.filled().len(), buf.remaining() > 0);
        let read = self.pinned().poll_read(cx, buf);
        match &read {
            Poll::Ready(Ok(())) => self
                .exchange
                .read(&buf.filled()[before..], had_room),
            // In a drain an idle connection is about to be closed: a request that the runtime has not told of yet
            // comes first.
            Poll::Pending if self.conn().info().is_leaving() => {
                self.exchange
                    .set_unread(has_unread(self.conn()));
            }
            _ => {}
        }
        read
    }
}

impl<I: Io> AsyncWrite for HttpIo<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.pinned().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.pinned()
            .poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pinned().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pinned().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.conn().is_write_vectored()
    }
}
