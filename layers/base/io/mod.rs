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

mod boxed;
mod guarded;
mod linger;
pub mod prelude;
mod rewound;

use std::{io, mem::MaybeUninit, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    net::{TcpStream, UnixStream},
};
use tokio_util::either::Either;

pub use self::{
    boxed::BoxedIo,
    guarded::GuardedIo,
    linger::{Linger, Lingered, linger},
    opaque::OpaqueIo,
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
}

impl Io for TcpStream {
    fn socket(&self) -> Option<SockRef<'_>> {
        Some(SockRef::from(self))
    }
}

impl Io for UnixStream {
    fn socket(&self) -> Option<SockRef<'_>> {
        Some(SockRef::from(self))
    }
}

impl Io for DuplexStream {}

impl<I: Io + ?Sized> Io for Box<I> {
    fn socket(&self) -> Option<SockRef<'_>> {
        (**self).socket()
    }
}

impl<L: Io, R: Io> Io for Either<L, R> {
    fn socket(&self) -> Option<SockRef<'_>> {
        match self {
            Self::Left(io) => io.socket(),
            Self::Right(io) => io.socket(),
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
