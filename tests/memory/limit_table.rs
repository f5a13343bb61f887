//! The tables of the limits for each peer, when more come than they hold.

use std::{
    env, fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
    task::Poll,
};

use tokio_test::task;
use tower::{ServiceExt, service_fn, util::BoxCloneService};
use tower_layer::Layer;
use tower_net::{
    Conn,
    error::BoxError,
    io::GuardedIo,
    limit::{ConnectRateLayer, PeerPlace, PerPeerLimit, PerPeerLimitLayer},
};
use tower_service::Service;

use crate::support::{io::Script, readings::recorded};

type Held = Conn<GuardedIo<Script, PeerPlace>>;
type Holds = PerPeerLimit<BoxCloneService<Held, Held, BoxError>>;

const EVICTIONS: &str = "tower_net_peer_table_evictions_total";
const HOSTILE: u128 = 0x2001_0db8_0bad << 80;

fn holds(layer: &PerPeerLimitLayer) -> Holds {
    layer.layer(service_fn(async |conn: Held| Ok(conn)).boxed_clone())
}

fn conn(ip: impl Into<IpAddr>) -> Conn<Script> {
    Conn::new(Script::new(), SocketAddr::new(ip.into(), 4000))
}

/// What comes of a connection, which it does in its first poll.
fn call<S, I>(service: &mut S, ip: I) -> Result<S::Response, S::Error>
where
    S: Service<Conn<Script>>,
    I: Into<IpAddr>,
{
    match task::spawn(service.call(conn(ip))).poll() {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("neither served nor refused"),
    }
}

/// The n-th network of one hostile /48.
fn hostile(network: u128) -> Ipv6Addr {
    Ipv6Addr::from_bits(HOSTILE | network << 64 | 1)
}

/// The n-th of all networks.
fn anybody(network: u128) -> Ipv6Addr {
    Ipv6Addr::from_bits((0x2001 << 112) | (network << 64))
}

fn good(host: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 | host)
}

#[tokio::test]
async fn a_table_for_so_many_peers_holds_them() {
    for peers in [1, 10, 1_000, 30_000] {
        let (layer, metrics) = recorded(|| {
            let layer = PerPeerLimitLayer::new(1).unwrap();
            layer.capacity(peers).unwrap()
        });
        let mut service = holds(&layer);

        let held: Vec<_> = (0..peers as u32)
            .map(|host| call(&mut service, good(host)).unwrap())
            .collect();

        // One in a million is forgotten, which is not one in any of these runs; chance decides.
        let forgotten = metrics.of(EVICTIONS, &[("reason", "per_peer_limit")]);
        assert!(forgotten <= 2.0, "{forgotten} of {peers}");
        assert!(layer.handle().peers() + 2 >= peers);
        drop(held);
        assert_eq!(layer.handle().peers(), 0);
    }
}

