use std::{
    fmt,
    future::Future,
    hash::Hash,
    mem::replace,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};
use tower_service::Service;

use super::{
    books::{Given, Got, Terms, Ticket},
    dial::{self, Place},
    error::PoolError,
    fates::{Gone, Outcome, Refusal},
    handle::PoolHandle,
    shared::Shared,
    stream::{Home, Pooled, PooledIo, Served},
    watch::look,
};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
        time::now,
    },
    conn::{Conn, Deadline},
};

/// Which connections are alike.
pub(super) type KeyOf<T, K> = dyn Fn(&T) -> K + Send + Sync;

/// The service of [`PoolLayer`](crate::pool::PoolLayer): a connector that gives out connections again and again.
///
/// Clones are the same pool.
pub struct Pool<C, T, K, I: Io> {
    connector: C,
    key: Arc<KeyOf<T, K>>,
    shared: Arc<Shared<K, I>>,
    /// Where the last target was in the books.
    hint: usize,
}

impl<C, T, K, I> Pool<C, T, K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    pub(super) fn new(connector: C, key: Arc<KeyOf<T, K>>, shared: Arc<Shared<K, I>>) -> Self {
        Self {
            connector,
            key,
            shared,
            hint: usize::MAX,
        }
    }

    /// A handle to look into the pool, and to close it.
    #[must_use]
    pub fn handle(&self) -> PoolHandle {
        let shared = Arc::clone(&self.shared);
        PoolHandle::new(shared)
    }
}

impl<C, T, K, I> Pool<C, T, K, I>
where
    C: Service<T, Response = Conn<I>> + Clone + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
    T: Clone + Send + 'static,
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    /// Keeps so many connections to `target` idle, so that a burst need not wait for dials: the pool opens what is
    /// missing by itself, as long as there are places that nobody else needs. They are not closed for being idle. Zero
    /// ends it; a pool that is closed keeps nothing.
    ///
    /// After a dial that failed the pool pauses, as [`ConnectBackoff`](crate::pool::ConnectBackoff) says, and so it does
    /// after a connection that its peer ended within a second of its dial, before anybody had it: then it opens one at
    /// a time, until one has stayed. A peer that speaks first cannot be kept warm: what it says is not asked for.
    ///
    /// # Errors
    ///
    /// More than [`max_idle_per_target`](crate::pool::Pooling::max_idle_per_target).
    pub fn keep_warm(&self, target: T, idle: usize) -> Result<(), ConfigError> {
        if idle
            > self
                .shared
                .pooling
                .limits()
                .idle_per_target
        {
            return Err(ConfigError::new(
                "keep_warm",
                "must not be more than max_idle_per_target",
            ));
        }
        let key = (self.key)(&target);
        // Asked for under a lock of its own: not every connector is shared between threads.
        let connector = Mutex::new((self.connector.clone(), target));
        let recipe = move |place: Place<I>| {
            let held = connector
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let (connector, target) = held.clone();
            drop(held);
            dial::begin(place, connector, target)
        };
        self.shared
            .keep_warm(key, idle, Arc::new(recipe));
        Ok(())
    }
}

impl<C: Clone, T, K, I: Io> Clone for Pool<C, T, K, I> {
    fn clone(&self) -> Self {
        Self {
            connector: self.connector.clone(),
            key: Arc::clone(&self.key),
            shared: Arc::clone(&self.shared),
            hint: self.hint,
        }
    }
}

impl<C: fmt::Debug, T, K, I: Io> fmt::Debug for Pool<C, T, K, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("connector", &self.connector)
            .finish_non_exhaustive()
    }
}

impl<C, T, K, I> Service<T> for Pool<C, T, K, I>
where
    C: Service<T, Response = Conn<I>> + Clone + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
    T: Clone + Send + 'static,
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    type Response = Conn<PooledIo<I>>;
    type Error = PoolError;
    type Future = GetFuture<C, T, K, I>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), PoolError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: T) -> Self::Future {
        let within = self.shared.pooling.within;
        loop {
            let key = (self.key)(&target);
            let hint = self.hint;
            let got = self
                .shared
                .with(|books| books.get(key, hint, || terms(within)));
            let state = match got {
                Ok(Got::Idle(at, mut pooled)) => {
                    self.hint = at;
                    if let Err(gone) = look(&mut pooled.conn) {
                        self.shared.let_go(pooled, gone);
                        continue;
                    }
                    State::Served(lend(&self.shared, pooled, Served::Idle, Duration::ZERO))
                }
                Ok(Got::Wait(ticket, dial)) => {
                    self.hint = ticket.target;
                    let get = Get {
                        pool: Arc::clone(&self.shared),
                        connector: self.connector.clone(),
                        target,
                        begin: dial::begin,
                        ticket,
                    };
                    if let Some(dial) = dial {
                        get.dial(dial);
                    }
                    State::Waiting(get)
                }
                Err((refusal, terms)) => {
                    State::Failed(refuse(&self.shared, refusal, terms, terms.since))
                }
            };
            return GetFuture { state };
        }
    }
}

/// From now, until the pool's limit or the caller's deadline.
fn terms(within: Duration) -> Terms {
    let since = now();
    let own = Deadline::after(since, within);
    let callers = Deadline::current();
    Terms {
        since,
        by: own.min(callers).instant(),
        is_callers: callers < own,
    }
}

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

