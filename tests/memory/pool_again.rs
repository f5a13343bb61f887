//! Gets that meet a connection that is dead, and go on.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{DuplexStream, duplex},
    time::{advance, sleep},
};
use tokio_test::{assert_pending, task};
use tower_layer::Layer;
use tower_net::{
    Conn,
    io::GuardedIo,
    pool::{PoolLayer, Pooling, Served},
};
use tower_service::Service;

use crate::{
    pool::{pool, settle},
    pool_wait::{served, waits},
    support::{
        exchange::Answer,
        service::{millis, secs},
    },
};

#[tokio::test(start_paused = true)]
async fn one_in_line_again_is_not_told_that_a_dial_failed_that_it_asked_for_before() {
    for fails_first in [true, false] {
        let (mut pool, exchange, _) = pool(Pooling::default());
        let held = pool.call(1).await.unwrap();
        let old = if fails_first { secs(1) } else { secs(3) };
        exchange.answer(1, Answer::RefuseAfter(old));
        let mut get = waits(&mut pool, 1);
        settle().await;

        exchange.answer(1, Answer::After(secs(2)));
        held.reuse();
        drop(exchange.far(0));
        // It finds the connection dead, and dials once more.
        assert_pending!(get.poll());
        sleep(millis(1_500)).await;
        assert!(!get.is_woken());
        sleep(secs(1)).await;

        let conn = served(&mut get);
        assert_eq!(conn.acquired().served(), Served::Dialled);
        assert_eq!(exchange.dials(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn one_in_line_again_without_a_place_has_that_of_its_old_dial_when_this_fails() {
    let (mut pool, exchange, handle) = pool(Pooling::default().max_open(2));
    let held = pool.call(1).await.unwrap();
    exchange.answer(1, Answer::RefuseAfter(secs(1)));
    let mut get = waits(&mut pool, 1);
    settle().await;

    exchange.answer(1, Answer::Connect);
    held.reuse();
    handle.set_max_open(1).unwrap();
    drop(exchange.far(0));
    assert_pending!(get.poll());
    sleep(millis(900)).await;
    assert!(!get.is_woken());
    sleep(millis(200)).await;
    assert_pending!(get.poll());
    settle().await;

    let conn = served(&mut get);
    assert_eq!(conn.acquired().served(), Served::Dialled);
    assert_eq!((exchange.dials(), handle.snapshot().open()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn one_in_line_again_that_leaves_with_a_place_leaves_it_free() {
    let (mut pool, exchange, handle) = pool(Pooling::default().max_open(2));
    let (given, held) = (pool.call(1).await.unwrap(), pool.call(1).await.unwrap());
    let mut get = waits(&mut pool, 1);

    given.reuse();
    drop(exchange.far(0));
    // The place of the one that is dead is one too many.
    handle.set_max_open(1).unwrap();
    assert_pending!(get.poll());
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.waiting(), snapshot.open()), (1, 1));
    drop(held);
    assert!(get.is_woken());
    drop(get);

    let snapshot = handle.snapshot();
    assert_eq!((snapshot.waiting(), snapshot.open()), (0, 0));
    assert_eq!((snapshot.targets(), exchange.dials()), (0, 2));
    assert!(pool.call(1).await.is_ok());
}

type Act = Box<dyn FnOnce() + Send>;

/// What is done when the next stream is dropped.
#[derive(Clone, Default)]
struct Next(Arc<Mutex<Option<Act>>>);

impl Drop for Next {
    fn drop(&mut self) {
        let next = self.0.lock().unwrap().take();
        if let Some(act) = next {
            act();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_others_are_told_of_the_time_is_not_from_before_a_dead_connection_was_closed() {
    let next = Next::default();
    let (far, dropped) = (Arc::new(Mutex::new(Vec::new())), next.0.clone());
    let ends = Arc::clone(&far);
    let connector = tower::service_fn(move |_: u16| {
        let (near, far) = duplex(1);
        ends.lock().unwrap().push(far);
        let guard: (DuplexStream, Next) = (duplex(1).0, Next(dropped.clone()));
        std::future::ready(io::Result::Ok(Conn::new(GuardedIo::new(near, guard), ())))
    });
    let mut pool = PoolLayer::new("test", Pooling::default().max_open(2))
        .unwrap()
        .layer(connector);
    let (dies, held) = (pool.call(1).await.unwrap(), pool.call(1).await.unwrap());
    let mut get = task::spawn(pool.call(1));

    dies.reuse();
    drop(far.lock().unwrap().remove(0));
    let told = Arc::new(Mutex::new(None));
    let (tell, mut others) = (Arc::clone(&told), pool.clone());
    *next.0.lock().unwrap() = Some(Box::new(move || {
        let mut other = task::spawn(others.call(1));
        assert!(other.poll().is_pending());
        // The clock has moved with its first poll.
        assert_pending!(task::spawn(advance(secs(3))).poll());
        held.reuse();
        *tell.lock().unwrap() = Some(other);
    }));
    assert!(get.poll().is_pending());

    let other = told.lock().unwrap().take().unwrap();
    assert!(other.is_woken());
    let acquired = other.await.unwrap().acquired();
    assert_eq!(
        (acquired.served(), acquired.waited()),
        (Served::Late, secs(3))
    );
}
