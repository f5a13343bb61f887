use std::{
    collections::VecDeque,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::UnixStream,
    time::{Instant, advance, sleep, timeout},
};
use tokio_test::{assert_pending, task};
use tower::{ServiceExt, service_fn, util::BoxCloneService};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, Networks, Safeguard,
    error::{BoxError, NoTimer, find},
    io::{GuardedIo, Io},
    limit::{
        ConnectionLimitLayer, OverLimit, PeerFull, PeerPlace, PerPeerLimit, PerPeerLimitHandle,
        PerPeerLimitLayer, Surplus, TrackedPeer,
    },
    meter::MeterLayer,
};
use tower_service::Service;

use crate::support::{
    io::{Closed, Script, Witness},
    readings::recorded,
    service::{millis, secs},
};

type Held<I = Script> = Conn<GuardedIo<I, PeerPlace>>;
type Holds<I = Script> = PerPeerLimit<BoxCloneService<Held<I>, Held<I>, BoxError>>;

fn limit(limit: usize) -> PerPeerLimitLayer {
    PerPeerLimitLayer::new(limit).unwrap()
}

/// A service that hands its connections back.
fn holds<I: Io>(layer: &PerPeerLimitLayer) -> Holds<I> {
    layer.layer(service_fn(async |conn: Held<I>| Ok(conn)).boxed_clone())
}

fn peer(ip: impl ToString) -> SocketAddr {
    SocketAddr::new(ip.to_string().parse().unwrap(), 4000)
}

fn conn(ip: impl ToString) -> Conn<Script> {
    Conn::new(Script::new(), peer(ip))
}

/// A connection that is answered in its first poll.
fn open(service: &mut Holds, ip: impl ToString) -> Result<Held, BoxError> {
    match task::spawn(service.call(conn(ip))).poll() {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("neither served nor refused"),
    }
}

fn full(error: &BoxError) -> PeerFull {
    *find::<PeerFull>(&**error).unwrap()
}

fn in_use(handle: &PerPeerLimitHandle) -> Vec<(String, u64)> {
    let name = |peer: &TrackedPeer| match peer.network() {
        Some(network) => network.to_string(),
        None => "none".to_owned(),
    };
    let top = handle.top(10);
    top.iter()
        .map(|peer| (name(peer), peer.used()))
        .collect()
}

// === Who a peer is

#[tokio::test]
async fn each_peer_has_its_own_places() {
    let layer = limit(2);
    let mut service = holds(&layer);

    let _held = ["10.0.0.1", "10.0.0.1", "10.0.0.2"].map(|ip| open(&mut service, ip).unwrap());
    let refused = open(&mut service, "10.0.0.1").unwrap_err();
    let other = open(&mut service, "10.0.0.2");

    let refused = full(&refused);
    assert_eq!((refused.limit(), refused.never_started()), (2, true));
    assert_eq!(refused.network().unwrap().to_string(), "10.0.0.1/32");
    assert!(other.is_ok());
}

#[tokio::test]
async fn a_host_is_one_peer_in_both_spellings() {
    let layer = limit(1);
    let mut service = holds(&layer);

    let held = open(&mut service, "192.0.2.7").unwrap();
    let refused = open(&mut service, "::ffff:192.0.2.7");
    drop(held);
    let mapped = open(&mut service, "::ffff:192.0.2.7");

    assert!(refused.is_err() && mapped.is_ok());
    assert_eq!(in_use(&layer.handle()), [("192.0.2.7/32".to_owned(), 1)]);
}

#[tokio::test]
async fn an_ipv6_peer_is_a_network_whose_length_can_be_set() {
    for (prefix, same, other) in [
        (None, "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"),
        (Some(48), "2001:db8:0:2::1", "2001:db8:1::1"),
        (Some(128), "2001:db8:0:1::1", "2001:db8:0:1::2"),
        (Some(1), "7fff::1", "8000::1"),
    ] {
        let layer = match prefix {
            Some(bits) => limit(1).ipv6_prefix(bits).unwrap(),
            None => limit(1),
        };
        let mut service = holds(&layer);

        let _held = open(&mut service, "2001:db8:0:1::1").unwrap();

        assert!(open(&mut service, same).is_err());
        assert!(open(&mut service, other).is_ok());
    }
}

