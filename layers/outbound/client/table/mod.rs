//! The calls of a client, those that wait and those that are in flight, behind one lock.
//!
//! # Invariants
//!
//! - A call is in the queue, or held by one link under an id, or over; it is taken out of the table by whoever waits for
//!   it, and by nobody else.
//! - At most one link takes calls: the one that the [stage](Stage) names. Others may still finish theirs.
//! - If the queue is not empty, the stage names a link. (Whoever finds that it does not starts one.)
//! - Nothing is called or woken while the lock is held.

mod links;

use std::{
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;
use tokio::time::Instant;

use crate::{
    base::{
        sync::{Mutex, MutexGuard, PoisonError},
        time::now,
    },
    conn::Deadline,
    middleware::frame::RpcFailure,
    outbound::{
        budget::{Phase, Spent},
        client::{CallError, Settings, SharedError},
    },
};

/// The state of a client.
#[derive(Debug)]
pub(super) struct Table<Q, R> {
    slots: Slab<Slot<Q, R>>,
    /// The ends of the queue.
    first: usize,
    last: usize,
    stage: Stage,
    links: Slab<Mailbox>,
    /// Those who wait until a peer has answered.
    unready: Slab<Waker>,
    /// The last that was heard of the peer was good.
    proven: bool,
    /// Attempts to connect that came to nothing, in a row.
    failures: u32,
    /// When the next attempt is due, and why it is not now.
    pause: Option<(Instant, SharedError)>,
    /// No client is left to make calls.
    pub(super) abandoned: bool,
}

/// Which link takes calls.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Down,
    Connecting(usize),
    Up { link: usize, since: Instant },
}

/// What is told to a link.
#[derive(Debug, Default)]
struct Mailbox {
    waker: Option<Waker>,
    /// Calls that nobody waits for any more; no more than it holds.
    given_up: Vec<u64>,
}

/// One call.
#[derive(Debug)]
struct Slot<Q, R> {
    state: State<R>,
    /// Kept until it is over, since it may have to be sent again.
    call: Q,
    deadline: Deadline,
    /// The client's own, if that is the earlier one.
    limit: Option<Duration>,
    waker: Option<Waker>,
    /// In which phase it was how long, and since when it is in the present one.
    times: [Duration; 3],
    since: Instant,
    retried: bool,
    /// How often it went to another connection from one whose peer left without having begun with anything.
    moves: u32,
    /// Its neighbours in the queue.
    before: usize,
    behind: usize,
}

#[derive(Debug)]
enum State<R> {
    Queued,
    Held { link: usize, id: u64 },
    Over(Result<R, CallError>),
}

/// A call as it comes into the table.
#[derive(Debug)]
pub(super) struct Entry<Q> {
    pub(super) call: Q,
    pub(super) deadline: Deadline,
    /// The client's own, if that is the earlier one.
    pub(super) limit: Option<Duration>,
    pub(super) now: Instant,
    /// How long it has waited for its place.
    pub(super) waited: Duration,
}

/// What is to be done once the lock is free.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Todo {
    wake: Vec<Waker>,
    one: Option<Waker>,
    start: Option<usize>,
}

impl Todo {
    fn wake(&mut self, waker: Option<Waker>) {
        if self.one.is_none() {
            self.one = waker;
        } else {
            self.wake.extend(waker);
        }
    }

    /// Wakes who is to be woken, and says which link is to be started.
    pub(super) fn done(self) -> Option<usize> {
        if let Some(waker) = self.one {
            waker.wake();
        }
        for waker in self.wake {
            waker.wake();
        }
        self.start
    }

    fn and(mut self, other: Self) -> Self {
        self.wake(other.one);
        self.wake.extend(other.wake);
        self.start = self.start.or(other.start);
        self
    }
}

/// Why a link takes no more calls.
#[derive(Debug)]
pub(super) enum End {
    /// Nothing is wrong with the peer.
    Idle,
    /// The peer finishes what it has, and no more: whether it will be there again is not known. `fruitless` if not one reply
    /// had come, and none is to come that anybody knows of.
    Leaving { fruitless: bool },
    /// The connection was lost; `fruitless` if not one reply had come.
    Lost { error: SharedError, fruitless: bool },
}

