//! What hand-rolls its wakes or its books, run under a scheduler that tries many interleavings: the places of each peer,
//! the bells of handlers, the books of a pool, the calls of a client.
//!
//! The files are the library's own, compiled once more with locks and atomics that the scheduler knows. Each property
//! is held first against something with a fault put in, which the model must find, so that it is not blind.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed, in its helpers as well"
)]

mod outbound;
mod pool;

mod base {
    //! What `layers/base/sync.rs` is to the library.

    pub(crate) mod error {
        pub(crate) use tower_net::error::BoxError;
    }

    pub(crate) mod time {
        pub(crate) use tokio::time::Instant;

        pub(crate) const FOREVER: std::time::Duration =
            std::time::Duration::from_secs(100 * 365 * 86_400);

        pub(crate) fn now() -> Instant {
            Instant::now()
        }
    }

    pub(crate) mod sync {
        use std::cell::Cell;

        pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic::Ordering};
        pub(crate) use std::sync::PoisonError;

        thread_local! {
            /// The fault: whoever looks at a number sees what it was before it last changed. (All threads of a
            /// model are one thread of the test.)
            pub(crate) static STALE: Cell<bool> = const { Cell::new(false) };
        }

        #[derive(Debug)]
        pub(crate) struct AtomicUsize {
            now: shuttle::sync::atomic::AtomicUsize,
            before: shuttle::sync::atomic::AtomicUsize,
        }

        impl AtomicUsize {
            pub(crate) fn new(number: usize) -> Self {
                Self {
                    now: number.into(),
                    before: number.into(),
                }
            }

            pub(crate) fn load(&self, order: Ordering) -> usize {
                if STALE.get() {
                    return self.before.load(order);
                }
                self.now.load(order)
            }

            pub(crate) fn store(&self, number: usize, order: Ordering) {
                self.now.store(number, order);
            }

            pub(crate) fn fetch_add(&self, number: usize, order: Ordering) -> usize {
                let before = self.now.fetch_add(number, order);
                self.before.store(before, order);
                before
            }

            pub(crate) fn fetch_sub(&self, number: usize, order: Ordering) -> usize {
                let before = self.now.fetch_sub(number, order);
                self.before.store(before, order);
                before
            }

            pub(crate) fn fetch_or(&self, bits: usize, order: Ordering) -> usize {
                let before = self.now.fetch_or(bits, order);
                self.before.store(before, order);
                before
            }

            pub(crate) fn swap(&self, number: usize, order: Ordering) -> usize {
                let before = self.now.swap(number, order);
                self.before.store(before, order);
                before
            }
        }
    }
}

mod conn {
    pub(crate) use tower_net::Deadline;
}

mod middleware {
    pub(crate) mod frame {
        pub(crate) use tower_net::frame::RpcFailure;
    }
}

#[path = "../../layers/middleware/frame/bells.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod bells;
#[path = "../../layers/middleware/limit/places.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod places;
#[path = "../../layers/middleware/limit/table.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod table;

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
};

use shuttle::{check_pct, check_random, future::block_on, thread};

use crate::{base::sync::STALE, bells::Bells, places::Places, table::Table};

const PEER: u128 = 7;

/// Runs `scene` in many interleavings, chosen evenly and by depth.
fn explore(scene: fn()) {
    let scene = move || {
        // Of a scene that failed before it came to join them.
        THREADS
            .take()
            .into_iter()
            .for_each(std::mem::forget);
        scene();
    };
    check_random(scene, 1_000);
    check_pct(scene, 1_000, 3);
}

/// Whether any interleaving of `scene` fails.
fn is_found(scene: fn()) -> bool {
    catch_unwind(AssertUnwindSafe(|| explore(scene))).is_err()
}

/// Whether it fails when numbers are seen late.
fn is_found_when_stale(scene: fn()) -> bool {
    STALE.set(true);
    let found = is_found(scene);
    STALE.set(false);
    found
}

fn places(limit: usize) -> Arc<Places> {
    Arc::new(Places::new(limit, Table::new(8, || {})))
}

thread_local! {
    static THREADS: RefCell<Vec<thread::JoinHandle<()>>> = const { RefCell::new(Vec::new()) };
}

/// Begins a thread of the scene.
fn meanwhile(run: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(run);
    THREADS.with_borrow_mut(|threads| threads.push(thread));
}

/// Waits for all of them, and for those that they have begun.
fn join() {
    while let Some(thread) = THREADS.with_borrow_mut(Vec::pop) {
        thread.join().unwrap();
    }
}

// === A weight is changed by one at a time

fn three_add(add: fn(&Table)) {
    let table = Arc::new(Table::new(8, || {}));

    for _ in 0..3 {
        let table = Arc::clone(&table);
        meanwhile(move || add(&table));
    }
    join();

    assert_eq!(table.heaviest(0, 9), [(PEER, 3)]);
}

#[test]
fn a_weight_that_three_change_at_once_is_in_one_slot_and_adds_up() {
    // Looks first, and writes what it makes of it.
    assert!(is_found(|| {
        three_add(|table| {
            let weight = table.update(PEER, 0, |weight| *weight);
            table.update(PEER, 0, |now| *now = weight + 1);
        });
    }));

    explore(|| three_add(|table| table.update(PEER, 0, |weight| *weight += 1)));
}

// === A place is one connection's at a time

/// Counts who is inside at once.
#[derive(Debug, Default)]
struct Inside {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Inside {
    fn most(&self) -> usize {
        self.most.load(Relaxed)
    }

