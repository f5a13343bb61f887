use std::{
    ffi::OsStr,
    fmt,
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
};

use crate::{
    conn::{Addr, ConnInfo},
    middleware::proxy_protocol::{
        error::{EncodeError, HeaderError},
        rules::HeaderRules,
        tlv::{Tlv, Tlvs},
        v1, v2,
    },
};

/// The form of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary, and the only one with TLVs.
    V2,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "version 1",
            Self::V2 => "version 2",
        })
    }
}

/// On whose behalf a connection was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Command {
    /// The proxy's own, as for a health check; or it cannot say for whom (`UNKNOWN` of version 1). The addresses
    /// are those of the socket.
    Local,
    /// A client's.
    Proxy,
}

/// What the client spoke to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Transport {
    /// TCP, or a Unix stream.
    #[default]
    Stream,
    /// UDP, or Unix datagrams.
    Datagram,
}

/// One end of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum End {
    /// The client.
    Source,
    /// Whom the client reached: an address of the proxy.
    Destination,
}

impl End {
    fn of<T>(self, source: T, destination: T) -> T {
        match self {
            Self::Source => source,
            Self::Destination => destination,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// Both ends of the client's connection, which are of one family. An IPv4-mapped IPv6 address stays IPv6.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Addresses {
    /// None: those of the socket hold.
    #[default]
    Unspecified,
    /// IPv4.
    #[non_exhaustive]
    Inet4 {
        /// The client.
        source: SocketAddrV4,
        /// Whom it reached.
        destination: SocketAddrV4,
    },
    /// IPv6. Scope and flow are never sent.
    #[non_exhaustive]
    Inet6 {
        /// The client.
        source: SocketAddrV6,
        /// Whom it reached.
        destination: SocketAddrV6,
    },
    /// Unix sockets.
    #[non_exhaustive]
    Unix {
        /// The client, which usually has no name.
        source: UnixName,
        /// Whom it reached.
        destination: UnixName,
    },
}

impl Addresses {
    /// Two addresses with their ports.
    ///
    /// # Errors
    ///
    /// [`EncodeError::MixedFamilies`]: one is IPv4 and the other IPv6.
    pub fn inet(source: SocketAddr, destination: SocketAddr) -> Result<Self, EncodeError> {
        match (source, destination) {
            (SocketAddr::V4(source), SocketAddr::V4(destination)) => Ok(Self::Inet4 {
                source,
                destination,
            }),
            (SocketAddr::V6(source), SocketAddr::V6(destination)) => Ok(Self::Inet6 {
                source: bare(source),
                destination: bare(destination),
            }),
            _ => Err(EncodeError::MixedFamilies),
        }
    }

    /// Two Unix sockets.
    #[must_use]
    pub fn unix(source: UnixName, destination: UnixName) -> Self {
        Self::Unix {
            source,
            destination,
        }
    }

    /// The address of one end, if the family has any.
    pub(super) fn of(&self, end: End) -> Option<Addr> {
        match self {
            Self::Unspecified => None,
            Self::Inet4 {
                source,
                destination,
            } => Some(SocketAddr::V4(*end.of(source, destination)).into()),
            Self::Inet6 {
                source,
                destination,
            } => Some(SocketAddr::V6(*end.of(source, destination)).into()),
            Self::Unix {
                source,
                destination,
            } => {
                let path = end.of(source, destination).path();
                Some(Addr::Unix(path.map(Arc::from)))
            }
        }
    }
}

/// Without scope and flow, which have no place in a header.
fn bare(addr: SocketAddrV6) -> SocketAddrV6 {
    SocketAddrV6::new(*addr.ip(), addr.port(), 0, 0)
}

/// The name of a Unix socket: a path, an abstract name (which begins with a zero byte), or none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct UnixName {
    bytes: Box<[u8]>,
}

impl UnixName {
    /// A name of at most 108 bytes, which is all that a header and the system have room for. Zero bytes at the
    /// end of an abstract name cannot be told from padding, and are no part of it.
    ///
    /// # Errors
    ///
    /// [`EncodeError::BadUnixName`]: it is longer, or a path with a zero byte in it.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, EncodeError> {
        let name = name.as_ref();
        let is_abstract = name.first() == Some(&0);
        if name.len() > MAX_UNIX_NAME || (!is_abstract && name.contains(&0)) {
            return Err(EncodeError::BadUnixName { length: name.len() });
        }
        let end = name.iter().rposition(|byte| *byte != 0);
        Ok(Self {
            bytes: name[..end.map_or(0, |last| last + 1)].into(),
        })
    }

