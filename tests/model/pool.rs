//! The books of a pool.

#[path = "../../layers/outbound/pool/books.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod books;
#[path = "../../layers/outbound/pool/fates.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod fates;
#[path = "../../layers/outbound/pool/health.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the model uses what it models, which is public there"
)]
mod health;
#[path = "../../layers/outbound/pool/places.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod places;
#[path = "../../layers/outbound/pool/returns.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod returns;
#[path = "../../layers/outbound/pool/rounds.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod rounds;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use shuttle::{future::block_on, sync::Mutex, thread};
use tokio::time::Instant;

use self::{
    books::{Books, Given, Got, Limits, Member, Terms, Ticket},
    fates::Refusal,
    health::ConnectBackoff,
};
use crate::{Inside, explore, is_found, join, meanwhile};

/// A connection: its number, and to what.
#[derive(Debug, PartialEq, Eq)]
struct Thing(u64, usize);

impl Member for Thing {
    fn number(&self) -> u64 {
        self.0
    }

    fn round(&self) -> u64 {
        0
    }

    fn retires(&self) -> Option<Instant> {
        None
    }
}

thread_local! {
    /// The fault: whoever changes the books wakes nobody. (All threads of a model are one thread of the test.)
    static MUTE: Cell<bool> = const { Cell::new(false) };
}

/// The books behind their lock, as the pool has them.
struct Pool {
    books: Mutex<Books<u8, Thing, ()>>,
    now: Instant,
}

impl Pool {
    fn new(open: usize, open_per_target: usize) -> Arc<Self> {
        let limits = Limits {
            open,
            open_per_target,
            idle_per_target: 8,
            waiting: 8,
            idle_for: Some(Duration::from_secs(1)),
            backoff: ConnectBackoff::off(),
        };
        Arc::new(Self {
            books: Mutex::new(Books::new(limits)),
            now: Instant::now(),
        })
    }

    fn with<R>(&self, change: impl FnOnce(&mut Books<u8, Thing, ()>) -> R) -> R {
        let mut books = self.books.lock().unwrap();
        let result = change(&mut books);
        let (wake, after) = books.take_after();
        let after = after.unwrap_or_default();
        drop(books);
        for (_, _, place) in after.closed {
            self.free(place);
        }
        if !MUTE.get() {
            let woken = wake.into_iter().chain(after.wakes);
            woken.for_each(|waker| waker.wake());
        }
        result
    }

    fn terms(&self) -> Terms {
        Terms {
            since: self.now,
            by: None,
            is_callers: false,
        }
    }

    fn free(&self, place: Option<usize>) {
        if let Some(at) = place {
            self.with(|books| books.free(at, self.now));
        }
    }

    /// A dial that succeeds, in a while.
    fn dial(self: &Arc<Self>, at: usize, dial: u64) {
        let pool = Arc::clone(self);
        meanwhile(move || {
            let thing = Thing(dial, at);
            let left = pool.with(|books| books.dialled(at, dial, thing, pool.now));
            if let Some(thing) = left {
                pool.with(|books| books.give_back(at, thing, || pool.now, true));
            }
        });
    }

    fn fail(self: &Arc<Self>, at: usize, dial: u64, ticket: Ticket) {
        let pool = Arc::clone(self);
        meanwhile(move || {
            let refusal = Refusal::Closed;
            pool.with(|books| books.dial_failed(at, dial, Some(ticket), refusal, pool.now));
        });
    }

    fn begin(self: &Arc<Self>, to: u8) -> Result<Thing, Ticket> {
        let got = self.with(|books| books.get(to, 0, || self.terms()));
        match got
            .map_err(|(refusal, _)| refusal)
            .unwrap()
        {
            Got::Idle(_, thing) => Ok(thing),
            Got::Wait(ticket, dial) => {
                if let Some(dial) = dial {
                    self.dial(ticket.target, dial);
                }
                Err(ticket)
            }
        }
    }

    fn wait(self: &Arc<Self>, ticket: Ticket) -> impl Future<Output = Option<Thing>> {
        poll_fn(move |cx| {
            loop {
                match self.with(|books| books.ask(ticket, cx.waker())) {
                    None | Some((Given::Nothing, _)) => return Poll::Pending,
                    Some((Given::Place(dial), _)) => self.dial(ticket.target, dial),
                    Some((Given::Member { member, .. }, _)) => return Poll::Ready(Some(member)),
                    Some((Given::Refused(..), _)) => return Poll::Ready(None),
                }
            }
        })
    }

    fn get(self: &Arc<Self>, to: u8) -> Thing {
        let got = self.begin(to);
        got.unwrap_or_else(|ticket| block_on(self.wait(ticket)).unwrap())
    }

    fn give_back(&self, thing: Thing) {
        self.with(|books| books.give_back(thing.1, thing, || self.now, false));
    }

    fn lose(&self, thing: Thing) {
        self.free(Some(thing.1));
    }