#[tokio::test]
async fn a_hostile_network_keeps_nobody_out_and_is_not_forgotten_for_its_worst() {
    let (layer, metrics) = recorded(|| {
        let layer = PerPeerLimitLayer::new(3).unwrap();
        layer.capacity(1_000).unwrap()
    });
    let mut service = holds(&layer);
    let worst = hostile(0xffff);
    let _worst_held = [(); 3].map(|()| call(&mut service, worst).unwrap());
    let _known = call(&mut service, good(1)).unwrap();

    let crowd: Vec<_> = (0..20_000)
        .map(|network| call(&mut service, hostile(network)).unwrap())
        .collect();

    assert!(call(&mut service, worst).is_err());
    assert!(call(&mut service, good(1)).is_ok());
    assert!(call(&mut service, good(2)).is_ok());
    assert_eq!(layer.handle().top(1)[0].used(), 3);
    let forgotten = metrics.of(EVICTIONS, &[("reason", "per_peer_limit")]);
    assert!(forgotten >= 18_000.0, "{forgotten}");
    drop(crowd);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_sources_do_not_hide_the_one_that_connects_too_fast() {
    let (layer, metrics) = recorded(|| {
        let layer = ConnectRateLayer::new(1.0, 10).unwrap();
        layer.capacity(1_000).unwrap()
    });
    let mut service = layer.layer(service_fn(async |conn: Conn<Script>| {
        drop(conn);
        Ok::<_, BoxError>(())
    }));
    let worst = hostile(0xffff);
    while call(&mut service, worst).is_ok() {}
    assert!(call(&mut service, good(1)).is_ok());

    for network in 0..100_000 {
        let source = anybody(network);
        assert!(call(&mut service, source).is_ok());
    }

    assert!(call(&mut service, worst).is_err());
    assert!(call(&mut service, good(1)).is_ok());
    assert_eq!(layer.handle().top(1)[0].used(), 10);
    assert!(metrics.of(EVICTIONS, &[("reason", "connect_rate")]) >= 90_000.0);
}

#[tokio::test]
async fn who_was_forgotten_begins_anew_and_what_it_had_frees_no_place() {
    // One bucket of sixteen slots for all.
    let layer = PerPeerLimitLayer::new(1).unwrap();
    let layer = layer.capacity(8).unwrap();
    let (mut service, handle) = (holds(&layer), layer.handle());
    let forgotten = call(&mut service, good(0)).unwrap();
    let mut crowd = Vec::new();
    while call(&mut service, good(0)).is_err() {
        crowd.push(call(&mut service, good(1_000 + crowd.len() as u32)).unwrap());
        assert!(crowd.len() < 10_000, "it is never forgotten");
    }

    // By now it was let in once more, and has gone again.
    let anew = call(&mut service, good(0)).unwrap();
    let peers = handle.peers();
    drop(forgotten);

    assert_eq!(handle.peers(), peers);
    assert!(call(&mut service, good(0)).is_err());
    drop((anew, crowd));
    assert_eq!(handle.peers(), 0);
}

#[test]
fn a_table_takes_what_it_says_and_no_more_whoever_comes() {
    let at_capacity = |peers| {
        let layer = PerPeerLimitLayer::new(1).unwrap();
        let handle = layer.capacity(peers).unwrap().handle();
        handle.table_bytes() as f64 / peers as f64
    };

    assert!(at_capacity(1 << 20) <= 36.1);
    assert!(at_capacity(65_536) <= 36.6);
    let rate = ConnectRateLayer::new(1.0, 1).unwrap();
    assert_eq!(
        rate.handle().table_bytes(),
        PerPeerLimitLayer::new(1)
            .unwrap()
            .handle()
            .table_bytes()
    );
}

// === In a process of its own, whose memory is nobody else's

/// Runs the test of this name again, alone, where it says the number that `run` comes to; the first run gets it.
fn alone(test: &str, run: impl FnOnce() -> u64) -> Option<u64> {
    if env::var_os(ALONE).is_some() {
        let (number, mut out) = (run(), io::stdout());
        writeln!(out, "child: {number}").unwrap();
        return None;
    }
    let output = Command::new(env::current_exe().unwrap())
        .args([
            &format!("limit_table::{test}"),
            "--exact",
            "--test-threads=1",
        ])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let (_, said) = text.split_once("child: ").unwrap();
    Some(
        said.lines()
            .next()
            .unwrap()
            .parse()
            .unwrap(),
    )
}

const ALONE: &str = "TOWER_NET_TEST_ALONE";

/// Resident memory in KiB, but for the pages of the program itself. What the pages come to, and not the running count,
/// which lags by some of them.
fn resident() -> u64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"));
    let number = line
        .unwrap()
        .trim_end_matches("kB")
        .trim();
    number.parse().unwrap()
}

fn sources(service: &mut impl Service<Conn<Script>>, from: u128, to: u128) {
    for network in from..to {
        let _gone = call(service, anybody(network));
    }
}

#[test]
fn millions_of_sources_leave_memory_as_it_was() {
    let grown = alone("millions_of_sources_leave_memory_as_it_was", || {
        let inner = service_fn(async |_| Ok::<_, BoxError>(()));
        let rate = ConnectRateLayer::new(1.0, 1).unwrap();
        let limit = PerPeerLimitLayer::new(1).unwrap();
        let mut service = rate.layer(limit.layer(inner));

        // The tables are full after these, and built without optimisation ten million take half a minute; what they
        // do, the next million does. `benches/rivals` goes through all of them.
        sources(&mut service, 0, 300_000);
        let early = resident();
        sources(&mut service, 300_000, 1_300_000);
        resident().saturating_sub(early)
    });

    // One byte for each of the later ones would be 976 KiB.
    assert!(grown.is_none_or(|grown| grown < 256), "{grown:?} KiB");
}

#[test]
fn a_table_takes_nothing_before_somebody_comes_and_little_for_the_first() {
    let test = "a_table_takes_nothing_before_somebody_comes_and_little_for_the_first";
    let grown = alone(test, || {
        let inner = service_fn(async |_| Ok::<_, BoxError>(()));
        let early = resident();
        let limit = PerPeerLimitLayer::new(1).unwrap();
        let limit = limit.capacity(1 << 24).unwrap();
        let mut service = limit.layer(inner);

        sources(&mut service, 0, 10);
        assert!(limit.handle().table_bytes() > 500 << 20);
        resident().saturating_sub(early)
    });

    assert!(grown.is_none_or(|grown| grown < 256), "{grown:?} KiB");
}

#[test]
fn twenty_thousand_refusals_leave_memory_as_it_was() {
    let grown = alone("twenty_thousand_refusals_leave_memory_as_it_was", || {
        let mut service = holds(&PerPeerLimitLayer::new(1).unwrap());
        let _held = call(&mut service, good(1)).unwrap();
        let mut refuse = |times| {
            for _ in 0..times {
                assert!(call(&mut service, good(1)).is_err());
            }
        };

        refuse(2_000);
        let early = resident();
        refuse(20_000);
        resident().saturating_sub(early)
    });

    assert!(grown.is_none_or(|grown| grown < 64), "{grown:?} KiB");
}
