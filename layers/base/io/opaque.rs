use tokio::io::{AsyncRead, AsyncWrite};

use crate::base::io::Io;

/// A stream of another crate that is no [`Io`] of its own: everything passes through, no socket is shown.
///
/// Without a socket a refusal or a stalled write is an ordinary close, not a reset.
#[derive(Debug)]
pub struct OpaqueIo<S> {
    io: S,
}

impl<S> OpaqueIo<S> {
    /// Takes `io` as it is.
    pub fn new(io: S) -> Self {
        Self { io }
    }

    /// Gives the stream back.
    pub fn into_inner(self) -> S {
        self.io
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for OpaqueIo<S> {}

impl<S: AsyncRead + Unpin> AsyncRead for OpaqueIo<S> {
    delegate_read!(io);
}

impl<S: AsyncWrite + Unpin> AsyncWrite for OpaqueIo<S> {
    delegate_write!(io);
}
