use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde_json::Value;
use tokio::net::UnixStream;
use tower::{ServiceBuilder, service_fn};
use tower_layer::Layer;
use tower_net::{
    Addr, CloseReason, Conn, ConnInfo,
    error::{BoxError, find},
    filter::{Denied, Filter, FilterHandle, FilterLayer, Rules},
    meter::MeterLayer,
};
use tower_service::Service;

use crate::support::{
    io::{Script, Witness},
    readings::recorded,
};

fn peer(ip: &str) -> Addr {
    Addr::from(SocketAddr::new(ip.parse().unwrap(), 4000))
}

fn from(ip: &str) -> Conn<Script> {
    Conn::new(Script::new(), peer(ip))
}

// === Who is let in

#[test]
fn the_longest_network_decides() {
    let rules = Rules::deny_all()
        .allow(["10.0.0.0/8", "10.66.66.0/24"])
        .and_then(|rules| rules.deny(["10.66.0.0/16"]))
        .unwrap();

    for (ip, allowed) in [
        ("10.1.1.1", true),
        ("10.66.1.1", false),
        ("10.66.66.1", true),
        ("11.0.0.1", false),
    ] {
        assert_eq!(rules.allows(&peer(ip)), allowed, "{ip}");
    }
}

#[test]
fn the_same_network_both_allowed_and_denied_is_denied_in_either_order() {
    let net = ["192.0.2.0/24"];
    let one = Rules::allow_all()
        .allow(net)
        .unwrap()
        .deny(net);
    let other = Rules::allow_all()
        .deny(net)
        .unwrap()
        .allow(net);

    for rules in [one, other] {
        assert!(
            !rules
                .unwrap()
                .allows(&peer("192.0.2.1"))
        );
    }
}

#[test]
fn one_host_is_judged_the_same_in_both_its_spellings() {
    let rules = Rules::allow_all()
        .deny(["192.0.2.0/24", "::ffff:198.51.100.0/120"])
        .unwrap();

    for ip in [
        "192.0.2.1",
        "::ffff:192.0.2.1",
        "198.51.100.9",
        "::ffff:198.51.100.9",
    ] {
        assert!(!rules.allows(&peer(ip)), "{ip}");
    }
}

#[test]
fn peers_without_an_address_are_among_the_others() {
    for nameless in [Addr::Unnamed, Addr::Unix(None)] {
        assert!(Rules::allow_all().allows(&nameless));
        assert!(!Rules::deny_all().allows(&nameless));
    }
    // Nor does every address there is have them in it.
    let everybody = Rules::deny_all()
        .allow(["0.0.0.0/0", "::/0"])
        .unwrap();
    assert!(!everybody.allows(&Addr::Unix(None)));
}

#[test]
fn what_is_no_network_is_refused_when_built_and_named() {
    for text in [
        "10.0.0.0/33",
        "::/129",
        "10.0.0",
        "here",
        "",
        "10.0.0.0/-1",
        "fe80::1%eth0",
    ] {
        let error = Rules::allow_all()
            .deny([text])
            .unwrap_err();

        assert!(
            error
                .to_string()
                .contains(&format!("`{text}`")),
            "{error}"
        );
    }
}

// === Vectors of others

const VECTORS: &str = include_str!("../vectors/networks.json");