    /// Nobody waits, nothing is in use, and there is nothing that no place was taken for.
    fn is_at_rest(&self) {
        self.with(|books| {
            let counts = books.counts;
            assert_eq!((counts.waiting, counts.in_use(), counts.dials), (0, 0, 0));
            assert!(counts.open <= books.limits.open);
            let idle: usize = books
                .targets
                .iter()
                .map(|(_, target)| target.idle.len())
                .sum();
            assert_eq!(
                (idle, books.queued, books.waiters.len()),
                (counts.open, 0, 0)
            );
        });
    }
}

/// Whether it fails when nobody is woken.
fn is_found_when_mute(scene: fn()) -> bool {
    MUTE.set(true);
    let found = is_found(scene);
    MUTE.set(false);
    found
}

// === A connection is one caller's at a time, and there are no more than the limit

/// Three who come twice each, one of whom never gives back.
fn three_share(limit: usize, may_be: usize) {
    let (pool, inside) = (Pool::new(limit, 8), Arc::new(Inside::default()));

    for number in 0..3 {
        let (pool, inside) = (Arc::clone(&pool), Arc::clone(&inside));
        meanwhile(move || {
            for _ in 0..2 {
                let thing = pool.get(1);
                inside.visit();
                if number == 0 {
                    pool.lose(thing);
                } else {
                    pool.give_back(thing);
                }
            }
        });
    }
    join();

    assert!(inside.most() <= may_be);
    pool.is_at_rest();
}

#[test]
fn no_more_connections_than_the_limit_are_out_and_everybody_gets_one() {
    // Two where there should be one.
    assert!(is_found(|| three_share(2, 1)));
    assert!(is_found_when_mute(|| three_share(1, 1)));

    explore(|| three_share(1, 1));
    explore(|| three_share(2, 2));
}

// === Places move between targets

fn two_targets() {
    let (pool, inside) = (Pool::new(1, 1), Arc::new(Inside::default()));

    for to in [1, 2, 1] {
        let (pool, inside) = (Arc::clone(&pool), Arc::clone(&inside));
        meanwhile(move || {
            let thing = pool.get(to);
            inside.visit();
            pool.give_back(thing);
        });
    }
    join();

    assert!(inside.most() <= 1);
    pool.is_at_rest();
}

#[test]
fn one_place_in_all_goes_round_between_targets() {
    assert!(is_found_when_mute(two_targets));

    explore(two_targets);
}

// === Who gives up is in nobody's way

fn one_gives_up() {
    let pool = Pool::new(1, 1);
    let held = pool.get(1);

    let given_up = Arc::clone(&pool);
    meanwhile(move || {
        let ticket = match given_up.begin(1) {
            Err(ticket) => ticket,
            Ok(thing) => return given_up.give_back(thing),
        };
        let over = block_on(async {
            let mut waiting = std::pin::pin!(given_up.wait(ticket));
            poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx))).await
        });
        thread::yield_now();
        match over {
            Poll::Ready(thing) => given_up.give_back(thing.unwrap()),
            Poll::Pending => {
                let (_, left) = given_up.with(|books| books.leave(ticket, given_up.now));
                if let Some((thing, _)) = left {
                    given_up.give_back(thing);
                }
            }
        }
    });
    let waits = Arc::clone(&pool);
    meanwhile(move || {
        let thing = waits.get(1);
        waits.give_back(thing);
    });
    pool.give_back(held);
    join();

    pool.is_at_rest();
}

#[test]
fn what_is_given_to_one_who_gives_up_goes_on_to_the_next() {
    assert!(is_found_when_mute(one_gives_up));

    explore(one_gives_up);
}

// === A dial that fails is one caller's failure

fn one_fails() {
    let pool = Pool::new(1, 1);
    let got = pool.with(|books| books.get(1, 0, || pool.terms()));
    let Ok(Got::Wait(ticket, Some(dial))) = got else {
        panic!("there is a place");
    };

    let waits = Arc::clone(&pool);
    meanwhile(move || {
        let thing = waits.get(1);
        waits.give_back(thing);
    });
    pool.fail(ticket.target, dial, ticket);
    let told = block_on(pool.wait(ticket));
    join();

    // The other may have come so late that it found a place of its own.
    assert_eq!(told, None);
    pool.is_at_rest();
}

#[test]
fn who_waits_behind_a_dial_that_fails_dials_next() {
    assert!(is_found_when_mute(one_fails));

    explore(one_fails);
}

// === The end

fn closes() {
    let pool = Pool::new(1, 1);
    let held = pool.get(1);

    let waits = Arc::clone(&pool);
    meanwhile(move || {
        let got = waits.with(|books| books.get(1, 0, || waits.terms()));
        if let Ok(Got::Wait(ticket, None)) = got {
            assert_eq!(block_on(waits.wait(ticket)), None);
        }
    });
    let closing = Arc::clone(&pool);
    meanwhile(move || closing.with(|books| books.close(closing.now)));
    join();
    pool.give_back(held);

    pool.with(|books| assert_eq!((books.counts.open, books.targets.len()), (0, 0)));
}

#[test]
fn a_pool_that_is_closed_keeps_nobody_waiting() {
    assert!(is_found_when_mute(closes));

    explore(closes);
}
