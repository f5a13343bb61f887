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
    shared::Shared,
    stream::{Held, Home, Pooled, PooledIo, Served},
    watch::{ask, look},
};
use crate::{
    base::{error::BoxError, io::Io, time::now},
    conn::Conn,
};

/// A get that did not find what it wants at once.
pub(super) struct Get<C, T, K, I: Io> {
    common: Arc<Common<C, T, K, I>>,
    target: T,
    /// Held as what it is, so that the future asks nothing of the connector: what is asked of its error would keep
    /// compilers from seeing that a task that gets may move between threads.
    begin: fn(Place<I>, C, T) -> AbortHandle,
    ticket: Ticket,
    clock: Clock,
    /// It was told what there was to tell.
    pub(super) is_over: bool,
}

/// Who keeps the time of a get.
enum Clock {
    /// It has not waited yet.
    New,
    /// The pool's own task, which runs where the get is polled.
    Pools,
    /// The get, since the runtime of the pool is another one, and may not run at all.
    Own(Pin<Box<Sleep>>),
}

impl<C, T, K, I> Get<C, T, K, I>
where
    C: Service<T, Response = Conn<I>> + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
    T: Send + 'static,
    I: Io,
{
    pub(super) fn new(common: Arc<Common<C, T, K, I>>, target: T, ticket: Ticket) -> Self {
        Self {
            common,
            target,
            begin: dial::begin,
            ticket,
            clock: Clock::New,
            is_over: false,
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
    pub(super) fn dial(&self, number: u64) {
        let Ticket { target: at, .. } = self.ticket;
        self.common
            .shared
            .begin(at, number, Some(self.ticket), |place| {
                let connector = self.common.connector().clone();
                (self.begin)(place, connector, self.target.clone())
            });
    }

    /// Looks what it has been given.
    #[inline(never)]
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Conn<PooledIo<I>>, PoolError>> {
        assert!(!self.is_over, "polled again after it was ready");
        loop {
            let shared = &self.common.shared;
            match shared.ask(self.ticket, cx.waker()) {
                Asked::Waits(by, outdated) => {
                    drop(outdated);
                    ready!(self.poll_time(by, cx));
                }
                Asked::Place(dial) => self.dial(dial),
                Asked::Refused(refusal, at, terms) => {
                    self.is_over = true;
                    return Poll::Ready(Err(refuse(shared, refusal, terms, at)));
                }
                Asked::Member {
                    member: mut pooled,
                    is_fresh,
                    terms,
                    at,
                } => {
                    // Its ticket is void, whatever panics from here on.
                    self.is_over = true;
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
                            if let Some(over) = self.again(pooled, gone, terms) {
                                return Poll::Ready(over);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Ready once its time is up and it has said so.
    fn poll_time(&mut self, by: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(by) = by else {
            return Poll::Pending;
        };
        let shared = &self.common.shared;
        match &mut self.clock {
            Clock::New => {
                let Some(mut sleep) = shared.sleep_elsewhere(by) else {
                    self.clock = Clock::Pools;
                    return Poll::Pending;
                };
                let asleep = sleep.as_mut().poll(cx);
                self.clock = Clock::Own(sleep);
                ready!(asleep);
            }
            Clock::Own(sleep) => ready!(sleep.as_mut().poll(cx)),
            Clock::Pools if by > now() => return Poll::Pending,
            Clock::Pools => {}
        }
        let now = now();
        shared.with(|books| books.give_up(self.ticket, now));
        Poll::Ready(())
    }

    /// It was given a connection that is dead: back in line first, so that the place goes to nobody who came later.
    fn again(
        &mut self,
        dead: Pooled<I>,
        gone: Gone,
        terms: Terms,
    ) -> Option<Result<Conn<PooledIo<I>>, PoolError>> {
        let (mut dead, mut gone) = (dead, gone);
        loop {
            let (ticket, now) = (self.ticket, now());
            let shared = &self.common.shared;
            let got = shared.with(|books| books.get_again(ticket, terms, now));
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
                    self.ticket = ticket;
                    self.is_over = false;
                    self.common.shared.let_go(dead, gone);
                    if let Some(dial) = dial {
                        self.dial(dial);
                    }
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
    #[cold]
    pub(super) fn leave(&self) {
        let now = now();
        let shared = &self.common.shared;
        let (terms, left) = shared.with(|books| books.leave(self.ticket, now));
        let waited = now.saturating_duration_since(terms.since);
        shared
            .metrics
            .got(Outcome::Left, waited);
        if let Some((pooled, is_fresh)) = left {
            shared.take_in(pooled, is_fresh);
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
