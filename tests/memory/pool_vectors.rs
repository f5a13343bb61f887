//! The vectors that others test their pools with: each is met, or decided otherwise for a reason.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, advance, sleep},
};
use tokio_test::{assert_pending, task};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn,
    pool::{ConnectBackoff, PoolCause, PoolLayer, Pooling, Served},
};
use tower_service::Service;

use crate::{
    pool::{idle, number, pool, settle},
    support::{
        exchange::{Answer, Exchange},
        readings::recorded,
        service::{millis, secs},
    },
};

const VECTORS: &str = include_str!("../vectors/pool.json");

/// What we decide otherwise, and why.
const OTHERWISE: &[(&str, &str)] = &[
    (
        "pool-acquire-timeout-new",
        "whoever's time is up is refused: a limit that is exceeded is none",
    ),
    (
        "pool-health-check-on-release-can-be-off",
        "the look at what comes back is what makes it fit to be given out, and costs no round trip",
    ),
    (
        "pool-double-release-is-a-no-op",
        "giving back takes the connection away from who had it: the second time does not compile",
    ),
    ("pool-lease-closed-twice", "the same"),
    (
        "pool-several-stale-connections-in-a-row",
        "dead ones are found by the look before they are given out, however many there are, and cost a get no attempt",
    ),
    (
        "pool-retry-rules-on-a-reused-connection",
        "the pool gives out connections and knows no requests; it says which connections are reused",
    ),
    (
        "pool-gradual-purge",
        "each connection has its own idle timeout, and so they go as they came; what peers close is closed at once",
    ),
    (
        "pool-reuse-mode-safe",
        "which requests may be lost with a stale connection is known to the client alone; `acquired` tells it",
    ),
    ("pool-reuse-mode-aggressive", "the same"),
    (
        "pool-shutdown-with-busy-connections",
        "a closed pool leaves connections in use to those who have them, and closes them when they come back",
    ),
    ("client-health-retry-budget", "the pool retries nothing"),
    (
        "client-health-nack-based-admission",
        "the pool sees connections and no replies",
    ),
    (
        "conn-age-too-many-pings",
        "the pool speaks no protocol, and so sends no pings",
    ),
    ("conn-age-dead-peer", "the same"),
    (
        "conn-age-age-closes-even-when-busy-with-new-streams",
        "on the side of the client a connection retires when it comes back; servers cut by `Deadlines::max_age`",
    ),
];

#[tokio::test(start_paused = true)]
async fn every_vector_is_met_or_decided_otherwise_for_a_reason() {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    let vectors = all["vectors"].as_array().unwrap();
    let mut others: BTreeSet<_> = OTHERWISE
        .iter()
        .map(|(id, _)| *id)
        .collect();

    for vector in vectors {
        let id = vector["id"].as_str().unwrap();
        if !others.remove(id) {
            scenario(id, vector).await;
        }
    }

    assert!(others.is_empty(), "listed, and no vectors: {others:?}");
    assert_eq!(vectors.len(), 55);
}

