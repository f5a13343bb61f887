use std::{
    fmt,
    future::Future,
    hash::Hash,
    mem::replace,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};
use tower_service::Service;

use super::{
    books::{Given, Got, Ticket},
    dial::{self, Place},
    error::PoolError,
    fates::{Outcome, Refusal},
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
    /// missing by itself, as long as there are places that nobody waits for, pausing after a failure. They are not
    /// closed for being idle. Zero ends it.
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
        let key = (self.key)(&target);
        loop {
            let idle = self
                .shared
                .with(|books| books.take_idle(&key, self.hint));
            let Some((at, mut pooled)) = idle else {
                break;
            };
            self.hint = at;
            match look(&mut pooled.conn) {
                Ok(()) => return GetFuture::served(pooled, Served::Idle, &self.shared),
                Err(gone) => self.shared.let_go(pooled, gone),
            }
        }
        let since = now();
        let own = Deadline::after(since, self.shared.pooling.within);
        let callers = Deadline::current();
        let mut get = Get {
            pool: Arc::clone(&self.shared),
            connector: self.connector.clone(),
            target,
            key: Arc::clone(&self.key),
            begin: dial::begin,
            since,
            by: own.min(callers),
            is_callers: callers < own,
        };
        let state = if get
            .by
            .instant()
            .is_some_and(|by| by <= since)
        {
            let refusal = Refusal::Elapsed { connecting: false };
            State::Failed(get.refused(refusal, since))
        } else {
            get.queue(key, None, since)
        };
        GetFuture {
            state,
            get: Some(get),
        }
    }
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
    state: State<I>,
    /// None for a connection that was idle.
    get: Option<Get<C, T, K, I>>,
}

enum State<I> {
    Served(Conn<PooledIo<I>>),
    Failed(PoolError),
    Waiting(Ticket),
    Over,
}

/// A get that does not find what it wants at once.
struct Get<C, T, K, I: Io> {
    pool: Arc<Shared<K, I>>,
    connector: C,
    target: T,
    key: Arc<KeyOf<T, K>>,
    /// Held as what it is, so that the future asks nothing of the connector: what is asked of its error would keep
    /// compilers from seeing that a task that gets may move between threads.
    begin: fn(Place<I>, C, T) -> AbortHandle,
    since: Instant,
    by: Deadline,
    is_callers: bool,
}

impl<C, T, K, I> Get<C, T, K, I>
where
    C: Clone,
    T: Clone,
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    /// Takes what is idle by now, or stands in line: at its end, or where it stood before.
    fn queue(&mut self, key: K, number: Option<u64>, now: Instant) -> State<I> {
        loop {
            let by = self.by.instant();
            let got = self
                .pool
                .with(|books| books.wait(key.clone(), number, now, by));
            match got {
                Ok(Got::Idle(mut pooled)) => match look(&mut pooled.conn) {
                    Ok(()) => return State::Served(self.lend(pooled, Served::Idle, now)),
                    Err(gone) => self.pool.let_go(pooled, gone),
                },
                Ok(Got::Wait(ticket, dial)) => {
                    if let Some(dial) = dial {
                        self.dial(ticket, dial);
                    }
                    return State::Waiting(ticket);
                }
                Err(refusal) => return State::Failed(self.refused(refusal, now)),
            }
        }
    }

    fn dial(&self, ticket: Ticket, number: u64) {
        let (connector, target) = (self.connector.clone(), self.target.clone());
        self.pool
            .begin(ticket.target, number, Some(ticket), |place| {
                (self.begin)(place, connector, target)
            });
    }

    /// Looks what it has been given.
    fn poll(&mut self, mut ticket: Ticket, cx: &mut Context<'_>) -> State<I> {
        loop {
            let given = self
                .pool
                .with(|books| books.ask(ticket, cx.waker()));
            match given {
                None | Some(Given::Nothing) => return State::Waiting(ticket),
                Some(Given::Place(dial)) => self.dial(ticket, dial),
                Some(Given::Refused(refusal, at)) => {
                    return State::Failed(self.refused(refusal, at));
                }
                Some(Given::Member {
                    mut member,
                    is_fresh,
                    at,
                }) => {
                    // A new one is not read from: its peer may be the one to speak first.
                    let looked = if is_fresh {
                        Ok(())
                    } else {
                        look(&mut member.conn)
                    };
                    let served = if is_fresh {
                        Served::Dialled
                    } else {
                        Served::Late
                    };
                    let Err(gone) = looked else {
                        return State::Served(self.lend(member, served, at));
                    };
                    // Back in line first, so that its place goes to nobody who came later.
                    let key = (self.key)(&self.target);
                    let state = self.queue(key, Some(ticket.number), now());
                    self.pool.let_go(member, gone);
                    match state {
                        State::Waiting(again) => ticket = again,
                        over => return over,
                    }
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
    fn lend(&self, pooled: Pooled<I>, served: Served, at: Instant) -> Conn<PooledIo<I>> {
        let waited = self.waited(at);
        let outcome = match served {
            Served::Idle => Outcome::Idle,
            Served::Late => Outcome::Late,
            Served::Dialled => Outcome::Dialled,
        };
        self.pool.metrics.got(outcome, waited);
        pooled.lend(served, waited)
    }

    fn refused(&self, refusal: Refusal, now: Instant) -> PoolError {
        let error = PoolError::new(refusal, self.waited(now), self.is_callers);
        self.pool
            .metrics
            .got(error.outcome(), error.waited());
        error
    }

    fn leave(&self, ticket: Ticket) {
        let now = now();
        self.pool
            .metrics
            .got(Outcome::Left, self.waited(now));
        let left = self
            .pool
            .with(|books| books.leave(ticket, now));
        if let Some((pooled, is_fresh)) = left {
            self.pool.take_in(pooled, is_fresh);
        }
    }

    fn waited(&self, until: Instant) -> Duration {
        until.saturating_duration_since(self.since)
    }
}

impl<C, T, K, I> GetFuture<C, T, K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    /// Of a connection that was idle.
    fn served(pooled: Pooled<I>, served: Served, pool: &Shared<K, I>) -> Self {
        pool.metrics
            .got(Outcome::Idle, Duration::ZERO);
        Self {
            state: State::Served(pooled.lend(served, Duration::ZERO)),
            get: None,
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
        let this = &mut *self;
        if let State::Waiting(ticket) = this.state {
            let get = this.get.as_mut();
            this.state = get
                .expect("whoever waits knows what for")
                .poll(ticket, cx);
            if matches!(this.state, State::Waiting(_)) {
                return Poll::Pending;
            }
        }
        match replace(&mut this.state, State::Over) {
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
        match self.state {
            State::Failed(_) | State::Over => {}
            State::Waiting(ticket) => {
                if let Some(get) = &self.get {
                    get.leave(ticket);
                }
            }
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
