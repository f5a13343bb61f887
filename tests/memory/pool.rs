//! Getting a connection, and giving it back.

use std::{io, task::Poll, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    task::yield_now,
    time::{Instant, advance, sleep},
};
use tokio_test::{assert_pending, task};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn,
    io::{GuardedIo, Io},
    pool::{GetFuture, Pool, PoolCause, PoolHandle, PoolLayer, PooledIo, Pooling, Served},
};
use tower_service::Service;

use crate::{
    pool_wait::waits,
    support::{
        exchange::{Answer, Exchange, Line},
        readings::recorded,
        service::{millis, secs},
    },
};

pub(crate) type Lines = Pool<Exchange, u16, u16, Line>;
pub(crate) type Get = GetFuture<Exchange, u16, u16, Line>;
pub(crate) type Lent = Conn<PooledIo<Line>>;

pub(crate) fn pool(pooling: Pooling) -> (Lines, Exchange, PoolHandle) {
    let exchange = Exchange::new();
    let pool = PoolLayer::new("test", pooling)
        .unwrap()
        .layer(exchange.clone());
    let handle = pool.handle();
    (pool, exchange, handle)
}

/// Idle connections to 1, given back in the order of their dials.
pub(crate) async fn idle(pool: &mut Lines, count: usize) {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(pool.call(1).await.unwrap());
    }
    for conn in held {
        assert!(conn.reuse());
    }
}

/// Lets the pool's own tasks run.
pub(crate) async fn settle() {
    for _ in 0..8 {
        yield_now().await;
    }
}

