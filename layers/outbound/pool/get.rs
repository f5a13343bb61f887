use std::{
    fmt,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tower_service::Service;

use super::{
    dial::{self, Place},
    error::PoolError,
    handle::PoolHandle,
    line::Get,
    shared::{Shared, regardless},
    stream::PooledIo,
};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
    },
    conn::Conn,
};

/// Which connections are alike.
pub(super) type KeyOf<T, K> = dyn for<'a> Fn(&'a T) -> Key<'a, K> + Send + Sync;

/// What a target is known by: itself, or what was made of it.
pub(super) enum Key<'a, K> {
    Itself(&'a K),
    Made(K),
}

impl<K: Clone> Key<'_, K> {
    pub(super) fn known(&self) -> &K {
        match self {
            Self::Itself(key) => key,
            Self::Made(key) => key,
        }
    }

    pub(super) fn made(self) -> K {
        match self {
            Self::Itself(key) => key.clone(),
            Self::Made(key) => key,
        }
    }

    /// Drops what was made, which may do anything.
    #[inline]
    pub(super) fn let_go(self) {
        if let Self::Made(key) = self {
            regardless(|| drop(key));
        }
    }
}

/// The service of [`PoolLayer`](crate::pool::PoolLayer): a connector that gives out connections again and again.
///
/// Clones are the same pool. A call takes what is idle; where there is nothing, it begins when its future is first
/// polled, and the order of these first polls is the one in which those who wait are served.
pub struct Pool<C, T, K, I: Io> {
    common: Arc<Common<C, T, K, I>>,
    /// Where the last target was in the books.
    hint: usize,
}

/// What clones of a pool have in common, and those who wait for it.
pub(super) struct Common<C, T, K, I: Io> {
    pub(super) shared: Arc<Shared<K, I>>,
    pub(super) key: Arc<KeyOf<T, K>>,
    /// Cloned for each dial. Not every connector is shared between threads.
    connector: Mutex<C>,
    /// Where the target is for which somebody came last where all places were in use. A call that was there the last
    /// time does not look, since it is likely to wait as well: until one that has not looked finds something idle with
    /// its first poll, or was for another target.
    crowded: AtomicUsize,
}

impl<C, T, K, I: Io> Common<C, T, K, I> {
    /// Somebody has to wait for this target, all of whose places are in use.
    pub(super) fn crowd(&self, at: usize) {
        // Written only where it changes: all threads read it.
        if self.crowded.load(Relaxed) != at {
            self.crowded.store(at, Relaxed);
        }
    }

    /// Whoever comes for this target looks first: one that was idle may be there.
    pub(super) fn calm(&self, at: usize) {
        if self.crowded.load(Relaxed) == at {
            self.crowded.store(NOBODY, Relaxed);
        }
    }

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
            crowded: AtomicUsize::new(NOBODY),
        };
        Self {
            common: Arc::new(common),
            hint: NOWHERE,
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
    /// After a dial that failed the pool pauses, as [`ConnectBackoff`](crate::pool::ConnectBackoff) says, and so it
    /// does after a connection that its peer ended within a second of its dial, before anybody had it: then it opens one
    /// at a time, until one has stayed. A peer that speaks first cannot be kept warm: what it says is not asked for.
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

impl<C, T, K, I: Io> Clone for Pool<C, T, K, I> {
    fn clone(&self) -> Self {
        Self {
            common: Arc::clone(&self.common),
            hint: self.hint,
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
        let common = &self.common;
        // Where somebody waits, whoever comes is likely to, and is not in line before it is polled.
        if common.crowded.load(Relaxed) != self.hint {
            let key = (common.key)(&target);
            match common
                .shared
                .get_idle(key.known(), self.hint)
            {
                Ok((at, conn)) => {
                    self.hint = at;
                    return GetFuture {
                        state: State::Served(Some(conn)),
                    };
                }
                Err((books, at)) => {
                    drop(books);
                    self.hint = at.unwrap_or(NOWHERE);
                }
            }
        }
        GetFuture {
            state: State::Waiting(Get::new(Arc::clone(common), target, self.hint)),
        }
    }
}

/// Where no target is.
const NOWHERE: usize = usize::MAX;

/// Where none is either, and nobody looks for one.
const NOBODY: usize = NOWHERE - 1;

/// The future of [`Pool`].
///
/// Unless it was served at once, it dials or stands in line with its first poll, and has taken nothing before that.
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
    /// One was idle; none once it was told.
    Served(Option<Conn<PooledIo<I>>>),
    Waiting(Get<C, T, K, I>),
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
            State::Served(conn) => {
                let conn = conn.take();
                Poll::Ready(Ok(conn.expect("polled again after it was ready")))
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
            State::Served(None) => {}
            State::Served(unseen) => put_back(unseen.take()),
            State::Waiting(get) if get.is_in_line() => get.leave(),
            State::Waiting(_) => {}
        }
    }
}

/// What nobody has seen.
#[cold]
fn put_back<I: Io>(unseen: Option<Conn<PooledIo<I>>>) {
    if let Some(conn) = unseen {
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
            State::Served(Some(_)) => "Served",
            State::Served(None) => "Over",
            State::Waiting(get) => get.name(),
        })
    }
}