async fn scenario(id: &str, vector: &Value) {
    let ttl = vector["config"]["ttl_s"]
        .as_u64()
        .map(secs);
    match id {
        "pool-lifo-or-fifo" => last_in_first_out().await,
        "pool-re-entrant-callbacks" => re_entrant().await,
        "pool-idle-connection-closed-by-peer-is-never-handed-out" | "pool-idle-goes-bad" => {
            closed_by_peer().await;
        }
        "pool-connect-failure-wakes-the-next-waiter" => connect_failure().await,
        "pool-bad-release-with-a-waiter" => bad_release().await,
        "pool-idle-ttl-5s" => expires(ttl.unwrap()).await,
        "pool-idle-timeout" => expires(secs(1)).await,
        "pool-three-releases-5s-apart" => three_releases(ttl.unwrap()).await,
        "pool-unhealthy-not-cached" => unhealthy().await,
        "pool-pool-close" | "pool-lease-returned-after-pool-close" => closes().await,
        "pool-cache-full" => cache_full().await,
        "pool-in-flight-stops-the-idle-timer" | "pool-idle-restarts-after-the-last-response" => {
            idle_begins_anew().await;
        }
        "pool-life-timer-keeps-running" | "pool-lifetime-with-variance" => lives_on().await,
        "pool-idle-10s-life-15s-busy-until-8s" => idle_and_life().await,
        "pool-peer-closes-an-idle-connection"
        | "pool-idle-peer-close-detected"
        | "pool-no-leak-of-empty-keys" => seen_without_a_get().await,
        "pool-server-hangs-up-at-random" => hangs_up().await,
        "pool-global-idle-cap-evicts-the-oldest" => evicts_the_oldest().await,
        "pool-counter-balance" => balance().await,
        "pool-abandoned-waiters" | "pool-cancelled-waiters-do-not-eat-slots" => abandoned().await,
        "pool-tls-handshake-timeout" => handshake().await,
        "pool-close-idle-then-return" => close_idle_then_return().await,
        "pool-hard-cap-lowered-while-busy" => cap_lowered().await,
        "pool-pool-does-not-overgrow" => does_not_overgrow().await,
        "pool-unsolicited-bytes-on-an-idle-connection" => unsolicited().await,
        "pool-maxlifetime-jitter" => spread(millis(1_800_000), 0.025).await,
        "conn-age-age-jitter" => spread(secs(600), 0.1).await,
        "pool-reuse-mode-never" => never_reused().await,
        "pool-reuse-mode-always" => always_reused().await,
        "pool-pool-key" => by_key().await,
        "client-health-n-consecutive-failures" => consecutive_failures().await,
        "client-health-probe-after-backoff" => one_probe().await,
        "client-health-success-resets" => success_resets().await,
        "client-health-backoff-resets" => backoff_resets().await,
        _ => panic!("{id} is neither run nor decided otherwise"),
    }
}

async fn last_in_first_out() {
    let (mut pool, ..) = pool(Pooling::default());
    let (one, other) = (pool.call(1).await.unwrap(), pool.call(1).await.unwrap());
    let ids = (number(&one), number(&other));
    one.reuse();
    other.reuse();

    let (first, second) = (pool.call(1).await.unwrap(), pool.call(1).await.unwrap());
    assert_eq!((number(&second), number(&first)), ids);
}

/// Whoever is woken by a connection that comes back closes the pool, and gets from it, there and then.
async fn re_entrant() {
    struct Closes(tower_net::pool::PoolHandle);
    impl std::task::Wake for Closes {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.close();
        }
    }
    let (mut pool, _, handle) = pool(Pooling::default().max_open(1));
    let held = pool.call(1).await.unwrap();
    let waker = std::sync::Arc::new(Closes(handle.clone())).into();
    let mut get = std::pin::pin!(pool.call(1));
    let mut cx = std::task::Context::from_waker(&waker);
    assert!(get.as_mut().poll(&mut cx).is_pending());

    held.reuse();
    assert!(!get.await.unwrap().reuse());
    assert_eq!(handle.snapshot().open(), 0);
}

async fn closed_by_peer() {
    let (mut pool, exchange, _) = pool(Pooling::default());
    idle(&mut pool, 2).await;

    drop(exchange.far(1));
    let first = pool.call(1).await.unwrap();
    let second = pool.call(1).await.unwrap();

    assert_eq!(first.acquired().served(), Served::Idle);
    assert_eq!(second.acquired().served(), Served::Dialled);
    assert_eq!(exchange.open(), 2);
}

async fn connect_failure() {
    let (mut pool, exchange, _) = pool(Pooling::default().max_open(1));
    exchange.answer(1, Answer::RefuseAfter(secs(1)));
    let mut first = task::spawn(pool.call(1));
    assert_pending!(first.poll());
    settle().await;
    exchange.answer(1, Answer::Connect);
    let second = pool.call(1);

    let (first, second) = tokio::join!(first, second);
    assert!(matches!(first.unwrap_err().cause(), PoolCause::Connect(_)));
    assert_eq!(second.unwrap().acquired().served(), Served::Dialled);
}

