use std::{
    fmt,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tower_service::Service;

use super::{
    books::Terms,
    dial::{self, Place},
    error::PoolError,
    handle::PoolHandle,
    line::{Get, refuse},
    shared::{Locked, Shared},
    stream::{Held, Home, PooledIo, Served},
    watch::{ask, look},
};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
        time::{later, now},
    },
    conn::{Conn, Deadline},
};

/// Which connections are alike.
pub(super) type KeyOf<T, K> = dyn for<'a> Fn(&'a T) -> Key<'a, K> + Send + Sync;

/// What a target is known by: itself, or what was made of it.
pub(super) enum Key<'a, K> {
    Itself(&'a K),
    Made(K),
}

impl<K: Clone> Key<'_, K> {
    fn known(&self) -> &K {
        match self {
            Self::Itself(key) => key,
            Self::Made(key) => key,
        }
    }

    fn made(self) -> K {
        match self {
            Self::Itself(key) => key.clone(),
            Self::Made(key) => key,
        }
    }
}

/// The service of [`PoolLayer`](crate::pool::PoolLayer): a connector that gives out connections again and again.
///
/// Clones are the same pool.
pub struct Pool<C, T, K, I: Io> {
    common: Arc<Common<C, T, K, I>>,
    /// Where the last target was in the books.
    hint: usize,
    /// The last get had to wait for a connection, and so the next one may.
    is_crowded: bool,
}

/// What clones of a pool have in common, and those who wait for it.
pub(super) struct Common<C, T, K, I: Io> {
    pub(super) shared: Arc<Shared<K, I>>,
    key: Arc<KeyOf<T, K>>,
    /// Cloned for each dial. Not every connector is shared between threads.
    connector: Mutex<C>,
}

impl<C, T, K, I: Io> Common<C, T, K, I> {
    pub(super) fn connector(&self) -> MutexGuard<'_, C> {
        self.connector
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C, T, K, I> Pool<C, T, K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    pub(super) fn new(connector: C, key: Arc<KeyOf<T, K>>, shared: Arc<Shared<K, I>>) -> Self {
        let common = Common {
            shared,
            key,
            connector: Mutex::new(connector),
        };
        Self {
            common: Arc::new(common),
            hint: usize::MAX,
            is_crowded: false,
        }
    }

    /// A handle to look into the pool, and to close it.
    #[must_use]
    pub fn handle(&self) -> PoolHandle {
        let shared = Arc::clone(&self.common.shared);
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
        let Common { shared, key, .. } = &*self.common;
        if idle > shared.pooling.limits().idle_per_target {
            return Err(ConfigError::new(
                "keep_warm",
                "must not be more than max_idle_per_target",
            ));
        }
        let key = key(&target).made();
        let connector = self.common.connector().clone();
        // Asked for under a lock of its own: not every connector is shared between threads.
        let connector = Mutex::new((connector, target));
        let recipe = move |place: Place<I>| {
            let held = connector
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let (connector, target) = held.clone();
            drop(held);
            dial::begin(place, connector, target)
        };
        shared.keep_warm(key, idle, Arc::new(recipe));
        Ok(())
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
    /// A get for which there was nothing idle; the lock is still held.
    #[inline(never)]
    fn wait(
        common: &Arc<Common<C, T, K, I>>,
        is_crowded: &mut bool,
        books: Locked<'_, K, I>,
        at: usize,
        target: T,
        since: Option<Instant>,
    ) -> GetFuture<C, T, K, I> {
        let shared = &common.shared;
        let terms = terms(since.unwrap_or_else(now), shared.pooling.within);
        let books = match shared.join(books, at, terms) {
            Ok(ticket) => {
                *is_crowded = true;
                return GetFuture {
                    state: State::Waiting(Get::new(Arc::clone(common), target, ticket)),
                };
            }
            Err(books) => books,
        };
        let (ticket, dial) = match shared.line_up(books, at, terms) {
            Ok(stands) => stands,
            Err(refusal) => {
                return GetFuture::known(Err(refuse(shared, refusal, terms, terms.since)));
            }
        };
        let get = Get::new(Arc::clone(common), target, ticket);
        if let Some(dial) = dial {
            get.dial(dial);
        }
        GetFuture {
            state: State::Waiting(get),
        }
    }
}

impl<C, T, K, I: Io> Clone for Pool<C, T, K, I> {
    fn clone(&self) -> Self {
        Self {
            common: Arc::clone(&self.common),
            hint: self.hint,
            is_crowded: self.is_crowded,
        }
    }
}

impl<C: fmt::Debug, T, K, I: Io> fmt::Debug for Pool<C, T, K, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("connector", &self.common.connector)
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