/// A call that a link takes.
pub(super) struct Taken<Q> {
    pub(super) key: usize,
    pub(super) call: Q,
    pub(super) left: Option<Duration>,
}

/// What a link finds.
pub(super) struct Told<Q> {
    pub(super) given_up: Vec<u64>,
    pub(super) taken: Option<Taken<Q>>,
    /// There are calls in the queue that it may take.
    pub(super) has_more: bool,
    /// Nobody waits for anything, and nobody will call any more.
    pub(super) alone: bool,
}

/// What a link has heard of a call.
pub(super) struct Answer<R> {
    pub(super) key: usize,
    pub(super) id: u64,
    pub(super) answer: Result<R, RpcFailure>,
}

/// A call that a link cannot bring to an end.
pub(super) struct Lost {
    pub(super) key: usize,
    pub(super) id: u64,
    /// Not a byte of it can have reached the peer, or the peer says that it was never begun.
    pub(super) unsent: bool,
    pub(super) fate: Fate,
}

/// What may become of a call that a link cannot bring to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It fails.
    Over,
    /// It has failed, and may be made again on another connection, once and if the budget has it.
    Again,
    /// It was not taken: another connection may. If it was all `in_vain`, since the peer has begun with nothing that it was
    /// sent, that is so a few times and no more.
    Moves { in_vain: bool },
}

impl<Q, R> Table<Q, R> {
    pub(super) fn new() -> Self {
        Self {
            slots: Slab::new(),
            first: NONE,
            last: NONE,
            stage: Stage::Down,
            links: Slab::new(),
            unready: Slab::new(),
            proven: false,
            failures: 0,
            pause: None,
            abandoned: false,
        }
    }

    /// Takes a call in; fails if it is known that there is no connection for it.
    pub(super) fn enter(
        &mut self,
        entry: Entry<Q>,
        settings: &Settings,
    ) -> Result<(usize, Todo), CallError> {
        if settings.fail_fast {
            let is_up = matches!(self.stage, Stage::Up { .. });
            if let (false, Some((due, error))) = (is_up, &self.pause) {
                if *due > entry.now {
                    return Err(CallError::connect(SharedError::clone(error)));
                }
            }
        }
        let key = self.slots.insert(Slot {
            state: State::Queued,
            call: entry.call,
            deadline: entry.deadline,
            limit: entry.limit,
            waker: None,
            times: [entry.waited, Duration::ZERO, Duration::ZERO],
            since: entry.now,
            retried: false,
            moves: 0,
            before: NONE,
            behind: NONE,
        });
        self.link_in(self.last, key, NONE);
        Ok((key, self.look_after_queue()))
    }

