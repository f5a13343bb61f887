//! The pool itself: the books and their lock, and all that is done without it.

use std::{
    hash::Hash,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock, Weak},
};

use tokio::{
    runtime::{Handle, Id},
    task::AbortHandle,
    time::Instant,
};

use super::{
    ages::Ages,
    books::{After, Books, Counts, Member, Ticket},
    dial::{Dial, Place},
    fates::{Gone, Refusal},
    handle::{Managed, Snapshot},
    metrics::Metrics,
    rounds::Next,
    settings::Pooling,
    stream::{Acquired, Held, Home, Pooled, Record},
    warmth::Warming,
    watch::{Calls, Watch, listen},
};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
        sync::{Mutex, MutexGuard, PoisonError},
        time::now,
    },
    conn::{CloseReason, Conn},
};

pub(super) type PoolBooks<K, I> = Books<K, Pooled<I>, AbortHandle, Recipe<I>>;

/// The books, while nobody else sees them.
pub(super) type Locked<'a, K, I> = MutexGuard<'a, PoolBooks<K, I>>;

/// How to dial a target that is kept warm.
pub(super) type Recipe<I> = Arc<dyn Fn(Place<I>) -> AbortHandle + Send + Sync>;

/// What all clones of a pool have in common. The pool ends when the last of them and of its handles does.
pub(super) struct Shared<K, I: Io> {
    books: Mutex<PoolBooks<K, I>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) pooling: Pooling,
    pub(super) runtime: Handle,
    pub(super) calls: Arc<Calls>,
    pub(super) keeper: OnceLock<AbortHandle>,
    pub(super) ages: Ages,
    /// The last runtime from which somebody came and which keeps no time.
    pub(super) timeless: Mutex<Option<Id>>,
    pub(super) me: Weak<Self>,
}