async fn bad_release() {
    let (mut pool, exchange, _) = pool(Pooling::default().max_open(1));
    let held = pool.call(1).await.unwrap();
    let mut waits = task::spawn(pool.call(1));
    assert_pending!(waits.poll());

    drop(exchange.far(0));
    assert!(!held.reuse());

    let fresh = waits.await.unwrap();
    assert_eq!(fresh.acquired().served(), Served::Dialled);
    assert_eq!((exchange.open(), exchange.most()), (1, 1));
}

async fn expires(ttl: std::time::Duration) {
    let (mut pool, exchange, handle) = pool(Pooling::default().idle_timeout(ttl));
    idle(&mut pool, 1).await;

    sleep(ttl + millis(2)).await;

    assert_eq!((exchange.open(), handle.snapshot().idle()), (0, 0));
}

async fn three_releases(ttl: std::time::Duration) {
    let (mut pool, exchange, _) = pool(Pooling::default().idle_timeout(ttl));
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.call(1).await.unwrap());
    }
    let third = number(&held[2]);
    for conn in held {
        sleep(ttl + millis(2)).await;
        conn.reuse();
    }

    assert_eq!(exchange.open(), 1);
    assert_eq!(number(&pool.call(1).await.unwrap()), third);
}

async fn unhealthy() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    let conn = pool.call(1).await.unwrap();

    drop(exchange.far(0));

    assert!(!conn.reuse());
    assert_eq!((exchange.open(), handle.snapshot().idle()), (0, 0));
}

async fn closes() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    idle(&mut pool, 2).await;
    let held = pool.call(1).await.unwrap();

    handle.close();
    assert_eq!(exchange.open(), 1);
    assert!(!held.reuse());
    assert_eq!(exchange.open(), 0);
}

async fn cache_full() {
    let (mut pool, exchange, _) = pool(Pooling::default().max_idle_per_target(1));
    let held = (pool.call(1).await.unwrap(), pool.call(1).await.unwrap());

    assert!(held.0.reuse() && !held.1.reuse());
    assert_eq!(exchange.open(), 1);
}

async fn idle_begins_anew() {
    let (mut pool, exchange, _) = pool(Pooling::default().idle_timeout(secs(10)));
    idle(&mut pool, 1).await;
    let busy = pool.call(1).await.unwrap();

    sleep(secs(10)).await;
    assert_eq!(exchange.open(), 1);
    busy.reuse();
    sleep(secs(10) - millis(2)).await;
    assert_eq!(exchange.open(), 1);
    sleep(millis(4)).await;

    assert_eq!(exchange.open(), 0);
}

async fn lives_on() {
    let (mut pool, exchange, _) = pool(Pooling::default().max_lifetime(secs(10)));
    let busy = pool.call(1).await.unwrap();

    sleep(secs(20)).await;
    assert_eq!(exchange.open(), 1);
    assert!(!busy.reuse());

    assert_eq!(exchange.open(), 0);
}

async fn idle_and_life() {
    let pooling = Pooling::default()
        .idle_timeout(secs(10))
        .max_lifetime(secs(15))
        .lifetime_jitter(0.0);
    let (mut pool, ..) = pool(pooling);
    let busy = pool.call(1).await.unwrap();
    let info = busy.info().clone();

    advance(secs(8)).await;
    busy.reuse();
    sleep(secs(8)).await;

    assert_eq!(info.close_reason(), Some(CloseReason::Age));
}

async fn seen_without_a_get() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    idle(&mut pool, 1).await;

    drop(exchange.far(0));
    settle().await;

    assert_eq!(
        (handle.snapshot().idle(), handle.snapshot().targets()),
        (0, 0)
    );
    assert_eq!((exchange.dials(), exchange.open()), (1, 0));
}

async fn hangs_up() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    for turn in 0..100 {
        let conn = pool.call(1).await.unwrap();
        let far = exchange.far(exchange.dials() - 1);
        if turn % 2 == 0 {
            drop(far);
            conn.reuse();
        } else {
            conn.reuse();
            drop(far);
        }
    }
    settle().await;

    assert_eq!((exchange.open(), handle.snapshot().open()), (0, 0));
}

