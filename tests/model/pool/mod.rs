//! The books of a pool.

#[path = "../../../layers/outbound/pool/books.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod books;
#[path = "../../../layers/outbound/pool/fates.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod fates;
#[path = "../../../layers/outbound/pool/health.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the model uses what it models, which is public there"
)]
mod health;
#[path = "../../../layers/outbound/pool/places.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod places;
#[path = "../../../layers/outbound/pool/queue.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod queue;
#[path = "../../../layers/outbound/pool/returns.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod returns;
#[path = "../../../layers/outbound/pool/rounds.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod rounds;
mod times;
#[path = "../../../layers/outbound/pool/waiters.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod waiters;
#[path = "../../../layers/outbound/pool/warmth.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod warmth;

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Poll, Waker},
    time::Duration,
};

use shuttle::{
    future::block_on,
    sync::{Condvar, Mutex},
    thread,
};
use tokio::time::Instant;

use self::{
    books::{Books, Got, Limits, Member, Terms, Ticket},
    fates::Refusal,
    health::ConnectBackoff,
    queue::Asked,
    returns::Kept,
};
use crate::{Inside, explore, is_found, join, meanwhile};

/// A connection: its number, to what, and since which new beginning.
#[derive(Debug, PartialEq, Eq)]
struct Thing {
    number: u64,
    target: usize,
    round: u64,
}

impl Member for Thing {
    fn number(&self) -> u64 {
        self.number
    }

    fn round(&self) -> u64 {
        self.round
    }

    fn retires(&self) -> Option<Instant> {
        None
    }

    fn is_old(&self) -> bool {
        false
    }
}

thread_local! {
    /// The fault: whoever changes the books wakes nobody. (All threads of a model are one thread of the test.)
    static MUTE: Cell<bool> = const { Cell::new(false) };
    /// The fault: whoever comes to stand in line leaves no waker there.
    static SHY: Cell<bool> = const { Cell::new(false) };
}

/// The books, and by what a dial is called off.
type All = Books<u8, Thing, Arc<AtomicBool>, ()>;

/// The books behind their lock, as the pool has them.
struct Pool {
    books: Mutex<All>,
    /// The time, which only the pool's own task knows to pass.
    now: std::sync::Mutex<Instant>,
    /// So many dials are refused.
    refusals: std::sync::Mutex<usize>,
    calls: Mutex<times::Calls>,
    called: Condvar,
}

impl Pool {
    fn new(open: usize, open_per_target: usize) -> Arc<Self> {
        Self::with_backoff(open, open_per_target, ConnectBackoff::off())
    }

    fn with_backoff(open: usize, open_per_target: usize, backoff: ConnectBackoff) -> Arc<Self> {
        let limits = Limits {
            open,
            open_per_target,
            idle_per_target: 8,
            waiting: 8,
            idle_for: Some(Duration::from_secs(1)),
            backoff,
        };
        Arc::new(Self {
            books: Mutex::new(Books::new(limits)),
            now: std::sync::Mutex::new(Instant::now()),
            refusals: std::sync::Mutex::default(),
            calls: Mutex::default(),
            called: Condvar::new(),
        })
    }

    fn now(&self) -> Instant {
        *self.now.lock().unwrap()
    }

    fn with<R>(&self, change: impl FnOnce(&mut All) -> R) -> R {
        let mut books = self.books.lock().unwrap();
        let result = change(&mut books);
        let wake = books.wake.take();
        let after = books.take_after().unwrap_or_default();
        drop(books);
        for (_, _, place) in after.closed {
            self.free(place);
        }
        for off in after.called_off {
            off.store(true, Relaxed);
        }
        if !MUTE.get() {
            let woken = wake.into_iter().chain(after.wakes);
            woken.for_each(|waker| waker.wake());
        }
        if after.rouse {
            self.call();
        }
        result
    }

    fn terms(&self, within: Option<Duration>) -> Terms {
        let since = self.now();
        Terms {
            since,
            by: within.map(|within| since + within),
            is_callers: false,
        }
    }

    fn free(&self, place: Option<usize>) {
        if let Some(at) = place {
            self.with(|books| books.free(at, self.now()));
        }
    }

    /// A dial that ends in a while.
    fn dial(self: &Arc<Self>, target: usize, number: u64, owner: Option<Ticket>) {
        let round = self.with(|books| books.round);
        let off = Arc::new(AtomicBool::new(false));
        let (pool, is_off) = (Arc::clone(self), Arc::clone(&off));
        meanwhile(move || {
            let now = pool.now();
            if is_off.load(Relaxed) {
                return pool.with(|books| books.dial_gone(target, number, now));
            }
            if pool.refuses() {
                let refusal = Refusal::Closed;
                let failed =
                    |books: &mut All| books.dial_failed(target, number, owner, refusal, now);
                return pool.with(failed);
            }
            let thing = Thing {
                number,
                target,
                round,
            };
            let left = pool.with(|books| books.dialled(target, number, thing, now));
            if let Some(thing) = left {
                pool.take_in(thing, true);
            }
        });
        let by = Arc::clone(&off);
        let (is_over, is_closed) = self.with(|books| {
            books.begun(target, number, by);
            let target = books.targets.get(target);
            let is_known = target.is_some_and(|target| target.dials.contains_key(&number));
            (!is_known, books.closed)
        });
        assert!(is_over || !is_closed || off.load(Relaxed));
    }

