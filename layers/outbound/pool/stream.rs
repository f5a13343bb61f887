use std::{
    fmt, io,
    io::IoSlice,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{books::Member, dial::Dial, fates::Gone, watch::Watch};
use crate::{
    base::{error::BoxError, io::Io},
    conn::{Conn, ConnInfo},
};

/// A connection out of a pool, for as long as somebody has it.
///
/// It reads and writes as the stream inside does. It goes back by [`Conn::reuse`] and in no other way: dropped, it is
/// closed, and its place is free. One whose stream has failed, has come to its end, or was shut down is not taken
/// back.
pub struct PooledIo<I> {
    held: Box<Held<I>>,
}

impl<I: Io> PooledIo<I> {
    fn io(&mut self) -> Pin<&mut I> {
        Pin::new(&mut self.held.io)
    }

    /// Whether it writes straight to a socket. It takes no pipes itself, since it has to see what fails.
    pub(crate) fn is_plain(&self) -> bool {
        self.held.io.takes_pipes()
    }

    fn saw<T>(&mut self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(_)) = &result {
            self.held.record.is_broken = true;
        }
        result
    }
}

impl<I: Io> Io for PooledIo<I> {
    fn socket(&self) -> Option<SockRef<'_>> {
        self.held.io.socket()
    }
}

impl<I: Io> AsyncRead for PooledIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.remaining();
        let read = self.io().poll_read(cx, buf);
        if read.is_ready() && before > 0 && buf.remaining() == before {
            // The end, or an error.
            self.held.record.is_broken = true;
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
        let written = self.io().poll_write(cx, buf);
        self.saw(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.io().poll_write_vectored(cx, bufs);
        self.saw(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.io().poll_flush(cx);
        self.saw(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whatever comes of it, nothing can be asked over it any more.
        self.held.record.is_broken = true;
        self.io().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.held.io.is_write_vectored()
    }
}

impl<I: fmt::Debug> fmt::Debug for PooledIo<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledIo")
            .field("io", &self.held.io)
            .field("acquired", &self.held.record.acquired)
            .finish_non_exhaustive()
    }
}

impl<I: Io> Conn<PooledIo<I>> {
    /// How the pool served it.
    #[must_use]
    pub fn acquired(&self) -> Acquired {
        self.io().held.record.acquired
    }

    /// Gives the connection back to its pool, for the next exchange. `false` if it was closed instead.
    ///
    /// To be called after a whole exchange that went well, with nothing of it left to write or to read: the next who
    /// has the connection begins where this one ended. A connection that is simply dropped is closed, so that whoever
    /// fails or is cancelled on the way need not think of it.
    ///
    /// The pool closes a connection that has failed, was shut down or came to its end; one on which bytes have
    /// arrived that nobody has read; one that has lived long enough; and any that there is no use for.
    #[expect(
        clippy::must_use_candidate,
        reason = "it has an effect, and whoever gives back has no more to do with it"
    )]
    pub fn reuse(self) -> bool {
        let (PooledIo { held }, info) = self.into_parts();
        let Some(home) = held.record.home.upgrade() else {
            return false;
        };
        held.record.watch.begin();
        let pooled = Pooled { held, info };
        if pooled.held.record.is_broken {
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
    /// Of a connection that nobody has had.
    pub(super) const NEVER: Self = Self {
        served: Served::Dialled,
        waited: Duration::ZERO,
    };

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
    fn lost(&self, record: &Record<I>, gone: Gone);
    fn dialled(&self, dial: Dial, conn: Conn<I>);
    fn dial_failed(&self, dial: Dial, error: BoxError);
    fn dial_gone(&self, dial: Dial);
}

/// A stream and what its pool knows of it, in one place for as long as the connection lives: to get it and to give it
/// back moves a pointer, however large the stream.
pub(super) struct Held<I> {
    // Closed first; its place is free after.
    pub(super) io: I,
    pub(super) record: Record<I>,
}

/// What the pool knows of one of its connections. While somebody has it, the end of this is the end of its place.
pub(super) struct Record<I> {
    pub(super) home: Weak<dyn Home<I>>,
    pub(super) target: usize,
    pub(super) number: u64,
    pub(super) round: u64,
    pub(super) retires: Option<Instant>,
    pub(super) watch: Arc<Watch>,
    /// The watch, as the one who is woken.
    pub(super) waker: Waker,
    /// Of those who have had it, how the last one was served.
    pub(super) acquired: Acquired,
    /// When it was dialled, if nobody has had it yet.
    pub(super) dialled: Option<Instant>,
    pub(super) is_broken: bool,
}

impl<I> Drop for Record<I> {
    fn drop(&mut self) {
        if !self.watch.is_lent() {
            return;
        }
        if let Some(home) = self.home.upgrade() {
            let gone = if self.is_broken {
                Gone::Broken
            } else {
                Gone::Dropped
            };
            home.lost(self, gone);
        }
    }
}

/// A connection that nobody has.
pub(super) struct Pooled<I> {
    pub(super) held: Box<Held<I>>,
    pub(super) info: Arc<ConnInfo>,
}

impl<I> Pooled<I> {
    pub(super) fn target(&self) -> usize {
        self.held.record.target
    }

    pub(super) fn lend(mut self, served: Served, waited: Duration) -> Conn<PooledIo<I>> {
        self.held.record.acquired = Acquired { served, waited };
        self.held.record.dialled = None;
        self.held.record.watch.rest();
        Conn::from_parts(PooledIo { held: self.held }, self.info)
    }
}

impl<I> Member for Pooled<I> {
    fn number(&self) -> u64 {
        self.held.record.number
    }

    fn round(&self) -> u64 {
        self.held.record.round
    }

    fn retires(&self) -> Option<Instant> {
        self.held.record.retires
    }

    fn is_old(&self) -> bool {
        self.held.record.watch.is_old()
    }
}
