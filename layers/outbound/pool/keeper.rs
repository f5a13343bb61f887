//! The pool's own task: closes what has been idle for too long, notices what stirs, ends the waiting of those whose
//! time is up, and keeps warm.

use std::{
    future::pending,
    hash::Hash,
    sync::{Arc, Weak},
};

use tokio::{
    task::yield_now,
    time::{Instant, sleep_until},
};

use super::{rounds::Next, shared::Shared};
use crate::base::io::Io;

/// Begins to look after a pool: one task, which the pool ends when it is dropped.
pub(super) fn keep<K, I>(pool: &Arc<Shared<K, I>>)
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    let (calls, keeping) = (Arc::clone(&pool.calls), Keeping(Arc::downgrade(pool)));
    let keeper = pool.runtime.spawn(async move {
        while let Some(next) = keeping.tend() {
            match next {
                Next::Soon => yield_now().await,
                Next::At(due) => tokio::select! {
                    biased;
                    () = calls.signal.notified() => {}
                    () = until(due) => {}
                },
            }
        }
    });
    let known = pool.keeper.set(keeper.abort_handle());
    debug_assert!(known.is_ok(), "a pool has one task");
}

/// Whoever looks after a pool. If that ends before the pool does, its runtime has gone, and with it whatever could
/// open a connection or end a wait.
struct Keeping<K, I>(Weak<Shared<K, I>>)
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io;

impl<K, I> Keeping<K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    /// When to do so next; `None` once there is no pool any more.
    fn tend(&self) -> Option<Next> {
        Some(self.0.upgrade()?.tend())
    }
}

impl<K, I> Drop for Keeping<K, I>
where
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    fn drop(&mut self) {
        if let Some(pool) = self.0.upgrade() {
            pool.shut();
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}