    #[inline]
    fn call(&mut self, target: T) -> Self::Future {
        let shared = &self.common.shared;
        // Where it is likely to be asked for, the clock is read before the lock is taken.
        let since = self.is_crowded.then(now);
        loop {
            let key = (self.common.key)(&target);
            let (at, mut pooled) = match shared.take_idle(key.known(), self.hint) {
                Ok(idle) => idle,
                Err((mut books, at)) => {
                    let at = at.unwrap_or_else(|| books.enter(key.made()));
                    self.hint = at;
                    return Self::wait(
                        &self.common,
                        &mut self.is_crowded,
                        books,
                        at,
                        target,
                        since,
                    );
                }
            };
            self.hint = at;
            self.is_crowded = false;
            let Held { io, record } = &mut *pooled.held;
            match look(io, &record.watch).and_then(|()| ask(io)) {
                Ok(()) => {
                    shared.metrics.got_at_once();
                    return GetFuture::known(Ok(pooled.lend(Served::Idle, Duration::ZERO)));
                }
                Err(gone) => shared.let_go(pooled, gone),
            }
        }
    }
}

/// From then until the pool's limit or the caller's deadline.
#[inline]
fn terms(since: Instant, within: Duration) -> Terms {
    let own = later(since, within);
    let callers = Deadline::current().instant();
    let is_callers = callers.is_some_and(|callers| own.is_none_or(|own| callers < own));
    Terms {
        since,
        by: if is_callers { callers } else { own },
        is_callers,
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
    state: State<C, T, K, I>,
}

enum State<C, T, K, I: Io> {
    /// None once it was told.
    Known(Option<Result<Conn<PooledIo<I>>, PoolError>>),
    Waiting(Get<C, T, K, I>),
}

impl<C, T, K, I> GetFuture<C, T, K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    fn known(known: Result<Conn<PooledIo<I>>, PoolError>) -> Self {
        Self {
            state: State::Known(Some(known)),
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

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            State::Known(known) => {
                let known = known.take();
                Poll::Ready(known.expect("polled again after it was ready"))
            }
            State::Waiting(get) => get.poll(cx),
        }
    }
}

impl<C, T, K, I> Drop for GetFuture<C, T, K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    #[inline]
    fn drop(&mut self) {
        match &mut self.state {
            State::Known(None) => {}
            State::Known(unseen) => put_back(unseen.take()),
            State::Waiting(get) if get.is_over => {}
            State::Waiting(get) => get.leave(),
        }
    }
}

/// What nobody has seen.
#[cold]
fn put_back<I: Io>(unseen: Option<Result<Conn<PooledIo<I>>, PoolError>>) {
    if let Some(Ok(conn)) = unseen {
        conn.reuse();
    }
}

impl<C, T, K, I> fmt::Debug for GetFuture<C, T, K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.state {
            State::Known(Some(Ok(_))) => "Served",
            State::Known(Some(Err(_))) => "Failed",
            State::Known(None) => "Over",
            State::Waiting(get) if get.is_over => "Over",
            State::Waiting(_) => "Waiting",
        })
    }
}
