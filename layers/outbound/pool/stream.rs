use std::{
    fmt, io,
    io::IoSlice,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{books::Member, dial::Dial, fates::Gone, watch::Watch};
use crate::{
    base::{error::BoxError, io::Io},
    conn::Conn,
};

/// A connection out of a pool, for as long as somebody has it.
///
/// It reads and writes as the stream inside does. It goes back by [`Conn::reuse`] and in no other way: dropped, it is
/// closed, and its place is free. One whose stream has failed, has come to its end, or was shut down is not taken
/// back.
pub struct PooledIo<I> {
    // Closed first; its place is free after.
    io: I,
    lease: Lease<I>,
}

impl<I: Io> PooledIo<I> {
    fn saw<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(_)) = &result {
            self.lease.is_broken = true;
        }
        result
    }
}

impl<I: Io> Io for PooledIo<I> {
    delegate_socket!(io);
}

impl<I: Io> AsyncRead for PooledIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.remaining();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() && before > 0 && buf.remaining() == before {
            // The end, or an error.
            self.lease.is_broken = true;
        }
        read
    }
}

impl<I: Io> AsyncWrite for PooledIo<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.saw(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.saw(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.saw(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whatever comes of it, nothing can be asked over it any more.
        self.lease.is_broken = true;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl<I: fmt::Debug> fmt::Debug for PooledIo<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledIo")
            .field("io", &self.io)
            .field("acquired", &self.lease.acquired)
            .finish_non_exhaustive()
    }
}

impl<I: Io> Conn<PooledIo<I>> {
    /// How the pool served it.
    #[must_use]
    pub fn acquired(&self) -> Acquired {
        self.io().lease.acquired
    }

    /// Gives the connection back to its pool, for the next exchange. `false` if it was closed instead.
    ///
    /// To be called after a whole exchange that went well, with nothing of it left to write or to read: the next who
    /// has the connection begins where this one ended. A connection that is simply dropped is closed, so that whoever
    /// fails or is cancelled on the way need not think of it.
    ///
    /// The pool closes a connection that has failed, was shut down or came to its end; one on which bytes have
    /// arrived that nobody has read; one that has lived long enough; and any that there is no use for.
    pub fn reuse(self) -> bool {
        let (PooledIo { io, mut lease }, info) = self.into_parts();
        let Some(record) = lease.record.take() else {
            return false;
        };
        let Some(home) = record.home.upgrade() else {
            return false;
        };
        let pooled = Pooled {
            conn: Conn::from_parts(io, info),
            record,
        };
        if lease.is_broken {
            home.let_go(pooled, Gone::Broken);
            return false;
        }
        home.take_back(pooled)
    }
}

/// How a pool served a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acquired {
    pub(super) served: Served,
    pub(super) waited: Duration,
}

/// Where a connection came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Served {
    /// It was idle.
    Idle,
    /// Somebody gave it back while the caller waited, for a place or for its own dial.
    Late,
    /// It was dialled, and has not been used.
    Dialled,
}

impl Acquired {
    /// Where it came from.
    #[must_use]
    pub fn served(&self) -> Served {
        self.served
    }

    /// How long the caller waited for it: zero if it was idle.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Whether it may have been open for a while, so that its peer may just be closing it. If the first exchange on
    /// such a connection fails before anything came back, a new one may do better; on one that was dialled for the
    /// caller a failure is a failure.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.served != Served::Dialled
    }
}

/// A pool, as its connections know it.
pub(super) trait Home<I>: Send + Sync {
    fn take_back(&self, pooled: Pooled<I>) -> bool;
    fn let_go(&self, pooled: Pooled<I>, gone: Gone);
    /// The stream has been closed already.
    fn lost(&self, target: usize, gone: Gone);
    fn dialled(&self, dial: Dial, conn: Conn<I>);
    fn dial_failed(&self, dial: Dial, error: BoxError);
    fn dial_gone(&self, dial: Dial);
}

/// What the pool knows of one of its connections.
pub(super) struct Record<I> {
    pub(super) home: Weak<dyn Home<I>>,
    pub(super) round: u64,
    pub(super) retires: Option<Instant>,
    pub(super) watch: Arc<Watch>,
    /// The watch, as the one who is woken.
    pub(super) waker: Waker,
}

/// A connection that nobody has.
pub(super) struct Pooled<I> {
    pub(super) conn: Conn<I>,
    pub(super) record: Box<Record<I>>,
}

impl<I> Pooled<I> {
    pub(super) fn target(&self) -> usize {
        self.record.watch.target
    }

    pub(super) fn lend(self, served: Served, waited: Duration) -> Conn<PooledIo<I>> {
        let lease = Lease {
            record: Some(self.record),
            acquired: Acquired { served, waited },
            is_broken: false,
        };
        self.conn
            .map_io(|io| PooledIo { io, lease })
    }
}

impl<I> Member for Pooled<I> {
    fn number(&self) -> u64 {
        self.record.watch.number
    }

    fn round(&self) -> u64 {
        self.record.round
    }

    fn retires(&self) -> Option<Instant> {
        self.record.retires
    }
}

/// Somebody's hold of a place.
struct Lease<I> {
    /// None once it was given back.
    record: Option<Box<Record<I>>>,
    acquired: Acquired,
    is_broken: bool,
}

impl<I> Drop for Lease<I> {
    fn drop(&mut self) {
        let Some(record) = self.record.take() else {
            return;
        };
        if let Some(home) = record.home.upgrade() {
            let gone = if self.is_broken {
                Gone::Broken
            } else {
                Gone::Dropped
            };
            home.lost(record.watch.target, gone);
        }
    }
}
