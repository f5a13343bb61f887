//! Waiting for a connection: what the line has given, and for how long.

use std::{
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    task::AbortHandle,
    time::{Instant, Sleep},
};
use tower_service::Service;

use super::{
    books::{Got, Terms, Ticket},
    dial::{self, Place},
    error::PoolError,
    fates::{Gone, Outcome, Refusal},
    get::Common,
    queue::Asked,
    shared::{Shared, regardless},
    stream::{Held, Home, Pooled, PooledIo, Served},
    watch::{ask, look},
};
use crate::{
    base::{
        error::BoxError,
        io::Io,
        time::{later, now},
    },
    conn::{Conn, Deadline},
};

/// A get that did not find what it wants at once.
pub(super) struct Get<C, T, K, I: Io> {
    common: Arc<Common<C, T, K, I>>,
    target: T,
    /// Held as what it is, so that the future asks nothing of the connector: what is asked of its error would keep
    /// compilers from seeing that a task that gets may move between threads.
    begin: fn(Place<I>, C, T) -> AbortHandle,
    stage: Stage,
}

/// How far it has come. Small, since the future of a get is moved before it is polled: what there is to know of one
/// that waits is where those who wait are.
enum Stage {
    /// It was not polled, and there is nothing of it anywhere. The deadline is the one that the call found.
    New { deadline: Deadline, hint: usize },
    InLine {
        /// Where it is among those who wait.
        key: usize,
        /// It keeps its own time, since the runtime of the pool is another one, and may not run at all.
        clock: Option<Pin<Box<Sleep>>>,
    },
    /// It was told what there was to tell.
    Over,
}

impl Stage {
    fn in_line(ticket: Ticket) -> Self {
        Self::InLine {
            key: ticket.key,
            clock: None,
        }
    }
}

impl<C, T, K, I> Get<C, T, K, I>
where
    C: Service<T, Response = Conn<I>> + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
    T: Send + 'static,
    I: Io,
{
    pub(super) fn new(common: Arc<Common<C, T, K, I>>, target: T, hint: usize) -> Self {
        let deadline = Deadline::current();
        Self {
            common,
            target,
            begin: dial::begin,
            stage: Stage::New { deadline, hint },
        }
    }
}

