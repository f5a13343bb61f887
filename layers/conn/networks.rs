use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use ipnet::{IpNet, Ipv4Net};

use crate::base::error::ConfigError;

/// A set of networks: who is trusted, exempt, let in.
///
/// A network is `10.0.0.0/8`, `2001:db8::/32`, or an address alone for one host; bits behind the prefix are
/// ignored. An IPv4 network never has an IPv6 address in it nor the other way round, but one that is written
/// IPv4-mapped (`::ffff:10.0.0.0/104`) is the IPv4 network that it is, as are addresses.
///
/// ```
/// use tower_net::Networks;
///
/// let internal = Networks::parse(["10.0.0.0/8", "fd00::/8", "127.0.0.1"])?;
/// assert!(internal.contains("10.1.2.3".parse()?));
/// assert!(internal.contains("::ffff:10.1.2.3".parse()?));
/// assert!(!internal.contains("11.0.0.1".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    map: NetworkMap<()>,
}

impl Networks {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// All of `networks`.
    ///
    /// # Errors
    ///
    /// One of them is no network.
    pub fn parse<N: AsRef<str>>(
        networks: impl IntoIterator<Item = N>,
    ) -> Result<Self, ConfigError> {
        let mut set = Self::new();
        for network in networks {
            set.add(parse(network.as_ref())?);
        }
        Ok(set)
    }

    /// Adds one.
    pub fn add(&mut self, network: IpNet) {
        self.map.insert(network, ());
    }

    /// Whether `ip` is in any of them.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.map.get(ip).is_some()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

/// What a setting takes that is a set of networks: see [`parse`](Networks::parse).
impl<N: AsRef<str>, const K: usize> TryFrom<[N; K]> for Networks {
    type Error = ConfigError;

    fn try_from(networks: [N; K]) -> Result<Self, ConfigError> {
        Self::parse(networks)
    }
}

impl<N: AsRef<str>> TryFrom<&[N]> for Networks {
    type Error = ConfigError;

    fn try_from(networks: &[N]) -> Result<Self, ConfigError> {
        Self::parse(networks)
    }
}

impl<N: AsRef<str>> TryFrom<Vec<N>> for Networks {
    type Error = ConfigError;

    fn try_from(networks: Vec<N>) -> Result<Self, ConfigError> {
        Self::parse(networks)
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<T: IntoIterator<Item = IpNet>>(networks: T) -> Self {
        let mut set = Self::new();
        networks
            .into_iter()
            .for_each(|network| set.add(network));
        set
    }
}

/// Something for each network; what an address finds is what its longest network has.
///
/// One search for each prefix length that is in use, of which there are few: the time does not grow with the
/// number of networks to speak of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkMap<T> {
    v4: Family<T>,
    v6: Family<T>,
}

/// The longest prefixes first.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Family<T> {
    lengths: Vec<(u8, BTreeMap<u128, T>)>,
}

impl<T> Default for NetworkMap<T> {
    fn default() -> Self {
        let none = || Family {
            lengths: Vec::new(),
        };
        Self {
            v4: none(),
            v6: none(),
        }
    }
}

impl<T> NetworkMap<T> {
    /// Gives `network` a value; returns the one it had.
    pub(crate) fn insert(&mut self, network: IpNet, value: T) -> Option<T> {
        match canonical(network) {
            IpNet::V4(net) => {
                let bits = u32::from(net.network()).into();
                self.v4
                    .insert(net.prefix_len(), bits, value)
            }
            IpNet::V6(net) => {
                let bits = net.network().into();
                self.v6
                    .insert(net.prefix_len(), bits, value)
            }
        }
    }

    /// The value of the longest network that `ip` is in.
    pub(crate) fn get(&self, ip: IpAddr) -> Option<&T> {
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.v4.get(32, u32::from(ip).into()),
            IpAddr::V6(ip) => self.v6.get(128, ip.into()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.lengths.is_empty() && self.v6.lengths.is_empty()
    }
}

impl<T> Family<T> {
    fn insert(&mut self, prefix: u8, bits: u128, value: T) -> Option<T> {
        let found = self
            .lengths
            .binary_search_by(|(length, _)| prefix.cmp(length));
        let at = found.unwrap_or_else(|at| {
            self.lengths
                .insert(at, (prefix, BTreeMap::new()));
            at
        });
        self.lengths[at].1.insert(bits, value)
    }

    fn get(&self, width: u8, bits: u128) -> Option<&T> {
        self.lengths
            .iter()
            .find_map(|(prefix, networks)| {
                // A prefix of zero leaves nothing: a shift by the whole width has to be said.
                let behind = u32::from(width - prefix);
                let network = bits.checked_shr(behind).unwrap_or(0);
                let network = network.checked_shl(behind).unwrap_or(0);
                networks.get(&network)
            })
    }
}

/// Reads `10.0.0.0/8`, or an address alone.
pub(crate) fn parse(text: &str) -> Result<IpNet, ConfigError> {
    let text = text.trim();
    let host = || IpAddr::from_str(text).map(IpNet::from);
    IpNet::from_str(text)
        .or_else(|_| host())
        .map(canonical)
        .map_err(|_| ConfigError::new("networks", format!("has `{text}`, which is no network")))
}

/// Without bits behind the prefix, and IPv4 where it is IPv4-mapped.
fn canonical(network: IpNet) -> IpNet {
    let network = network.trunc();
    let IpNet::V6(net) = network else {
        return network;
    };
    let v4 = net
        .network()
        .to_ipv4_mapped()
        .zip(net.prefix_len().checked_sub(96));
    match v4.map(|(ip, prefix)| Ipv4Net::new(ip, prefix)) {
        Some(Ok(net)) => IpNet::V4(net),
        _ => network,
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (prefix, networks) in &self.map.v4.lengths {
            for bits in networks.keys() {
                let ip = IpAddr::from((*bits as u32).to_be_bytes());
                write!(f, "{separator}{ip}/{prefix}")?;
                separator = ", ";
            }
        }
        for (prefix, networks) in &self.map.v6.lengths {
            for bits in networks.keys() {
                let ip = IpAddr::from(bits.to_be_bytes());
                write!(f, "{separator}{ip}/{prefix}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}
