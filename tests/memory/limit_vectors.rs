//! The vectors that others test their connection limits with: each is met, or decided otherwise for a reason.

use std::{net::SocketAddr, sync::Barrier, task::Poll};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::{Duration, Instant, sleep},
};
use tokio_test::task;
use tower::{ServiceExt, service_fn, util::BoxCloneService};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn,
    error::{BoxError, find},
    io::{GuardedIo, Io},
    limit::{
        ConnectRateLayer, ConnectionLimitLayer, PeerFull, PeerPlace, PerPeerLimit,
        PerPeerLimitLayer, Place, Surplus,
    },
};
use tower_service::Service;

use crate::support::{io::Script, readings::recorded, service::secs};

const VECTORS: &str = include_str!("../vectors/limits.json");

#[tokio::test(start_paused = true)]
async fn every_vector_is_met() {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    let vectors = all["vectors"].as_array().unwrap();

    for vector in vectors {
        let (config, expect) = (&vector["config"], &vector["expect"]);
        let id = vector["id"].as_str().unwrap();
        match id.strip_prefix("limit-conn-").unwrap() {
            "one-connection-per-ip" => one_connection(number(&config["per_ip"]), expect),
            "two-connections-of-one-ip-racing" => racing(number(&config["per_ip"]), expect),
            "per-ip-limit-1-with-http-farewell" => {
                farewell(number(&config["per_ip"]), expect).await;
            }
            "ipv6-peers-under-the-per-ip-limit" => {
                ipv6(number(&config["per_ip"]), &vector["recommend"]);
            }
            "tracked-entries-do-not-expire" => tracked(number(&config["expire_s"])).await,
            "connection-rate-per-source" => connection_rate(config, expect),
            "listener-rate-limit-defers-instead-of-refusing" => {
                deferred(number(&config["rate"])).await;
            }
            "delayed-rejection" => delayed(config).await,
            "permit-lives-with-the-io-object" => permit(number(&config["max"])).await,
            _ => panic!("{id} is not run"),
        }
    }
    assert_eq!(vectors.len(), 9);
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

type Held<I = Script> = Conn<GuardedIo<I, PeerPlace>>;
type Holds<I = Script> = PerPeerLimit<BoxCloneService<Held<I>, Held<I>, BoxError>>;

fn per_peer(limit: usize) -> PerPeerLimitLayer {
    PerPeerLimitLayer::new(limit).unwrap()
}

fn holds<I: Io>(layer: &PerPeerLimitLayer) -> Holds<I> {
    layer.layer(service_fn(async |conn: Held<I>| Ok(conn)).boxed_clone())
}

fn peer(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), 4000)
}

fn conn(ip: &str) -> Conn<Script> {
    Conn::new(Script::new(), peer(ip))
}

fn open(service: &mut Holds, ip: &str) -> Result<Held, BoxError> {
    match task::spawn(service.call(conn(ip))).poll() {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("neither served nor refused"),
    }
}

fn one_connection(limit: usize, expect: &Value) {
    let mut service = holds(&per_peer(limit));
    let mut held = Vec::new();
    let mut sequence = Vec::new();

    for ip in ["91.92.93.1", "91.92.93.2", "91.92.93.1", "-", "91.92.93.1"] {
        if ip == "-" {
            drop(held.remove(0));
            sequence.push("-");
            continue;
        }
        match open(&mut service, ip) {
            Ok(conn) => {
                held.push(conn);
                sequence.push("accept");
            }
            Err(_) => sequence.push("reject"),
        }
    }

    assert_eq!(expect["sequence"], json!(sequence));
}

fn racing(limit: usize, expect: &Value) {
    let (layer, start, met) = (per_peer(limit), Barrier::new(2), Barrier::new(2));
    let race = || {
        let mut service = holds(&layer);
        let mut served = Vec::new();
        for _ in 0..10_000 {
            start.wait();
            let held = open(&mut service, "91.92.93.1").ok();
            served.push(usize::from(held.is_some()));
            met.wait();
            drop(held);
        }
        served
    };
    let (one, other) = std::thread::scope(|scope| {
        let threads = (scope.spawn(race), scope.spawn(race));
        (threads.0.join().unwrap(), threads.1.join().unwrap())
    });

    let each = number(&expect["active_each_round"]);
    let active = one.iter().zip(other);
    assert!(
        active
            .into_iter()
            .all(|(one, other)| one + other == each)
    );
    assert_eq!(layer.handle().peers(), 0);
}

/// A server that answers each line, or refuses with a status line.
async fn farewell(limit: usize, expect: &Value) {
    let status = expect["second"].as_str().unwrap();
    let layer = per_peer(limit).surplus(Surplus::last_word(format!("HTTP/1.1 {status}\r\n\r\n")));
    let answers = service_fn(async |mut conn: Held<DuplexStream>| {
        while conn.read_u8().await.is_ok() {
            conn.write_all(b"200").await?;
        }
        Ok::<_, BoxError>(())
    });
    let mut service = layer.layer(answers);
    let mut connect = || {
        let (near, far) = duplex(256);
        let _served = tokio::spawn(service.call(Conn::new(near, peer("10.0.0.1"))));
        far
    };
    let (mut first, mut second) = (connect(), connect());

    let mut heard = String::new();
    second
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    second
        .read_to_string(&mut heard)
        .await
        .unwrap();
    first.write_all(b"x").await.unwrap();
    let mut answer = [0; 3];
    first
        .read_exact(&mut answer)
        .await
        .unwrap();

    assert_eq!(heard, format!("HTTP/1.1 {status}\r\n\r\n"));
    assert_eq!(&answer, b"200");
}

