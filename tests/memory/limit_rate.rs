use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, duplex},
    net::UnixStream,
    time::{Instant, advance},
};
use tokio_test::{assert_pending, task};
use tower::{ServiceExt, service_fn, util::BoxCloneService};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, Networks,
    error::{BoxError, NoTimer, find},
    io::Io,
    limit::{ConnectRate, ConnectRateHandle, ConnectRateLayer, Surplus, TooFast},
    meter::MeterLayer,
};
use tower_service::Service;

use crate::support::{
    io::{Script, Witness},
    readings::recorded,
    service::{millis, secs},
};

type Held<I = Script> = Conn<I>;
type Holds<I = Script> = ConnectRate<BoxCloneService<Held<I>, Held<I>, BoxError>>;

fn rate(per_second: f64, burst: u32) -> ConnectRateLayer {
    ConnectRateLayer::new(per_second, burst).unwrap()
}

/// A service that hands its connections back.
fn holds<I: Io>(layer: &ConnectRateLayer) -> Holds<I> {
    layer.layer(service_fn(async |conn: Held<I>| Ok(conn)).boxed_clone())
}

fn peer(ip: impl ToString) -> SocketAddr {
    SocketAddr::new(ip.to_string().parse().unwrap(), 4000)
}

fn conn(ip: impl ToString) -> Conn<Script> {
    Conn::new(Script::new(), peer(ip))
}

/// A connection that is answered in its first poll.
fn connect(service: &mut Holds, ip: impl ToString) -> Result<Held, BoxError> {
    match task::spawn(service.call(conn(ip))).poll() {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("neither served nor refused"),
    }
}

/// How many of so many get in now.
fn admitted(service: &mut Holds, ip: &str, tries: usize) -> usize {
    let gets_in = |_: &usize| connect(service, ip).is_ok();
    (0..tries).filter(gets_in).count()
}

fn too_fast(error: &BoxError) -> TooFast {
    *find::<TooFast>(&**error).unwrap()
}

fn used(handle: &ConnectRateHandle) -> Vec<(String, u64)> {
    let top = handle.top(10);
    top.iter()
        .map(|peer| (peer.network().unwrap().to_string(), peer.used()))
        .collect()
}

// === The rate