impl<C, T, K, I> Get<C, T, K, I>
where
    C: Clone,
    T: Clone,
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    fn dial(&self, ticket: Ticket, number: u64) {
        self.common
            .shared
            .begin(ticket.target, number, Some(ticket), |place| {
                let connector = self.common.connector().clone();
                (self.begin)(place, connector, self.target.clone())
            });
    }

    /// Begins, or looks what it has been given.
    #[inline]
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Conn<PooledIo<I>>, PoolError>> {
        if let Stage::New { deadline, hint } = self.stage {
            self.poll_first(deadline, hint, cx)
        } else {
            self.poll_line(cx)
        }
    }

    /// Looks what it has been given.
    #[inline(never)]
    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Result<Conn<PooledIo<I>>, PoolError>> {
        loop {
            let Stage::InLine { key, .. } = self.stage else {
                panic!("polled again after it was ready");
            };
            let shared = &self.common.shared;
            match shared.ask(key, cx.waker()) {
                Asked::Waits(by, outdated) => {
                    drop(outdated);
                    ready!(self.poll_time(by, cx));
                }
                Asked::Place(ticket, dial) => self.dial(ticket, dial),
                Asked::Refused(refused, terms) => {
                    self.stage = Stage::Over;
                    let (refusal, at) = *refused;
                    return Poll::Ready(Err(refuse(shared, refusal, terms, at)));
                }
                Asked::Member {
                    member: mut pooled,
                    is_fresh,
                    number,
                    terms,
                    at,
                } => {
                    // Its ticket is void, whatever panics from here on.
                    self.stage = Stage::Over;
                    let at = at.unwrap_or_else(now);
                    let waited = at.saturating_duration_since(terms.since);
                    if is_fresh {
                        // It is not read from: its peer may be the one to speak first.
                        let conn = lend(shared, pooled, Served::Dialled, waited);
                        return Poll::Ready(Ok(conn));
                    }
                    // The read when it was given back may not have come to the kernel: after one that did not fill its
                    // buffer the runtime takes it that there is no more.
                    let Held { io, record } = &mut *pooled.held;
                    match look(io, &record.watch).and_then(|()| ask(io)) {
                        Ok(()) => {
                            let conn = lend(shared, pooled, Served::Late, waited);
                            return Poll::Ready(Ok(conn));
                        }
                        Err(gone) => {
                            if let Some(over) = self.again(number, terms, pooled, gone) {
                                return Poll::Ready(over);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Takes one that is idle, or stands in line with its waker, in one turn of the lock.
    #[inline(never)]
    fn poll_first(
        &mut self,
        deadline: Deadline,
        hint: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Conn<PooledIo<I>>, PoolError>> {
        let Common { shared, key, .. } = &*self.common;
        // Both are likely to be asked for, and are had before the lock is taken; the clock first, since reading it
        // waits for all that is under way.
        let terms = Terms::new(now(), shared.pooling.within, deadline);
        let waker = cx.waker().clone();
        let key = key(&self.target);
        let (mut books, at) = match shared.get_idle(key.known(), hint) {
            Ok((at, conn)) => {
                self.common.calm(at);
                self.common.calm(hint);
                self.stage = Stage::Over;
                regardless(|| drop(waker));
                key.let_go();
                return Poll::Ready(Ok(conn));
            }
            Err(none) => none,
        };
        // What was made is not dropped before the lock is.
        let at = at.unwrap_or_else(|| books.enter(key.known().clone()));
        if at != hint {
            // This one was for another target, and where the hint says may be nobody who waits by now.
            self.common.calm(hint);
        }
        if books.can_but_wait(at, &terms) {
            let ticket = books.join(at, terms, Some(waker));
            // Known here before the code of others runs: whatever that does, whoever drops this leaves the line.
            self.stage = Stage::in_line(ticket);
            shared.joined(books);
            self.common.crowd(at);
            key.let_go();
        } else {
            let stands = shared.line_up(books, at, terms, waker);
            key.let_go();
            match stands {
                Ok((ticket, dial)) => {
                    self.stage = Stage::in_line(ticket);
                    if let Some(dial) = dial {
                        self.dial(ticket, dial);
                    }
                }
                Err(refusal) => {
                    let error = refuse(shared, refusal, terms, terms.since);
                    self.stage = Stage::Over;
                    return Poll::Ready(Err(error));
                }
            }
        }
        if self.set_clock(terms.by) {
            ready!(self.poll_time(terms.by, cx));
            return self.poll_line(cx);
        }
        Poll::Pending
    }

    /// For one that begins to wait: whether it is to keep its own time.
    fn set_clock(&mut self, by: Option<Instant>) -> bool {
        let sleep = by.and_then(|by| self.common.shared.sleep_elsewhere(by));
        let is_own = sleep.is_some();
        if let Stage::InLine { clock, .. } = &mut self.stage {
            *clock = sleep;
        }
        is_own
    }

    /// Ready once its time is up and it has said so.
    fn poll_time(&mut self, by: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(by), Stage::InLine { key, clock }) = (by, &mut self.stage) else {
            return Poll::Pending;
        };
        match clock {
            Some(sleep) => ready!(sleep.as_mut().poll(cx)),
            None if by > now() => return Poll::Pending,
            None => {}
        }
        let (key, now) = (*key, now());
        let shared = &self.common.shared;
        shared.with(|books| books.give_up(key, now));
        Poll::Ready(())
    }

    /// It was given a connection that is dead: back in line first, so that the place goes to nobody who came later.
    fn again(
        &mut self,
        number: u64,
        terms: Terms,
        dead: Pooled<I>,
        gone: Gone,
    ) -> Option<Result<Conn<PooledIo<I>>, PoolError>> {
        let (mut dead, mut gone) = (dead, gone);
        loop {
            let (at, now) = (dead.target(), now());
            let shared = &self.common.shared;
            let got = shared.with(|books| books.get_again(at, number, terms, now));
            match got {
                Ok(Got::Idle(mut pooled)) => {
                    shared.let_go(dead, gone);
                    let Held { io, record } = &mut *pooled.held;
                    match look(io, &record.watch).and_then(|()| ask(io)) {
                        Ok(()) => {
                            let waited = now.saturating_duration_since(terms.since);
                            return Some(Ok(lend(shared, pooled, Served::Idle, waited)));
                        }
                        Err(why) => (dead, gone) = (pooled, why),
                    }
                }
                Ok(Got::Wait(ticket, dial)) => {
                    self.stage = Stage::in_line(ticket);
                    shared.let_go(dead, gone);
                    if let Some(dial) = dial {
                        self.dial(ticket, dial);
                    }
                    self.set_clock(terms.by);
                    return None;
                }
                Err(refusal) => {
                    shared.let_go(dead, gone);
                    return Some(Err(refuse(shared, refusal, terms, now)));
                }
            }
        }
    }
}

impl<C, T, K, I> Get<C, T, K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    pub(super) fn is_in_line(&self) -> bool {
        matches!(self.stage, Stage::InLine { .. })
    }

    pub(super) fn name(&self) -> &'static str {
        match self.stage {
            Stage::New { .. } => "New",
            Stage::InLine { .. } => "Waiting",
            Stage::Over => "Over",
        }
    }

    #[cold]
    pub(super) fn leave(&self) {
        let Stage::InLine { key, .. } = self.stage else {
            return;
        };
        let now = now();
        let shared = &self.common.shared;
        let (terms, left) = shared.with(|books| books.leave(key, now));
        let waited = now.saturating_duration_since(terms.since);
        if let Some((pooled, is_fresh)) = left {
            shared.take_in(pooled, is_fresh);
        }
        shared
            .metrics
            .got(Outcome::Left, waited);
    }
}

impl Terms {
    /// From then until the pool's limit or the caller's deadline.
    fn new(since: Instant, within: Duration, callers: Deadline) -> Self {
        let own = later(since, within);
        let callers = callers.instant();
        let is_callers = callers.is_some_and(|callers| own.is_none_or(|own| callers < own));
        Self {
            since,
            by: if is_callers { callers } else { own },
            is_callers,
        }
    }
}

/// Gives a connection to somebody who has waited.
#[inline]
fn lend<K, I>(
    pool: &Shared<K, I>,
    pooled: Pooled<I>,
    served: Served,
    waited: Duration,
) -> Conn<PooledIo<I>>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    let outcome = match served {
        Served::Idle => Outcome::Idle,
        Served::Late => Outcome::Late,
        Served::Dialled => Outcome::Dialled,
    };
    pool.metrics.got(outcome, waited);
    pooled.lend(served, waited)
}

pub(super) fn refuse<K, I>(
    pool: &Shared<K, I>,
    refusal: Refusal,
    terms: Terms,
    at: Instant,
) -> PoolError
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    let waited = at.saturating_duration_since(terms.since);
    let error = PoolError::new(refusal, waited, terms.is_callers);
    pool.metrics
        .got(error.outcome(), waited);
    error
}
