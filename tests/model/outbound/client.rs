//! The calls of a client.

use std::{
    error::Error,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use shuttle::future::block_on;
use tower_net::{Deadline, frame::RpcFailure};

use self::table::{Answer, End, Entry, Fate, Lost, Table, Todo, Told, lock};
use crate::{
    base::{sync::Mutex, time::now},
    explore, is_found, join, meanwhile,
    outbound::budget::Spent,
};

#[path = "../../../layers/outbound/client/table/mod.rs"]
#[allow(dead_code, reason = "the model uses what it models")]
mod table;

pub(crate) type SharedError = Arc<dyn Error + Send + Sync>;

pub(crate) mod retry {
    use std::time::Duration;

    pub(crate) fn pause(_: u32, first: Duration, _: Duration) -> Duration {
        first
    }
}

/// As much of the settings as is asked for.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) fail_fast: bool,
    pub(crate) keep_connected: bool,
    pub(crate) first_pause: Duration,
    pub(crate) longest_pause: Duration,
}

/// How a connection ended, in one word.
#[derive(Debug)]
pub(crate) enum Disconnected {
    Ended,
}

impl std::fmt::Display for Disconnected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ended")
    }
}

impl Error for Disconnected {}

/// That a call failed, and no more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CallError;

impl CallError {
    pub(crate) fn spent(_: Spent) -> Self {
        Self
    }

    pub(crate) fn connect(_: SharedError) -> Self {
        Self
    }

    pub(crate) fn failed(_: RpcFailure) -> Self {
        Self
    }

    pub(crate) fn closed(_: SharedError, _: bool) -> Self {
        Self
    }

    pub(crate) fn after(self, _: [Duration; 3]) -> Self {
        self
    }

    pub(crate) fn retried(self, _: bool) -> Self {
        self
    }
}

/// A client, with a fault put in if it is told to forget something.
struct Model {
    table: Mutex<Table<u32, u32>>,
    forgets: Option<Forgets>,
    /// After so many answers a connection is lost, the first time.
    lost_after: shuttle::sync::atomic::AtomicUsize,
}

/// What is not done once the lock is free, where it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Forgets {
    Entering,
    Leaving,
    Ending,
    Retiring,
    Abandoning,
}

impl Model {
    fn new(forgets: Option<Forgets>, lost_after: usize) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(Table::new()),
            forgets,
            lost_after: lost_after.into(),
        })
    }

    /// Wakes who is to be woken and starts what is to be started; or not.
    fn settle(self: &Arc<Self>, at: Forgets, todo: Todo) {
        if self.forgets == Some(at) {
            return drop(todo);
        }
        if let Some(link) = todo.done() {
            let model = Arc::clone(self);
            meanwhile(move || model.drive(link));
        }
    }

    fn enter(self: &Arc<Self>, call: u32) -> usize {
        let entry = Entry {
            call,
            deadline: Deadline::NEVER,
            limit: None,
            now: now(),
            waited: Duration::ZERO,
        };
        let entered = lock(&self.table).enter(entry, &Settings::default());
        let (key, todo) = entered.unwrap();
        self.settle(Forgets::Entering, todo);
        key
    }

    fn wait(self: &Arc<Self>, key: usize) -> Result<u32, CallError> {
        let (outcome, todo) = block_on(poll_fn(|cx| lock(&self.table).poll(key, cx)));
        self.settle(Forgets::Ending, todo);
        outcome
    }

    fn leave(self: &Arc<Self>, key: usize) {
        let (_, todo) = lock(&self.table).leave(key, now());
        self.settle(Forgets::Leaving, todo);
    }

    fn abandon(self: &Arc<Self>) {
        let todo = lock(&self.table).abandon();
        self.settle(Forgets::Abandoning, todo);
    }

    /// A connection: each call is answered with itself and a hundred.
    fn drive(self: &Arc<Self>, link: usize) {
        // It may be that nobody needs it any more before it is there.
        let alone = |cx: &mut Context<'_>| {
            lock(&self.table)
                .poll_alone(link, cx)
                .is_ready()
        };
        if block_on(poll_fn(|cx| Poll::Ready(alone(cx)))) {
            return;
        }
        let todo = lock(&self.table).connected(link, now());
        self.settle(Forgets::Retiring, todo);
        let mut flight: Vec<(usize, u64, u32)> = Vec::new();
        let (mut last, mut answers) = (0, 0);
        let end = loop {
            let told = self.hear(link, last + 1, !flight.is_empty());
            flight.retain(|(_, id, _)| !told.given_up.contains(id));
            if let Some(taken) = told.taken {
                last += 1;
                flight.push((taken.key, last, taken.call));
                continue;
            }
            if told.alone {
                assert!(flight.is_empty());
                break End::Idle;
            }
            let Some((key, id, call)) = flight.pop() else {
                continue;
            };
            if answers
                == self
                    .lost_after
                    .load(shuttle::sync::atomic::Ordering::SeqCst)
            {
                // Once, and what is in flight then moves.
                self.lost_after
                    .store(usize::MAX, shuttle::sync::atomic::Ordering::SeqCst);
                flight.push((key, id, call));
                break End::Leaving { fruitless: false };
            }
            answers += 1;
            let answer = Answer {
                key,
                id,
                answer: Ok(call + 100),
            };
            let (_, todo) = lock(&self.table).answer(link, [answer].into_iter());
            self.settle(Forgets::Ending, todo);
        };
        let todo = lock(&self.table).retire(link, &end, now(), &Settings::default());
        self.settle(Forgets::Retiring, todo);
        let lost: Vec<_> = flight
            .iter()
            .map(|&(key, id, _)| Lost {
                key,
                id,
                unsent: true,
                fate: Fate::Moves { in_vain: false },
            })
            .collect();
        let error = || -> SharedError { Arc::new(Disconnected::Ended) };
        let todo = lock(&self.table).lose(link, &lost, error, || true);
        self.settle(Forgets::Retiring, todo);
        let todo = {
            let mut table = lock(&self.table);
            table.remove(link);
            table.look_after_queue()
        };
        self.settle(Forgets::Retiring, todo);
    }

    /// What there is to do for a link, which waits for it unless it has something in flight.
    fn hear(self: &Arc<Self>, link: usize, id: u64, is_busy: bool) -> Told<u32> {
        block_on(poll_fn(|cx| {
            let (told, todo) = lock(&self.table).hear(link, Some(id), &mut None, cx);
            self.settle(Forgets::Ending, todo);
            let is_news = told.taken.is_some() || !told.given_up.is_empty() || told.alone;
            match is_news || is_busy {
                true => Poll::Ready(told),
                false => Poll::Pending,
            }
        }))
    }

    /// Everything is over, and the last client gone.
    fn check(&self) {
        let table = lock(&self.table);
        assert_eq!((table.calls(), table.connections()), (0, 0));
    }
}