    /// Whether the next dial is refused.
    fn refuses(&self) -> bool {
        let mut refusals = self.refusals.lock().unwrap();
        let refuses = *refusals > 0;
        *refusals = refusals.saturating_sub(1);
        refuses
    }

    /// Gets one, or stands in line, or is refused.
    fn try_begin(
        self: &Arc<Self>,
        to: u8,
        within: Option<Duration>,
        waker: Option<Waker>,
    ) -> Result<Result<Thing, Ticket>, Refusal> {
        match self.ask_for(to, within, waker)? {
            Got::Idle(thing) => Ok(Ok(thing)),
            Got::Wait(ticket, dial) => {
                if let Some(dial) = dial {
                    self.dial(ticket.target, dial, Some(ticket));
                }
                Ok(Err(ticket))
            }
        }
    }

    /// One that is idle, or a place in the line for whoever is woken by `waker`, in one turn.
    fn ask_for(
        &self,
        to: u8,
        within: Option<Duration>,
        waker: Option<Waker>,
    ) -> Result<Got<Thing>, Refusal> {
        let terms = self.terms(within);
        self.with(|books| match books.take_idle(&to, 0) {
            Ok((_, thing)) => Ok(Got::Idle(thing)),
            Err(at) => {
                let at = at.unwrap_or_else(|| books.enter(to));
                if books.can_but_wait(at, &terms) {
                    return Ok(Got::Wait(books.join(at, terms, waker), None));
                }
                let (ticket, dial) = books.line_up(at, terms, waker)?;
                Ok(Got::Wait(ticket, dial))
            }
        })
    }

    fn begin(self: &Arc<Self>, to: u8) -> Result<Thing, Ticket> {
        self.try_begin(to, None, None).unwrap()
    }

    fn wait(self: &Arc<Self>, ticket: Ticket) -> impl Future<Output = Option<Thing>> {
        poll_fn(move |cx| {
            loop {
                match self.with(|books| books.ask(ticket.key, cx.waker())) {
                    Asked::Waits(..) => return Poll::Pending,
                    Asked::Place(ticket, dial) => self.dial(ticket.target, dial, Some(ticket)),
                    Asked::Member { member, .. } => return Poll::Ready(Some(member)),
                    Asked::Refused(..) => return Poll::Ready(None),
                }
            }
        })
    }

    fn get(self: &Arc<Self>, to: u8) -> Thing {
        self.get_within(to, None).unwrap()
    }

    /// None if it is refused.
    fn get_within(self: &Arc<Self>, to: u8, within: Option<Duration>) -> Option<Thing> {
        let mut waiting = None;
        block_on(poll_fn(|cx| {
            // Once it stands in line it has left its waker there, and asks when it is woken.
            let Some(waiting) = &mut waiting else {
                let waker = (!SHY.get()).then(|| cx.waker().clone());
                return match self.try_begin(to, within, waker) {
                    Ok(Ok(thing)) => Poll::Ready(Some(thing)),
                    Ok(Err(ticket)) => {
                        waiting = Some(Box::pin(self.wait(ticket)));
                        Poll::Pending
                    }
                    Err(_) => Poll::Ready(None),
                };
            };
            waiting.as_mut().poll(cx)
        }))
    }

    fn give_back(&self, thing: Thing) {
        self.take_in(thing, false);
    }

    fn take_in(&self, thing: Thing, is_fresh: bool) {
        let at = thing.target;
        self.with(|books| match books.keep(at, thing, is_fresh) {
            Kept::Idle => {}
            Kept::Handed(waker) => books.wake(waker),
            Kept::Not(thing) => {
                books.give_back(at, thing, || self.now(), is_fresh);
            }
        });
    }

    fn lose(&self, thing: Thing) {
        self.free(Some(thing.target));
    }

    /// Nobody waits, nothing is in use, and there is nothing that no place was taken for.
    fn is_at_rest(&self) {
        self.with(|books| {
            let counts = books.counts;
            assert_eq!((counts.waiting, counts.in_use(), counts.dials), (0, 0, 0));
            assert!(counts.open <= books.limits.open);
            let targets = books.targets.iter();
            let idle: Vec<_> = targets
                .flat_map(|(_, target)| &target.idle)
                .collect();
            let left = (
                books.queued,
                books.waiters.iter().count(),
                books.lines.len(),
            );
            assert_eq!((idle.len(), left), (counts.open, (0, 0, 0)));
            assert!(
                idle.iter()
                    .all(|idle| idle.member.round == books.round)
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

/// Whether it fails when nobody leaves word whom to wake.
fn is_found_when_shy(scene: fn()) -> bool {
    SHY.set(true);
    let found = is_found(scene);
    SHY.set(false);
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
    assert!(is_found_when_shy(|| three_share(1, 1)));
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
                let (_, left) = given_up.with(|books| books.leave(ticket.key, given_up.now()));
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
    *pool.refusals.lock().unwrap() = 1;
    let ticket = pool.begin(1).unwrap_err();

    let waits = Arc::clone(&pool);
    meanwhile(move || {
        let thing = waits.get(1);
        waits.give_back(thing);
    });
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
        assert_eq!(waits.get_within(1, None), None);
    });
    let closing = Arc::clone(&pool);
    meanwhile(move || closing.with(|books| books.close(closing.now())));
    join();
    pool.give_back(held);

    pool.with(|books| assert_eq!((books.counts.open, books.targets.len()), (0, 0)));
}

#[test]
fn a_pool_that_is_closed_keeps_nobody_waiting() {
    assert!(is_found_when_mute(closes));

    explore(closes);
}