#[tokio::test]
async fn the_peer_is_the_one_that_a_proxy_announced() {
    let layer = limit(1);
    let mut service = holds(&layer);
    let from = |announced: &str| {
        let conn = conn("10.0.0.1");
        conn.info()
            .announce_peer(peer(announced));
        conn
    };

    let _held = service
        .call(from("192.0.2.1"))
        .await
        .unwrap();

    assert!(
        service
            .call(from("192.0.2.2"))
            .await
            .is_ok()
    );
    assert!(
        service
            .call(from("192.0.2.1"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_connection_gives_back_the_place_of_the_peer_that_it_took_it_for() {
    let layer = limit(1);
    let mut service = holds(&layer);

    let held = open(&mut service, "10.0.0.1").unwrap();
    held.info()
        .announce_peer(peer("192.0.2.1"));
    drop(held);

    assert_eq!(layer.handle().peers(), 0);
}

#[tokio::test]
async fn the_exempt_have_no_limit_and_are_not_counted() {
    let layer = limit(1).exempt(Networks::parse(["10.0.0.0/8", "fd00::/8"]).unwrap());
    let mut service = holds(&layer);

    let held: Vec<_> = ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"]
        .repeat(5)
        .into_iter()
        .map(|ip| open(&mut service, ip).unwrap())
        .collect();

    assert_eq!((held.len(), layer.handle().peers()), (15, 0));
    assert!(
        held[0]
            .info()
            .has_passed(Safeguard::PerPeerLimit)
    );
}

#[tokio::test]
async fn peers_without_an_address_are_counted_if_asked_for_and_then_as_one() {
    for (counted, third) in [(false, true), (true, false)] {
        let layer = limit(2).count_unnamed(counted);
        let mut service = holds(&layer);
        let mut unnamed = || service.call(Conn::new(Script::new(), ()));

        let held = [unnamed().await.unwrap(), unnamed().await.unwrap()];

        assert_eq!(unnamed().await.is_ok(), third);
        let guarded = held[0]
            .info()
            .has_passed(Safeguard::PerPeerLimit);
        assert_eq!(guarded, counted);
        let expected: &[_] = if counted {
            &[("none".to_owned(), 2)]
        } else {
            &[]
        };
        assert_eq!(in_use(&layer.handle()), expected);
    }
}

// === One too many

#[tokio::test]
async fn the_surplus_is_reset_before_a_byte_of_it_is_read() {
    let layer = limit(1);
    let mut service = holds(&layer);
    let pair = || {
        let (near, far) = UnixStream::pair().unwrap();
        let (near, closed) = Witness::pair(near);
        (Conn::new(near, peer("10.0.0.1")), closed, far)
    };
    let ((first, ..), (second, closed, mut far)) = (pair(), pair());
    far.write_all(b"unread").await.unwrap();
    let info = Arc::clone(second.info());

    let _held = service.call(first).await.unwrap();
    let _never_polled = service.call(second);

    assert_eq!(info.close_reason(), Some(CloseReason::PerPeerLimit));
    assert!(closed.is_reset());
}

#[tokio::test]
async fn a_refusal_is_counted_by_its_reason() {
    let (layer, metrics) = recorded(|| limit(1));
    let (meter, tally) = MeterLayer::pair("test");
    let mut service =
        meter.layer(layer.layer(service_fn(async |conn: Conn<_>| Ok::<_, BoxError>(conn))));

    let _held = service
        .call(conn("10.0.0.1"))
        .await
        .unwrap();
    for _ in 0..2 {
        let refused = service.call(conn("10.0.0.1")).await;
        assert!(refused.is_err());
    }

    let refused = metrics.of("tower_net_refused_total", &[("reason", "per_peer_limit")]);
    let snapshot = tally.snapshot();
    assert_eq!(
        (refused, snapshot.closed_for(CloseReason::PerPeerLimit)),
        (2.0, 2)
    );
    assert_eq!(snapshot.active(), 1);
}

#[tokio::test]
async fn a_dry_run_counts_what_it_would_have_refused_and_serves_it() {
    let (layer, metrics) = recorded(|| limit(1));
    let layer = layer
        .dry_run(true)
        .surplus(Surplus::WaitUpTo(secs(5)));
    let mut service = holds(&layer);

    let first = open(&mut service, "10.0.0.1").unwrap();
    let surplus = open(&mut service, "10.0.0.1").unwrap();
    let counted = layer.handle().top(1)[0].used();
    drop(first);
    let _third = open(&mut service, "10.0.0.1").unwrap();

    let reason = [("reason", "per_peer_limit")];
    assert_eq!(metrics.of("tower_net_dry_run_total", &reason), 1.0);
    assert_eq!(metrics.of("tower_net_refused_total", &reason), 0.0);
    assert_eq!((counted, surplus.info().close_reason()), (1, None));
    assert!(
        !surplus
            .info()
            .has_passed(Safeguard::PerPeerLimit)
    );
}

// === The surplus waits

fn waits(layer: PerPeerLimitLayer, time: Duration) -> (PerPeerLimitLayer, Holds) {
    let layer = layer.surplus(Surplus::WaitUpTo(time));
    let service = holds(&layer);
    (layer, service)
}

#[tokio::test(start_paused = true)]
async fn the_surplus_waits_for_a_place_of_its_own_peer() {
    let (layer, mut service) = waits(limit(1), secs(5));
    let [first, second] = ["10.0.0.1", "10.0.0.2"].map(|ip| open(&mut service, ip).unwrap());
    let mut waiting = task::spawn(service.call(conn("10.0.0.1")));
    assert_pending!(waiting.poll());

    drop(second);
    assert!(!waiting.is_woken());
    drop(first);

    assert!(waiting.is_woken());
    let Poll::Ready(Ok(_served)) = waiting.poll() else {
        panic!("there is a place");
    };
    assert_eq!(
        (layer.handle().surplus_held(), layer.handle().top(9).len()),
        (0, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn those_of_one_peer_come_in_in_their_order_and_before_any_newcomer() {
    let (_, mut service) = waits(limit(1), secs(5));
    let mut held = open(&mut service, "10.0.0.1").unwrap();
    let mut waiting: VecDeque<_> = (0..4)
        .map(|_| task::spawn(service.call(conn("10.0.0.1"))))
        .collect();

    for waits in &mut waiting {
        assert_pending!(waits.poll());
    }
    while let Some(mut first) = waiting.pop_front() {
        drop(held);
        assert!(
            first.is_woken()
                && !waiting
                    .iter()
                    .any(task::Spawn::is_woken)
        );
        let mut newcomer = task::spawn(service.call(conn("10.0.0.1")));
        assert_pending!(newcomer.poll());
        let Poll::Ready(served) = first.poll() else {
            panic!("it was woken for a place");
        };
        held = served.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_for_too_long_is_reset() {
    let ((layer, metrics), start) = (recorded(|| limit(1)), Instant::now());
    let (layer, mut service) = waits(layer, secs(5));
    let _held = open(&mut service, "10.0.0.1").unwrap();

    let waits = conn("10.0.0.1");
    let info = Arc::clone(waits.info());
    let error = service.call(waits).await.unwrap_err();

    assert_eq!((full(&error).limit(), start.elapsed()), (1, secs(5)));
    assert_eq!(info.close_reason(), Some(CloseReason::PerPeerLimit));
    let reason = [("reason", "per_peer_limit")];
    assert_eq!(metrics.of("tower_net_refused_total", &reason), 1.0);
    assert_eq!(metrics.of("tower_net_surplus_held", &reason), 0.0);
    assert_eq!(layer.handle().surplus_held(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_is_in_nobodys_way() {
    let (layer, mut service) = waits(limit(1), secs(5));
    let held = open(&mut service, "10.0.0.1").unwrap();
    let mut waiting = [(); 3].map(|()| task::spawn(service.call(conn("10.0.0.1"))));
    for waits in &mut waiting {
        assert_pending!(waits.poll());
    }
    let [before, given, mut after] = waiting;

    drop(before);
    drop(held);
    assert!(given.is_woken() && !after.is_woken());
    drop(given);

    assert!(after.is_woken());
    assert!(matches!(after.poll(), Poll::Ready(Ok(_))));
    drop(after);
    assert_eq!(
        (layer.handle().peers(), layer.handle().surplus_held()),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn as_many_wait_as_may_and_the_rest_is_reset() {
    let (layer, mut service) = waits(limit(1).surplus_at_once(2).unwrap(), secs(5));
    let _held = ["10.0.0.1", "10.0.0.2"].map(|ip| open(&mut service, ip).unwrap());
    let waiting = ["10.0.0.1", "10.0.0.2"].map(|ip| task::spawn(service.call(conn(ip))));

    let third = open(&mut service, "10.0.0.2");
    let held = layer.handle().surplus_held();
    drop(waiting);

    assert!(third.is_err());
    assert_eq!((held, layer.handle().surplus_held()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_wait() {
    let (layer, mut service) = waits(limit(1), Duration::MAX);
    let _held = open(&mut service, "10.0.0.1").unwrap();
    let waits = conn("10.0.0.1");
    let info = Arc::clone(waits.info());
    let mut waiting = task::spawn(service.call(waits));
    assert_pending!(waiting.poll());

    info.close_after_reply();

    assert!(waiting.is_woken());
    assert!(matches!(waiting.poll(), Poll::Ready(Err(_))));
    assert_eq!(info.close_reason(), Some(CloseReason::Served));
    assert_eq!(layer.handle().surplus_held(), 0);
}

#[tokio::test(start_paused = true)]
async fn no_time_is_no_wait_and_the_longest_is_for_ever() {
    let (_, mut at_once) = waits(limit(1), Duration::ZERO);
    let (_, mut for_ever) = waits(limit(1), Duration::MAX);
    let [_one, held] = [&mut at_once, &mut for_ever].map(|it| open(it, "10.0.0.1").unwrap());

    let mut waiting = task::spawn(for_ever.call(conn("10.0.0.1")));
    assert_pending!(waiting.poll());
    advance(secs(86_400 * 365)).await;
    assert_pending!(waiting.poll());
    drop(held);

    assert!(open(&mut at_once, "10.0.0.1").is_err());
    assert!(matches!(waiting.poll(), Poll::Ready(Ok(_))));
}

#[test]
fn waiting_on_a_runtime_that_keeps_no_time_fails_when_the_server_begins() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for (surplus, fails) in [
        (Surplus::Reset, false),
        (Surplus::WaitUpTo(secs(1)), true),
        (Surplus::last_word("bye"), true),
    ] {
        let mut service = holds(&limit(1).surplus(surplus));
        let ready = runtime.block_on(async {
            ServiceExt::<Conn<Script>>::ready(&mut service)
                .await
                .map(drop)
        });
        let no_timer = ready.is_err_and(|error| find::<NoTimer>(&*error).is_some());
        assert_eq!(no_timer, fails);
    }
}

// === The last word

fn says(word: impl Into<bytes::Bytes>) -> (PerPeerLimitLayer, Holds<DuplexStream>) {
    let layer = limit(1).surplus(Surplus::last_word(word));
    let service = holds(&layer);
    (layer, service)
}

/// The surplus of a peer that has its place, and its far end.
async fn surplus(
    service: &mut Holds<DuplexStream>,
    room: usize,
) -> (Held<DuplexStream>, DuplexStream, Conn<DuplexStream>) {
    let (first, _far) = duplex(64);
    let held = service
        .call(Conn::new(first, peer("10.0.0.1")))
        .await
        .unwrap();
    let (near, far) = duplex(room);
    (held, far, Conn::new(near, peer("10.0.0.1")))
}

#[tokio::test(start_paused = true)]
async fn the_surplus_is_told_a_last_word_and_closed_in_order() {
    let (layer, mut service) = says("too many\n");
    let (_held, mut far, conn) = surplus(&mut service, 64).await;
    let info = Arc::clone(conn.info());

    let call = tokio::spawn(service.call(conn));
    far.write_all(b"unread").await.unwrap();
    let mut heard = String::new();
    far.read_to_string(&mut heard)
        .await
        .unwrap();
    drop(far);
    let error = call.await.unwrap().unwrap_err();

    assert_eq!((heard.as_str(), full(&error).limit()), ("too many\n", 1));
    assert_eq!(info.close_reason(), Some(CloseReason::PerPeerLimit));
    assert_eq!(layer.handle().surplus_held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_last_word_can_say_which_limit_and_to_whom() {
    let layer = limit(1).surplus(Surplus::last_word_with(|full: &PeerFull, info| {
        let network = full.network().unwrap();
        format!("{network} at {} of {}", info.peer(), full.limit()).into()
    }));
    let mut service = holds(&layer);
    let (_held, mut far, conn) = surplus(&mut service, 64).await;

    let _call = tokio::spawn(service.call(conn));
    let mut heard = String::new();
    far.read_to_string(&mut heard)
        .await
        .unwrap();

    assert_eq!(heard, "10.0.0.1/32 at 10.0.0.1:4000 of 1");
}

#[tokio::test(start_paused = true)]
async fn a_last_word_is_not_made_where_connections_are_accepted() {
    let made = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&made);
    let layer = limit(1).surplus(Surplus::last_word_with(move |_, _| {
        counts.fetch_add(1, Relaxed);
        "bye".into()
    }));
    let mut service = holds(&layer);
    let (_held, _far, conn) = surplus(&mut service, 64).await;

    let mut call = task::spawn(service.call(conn));
    let in_the_call = made.load(Relaxed);
    assert_pending!(call.poll());

    assert_eq!((in_the_call, made.load(Relaxed)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_told_a_last_word_holds_nothing_of_what_is_below() {
    let places = ConnectionLimitLayer::new(2)
        .unwrap()
        .over_limit(OverLimit::Wait);
    let echo = service_fn(async |conn: Conn<_>| Ok::<_, BoxError>(conn));
    let layer = limit(1).surplus(Surplus::last_word("bye"));
    let mut service = layer.layer(places.layer(echo));
    let (near, _far) = [duplex(64), duplex(64), duplex(64)]
        .into_iter()
        .unzip::<_, _, Vec<_>, Vec<_>>();
    let mut conns = near
        .into_iter()
        .zip(["10.0.0.1", "10.0.0.1", "10.0.0.2"])
        .map(|(near, ip)| Conn::new(near, peer(ip)));
    let mut call = async |conn| {
        let ready = ServiceExt::<Conn<DuplexStream>>::ready(&mut service);
        timeout(millis(1), ready)
            .await
            .map(|ready| ready.unwrap().call(conn))
    };

    let _first = call(conns.next().unwrap())
        .await
        .unwrap()
        .await
        .unwrap();
    let mut spoken_to = task::spawn(
        call(conns.next().unwrap())
            .await
            .unwrap(),
    );
    assert_pending!(spoken_to.poll());
    let other = call(conns.next().unwrap()).await;

    assert!(other.unwrap().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_last_word_is_over_after_a_time_whatever_the_peer_does() {
    // Neither of them closes; one does not read either.
    for (room, time) in [(64, secs(1)), (1, secs(2))] {
        let (layer, mut service) = says("too many\n");
        let (_held, _far, conn) = surplus(&mut service, room).await;
        let start = Instant::now();

        let refused = service.call(conn).await;

        assert!(refused.is_err());
        assert_eq!(start.elapsed(), time);
        assert_eq!(layer.handle().surplus_held(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_for_ever_is_not_listened_to_for_ever() {
    let (_, mut service) = says("");
    let (_held, mut far, conn) = surplus(&mut service, 64).await;
    let (start, call) = (Instant::now(), tokio::spawn(service.call(conn)));

    let mut taken = 0;
    while far.write_all(&[0; 1024]).await.is_ok() {
        taken += 1;
        sleep(millis(1)).await;
    }

    assert!(call.await.unwrap().is_err());
    assert!((60..70).contains(&taken) && start.elapsed() < secs(1));
}

#[tokio::test(start_paused = true)]
async fn as_many_last_words_as_may_be_and_the_rest_is_reset() {
    let layer = limit(1)
        .surplus_at_once(2)
        .unwrap()
        .surplus(Surplus::last_word("bye"));
    let mut service = holds(&layer);
    let pair = || {
        let (near, far) = UnixStream::pair().unwrap();
        let (near, closed) = Witness::pair(near);
        (Conn::new(near, peer("10.0.0.1")), closed, far)
    };
    let (first, ..) = pair();
    let _held = service.call(first).await.unwrap();

    let calls: Vec<_> = [pair(), pair(), pair()]
        .into_iter()
        .map(|(conn, closed, far)| (service.call(conn), closed, far))
        .collect();

    let reset: Vec<_> = calls
        .iter()
        .map(|(_, closed, _)| closed.is_reset())
        .collect();
    assert_eq!(
        (reset, layer.handle().surplus_held()),
        (vec![false, false, true], 2)
    );
    drop(calls);
    assert_eq!(layer.handle().surplus_held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_last_word_that_is_dropped_halfway_is_a_reset() {
    let layer = limit(1).surplus(Surplus::last_word("bye"));
    let mut service = holds(&layer);
    let (first, _far) = UnixStream::pair().unwrap();
    let _held = service
        .call(Conn::new(Witness::pair(first).0, peer("10.0.0.1")))
        .await
        .unwrap();
    let (near, _far) = UnixStream::pair().unwrap();
    let (near, closed): (_, Closed) = Witness::pair(near);

    let mut call = task::spawn(service.call(Conn::new(near, peer("10.0.0.1"))));
    assert_pending!(call.poll());
    drop(call);

    assert!(closed.is_reset());
}

// === A place is free again

#[tokio::test]
async fn every_way_out_frees_the_place() {
    let layer = limit(1);
    let handle = layer.handle();
    let mut returns = layer.layer(service_fn(async |_: Held| Ok::<_, BoxError>(())));
    let mut fails = layer.layer(service_fn(async |_: Held| {
        Err::<(), BoxError>("told to fail".into())
    }));
    let mut never = layer.layer(service_fn(async |held: Held| {
        std::future::pending::<()>().await;
        drop(held);
        Ok::<_, BoxError>(())
    }));

    assert!(
        returns
            .call(conn("10.0.0.1"))
            .await
            .is_ok()
    );
    assert!(
        fails
            .call(conn("10.0.0.1"))
            .await
            .is_err()
    );
    drop(never.call(conn("10.0.0.1")));
    let mut begun = task::spawn(never.call(conn("10.0.0.1")));
    assert_pending!(begun.poll());
    assert_eq!(handle.peers(), 1);
    drop(begun);

    assert_eq!(handle.peers(), 0);
}

#[tokio::test]
async fn a_panic_frees_its_place_each_time() {
    let layer = limit(1);
    for in_call in [true, false] {
        let mut service = layer.layer(service_fn(move |conn: Held| {
            assert!(!in_call, "told to panic");
            async move {
                let _held = conn;
                panic!("told to panic");
                #[expect(unreachable_code, reason = "the type of the service")]
                Ok::<_, BoxError>(())
            }
        }));
        for _ in 0..3 {
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                task::spawn(service.call(conn("10.0.0.1")))
                    .poll()
                    .is_ready()
            }));

            assert!(panicked.is_err());
            assert_eq!(layer.handle().peers(), 0);
        }
    }
}

#[tokio::test]
async fn a_place_lives_as_long_as_the_stream_wherever_it_went() {
    let layer = limit(1);
    let mut service = holds(&layer);

    let held = open(&mut service, "10.0.0.1").unwrap();
    let elsewhere = tokio::spawn(async move { held.map_io(|io| GuardedIo::new(io, ())) });
    let moved = elsewhere.await.unwrap();
    let refused = open(&mut service, "10.0.0.1").is_err();
    drop(moved);

    assert!(refused && open(&mut service, "10.0.0.1").is_ok());
}

#[tokio::test]
async fn the_instance_that_was_made_ready_is_the_one_called() {
    // A mock panics when it is called without having been made ready.
    let layer = limit(1).surplus(Surplus::WaitUpTo(secs(5)));
    let (inner, mut handle) = tower_test::mock::pair::<Held, ()>();
    let mut service = layer.layer(inner).clone();
    let mut calls = Vec::new();

    for _ in 0..2 {
        let ready = service.ready().await.unwrap();
        calls.push(task::spawn(ready.call(conn("10.0.0.1"))));
    }
    assert_pending!(calls[1].poll());
    for call in &mut calls {
        assert_pending!(call.poll());
        let (held, answer) = handle.next_request().await.unwrap();
        answer.send_response(());
        drop(held);
        assert!(matches!(call.poll(), Poll::Ready(Ok(()))));
    }
}

#[test]
fn eight_threads_never_exceed_the_limit_and_leave_nothing() {
    const LIMIT: usize = 3;
    for wait in [Duration::ZERO, Duration::MAX] {
        let layer = limit(LIMIT).surplus(Surplus::WaitUpTo(wait));
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let served = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let (mut service, now, most, served) = (holds(&layer), &now, &most, &served);
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_time()
                        .build()
                        .unwrap();
                    runtime.block_on(async {
                        for turn in 0..2_000 {
                            let Ok(held) = service.call(conn("10.0.0.1")).await else {
                                continue;
                            };
                            most.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
                            if turn % 7 == 0 {
                                std::thread::yield_now();
                            }
                            now.fetch_sub(1, Relaxed);
                            served.fetch_add(1, Relaxed);
                            drop(held);
                        }
                    });
                });
            }
        });

        assert!(most.into_inner() <= LIMIT);
        assert!(wait == Duration::ZERO || served.into_inner() == 16_000);
        assert_eq!(
            (layer.handle().peers(), layer.handle().surplus_held()),
            (0, 0)
        );
    }
}

// === Changes, and what is seen

#[tokio::test(start_paused = true)]
async fn the_limit_is_swapped_while_it_is_in_use() {
    let (layer, mut service) = waits(limit(1), secs(5));
    let handle = layer.handle();
    let first = open(&mut service, "10.0.0.1").unwrap();
    let mut waiting = [(); 2].map(|()| task::spawn(service.call(conn("10.0.0.1"))));
    for waits in &mut waiting {
        assert_pending!(waits.poll());
    }

    handle.set_limit(2).unwrap();
    assert_eq!(
        waiting
            .each_ref()
            .map(task::Spawn::is_woken),
        [true, false]
    );
    let Poll::Ready(Ok(second)) = waiting[0].poll() else {
        panic!("there is a place");
    };
    handle.set_limit(1).unwrap();
    drop(first);
    assert!(!waiting[1].is_woken());
    drop(second);

    assert!(waiting[1].is_woken());
    assert_eq!((handle.limit(), handle.set_limit(0).is_err()), (1, true));
    assert_eq!(handle.limit(), 1);
}

#[tokio::test]
async fn the_top_are_those_with_the_most_connections() {
    let layer = limit(9);
    let mut service = holds(&layer);
    let mut held = Vec::new();
    for (ip, open_ones) in [("10.0.0.1", 2), ("2001:db8::1", 5), ("10.0.0.3", 1)] {
        held.extend((0..open_ones).map(|_| open(&mut service, ip).unwrap()));
    }

    let handle = layer.handle();
    let two: Vec<_> = handle.top(2);

    assert_eq!(in_use(&handle).len(), 3);
    assert_eq!(
        in_use(&handle)[..two.len()],
        [
            ("2001:db8::/64".to_owned(), 5),
            ("10.0.0.1/32".to_owned(), 2)
        ]
    );
    assert_eq!((handle.peers(), handle.top(0).len()), (3, 0));
    drop(held);
    assert_eq!((handle.peers(), handle.top(usize::MAX).len()), (0, 0));
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let settings = [
        PerPeerLimitLayer::new(0),
        limit(1).capacity(0),
        limit(1).capacity(usize::MAX),
        limit(1).ipv6_prefix(0),
        limit(1).ipv6_prefix(129),
        limit(1).surplus_at_once(0),
    ]
    .map(|layer| layer.unwrap_err().setting());
    let mut unlimited = holds(&limit(usize::MAX));

    let held: Vec<_> = (0..100)
        .map(|_| open(&mut unlimited, "10.0.0.1").unwrap())
        .collect();

    assert_eq!(
        settings,
        [
            "limit",
            "capacity",
            "capacity",
            "ipv6_prefix",
            "ipv6_prefix",
            "surplus_at_once"
        ]
    );
    assert_eq!(held.len(), 100);
}

#[test]
fn types_are_send_and_debug() {
    fn check<T: Send + std::fmt::Debug>() {}
    check::<PerPeerLimitLayer>();
    check::<PerPeerLimit<()>>();
    check::<PerPeerLimitHandle>();
    check::<PeerPlace>();
    check::<TrackedPeer>();
    check::<Surplus<PeerFull>>();
}