/// So many call at once and hear the right thing; then the last client goes.
fn callers(count: u32, model: &Arc<Model>) {
    for call in 0..count {
        let model = Arc::clone(model);
        meanwhile(move || {
            let key = model.enter(call);
            assert_eq!(model.wait(key), Ok(call + 100));
        });
    }
}

fn three_call(forgets: Option<Forgets>) {
    let model = Model::new(forgets, usize::MAX);
    callers(3, &model);
    model.abandon();
    join();
    model.check();
}

#[test]
fn each_of_three_hears_what_was_said_to_him_and_the_connection_ends_after_the_last() {
    assert!(is_found(|| three_call(Some(Forgets::Entering))));
    assert!(is_found(|| three_call(Some(Forgets::Ending))));
    assert!(is_found(|| three_call(Some(Forgets::Abandoning))));

    explore(|| three_call(None));
}

fn one_gives_up(forgets: Option<Forgets>) {
    let model = Model::new(forgets, usize::MAX);
    callers(1, &model);
    let gives_up = Arc::clone(&model);
    meanwhile(move || {
        let key = gives_up.enter(7);
        let polled = block_on(poll_fn(|cx| {
            Poll::Ready(lock(&gives_up.table).poll(key, cx))
        }));
        match polled {
            Poll::Ready((outcome, todo)) => {
                assert_eq!(outcome, Ok(107));
                gives_up.settle(Forgets::Ending, todo);
            }
            Poll::Pending => gives_up.leave(key),
        }
    });
    model.abandon();
    join();
    model.check();
}

#[test]
fn one_who_gives_up_is_in_nobodys_way_wherever_his_call_is() {
    assert!(is_found(|| one_gives_up(Some(Forgets::Leaving))));

    explore(|| one_gives_up(None));
}

/// As a call that waits for its place, and so comes into the table when there may be nothing else in it.
fn one_comes_late(forgets: Option<Forgets>) {
    let model = Model::new(forgets, usize::MAX);
    let late = Arc::clone(&model);
    meanwhile(move || {
        let before = late.enter(1);
        late.leave(before);
        let key = late.enter(2);
        assert_eq!(late.wait(key), Ok(102));
    });
    model.abandon();
    join();
    model.check();
}

#[test]
fn one_who_comes_when_the_connection_is_given_up_has_another() {
    assert!(is_found(|| one_comes_late(Some(Forgets::Entering))));

    explore(|| one_comes_late(None));
}

fn the_connection_ends(forgets: Option<Forgets>) {
    let model = Model::new(forgets, 1);
    callers(3, &model);
    model.abandon();
    join();
    model.check();
}

#[test]
fn a_connection_that_ends_in_between_loses_no_call() {
    assert!(is_found(|| the_connection_ends(Some(Forgets::Retiring))));

    explore(|| the_connection_ends(None));
}
