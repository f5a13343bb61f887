use std::fmt;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    client,
    rustls::{ClientConnection, ServerConnection},
    server,
};

use crate::base::io::Io;

/// An encrypted stream that was accepted.
///
/// A write is done once it is encrypted: up to 64 KiB may then still wait to be written, so flush before waiting
/// for an answer. Shutting it down flushes, says `close_notify` and ends the writing side below; a
/// [`linger`](crate::io::linger) then waits for the peer's end. A peer that just closes its TCP connection, as many
/// do, is an [`UnexpectedEof`](std::io::ErrorKind::UnexpectedEof) to the reader, since it could be somebody else who
/// cut it short; [`FrameLayer`](crate::frame::FrameLayer) takes it for an end if no frame is.
pub struct TlsIo<I> {
    // Boxed: it is over a kilobyte, and moves through every layer below.
    tls: Box<server::TlsStream<I>>,
}

impl<I> TlsIo<I> {
    pub(super) fn new(tls: server::TlsStream<I>) -> Self {
        Self { tls: Box::new(tls) }
    }

    /// The session, for what [`TlsInfo`](crate::tls::TlsInfo) does not have: keying material, say.
    #[must_use]
    pub fn session(&self) -> &ServerConnection {
        self.tls.get_ref().1
    }
}

impl<I: Io> Io for TlsIo<I> {
    fn socket(&self) -> Option<SockRef<'_>> {
        self.tls.get_ref().0.socket()
    }
}

impl<I: Io> AsyncRead for TlsIo<I> {
    delegate_read!(tls);
}

impl<I: Io> AsyncWrite for TlsIo<I> {
    delegate_write!(tls);
}

impl<I: fmt::Debug> fmt::Debug for TlsIo<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIo")
            .field("io", self.tls.get_ref().0)
            .finish_non_exhaustive()
    }
}

/// An encrypted stream that we opened.
///
/// What holds of a [`TlsIo`] holds of it. A server that does not accept our certificate says so after the handshake in
/// TLS 1.3: it is an error of the first read.
pub struct TlsClientIo<I> {
    // Boxed, as the other.
    tls: Box<client::TlsStream<I>>,
}

impl<I> TlsClientIo<I> {
    pub(super) fn new(tls: client::TlsStream<I>) -> Self {
        Self { tls: Box::new(tls) }
    }

    /// The session, for what [`TlsInfo`](crate::tls::TlsInfo) does not have: keying material, say.
    #[must_use]
    pub fn session(&self) -> &ClientConnection {
        self.tls.get_ref().1
    }
}

impl<I: Io> Io for TlsClientIo<I> {
    fn socket(&self) -> Option<SockRef<'_>> {
        self.tls.get_ref().0.socket()
    }
}

impl<I: Io> AsyncRead for TlsClientIo<I> {
    delegate_read!(tls);
}

impl<I: Io> AsyncWrite for TlsClientIo<I> {
    delegate_write!(tls);
}

impl<I: fmt::Debug> fmt::Debug for TlsClientIo<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClientIo")
            .field("io", self.tls.get_ref().0)
            .finish_non_exhaustive()
    }
}