async fn evicts_the_oldest() {
    let (mut pool, _, handle) = pool(Pooling::default().max_open(4));
    for to in 1..=4 {
        pool.call(to).await.unwrap().reuse();
        sleep(millis(1)).await;
    }
    pool.call(1).await.unwrap().reuse();
    sleep(millis(1)).await;

    pool.call(5).await.unwrap().reuse();

    assert_eq!(handle.snapshot().idle(), 4);
    for (to, served) in [(1, Served::Idle), (2, Served::Dialled)] {
        assert_eq!(
            pool.call(to)
                .await
                .unwrap()
                .acquired()
                .served(),
            served
        );
    }
}

async fn balance() {
    let (mut pool, exchange, handle) = pool(
        Pooling::default()
            .max_open(1)
            .idle_timeout(secs(1)),
    );
    for _ in 0..3 {
        let conn = pool.call(1).await.unwrap();
        assert_eq!(conn.acquired().served(), Served::Dialled);
        conn.reuse();
        sleep(secs(2)).await;
    }

    assert_eq!((handle.snapshot().open(), exchange.most()), (0, 1));
}

async fn abandoned() {
    let (mut pool, _, handle) = pool(Pooling::default().max_open(1));
    let held = pool.call(1).await.unwrap();
    for _ in 0..1_000 {
        let mut waits = task::spawn(pool.call(1));
        assert_pending!(waits.poll());
    }
    assert_eq!(handle.snapshot().waiting(), 0);

    held.reuse();

    assert!(pool.call(1).await.is_ok());
}

async fn handshake() {
    let (mut pool, exchange, _) = pool(Pooling::default().dial_within(secs(10)));
    exchange.answer(1, Answer::Hang);
    let start = Instant::now();

    let error = pool.call(1).await.unwrap_err();

    assert!(matches!(error.cause(), PoolCause::Connect(_)));
    assert!(start.elapsed() <= secs(10) + millis(2));
}

async fn close_idle_then_return() {
    let (mut pool, _, handle) = pool(Pooling::default());
    idle(&mut pool, 1).await;
    let leased = pool.call(1).await.unwrap();

    handle.renew();
    assert!(!leased.reuse());
    assert!(pool.call(1).await.unwrap().reuse());

    assert_eq!(handle.snapshot().idle(), 1);
}

async fn cap_lowered() {
    let (mut pool, exchange, handle) = pool(Pooling::default().max_open(3));
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.call(1).await.unwrap());
    }

    handle.set_max_open(2).unwrap();
    held.into_iter().for_each(|conn| {
        conn.reuse();
    });

    assert_eq!(exchange.open(), 2);
}

async fn does_not_overgrow() {
    let (pool, exchange, handle) = pool(Pooling::default().max_open(10));
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let mut pool = pool.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    let conn = pool.call(1).await.unwrap();
                    tokio::task::yield_now().await;
                    conn.reuse();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }

    assert_eq!((exchange.most(), exchange.dials()), (10, 10));
    assert_eq!(handle.snapshot().idle(), 10);
}

async fn unsolicited() {
    let ((mut pool, exchange, handle), metrics) = recorded(|| pool(Pooling::default()));
    idle(&mut pool, 1).await;

    exchange
        .far(0)
        .write_all(b"408")
        .await
        .unwrap();
    settle().await;

    let stray = metrics.of("tower_net_pool_closed_total", &[("reason", "stray")]);
    assert_eq!((stray, handle.snapshot().open()), (1.0, 0));
}

/// Those that were opened together go one by one, and none of them late.
async fn spread(lifetime: std::time::Duration, share: f64) {
    let pooling = Pooling::default()
        .max_lifetime(lifetime)
        .lifetime_jitter(share)
        .idle_timeout(std::time::Duration::MAX)
        .max_idle_per_target(1_000);
    let (mut pool, exchange, _) = pool(pooling);
    idle(&mut pool, 1_000).await;
    let earliest = lifetime.mul_f64(1.0 - share);

    sleep(earliest - millis(1)).await;
    assert_eq!(exchange.open(), 1_000);
    sleep((lifetime - earliest) / 2).await;
    let half = exchange.open();
    sleep((lifetime - earliest) / 2 + millis(3)).await;

    assert!((350..650).contains(&half), "{half}");
    assert_eq!(exchange.open(), 0);
}

