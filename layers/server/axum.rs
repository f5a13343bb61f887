//! [`Incoming`] as axum's `Listener`.

use std::{
    future::pending,
    io,
    net::{Ipv6Addr, SocketAddr},
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener, ListenerExt, TapIo},
};

use crate::{
    base::io::Io,
    conn::ConnHandle,
    server::incoming::{Incoming, IncomingIo},
};

/// Gives axum the connections. Its address is the peer's: the client's that a trusted proxy announced, or else the
/// one on the socket; unspecified (`[::]:0`) for a peer that has none, as on a Unix socket.
///
/// Once the drain has handed out everything it waits for ever, as axum expects: end `axum::serve` by its own graceful
/// shutdown.
impl<I: Io> Listener for Incoming<I> {
    type Io = IncomingIo<I>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (IncomingIo<I>, SocketAddr) {
        match Self::accept(self).await {
            Some(io) => {
                let peer = io.info().peer().tcp();
                (io, peer.unwrap_or(UNSPECIFIED))
            }
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        let local = Self::local_addr(self)?;
        Ok(local.tcp().unwrap_or(UNSPECIFIED))
    }
}

/// [`Incoming`] as `axum::serve` takes it; see [`Incoming::for_axum`].
pub type AxumIncoming<I> = TapIo<Incoming<I>, fn(&mut IncomingIo<I>)>;

impl<I: Io> Incoming<I> {
    /// The connections for `axum::serve`, with which `ConnectInfo<SocketAddr>` is the real peer, and
    /// `ConnectInfo<ConnHandle>` all that is known of the connection.
    ///
    /// (It can also be given to `axum::serve` as it is, but then axum has nothing for these extractors to take it from:
    /// only for listeners of its own, and for those tapped.)
    #[must_use]
    pub fn for_axum(self) -> AxumIncoming<I> {
        self.tap_io(|_| {})
    }
}

impl<'a, I: Io, F> Connected<IncomingStream<'a, TapIo<Incoming<I>, F>>> for ConnHandle
where
    F: FnMut(&mut IncomingIo<I>) + Send + 'static,
{
    fn connect_info(stream: IncomingStream<'a, TapIo<Incoming<I>, F>>) -> Self {
        Self::new(stream.io().info().clone())
    }
}

impl<'a, I: Io> Connected<IncomingStream<'a, Incoming<I>>> for ConnHandle {
    fn connect_info(stream: IncomingStream<'a, Incoming<I>>) -> Self {
        Self::new(stream.io().info().clone())
    }
}

const UNSPECIFIED: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
