//! Sets of networks, against the plain arithmetic of another implementation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tower_net::Networks;

use crate::support::random::Random;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn set(networks: &[&str]) -> Networks {
    Networks::parse(networks).unwrap()
}

/// An address near few others, so that chance meets networks.
fn address(random: &mut Random) -> IpAddr {
    let low = random.below(1 << 10) as u32;
    let high = random.pick(&[0, 10, 0x7fff, 0x8000, 0xffff]) << 16;
    let v4 = Ipv4Addr::from(high | low << random.below(7));
    let wide = u128::from(random.pick(&[0_u16, 0x2001, 0xfe80, 0xffff])) << 112;
    let bits = wide | u128::from(low) << random.below(100);
    match random.below(3) {
        0 => v4.into(),
        1 => v4.to_ipv6_mapped().into(),
        _ => Ipv6Addr::from(bits).into(),
    }
}

fn network(random: &mut Random) -> IpNet {
    match address(random).to_canonical() {
        IpAddr::V4(ip) => {
            let prefix = random.pick(&[0, 1, 8, 15, 16, 24, 25, 31, 32]);
            IpNet::V4(Ipv4Net::new(ip, prefix).unwrap())
        }
        IpAddr::V6(ip) => {
            let prefix = random.pick(&[0, 1, 16, 52, 64, 95, 96, 97, 127, 128]);
            IpNet::V6(Ipv6Net::new(ip, prefix).unwrap())
        }
    }
}

/// Whether the bits in front are the same: the definition, bit by bit.
fn is_in(network: &IpNet, ip: IpAddr) -> bool {
    let (ours, theirs, width) = match (network.addr(), ip.to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a).into(), u32::from(b).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
        _ => return false,
    };
    let bit = |bits: u128, at: u8| bits >> (width - 1 - at) & 1;
    (0..network.prefix_len()).all(|at| bit(ours, at) == bit(theirs, at))
}

#[test]
fn an_address_is_in_a_set_if_it_is_in_one_of_its_networks() {
    let mut random = Random::new(99);
    for _ in 0..400 {
        let networks: Vec<IpNet> = (0..random.among(0, 12))
            .map(|_| network(&mut random))
            .collect();
        let set: Networks = networks.iter().copied().collect();
        let written = networks.iter().map(IpNet::to_string);
        let parsed = Networks::parse(written).unwrap();
        assert_eq!(set, parsed);
        for _ in 0..200 {
            let ip = address(&mut random);
            let expected = networks.iter().any(|network| {
                let theirs = network.contains(&ip.to_canonical());
                assert_eq!(theirs, is_in(network, ip), "{network} and {ip}");
                theirs
            });
            assert_eq!(set.contains(ip), expected, "{ip} in {networks:?}");
        }
    }
}

#[test]
fn every_prefix_ends_where_it_ends() {
    for prefix in 0..=32 {
        let network = Ipv4Net::new(Ipv4Addr::new(10, 20, 30, 40), prefix).unwrap();
        let set: Networks = [IpNet::V4(network)]
            .into_iter()
            .collect();
        let (first, last) = (u32::from(network.network()), u32::from(network.broadcast()));
        for (address, inside) in [
            (Some(first), true),
            (Some(last), true),
            (first.checked_sub(1), false),
            (last.checked_add(1), false),
        ] {
            let Some(address) = address else { continue };
            let ip = Ipv4Addr::from(address);
            assert_eq!(set.contains(ip.into()), inside, "{ip} in {network}");
            assert_eq!(set.contains(ip.to_ipv6_mapped().into()), inside);
        }
    }
    for prefix in 0..=128 {
        let network = Ipv6Net::new("2001:db8:a:b:c:d:e:f".parse().unwrap(), prefix).unwrap();
        let set: Networks = [IpNet::V6(network)]
            .into_iter()
            .collect();
        let (first, last) = (
            u128::from(network.network()),
            u128::from(network.broadcast()),
        );
        for (address, inside) in [
            (Some(first), true),
            (Some(last), true),
            (first.checked_sub(1), false),
            (last.checked_add(1), false),
        ] {
            let Some(address) = address else { continue };
            let ip = Ipv6Addr::from(address);
            // The first of all is no mapped address, nor is any other here.
            assert_eq!(set.contains(ip.into()), inside, "{ip} in {network}");
        }
    }
}

#[test]
fn all_of_one_family_is_none_of_the_other() {
    let (v4, v6) = (set(&["0.0.0.0/0"]), set(&["::/0"]));
    for address in ["0.0.0.0", "10.1.2.3", "255.255.255.255", "::ffff:10.1.2.3"] {
        assert!(
            v4.contains(ip(address)) && !v6.contains(ip(address)),
            "{address}"
        );
    }
    for address in [
        "::",
        "::1",
        "::10.1.2.3",
        "2001:db8::1",
        "ffff::",
        "64:ff9b::a01:203",
    ] {
        assert!(
            v6.contains(ip(address)) && !v4.contains(ip(address)),
            "{address}"
        );
    }
}

#[test]
fn a_mapped_spelling_is_the_network_that_it_maps() {
    for (mapped, plain) in [
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:10.1.2.3/127", "10.1.2.2/31"),
    ] {
        assert_eq!(set(&[mapped]), set(&[plain]), "{mapped}");
    }
    // Shorter, it is no mapping any more, but a part of IPv6, in which no IPv4 address is.
    let wide = set(&["::ffff:0:0/95"]);
    assert!(wide.contains(ip("::fffe:a01:203")) && !wide.contains(ip("::ffff:10.1.2.3")));
}

#[test]
fn one_bit_behind_the_prefix_of_a_wide_network_is_outside() {
    // Masked by the network's own address instead of its mask, the first of these would be inside.
    let set = set(&["2001:db8:abcd::/52"]);

    assert!(!set.contains(ip("2001:db8:abcd:1000::")));
    assert!(set.contains(ip("2001:db8:abcd:fff:ffff:ffff:ffff:ffff")));
}

#[test]
fn what_is_written_is_read_and_read_back() {
    let networks = set(&[
        " 10.9.8.7/8 ",
        "192.0.2.1",
        "2001:db8::1/32",
        "::1",
        "10.0.0.0/8",
    ]);

    assert_eq!(
        networks.to_string(),
        "192.0.2.1/32, 10.0.0.0/8, ::1/128, 2001:db8::/32"
    );
    assert_eq!(
        set(&networks
            .to_string()
            .split(", ")
            .collect::<Vec<_>>()),
        networks
    );
    assert!(Networks::new().is_empty() && !networks.is_empty());
    assert!(!Networks::new().contains(ip("10.0.0.1")));
}

#[test]
fn what_is_no_network_is_refused_by_name() {
    for text in [
        "",
        "10.0.0",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/-1",
        "010.0.0.1",
        "fe80::1%lo",
        "host",
    ] {
        let error = Networks::parse([text]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("`{text}`")),
            "{error}"
        );
    }
}
