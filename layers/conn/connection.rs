use std::sync::Arc;

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use crate::{
    base::io::{self, Io},
    conn::{Addr, CloseReason, ConnInfo},
};

/// A connection, accepted or opened by a connector, on its way through a stack: the stream, and what is known of it.
///
/// It reads and writes as the stream does. A layer that adds something to the stream changes the type with
/// [`map_io`](Self::map_io); facts about the connection go into [`ConnInfo`].
///
/// Dropping it closes the connection.
#[derive(Debug)]
pub struct Conn<I> {
    io: I,
    info: Arc<ConnInfo>,
}

impl<I> Conn<I> {
    /// A connection with `peer` at the other end.
    ///
    /// [`Server`](crate::Server) makes these itself; an accept loop of your own makes one for each stream.
    pub fn new(io: I, peer: impl Into<Addr>) -> Self {
        Self::with_info(io, ConnInfo::new(peer.into(), Addr::Unnamed))
    }

    /// A connection of which more is known.
    pub fn with_info(io: I, info: ConnInfo) -> Self {
        Self {
            io,
            info: Arc::new(info),
        }
    }

    /// What is known of the connection, shared with everybody who looks after it.
    pub fn info(&self) -> &Arc<ConnInfo> {
        &self.info
    }

    /// The stream.
    pub fn io(&self) -> &I {
        &self.io
    }

    /// The stream, to be read or written directly.
    pub fn io_mut(&mut self) -> &mut I {
        &mut self.io
    }

    /// The same connection over another stream, usually the old one wrapped.
    pub fn map_io<J>(self, map: impl FnOnce(I) -> J) -> Conn<J> {
        Conn {
            io: map(self.io),
            info: self.info,
        }
    }

    /// Takes the connection apart.
    pub fn into_parts(self) -> (I, Arc<ConnInfo>) {
        (self.io, self.info)
    }

    /// Puts a connection together again.
    pub fn from_parts(io: I, info: Arc<ConnInfo>) -> Self {
        Self { io, info }
    }
}

impl<I: Io> Conn<I> {
    /// Refuses the connection: gives `reason` and closes with a reset, so that the peer knows at once and
    /// nothing is left in TIME_WAIT.
    ///
    /// For a connection nobody has read from. One that is being served ends in order instead.
    pub fn refuse(self, reason: CloseReason) {
        self.info.end_with(reason);
        reset_on_drop(&self.io, &self.info);
    }
}

/// Makes the close of `io` a reset; a kernel that will not is not worth more than a debug line.
pub(crate) fn reset_on_drop<I: Io>(io: &I, info: &ConnInfo) {
    if let Err(error) = io::reset_on_drop(io) {
        tracing::debug!(conn = %info.id(), %error, "reset refused by the kernel");
    }
}

impl TryFrom<TcpStream> for Conn<TcpStream> {
    type Error = std::io::Error;

    fn try_from(io: TcpStream) -> std::io::Result<Self> {
        let info = ConnInfo::new(io.peer_addr()?.into(), io.local_addr()?.into());
        Ok(Self::with_info(io, info))
    }
}

impl TryFrom<UnixStream> for Conn<UnixStream> {
    type Error = std::io::Error;

    fn try_from(io: UnixStream) -> std::io::Result<Self> {
        let info = ConnInfo::new(io.peer_addr()?.into(), io.local_addr()?.into());
        Ok(Self::with_info(io, info))
    }
}

impl<I: Io> Io for Conn<I> {
    fn socket(&self) -> Option<SockRef<'_>> {
        self.io.socket()
    }

    delegate_pipes!(io);
}

impl<I: Io> AsyncRead for Conn<I> {
    delegate_read!(io);
}

impl<I: Io> AsyncWrite for Conn<I> {
    delegate_write!(io);
}