#[test]
fn every_vector_is_met() {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    let vectors = all["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 6);
    for vector in vectors {
        let config = &vector["config"];
        if let Some(rule) = config["rule"].as_str() {
            let rules = Rules::deny_all().allow([rule]).unwrap();
            for (list, matches) in [("match", true), ("no_match", false)] {
                for ip in strings(&vector["expect"][list]) {
                    assert_eq!(rules.allows(&peer(ip)), matches, "{}: {ip}", vector["id"]);
                }
            }
            continue;
        }
        let rules = Rules::allow_all()
            .deny(strings(&config["reject"]))
            .unwrap();
        // Where the source is wrong, as for IPv6 prefixes, what is right holds.
        let expect = vector
            .get("recommend")
            .unwrap_or_else(|| &vector["expect"]);
        for (ip, verdict) in expect.as_object().unwrap() {
            assert_eq!(
                rules.allows(&peer(ip)),
                verdict == "accept",
                "{}: {ip}",
                vector["id"]
            );
        }
    }
}

fn strings(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap().iter();
    list.filter_map(Value::as_str).collect()
}

// === The layer

type Keeps = Filter<tower::util::BoxCloneService<Conn<Script>, Conn<Script>, BoxError>>;

fn keeps(rules: Rules) -> (Keeps, FilterHandle) {
    let (layer, handle) = FilterLayer::pair(rules);
    let inner = service_fn(async |conn: Conn<Script>| Ok(conn));
    (
        layer.layer(tower::util::BoxCloneService::new(inner)),
        handle,
    )
}

fn without(network: &str) -> Rules {
    Rules::allow_all()
        .deny([network])
        .unwrap()
}

#[tokio::test]
async fn who_is_denied_is_reset_before_a_byte_is_read_and_told_by_which_network() {
    let layer = FilterLayer::new(without("192.0.2.0/24"));
    let mut service = layer.layer(service_fn(async |conn: Conn<_>| Ok::<_, BoxError>(conn)));
    let (near, _far) = UnixStream::pair().unwrap();
    let (near, closed) = Witness::pair(near);
    let conn = Conn::new(near, peer("192.0.2.7"));
    let info = Arc::clone(conn.info());

    let refusing = service.call(conn);
    let reset_in_the_call = closed.is_reset();
    let error = refusing.await.unwrap_err();

    let denied = find::<Denied>(&*error).unwrap();
    assert_eq!(denied.network(), Some("192.0.2.0/24".parse().unwrap()));
    assert!(denied.never_started() && reset_in_the_call);
    assert_eq!(info.close_reason(), Some(CloseReason::Filter));
}

#[tokio::test]
async fn rules_are_swapped_for_every_clone_and_those_inside_stay() {
    let (mut service, handle) = keeps(Rules::allow_all());
    let mut clone = service.clone();
    let held = service.call(from("192.0.2.7")).await;

    let before = handle.swap(without("192.0.2.0/24"));

    assert!(
        service
            .call(from("192.0.2.7"))
            .await
            .is_err()
    );
    assert!(
        clone
            .call(from("192.0.2.7"))
            .await
            .is_err()
    );
    assert_eq!(held.unwrap().info().close_reason(), None);
    assert_eq!(
        (before, handle.rules()),
        (Rules::allow_all(), without("192.0.2.0/24"))
    );
}

#[tokio::test]
async fn it_goes_by_the_announced_peer_once_there_is_one() {
    let (mut service, _) = keeps(without("203.0.113.0/24"));
    let conn = from("10.0.0.1");
    conn.info()
        .announce_peer(peer("203.0.113.9"));

    assert!(service.call(conn).await.is_err());
    assert!(
        service
            .call(from("10.0.0.1"))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn refusals_are_counted_and_a_dry_run_counts_them_apart_and_refuses_nobody() {
    for (dry_run, [refused, spared], passed) in [(false, [2.0, 0.0], 1), (true, [0.0, 2.0], 3)] {
        let (layer, metrics) = recorded(|| FilterLayer::new(without("192.0.2.0/24")));
        let (meter, tally) = MeterLayer::pair("test");
        let mut service = ServiceBuilder::new()
            .layer(meter)
            .layer(layer.dry_run(dry_run))
            .service_fn(async |_: Conn<_>| Ok::<_, BoxError>(()));

        let mut admitted = 0;
        for ip in ["192.0.2.1", "192.0.2.2", "198.51.100.1"] {
            admitted += u32::from(service.call(from(ip)).await.is_ok());
        }

        let labels = [("reason", "filter")];
        assert_eq!(metrics.of("tower_net_refused_total", &labels), refused);
        assert_eq!(metrics.of("tower_net_dry_run_total", &labels), spared);
        assert_eq!(admitted, passed);
        let closed = tally
            .snapshot()
            .closed_for(CloseReason::Filter);
        assert_eq!(closed as f64, refused);
    }
}

#[tokio::test]
async fn the_instance_that_was_made_ready_is_the_one_called() {
    // A mock panics when it is called without having been made ready.
    let (inner, mut handle) = tower_test::mock::pair::<Conn<Script>, ()>();
    let mut service = FilterLayer::new(Rules::allow_all())
        .layer(inner)
        .clone();

    let ready = tower::ServiceExt::<Conn<Script>>::ready(&mut service).await;
    let call = ready.unwrap().call(from("192.0.2.1"));
    let (_conn, answer) = handle.next_request().await.unwrap();
    answer.send_response(());

    assert!(call.await.is_ok());
}

#[test]
fn what_is_known_of_a_peer_is_an_address_however_it_came() {
    let info = ConnInfo::new(peer("::ffff:192.0.2.1"), Addr::Unnamed);

    assert_eq!(info.peer().ip(), Some(IpAddr::from([192, 0, 2, 1])));
}
