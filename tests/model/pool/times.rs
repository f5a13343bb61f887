//! The pool's own task, and what comes about by time: pauses, deadlines, looks at what is idle, a warm minimum.

use std::{cell::Cell, sync::Arc, time::Duration};

use shuttle::thread;

use super::{Pool, health::ConnectBackoff, is_found_when_mute, rounds::Next};
use crate::{explore, is_found, join, meanwhile};

thread_local! {
    /// The fault: the pool's own task does not hear that it has something to do.
    static DEAF: Cell<bool> = const { Cell::new(false) };
    /// The fault: it sleeps too long.
    static LATE: Cell<bool> = const { Cell::new(false) };
}

/// What the pool's own task is told.
#[derive(Default)]
pub(super) struct Calls {
    called: bool,
    over: bool,
    /// It has nothing to do.
    rests: bool,
}

impl Pool {
    /// There is something to do for the pool's own task.
    pub(super) fn call(&self) {
        if !DEAF.get() {
            self.calls.lock().unwrap().called = true;
            self.called.notify_all();
        }
    }

    /// The pool's own task. Whatever it waits for comes about as soon as it does.
    fn keep(self: &Arc<Self>) -> thread::JoinHandle<()> {
        let pool = Arc::clone(self);
        thread::spawn(move || {
            loop {
                let (warming, next) = pool.with(|books| books.tend(pool.now()));
                for warming in warming {
                    pool.dial(warming.target, warming.dial, None);
                }
                match next {
                    Next::Soon => continue,
                    Next::At(Some(due)) if !LATE.get() => {
                        thread::yield_now();
                        let mut now = pool.now.lock().unwrap();
                        *now = due.max(*now);
                        continue;
                    }
                    Next::At(_) => {}
                }
                let mut calls = pool.calls.lock().unwrap();
                while !calls.called && !calls.over {
                    calls.rests = true;
                    calls = pool.called.wait(calls).unwrap();
                }
                calls.rests = false;
                if !std::mem::take(&mut calls.called) {
                    return;
                }
            }
        })
    }

    /// Waits for all others, and for the pool's own task until it has nothing to do.
    fn end(&self, keeper: thread::JoinHandle<()>) {
        loop {
            join();
            let calls = self.calls.lock().unwrap();
            if calls.rests && !calls.called && crate::THREADS.with_borrow(Vec::is_empty) {
                break;
            }
            drop(calls);
            thread::yield_now();
        }
        self.calls.lock().unwrap().over = true;
        self.called.notify_all();
        keeper.join().unwrap();
    }
}

fn is_found_with(fault: &'static std::thread::LocalKey<Cell<bool>>, scene: fn()) -> bool {
    fault.set(true);
    let found = is_found(scene);
    fault.set(false);
    found
}

// === A pause ends, also after a probe that failed

/// Three wait for a target that refuses the first two, while one connection is in use that nobody gives back.
fn two_probes_fail() {
    let backoff = ConnectBackoff::default()
        .after(1)
        .even_alone(true);
    let pool = Pool::with_backoff(4, 4, backoff);
    let held = pool.get(1);
    *pool.refusals.lock().unwrap() = 2;
    let keeper = pool.keep();

    for _ in 0..3 {
        let waits = Arc::clone(&pool);
        meanwhile(move || {
            if let Some(thing) = waits.get_within(1, None) {
                waits.give_back(thing);
            }
        });
    }
    pool.end(keeper);
    pool.give_back(held);

    pool.is_at_rest();
}

#[test]
fn who_waits_for_a_target_that_is_down_dials_when_each_pause_ends() {
    assert!(is_found_when_mute(two_probes_fail));
    assert!(is_found_with(&LATE, two_probes_fail));

    explore(two_probes_fail);
}

// === Time is up once

/// One waits for a second, and something is given back then, or only when it has given up.
fn time_is_up(comes_back: bool) {
    let pool = Pool::new(1, 1);
    let held = pool.get(1);
    let keeper = pool.keep();

    let waits = Arc::clone(&pool);
    meanwhile(move || {
        let thing = waits.get_within(1, Some(Duration::from_secs(1)));
        assert!(comes_back || thing.is_none());
        if let Some(thing) = thing {
            waits.give_back(thing);
        }
    });
    if comes_back {
        pool.give_back(held);
        pool.end(keeper);
    } else {
        pool.end(keeper);
        pool.give_back(held);
    }

    pool.is_at_rest();
}

