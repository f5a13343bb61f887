//! Targets that are kept warm.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use tokio::{
    sync::mpsc::unbounded_channel,
    task::yield_now,
    time::{sleep, timeout},
};
use tokio_test::assert_pending;
use tower_layer::Layer;
use tower_net::pool::{ConnectBackoff, PoolCause, PoolHandle, PoolLayer, Pooling};
use tower_service::Service;

use crate::{
    pool::{pool, settle},
    pool_wait::waits,
    support::{
        exchange::{Answer, Exchange},
        service::{millis, secs},
    },
};

#[tokio::test(start_paused = true)]
async fn a_peer_that_ends_connections_at_once_or_speaks_first_is_dialled_again_after_pauses() {
    for answer in [Answer::Close, Answer::Greet] {
        let (pool, exchange, handle) = pool(Pooling::default());
        exchange.answer(1, answer);

        pool.keep_warm(1, 3).unwrap();
        for _ in 0..1_000 {
            yield_now().await;
        }
        assert_eq!(exchange.dials(), 3, "{answer:?}");
        sleep(secs(60)).await;
        let dials = exchange.dials();
        exchange.answer(1, Answer::Connect);
        sleep(secs(7)).await;

        // A pause of up to five seconds after all but the first few.
        assert!((12..40).contains(&dials), "{dials}");
        assert_eq!(handle.snapshot().idle(), 3, "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_trouble_one_is_opened_and_the_others_once_it_has_stayed() {
    let (pool, exchange, handle) = pool(Pooling::default());
    exchange.answer(1, Answer::Close);
    pool.keep_warm(1, 3).unwrap();
    settle().await;
    exchange.answer(1, Answer::Connect);

    // The first pause is half of this at the least.
    sleep(millis(201)).await;
    assert_eq!((handle.snapshot().idle(), exchange.dials()), (1, 4));
    sleep(millis(799)).await;
    assert_eq!(exchange.dials(), 4);
    sleep(millis(300)).await;

    assert_eq!((handle.snapshot().idle(), exchange.dials()), (3, 6));
}

#[tokio::test(start_paused = true)]
async fn one_that_ended_at_once_is_trouble_also_if_it_is_a_get_that_finds_it() {
    let (mut pool, exchange, _) = pool(Pooling::default());
    pool.keep_warm(1, 1).unwrap();
    settle().await;

    // The pool's own task has no turn between these.
    drop(exchange.far(0));
    let _held = pool.call(1).await.unwrap();
    settle().await;
    assert_eq!(exchange.dials(), 2);
    sleep(millis(201)).await;

    assert_eq!(exchange.dials(), 3);
}

#[tokio::test(start_paused = true)]
async fn one_that_ends_later_or_was_used_is_replaced_at_once() {
    let (mut pool, exchange, handle) = pool(Pooling::default());
    pool.keep_warm(1, 2).unwrap();
    settle().await;

    drop(pool.call(1).await.unwrap());
    settle().await;
    let used = (handle.snapshot().idle(), exchange.dials());
    sleep(secs(2)).await;
    drop(exchange.far(0));
    settle().await;

    assert_eq!(used, (2, 3));
    assert_eq!((handle.snapshot().idle(), exchange.dials()), (2, 4));
}

#[tokio::test(start_paused = true)]
async fn pauses_are_made_where_the_pool_does_not_back_off_as_well() {
    let never = Pooling::default().backoff(ConnectBackoff::off());
    for answer in [Answer::Close, Answer::Refuse] {
        let (pool, exchange, _) = pool(never.clone());
        exchange.answer(1, answer);

        pool.keep_warm(1, 1).unwrap();
        sleep(secs(60)).await;

        let dials = exchange.dials();
        assert!((12..40).contains(&dials), "{answer:?}: {dials}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_what_no_place_would_give_does_not_keep_it_cold() {
    let pooling = Pooling::default()
        .max_open(4)
        .max_open_per_target(1);
    let (mut pool, _, handle) = pool(pooling);
    let _held = pool.call(2).await.unwrap();
    let mut waiting = waits(&mut pool, 2);

    pool.keep_warm(1, 1).unwrap();
    settle().await;

    assert_eq!(handle.snapshot().idle(), 1);
    assert_pending!(waiting.poll());
}

#[tokio::test(start_paused = true)]
async fn more_places_are_for_what_is_kept_warm_as_well() {
    let (mut pool, _, handle) = pool(Pooling::default().max_open(1));
    let _held = pool.call(2).await.unwrap();
    pool.keep_warm(1, 2).unwrap();
    settle().await;
    assert_eq!(handle.snapshot().idle(), 0);

    handle.set_max_open(3).unwrap();
    settle().await;

    assert_eq!((handle.snapshot().idle(), handle.snapshot().open()), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_closed_keeps_nothing_warm_and_lets_go_of_its_connector() {
    let token = Arc::new(());
    let (held, mut inner) = (token.clone(), Exchange::new());
    let exchange = inner.clone();
    let connector = tower::service_fn(move |to: u16| {
        let _held = &held;
        inner.call(to)
    });
    let pool = PoolLayer::new("test", Pooling::default())
        .unwrap()
        .layer(connector);
    let handle = pool.handle();
    pool.keep_warm(1, 2).unwrap();
    settle().await;

    handle.close();
    pool.keep_warm(1, 2).unwrap();
    pool.keep_warm(2, 2).unwrap();
    settle().await;
    assert_eq!((exchange.open(), exchange.dials()), (0, 2));
    assert_eq!(
        (handle.snapshot().open(), handle.snapshot().targets()),
        (0, 0)
    );
    drop(pool);

    assert_eq!(Arc::strong_count(&token), 1);
}

/// A connector during whose copying somebody closes the pool.
struct Closing {
    inner: Exchange,
    closes: Arc<Mutex<Option<PoolHandle>>>,
}

impl Clone for Closing {
    fn clone(&self) -> Self {
        if let Some(handle) = self.closes.lock().unwrap().take() {
            handle.close();
        }
        Self {
            inner: self.inner.clone(),
            closes: self.closes.clone(),
        }
    }
}

impl Service<u16> for Closing {
    type Response = <Exchange as Service<u16>>::Response;
    type Error = <Exchange as Service<u16>>::Error;
    type Future = <Exchange as Service<u16>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, to: u16) -> Self::Future {
        self.inner.call(to)
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_has_a_place_when_the_pool_is_closed_does_not_begin() {
    let (exchange, closes) = (Exchange::new(), Arc::default());
    let connector = Closing {
        inner: exchange.clone(),
        closes: Arc::clone(&closes),
    };
    let mut pool = PoolLayer::new("test", Pooling::default())
        .unwrap()
        .layer(connector);
    let handle = pool.handle();
    *closes.lock().unwrap() = Some(handle.clone());

    let error = pool.call(1).await.unwrap_err();
    settle().await;

    assert!(matches!(error.cause(), PoolCause::Closed));
    assert_eq!((exchange.dials(), handle.snapshot().open()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn of_two_who_say_at_once_how_much_is_kept_warm_one_is_heard() {
    const ROUNDS: usize = 300;
    let (pool, _, handle) = pool(Pooling::default());
    let round = Arc::new(AtomicUsize::new(0));
    let (done, mut said) = unbounded_channel();
    let others = [0, 1].map(|idle| {
        let (pool, round, done) = (pool.clone(), round.clone(), done.clone());
        std::thread::spawn(move || {
            for next in 1..=ROUNDS {
                while round.load(SeqCst) < next {
                    std::thread::yield_now();
                }
                pool.keep_warm(1, idle).unwrap();
                done.send(()).unwrap();
            }
        })
    });

    for _ in 0..ROUNDS {
        round.fetch_add(1, SeqCst);
        for _ in &others {
            said.recv().await.unwrap();
        }
        // Either nothing is to be kept, or there is what is to be kept.
        until(|| handle.snapshot().targets() == 0 || handle.snapshot().idle() == 1).await;

        pool.keep_warm(1, 0).unwrap();
        handle.renew();
        until(|| handle.snapshot().targets() == 0).await;
    }
    for other in others {
        other.join().unwrap();
    }
}

async fn until(holds: impl Fn() -> bool) {
    let holds = async {
        while !holds() {
            yield_now().await;
        }
    };
    timeout(secs(60), holds).await.unwrap();
}