async fn never_reused() {
    let (mut pool, exchange, _) = pool(Pooling::default().max_idle_per_target(0));
    for _ in 0..5 {
        pool.call(1).await.unwrap().reuse();
    }

    assert_eq!(exchange.dials(), 5);
}

async fn always_reused() {
    let (mut pool, exchange, _) = pool(Pooling::default());
    for _ in 0..5 {
        pool.clone()
            .call(1)
            .await
            .unwrap()
            .reuse();
        pool.call(1).await.unwrap().reuse();
    }

    assert_eq!(exchange.dials(), 1);
}

/// A target whose connections are announced as somebody's.
async fn by_key() {
    #[derive(Clone)]
    struct Route {
        to: u16,
        client: &'static str,
        note: &'static str,
    }
    let exchange = Exchange::new();
    let mut inner = exchange.clone();
    let connector = tower::service_fn(move |route: Route| inner.call(route.to));
    let key = |route: &Route| (route.to, route.client);
    let mut pool = PoolLayer::keyed("test", Pooling::default(), key)
        .unwrap()
        .layer(connector);
    let route = |to, client, note| Route { to, client, note };

    let first = pool
        .call(route(1, "ann", "a"))
        .await
        .unwrap();
    first.reuse();
    let mut served = Vec::new();
    for other in [
        route(1, "bob", "a"),
        route(2, "ann", "a"),
        route(1, "ann", "b"),
    ] {
        assert!(!other.note.is_empty());
        served.push(
            pool.call(other)
                .await
                .unwrap()
                .acquired()
                .served(),
        );
    }

    assert_eq!(served, [Served::Dialled, Served::Dialled, Served::Idle]);
}

fn backoff() -> Pooling {
    Pooling::default().backoff(ConnectBackoff::default().even_alone(true))
}

/// How dials that are refused end, so many in a row.
async fn refusals(pool: &mut crate::pool::Lines, times: usize) -> Vec<bool> {
    let mut dialled = Vec::new();
    for _ in 0..times {
        let error = pool.call(1).await.unwrap_err();
        dialled.push(matches!(error.cause(), PoolCause::Connect(_)));
    }
    dialled
}

async fn consecutive_failures() {
    let (mut pool, exchange, _) = pool(backoff());
    exchange.answer(1, Answer::Refuse);

    assert_eq!(refusals(&mut pool, 4).await, [true, true, true, false]);
    assert_eq!(exchange.dials(), 3);
}

async fn one_probe() {
    let (mut pool, exchange, _) = pool(backoff());
    exchange.answer(1, Answer::Refuse);
    refusals(&mut pool, 3).await;
    // Our pauses are shorter.
    sleep(secs(1)).await;
    exchange.answer(1, Answer::After(secs(1)));

    let mut probe = task::spawn(pool.call(1));
    assert_pending!(probe.poll());
    settle().await;
    assert_eq!(refusals(&mut pool, 2).await, [false, false]);
    let _probe = probe.await.unwrap();
    exchange.answer(1, Answer::Connect);

    assert!(pool.call(1).await.is_ok());
}

async fn success_resets() {
    let (mut pool, exchange, _) = pool(backoff());
    for _ in 0..2 {
        exchange.answer(1, Answer::Refuse);
        assert_eq!(refusals(&mut pool, 2).await, [true, true]);
        exchange.answer(1, Answer::Connect);
        drop(pool.call(1).await.unwrap());
    }
}

async fn backoff_resets() {
    let (mut pool, exchange, _) = pool(backoff());
    for _ in 0..2 {
        exchange.answer(1, Answer::Refuse);
        refusals(&mut pool, 3).await;
        let error = pool.call(1).await.unwrap_err();
        assert!(
            matches!(error.cause(), PoolCause::Backoff { left, .. } if *left <= millis(200)),
            "{error}"
        );
        sleep(millis(200)).await;
        refusals(&mut pool, 1).await;
        sleep(millis(400)).await;
        exchange.answer(1, Answer::Connect);
        drop(pool.call(1).await.unwrap());
    }
}

#[test]
fn a_connection_is_given_back_once() {
    // By value: there is nothing to give back a second time.
    let _: fn(Conn<tower_net::pool::PooledIo<crate::support::exchange::Line>>) -> bool =
        Conn::reuse;
}
