//! A pool among the code of others: errors that ask it, connectors that panic, runtimes that do not run.

use std::{
    error::Error,
    fmt,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use metrics::{
    Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};
use tokio::{
    io::{DuplexStream, duplex},
    runtime::{Builder, Runtime},
    time::{sleep, timeout},
};
use tokio_test::{assert_pending, task};
use tower_layer::Layer;
use tower_net::{
    Conn,
    error::find,
    io::GuardedIo,
    pool::{
        DialPanicked, Pool, PoolCause, PoolError, PoolHandle, PoolLayer, PoolPhase, Pooling, Served,
    },
};
use tower_service::Service;

use crate::{
    pool::{Lines, pool, settle},
    support::{
        exchange::Answer,
        service::{millis, secs},
    },
};

// === Errors

/// Asks the pool when it is dropped.
struct Asks {
    pool: Arc<Mutex<Option<PoolHandle>>>,
    asked: Arc<AtomicBool>,
}

impl Drop for Asks {
    fn drop(&mut self) {
        if let Some(pool) = &*self.pool.lock().unwrap() {
            let _ = pool.snapshot();
            self.asked.store(true, SeqCst);
        }
    }
}

impl fmt::Debug for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asks")
    }
}

impl fmt::Display for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("asks")
    }
}

impl Error for Asks {}

/// When an error that nobody sees is dropped.
#[derive(Debug, Clone, Copy)]
enum Unseen {
    /// Nobody waits for the dial any more.
    Left,
    /// Somebody was told, and leaves before it looks.
    Told,
    /// Somebody was given another connection, and has not looked.
    Served,
}

#[tokio::test(start_paused = true)]
async fn an_error_that_asks_the_pool_when_it_is_dropped_meets_no_lock() {
    for unseen in [Unseen::Left, Unseen::Told, Unseen::Served] {
        let (handle, asked) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let fails = Arc::new(AtomicBool::new(false));
        let (told, pool, dials) = (Arc::clone(&asked), Arc::clone(&handle), Arc::clone(&fails));
        let connector = tower::service_fn(move |_: u16| {
            let (pool, asked) = (Arc::clone(&pool), Arc::clone(&told));
            let fails = dials.load(SeqCst);
            async move {
                if fails {
                    sleep(secs(1)).await;
                    return Err(Asks { pool, asked });
                }
                let (near, far) = duplex(1);
                Ok(Conn::new(GuardedIo::new(near, far), ()))
            }
        });
        let mut pool = PoolLayer::new("test", Pooling::default())
            .unwrap()
            .layer(connector);
        *handle.lock().unwrap() = Some(pool.handle());

        let held = pool.call(1).await.unwrap();
        fails.store(true, SeqCst);
        let mut get = task::spawn(pool.call(1));
        assert_pending!(get.poll());
        match unseen {
            Unseen::Left => drop(get),
            Unseen::Told => {
                sleep(secs(2)).await;
                assert!(get.is_woken());
                drop(get);
            }
            Unseen::Served => {
                held.reuse();
                sleep(secs(2)).await;
                let served = get.await.unwrap().acquired().served();
                assert_eq!(served, Served::Late);
            }
        }
        sleep(secs(2)).await;

        assert!(asked.load(SeqCst), "{unseen:?}");
        *handle.lock().unwrap() = None;
    }
}

// === Clones

/// A connector whose clone panics when it is told to.
struct Brittle(Arc<AtomicBool>);

impl Clone for Brittle {
    fn clone(&self) -> Self {
        assert!(!self.0.load(SeqCst), "told to panic");
        Self(Arc::clone(&self.0))
    }
}

impl Service<u16> for Brittle {
    type Response = Conn<Far>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Conn<Far>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: u16) -> Self::Future {
        let (near, far) = duplex(1);
        std::future::ready(Ok(Conn::new(GuardedIo::new(near, far), ())))
    }
}

type Far = GuardedIo<DuplexStream, DuplexStream>;

fn brittle(pooling: Pooling) -> (Pool<Brittle, u16, u16, Far>, Arc<AtomicBool>) {
    let panics = Arc::new(AtomicBool::new(false));
    let pool = PoolLayer::new("test", pooling)
        .unwrap()
        .layer(Brittle(Arc::clone(&panics)));
    (pool, panics)
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_panics_when_it_is_cloned_is_a_dial_that_failed() {
    let (mut pool, panics) = brittle(Pooling::default().max_open(1));
    let handle = pool.handle();
    let places = || (handle.snapshot().open(), handle.snapshot().waiting());

    // With the call.
    panics.store(true, SeqCst);
    let error = pool.call(1).await.unwrap_err();
    assert!(find::<DialPanicked>(&error).is_some());
    assert_eq!(places(), (0, 0));

    // When there is a place, later on.
    panics.store(false, SeqCst);
    let held = pool.call(1).await.unwrap();
    let mut get = task::spawn(pool.call(1));
    assert_pending!(get.poll());
    panics.store(true, SeqCst);
    drop(held);
    let error = get.await.unwrap_err();
    assert!(find::<DialPanicked>(&error).is_some());
    assert_eq!(places(), (0, 0));

    panics.store(false, SeqCst);
    assert!(pool.call(1).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_panics_when_it_is_cloned_to_keep_warm_is_a_dial_that_failed() {
    let (mut pool, panics) = brittle(Pooling::default());
    let handle = pool.handle();

    pool.keep_warm(1, 1).unwrap();
    panics.store(true, SeqCst);
    settle().await;
    let at_first = (handle.snapshot().idle(), handle.snapshot().connecting());
    panics.store(false, SeqCst);
    sleep(secs(10)).await;

    assert_eq!(at_first, (0, 0));
    assert_eq!(handle.snapshot().idle(), 1);
    assert!(pool.call(1).await.is_ok());
}

// === Wakers

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("told to panic");
    }
}

#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_keeps_nobody_else_from_being_woken() {
    let (mut pool, _, handle) = pool(Pooling::default().max_open(1));
    let _held = pool.call(1).await.unwrap();
    let mut first = task::spawn(pool.call(1));
    let mut panics = Box::pin(pool.call(1));
    let mut last = task::spawn(pool.call(1));
    assert_pending!(first.poll());
    let waker = Waker::from(Arc::new(Panics));
    assert_pending!(
        panics
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
    );
    assert_pending!(last.poll());

    handle.close();

    assert!(first.is_woken() && last.is_woken());
}