    fn visit(&self) {
        let now = self.now.fetch_add(1, Relaxed) + 1;
        self.most.fetch_max(now, Relaxed);
        thread::yield_now();
        self.now.fetch_sub(1, Relaxed);
    }
}

/// Three who come twice each; who finds no place waits for one.
fn three_share(limit: usize, may_be: usize) {
    let (places, inside) = (places(limit), Arc::new(Inside::default()));

    for number in 0..3 {
        let (places, inside) = (Arc::clone(&places), Arc::clone(&inside));
        meanwhile(move || {
            for turn in 0..2 {
                let conn = number * 10 + turn;
                let held = places.take(PEER, conn);
                let held = held.unwrap_or_else(|| block_on(places.wait(PEER, conn)));
                inside.visit();
                drop(held);
            }
        });
    }
    join();

    assert!(inside.most() <= may_be);
    assert_eq!(places.table.count(0), 0);
}

#[test]
fn no_more_than_the_limit_are_inside_and_everybody_comes_in() {
    // Two places where there should be one.
    assert!(is_found(|| three_share(2, 1)));
    // Who gives back sees too late that somebody waits: nobody is woken.
    assert!(is_found_when_stale(|| three_share(1, 1)));

    explore(|| three_share(1, 1));
    explore(|| three_share(2, 2));
}

// === Who gives up is in nobody's way

fn one_gives_up() {
    let places = places(1);
    let held = places.take(PEER, 1).unwrap();

    let given_up = Arc::clone(&places);
    meanwhile(move || {
        block_on(async {
            let mut waiting = pin!(given_up.wait(PEER, 2));
            poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_ready())).await;
            thread::yield_now();
        });
    });
    let waits = Arc::clone(&places);
    meanwhile(move || drop(block_on(waits.wait(PEER, 3))));
    drop(held);
    join();

    assert_eq!(places.table.count(0), 0);
    assert!(places.take(PEER, 4).is_some());
}

#[test]
fn a_place_given_to_one_who_gives_up_goes_on_to_the_next() {
    assert!(is_found_when_stale(one_gives_up));

    explore(one_gives_up);
}

// === A higher limit lets in those who wait

fn the_limit_rises() {
    let places = places(1);
    let held = places.take(PEER, 1).unwrap();

    for conn in [2, 3] {
        let places = Arc::clone(&places);
        meanwhile(move || drop(block_on(places.wait(PEER, conn))));
    }
    places.set_limit(3);
    join();
    drop(held);

    assert_eq!(places.table.count(0), 0);
}

#[test]
fn who_waits_comes_in_when_the_limit_rises() {
    assert!(is_found(|| {
        let places = places(1);
        let held = places.take(PEER, 1).unwrap();
        let waits = Arc::clone(&places);
        meanwhile(move || drop(block_on(waits.wait(PEER, 2))));
        // It does not.
        places.set_limit(1);
        join();
        drop(held);
    }));

    explore(the_limit_rises);
}

// === Whoever rings is answered

/// How the connection looks after its bells.
type Round = fn(&mut Bells, &std::task::Waker) -> Vec<usize>;

fn listen_and_answer(bells: &mut Bells, waker: &std::task::Waker) -> Vec<usize> {
    bells.listen(waker);
    std::iter::from_fn(|| bells.answer()).collect()
}

/// Each of two rings twice, one with a bell that another row has, and the connection sleeps until it has heard of both
/// what there is to hear.
fn two_ring(round: Round) {
    let mut bells = Bells::default();
    let rang = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    for (seat, rang) in [3, 64].into_iter().zip(&rang) {
        let (bell, rang) = (bells.bell(seat).clone(), Arc::clone(rang));
        meanwhile(move || {
            for _ in 0..2 {
                rang.fetch_add(1, Relaxed);
                bell.wake_by_ref();
            }
        });
    }

    // What each had done by the time that it was answered.
    let mut seen = [0, 0];
    block_on(poll_fn(|cx| {
        for seat in round(&mut bells, cx.waker()) {
            let at = usize::from(seat == 64);
            seen[at] = rang[at].load(Relaxed);
        }
        if seen == [2, 2] {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }));
    join();
}

#[test]
fn a_handler_that_is_woken_is_polled() {
    // Collects the marks first, and leaves its waker then.
    assert!(is_found(|| {
        two_ring(|bells, waker| {
            let answered = std::iter::from_fn(|| bells.answer()).collect();
            bells.listen(waker);
            answered
        });
    }));
    // Marks are seen too late.
    assert!(is_found_when_stale(|| two_ring(listen_and_answer)));

    explore(|| two_ring(listen_and_answer));
}

/// A round that is broken off comes to nobody, and the next one does.
fn one_rings_while_a_round_is_broken_off(again: fn(&mut Bells)) {
    let mut bells = Bells::default();
    for seat in 0..3 {
        bells.mark(seat);
    }
    let bell = bells.bell(1).clone();
    meanwhile(move || bell.wake());

    let (mut answered, mut rounds) = ([false; 3], 0);
    block_on(poll_fn(|cx| {
        bells.listen(cx.waker());
        rounds += 1;
        // Only one, the first time.
        let most = if rounds == 1 { 1 } else { 3 };
        for _ in 0..most {
            if let Some(seat) = bells.answer() {
                answered[seat] = true;
            }
        }
        if answered == [true; 3] {
            return Poll::Ready(());
        }
        if rounds == 1 {
            cx.waker().wake_by_ref();
        }
        again(&mut bells);
        Poll::Pending
    }));
    join();
}

#[test]
fn a_round_that_is_broken_off_is_gone_on_with() {
    // What was taken and not answered is forgotten.
    assert!(is_found(|| one_rings_while_a_round_is_broken_off(
        |bells| { while bells.answer().is_some() {} }
    )));

    explore(|| one_rings_while_a_round_is_broken_off(|_| {}));
}
