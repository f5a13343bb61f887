//! The first message of TLS, in as many records as a test wants.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Sends the first record, which is the hello, in records of so many bytes.
#[derive(Debug)]
pub struct SplitHello<I> {
    io: I,
    size: usize,
    pending: Option<Vec<u8>>,
}

impl<I: AsyncWrite + Unpin> SplitHello<I> {
    pub fn new(io: I, size: usize) -> Self {
        Self {
            io,
            size,
            pending: None,
        }
    }

    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(pending) = self
            .pending
            .as_mut()
            .filter(|pending| !pending.is_empty())
        {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, pending))?;
            pending.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

pub fn split_records(record: &[u8], size: usize) -> Vec<u8> {
    let mut split = Vec::new();
    for part in record[5..].chunks(size) {
        split.extend_from_slice(&record[..3]);
        split.extend_from_slice(
            &u16::try_from(part.len())
                .unwrap()
                .to_be_bytes(),
        );
        split.extend_from_slice(part);
    }
    split
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for SplitHello<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let _pending = self.poll_pending(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for SplitHello<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.pending.is_none() {
            self.pending = Some(split_records(buf, self.size));
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let whole: Vec<u8> = bufs
            .iter()
            .flat_map(|buf| buf.iter().copied())
            .collect();
        self.poll_write(cx, &whole)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
