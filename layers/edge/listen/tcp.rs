use std::{
    io,
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs, lookup_host};
use tokio_util::net::Listener;

use crate::edge::{
    options::{Keepalive, StreamOptions, stream_setters},
    sockopt::{set_defer_accept, set_fast_open},
};

/// A TCP listener.
///
/// The options of accepted connections are set once, on the listener, from which Linux hands them down: an
/// accept costs no further system call.
#[derive(Debug)]
pub struct Tcp {
    listener: TcpListener,
}

impl Tcp {
    /// Listens on `addr` with default options.
    ///
    /// # Errors
    ///
    /// The address cannot be resolved, or none of what it resolves to can be bound.
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<Self> {
        Self::options().bind(addr).await
    }

    /// Options to set before listening.
    #[must_use]
    pub fn options() -> TcpOptions {
        TcpOptions::default()
    }

    /// The address listened on, with the port the system chose.
    ///
    /// # Errors
    ///
    /// What the kernel answered.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Listener for Tcp {
    type Io = TcpStream;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        self.listener.poll_accept(cx)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl From<TcpListener> for Tcp {
    /// Takes a listener as it is, with the options it has.
    fn from(listener: TcpListener) -> Self {
        Self { listener }
    }
}

/// Options of a [`Tcp`] listener and of the connections it accepts.
#[derive(Debug, Clone)]
pub struct TcpOptions {
    backlog: u32,
    stream: StreamOptions,
    ipv6_only: Option<bool>,
    fast_open: Option<u32>,
    defer_accept: Option<Duration>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            backlog: BACKLOG,
            stream: StreamOptions::default(),
            ipv6_only: None,
            fast_open: None,
            defer_accept: None,
        }
    }
}

impl TcpOptions {
    stream_setters!();

    /// So many connections wait in the kernel to be accepted; `net.core.somaxconn` caps it. Default: 4096.
    #[must_use]
    pub fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Whether an IPv6 listener leaves IPv4 alone. Default: the system's, which mostly takes both.
    #[must_use]
    pub fn ipv6_only(mut self, only: bool) -> Self {
        self.ipv6_only = Some(only);
        self
    }

    /// Lets known clients send data with their SYN (TCP Fast Open, RFC 7413), `queue` of them at once. Only
    /// for requests that may be repeated: the network can deliver such data twice. Default: off.
    #[must_use]
    pub fn fast_open(mut self, queue: u32) -> Self {
        self.fast_open = Some(queue);
        self
    }

    /// Has the kernel keep a connection back until its first byte, for about so long (TCP_DEFER_ACCEPT,
    /// whole seconds). Only for protocols in which the client speaks first. Default: off.
    #[must_use]
    pub fn defer_accept(mut self, limit: Duration) -> Self {
        self.defer_accept = Some(limit);
        self
    }

    /// Listens on the first that can be bound of what `addr` resolves to.
    ///
    /// # Errors
    ///
    /// The address cannot be resolved, none of what it resolves to can be bound, or the kernel refuses an
    /// option.
    pub async fn bind(&self, addr: impl ToSocketAddrs) -> io::Result<Tcp> {
        let mut last = None;
        for addr in lookup_host(addr).await? {
            match self.listen(addr) {
                Ok(listener) => return Ok(Tcp { listener }),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "address resolves to nothing")
        }))
    }

    fn listen(&self, addr: SocketAddr) -> io::Result<TcpListener> {
        let socket = Socket::new(
            Domain::for_address(addr),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        // A restart must not wait for the TIME_WAITs of its predecessor.
        socket.set_reuse_address(true)?;
        if let Some(only) = self
            .ipv6_only
            .filter(|_| addr.is_ipv6())
        {
            socket.set_only_v6(only)?;
        }
        // Before the listen: the window that a SYN is answered with depends on them.
        self.stream.set(&socket)?;
        socket.bind(&addr.into())?;
        if let Some(queue) = self.fast_open {
            set_fast_open(&socket, queue)?;
        }
        if let Some(limit) = self.defer_accept {
            let seconds = u32::try_from(limit.as_secs()).unwrap_or(u32::MAX);
            set_defer_accept(&socket, seconds.max(1))?;
        }
        socket.listen(i32::try_from(self.backlog).unwrap_or(i32::MAX))?;
        TcpListener::from_std(socket.into())
    }
}

/// The system's own default cap since Linux 5.4.
const BACKLOG: u32 = 4096;