impl<K, I> Shared<K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    pub(super) fn new(pooling: Pooling, runtime: Handle, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            books: Mutex::new(Books::new(pooling.limits().clone())),
            metrics,
            pooling,
            runtime,
            calls: Arc::default(),
            keeper: OnceLock::new(),
            ages: Ages::default(),
            timeless: Mutex::new(None),
            me: me.clone(),
        })
    }

    pub(super) fn lock(&self) -> Locked<'_, K, I> {
        lock(&self.books)
    }

    /// Changes the books. Whom they have woken is woken, and what they have closed is dropped, without the lock.
    pub(super) fn with<R>(&self, change: impl FnOnce(&mut PoolBooks<K, I>) -> R) -> R {
        let mut books = self.lock();
        let before = books.counts;
        let result = change(&mut books);
        self.unlock(books, before);
        result
    }

    /// Lets go of the books, which had these numbers before, and does what they have left to do.
    pub(super) fn unlock(&self, mut books: Locked<'_, K, I>, before: Counts) {
        let counts = books.counts;
        let (wake, after) = (books.wake.take(), books.take_after());
        drop(books);
        // What is left to do is done, whatever a recorder does.
        regardless(|| self.metrics.moved(before, counts));
        if let Some(after) = after {
            self.clear_up(after);
        }
        if let Some(waker) = wake {
            regardless(|| waker.wake());
        }
    }

    /// Closes a connection. Its place is not free yet.
    fn close(&self, pooled: Pooled<I>, gone: Gone) {
        self.forget(&pooled.held.record, gone);
        close(pooled, gone);
    }

    fn forget(&self, record: &Record<I>, gone: Gone) {
        regardless(|| self.metrics.closed(gone));
        if let Some(end) = record.retires {
            self.ages.leave(end, record.number);
        }
    }

    #[cold]
    #[inline(never)]
    fn drop_closed(&self, closed: Vec<(Pooled<I>, Gone, Option<usize>)>) {
        let mut places = Vec::new();
        for (pooled, gone, place) in closed {
            self.close(pooled, gone);
            places.extend(place);
        }
        if !places.is_empty() {
            let now = now();
            self.with(|books| {
                for at in places {
                    books.free(at, now);
                }
            });
        }
    }

    #[cold]
    #[inline(never)]
    fn clear_up(&self, after: After<K, Pooled<I>, AbortHandle, Recipe<I>>) {
        // First what is closed: whoever is woken for its place must not meet it.
        if !after.closed.is_empty() {
            self.drop_closed(after.closed);
        }
        regardless(|| drop(after.outdated));
        for refusal in after.refused {
            regardless(|| drop(refusal));
        }
        for recipe in after.recipes {
            regardless(|| drop(recipe));
        }
        for key in after.keys {
            regardless(|| drop(key));
        }
        for waker in after.wakes {
            regardless(|| waker.wake());
        }
        for dial in after.called_off {
            dial.abort();
        }
        if after.rouse {
            self.calls.signal.notify_one();
        }
    }

    /// Makes a connection one of the pool's.
    fn enrol(&self, conn: Conn<I>, dial: Dial, now: Instant) -> Pooled<I> {
        let watch = Watch::new(dial.target, dial.number, &self.calls);
        let lifetime = self.pooling.lifetime();
        let record = Record {
            home: self.me.clone(),
            target: dial.target,
            number: dial.number,
            round: dial.round,
            retires: lifetime.and_then(|lifetime| now.checked_add(lifetime)),
            waker: Arc::clone(&watch).into(),
            watch,
            acquired: Acquired::NEVER,
            dialled: Some(now),
            is_broken: false,
        };
        if let Some(end) = record.retires {
            if self.ages.enter(end, &record.watch) {
                self.calls.signal.notify_one();
            }
        }
        let (io, info) = conn.into_parts();
        let held = Box::new(Held { io, record });
        Pooled { held, info }
    }

    /// Looks at a connection that has stirred while it was idle.
    pub(super) fn look_at(&self, watch: &Arc<Watch>) {
        let found = self.with(|books| books.take_out(watch.target, watch.number));
        let Some(mut idle) = found else {
            return;
        };
        watch.begin();
        let Held { io, record } = &mut *idle.member.held;
        if let Err(gone) = listen(io, &record.waker) {
            return self.let_go(idle.member, gone);
        }
        let now = now();
        self.with(|books| books.put_back(watch.target, idle, now));
        if watch.has_stirred() {
            watch.call();
        }
    }

    /// Begins a dial whose place has been taken.
    pub(super) fn begin(
        &self,
        target: usize,
        number: u64,
        owner: Option<Ticket>,
        begin: impl FnOnce(Place<I>) -> AbortHandle,
    ) {
        let dial = Dial {
            target,
            number,
            round: self.with(|books| books.round),
            owner,
        };
        let place = Place {
            home: self.me.clone(),
            metrics: Arc::clone(&self.metrics),
            runtime: self.runtime.clone(),
            limit: self.pooling.dial_within,
            dial,
            is_over: false,
        };
        // A connector that panics when it is cloned has dropped its place, which is a dial that failed.
        let begun = catch_unwind(AssertUnwindSafe(|| begin(place)));
        if let Ok(by) = begun {
            self.with(|books| books.begun(target, number, by));
        }
    }

    /// Sets how many connections to a target are to be idle.
    pub(super) fn keep_warm(&self, key: K, idle: usize, recipe: Recipe<I>) {
        self.with(|books| books.keep_warm(key, idle, recipe, now()));
    }

    /// Looks after what stirs or is due, or some of it; returns when to do so next.
    pub(super) fn tend(&self) -> Next {
        let (stirred, are_more) = self.calls.take(CALLS);
        for watch in stirred {
            self.look_at(&watch);
        }
        let now = now();
        let (warming, next) = self.with(|books| books.tend(now));
        let retires = self.ages.tell(now);
        for Warming {
            target,
            dial,
            recipe,
        } in warming
        {
            self.begin(target, dial, None, |place| recipe(place));
            // It may be the last one by now.
            regardless(|| drop(recipe));
        }
        match next {
            Next::At(due) if !are_more => Next::At(
                [due, retires]
                    .into_iter()
                    .flatten()
                    .min(),
            ),
            _ => Next::Soon,
        }
    }

    /// Closes the pool for good.
    pub(super) fn shut(&self) {
        self.with(|books| books.close(now()));
    }
}