    /// What became of a call; it is out of the table then.
    pub(super) fn poll(
        &mut self,
        key: usize,
        cx: &mut Context<'_>,
    ) -> Poll<(Result<R, CallError>, Todo)> {
        let slot = &mut self.slots[key];
        if let State::Over(_) = slot.state {
            let State::Over(outcome) = self.slots.remove(key).state else {
                unreachable!("it was over a moment ago");
            };
            return Poll::Ready((outcome, self.tell_if_alone()));
        }
        match &mut slot.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => slot.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Nobody waits for the call any more. Says where its time went.
    pub(super) fn leave(&mut self, key: usize, now: Instant) -> (Spent, Todo) {
        let phase = self.turn(key, now);
        let mut todo = Todo::default();
        if let State::Queued = self.slots[key].state {
            self.link_out(key);
        }
        let slot = self.slots.remove(key);
        if let State::Held { link, id } = slot.state {
            if let Some(mailbox) = self.links.get_mut(link) {
                mailbox.given_up.push(id);
                todo.wake(mailbox.waker.take());
            }
        }
        let alone = self.tell_if_alone();
        let spent = Spent::new(phase, slot.times, slot.limit);
        (spent, todo.and(alone))
    }

    /// No client is left.
    pub(super) fn abandon(&mut self) -> Todo {
        self.abandoned = true;
        self.tell_if_alone()
    }

    fn is_alone(&self) -> bool {
        self.abandoned && self.slots.is_empty()
    }

    fn tell_if_alone(&mut self) -> Todo {
        let mut todo = Todo::default();
        if self.is_alone() {
            for (_, mailbox) in &mut self.links {
                todo.wake(mailbox.waker.take());
            }
        }
        todo
    }

    /// Calls in the table.
    pub(super) fn calls(&self) -> usize {
        self.slots.len()
    }

    /// Connections, those that are being made included.
    pub(super) fn connections(&self) -> usize {
        self.links.len()
    }

    /// Whether the peer can be expected to answer; if not, the seat's waker is woken once it is.
    pub(super) fn poll_proven(&mut self, seat: &mut Option<usize>, cx: &mut Context<'_>) -> bool {
        if self.proven {
            self.give_up_seat(seat);
            return true;
        }
        match *seat {
            Some(at) => self.unready[at].clone_from(cx.waker()),
            None => *seat = Some(self.unready.insert(cx.waker().clone())),
        }
        false
    }

    pub(super) fn give_up_seat(&mut self, seat: &mut Option<usize>) {
        if let Some(seat) = seat.take() {
            self.unready.remove(seat);
        }
    }

    /// Whether the link holds a call under an id: slots are used again, ids are not.
    fn holds(&self, link: usize, key: usize, id: u64) -> bool {
        let slot = self.slots.get(key);
        matches!(
            slot.map(|slot| &slot.state),
            Some(State::Held { link: by, id: under }) if (*by, *under) == (link, id)
        )
    }

    fn end(&mut self, key: usize, outcome: Result<R, CallError>) -> Option<Waker> {
        let slot = &mut self.slots[key];
        slot.state = State::Over(outcome);
        slot.waker.take()
    }

    fn requeue(&mut self, key: usize, retried: bool) {
        let now = now();
        self.turn(key, now);
        let slot = &mut self.slots[key];
        slot.state = State::Queued;
        slot.retried = retried;
        self.link_in(NONE, key, self.first);
    }

    /// Adds to its account what a call has spent since it was looked at last. Returns the phase that it was in.
    fn turn(&mut self, key: usize, now: Instant) -> Phase {
        let slot = &mut self.slots[key];
        let spent = now.saturating_duration_since(slot.since);
        let up_since = match self.stage {
            Stage::Up { since, .. } => Some(since),
            Stage::Down | Stage::Connecting(_) => None,
        };
        let phase = match (&slot.state, up_since) {
            (State::Queued, Some(up)) => {
                let connecting = up
                    .saturating_duration_since(slot.since)
                    .min(spent);
                slot.times[Phase::Connecting as usize] += connecting;
                slot.times[Phase::Waiting as usize] += spent - connecting;
                Phase::Waiting
            }
            (State::Queued, None) => {
                slot.times[Phase::Connecting as usize] += spent;
                Phase::Connecting
            }
            _ => {
                slot.times[Phase::Calling as usize] += spent;
                Phase::Calling
            }
        };
        slot.since = now;
        phase
    }

    fn link_in(&mut self, before: usize, key: usize, behind: usize) {
        let slot = &mut self.slots[key];
        (slot.before, slot.behind) = (before, behind);
        match self.slots.get_mut(before) {
            Some(before) => before.behind = key,
            None => self.first = key,
        }
        match self.slots.get_mut(behind) {
            Some(behind) => behind.before = key,
            None => self.last = key,
        }
    }

    fn link_out(&mut self, key: usize) {
        let slot = &self.slots[key];
        let (before, behind) = (slot.before, slot.behind);
        match self.slots.get_mut(before) {
            Some(before) => before.behind = behind,
            None => self.first = behind,
        }
        match self.slots.get_mut(behind) {
            Some(behind) => behind.before = before,
            None => self.last = before,
        }
    }
}

pub(super) fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// How often a call is taken on from a peer that leaves without having begun with anything. In a rolling restart once or
/// twice is enough; a call that has every peer leave is none to be carried from one to the next.
const MOST_MOVES: u32 = 3;

/// No slot has this number.
const NONE: usize = usize::MAX;
