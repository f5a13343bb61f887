use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
};

use tokio::{net::UnixStream, time::Instant};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, Safeguard,
    error::{BoxError, find},
    io::{GuardedIo, Io},
    limit::{ConnectionLimit, ConnectionLimitHandle, ConnectionLimitLayer, Full, OverLimit, Place},
    meter::MeterLayer,
};
use tower_service::Service;

use crate::support::{
    io::{Script, Witness},
    service::secs,
};

type Held = Conn<GuardedIo<Script, Place>>;
type Holds = ConnectionLimit<tower::util::BoxCloneService<Held, Held, BoxError>>;

/// A service that hands its connections back, and a view of its places.
fn holds(limit: usize, over: OverLimit) -> (Holds, ConnectionLimitHandle) {
    let layer = ConnectionLimitLayer::new(limit).unwrap();
    let layer = layer.over_limit(over);
    let inner = service_fn(async |conn: Held| Ok(conn)).boxed_clone();
    (layer.layer(inner), layer.handle())
}

fn conn() -> Conn<Script> {
    Conn::new(Script::new(), ())
}

/// Makes it ready, as an accept loop would, and calls it.
async fn open(service: &mut Holds) -> Result<Held, BoxError> {
    service
        .ready()
        .await?
        .call(conn())
        .await
}

fn poll_ready(service: &mut task::Spawn<Holds>) -> Poll<Result<(), BoxError>> {
    service.enter(|cx, mut service| Service::<Conn<Script>>::poll_ready(&mut *service, cx))
}

// === One too many

#[tokio::test]
async fn the_surplus_is_reset_before_a_byte_of_it_is_read() {
    let layer = ConnectionLimitLayer::new(1).unwrap();
    let mut service = layer.layer(service_fn(async |conn: Conn<GuardedIo<_, _>>| {
        Ok::<_, BoxError>(conn)
    }));
    let (first, _far) = UnixStream::pair().unwrap();
    let (second, _other_far) = UnixStream::pair().unwrap();
    let [(first, _), (second, closed)] = [first, second].map(Witness::pair);
    let refused = Conn::new(second, ());
    let info = Arc::clone(refused.info());

    let _held = service
        .call(Conn::new(first, ()))
        .await
        .unwrap();
    let error = service.call(refused).await.unwrap_err();

    let full = find::<Full>(&*error).unwrap();
    assert_eq!((full.limit(), full.never_started()), (1, true));
    assert_eq!(info.close_reason(), Some(CloseReason::Limit));
    assert!(closed.is_reset());
}

#[tokio::test]
async fn a_refusal_happens_in_the_call_and_needs_no_poll() {
    let (mut service, handle) = holds(1, OverLimit::Reset);
    let _held = open(&mut service).await.unwrap();
    let refused = conn();
    let info = Arc::clone(refused.info());

    let _never_polled = service.call(refused);

    assert_eq!(info.close_reason(), Some(CloseReason::Limit));
    assert_eq!(handle.in_use(), 1);
}

#[tokio::test]
async fn the_surplus_waits_until_a_place_is_free() {
    let (mut service, handle) = holds(1, OverLimit::Wait);
    let held = open(&mut service).await.unwrap();
    let mut waits = task::spawn(service.clone());
    assert_pending!(poll_ready(&mut waits));

    drop(held);

    assert!(waits.is_woken());
    assert_ready_ok!(poll_ready(&mut waits));
    assert_eq!(handle.in_use(), 1);
}

#[tokio::test]
async fn all_who_wait_are_woken_in_their_order() {
    let (mut service, _) = holds(1, OverLimit::Wait);
    let held = open(&mut service).await.unwrap();
    let mut waiting: Vec<_> = (0..3)
        .map(|_| task::spawn(service.clone()))
        .collect();
    for waits in &mut waiting {
        assert_pending!(poll_ready(waits));
    }

    drop(held);
    for mut waits in waiting {
        assert!(waits.is_woken());
        assert_ready_ok!(poll_ready(&mut waits));
    }
}