    /// The name of a path.
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn from_path(path: &Path) -> Result<Self, EncodeError> {
        Self::new(path.as_os_str().as_bytes())
    }

    /// Out of a field of a header: a path ends at its first zero byte, as it does for the kernel.
    pub(super) fn from_field(field: &[u8]) -> Self {
        let end = match field {
            [0, ..] => field
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1),
            _ => field
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(field.len()),
        };
        Self {
            bytes: field[..end].into(),
        }
    }

    /// The bytes of the name, without padding.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The path, unless the name is abstract or there is none.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        let is_path = self
            .bytes
            .first()
            .is_some_and(|first| *first != 0);
        is_path.then(|| Path::new(OsStr::from_bytes(&self.bytes)))
    }
}

/// A PROXY header: what a proxy says of the connection that it forwards.
///
/// ```
/// use tower_net::proxy_protocol::{Header, Version};
///
/// let header = Header::tcp(Version::V2, "192.0.2.7:4711".parse()?, "192.0.2.1:443".parse()?)?
///     .authority("example.com")?
///     .crc32c();
/// let wire = header.encode()?;
///
/// let (read, rest) = Header::parse(&wire)?;
/// assert_eq!(read.source(), header.source());
/// assert_eq!(read.tlvs().authority(), Some("example.com"));
/// assert!(rest.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub(super) version: Version,
    pub(super) command: Command,
    pub(super) transport: Transport,
    pub(super) addresses: Addresses,
    pub(super) tlvs: Tlvs,
}

impl Header {
    /// For a client's connection between `addresses`. Without any, a line of version 1 says `UNKNOWN`, which is
    /// as good as [`local`](Self::local).
    #[must_use]
    pub fn new(version: Version, addresses: Addresses) -> Self {
        let command = match (version, &addresses) {
            (Version::V1, Addresses::Unspecified) => Command::Local,
            _ => Command::Proxy,
        };
        Self {
            version,
            command,
            transport: Transport::Stream,
            addresses,
            tlvs: Tlvs::default(),
        }
    }