#[test]
fn who_waits_gives_up_in_time_or_has_what_is_given_back() {
    assert!(is_found_with(&LATE, || time_is_up(false)));
    assert!(is_found_with(&DEAF, || time_is_up(false)));

    explore(|| time_is_up(false));
    explore(|| time_is_up(true));
}

// === A look at what is idle is in nobody's way

/// What somebody does while one is looked at.
type Change = fn(&Pool);

fn looks_while(change: Change) {
    let pool = Pool::new(2, 2);
    let (one, other) = (pool.get(1), pool.get(1));
    let (target, number) = (one.target, one.number);
    pool.give_back(one);
    pool.give_back(other);

    let looks = Arc::clone(&pool);
    meanwhile(move || {
        if let Some(idle) = looks.with(|books| books.take_out(target, number)) {
            thread::yield_now();
            looks.with(|books| books.put_back(target, idle, looks.now()));
        }
    });
    for _ in 0..2 {
        let gets = Arc::clone(&pool);
        meanwhile(move || {
            if let Some(thing) = gets.get_within(1, None) {
                gets.give_back(thing);
            }
        });
    }
    let changes = Arc::clone(&pool);
    meanwhile(move || change(&changes));
    join();

    pool.is_at_rest();
}

#[test]
fn what_is_looked_at_comes_to_who_waits_for_it_or_is_closed_with_the_others() {
    assert!(is_found_when_mute(|| looks_while(|_| {})));

    explore(|| looks_while(|pool| pool.with(|books| books.set_open(1, pool.now()))));
    explore(|| looks_while(|pool| pool.with(|books| books.renew(pool.now()))));
    explore(|| looks_while(|pool| pool.with(|books| books.close(pool.now()))));
}

// === A new beginning leaves nothing of what was

fn begins_anew() {
    let pool = Pool::new(1, 1);

    for _ in 0..2 {
        let gets = Arc::clone(&pool);
        meanwhile(move || {
            let thing = gets.get(1);
            gets.give_back(thing);
        });
    }
    pool.with(|books| books.renew(pool.now()));
    join();

    pool.is_at_rest();
}

#[test]
fn nothing_that_was_dialled_before_a_new_beginning_is_idle_after_it() {
    assert!(is_found_when_mute(begins_anew));

    explore(begins_anew);
}

// === What is to be idle is

/// Two are to be idle while one is taken and lost, and a dial fails.
fn is_kept_warm() {
    let pool = Pool::new(4, 4);
    *pool.refusals.lock().unwrap() = 1;
    let keeper = pool.keep();

    let uses = Arc::clone(&pool);
    meanwhile(move || {
        if let Some(thing) = uses.get_within(1, None) {
            uses.lose(thing);
        }
    });
    pool.with(|books| books.keep_warm(1, 2, (), pool.now()));
    pool.end(keeper);

    pool.is_at_rest();
    let idle = pool.with(|books| books.counts.idle);
    assert!(idle >= 2);
}

#[test]
fn what_is_lost_of_what_is_kept_warm_is_opened_again() {
    assert!(is_found_with(&DEAF, is_kept_warm));
    assert!(is_found_with(&LATE, is_kept_warm));

    explore(is_kept_warm);
}

/// Somebody closes the pool while another says what is to be kept warm.
fn closes_while_warm() {
    let pool = Pool::new(4, 4);
    let keeper = pool.keep();

    let warms = Arc::clone(&pool);
    meanwhile(move || warms.with(|books| books.keep_warm(1, 2, (), warms.now())));
    pool.with(|books| books.close(pool.now()));
    pool.end(keeper);

    pool.with(|books| assert_eq!((books.counts.open, books.targets.len()), (0, 0)));
}

#[test]
fn a_pool_that_is_closed_keeps_nothing_warm() {
    explore(closes_while_warm);
}