pub(crate) fn number(conn: &Lent) -> u64 {
    conn.info().id().get()
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_given_back_is_given_out_again() {
    let (mut pool, exchange, handle) = pool(Pooling::default());

    let first = pool.call(1).await.unwrap();
    let (fresh, id) = (first.acquired(), number(&first));
    let kept = first.reuse();
    let second = pool.call(1).await.unwrap();

    assert_eq!(
        (fresh.served(), fresh.is_reused()),
        (Served::Dialled, false)
    );
    let again = second.acquired();
    assert_eq!((again.served(), again.waited()), (Served::Idle, secs(0)));
    assert!(again.is_reused() && kept);
    assert_eq!((number(&second), exchange.dials()), (id, 1));
    assert_eq!(
        (handle.snapshot().in_use(), handle.snapshot().idle()),
        (1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn the_one_given_back_last_is_given_out_first() {
    let (mut pool, ..) = pool(Pooling::default());
    let (one, other) = (pool.call(1).await.unwrap(), pool.call(1).await.unwrap());
    let ids = (number(&one), number(&other));

    one.reuse();
    other.reuse();

    assert_eq!(number(&pool.call(1).await.unwrap()), ids.1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_dropped_is_closed_and_its_place_is_free() {
    let (mut pool, exchange, handle) = pool(Pooling::default().max_open(1));

    drop(pool.call(1).await.unwrap());
    let open = (exchange.open(), handle.snapshot().open());
    let conn = pool.call(1).await.unwrap();

    assert_eq!(open, (0, 0));
    assert_eq!(conn.acquired().served(), Served::Dialled);
    assert_eq!(exchange.most(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_exchange_that_is_cancelled_takes_its_connection_along() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    idle(&mut pool, 1).await;

    let exchanging = async {
        let mut conn = pool.call(1).await.unwrap();
        conn.write_all(b"hello").await.unwrap();
        conn.read_u8().await.unwrap();
        conn.reuse();
    };
    let cancelled = tokio::time::timeout(secs(1), exchanging).await;

    assert!(cancelled.is_err());
    assert_eq!((exchange.open(), handle.snapshot().open()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ended_broke_or_was_shut_down_is_not_kept() {
    for how in ["ended", "broke", "shut down", "read to its end"] {
        let (mut pool, exchange, handle) = pool(Pooling::default());
        let mut conn = pool.call(1).await.unwrap();
        match how {
            "ended" => drop(exchange.far(0)),
            "broke" => {
                drop(exchange.far(0));
                conn.write_all(b"x").await.unwrap_err();
            }
            "shut down" => conn.shutdown().await.unwrap(),
            _ => {
                drop(exchange.far(0));
                assert_eq!(conn.read(&mut [0; 1]).await.unwrap(), 0);
            }
        }

        assert!(!conn.reuse(), "{how}");
        assert_eq!((exchange.open(), handle.snapshot().open()), (0, 0), "{how}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_into_no_room_says_nothing_about_the_connection() {
    let (mut pool, ..) = pool(Pooling::default());
    let mut conn = pool.call(1).await.unwrap();

    assert_eq!(conn.read(&mut []).await.unwrap(), 0);

    assert!(conn.reuse());
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_bytes_that_nobody_has_read_is_not_kept() {
    let (mut pool, exchange, _) = pool(Pooling::default());
    let conn = pool.call(1).await.unwrap();
    let info = conn.info().clone();

    exchange
        .far(0)
        .write_all(b"more")
        .await
        .unwrap();

    assert!(!conn.reuse());
    assert_eq!(info.close_reason(), Some(CloseReason::Protocol));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_its_peer_ends_or_that_speaks_is_closed_there_and_then() {
    for speaks in [false, true] {
        let (mut pool, exchange, handle) = pool(Pooling::default());
        idle(&mut pool, 2).await;
        let (mut gone, _stays) = (exchange.far(0), exchange.far(1));

        if speaks {
            gone.write_all(b"?").await.unwrap();
        } else {
            gone.shutdown().await.unwrap();
        }
        settle().await;

        assert_eq!((handle.snapshot().idle(), exchange.open()), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_get_that_is_sooner_than_the_watch_finds_dead_connections_itself() {
    let (mut pool, exchange, _) = pool(Pooling::default());
    idle(&mut pool, 20).await;
    let mut far: Vec<_> = (0..20)
        .map(|place| exchange.far(place))
        .collect();

    far.truncate(1);
    let start = Instant::now();
    let mut get = task::spawn(pool.call(1));

    // Without a word from the runtime: nineteen were dead, and the first is not.
    let Poll::Ready(Ok(conn)) = get.poll() else {
        panic!("it should not wait");
    };
    assert_eq!(conn.acquired().served(), Served::Idle);
    assert_eq!(
        (start.elapsed(), exchange.open(), exchange.dials()),
        (secs(0), 1, 20)
    );
}

#[tokio::test(start_paused = true)]
async fn a_task_that_has_used_up_its_turn_is_not_taken_for_silence_nor_for_an_end() {
    let (mut pool, exchange, _) = pool(Pooling::default());
    idle(&mut pool, 2).await;
    let (mut near, mut far) = duplex(1 << 10);
    far.write_all(&[0; 1 << 10])
        .await
        .unwrap();

    let dead = exchange.far(1);
    tokio::spawn(async move {
        // Until the runtime says that it is the turn of others.
        loop {
            let mut read = task::spawn(near.read_u8());
            if read.poll().is_pending() {
                break;
            }
        }
        drop(dead);
        let conn = pool.call(1).await.unwrap();
        assert_eq!(conn.acquired().served(), Served::Idle);
        assert!(conn.reuse());
        assert_eq!(pool.handle().snapshot().idle(), 1);
    })
    .await
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn zero_idle_connections_keep_none() {
    let (mut pool, exchange, _) = pool(Pooling::default().max_idle_per_target(0));

    let kept = pool.call(1).await.unwrap().reuse();
    let conn = pool.call(1).await.unwrap();

    assert!(!kept);
    assert_eq!(
        (conn.acquired().served(), exchange.dials()),
        (Served::Dialled, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn more_idle_connections_than_are_kept_are_closed() {
    let (mut pool, exchange, handle) = pool(Pooling::default().max_idle_per_target(2));
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pool.call(1).await.unwrap());
    }

    let kept: Vec<_> = held
        .into_iter()
        .map(Conn::reuse)
        .collect();

    assert_eq!(kept, [true, true, false]);
    assert_eq!((handle.snapshot().idle(), exchange.open()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_target_is_forgotten_with_its_last_connection() {
    let (mut pool, _, handle) = pool(Pooling::default());
    let (one, other) = (pool.call(1).await.unwrap(), pool.call(2).await.unwrap());
    assert_eq!(handle.snapshot().targets(), 2);

    drop(one);
    other.reuse();
    assert_eq!(handle.snapshot().targets(), 1);
    sleep(secs(91)).await;

    assert_eq!(handle.snapshot().targets(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_never_polled_is_given_back() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    idle(&mut pool, 1).await;

    drop(pool.call(1));

    assert_eq!((handle.snapshot().idle(), exchange.dials()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn with_the_last_clone_and_handle_idle_connections_are_closed_and_others_go_on() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    idle(&mut pool, 2).await;
    let mut conn = pool.clone().call(1).await.unwrap();

    drop(pool);
    assert_eq!(exchange.open(), 2);
    drop(handle);

    assert_eq!(exchange.open(), 1);
    conn.write_all(b"still here")
        .await
        .unwrap();
    assert!(!conn.reuse());
    assert_eq!(exchange.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_closed_pool_closes_what_is_idle_and_what_comes_back_and_refuses_all_others() {
    let (mut pool, exchange, handle) = pool(Pooling::default().max_open(2));
    idle(&mut pool, 1).await;
    exchange.answer(2, Answer::Hang);
    let held = pool.call(1).await.unwrap();
    let mut hangs = task::spawn(pool.call(2));
    let mut waits = task::spawn(pool.call(1));
    assert_pending!(hangs.poll());
    assert_pending!(waits.poll());
    settle().await;

    handle.close();
    assert!(hangs.is_woken() && waits.is_woken());
    for get in [&mut hangs, &mut waits] {
        let Poll::Ready(Err(error)) = get.poll() else {
            panic!("it should be refused");
        };
        assert!(matches!(error.cause(), PoolCause::Closed));
        assert!(!error.is_retryable());
    }
    settle().await;

    assert!(!held.reuse());
    assert!(matches!(
        pool.call(1).await.unwrap_err().cause(),
        PoolCause::Closed
    ));
    assert_eq!((exchange.open(), handle.snapshot().open()), (0, 0));
    assert_eq!(handle.snapshot().targets(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_opened_before_a_new_beginning_is_not_used_after_it() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    idle(&mut pool, 2).await;
    let held = pool.call(1).await.unwrap();
    exchange.answer(2, Answer::After(secs(1)));
    drop(waits(&mut pool, 2));
    settle().await;

    handle.renew();
    assert_eq!(handle.snapshot().idle(), 0);
    assert!(!held.reuse());
    sleep(secs(2)).await;
    assert_eq!((handle.snapshot().open(), exchange.open()), (0, 0));
    idle(&mut pool, 1).await;

    assert_eq!((handle.snapshot().idle(), exchange.dials()), (1, 4));
}

#[tokio::test(start_paused = true)]
async fn fewer_places_close_idle_connections_at_once_and_others_when_they_come_back() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    let held = [(); 3].map(|()| ());
    let mut conns = Vec::new();
    for () in held {
        conns.push(pool.call(1).await.unwrap());
    }
    pool.call(2).await.unwrap().reuse();

    handle.set_max_open(2).unwrap();
    let idle = handle.snapshot().idle();
    let kept: Vec<_> = conns
        .into_iter()
        .map(Conn::reuse)
        .collect();

    assert_eq!((idle, kept), (0, vec![false, true, true]));
    assert_eq!((exchange.open(), handle.snapshot().open()), (2, 2));
    assert_eq!(
        handle
            .set_max_open(0)
            .unwrap_err()
            .setting(),
        "max_open"
    );
}

#[tokio::test(start_paused = true)]
async fn more_places_are_for_those_who_wait() {
    let (mut pool, _, handle) = pool(Pooling::default().max_open(1));
    let _held = pool.call(1).await.unwrap();
    let mut waits = task::spawn(pool.call(1));
    assert_pending!(waits.poll());

    handle.set_max_open(2).unwrap();

    assert!(waits.is_woken());
    assert_eq!(waits.await.unwrap().acquired().served(), Served::Dialled);
}

// === Streams of others

/// Does something when it is dropped.
struct Does(Box<dyn Fn() + Send>);

impl Drop for Does {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_asks_the_pool_when_it_is_closed_meets_no_lock() {
    let asked = std::sync::Arc::new(std::sync::Mutex::new(None::<PoolHandle>));
    let asks = asked.clone();
    let connector = tower::service_fn(move |_: u16| {
        let asks = asks.clone();
        async move {
            let (near, far) = duplex(1);
            let does = Does(Box::new(move || {
                let _held_open = &far;
                if let Some(handle) = &*asks.lock().unwrap() {
                    let _ = handle.snapshot();
                }
            }));
            io::Result::Ok(Conn::new(GuardedIo::new(near, (does, ())), ()))
        }
    });
    let pooling = Pooling::default().max_open(1);
    let mut pool = PoolLayer::new("test", pooling)
        .unwrap()
        .layer(connector);
    *asked.lock().unwrap() = Some(pool.handle());

    // Evicted, let go, expired, closed.
    pool.call(1).await.unwrap().reuse();
    pool.call(2).await.unwrap().reuse();
    drop(pool.call(2).await.unwrap());
    pool.call(2).await.unwrap().reuse();
    sleep(secs(91)).await;
    pool.call(2).await.unwrap().reuse();
    pool.handle().close();

    assert_eq!(pool.handle().snapshot().open(), 0);
    *asked.lock().unwrap() = None;
}

/// Panics when it is read.
struct Mine;

impl Io for Mine {}

impl tokio::io::AsyncRead for Mine {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        panic!("told to panic")
    }
}

impl tokio::io::AsyncWrite for Mine {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_panics_leaves_its_place_free() {
    let connector = tower::service_fn(|_: u16| async { io::Result::Ok(Conn::new(Mine, ())) });
    let mut pool = PoolLayer::new("test", Pooling::default())
        .unwrap()
        .layer(connector);

    let kept = pool.call(1).await.unwrap().reuse();

    assert!(!kept);
    assert_eq!(pool.handle().snapshot().open(), 0);
}

// === Times

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_when_its_time_comes_and_not_at_the_next_get() {
    let (mut pool, exchange, handle) = pool(Pooling::default().idle_timeout(secs(10)));
    let conn = pool.call(1).await.unwrap();
    let info = conn.info().clone();
    sleep(secs(30)).await;
    conn.reuse();

    sleep(secs(10) - millis(2)).await;
    assert_eq!(exchange.open(), 1);
    sleep(millis(4)).await;

    assert_eq!((exchange.open(), handle.snapshot().targets()), (0, 0));
    assert_eq!(info.close_reason(), Some(CloseReason::Idle));
}

#[tokio::test(start_paused = true)]
async fn the_longest_duration_never_closes() {
    let pooling = Pooling::default()
        .idle_timeout(Duration::MAX)
        .max_lifetime(Duration::MAX)
        .dial_within(Duration::MAX)
        .within(Duration::MAX);
    let (mut pool, exchange, _) = pool(pooling);
    idle(&mut pool, 1).await;

    advance(secs(10 * 365 * 86_400)).await;
    settle().await;

    assert_eq!(exchange.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_retires_while_idle_or_when_it_comes_back_and_never_in_use() {
    let pooling = Pooling::default()
        .max_lifetime(secs(60))
        .lifetime_jitter(0.0);
    let (mut pool, exchange, _) = pool(pooling);
    let (idle, busy) = (pool.call(1).await.unwrap(), pool.call(1).await.unwrap());
    let (idle_info, busy_info) = (idle.info().clone(), busy.info().clone());
    idle.reuse();

    sleep(secs(59)).await;
    assert_eq!(exchange.open(), 2);
    sleep(secs(2)).await;
    assert_eq!(exchange.open(), 1);
    assert_eq!(idle_info.close_reason(), Some(CloseReason::Age));
    assert_eq!(busy_info.close_reason(), None);

    assert!(!busy.reuse());
    assert_eq!(busy_info.close_reason(), Some(CloseReason::Age));
}

#[tokio::test(start_paused = true)]
async fn connections_to_a_target_are_kept_warm_and_opened_again_when_they_go() {
    let (mut pool, exchange, handle) = pool(Pooling::default().idle_timeout(secs(10)));

    pool.keep_warm(1, 2).unwrap();
    settle().await;
    let at_first = (handle.snapshot().idle(), exchange.dials());
    let held = pool.call(1).await.unwrap();
    settle().await;
    let in_a_burst = handle.snapshot().idle();
    held.reuse();
    sleep(secs(30)).await;
    let after_it = (handle.snapshot().idle(), exchange.open());
    drop(exchange.far(0));
    drop(exchange.far(1));
    drop(exchange.far(2));
    settle().await;
    let after_an_end = (handle.snapshot().idle(), exchange.dials());
    pool.keep_warm(1, 0).unwrap();
    sleep(secs(30)).await;

    assert_eq!((at_first, in_a_burst, after_it), ((2, 2), 2, (2, 2)));
    assert_eq!(after_an_end, (2, 5));
    assert_eq!((exchange.open(), handle.snapshot().targets()), (0, 0));
    let error = pool.keep_warm(1, 101).unwrap_err();
    assert_eq!(error.setting(), "keep_warm");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_kept_warm_is_tried_again_after_pauses() {
    let (pool, exchange, handle) = pool(Pooling::default());
    exchange.answer(1, Answer::Refuse);

    pool.keep_warm(1, 3).unwrap();
    sleep(secs(60)).await;
    let dials = exchange.dials();
    exchange.answer(1, Answer::Connect);
    sleep(secs(6)).await;

    // A pause of up to five seconds after all but the first few.
    assert!((15..40).contains(&dials), "{dials}");
    assert_eq!(handle.snapshot().idle(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_warm_makes_room_and_does_not_come_back_before_there_is_some() {
    let (mut pool, exchange, handle) = pool(Pooling::default().max_open(2));
    pool.keep_warm(1, 2).unwrap();
    settle().await;

    let held = (pool.call(2).await.unwrap(), pool.call(3).await.unwrap());
    settle().await;
    let while_full = (handle.snapshot().idle(), exchange.dials());
    drop(held);
    settle().await;

    assert_eq!(while_full, (0, 4));
    assert_eq!((handle.snapshot().idle(), exchange.most()), (2, 2));
}

// === Settings and figures

#[tokio::test]
async fn settings_that_cannot_work_are_refused_by_name() {
    use tower_net::pool::ConnectBackoff;
    let of = |pooling: Pooling| {
        let layer = PoolLayer::<u16>::new("test", pooling);
        layer.unwrap_err().setting()
    };
    let zero = Duration::ZERO;
    let default = Pooling::default;

    assert_eq!(of(default().max_open(0)), "max_open");
    assert_eq!(of(default().max_open_per_target(0)), "max_open_per_target");
    assert_eq!(of(default().idle_timeout(zero)), "idle_timeout");
    assert_eq!(of(default().max_lifetime(zero)), "max_lifetime");
    assert_eq!(of(default().lifetime_jitter(1.0)), "lifetime_jitter");
    assert_eq!(of(default().lifetime_jitter(f64::NAN)), "lifetime_jitter");
    assert_eq!(of(default().within(zero)), "within");
    assert_eq!(of(default().dial_within(zero)), "dial_within");
    let backoff = ConnectBackoff::default();
    assert_eq!(of(default().backoff(backoff.after(0))), "backoff");
    assert_eq!(of(default().backoff(backoff.first(secs(9)))), "backoff");
    assert_eq!(of(default().backoff(backoff.first(zero))), "backoff");
    let off = ConnectBackoff::off();
    assert_eq!(of(default().backoff(off.after(0))), "backoff");
    let never = backoff.after(u32::MAX);
    assert!(PoolLayer::<u16>::new("test", default().backoff(never)).is_ok());
}

#[test]
fn a_pool_without_a_runtime_that_keeps_time_is_an_error_when_it_is_made() {
    let of = |pooling: Pooling| PoolLayer::<u16>::new("test", pooling);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let (no_timer, whole) = (
        builder.build().unwrap(),
        builder.enable_all().build().unwrap(),
    );
    let within =
        |runtime: &tokio::runtime::Runtime| Pooling::default().runtime(runtime.handle().clone());

    let errors = [of(Pooling::default()), of(within(&no_timer))];
    for error in errors {
        assert_eq!(error.unwrap_err().setting(), "runtime");
    }

    assert!(of(within(&whole)).is_ok());
}

#[test]
fn a_pool_whose_runtime_has_gone_is_closed() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let pooling = Pooling::default().runtime(runtime.handle().clone());
    let (mut pool, exchange, _) = pool(pooling);
    exchange.answer(1, Answer::Hang);
    let mut waits = task::spawn(pool.call(1));
    assert_pending!(waits.poll());

    drop(runtime);

    assert!(waits.is_woken());
    for mut get in [waits, task::spawn(pool.call(1))] {
        let Poll::Ready(Err(error)) = get.poll() else {
            panic!("it should be refused");
        };
        assert!(matches!(error.cause(), PoolCause::Closed));
    }
}

#[tokio::test(start_paused = true)]
async fn every_figure_is_in_the_metrics() {
    let pooling = Pooling::default()
        .max_open(1)
        .max_waiting(1);
    let ((mut pool, exchange, _), metrics) = recorded(|| pool(pooling));
    let labels = |name, value| [("pool", "test"), (name, value)];
    let state = |state| metrics.of("tower_net_pool_connections", &labels("state", state));
    let gets = |outcome| metrics.of("tower_net_pool_gets_total", &labels("outcome", outcome));
    let closed = |reason| metrics.of("tower_net_pool_closed_total", &labels("reason", reason));
    exchange.answer(2, Answer::RefuseAfter(secs(1)));

    let held = pool.call(1).await.unwrap();
    let mut waits = task::spawn(pool.call(1));
    assert_pending!(waits.poll());
    let full = pool.call(1).await.unwrap_err();
    assert_eq!(
        full.to_string(),
        "1 wait for a connection already, which is the limit"
    );
    assert_eq!((state("in_use"), state("idle")), (1.0, 0.0));
    assert_eq!(metrics.of("tower_net_pool_waiting", &[]), 1.0);
    held.reuse();
    waits.await.unwrap().reuse();
    pool.call(1).await.unwrap().reuse();
    assert_eq!((state("in_use"), state("idle")), (0.0, 1.0));
    let mut fails = task::spawn(pool.call(2));
    assert_pending!(fails.poll());
    assert_eq!((state("connecting"), closed("evicted")), (1.0, 1.0));
    fails.await.unwrap_err();
    drop(pool.call(1).await.unwrap());

    assert_eq!(
        [gets("dialled"), gets("late"), gets("idle")],
        [2.0, 1.0, 1.0]
    );
    assert_eq!([gets("queue_full"), gets("connect")], [1.0, 1.0]);
    assert_eq!(closed("dropped"), 1.0);
    let connects =
        |outcome| metrics.of("tower_net_pool_connects_total", &labels("outcome", outcome));
    assert_eq!([connects("ok"), connects("failed")], [2.0, 1.0]);
    assert_eq!(
        metrics.of("tower_net_pool_wait_seconds", &[("pool", "test")]),
        5.0
    );
    assert_eq!(metrics.of("tower_net_pool_waiting", &[]), 0.0);
    let all = ["in_use", "idle", "connecting"].map(state);
    assert_eq!(all, [0.0; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_ends_takes_its_figures_along() {
    let ((mut pool, ..), metrics) = recorded(|| pool(Pooling::default()));
    idle(&mut pool, 2).await;
    let held = pool.call(1).await.unwrap();

    drop(pool);
    drop(held);

    assert_eq!(metrics.of("tower_net_pool_connections", &[]), 0.0);
    assert_eq!(
        metrics.of("tower_net_pool_closed_total", &[("reason", "closed")]),
        1.0
    );
}

#[test]
fn what_is_sent_to_other_tasks_can_be() {
    fn is_send<T: Send>() {}
    fn is_sync<T: Sync>() {}
    is_send::<Lines>();
    is_send::<Get>();
    is_send::<Lent>();
    is_send::<PoolHandle>();
    is_sync::<PoolHandle>();
    is_sync::<PoolLayer<u16>>();
}