fn ipv6(limit: usize, recommend: &Value) {
    let mut service = holds(&per_peer(limit));
    let mut held = Vec::new();

    let rejected = (0..10).filter(|_| match open(&mut service, "::1") {
        Ok(conn) => {
            held.push(conn);
            false
        }
        Err(_) => true,
    });
    let rejected = rejected.count();

    let rule = recommend["result"].as_str().unwrap();
    assert!(
        rule.starts_with(&format!("{rejected} rejected")),
        "{rejected}"
    );
}

/// With us nothing is left once the last connection has ended: there is nothing to expire.
async fn tracked(expire: usize) {
    let layer = per_peer(1);
    let held = open(&mut holds(&layer), "10.0.0.1").unwrap();

    sleep(secs(5 * expire as u64)).await;
    let tracked = layer.handle().top(1)[0].used();
    drop(held);

    assert_eq!((tracked, layer.handle().peers()), (1, 0));
}

fn connection_rate(config: &Value, expect: &Value) {
    let (window, most) = (number(&config["window_s"]), number(&config["max"]));
    let layer = ConnectRateLayer::new(most as f64 / window as f64, most as u32).unwrap();
    let mut service = layer.layer(service_fn(async |conn: Conn<Script>| {
        Ok::<_, BoxError>(conn)
    }));

    let mut answers = Vec::new();
    for _ in 0..4 {
        let Poll::Ready(answer) = task::spawn(service.call(conn("10.0.0.1"))).poll() else {
            panic!("neither served nor refused");
        };
        answers.push(if answer.is_ok() { "200" } else { "403" });
    }

    assert_eq!(
        (&expect["conn 1-3"], &expect["conn 4"]),
        (&json!(answers[0]), &json!(answers[3]))
    );
    assert!(
        answers[..3]
            .iter()
            .all(|answer| *answer == "200")
    );
}

/// Ours is for each peer, and those who wait have been accepted; what they see is the same.
async fn deferred(rate: usize) {
    let layer = ConnectRateLayer::new(rate as f64, 1).unwrap();
    let layer = layer.surplus(Surplus::WaitUpTo(secs(10)));
    let mut service = layer.layer(service_fn(async |conn: Conn<Script>| {
        Ok::<_, BoxError>(conn)
    }));
    let start = Instant::now();
    let calls: Vec<JoinHandle<_>> = (0..30)
        .map(|_| {
            let call = service.call(conn("10.0.0.1"));
            tokio::spawn(async move { (call.await.is_ok(), start.elapsed()) })
        })
        .collect();

    let mut each_second = [0; 3];
    for call in calls {
        let (served, at) = call.await.unwrap();
        assert!(served);
        each_second[at.as_secs() as usize] += 1;
    }

    assert_eq!(each_second, [rate; 3]);
}

async fn delayed(config: &Value) {
    let delay = Duration::from_millis(config["delay_ms"].as_u64().unwrap());
    let (layer, metrics) = recorded(|| per_peer(number(&config["max"])));
    let mut service = holds(&layer.surplus(Surplus::WaitUpTo(delay)));
    let (near, _far) = duplex(8);
    let _held = service
        .call(Conn::new(near, peer("10.0.0.1")))
        .await
        .unwrap();
    let (near, mut far) = duplex(8);
    let (second, start) = (Conn::new(near, peer("10.0.0.1")), Instant::now());
    let info = second.info().clone();
    let refused = tokio::spawn(service.call(second));

    // It has room for eight bytes: more are taken only if somebody reads.
    far.write_all(b"12345678")
        .await
        .unwrap();
    let closed = far.write_all(b"9").await;

    assert!(closed.is_err());
    assert_eq!(start.elapsed(), delay);
    let error = refused.await.unwrap().unwrap_err();
    assert!(find::<PeerFull>(&*error).is_some());
    assert_eq!(info.close_reason(), Some(CloseReason::PerPeerLimit));
    let reason = [("reason", "per_peer_limit")];
    assert_eq!(metrics.of("tower_net_refused_total", &reason), 1.0);
}

/// The handler answers and is done, and the stream goes on elsewhere.
async fn permit(most: usize) {
    let layer = ConnectionLimitLayer::new(most).unwrap();
    let per_peer = per_peer(most);
    let inner = service_fn(
        async |conn: Conn<GuardedIo<GuardedIo<Script, Place>, PeerPlace>>| Ok::<_, BoxError>(conn),
    );
    let mut service = layer.layer(per_peer.layer(inner));

    let upgraded = service
        .call(conn("10.0.0.1"))
        .await
        .unwrap();
    let during = service
        .call(conn("10.0.0.1"))
        .await
        .is_ok();
    drop(upgraded);

    assert!(!during);
    assert_eq!((layer.handle().in_use(), per_peer.handle().peers()), (0, 0));
    assert!(
        service
            .call(conn("10.0.0.1"))
            .await
            .is_ok()
    );
}