// === Recorders

/// Panics when it is told that somebody waits, once it is to.
#[derive(Clone, Default)]
struct Recording(Arc<AtomicBool>);

impl GaugeFn for Recording {
    fn increment(&self, _: f64) {
        assert!(!self.0.load(SeqCst), "told to panic");
    }

    fn decrement(&self, _: f64) {}

    fn set(&self, _: f64) {}
}

impl Recorder for Recording {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        if key.name() == "tower_net_pool_waiting" {
            Gauge::from_arc(Arc::new(self.clone()))
        } else {
            Gauge::noop()
        }
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test(start_paused = true)]
async fn a_recorder_that_panics_leaves_nobody_in_line_who_has_gone() {
    let recording = Recording::default();
    let (mut pool, _, handle) =
        with_local_recorder(&recording, || pool(Pooling::default().max_open(1)));
    let begin = |pool: &mut Lines| {
        recording.0.store(true, SeqCst);
        let mut get = task::spawn(pool.call(1));
        // Whether the recorder's panic is its own or not is not the matter.
        let _ = catch_unwind(AssertUnwindSafe(|| assert_pending!(get.poll())));
        recording.0.store(false, SeqCst);
        get
    };

    // It dials all the same.
    let get = begin(&mut pool);
    let held = get.await.unwrap();
    let get = begin(&mut pool);
    assert_eq!(handle.snapshot().waiting(), 1);
    drop(get);
    assert_eq!(handle.snapshot().waiting(), 0);

    let mut next = task::spawn(pool.call(1));
    assert_pending!(next.poll());
    held.reuse();
    assert!(next.is_woken());
    next.await.unwrap().reuse();
    assert_eq!((handle.snapshot().open(), handle.snapshot().idle()), (1, 1));
}

// === Runtimes

fn runtime(is_paused: bool) -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .start_paused(is_paused)
        .build()
        .unwrap()
}

#[test]
fn a_get_keeps_its_own_time_where_the_runtime_of_the_pool_does_not_run() {
    let (pools, callers) = (runtime(false), runtime(true));
    let pooling = Pooling::default()
        .max_open(1)
        .within(secs(5))
        .runtime(pools.handle().clone());
    let (mut pool, exchange, handle) = pool(pooling);
    exchange.answer(1, Answer::Connect);

    let phases = callers.block_on(async {
        let mut phases = Vec::new();
        // The first has the only place, and a dial that nobody drives.
        let mut connects = task::spawn(pool.call(1));
        assert_pending!(connects.poll());
        let waits = pool.call(1);
        for get in [connects.into_inner(), waits] {
            let ended = timeout(secs(60), get).await;
            let error = ended.expect("in time").unwrap_err();
            phases.push(phase_of(&error));
            assert!(error.waited() >= secs(5) && error.waited() < secs(5) + millis(10));
        }
        phases
    });

    assert_eq!(phases, [PoolPhase::Connecting, PoolPhase::Waiting]);
    assert_eq!(handle.snapshot().waiting(), 0);
}

fn phase_of(error: &PoolError) -> PoolPhase {
    match error.cause() {
        PoolCause::Elapsed { phase, .. } => *phase,
        _ => panic!("{error}"),
    }
}

#[test]
fn a_get_in_a_runtime_that_keeps_no_time_is_served_all_the_same() {
    let pools = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let pooling = Pooling::default()
        .max_open(1)
        .within(secs(1))
        .runtime(pools.handle().clone());
    let (mut pool, ..) = pool(pooling);
    let timeless = Builder::new_current_thread()
        .build()
        .unwrap();

    timeless.block_on(async {
        let _held = pool.call(1).await.unwrap();
        for _ in 0..2 {
            let error = pool.call(1).await.unwrap_err();
            assert_eq!(phase_of(&error), PoolPhase::Waiting);
        }
    });
}

#[test]
fn a_runtime_that_keeps_no_time_takes_that_of_no_other() {
    let (pools, callers) = (runtime(false), runtime(true));
    let timeless = Builder::new_current_thread()
        .build()
        .unwrap();
    let pooling = Pooling::default()
        .max_open(1)
        .within(secs(5))
        .runtime(pools.handle().clone());
    let (mut pool, ..) = pool(pooling);
    let mut connects = task::spawn(pool.call(1));

    timeless.block_on(async {
        assert_pending!(connects.poll());
    });
    let ended = callers.block_on(async { timeout(secs(60), pool.call(1)).await });

    let error = ended.expect("in time").unwrap_err();
    assert_eq!(phase_of(&error), PoolPhase::Waiting);
    assert!(error.waited() < secs(5) + millis(10));
}
