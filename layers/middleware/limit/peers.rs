//! Which peer a connection counts for.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    base::error::ConfigError,
    conn::{ConnInfo, Networks},
};

/// Who is counted, and as what.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    /// An IPv6 peer is a network of this length.
    pub(super) ipv6_prefix: u8,
    pub(super) exempt: Arc<Networks>,
    /// Peers without an IP address are counted, as one.
    pub(super) unnamed: bool,
}

/// What a connection counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    For(u128),
    Exempt,
    /// There is no IP address to count by.
    ForNobody,
}

impl Peers {
    pub(super) fn of(&self, info: &ConnInfo) -> Counts {
        let Some(ip) = info.peer().ip() else {
            return if self.unnamed {
                Counts::For(UNNAMED)
            } else {
                Counts::ForNobody
            };
        };
        if !self.exempt.is_empty() && self.exempt.contains(ip) {
            return Counts::Exempt;
        }
        Counts::For(key(ip, self.ipv6_prefix))
    }
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            ipv6_prefix: IPV6_PREFIX,
            exempt: Arc::default(),
            unnamed: false,
        }
    }
}

/// A peer that is remembered; see the handles' `top`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TrackedPeer {
    network: Option<IpNet>,
    used: u64,
}

impl TrackedPeer {
    pub(super) fn new(key: u128, ipv6_prefix: u8, used: u64) -> Self {
        Self {
            network: network(key, ipv6_prefix),
            used,
        }
    }

    /// The peer's network; `None` stands for all peers without an IP address.
    #[must_use]
    pub fn network(&self) -> Option<IpNet> {
        self.network
    }

    /// How much it has: connections open, or connections of the burst that are not refilled yet.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used
    }
}

/// The key of an address: a canonical one, so that one host has one key. Never zero.
fn key(ip: IpAddr, ipv6_prefix: u8) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        // Only the unspecified address has no bits, and it is nobody's.
        IpAddr::V6(ip) => (ip.to_bits() & mask(ipv6_prefix)).max(1),
    }
}

/// The network that a key stands for.
pub(super) fn network(key: u128, ipv6_prefix: u8) -> Option<IpNet> {
    if key == UNNAMED {
        return None;
    }
    if key >> 32 == 0xffff {
        let ip = Ipv4Addr::from_bits(key as u32);
        return Some(Ipv4Net::from(ip).into());
    }
    let ip = Ipv6Addr::from_bits(key);
    let network = Ipv6Net::new(ip, ipv6_prefix).ok()?;
    Some(network.trunc().into())
}

fn mask(prefix: u8) -> u128 {
    u128::MAX << (128 - u32::from(prefix))
}

pub(super) fn check_prefix(prefix: u8) -> Result<u8, ConfigError> {
    if (1..=128).contains(&prefix) {
        return Ok(prefix);
    }
    Err(ConfigError::new("ipv6_prefix", "must be from 1 to 128"))
}

pub(super) fn check_capacity(peers: usize) -> Result<usize, ConfigError> {
    match peers {
        0 => Err(ConfigError::zero("capacity")),
        1..=MOST => Ok(peers),
        _ => {
            let problem = format!("must be at most {MOST}, which takes 2.4 GB");
            Err(ConfigError::new("capacity", problem))
        }
    }
}

/// Peers without an IP address. A multicast address, which no peer can have.
const UNNAMED: u128 = u128::MAX;

/// What a provider gives one customer at least (RFC 6177): a host may take any address in it, and take another for
/// each connection (RFC 8981).
const IPV6_PREFIX: u8 = 64;

/// More than the descriptors of most processes: who has a connection open is not forgotten.
pub(super) const CAPACITY: usize = 65_536;

const MOST: usize = 1 << 26;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_network_and_back() {
        for (ip, prefix, expected) in [
            ("192.0.2.1", 64, "192.0.2.1/32"),
            ("2001:db8:1:2:3::4", 64, "2001:db8:1:2::/64"),
            ("2001:db8:1:2:3::4", 128, "2001:db8:1:2:3::4/128"),
            ("2001:db8:1:2:3::4", 1, "::/1"),
            ("::1", 64, "::/64"),
            ("::1", 128, "::1/128"),
            ("fe80::1", 10, "fe80::/10"),
        ] {
            let key = key(ip.parse().unwrap(), prefix);

            let network = network(key, prefix).unwrap();
            assert_eq!((network.to_string().as_str(), key == 0), (expected, false));
        }
        assert_eq!(network(UNNAMED, 64), None);
    }
}