impl<K, I> Home<I> for Shared<K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    fn take_back(&self, pooled: Pooled<I>) -> bool {
        self.take_in(pooled, false)
    }

    fn let_go(&self, pooled: Pooled<I>, gone: Gone) {
        let (target, number) = (pooled.target(), pooled.number());
        let unused = match gone {
            Gone::Ended | Gone::Stray => pooled.held.record.dialled,
            _ => None,
        };
        if let Some(dialled) = unused {
            self.with(|books| books.ended_unused(target, number, dialled, now()));
        }
        self.close(pooled, gone);
        self.with(|books| books.free(target, now()));
    }

    fn lost(&self, record: &Record<I>, gone: Gone) {
        self.forget(record, gone);
        self.with(|books| books.free(record.target, now()));
    }

    fn dialled(&self, dial: Dial, conn: Conn<I>) {
        let now = now();
        let pooled = self.enrol(conn, dial, now);
        let left = self.with(|books| books.dialled(dial.target, dial.number, pooled, now));
        if let Some(pooled) = left {
            self.take_in(pooled, true);
        }
    }

    fn dial_failed(&self, dial: Dial, error: BoxError) {
        let now = now();
        self.with(|books| {
            let refusal = Refusal::Connect(error);
            books.dial_failed(dial.target, dial.number, dial.owner, refusal, now);
        });
    }

    fn dial_gone(&self, dial: Dial) {
        let now = now();
        self.with(|books| books.dial_gone(dial.target, dial.number, now));
    }
}

impl<K, I> Managed for Shared<K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    fn snapshot(&self) -> Snapshot {
        self.with(|books| Snapshot::new(books.counts, books.targets.len()))
    }

    fn close(&self) {
        self.shut();
    }

    fn renew(&self) {
        self.with(|books| books.renew(now()));
    }

    fn set_max_open(&self, connections: usize) -> Result<(), ConfigError> {
        if connections == 0 {
            return Err(ConfigError::zero("max_open"));
        }
        self.with(|books| books.set_open(connections, now()));
        Ok(())
    }
}

impl<K, I: Io> Drop for Shared<K, I> {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.abort();
        }
        let books = lock(&self.books);
        // What is in use from now on is whose it is, and not the pool's.
        self.metrics
            .moved(books.counts, Counts::default());
        for (_, target) in &books.targets {
            for _ in &target.idle {
                self.metrics.closed(Gone::Closed);
            }
            for dial in target.dials.values().flatten() {
                dial.abort();
            }
        }
    }
}

/// Connections that are looked at in one go, with a read each.
const CALLS: usize = 64;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// Drops the stream, having said why. Its own drop may do anything, also panic.
fn close<I>(pooled: Pooled<I>, gone: Gone) {
    let reason = match gone {
        Gone::Age => Some(CloseReason::Age),
        Gone::Idle => Some(CloseReason::Idle),
        Gone::Evicted | Gone::Surplus => Some(CloseReason::Reclaimed),
        Gone::Ended => Some(CloseReason::Peer),
        Gone::Stray => Some(CloseReason::Protocol),
        Gone::Broken | Gone::Closed | Gone::Dropped | Gone::Renewed => None,
    };
    if let Some(reason) = reason {
        pooled.info.end_with(reason);
    }
    regardless(|| drop(pooled));
}

/// Does what runs the code of others: that may panic, and whoever comes after it is to be served all the same.
pub(super) fn regardless(act: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(act)).is_err() {
        tracing::debug!(
            "a stream, an error, a connector, a key, a waker or a recorder panicked when it was \
             dropped, woken or told"
        );
    }
}