#[tokio::test(start_paused = true)]
async fn the_surplus_waits_up_to_a_time_and_is_then_reset() {
    let (mut service, _) = holds(1, OverLimit::WaitUpTo(secs(5)));
    let held = open(&mut service).await.unwrap();
    let start = Instant::now();

    let second = open(&mut service).await;
    let waited = start.elapsed();
    let third = open(&mut service).await;
    drop(held);
    let fourth = open(&mut service).await;

    assert!(find::<Full>(&*second.unwrap_err()).is_some());
    assert!(third.is_err() && fourth.is_ok());
    assert_eq!((waited, start.elapsed()), (secs(5), secs(5)));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_free_in_time_is_taken() {
    let (mut service, _) = holds(1, OverLimit::WaitUpTo(secs(5)));
    let held = open(&mut service).await.unwrap();

    let leaving = async {
        tokio::time::sleep(secs(4)).await;
        drop(held);
    };
    let ((), second) = tokio::join!(leaving, open(&mut service));

    assert!(second.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_free_once_the_wait_is_over_is_taken_all_the_same() {
    let (mut service, _) = holds(1, OverLimit::WaitUpTo(secs(5)));
    let held = open(&mut service).await.unwrap();
    let waited_in_vain = service.ready().await.unwrap();

    drop(held);

    assert!(
        waited_in_vain
            .call(conn())
            .await
            .is_ok()
    );
}

// === The limit holds

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_clones_never_exceed_the_limit() {
    for over in [OverLimit::Reset, OverLimit::Wait] {
        let layer = ConnectionLimitLayer::new(5)
            .unwrap()
            .over_limit(over);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (inside, peak) = (Arc::clone(&now), Arc::clone(&most));
        let service = layer.layer(service_fn(move |conn: Held| {
            peak.fetch_max(inside.fetch_add(1, Relaxed) + 1, Relaxed);
            let inside = Arc::clone(&inside);
            async move {
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Relaxed);
                drop(conn);
                Ok::<_, BoxError>(())
            }
        }));

        let clones = (0..64).map(|_| {
            let mut service = service.clone();
            tokio::spawn(async move {
                let mut served = 0;
                for _ in 0..50 {
                    let ready = service.ready().await.unwrap();
                    served += usize::from(ready.call(conn()).await.is_ok());
                }
                served
            })
        });
        let mut served = 0;
        for clone in clones.collect::<Vec<_>>() {
            served += clone.await.unwrap();
        }

        assert!(most.load(Relaxed) <= 5);
        assert_eq!((now.load(Relaxed), layer.handle().in_use()), (0, 0));
        assert!(over == OverLimit::Reset || served == 64 * 50);
    }
}

#[tokio::test]
async fn layers_cloned_from_one_share_its_places() {
    let layer = ConnectionLimitLayer::new(1).unwrap();
    let inner = || service_fn(async |conn: Held| Ok::<_, BoxError>(conn));
    let (mut one, mut other) = (layer.clone().layer(inner()), layer.layer(inner()));

    let held = one.call(conn()).await;
    let refused = other.call(conn()).await;

    assert!(held.is_ok() && refused.is_err());
}

#[test]
fn zero_is_refused_and_the_largest_number_is_no_limit() {
    let zero = ConnectionLimitLayer::new(0).unwrap_err();
    let (mut service, handle) = holds(usize::MAX, OverLimit::Wait);

    assert_eq!(zero.setting(), "limit");
    assert!(handle.limit() > 1 << 40);
    let mut ready = task::spawn(service.ready());
    assert!(matches!(ready.poll(), Poll::Ready(Ok(_))));
}

// === A place is free again

#[tokio::test]
async fn ready_then_dropped_frees_the_place() {
    let (service, handle) = holds(1, OverLimit::Wait);
    let mut ready = task::spawn(service.clone());
    assert_ready_ok!(poll_ready(&mut ready));
    let taken = handle.in_use();

    drop(ready);

    assert_eq!((taken, handle.in_use()), (1, 0));
}

#[tokio::test]
async fn a_clone_is_not_ready_and_takes_no_place_along() {
    let (service, handle) = holds(1, OverLimit::Wait);
    let mut ready = task::spawn(service);
    assert_ready_ok!(poll_ready(&mut ready));

    let mut clone = task::spawn((*ready).clone());

    assert_pending!(poll_ready(&mut clone));
    assert_eq!(handle.in_use(), 1);
}

#[tokio::test]
async fn one_who_waited_and_gave_up_is_in_nobodys_way() {
    let (mut service, _) = holds(1, OverLimit::Wait);
    let held = open(&mut service).await.unwrap();
    let mut gave_up = task::spawn(service.clone());
    let mut waits = task::spawn(service.clone());
    assert_pending!(poll_ready(&mut gave_up));
    assert_pending!(poll_ready(&mut waits));

    drop(gave_up);
    drop(held);

    assert!(waits.is_woken());
    assert_ready_ok!(poll_ready(&mut waits));
}

#[tokio::test]
async fn a_future_dropped_early_frees_its_place() {
    let (mut service, handle) = holds(1, OverLimit::Wait);
    let mut calling = task::spawn(service.ready());
    let Poll::Ready(Ok(ready)) = calling.poll() else {
        panic!("there is a place");
    };

    let called = ready.call(conn());
    let taken = handle.in_use();
    drop(called);

    assert_eq!((taken, handle.in_use()), (1, 0));
}

#[tokio::test]
async fn a_finished_future_kept_alive_holds_no_place() {
    let layer = ConnectionLimitLayer::new(1).unwrap();
    let mut service = layer.layer(service_fn(async |conn: Held| {
        drop(conn);
        Ok::<_, BoxError>(())
    }));

    let mut finished = task::spawn(service.call(conn()));
    assert_ready_ok!(finished.poll());

    assert_eq!(layer.handle().in_use(), 0);
}

#[tokio::test]
async fn a_place_lives_as_long_as_the_stream_and_not_the_future() {
    let (mut service, handle) = holds(1, OverLimit::Reset);

    let held = open(&mut service).await.unwrap();
    let moved = held.map_io(|io| GuardedIo::new(io, ()));
    let during = handle.in_use();
    drop(moved);

    assert_eq!((during, handle.in_use()), (1, 0));
}

#[tokio::test]
async fn a_panic_frees_its_place_each_time() {
    let layer = ConnectionLimitLayer::new(3).unwrap();
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
                task::spawn(service.call(conn()))
                    .poll()
                    .is_ready()
            }));

            assert!(panicked.is_err());
        }
        assert_eq!(layer.handle().in_use(), 0);
    }
}

