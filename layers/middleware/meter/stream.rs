use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, Release},
    },
    task::{Context, Poll},
};

use metrics::IntoF64;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    base::io::{Io, Pipe},
    conn::{Conn, ConnInfo, Safeguard},
    middleware::meter::Tally,
};

/// A stream whose bytes are counted.
#[derive(Debug)]
pub struct MeterIo<I> {
    // Closed first, counted after.
    io: I,
    meter: Open,
}

impl<I> MeterIo<I> {
    /// Counts a connection from now on.
    pub(super) fn around(conn: Conn<I>, tally: &Tally) -> Conn<Self> {
        let meter = Open::new(tally, Arc::clone(conn.info()));
        conn.map_io(|io| Self { io, meter })
    }
}

impl<I: Io> Io for MeterIo<I> {
    delegate_socket!(io);

    fn takes_pipes(&self) -> bool {
        self.io.takes_pipes()
    }

    fn poll_read_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        match self.io.poll_read_pipe(cx, pipe) {
            Poll::Ready(Ok(read)) => {
                self.meter.read(read, true);
                Poll::Ready(Ok(read))
            }
            other => self.meter.waits_or_fails(other),
        }
    }

    fn poll_write_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        let written = self.io.poll_write_pipe(cx, pipe);
        self.meter.wrote(written)
    }
}

impl<I: Io> AsyncRead for MeterIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let had_room = buf.remaining() > 0;
        match Pin::new(&mut self.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                let read = buf.filled().len() - before;
                self.meter.read(read, had_room);
                Poll::Ready(Ok(()))
            }
            other => self.meter.waits_or_fails(other),
        }
    }
}

impl<I: Io> AsyncWrite for MeterIo<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.meter.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.meter.wrote(written)
    }

    delegate_write!(except poll_write io);
}

/// One open connection; closes the books on drop.
#[derive(Debug)]
struct Open {
    tally: Tally,
    info: Arc<ConnInfo>,
    own: bool,
    first: bool,
    // Not yet in the shared counts.
    read: u32,
    written: u32,
}

impl Open {
    fn new(tally: &Tally, info: Arc<ConnInfo>) -> Self {
        tally
            .counts
            .opened
            .fetch_add(1, Relaxed);
        tally.counts.metrics.opened.increment(1);
        tally
            .counts
            .metrics
            .active
            .increment(1.0);
        info.passed.mark(Safeguard::Meter);
        Self {
            own: info.claim_bytes(),
            tally: tally.clone(),
            info,
            first: true,
            read: 0,
            written: 0,
        }
    }

    fn read(&mut self, bytes: usize, had_room: bool) {
        if bytes == 0 {
            if had_room {
                self.info.ending.saw_end();
            }
            return;
        }
        let bytes = bytes as u64;
        if self.first {
            self.first = false;
            let metrics = &self.tally.counts.metrics;
            metrics
                .first_byte
                .record(Age(&self.info));
        }
        if self.own {
            self.info.count_read(bytes);
        }
        match u64::from(self.read) + bytes {
            sum @ ..FOLD_AT => self.read = sum as u32,
            sum => {
                self.read = 0;
                self.tally.counts.add_read(sum);
            }
        }
    }

    fn wrote(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Ok(bytes)) => {
                if self.own {
                    self.info.count_written(bytes as u64);
                }
                match u64::from(self.written) + bytes as u64 {
                    sum @ ..FOLD_AT => self.written = sum as u32,
                    sum => {
                        self.written = 0;
                        self.tally.counts.add_written(sum);
                    }
                }
                Poll::Ready(Ok(bytes))
            }
            other => self.waits_or_fails(other),
        }
    }

    fn waits_or_fails<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &result {
            Poll::Pending => self.fold(),
            Poll::Ready(Err(error)) => self.info.ending.saw_failure(error),
            Poll::Ready(Ok(_)) => {}
        }
        result
    }

    /// Adds what this connection has counted to what all have.
    fn fold(&mut self) {
        let counts = &self.tally.counts;
        if self.read > 0 {
            counts.add_read(std::mem::take(&mut self.read).into());
        }
        if self.written > 0 {
            counts.add_written(std::mem::take(&mut self.written).into());
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.fold();
        let reason = self.info.ending.settle();
        let counts = &self.tally.counts;
        // Release: whoever sees the close has also seen the opening before it.
        counts.closed[reason.index()].fetch_add(1, Release);
        counts.metrics.closed[reason.index()].increment(1);
        counts.metrics.active.decrement(1.0);
        counts
            .metrics
            .lifetime
            .record(Age(&self.info));
    }
}

/// The age of a connection in seconds: without a recorder nobody reads the clock for it.
struct Age<'a>(&'a ConnInfo);

impl IntoF64 for Age<'_> {
    fn into_f64(self) -> f64 {
        self.0.age().as_secs_f64()
    }
}

/// Bytes after which a connection that never waits adds what it has counted all the same.
const FOLD_AT: u64 = 64 * 1024;
