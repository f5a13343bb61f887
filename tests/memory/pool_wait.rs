//! Waiting for a connection: in what order, for how long, and for what.

use std::task::Poll;

use bytes::Bytes;
use tokio::{
    sync::mpsc::unbounded_channel,
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, task};
use tower::ServiceBuilder;
use tower_net::{
    Deadline,
    error::{BoxError, find},
    frame::{Delimited, FrameLayer, Framing, Request},
    pool::{DialElapsed, DialPanicked, PoolCause, PoolError, PoolPhase, Pooling, Served},
};
use tower_service::Service;

use crate::{
    pool::{Get, Lent, Lines, idle, number, pool, settle},
    support::{
        exchange::Answer,
        peer::Peer,
        readings::recorded,
        service::{millis, secs},
    },
};

pub(crate) fn waits(pool: &mut Lines, to: u16) -> task::Spawn<Get> {
    let mut get = task::spawn(pool.call(to));
    assert_pending!(get.poll());
    get
}

pub(crate) fn served(get: &mut task::Spawn<Get>) -> Lent {
    assert!(get.is_woken());
    match get.poll() {
        Poll::Ready(served) => served.unwrap(),
        Poll::Pending => panic!("not served"),
    }
}

pub(crate) fn refused(get: &mut task::Spawn<Get>) -> PoolError {
    assert!(get.is_woken());
    match get.poll() {
        Poll::Ready(served) => served.unwrap_err(),
        Poll::Pending => panic!("not refused"),
    }
}

fn one_place() -> Pooling {
    Pooling::default().max_open(1)
}

// === The first poll

