//! Keys of others: that ask the pool when they are dropped, or panic then, or when they are made.

use std::{
    hash::{Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use tokio_test::{assert_pending, assert_ready, task};
use tower_layer::Layer;
use tower_net::pool::{Pool, PoolHandle, PoolLayer, Pooling, Served};
use tower_service::Service;

use crate::support::exchange::{Exchange, Line};

/// What keys do.
#[derive(Default)]
struct Told {
    /// They ask this one when they are dropped.
    asks: Mutex<Option<PoolHandle>>,
    asked: AtomicUsize,
    /// They panic when they are made.
    panics: AtomicBool,
    /// They panic when they are dropped.
    panics_dropped: AtomicBool,
}

#[derive(Clone)]
struct Name {
    of: u16,
    told: Arc<Told>,
}

impl Drop for Name {
    fn drop(&mut self) {
        let asks = self.told.asks.lock().unwrap().clone();
        if let Some(pool) = asks {
            let _ = pool.snapshot();
            self.told.asked.fetch_add(1, SeqCst);
        }
        assert!(!self.told.panics_dropped.load(SeqCst), "told to panic");
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.of == other.of
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.of.hash(state);
    }
}

fn named(pooling: Pooling) -> (Pool<Exchange, u16, Name, Line>, Exchange, Arc<Told>) {
    let (exchange, told) = (Exchange::new(), Arc::new(Told::default()));
    let names = Arc::clone(&told);
    let key = move |of: &u16| {
        assert!(!names.panics.load(SeqCst), "told to panic");
        let told = Arc::clone(&names);
        Name { of: *of, told }
    };
    let pool = PoolLayer::keyed("test", pooling, key)
        .unwrap()
        .layer(exchange.clone());
    (pool, exchange, told)
}

#[tokio::test(start_paused = true)]
async fn a_key_that_asks_the_pool_when_it_is_dropped_meets_no_lock() {
    let (mut pool, _, told) = named(Pooling::default().max_open(1));
    let handle = pool.handle();
    *told.asks.lock().unwrap() = Some(handle.clone());
    let asked = || told.asked.swap(0, SeqCst);

    // One that is not needed, since the target is known.
    let held = pool.call(1).await.unwrap();
    assert!(asked() > 0);
    let mut get = task::spawn(pool.call(1));
    assert_eq!(asked(), 1);
    assert_pending!(get.poll());
    assert_eq!(asked(), 1);
    held.reuse();
    let held = get.await.unwrap();
    pool.keep_warm(1, 1).unwrap();
    assert_eq!(asked(), 1);
    pool.keep_warm(1, 0).unwrap();
    assert_eq!(asked(), 1);

    // Those of a target that is forgotten.
    drop(held);
    assert_eq!((asked(), handle.snapshot().targets()), (2, 0));

    // One of a pool that is closed.
    handle.close();
    pool.keep_warm(2, 1).unwrap();
    assert_eq!(asked(), 1);
    *told.asks.lock().unwrap() = None;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_panics_when_it_is_dropped_takes_no_connection_along() {
    let (mut pool, exchange, told) = named(Pooling::default());
    let held = pool.call(1).await.unwrap();
    let mut get = task::spawn(pool.call(1));
    held.reuse();

    told.panics_dropped.store(true, SeqCst);
    let conn = assert_ready!(get.poll()).unwrap();
    told.panics_dropped.store(false, SeqCst);

    assert_eq!(conn.acquired().served(), Served::Idle);
    assert_eq!((exchange.dials(), exchange.open()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_get_whose_key_panicked_when_it_was_made_can_be_polled_again() {
    let (mut pool, exchange, told) = named(Pooling::default());
    let handle = pool.handle();
    let mut get = task::spawn(pool.call(1));

    told.panics.store(true, SeqCst);
    assert!(catch_unwind(AssertUnwindSafe(|| get.poll())).is_err());
    let snapshot = handle.snapshot();
    assert_eq!((snapshot.waiting(), snapshot.targets()), (0, 0));
    told.panics.store(false, SeqCst);

    let conn = get.await.unwrap();
    assert_eq!(conn.acquired().served(), Served::Dialled);
    assert_eq!((handle.snapshot().open(), exchange.dials()), (1, 1));
}
