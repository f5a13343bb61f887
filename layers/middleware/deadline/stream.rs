use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    base::io::{Io, Pipe},
    conn::{CloseReason, ConnInfo, Elapsed, reset_on_drop, turn::Turn, waits::Way},
};

/// A stream that reports its progress, and that fails once a limit of its connection has passed.
///
/// The bound is here for the sake of the drop, which resets the socket when the reason asks for it.
#[derive(Debug)]
pub struct DeadlineIo<I: Io> {
    io: I,
    info: Arc<ConnInfo>,
}

impl<I: Io> DeadlineIo<I> {
    pub(super) fn new(io: I, info: Arc<ConnInfo>) -> Self {
        Self { io, info }
    }
}

impl<I: Io> DeadlineIo<I> {
    /// The error of a stream that must not be used any more.
    fn check(&self, late: bool) -> io::Result<()> {
        if self.info.ending.is_cut() {
            let which = self
                .info
                .close_reason()
                .unwrap_or(CloseReason::Cut);
            return Err(Elapsed::new(which, None).into());
        }
        if late {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    fn written<T>(&self, result: Poll<io::Result<T>>, cx: &Context<'_>) -> Poll<io::Result<T>> {
        let waits = &self.info.waits;
        let was = waits.blocked.get();
        waits.blocked.set(result.is_pending());
        match &result {
            Poll::Pending if !Turn::is_own(cx, &self.info) => {
                if !was && waits.must_tell() {
                    // The watch looks in the connection's own turns, and does not know yet.
                    self.info.ending.wake();
                }
                waits.register_writer(cx.waker());
                self.check(waits.is_absolutely_late(Way::Write))?;
            }
            Poll::Ready(Err(error)) => self.info.ending.saw_failure(error),
            Poll::Pending | Poll::Ready(Ok(_)) => {}
        }
        result
    }

    /// Ready with how much was read into what had room for it.
    fn read<T>(
        &self,
        result: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> Option<usize>,
        cx: &Context<'_>,
    ) -> Poll<io::Result<T>> {
        let waits = &self.info.waits;
        let was = waits.reading.get();
        waits.reading.set(result.is_pending());
        match &result {
            Poll::Pending if !Turn::is_own(cx, &self.info) => {
                if !was && waits.must_tell() {
                    self.info.ending.wake();
                }
                waits.register_reader(cx.waker());
                self.check(waits.is_absolutely_late(Way::Read))?;
            }
            Poll::Pending => {}
            Poll::Ready(Err(error)) => self.info.ending.saw_failure(error),
            Poll::Ready(Ok(done)) => match bytes(done) {
                Some(0) => self.info.ending.saw_end(),
                Some(read) => waits.move_in(read as u64),
                None => {}
            },
        }
        result
    }

    fn moved(&self, result: Poll<io::Result<usize>>, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            self.info.waits.move_out(*bytes as u64);
        }
        self.written(result, cx)
    }
}

impl<I: Io> Io for DeadlineIo<I> {
    delegate_socket!(io);

    fn takes_pipes(&self) -> bool {
        self.io.takes_pipes()
    }

    fn poll_read_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        self.check(
            self.info
                .waits
                .is_absolutely_late(Way::Read),
        )?;
        let result = self.io.poll_read_pipe(cx, pipe);
        self.read(result, |read| Some(*read), cx)
    }

    fn poll_write_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        self.check(
            self.info
                .waits
                .is_absolutely_late(Way::Write),
        )?;
        let result = self.io.poll_write_pipe(cx, pipe);
        self.moved(result, cx)
    }
}

impl<I: Io> AsyncRead for DeadlineIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(
            self.info
                .waits
                .is_absolutely_late(Way::Read),
        )?;
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        let had_room = read > 0 || buf.remaining() > 0;
        self.read(result, |_| had_room.then_some(read), cx)
    }
}

impl<I: Io> AsyncWrite for DeadlineIo<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(
            self.info
                .waits
                .is_absolutely_late(Way::Write),
        )?;
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.moved(result, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(
            self.info
                .waits
                .is_absolutely_late(Way::Write),
        )?;
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.moved(result, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(
            self.info
                .waits
                .is_absolutely_late(Way::Write),
        )?;
        let result = Pin::new(&mut self.io).poll_flush(cx);
        self.written(result, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_shutdown(cx);
        self.written(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl<I: Io> Drop for DeadlineIo<I> {
    fn drop(&mut self) {
        if self.info.must_reset() {
            reset_on_drop(&self.io, &self.info);
        }
    }
}
