use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

/// An end of a connection: TCP, Unix, or nothing that has a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Addr {
    /// An address and port.
    Tcp(SocketAddr),
    /// A Unix socket, with its path if it has one. (A client's usually has none.)
    Unix(Option<Arc<Path>>),
    /// In memory, or of a kind that is not known here.
    #[default]
    Unnamed,
}

impl Addr {
    /// The IP address, an IPv4-mapped IPv6 address as the IPv4 address that it is.
    ///
    /// One host thus has one address, whether it came over an IPv4 or a dual-stack socket.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(addr) => Some(addr.ip().to_canonical()),
            Self::Unix(_) | Self::Unnamed => None,
        }
    }

    /// The TCP address, as the socket gave it.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(addr) => Some(*addr),
            Self::Unix(_) | Self::Unnamed => None,
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(Some(path)) => write!(f, "unix:{}", path.display()),
            Self::Unix(None) => f.write_str("unix:"),
            Self::Unnamed => f.write_str("unnamed"),
        }
    }
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Self {
        Self::Tcp(addr)
    }
}

impl From<tokio::net::unix::SocketAddr> for Addr {
    fn from(addr: tokio::net::unix::SocketAddr) -> Self {
        Self::Unix(addr.as_pathname().map(Arc::from))
    }
}

impl From<()> for Addr {
    fn from((): ()) -> Self {
        Self::Unnamed
    }
}