fn refuse<K, I>(pool: &Shared<K, I>, refusal: Refusal, terms: Terms, at: Instant) -> PoolError
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

/// The future of [`Pool`].
///
/// Dropped, it leaves the queue without a trace. A dial that it has begun goes on, for whoever comes next.
#[must_use = "futures do nothing unless polled"]
pub struct GetFuture<C, T, K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    state: State<C, T, K, I>,
}

enum State<C, T, K, I: Io> {
    Served(Conn<PooledIo<I>>),
    Failed(PoolError),
    Waiting(Get<C, T, K, I>),
    Over,
}

/// A get that did not find what it wants at once.
struct Get<C, T, K, I: Io> {
    pool: Arc<Shared<K, I>>,
    connector: C,
    target: T,
    /// Held as what it is, so that the future asks nothing of the connector: what is asked of its error would keep
    /// compilers from seeing that a task that gets may move between threads.
    begin: fn(Place<I>, C, T) -> AbortHandle,
    ticket: Ticket,
}

impl<C, T, K, I> Get<C, T, K, I>
where
    C: Clone,
    T: Clone,
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    fn dial(&self, number: u64) {
        let (connector, target) = (self.connector.clone(), self.target.clone());
        let Ticket { target: at, .. } = self.ticket;
        self.pool
            .begin(at, number, Some(self.ticket), |place| {
                (self.begin)(place, connector, target)
            });
    }

    /// Looks what it has been given.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Conn<PooledIo<I>>, PoolError>> {
        loop {
            let ticket = self.ticket;
            let given = self
                .pool
                .with(|books| books.ask(ticket, cx.waker()));
            match given {
                None | Some((Given::Nothing, _)) => return Poll::Pending,
                Some((Given::Place(dial), _)) => self.dial(dial),
                Some((Given::Refused(refusal, at), terms)) => {
                    return Poll::Ready(Err(refuse(&self.pool, refusal, terms, at)));
                }
                Some((
                    Given::Member {
                        mut member,
                        is_fresh,
                        at,
                    },
                    terms,
                )) => {
                    let waited = at.saturating_duration_since(terms.since);
                    if is_fresh {
                        // It is not read from: its peer may be the one to speak first.
                        let conn = lend(&self.pool, member, Served::Dialled, waited);
                        return Poll::Ready(Ok(conn));
                    }
                    match look(&mut member.conn) {
                        Ok(()) => {
                            let conn = lend(&self.pool, member, Served::Late, waited);
                            return Poll::Ready(Ok(conn));
                        }
                        Err(gone) => {
                            if let Some(over) = self.again(member, gone, terms) {
                                return Poll::Ready(over);
                            }
                        }
                    }
                }
            }
        }
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
            let got = self
                .pool
                .with(|books| books.get_again(ticket, terms, now));
            match got {
                Ok(Got::Idle(_, mut pooled)) => {
                    self.pool.let_go(dead, gone);
                    match look(&mut pooled.conn) {
                        Ok(()) => {
                            let waited = now.saturating_duration_since(terms.since);
                            return Some(Ok(lend(&self.pool, pooled, Served::Idle, waited)));
                        }
                        Err(why) => (dead, gone) = (pooled, why),
                    }
                }
                Ok(Got::Wait(ticket, dial)) => {
                    self.ticket = ticket;
                    self.pool.let_go(dead, gone);
                    if let Some(dial) = dial {
                        self.dial(dial);
                    }
                    return None;
                }
                Err((refusal, terms)) => {
                    self.pool.let_go(dead, gone);
                    return Some(Err(refuse(&self.pool, refusal, terms, now)));
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
    fn leave(&self) {
        let now = now();
        let (terms, left) = self
            .pool
            .with(|books| books.leave(self.ticket, now));
        let waited = now.saturating_duration_since(terms.since);
        self.pool
            .metrics
            .got(Outcome::Left, waited);
        if let Some((pooled, is_fresh)) = left {
            self.pool.take_in(pooled, is_fresh);
        }
    }
}

// Nothing in it is polled where it lies.
impl<C, T, K, I> Unpin for GetFuture<C, T, K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
}

impl<C, T, K, I> Future for GetFuture<C, T, K, I>
where
    C: Clone,
    T: Clone,
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    type Output = Result<Conn<PooledIo<I>>, PoolError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Waiting(get) = &mut self.state {
            let over = ready!(get.poll(cx));
            self.state = State::Over;
            return Poll::Ready(over);
        }
        match replace(&mut self.state, State::Over) {
            State::Served(conn) => Poll::Ready(Ok(conn)),
            State::Failed(error) => Poll::Ready(Err(error)),
            State::Waiting(_) | State::Over => panic!("polled again after it was ready"),
        }
    }
}

impl<C, T, K, I> Drop for GetFuture<C, T, K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    fn drop(&mut self) {
        match &self.state {
            State::Failed(_) | State::Over => {}
            State::Waiting(get) => get.leave(),
            State::Served(_) => {
                // Nobody has seen it.
                if let State::Served(conn) = replace(&mut self.state, State::Over) {
                    conn.reuse();
                }
            }
        }
    }
}

impl<C, T, K, I> fmt::Debug for GetFuture<C, T, K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.state {
            State::Served(_) => "Served",
            State::Failed(_) => "Failed",
            State::Waiting(_) => "Waiting",
            State::Over => "Over",
        })
    }
}
