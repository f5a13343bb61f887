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
    base::io::{Io, peek},
    conn::{CloseReason, Conn, Elapsed, turn::Turn},
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
    /// No layer below sees to it that a connection that is cut fails.
    alone: bool,
    back: Option<oneshot::Sender<Conn<I>>>,
}

impl<I> HttpIo<I> {
    pub(super) fn new(
        conn: Conn<I>,
        exchange: Arc<Exchange>,
        back: oneshot::Sender<Conn<I>>,
    ) -> Self {
        Self {
            alone: !conn.info().waits.watched.get(),
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

    /// The error of a connection that was cut.
    fn check(&self) -> io::Result<()> {
        let info = self.conn().info();
        if !self.alone || !info.ending.is_cut() {
            return Ok(());
        }
        let which = info
            .close_reason()
            .unwrap_or(CloseReason::Cut);
        Err(Elapsed::new(which, None).into())
    }

    /// A pending operation of whoever it was upgraded for hears of a cut.
    #[inline]
    fn waits<T>(
        &self,
        result: Poll<io::Result<T>>,
        cx: &Context<'_>,
        reads: bool,
    ) -> Poll<io::Result<T>> {
        let info = self.conn().info();
        if !self.alone || result.is_ready() || Turn::is_own(cx, info) {
            return result;
        }
        if reads {
            info.waits.register_reader(cx.waker());
        } else {
            info.waits.register_writer(cx.waker());
        }
        self.check()?;
        Poll::Pending
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
        self.check()?;
        let (before, had_room) = (buf.filled().len(), buf.remaining() > 0);
        let read = self.pinned().poll_read(cx, buf);
        match &read {
            Poll::Ready(Ok(())) => {
                let read = &buf.filled()[before..];
                self.exchange
                    .read(read, had_room, self.conn().info());
            }
            Poll::Ready(Err(error)) => self
                .exchange
                .fail(error, self.conn().info()),
            // In a drain an idle connection is about to be closed: a request that the runtime has not told of yet
            // comes first, and so does an end.
            Poll::Pending if self.conn().info().is_leaving() => {
                let unread = matches!(peek(self.conn()), Some(Ok(_)));
                self.exchange.set_unread(unread);
            }
            Poll::Pending => {}
        }
        self.waits(read, cx, true)
    }
}

impl<I: Io> AsyncWrite for HttpIo<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let written = self.pinned().poll_write(cx, buf);
        self.waits(written, cx, false)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let written = self
            .pinned()
            .poll_write_vectored(cx, bufs);
        self.waits(written, cx, false)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        let flushed = self.pinned().poll_flush(cx);
        self.waits(flushed, cx, false)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = self.pinned().poll_shutdown(cx);
        self.waits(shut, cx, false)
    }

    fn is_write_vectored(&self) -> bool {
        self.conn().is_write_vectored()
    }
}