#[tokio::test(start_paused = true)]
async fn a_burst_at_once_and_then_the_rate() {
    let mut service = holds(&rate(10.0, 5));

    assert_eq!(admitted(&mut service, "10.0.0.1", 20), 5);
    assert_eq!(admitted(&mut service, "10.0.0.2", 20), 5);
    let mut later = 0;
    for _ in 0..100 {
        advance(millis(10)).await;
        later += admitted(&mut service, "10.0.0.1", 3);
    }
    assert_eq!(later, 10);
    advance(secs(10)).await;
    assert_eq!(admitted(&mut service, "10.0.0.1", 20), 5);
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_all_the_time_gets_its_rate_and_is_told_when() {
    let mut service = holds(&rate(0.5, 1));

    assert_eq!(admitted(&mut service, "10.0.0.1", 100), 1);
    advance(millis(500)).await;
    let refused = too_fast(&connect(&mut service, "10.0.0.1").unwrap_err());
    advance(refused.retry_after()).await;

    assert_eq!(
        (refused.retry_after(), refused.per_second(), refused.burst()),
        (millis(1_500), 0.5, 1)
    );
    assert_eq!(
        (
            refused
                .network()
                .unwrap()
                .to_string()
                .as_str(),
            refused.never_started()
        ),
        ("10.0.0.1/32", true)
    );
    assert!(connect(&mut service, "10.0.0.1").is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_clock_is_the_moment_of_the_accept() {
    let mut service = holds(&rate(1.0, 1));
    let accepted: Vec<_> = {
        let mut accepted = Vec::new();
        for _ in 0..3 {
            accepted.push(conn("10.0.0.1"));
            advance(secs(1)).await;
        }
        accepted
    };

    // They all come here at the same time.
    for conn in accepted {
        assert!(service.call(conn).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_is_one_peer_in_both_spellings_and_a_network_in_ipv6() {
    let layer = rate(1.0, 1);
    let mut service = holds(&layer);

    for (first, second) in [
        ("192.0.2.7", "::ffff:192.0.2.7"),
        ("2001:db8::1", "2001:db8::ffff:1"),
    ] {
        assert!(connect(&mut service, first).is_ok());
        assert!(connect(&mut service, second).is_err());
    }
    let mut narrower = holds(&rate(1.0, 1).ipv6_prefix(128).unwrap());
    assert!(connect(&mut narrower, "2001:db8::1").is_ok());
    assert!(connect(&mut narrower, "2001:db8::ffff:1").is_ok());
    assert_eq!(layer.handle().peers(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_exempt_and_who_has_no_address_have_no_rate() {
    let layer = rate(1.0, 1).exempt(Networks::parse(["10.0.0.0/8"]).unwrap());
    let mut service = holds(&layer);
    let mut counted = holds(&layer.clone().count_unnamed(true));

    assert_eq!(admitted(&mut service, "10.0.0.1", 50), 50);
    for first in [true, false] {
        let unnamed = || Conn::new(Script::new(), ());
        assert!(service.call(unnamed()).await.is_ok());
        assert_eq!(counted.call(unnamed()).await.is_ok(), first);
    }
    assert_eq!(layer.handle().top(5)[0].network(), None);
}

#[tokio::test(start_paused = true)]
async fn a_peer_is_forgotten_when_its_burst_is_whole_again() {
    let layer = rate(1.0, 10);
    let (mut service, handle) = (holds(&layer), layer.handle());
    admitted(&mut service, "10.0.0.1", 3);
    admitted(&mut service, "10.0.0.2", 1);
    let before = used(&handle);

    advance(millis(1_500)).await;
    let after = used(&handle);
    advance(millis(1_500)).await;

    let peers = |one, other| {
        let one = ("10.0.0.1/32".to_owned(), one);
        [one, ("10.0.0.2/32".to_owned(), other)]
    };
    assert_eq!(before, peers(3, 1));
    assert_eq!(after, peers(2, 0)[..1]);
    assert_eq!((handle.peers(), handle.top(5).len()), (0, 0));
}

// === One too many

#[tokio::test]
async fn the_surplus_is_reset_in_the_call_and_needs_no_poll() {
    let mut service = holds(&rate(0.001, 1));
    let pair = || {
        let (near, far) = UnixStream::pair().unwrap();
        let (near, closed) = Witness::pair(near);
        (Conn::new(near, peer("10.0.0.1")), closed, far)
    };
    let ((first, ..), (second, closed, _far)) = (pair(), pair());
    let info = Arc::clone(second.info());

    let _held = service.call(first).await.unwrap();
    let _never_polled = service.call(second);

    assert_eq!(info.close_reason(), Some(CloseReason::ConnectRate));
    assert!(closed.is_reset());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_counted_by_its_reason() {
    let (layer, metrics) = recorded(|| rate(1.0, 1));
    let (meter, tally) = MeterLayer::pair("test");
    let mut service =
        meter.layer(layer.layer(service_fn(async |conn: Conn<_>| Ok::<_, BoxError>(conn))));

    let _held = service
        .call(conn("10.0.0.1"))
        .await
        .unwrap();
    for _ in 0..2 {
        assert!(
            service
                .call(conn("10.0.0.1"))
                .await
                .is_err()
        );
    }

    let reason = [("reason", "connect_rate")];
    assert_eq!(metrics.of("tower_net_refused_total", &reason), 2.0);
    let snapshot = tally.snapshot();
    assert_eq!(
        (
            snapshot.closed_for(CloseReason::ConnectRate),
            snapshot.active()
        ),
        (2, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_what_it_would_have_refused_and_serves_it() {
    let (layer, metrics) = recorded(|| rate(1.0, 2));
    let layer = layer
        .dry_run(true)
        .surplus(Surplus::WaitUpTo(secs(5)));
    let mut service = holds(&layer);

    assert_eq!(admitted(&mut service, "10.0.0.1", 5), 5);
    advance(secs(1)).await;
    assert_eq!(admitted(&mut service, "10.0.0.1", 2), 2);

    let reason = [("reason", "connect_rate")];
    assert_eq!(metrics.of("tower_net_dry_run_total", &reason), 3.0 + 1.0);
    assert_eq!(metrics.of("tower_net_refused_total", &reason), 0.0);
}

// === The surplus waits, and so is shaped

#[tokio::test(start_paused = true)]
async fn the_surplus_comes_in_at_the_rate() {
    let layer = rate(10.0, 1).surplus(Surplus::WaitUpTo(secs(1)));
    let mut service = holds(&layer);
    let start = Instant::now();

    let calls: Vec<_> = (0..12)
        .map(|_| {
            let call = service.call(conn("10.0.0.1"));
            tokio::spawn(async move { (call.await.is_ok(), start.elapsed()) })
        })
        .collect();
    let mut ends = Vec::new();
    for call in calls {
        ends.push(call.await.unwrap());
    }

    // A timer goes off within the millisecond after.
    for (at, (served, when)) in (0..11).zip(&ends) {
        let due = millis(at * 100);
        assert!(
            *served && *when >= due && *when <= due + millis(1),
            "{at}: {when:?}"
        );
    }
    assert_eq!(ends[11], (false, Duration::ZERO));
    assert_eq!(layer.handle().surplus_held(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_when_its_time_has_come() {
    let mut service = holds(&rate(1.0, 1).surplus(Surplus::WaitUpTo(secs(5))));
    let _first = connect(&mut service, "10.0.0.1").unwrap();
    let mut waiting = task::spawn(service.call(conn("10.0.0.1")));
    assert_pending!(waiting.poll());

    advance(millis(990)).await;
    assert!(!waiting.is_woken());
    advance(millis(11)).await;

    assert!(waiting.is_woken());
    assert!(matches!(waiting.poll(), Poll::Ready(Ok(_))));
}

#[tokio::test(start_paused = true)]
async fn as_many_wait_as_may_and_the_rest_is_reset_and_takes_no_turn() {
    let layer = rate(1.0, 1)
        .surplus(Surplus::WaitUpTo(secs(60)))
        .surplus_at_once(2)
        .unwrap();
    let mut service = holds(&layer);
    let _first = connect(&mut service, "10.0.0.1").unwrap();

    let waiting = [(); 2].map(|()| task::spawn(service.call(conn("10.0.0.1"))));
    let refused = [(); 9].map(|()| connect(&mut service, "10.0.0.1").is_err());
    let (held, ahead) = (layer.handle().surplus_held(), used(&layer.handle()));
    drop(waiting);

    assert_eq!((refused, held), ([true; 9], 2));
    assert_eq!(ahead, [("10.0.0.1/32".to_owned(), 3)]);
    assert_eq!(layer.handle().surplus_held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_wait() {
    let mut service = holds(&rate(0.001, 1).surplus(Surplus::WaitUpTo(Duration::MAX)));
    let _first = connect(&mut service, "10.0.0.1").unwrap();
    let waits = conn("10.0.0.1");
    let info = Arc::clone(waits.info());
    let mut waiting = task::spawn(service.call(waits));
    assert_pending!(waiting.poll());

    info.close_after_reply();

    assert!(waiting.is_woken());
    assert!(matches!(waiting.poll(), Poll::Ready(Err(_))));
}

#[tokio::test(start_paused = true)]
async fn no_time_is_no_wait() {
    let mut service = holds(&rate(1.0, 1).surplus(Surplus::WaitUpTo(Duration::ZERO)));

    assert_eq!(admitted(&mut service, "10.0.0.1", 5), 1);
}

#[test]
fn waiting_on_a_runtime_that_keeps_no_time_fails_when_the_server_begins() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut service = holds(&rate(1.0, 1).surplus(Surplus::WaitUpTo(secs(1))));

    let ready = async {
        ServiceExt::<Conn<Script>>::ready(&mut service)
            .await
            .map(drop)
    };
    let error = runtime.block_on(ready).unwrap_err();

    assert!(find::<NoTimer>(&*error).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_last_word_can_say_when_to_come_again() {
    let layer = rate(0.1, 1).surplus(Surplus::last_word_with(|refused: &TooFast, _| {
        format!("Retry-After: {}\n", refused.retry_after().as_secs()).into()
    }));
    let mut service = holds(&layer);
    let (near, _far) = duplex(64);
    let _held = service
        .call(Conn::new(near, peer("10.0.0.1")))
        .await
        .unwrap();

    let (near, mut far) = duplex(64);
    let call = tokio::spawn(service.call(Conn::new(near, peer("10.0.0.1"))));
    let mut heard = String::new();
    far.read_to_string(&mut heard)
        .await
        .unwrap();
    drop(far);

    assert_eq!(heard, "Retry-After: 10\n");
    assert!(call.await.unwrap().is_err());
}

// === Under load

#[test]
fn eight_threads_are_let_in_at_the_rate_and_no_more() {
    for per_second in [1.0, 50.0, 1_000.0] {
        let (layer, served) = (rate(per_second, 10), AtomicUsize::new(0));
        let run_for = millis(300);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let (mut service, served) = (holds(&layer), &served);
                scope.spawn(move || {
                    while begun.elapsed() < run_for {
                        let gets_in = connect(&mut service, "10.0.0.1").is_ok();
                        served.fetch_add(usize::from(gets_in), Relaxed);
                    }
                });
            }
        });

        let most = begun.elapsed().as_secs_f64() * per_second + 10.0;
        let served = served.into_inner() as f64;
        // How often they get to run on a busy machine is chance, but for the burst.
        assert!((10.0..=most).contains(&served), "{served}, at most {most}");
    }
}

#[tokio::test]
async fn the_instance_that_was_made_ready_is_the_one_called() {
    // A mock panics when it is called without having been made ready.
    let layer = rate(1_000.0, 1).surplus(Surplus::WaitUpTo(secs(5)));
    let (inner, mut handle) = tower_test::mock::pair::<Held, ()>();
    let mut service = layer.layer(inner).clone();

    for _ in 0..3 {
        let ready = service.ready().await.unwrap();
        let call = tokio::spawn(ready.call(conn("10.0.0.1")));
        let (_held, answer) = handle.next_request().await.unwrap();
        answer.send_response(());
        assert!(call.await.unwrap().is_ok());
    }
}

// === Changes

#[tokio::test(start_paused = true)]
async fn the_rate_is_swapped_while_it_is_in_use_and_what_was_used_stays_used() {
    let layer = rate(0.001, 4);
    let (mut service, handle) = (holds(&layer), layer.handle());
    assert_eq!(admitted(&mut service, "10.0.0.1", 3), 3);

    handle.set_rate(1.0, 5).unwrap();

    assert_eq!((handle.per_second(), handle.burst()), (1.0, 5));
    assert_eq!(admitted(&mut service, "10.0.0.1", 9), 2);
    advance(secs(1)).await;
    assert_eq!(admitted(&mut service, "10.0.0.1", 9), 1);
    assert!(handle.set_rate(0.0, 5).is_err());
    assert_eq!(handle.per_second(), 1.0);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let new = ConnectRateLayer::new;
    for (refused, setting) in [
        (new(0.0, 1), "per_second"),
        (new(-1.0, 1), "per_second"),
        (new(f64::NAN, 1), "per_second"),
        (new(f64::INFINITY, 1), "per_second"),
        (new(1e-12, 1), "per_second"),
        (new(1.0, u32::MAX), "per_second"),
        (new(1.0, 0), "burst"),
        (rate(1.0, 1).capacity(0), "capacity"),
        (rate(1.0, 1).ipv6_prefix(0), "ipv6_prefix"),
        (rate(1.0, 1).surplus_at_once(0), "surplus_at_once"),
    ] {
        assert_eq!(refused.unwrap_err().setting(), setting);
    }
}

#[tokio::test(start_paused = true)]
async fn the_fastest_rate_is_no_limit_and_the_slowest_lets_in_its_burst_and_no_more() {
    let mut fastest = holds(&rate(f64::MAX, u32::MAX));
    let mut slowest = holds(&rate(1e-9, 3));

    assert_eq!(admitted(&mut fastest, "10.0.0.1", 1_000), 1_000);
    assert_eq!(admitted(&mut slowest, "10.0.0.1", 1_000), 3);
    advance(secs(86_400 * 365)).await;
    assert_eq!(admitted(&mut slowest, "10.0.0.1", 1_000), 0);
}

#[test]
fn types_are_send_and_debug() {
    fn check<T: Send + std::fmt::Debug>() {}
    check::<ConnectRateLayer>();
    check::<ConnectRate<()>>();
    check::<ConnectRateHandle>();
    check::<Surplus<TooFast>>();
}