#[tokio::test(start_paused = true)]
async fn a_get_that_is_not_polled_takes_no_place_and_no_turn() {
    let (mut pool, exchange, handle) = pool(one_place());
    let _not_dialled = pool.call(1);
    settle().await;
    let known = handle.snapshot().targets();
    assert_eq!(
        (exchange.dials(), handle.snapshot().open(), known),
        (0, 0, 0)
    );

    let held = pool.call(1).await.unwrap();
    let _not_in_line = [pool.call(1), pool.call(1)];
    let mut get = waits(&mut pool, 1);
    let _behind_it = pool.call(1);
    assert_eq!(handle.snapshot().waiting(), 1);
    held.reuse();

    served(&mut get).reuse();
    assert_eq!((handle.snapshot().idle(), exchange.dials()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_first_poll_decides_who_is_before_whom() {
    let (mut pool, ..) = pool(one_place());
    let held = pool.call(1).await.unwrap();
    let [mut second, mut third] = [task::spawn(pool.call(1)), task::spawn(pool.call(1))];
    let mut first = waits(&mut pool, 1);
    assert_pending!(second.poll());
    assert_pending!(third.poll());

    held.reuse();
    let conn = served(&mut first);
    assert!(!second.is_woken() && !third.is_woken());
    conn.reuse();
    let conn = served(&mut second);
    assert!(!third.is_woken());
    conn.reuse();
    served(&mut third);
}

#[tokio::test(start_paused = true)]
async fn a_get_that_is_dropped_before_it_is_polled_counts_as_nothing() {
    let ((mut pool, _, handle), metrics) = recorded(|| pool(one_place()));
    drop(pool.call(1));
    let held = pool.call(1).await.unwrap();

    for _ in 0..3 {
        let in_line = waits(&mut pool, 1);
        drop((pool.call(1), pool.call(2)));
        assert_eq!(metrics.of("tower_net_pool_waiting", &[]), 1.0);
        drop(in_line);
    }
    drop(held);

    let gets = |labels| metrics.of("tower_net_pool_gets_total", labels);
    assert_eq!((gets(&[]), gets(&[("outcome", "left")])), (4.0, 3.0));
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.waiting(), snapshot.targets()), (0, 0));
    assert_eq!(metrics.of("tower_net_pool_waiting", &[]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_get_waits_from_its_first_poll() {
    let (mut pool, ..) = pool(one_place().within(secs(5)));
    let held = pool.call(1).await.unwrap();
    let mut get = task::spawn(pool.call(1));

    sleep(secs(10)).await;
    assert_pending!(get.poll());
    sleep(secs(4)).await;
    held.reuse();

    let waited = served(&mut get).acquired().waited();
    assert!(waited >= secs(4) && waited < secs(5), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_get_that_was_made_while_others_waited_takes_what_is_idle_when_it_is_polled() {
    let (mut pool, exchange, _) = pool(one_place());
    let held = pool.call(1).await.unwrap();
    let mut before = waits(&mut pool, 1);
    let get = pool.call(1);

    held.reuse();
    served(&mut before).reuse();

    let conn = get.await.unwrap();
    let acquired = conn.acquired();
    assert_eq!(
        (acquired.served(), acquired.waited()),
        (Served::Idle, secs(0))
    );
    assert_eq!(exchange.dials(), 1);
}

// === Places

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_served_in_the_order_of_their_coming() {
    let (mut pool, ..) = pool(one_place());
    let mut held = pool.call(1).await.unwrap();
    let mut line: Vec<_> = (0..8)
        .map(|_| waits(&mut pool, 1))
        .collect();

    for next in 0..8 {
        assert!(held.reuse());
        let woken: Vec<_> = line
            .iter()
            .map(task::Spawn::is_woken)
            .collect();
        assert_eq!(woken.iter().position(|woken| *woken), Some(0), "{next}");
        assert_eq!(
            woken
                .iter()
                .filter(|woken| **woken)
                .count(),
            1
        );
        held = served(&mut line[0]);
        assert_eq!(held.acquired().served(), Served::Late);
        drop(line.remove(0));
    }
}

#[tokio::test(start_paused = true)]
async fn somebody_who_comes_later_does_not_overtake() {
    let (mut pool, exchange, _) = pool(one_place());
    let held = pool.call(1).await.unwrap();
    let mut first = waits(&mut pool, 1);

    drop(held);
    // The place is the first one's, who has not come round to it yet.
    let mut second = waits(&mut pool, 1);
    settle().await;

    assert_pending!(first.poll());
    settle().await;
    let conn = served(&mut first);
    assert_eq!(conn.acquired().served(), Served::Dialled);
    assert!(!second.is_woken());
    conn.reuse();
    served(&mut second);
    assert_eq!((exchange.dials(), exchange.most()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_the_queue_leaves_no_trace() {
    let (mut pool, exchange, handle) = pool(one_place().max_waiting(3));
    let held = pool.call(1).await.unwrap();
    for _ in 0..100 {
        let line: Vec<_> = (0..3)
            .map(|_| waits(&mut pool, 1))
            .collect();
        drop(line);
    }
    let mut last = waits(&mut pool, 1);
    assert_eq!(handle.snapshot().waiting(), 1);

    held.reuse();

    drop(served(&mut last));
    assert_eq!(
        (handle.snapshot().waiting(), handle.snapshot().targets()),
        (0, 0)
    );
    assert_eq!(exchange.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_given_to_one_who_leaves_goes_on_to_the_next() {
    for is_place in [false, true] {
        let (mut pool, _, handle) = pool(one_place());
        let held = pool.call(1).await.unwrap();
        let (given, next) = (waits(&mut pool, 1), waits(&mut pool, 1));

        if is_place {
            drop(held);
        } else {
            held.reuse();
        }
        drop(given);

        assert!(next.is_woken());
        next.await.unwrap().reuse();
        assert_eq!((handle.snapshot().open(), handle.snapshot().idle()), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once() {
    let (mut pool, ..) = pool(one_place().max_waiting(2));
    let _held = pool.call(1).await.unwrap();
    let _line = (waits(&mut pool, 1), waits(&mut pool, 1));

    let mut surplus = task::spawn(pool.call(1));

    let Poll::Ready(Err(error)) = surplus.poll() else {
        panic!("it should be refused");
    };
    assert!(matches!(
        error.cause(),
        PoolCause::QueueFull { bound: 2, .. }
    ));
    assert!(error.is_retryable());
}

#[tokio::test(start_paused = true)]
async fn where_nobody_may_wait_the_pool_is_a_limit() {
    let (mut pool, ..) = pool(one_place().max_waiting(0));
    let held = pool.call(1).await.unwrap();

    let error = pool.call(1).await.unwrap_err();
    drop(held);

    assert!(matches!(
        error.cause(),
        PoolCause::QueueFull { bound: 0, .. }
    ));
    assert!(pool.call(1).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_longest_idle_connection_to_another_target_makes_room() {
    let (mut pool, exchange, handle) = pool(Pooling::default().max_open(3));
    for to in [1, 2, 3] {
        pool.call(to).await.unwrap().reuse();
        sleep(millis(1)).await;
    }
    pool.call(1).await.unwrap().reuse();

    let conn = pool.call(4).await.unwrap();

    assert_eq!((conn.acquired().waited(), exchange.most()), (secs(0), 3));
    assert_eq!(
        (handle.snapshot().idle(), handle.snapshot().targets()),
        (2, 3)
    );
    let served = pool
        .call(1)
        .await
        .unwrap()
        .acquired()
        .served();
    assert_eq!(served, Served::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_connection_given_back_makes_room_for_who_waits_for_another_target() {
    let (mut pool, exchange, _) = pool(one_place());
    let held = pool.call(1).await.unwrap();
    let other = waits(&mut pool, 2);

    assert!(!held.reuse());

    assert!(other.is_woken());
    assert_eq!(other.await.unwrap().acquired().served(), Served::Dialled);
    assert_eq!(exchange.most(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_target_has_a_limit_of_its_own_and_leaves_the_rest_to_others() {
    let pooling = Pooling::default()
        .max_open(3)
        .max_open_per_target(2);
    let (mut pool, exchange, handle) = pool(pooling);
    let held = (pool.call(1).await.unwrap(), pool.call(1).await.unwrap());
    let own = waits(&mut pool, 1);

    let other = pool.call(2).await.unwrap();
    drop(other);
    assert!(!own.is_woken());
    drop(held.0);

    assert_eq!(own.await.unwrap().acquired().served(), Served::Dialled);
    assert_eq!((exchange.most(), handle.snapshot().targets()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_place_in_all_get_it_in_the_order_of_their_coming() {
    let (mut pool, exchange, _) = pool(one_place());
    let mut held = pool.call(1).await.unwrap();
    let mut line: Vec<_> = [2, 3, 2, 1]
        .map(|to| waits(&mut pool, to))
        .into();

    for _ in 0..4 {
        drop(held);
        assert!(
            line[0].is_woken()
                && !line
                    .iter()
                    .skip(1)
                    .any(task::Spawn::is_woken)
        );
        assert_pending!(line[0].poll());
        settle().await;
        held = served(&mut line[0]);
        drop(line.remove(0));
    }
    assert_eq!((exchange.dials(), exchange.most()), (5, 1));
}

// === Late binding

#[tokio::test(start_paused = true)]
async fn a_connection_given_back_is_taken_before_ones_own_dial_and_the_dial_is_kept() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    let held = pool.call(1).await.unwrap();
    exchange.answer(1, Answer::After(secs(1)));
    let mut get = waits(&mut pool, 1);
    settle().await;
    assert_eq!(handle.snapshot().connecting(), 1);

    sleep(millis(300)).await;
    let id = number(&held);
    held.reuse();
    let conn = served(&mut get);
    sleep(secs(1)).await;

    let acquired = conn.acquired();
    assert_eq!((acquired.served(), number(&conn)), (Served::Late, id));
    assert!(acquired.waited() >= millis(300) && acquired.waited() < millis(310));
    assert_eq!((handle.snapshot().idle(), exchange.open()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn whoever_came_first_gets_the_dial_that_is_done_first() {
    let (mut pool, exchange, _) = pool(Pooling::default());
    exchange.answer(1, Answer::After(secs(2)));
    let mut first = waits(&mut pool, 1);
    settle().await;
    exchange.answer(1, Answer::After(secs(1)));
    let mut second = waits(&mut pool, 1);

    sleep(millis(1_500)).await;
    let early = served(&mut first);
    assert!(!second.is_woken());
    sleep(secs(1)).await;
    let late = served(&mut second);

    assert_eq!(early.acquired().served(), Served::Dialled);
    assert_eq!(late.acquired().served(), Served::Dialled);
    assert_eq!(exchange.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn one_whose_dial_served_another_gets_a_new_one_when_the_others_fails() {
    let (mut pool, exchange, _) = pool(Pooling::default());
    exchange.answer(1, Answer::RefuseAfter(secs(2)));
    let mut first = waits(&mut pool, 1);
    settle().await;
    exchange.answer(1, Answer::After(secs(1)));
    let mut second = waits(&mut pool, 1);
    settle().await;

    sleep(millis(1_500)).await;
    let _held = served(&mut first);
    sleep(secs(1)).await;
    assert_pending!(second.poll());
    sleep(secs(2)).await;

    // The failure was of a dial that another had asked for.
    assert_eq!(served(&mut second).acquired().served(), Served::Dialled);
    assert_eq!(exchange.dials(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_on_its_way_to_who_waits_is_replaced_and_the_order_kept() {
    let (mut pool, exchange, _) = pool(one_place());
    let held = pool.call(1).await.unwrap();
    let far = exchange.far(0);
    let (mut first, mut second) = (waits(&mut pool, 1), waits(&mut pool, 1));

    held.reuse();
    drop(far);
    assert!(first.is_woken());
    // It finds the connection dead, whose place goes to the first in the line, which it is again.
    assert_pending!(first.poll());
    settle().await;

    let conn = served(&mut first);
    assert_eq!(conn.acquired().served(), Served::Dialled);
    assert!(!second.is_woken());
    conn.reuse();
    served(&mut second);
    assert_eq!((exchange.dials(), exchange.most()), (2, 1));
}

// === Dials

#[tokio::test(start_paused = true)]
async fn a_dial_that_fails_is_the_failure_of_who_asked_and_lets_the_next_dial() {
    let (mut pool, exchange, handle) = pool(one_place());
    exchange.answer(1, Answer::RefuseAfter(secs(1)));
    let (mut first, mut second) = (waits(&mut pool, 1), waits(&mut pool, 1));
    settle().await;
    exchange.answer(1, Answer::Connect);

    sleep(secs(2)).await;
    let error = refused(&mut first);
    assert!(second.is_woken());
    assert_pending!(second.poll());
    settle().await;

    assert!(matches!(error.cause(), PoolCause::Connect(_)));
    let io = find::<std::io::Error>(&error).unwrap();
    assert_eq!(io.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!((error.waited(), error.is_retryable()), (secs(1), true));
    served(&mut second).reuse();
    assert_eq!((handle.snapshot().open(), exchange.most()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_dial_goes_on_when_its_caller_has_left_and_is_kept() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    exchange.answer(1, Answer::After(secs(1)));

    drop(waits(&mut pool, 1));
    sleep(secs(2)).await;

    assert_eq!(
        (handle.snapshot().idle(), handle.snapshot().waiting()),
        (1, 0)
    );
    let conn = pool.call(1).await.unwrap();
    assert_eq!(
        (conn.acquired().served(), exchange.dials()),
        (Served::Idle, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn dials_that_nobody_waits_for_make_room_for_another_target() {
    let (mut pool, exchange, handle) = pool(Pooling::default().max_open(2));
    exchange.answer(1, Answer::Hang);
    drop((waits(&mut pool, 1), waits(&mut pool, 1)));
    settle().await;
    assert_eq!(handle.snapshot().connecting(), 2);

    let conn = pool.call(2).await.unwrap();

    assert_eq!(conn.acquired().served(), Served::Dialled);
    assert_eq!((handle.snapshot().connecting(), exchange.most()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_dial_has_a_limit_which_the_connectors_below_find_as_their_deadline() {
    let (mut pool, exchange, handle) = pool(Pooling::default().dial_within(secs(3)));
    exchange.answer(1, Answer::Hang);
    let (start, mut get) = (Instant::now(), waits(&mut pool, 1));

    sleep(secs(4)).await;
    let error = refused(&mut get);

    assert_eq!(
        find::<DialElapsed>(&error)
            .unwrap()
            .limit(),
        secs(3)
    );
    assert_eq!(exchange.deadlines(), [Deadline::at(start + secs(3))]);
    assert_eq!((handle.snapshot().open(), exchange.most()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_panics_is_a_dial_that_failed() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    exchange.answer(1, Answer::Panic);

    let error = pool.call(1).await.unwrap_err();

    assert!(find::<DialPanicked>(&error).is_some());
    assert_eq!(handle.snapshot().open(), 0);
}

// === Time

#[tokio::test(start_paused = true)]
async fn a_get_takes_no_longer_than_the_pools_limit_whatever_it_waits_for() {
    for (places, phase) in [(1, PoolPhase::Waiting), (2, PoolPhase::Connecting)] {
        let (mut pool, exchange, handle) = pool(
            Pooling::default()
                .max_open(places)
                .within(secs(5)),
        );
        let _held = pool.call(1).await.unwrap();
        exchange.answer(1, Answer::Hang);
        let mut get = waits(&mut pool, 1);

        sleep(secs(5) - millis(2)).await;
        assert!(!get.is_woken());
        sleep(millis(4)).await;
        let error = refused(&mut get);

        let PoolCause::Elapsed {
            phase: told,
            is_callers: false,
            ..
        } = error.cause()
        else {
            panic!("{error}");
        };
        assert_eq!((*told, handle.snapshot().waiting()), (phase, 0));
        assert!(error.waited() >= secs(5) && error.is_retryable());
    }
}

#[tokio::test(start_paused = true)]
async fn a_get_takes_no_longer_than_the_deadline_of_the_request_it_is_for() {
    let (tell, mut told) = unbounded_channel();
    let (mut pool, exchange, handle) = pool(one_place().within(secs(5)));
    let held = pool.call(1).await.unwrap();
    let asking = pool.clone();
    let framing = Framing::default().handler_deadline(secs(2));
    let service = ServiceBuilder::new()
        .layer(FrameLayer::with_framing(Delimited::lines(64), framing).unwrap())
        .service_fn(move |_: Request<Bytes>| {
            let (mut pool, tell) = (asking.clone(), tell.clone());
            async move {
                let start = Instant::now();
                let by = Deadline::current();
                let get = pool.call(1);
                tokio::spawn(async move {
                    let error = get.await.unwrap_err();
                    tell.send((error, by.has_passed(), start.elapsed()))
                });
                sleep(secs(1)).await;
                Ok::<_, BoxError>("asked")
            }
        });
    let mut peer = Peer::of(service);

    peer.send("now\n").await;
    assert_eq!(peer.hear().await, "asked");
    assert_eq!(handle.snapshot().waiting(), 1);
    sleep(secs(2)).await;

    assert_eq!((handle.snapshot().waiting(), exchange.dials()), (0, 1));
    held.reuse();
    let (error, has_passed, took) = told.recv().await.unwrap();
    let PoolCause::Elapsed { is_callers, .. } = error.cause() else {
        panic!("{error}");
    };
    assert!(is_callers & !error.is_retryable());
    assert!(has_passed && took < secs(3));
}

#[tokio::test(start_paused = true)]
async fn one_who_waits_less_than_those_before_gives_up_before_them() {
    let (mut pool, ..) = pool(one_place().within(secs(20)));
    let _held = pool.call(1).await.unwrap();
    let mut early = waits(&mut pool, 1);

    sleep(secs(15)).await;
    let mut late = waits(&mut pool, 1);
    sleep(secs(6)).await;

    assert!(matches!(
        refused(&mut early).cause(),
        PoolCause::Elapsed { .. }
    ));
    assert_pending!(late.poll());
}

// === What is said of it

#[tokio::test(start_paused = true)]
async fn the_whole_line_is_told_what_there_is_to_say() {
    let (mut pool, exchange, _) = pool(Pooling::default().within(secs(1)));
    idle(&mut pool, 1).await;
    let _held = pool.call(1).await.unwrap();
    exchange.answer(1, Answer::Hang);

    let error = pool.call(1).await.unwrap_err();

    let text = error.to_string();
    assert!(text.starts_with("no connection after 1"), "{text}");
    assert!(
        text.ends_with(": the pool's limit passed while connecting"),
        "{text}"
    );
}
