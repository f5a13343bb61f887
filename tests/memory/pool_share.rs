//! Places that targets share: whose the next one is, and what a change of their number does.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};
use tokio_test::{assert_pending, task};
use tower_layer::Layer;
use tower_net::{
    Conn,
    io::Io,
    pool::{PoolHandle, PoolLayer, Pooling, Served},
};
use tower_service::Service;

use crate::{
    pool::{pool, settle},
    pool_wait::{served, waits},
    support::{exchange::Answer, service::secs},
};

#[tokio::test(start_paused = true)]
async fn whoever_came_first_is_served_first_where_another_target_has_nothing() {
    let (mut pool, exchange, _) = pool(Pooling::default().max_open(1));
    let held = pool.call(1).await.unwrap();
    let (mut own, mut other) = (waits(&mut pool, 1), waits(&mut pool, 2));
    let mut last = waits(&mut pool, 1);

    assert!(held.reuse());
    let held = served(&mut own);
    assert!(!held.reuse());
    assert!(other.is_woken() && !last.is_woken());
    assert_pending!(other.poll());
    settle().await;
    assert!(!served(&mut other).reuse());

    assert_pending!(last.poll());
    settle().await;
    assert_eq!(served(&mut last).acquired().served(), Served::Dialled);
    assert_eq!((exchange.dials(), exchange.most()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_busy_target_leaves_a_place_to_one_whose_connections_do_not_come_back() {
    const PLACES: usize = 4;
    let (mut pool, exchange, _) = pool(Pooling::default().max_open(PLACES));
    let _stays = pool.call(2).await.unwrap();
    let mut held = Vec::new();
    for _ in 1..PLACES {
        held.push(pool.call(1).await.unwrap());
    }
    let mut other = waits(&mut pool, 2);

    let mut served_before = 0;
    while served_before <= PLACES {
        let mut own = waits(&mut pool, 1);
        if !held.pop().unwrap().reuse() {
            break;
        }
        held.push(served(&mut own));
        served_before += 1;
    }

    assert!((1..=PLACES).contains(&served_before), "{served_before}");
    assert_pending!(other.poll());
    settle().await;
    served(&mut other);
    assert_eq!(exchange.most(), PLACES);
}

#[tokio::test(start_paused = true)]
async fn two_busy_targets_do_not_take_from_each_other_in_turn() {
    let (mut pool, exchange, _) = pool(Pooling::default().max_open(2));
    let (mut one, mut other) = (pool.call(1).await.unwrap(), pool.call(2).await.unwrap());

    for _ in 0..100 {
        // Each is behind somebody who came first for the other.
        let (mut first, mut second) = (waits(&mut pool, 2), waits(&mut pool, 1));
        assert!(one.reuse());
        one = served(&mut second);
        assert!(other.reuse());
        other = served(&mut first);
    }

    assert_eq!(exchange.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_burst_at_one_target_calls_off_no_dial_to_another_that_somebody_waits_for() {
    let (mut pool, exchange, _) = pool(Pooling::default().max_open(2));
    exchange.answer(1, Answer::After(secs(1)));
    let (leaves, mut stays) = (waits(&mut pool, 1), waits(&mut pool, 1));
    settle().await;
    drop(leaves);

    let _burst = [waits(&mut pool, 2), waits(&mut pool, 2)];
    sleep(secs(2)).await;

    assert_eq!(served(&mut stays).acquired().served(), Served::Dialled);
}

/// How a dial comes to be nobody's.
#[derive(Debug, Clone, Copy)]
enum Nobodys {
    Left,
    Late,
    /// Whoever asked for it was given another.
    Served,
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_is_nobodys_any_more_makes_room_for_whoever_waits_already() {
    for how in [Nobodys::Left, Nobodys::Late, Nobodys::Served] {
        let pooling = Pooling::default()
            .max_open(2)
            .within(secs(5));
        let (mut pool, exchange, handle) = pool(pooling);
        let held = pool.call(1).await.unwrap();
        exchange.answer(1, Answer::Hang);
        let mut first = waits(&mut pool, 1);
        sleep(secs(3)).await;
        let mut other = waits(&mut pool, 2);

        let _stays = match how {
            Nobodys::Left => {
                drop(first);
                held
            }
            Nobodys::Late => {
                sleep(secs(2)).await;
                held
            }
            Nobodys::Served => {
                assert!(held.reuse());
                served(&mut first)
            }
        };
        settle().await;

        assert!(other.is_woken(), "{how:?}");
        assert_pending!(other.poll());
        settle().await;
        served(&mut other);
        assert_eq!(handle.snapshot().connecting(), 0, "{how:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn more_targets_than_are_looked_after_at_once_are_all_looked_after() {
    let pooling = Pooling::default()
        .max_open(5_000)
        .idle_timeout(secs(10));
    let (mut pool, exchange, handle) = pool(pooling);
    for to in 0..3_000 {
        pool.call(to).await.unwrap().reuse();
    }
    let mut stays = pool.call(1).await.unwrap();

    for _ in 0..4 {
        sleep(secs(9)).await;
        stays.reuse();
        stays = pool.call(1).await.unwrap();
    }
    assert_eq!((exchange.open(), handle.snapshot().targets()), (1, 1));
    stays.reuse();
    sleep(secs(11)).await;

    assert_eq!((exchange.open(), handle.snapshot().targets()), (0, 0));
}

/// A stream that does something when it is read, and is woken by a test.
struct Hooked(Arc<Mutex<Hook>>);

#[derive(Default)]
struct Hook {
    waker: Option<Waker>,
    handle: Option<PoolHandle>,
    has_no_answer: bool,
}

impl Io for Hooked {
    fn socket(&self) -> Option<SockRef<'_>> {
        let has_no_answer = self.0.lock().unwrap().has_no_answer;
        assert!(!has_no_answer, "told to panic");
        None
    }
}

impl AsyncRead for Hooked {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut hook = self.0.lock().unwrap();
        hook.waker = Some(cx.waker().clone());
        if let Some(handle) = hook.handle.take() {
            handle.set_max_open(1).unwrap();
        }
        Poll::Pending
    }
}

impl AsyncWrite for Hooked {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_being_looked_at_is_closed_as_well_when_there_are_fewer_places() {
    let hook = Arc::new(Mutex::new(Hook::default()));
    let hooked = hook.clone();
    let connector = tower::service_fn(move |_: u16| {
        let stream = Hooked(hooked.clone());
        async { io::Result::Ok(Conn::new(stream, ())) }
    });
    let mut pool = PoolLayer::new("test", Pooling::default())
        .unwrap()
        .layer(connector);
    let handle = pool.handle();
    let (idle, _held) = (pool.call(1).await.unwrap(), pool.call(1).await.unwrap());
    idle.reuse();

    let waker = hook.lock().unwrap().waker.take();
    hook.lock().unwrap().handle = Some(handle.clone());
    waker.unwrap().wake();
    settle().await;

    assert!(hook.lock().unwrap().handle.is_none());
    assert_eq!((handle.snapshot().idle(), handle.snapshot().open()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_panics_when_it_is_asked_for_its_socket_is_closed_and_another_dialled() {
    let hook = Arc::new(Mutex::new(Hook::default()));
    let hooked = hook.clone();
    let connector = tower::service_fn(move |_: u16| {
        let stream = Hooked(hooked.clone());
        async { io::Result::Ok(Conn::new(stream, ())) }
    });
    let mut pool = PoolLayer::new("test", Pooling::default().max_open(1))
        .unwrap()
        .layer(connector);
    let handle = pool.handle();
    assert!(pool.call(1).await.unwrap().reuse());

    hook.lock().unwrap().has_no_answer = true;
    let was_idle = pool.call(1).await.unwrap();
    let mut next = task::spawn(pool.call(1));
    assert!(next.poll().is_pending());
    assert!(was_idle.reuse());
    let given_back = next.await.unwrap();

    assert_eq!(given_back.acquired().served(), Served::Dialled);
    assert_eq!(
        (handle.snapshot().open(), handle.snapshot().in_use()),
        (1, 1)
    );
}
