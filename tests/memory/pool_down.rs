//! Targets that cannot be reached: when they are left alone, and for how long.

use std::time::Duration;

use tokio::time::sleep;
use tokio_test::assert_pending;
use tower_net::pool::{ConnectBackoff, PoolCause, PoolError, Pooling, Served};
use tower_service::Service;

use crate::{
    pool::{Lines, pool, settle},
    pool_wait::{refused, served, waits},
    support::{
        exchange::Answer,
        service::{millis, secs},
    },
};

fn backoff() -> ConnectBackoff {
    ConnectBackoff::default().even_alone(true)
}

/// What is left of the pause that somebody was refused for.
fn left(error: &PoolError) -> Duration {
    match error.cause() {
        PoolCause::Backoff { left, .. } => *left,
        _ => panic!("{error}"),
    }
}

async fn fail(pool: &mut Lines, times: usize) {
    for _ in 0..times {
        let error = pool.call(1).await.unwrap_err();
        assert!(matches!(error.cause(), PoolCause::Connect(_)), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_fails_in_a_row_is_left_alone_until_one_dial_succeeds() {
    let (mut pool, exchange, handle) = pool(Pooling::default().backoff(backoff()));
    exchange.answer(1, Answer::Refuse);
    fail(&mut pool, 3).await;

    let error = pool.call(1).await.unwrap_err();
    let PoolCause::Backoff {
        failures: 3, left, ..
    } = error.cause()
    else {
        panic!("{error}");
    };
    assert!(*left >= millis(99) && *left <= millis(200), "{left:?}");
    assert!(error.is_retryable());
    sleep(millis(201)).await;
    exchange.answer(1, Answer::After(secs(1)));
    let mut probe = waits(&mut pool, 1);
    settle().await;
    let others = pool.call(1).await.unwrap_err();
    sleep(secs(2)).await;

    assert!(matches!(others.cause(), PoolCause::Backoff { left, .. } if left.is_zero()));
    let _probe = served(&mut probe);
    exchange.answer(1, Answer::Connect);
    assert!(pool.call(1).await.is_ok());
    assert_eq!((exchange.dials(), handle.snapshot().waiting()), (5, 0));
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_with_each_failure_and_begin_anew_after_a_success() {
    let (mut pool, exchange, _) = pool(Pooling::default().backoff(backoff()));
    exchange.answer(1, Answer::Refuse);
    fail(&mut pool, 2).await;

    let mut pauses = Vec::new();
    for _ in 0..5 {
        fail(&mut pool, 1).await;
        let pause = left(&pool.call(1).await.unwrap_err());
        pauses.push(pause);
        sleep(pause + millis(1)).await;
    }
    for (pause, least) in pauses
        .iter()
        .zip([100, 200, 400, 800, 1_600])
    {
        let least = millis(least);
        assert!(
            (least - millis(2)..=least * 2).contains(pause),
            "{pauses:?}"
        );
    }
    exchange.answer(1, Answer::Connect);
    drop(pool.call(1).await.unwrap());
    exchange.answer(1, Answer::Refuse);

    fail(&mut pool, 3).await;
    assert!(left(&pool.call(1).await.unwrap_err()) <= millis(200));
}

#[tokio::test(start_paused = true)]
async fn a_pool_with_one_target_only_goes_on_dialling_it() {
    let (mut pool, exchange, _) = pool(Pooling::default());
    exchange.answer(1, Answer::Refuse);
    fail(&mut pool, 20).await;

    pool.call(2).await.unwrap().reuse();
    let error = pool.call(1).await.unwrap_err();

    assert!(matches!(error.cause(), PoolCause::Backoff { .. }));
    assert_eq!(
        pool.call(2)
            .await
            .unwrap()
            .acquired()
            .served(),
        Served::Idle
    );
}

#[tokio::test(start_paused = true)]
async fn where_connections_are_in_use_one_waits_for_them_while_the_target_is_down() {
    let (mut pool, exchange, _) = pool(Pooling::default().backoff(backoff()));
    let held = pool.call(1).await.unwrap();
    let other = pool.call(1).await.unwrap();
    exchange.answer(1, Answer::Refuse);
    fail(&mut pool, 3).await;

    let (mut first, mut second) = (waits(&mut pool, 1), waits(&mut pool, 1));
    held.reuse();
    assert_eq!(served(&mut first).acquired().served(), Served::Late);
    // It is dropped: with the last one there is nothing left to wait for.
    drop(other);

    let error = refused(&mut second);
    assert!(
        matches!(error.cause(), PoolCause::Backoff { .. }),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn when_the_pause_is_over_one_of_those_who_wait_dials() {
    let (mut pool, exchange, _) = pool(Pooling::default().backoff(backoff()));
    let held = pool.call(1).await.unwrap();
    exchange.answer(1, Answer::Refuse);
    fail(&mut pool, 3).await;
    let (mut first, second) = (waits(&mut pool, 1), waits(&mut pool, 1));
    exchange.answer(1, Answer::Connect);

    sleep(millis(202)).await;
    assert!(first.is_woken() && !second.is_woken());
    assert_pending!(first.poll());
    settle().await;

    served(&mut first);
    assert!(second.is_woken());
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn no_more_failing_targets_are_remembered_than_there_are_places() {
    let (mut pool, exchange, handle) = pool(Pooling::default().max_open(10));
    for to in 100..200 {
        exchange.answer(to, Answer::Refuse);
        pool.call(to).await.unwrap_err();
    }

    assert_eq!(handle.snapshot().targets(), 10);
    sleep(secs(6)).await;

    assert_eq!(handle.snapshot().targets(), 0);
}

// === What counts

#[tokio::test(start_paused = true)]
async fn dials_that_fail_together_are_one_failure() {
    let (mut pool, exchange, _) = pool(Pooling::default().backoff(backoff()));
    exchange.answer(1, Answer::RefuseAfter(secs(1)));
    let mut burst: Vec<_> = (0..64)
        .map(|_| waits(&mut pool, 1))
        .collect();

    sleep(secs(2)).await;
    for get in &mut burst {
        assert!(matches!(refused(get).cause(), PoolCause::Connect(_)));
    }

    // Two more, one after the other, are three in a row.
    fail(&mut pool, 2).await;
    let error = pool.call(1).await.unwrap_err();
    assert!(matches!(
        error.cause(),
        PoolCause::Backoff { failures: 3, .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn who_waits_while_a_target_is_down_sees_each_pause_end() {
    let (mut pool, exchange, _) = pool(Pooling::default().backoff(backoff()));
    let _held = pool.call(1).await.unwrap();
    exchange.answer(1, Answer::Refuse);
    fail(&mut pool, 3).await;
    let mut line: Vec<_> = (0..3)
        .map(|_| waits(&mut pool, 1))
        .collect();

    for get in &mut line[..2] {
        sleep(millis(801)).await;
        assert!(get.is_woken());
        assert_pending!(get.poll());
        settle().await;
        assert!(matches!(refused(get).cause(), PoolCause::Connect(_)));
    }
    exchange.answer(1, Answer::Connect);
    sleep(millis(801)).await;

    assert_pending!(line[2].poll());
    settle().await;
    assert_eq!(served(&mut line[2]).acquired().served(), Served::Dialled);
}

#[tokio::test(start_paused = true)]
async fn a_new_beginning_holds_no_failure_against_a_target() {
    let (mut pool, exchange, handle) = pool(Pooling::default().backoff(backoff()));
    let held = pool.call(1).await.unwrap();
    exchange.answer(1, Answer::RefuseAfter(secs(1)));
    let mut late = waits(&mut pool, 1);
    settle().await;
    exchange.answer(1, Answer::Refuse);
    fail(&mut pool, 3).await;
    let mut waiting = waits(&mut pool, 1);

    handle.renew();
    assert!(waiting.is_woken());
    assert_pending!(waiting.poll());
    settle().await;
    assert!(matches!(
        refused(&mut waiting).cause(),
        PoolCause::Connect(_)
    ));

    // Of what fails now, one dial began before, and says nothing.
    sleep(secs(2)).await;
    assert!(matches!(refused(&mut late).cause(), PoolCause::Connect(_)));
    fail(&mut pool, 2).await;
    drop(held);
    left(&pool.call(1).await.unwrap_err());
}

#[tokio::test(start_paused = true)]
async fn a_pause_without_end_is_one() {
    let without_end = backoff()
        .first(Duration::MAX)
        .most(Duration::MAX);
    let (mut pool, exchange, handle) = pool(Pooling::default().backoff(without_end));
    exchange.answer(1, Answer::Refuse);
    fail(&mut pool, 3).await;

    sleep(secs(86_400)).await;

    assert!(left(&pool.call(1).await.unwrap_err()) > secs(86_400));
    assert_eq!(handle.snapshot().targets(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_never_backs_off_remembers_no_failure() {
    let never = ConnectBackoff::off().even_alone(true);
    let (mut pool, exchange, handle) = pool(Pooling::default().backoff(never));
    exchange.answer(1, Answer::Refuse);

    fail(&mut pool, 20).await;

    assert_eq!((exchange.dials(), handle.snapshot().targets()), (20, 0));
}
