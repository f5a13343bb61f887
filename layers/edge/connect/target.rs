use std::{
    convert::Infallible,
    error::Error,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    str::FromStr,
    sync::Arc,
};

/// Where to connect: a host and a port.
///
/// It is made from text, `example.org:443`, `192.0.2.1:443` or `[2001:db8::1]:443`; from a host and a port,
/// `("example.org", 443)`; or from an address. A target of your own that says one of these with `TryFrom` or `From`
/// is as good for a [`TcpConnector`](crate::connect::TcpConnector).
///
/// Two targets are equal if they are written the same but for upper and lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    host: Host,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Host {
    Addr(SocketAddr),
    Name(Name, u16),
}

impl Target {
    /// A name and a port.
    ///
    /// # Errors
    ///
    /// A port of zero.
    pub fn new(name: Name, port: u16) -> Result<Self, TargetError> {
        if port == 0 {
            return Err(TargetError::new(name.as_str(), NO_PORT));
        }
        Ok(Self {
            host: Host::Name(name, port),
        })
    }

    /// The name to look up; `None` of an address.
    #[must_use]
    pub fn name(&self) -> Option<&Name> {
        match &self.host {
            Host::Name(name, _) => Some(name),
            Host::Addr(_) => None,
        }
    }

    /// The address, of which nothing is looked up; `None` of a name.
    #[must_use]
    pub fn addr(&self) -> Option<SocketAddr> {
        match &self.host {
            Host::Addr(addr) => Some(*addr),
            Host::Name(..) => None,
        }
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match &self.host {
            Host::Addr(addr) => addr.port(),
            Host::Name(_, port) => *port,
        }
    }

    /// What the host of a pair is, which has no port of its own.
    fn of_host(host: &str, port: u16) -> Result<Self, TargetError> {
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let addr = match bare {
            Some(bare) => bare.parse().map(IpAddr::V6).ok(),
            None => host.parse().ok(),
        };
        match addr {
            Some(addr) => Self::of_addr(SocketAddr::new(addr, port), host),
            None => Self::new(Name::try_from(host)?, port),
        }
    }

    fn of_addr(addr: SocketAddr, text: &str) -> Result<Self, TargetError> {
        if addr.port() == 0 {
            return Err(TargetError::new(text, NO_PORT));
        }
        Ok(addr.into())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Addr(addr) => addr.fmt(f),
            Host::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if let Ok(addr) = text.parse() {
            return Self::of_addr(addr, text);
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| TargetError::new(text, NO_PORT))?;
        if host.contains([':', '[', ']']) {
            return Err(TargetError::new(text, BAD_ADDRESS));
        }
        // A sign would be a number to the standard library.
        let port = port
            .parse()
            .ok()
            .filter(|_| {
                port.bytes()
                    .all(|byte| byte.is_ascii_digit())
            })
            .ok_or_else(|| TargetError::new(text, BAD_PORT))?;
        Self::new(Name::try_from(host)?, port)
    }
}

impl TryFrom<&str> for Target {
    type Error = TargetError;

    fn try_from(text: &str) -> Result<Self, TargetError> {
        text.parse()
    }
}

impl TryFrom<String> for Target {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, TargetError> {
        text.parse()
    }
}

impl TryFrom<(&str, u16)> for Target {
    type Error = TargetError;

    fn try_from((host, port): (&str, u16)) -> Result<Self, TargetError> {
        Self::of_host(host, port)
    }
}

impl TryFrom<(String, u16)> for Target {
    type Error = TargetError;

    fn try_from((host, port): (String, u16)) -> Result<Self, TargetError> {
        Self::of_host(&host, port)
    }
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self {
            host: Host::Addr(addr),
        }
    }
}

macro_rules! from_addr {
    ($($addr:ty),*) => {
        $(
            impl From<$addr> for Target {
                fn from(addr: $addr) -> Self {
                    SocketAddr::from(addr).into()
                }
            }
        )*
    };
}

from_addr!(
    SocketAddrV4,
    SocketAddrV6,
    (IpAddr, u16),
    (Ipv4Addr, u16),
    (Ipv6Addr, u16)
);

/// A host name that can be looked up: in lower case, cheap to clone.
///
/// Labels of 1 to 63 letters, digits, `-` and `_`, at most 253 bytes in all, with a dot at the end or without. A name
/// of other letters is written in its ASCII form (`xn--…`). What ends in a number, as `127.1` does, is no name: some
/// resolvers would read an address out of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// As it is written, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same without the dot at the end, as TLS and HTTP say it.
    #[must_use]
    pub fn without_dot(&self) -> &str {
        self.0
            .strip_suffix('.')
            .unwrap_or(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<&str> for Name {
    type Error = TargetError;

    fn try_from(text: &str) -> Result<Self, TargetError> {
        let bare = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            (1..=LABEL).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let last = bare.rsplit('.').next().unwrap_or(bare);
        if bare.len() > NAME || !bare.split('.').all(is_label) {
            return Err(TargetError::new(text, BAD_NAME));
        }
        if is_number(last) {
            return Err(TargetError::new(text, BAD_ADDRESS));
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

/// Decimal or hexadecimal, as the oldest of the resolvers reads a part of an address.
fn is_number(label: &str) -> bool {
    let hex = label
        .strip_prefix("0x")
        .or_else(|| label.strip_prefix("0X"));
    match hex {
        Some(digits) => digits
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit()),
        None => label
            .bytes()
            .all(|byte| byte.is_ascii_digit()),
    }
}

/// A text is no [`Target`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetError {
    text: Box<str>,
    problem: &'static str,
}

impl TargetError {
    fn new(text: &str, problem: &'static str) -> Self {
        // Enough to know it again, and no more of what may be anything.
        let text = text
            .chars()
            .take(SHOWN)
            .collect::<String>();
        Self {
            text: text.into(),
            problem,
        }
    }

    /// The text, of which at most 64 characters are kept.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What is wrong with it.
    #[must_use]
    pub fn problem(&self) -> &'static str {
        self.problem
    }
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no target: {}", self.text, self.problem)
    }
}

impl Error for TargetError {}

/// For what is a target already.
impl From<Infallible> for TargetError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl From<TargetError> for io::Error {
    fn from(error: TargetError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

const NO_PORT: &str = "it has no port";
const BAD_PORT: &str = "its port is no number from 1 to 65535";
const BAD_NAME: &str = "its host is no name";
const BAD_ADDRESS: &str = "its host is neither a name nor an address, which of IPv6 is in brackets";

/// RFC 1035, section 2.3.4.
const LABEL: usize = 63;
const NAME: usize = 253;

const SHOWN: usize = 64;
