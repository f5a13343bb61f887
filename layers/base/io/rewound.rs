use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::base::io::{Io, Pipe};

/// A stream with bytes put back in front of it: they are read first, then the stream goes on.
///
/// The bytes are freed as soon as they have been read.
#[derive(Debug)]
pub struct RewoundIo<I> {
    io: I,
    front: Bytes,
}

impl<I> RewoundIo<I> {
    /// Puts `front` before what `io` has still to give.
    pub fn new(front: Bytes, io: I) -> Self {
        Self { io, front }
    }

    /// Gives the stream back, with whatever has not been read again yet.
    pub fn into_parts(self) -> (Bytes, I) {
        (self.front, self.io)
    }
}

impl<I: Io> Io for RewoundIo<I> {
    delegate_socket!(io);

    /// Not before what was put back has been read.
    fn takes_pipes(&self) -> bool {
        self.front.is_empty() && self.io.takes_pipes()
    }

    fn poll_read_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        if !self.front.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        }
        self.io.poll_read_pipe(cx, pipe)
    }

    fn poll_write_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        self.io.poll_write_pipe(cx, pipe)
    }
}

impl<I: Io> AsyncRead for RewoundIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.front.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let length = self.front.len().min(buf.remaining());
        buf.put_slice(&self.front[..length]);
        self.front.advance(length);
        if self.front.is_empty() {
            self.front = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: Io> AsyncWrite for RewoundIo<I> {
    delegate_write!(io);
}
