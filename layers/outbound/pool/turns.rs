//! The turns of the lock that nearly every get and every return takes: each as short as can be, with what changes known
//! beforehand. Whatever is not as usual goes [the general way](Shared::with).

use std::{hash::Hash, mem::take, pin::Pin, sync::Arc, task::Waker, time::Duration};

use tokio::{
    runtime::Handle,
    time::{Instant, Sleep, sleep_until},
};

use super::{
    books::{Terms, Ticket},
    fates::Refusal,
    queue::Asked,
    returns::Kept,
    shared::{Locked, Shared, lock, regardless},
    stream::{Held, Home, Pooled, PooledIo, Served},
    watch::{ask, listen, look},
};
use crate::{
    base::{
        io::Io,
        time::{now, require_driver},
    },
    conn::Conn,
};

/// The lock, and where the target is, if it is known at all.
pub(super) type NoneIdle<'a, K, I> = (Locked<'a, K, I>, Option<usize>);

/// Where the target is, and what was idle of it.
pub(super) type Found<I> = (usize, Conn<PooledIo<I>>);

impl<K, I> Shared<K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    /// The connection that was given back last, and where its target is.
    #[inline(always)]
    pub(super) fn take_idle(
        &self,
        key: &K,
        hint: usize,
    ) -> Result<(usize, Pooled<I>), NoneIdle<'_, K, I>> {
        let mut books = self.lock();
        let taken = match books.take_idle(key, hint) {
            Ok(taken) => taken,
            Err(at) => return Err((books, at)),
        };
        let rouse = take(&mut books.after.rouse);
        drop(books);
        self.metrics.taken();
        if rouse {
            self.calls.signal.notify_one();
        }
        Ok(taken)
    }

    /// One that is idle and is what it was; or as above.
    #[inline(always)]
    pub(super) fn get_idle(&self, key: &K, hint: usize) -> Result<Found<I>, NoneIdle<'_, K, I>> {
        loop {
            let (at, mut pooled) = self.take_idle(key, hint)?;
            let Held { io, record } = &mut *pooled.held;
            match look(io, &record.watch).and_then(|()| ask(io)) {
                Ok(()) => {
                    self.metrics.got_at_once();
                    return Ok((at, pooled.lend(Served::Idle, Duration::ZERO)));
                }
                Err(gone) => self.let_go(pooled, gone),
            }
        }
    }

    /// Stands in line, with a dial if there is a place for it. The waker is called when there is something to
    /// [ask](Self::ask).
    #[inline(never)]
    pub(super) fn line_up(
        &self,
        mut books: Locked<'_, K, I>,
        at: usize,
        terms: Terms,
        waker: Waker,
    ) -> Result<(Ticket, Option<u64>), Refusal> {
        let before = books.counts;
        let stands = books.line_up(at, terms, Some(waker));
        self.unlock(books, before);
        stands
    }

    /// Lets go of the books, after somebody has [joined](super::books::Books::join) those who wait.
    #[inline(always)]
    pub(super) fn joined(&self, mut books: Locked<'_, K, I>) {
        let rouse = take(&mut books.after.rouse);
        drop(books);
        if rouse {
            self.calls.signal.notify_one();
        }
        self.metrics.waits();
    }

    /// What somebody who waits has got.
    #[inline]
    pub(super) fn ask(&self, key: usize, waker: &Waker) -> Asked<Pooled<I>> {
        // It changes no number, and leaves nothing to be done.
        self.lock().ask(key, waker)
    }

    /// Watches a connection that nobody uses, and keeps it or gives it to whoever waits.
    pub(super) fn take_in(&self, mut pooled: Pooled<I>, is_fresh: bool) -> bool {
        let Held { io, record } = &mut *pooled.held;
        record.watch.begin();
        if let Err(gone) = listen(io, &record.waker) {
            self.let_go(pooled, gone);
            return false;
        }
        let (target, watch) = (record.target, &record.watch);
        let mut books = self.lock();
        // Whoever was called before it is in the books has not found it.
        let stirred = watch
            .has_stirred()
            .then(|| Arc::clone(watch));
        let kept = match books.keep(target, pooled, is_fresh) {
            Kept::Idle => {
                let rouse = take(&mut books.after.rouse);
                drop(books);
                self.metrics.given_back();
                if rouse {
                    self.calls.signal.notify_one();
                }
                true
            }
            Kept::Handed(waker) => {
                drop(books);
                self.metrics.handed();
                if let Some(waker) = waker {
                    regardless(|| waker.wake());
                }
                true
            }
            Kept::Not(pooled) => {
                let before = books.counts;
                let kept = books.give_back(target, pooled, now, is_fresh);
                self.unlock(books, before);
                kept
            }
        };
        if let Some(watch) = stirred {
            watch.call();
        }
        kept
    }

    /// A timer for a get, if it is polled in a runtime other than the pool's, which may run while that does not.
    pub(super) fn sleep_elsewhere(&self, by: Instant) -> Option<Pin<Box<Sleep>>> {
        let here = Handle::try_current().ok()?.id();
        if here == self.runtime.id() || *lock(&self.timeless) == Some(here) {
            return None;
        }
        if require_driver().is_err() {
            // Once is enough: the question is a panic's message to standard error.
            *lock(&self.timeless) = Some(here);
            return None;
        }
        Some(Box::pin(sleep_until(by)))
    }
}
