//! Streams: the one trait for them, and the adapters that any floor may need.
//!
//! | adapter | reach for it when |
//! |---|---|
//! | [`BoxedIo`] | the type of the stream must be forgotten |
//! | [`GuardedIo`] | something must live exactly as long as the stream: a permit, a counter |
//! | [`OpaqueIo`] | a foreign stream has no socket to show |
//! | [`RewoundIo`] | bytes already read must be read again by the next in line |
//! | [`prelude`] | the first bytes must be looked at, within a bound and a deadline |
//! | [`Linger`] | the last reply must reach a peer that is still sending |
//! | [`Pipe`] | bytes go from socket to socket, and nobody has to see them |

mod boxed;
mod guarded;
mod linger;
mod pipe;
pub mod prelude;
mod rewound;

use std::{
    io,
    mem::MaybeUninit,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, Interest},
    net::{TcpStream, UnixStream},
};
use tokio_util::either::Either;

pub use self::{
    boxed::BoxedIo,
    guarded::GuardedIo,
    linger::{Linger, Lingered, linger},
    opaque::OpaqueIo,
    pipe::Pipe,
    rewound::RewoundIo,
};

mod opaque;

/// A byte stream, and the way to the socket below it.
///
/// The way to the socket is what lets any layer reset a connection, half-close it, or read the kernel's own
/// figures, whatever is wrapped around. Every wrapper of this crate forwards it.
///
/// A stream of your own needs one line, `impl Io for MyStream {}`, or two with a socket; a stream from
/// another crate goes into [`OpaqueIo`].
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The socket below, if there is one.
    fn socket(&self) -> Option<SockRef<'_>> {
        None
    }

    /// Whether bytes may go between this stream and a [`Pipe`] as it is now, without being looked at on the way.
    ///
    /// A socket says so; a wrapper that must see the bytes says nothing, which is the default and means no. One that
    /// does not care, or only counts, forwards this and the two below.
    fn takes_pipes(&self) -> bool {
        false
    }

    /// Reads into an empty pipe rather than a buffer; ready with zero at the end of the stream.
    ///
    /// # Errors
    ///
    /// As a read has; and [`Unsupported`](io::ErrorKind::Unsupported), the default, if the stream must be read instead.
    /// Nothing was read then, and the stream is as good as before.
    fn poll_read_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let _unused = (cx, pipe);
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    /// Writes what a pipe holds, or the beginning of it.
    ///
    /// # Errors
    ///
    /// As a write has; and [`Unsupported`](io::ErrorKind::Unsupported), the default, if the stream must be written instead.
    /// The pipe holds what it held then.
    fn poll_write_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        let _unused = (cx, pipe);
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// A socket is what pipes are for.
macro_rules! socket {
    ($socket:ty) => {
        impl Io for $socket {
            fn socket(&self) -> Option<SockRef<'_>> {
                Some(SockRef::from(self))
            }

            fn takes_pipes(&self) -> bool {
                true
            }

            fn poll_read_pipe(
                &mut self,
                cx: &mut Context<'_>,
                pipe: &mut Pipe,
            ) -> Poll<io::Result<usize>> {
                loop {
                    ready!(self.poll_read_ready(cx))?;
                    match self.try_io(Interest::READABLE, || pipe.fill(&*self)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        filled => return Poll::Ready(filled),
                    }
                }
            }

            fn poll_write_pipe(
                &mut self,
                cx: &mut Context<'_>,
                pipe: &mut Pipe,
            ) -> Poll<io::Result<usize>> {
                loop {
                    ready!(self.poll_write_ready(cx))?;
                    match self.try_io(Interest::WRITABLE, || pipe.drain(&*self)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        drained => return Poll::Ready(drained),
                    }
                }
            }
        }
    };
}

socket!(TcpStream);
socket!(UnixStream);

impl Io for DuplexStream {}

impl<I: Io + ?Sized> Io for Box<I> {
    fn socket(&self) -> Option<SockRef<'_>> {
        (**self).socket()
    }

    fn takes_pipes(&self) -> bool {
        (**self).takes_pipes()
    }

    fn poll_read_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        (**self).poll_read_pipe(cx, pipe)
    }

    fn poll_write_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        (**self).poll_write_pipe(cx, pipe)
    }
}

impl<L: Io, R: Io> Io for Either<L, R> {
    fn socket(&self) -> Option<SockRef<'_>> {
        match self {
            Self::Left(io) => io.socket(),
            Self::Right(io) => io.socket(),
        }
    }

    fn takes_pipes(&self) -> bool {
        match self {
            Self::Left(io) => io.takes_pipes(),
            Self::Right(io) => io.takes_pipes(),
        }
    }

    fn poll_read_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        match self {
            Self::Left(io) => io.poll_read_pipe(cx, pipe),
            Self::Right(io) => io.poll_read_pipe(cx, pipe),
        }
    }

    fn poll_write_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Left(io) => io.poll_write_pipe(cx, pipe),
            Self::Right(io) => io.poll_write_pipe(cx, pipe),
        }
    }
}

/// Makes the close of this stream a reset: what is unsent is thrown away, nothing is left in TIME_WAIT.
///
/// The reset goes out when the stream is dropped. A stream without a socket is left as it is.
///
/// # Errors
///
/// What the kernel answered to setting `SO_LINGER` to zero.
pub fn reset_on_drop<I: Io + ?Sized>(io: &I) -> io::Result<()> {
    match io.socket() {
        Some(socket) => socket.set_linger(Some(Duration::ZERO)),
        None => Ok(()),
    }
}

/// Whether bytes have arrived that nobody has read. Asks the socket, since the runtime knows a moment later.
pub(crate) fn has_unread<I: Io + ?Sized>(io: &I) -> bool {
    matches!(peek(io), Some(Ok(unread)) if unread > 0)
}

/// How many bytes, of one, could be read there and then; `None` without a socket.
pub(crate) fn peek<I: Io + ?Sized>(io: &I) -> Option<io::Result<usize>> {
    let mut byte = [MaybeUninit::uninit()];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    let socket = io.socket()?;
    Some(socket.recv_with_flags(&mut byte, flags))
}

/// With what a write to a stream would break, if it would. Asks the socket, since the runtime tells only whoever writes, or
/// reads to the end; `None` without a socket. A peer that is gone in order, after our own end too, is a broken pipe.
pub(crate) fn broken<I: Io + ?Sized>(io: &I) -> Option<io::Error> {
    let socket = io.socket()?;
    // What has broken is told unasked.
    let mut asked = [PollFd::new(&*socket, PollFlags::empty())];
    poll(&mut asked, Some(&Timespec::default())).ok()?;
    let told = asked[0].revents();
    if !told.intersects(PollFlags::ERR | PollFlags::HUP) {
        return None;
    }
    let error = socket.take_error().ok().flatten();
    error.or_else(|| {
        told.contains(PollFlags::HUP)
            .then(|| io::ErrorKind::BrokenPipe.into())
    })
}

/// Whether the peer has ended its side or the connection is broken, whatever there is to be read before that. `false`
/// without a socket.
pub(crate) fn has_ended<I: Io + ?Sized>(io: &I) -> bool {
    let Some(socket) = io.socket() else {
        return false;
    };
    let over = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut asked = [PollFd::new(&*socket, over)];
    let answered = poll(&mut asked, Some(&Timespec::default()));
    answered.is_ok_and(|_| asked[0].revents().intersects(over))
}