    /// For a client's TCP connection.
    ///
    /// # Errors
    ///
    /// [`EncodeError::MixedFamilies`]: one address is IPv4 and the other IPv6.
    pub fn tcp(
        version: Version,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Result<Self, EncodeError> {
        Ok(Self::new(version, Addresses::inet(source, destination)?))
    }

    /// For a connection of the proxy's own, as for a health check. Some receivers refuse the `UNKNOWN` that this
    /// is in version 1: the specification would rather have them sent the addresses of the socket.
    #[must_use]
    pub fn local(version: Version) -> Self {
        Self {
            command: Command::Local,
            ..Self::new(version, Addresses::Unspecified)
        }
    }

    /// Says of a connection that we accepted what is known of it: its client, and whom the client reached. What
    /// a proxy before us announced is passed on; its TLVs are not.
    ///
    /// A client without an address, or with one of another family than that which it reached, is
    /// [`local`](Self::local): a receiver then takes us for the client.
    #[must_use]
    pub fn announcing(version: Version, client: &ConnInfo) -> Self {
        let announced = client
            .proxy()
            .and_then(Self::destination);
        let reached = announced
            .as_ref()
            .unwrap_or_else(|| client.local());
        let addresses = match (client.peer(), reached) {
            (Addr::Tcp(source), Addr::Tcp(destination)) => {
                Addresses::inet(*source, *destination).ok()
            }
            (Addr::Unix(source), Addr::Unix(destination)) if version == Version::V2 => {
                let name = |path: &Option<Arc<Path>>| match path {
                    Some(path) => UnixName::from_path(path).ok(),
                    None => Some(UnixName::default()),
                };
                name(source)
                    .zip(name(destination))
                    .map(|(source, destination)| Addresses::unix(source, destination))
            }
            _ => None,
        };
        match addresses {
            Some(addresses) => Self::new(version, addresses),
            None => Self::local(version),
        }
    }

    /// The same for a client that sends datagrams.
    #[must_use]
    pub fn datagram(mut self) -> Self {
        self.transport = Transport::Datagram;
        self
    }

    /// Adds a TLV of any type.
    ///
    /// # Errors
    ///
    /// [`EncodeError::BadTlv`]: the value is longer than 65,535 bytes, or not what a registered type must have.
    pub fn tlv(mut self, kind: u8, value: impl AsRef<[u8]>) -> Result<Self, EncodeError> {
        self.tlvs.push(kind, value.as_ref())?;
        Ok(self)
    }

    /// Adds the protocol that the client speaks, by its ALPN name.
    ///
    /// # Errors
    ///
    /// As for [`tlv`](Self::tlv).
    pub fn alpn(self, protocol: impl AsRef<[u8]>) -> Result<Self, EncodeError> {
        self.tlv(Tlv::ALPN, protocol)
    }

    /// Adds the host that the client asked for, as in its SNI.
    ///
    /// # Errors
    ///
    /// As for [`tlv`](Self::tlv).
    pub fn authority(self, host: &str) -> Result<Self, EncodeError> {
        self.tlv(Tlv::AUTHORITY, host)
    }

    /// Adds a name for the connection, of at most 128 bytes, by which logs can be put together.
    ///
    /// # Errors
    ///
    /// As for [`tlv`](Self::tlv).
    pub fn unique_id(self, id: impl AsRef<[u8]>) -> Result<Self, EncodeError> {
        self.tlv(Tlv::UNIQUE_ID, id)
    }

    /// Adds a checksum of the whole header, which is computed when it is encoded. Twice is once.
    #[must_use]
    pub fn crc32c(mut self) -> Self {
        self.tlvs.want_checksum();
        self
    }

    /// The form.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether it stands for a client.
    #[must_use]
    pub fn command(&self) -> Command {
        self.command
    }

    /// What the client spoke to the proxy.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Both ends of the client's connection.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The client; `None` where the address of the socket holds. Of datagrams as well it is [`Addr::Tcp`].
    #[must_use]
    pub fn source(&self) -> Option<Addr> {
        self.addresses.of(End::Source)
    }

    /// Whom the client reached; `None` where the address of the socket holds.
    #[must_use]
    pub fn destination(&self) -> Option<Addr> {
        self.addresses.of(End::Destination)
    }

    /// What else the proxy says.
    #[must_use]
    pub fn tlvs(&self) -> &Tlvs {
        &self.tlvs
    }

    /// The bytes to send, all at once and before all others.
    ///
    /// # Errors
    ///
    /// See [`EncodeError`]. There are no bytes then.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        match self.version {
            Version::V1 => v1::encode(self),
            Version::V2 => v2::encode(self),
        }
    }

    /// Reads the header that `bytes` begin with, as a datagram does, by the default [`HeaderRules`]; returns it,
    /// and the bytes behind it.
    ///
    /// # Errors
    ///
    /// See [`HeaderError`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), HeaderError> {
        HeaderRules::default().parse(bytes)
    }
}

impl ConnInfo {
    /// The PROXY header that a trusted proxy sent for this connection: whom the client reached, and whatever else
    /// the proxy says of it. The client itself is the [`peer`](Self::peer).
    #[must_use]
    pub fn proxy(&self) -> Option<&Header> {
        self.facts.get()
    }
}

/// What a header has room for, as has the system (unix(7), `sun_path`).
pub(super) const MAX_UNIX_NAME: usize = 108;