#[tokio::test]
async fn an_inner_service_that_is_not_ready_holds_no_place() {
    let layer = ConnectionLimitLayer::new(1)
        .unwrap()
        .over_limit(OverLimit::Wait);
    let (inner, mut handle) = tower_test::mock::pair::<Held, ()>();
    handle.allow(0);
    let mut service = task::spawn(layer.layer(inner));

    let ready = service
        .enter(|cx, mut service| Service::<Conn<Script>>::poll_ready(&mut *service, cx).is_ready());

    assert!(!ready);
    assert_eq!(layer.handle().in_use(), 0);
}

#[tokio::test]
async fn the_instance_that_was_made_ready_is_the_one_called() {
    let layer = ConnectionLimitLayer::new(2).unwrap();
    // A mock panics when it is called without having been made ready.
    let (inner, mut handle) = tower_test::mock::pair::<Held, ()>();
    let mut service = layer.layer(inner).clone();

    let call = service
        .ready()
        .await
        .unwrap()
        .call(conn());
    let (held, answer) = handle.next_request().await.unwrap();
    answer.send_response(());

    assert!(call.await.is_ok());
    drop(held);
}

#[tokio::test]
async fn a_refusal_is_counted_by_its_reason() {
    let (layer, metrics) =
        crate::support::readings::recorded(|| ConnectionLimitLayer::new(1).unwrap());
    let (meter, tally) = MeterLayer::pair("test");
    let mut service = tower::ServiceBuilder::new()
        .layer(meter)
        .layer(layer)
        .service_fn(async |conn: Conn<_>| Ok::<_, BoxError>(conn));

    let _held = service.call(conn()).await.unwrap();
    for _ in 0..2 {
        let refused = service.call(conn()).await;
        assert!(refused.is_err());
    }

    let refused = metrics.of("tower_net_refused_total", &[("reason", "limit")]);
    assert_eq!(
        (
            refused,
            tally
                .snapshot()
                .closed_for(CloseReason::Limit)
        ),
        (2.0, 2)
    );
    assert_eq!(tally.snapshot().active(), 1);
}

#[tokio::test]
async fn a_dry_run_counts_what_it_would_have_refused_or_held_and_serves_it() {
    for over in [
        OverLimit::Reset,
        OverLimit::Wait,
        OverLimit::WaitUpTo(secs(5)),
    ] {
        let (layer, metrics) = crate::support::readings::recorded(|| {
            let layer = ConnectionLimitLayer::new(1).unwrap();
            layer.over_limit(over).dry_run(true)
        });
        let mut service = layer.layer(service_fn(async |conn: Held| Ok::<_, BoxError>(conn)));
        let mut ready = || {
            let mut ready = task::spawn(ServiceExt::<Conn<Script>>::ready(&mut service));
            let Poll::Ready(Ok(ready)) = ready.poll() else {
                panic!("a dry run makes nobody wait");
            };
            ready.call(conn())
        };

        let (first, surplus) = (ready().await.unwrap(), ready().await.unwrap());
        let in_use = layer.handle().in_use();
        drop(first);
        let third = ready().await.unwrap();

        let of = |name| metrics.of(name, &[("reason", "limit")]);
        assert_eq!(
            (of("tower_net_dry_run_total"), of("tower_net_refused_total")),
            (1.0, 0.0)
        );
        assert_eq!((in_use, layer.handle().in_use()), (1, 1));
        assert_eq!(surplus.info().close_reason(), None);
        assert!(
            !third
                .info()
                .has_passed(Safeguard::ConnectionLimit)
        );
    }
}

#[test]
fn types_are_send_and_debug() {
    fn check<T: Send + std::fmt::Debug>() {}
    check::<ConnectionLimitLayer>();
    check::<ConnectionLimit<()>>();
    check::<ConnectionLimitHandle>();
    check::<Place>();
    fn io<I: Io>() {}
    io::<GuardedIo<Script, Place>>();
}
