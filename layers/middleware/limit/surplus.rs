use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use metrics::{Gauge, gauge};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    base::io::{Io, Linger, linger},
    conn::{CloseReason, Conn, ConnInfo, reset_on_drop},
};

/// What becomes of a connection that its peer may not have, or not yet. `R` is the refusal:
/// [`PeerFull`](super::PeerFull) or [`TooFast`](super::TooFast).
///
/// Whatever it is, a connection of the surplus holds a descriptor, so the number of those that wait or are spoken to
/// is bounded too (`surplus_at_once`); beyond it they are reset.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Surplus<R> {
    /// It is reset at once: the peer knows, and nothing is left in TIME_WAIT.
    #[default]
    Reset,
    /// It is held, and nothing of it read, until the peer may have it; when that takes longer than this it is reset.
    ///
    /// Those of one peer are served in the order in which they came. [`Duration::MAX`] waits for ever, zero not
    /// at all. A drain ends it. That a peer has left meanwhile shows when it is served.
    WaitUpTo(Duration),
    /// It is told why, in the terms of its protocol, and closed in order.
    ///
    /// The peer has 2 s in all to take the last word and close, 1 s of silence, and 64 KiB more to send, all of which
    /// is thrown away; then it is reset.
    LastWord(LastWord<R>),
}

impl<R> Surplus<R> {
    /// Always the same last word.
    #[must_use]
    pub fn last_word(word: impl Into<Bytes>) -> Self {
        let word = word.into();
        Self::last_word_with(move |_, _| word.clone())
    }

    /// A last word made for the refusal and the connection. An empty one closes in order and says nothing.
    ///
    /// It is called once for each connection that is spoken to, in that connection's own task, and should be cheap:
    /// a flood is when it matters.
    #[must_use]
    pub fn last_word_with(word: impl Fn(&R, &ConnInfo) -> Bytes + Send + Sync + 'static) -> Self {
        Self::LastWord(LastWord(Arc::new(word)))
    }
}

/// What a refused peer is told; made by [`Surplus::last_word`] and [`Surplus::last_word_with`].
pub struct LastWord<R>(Arc<Word<R>>);

type Word<R> = dyn Fn(&R, &ConnInfo) -> Bytes + Send + Sync;

impl<R> LastWord<R> {
    pub(super) fn on(&self, refusal: &R, info: &ConnInfo) -> Bytes {
        self.0(refusal, info)
    }
}

impl<R> Clone for LastWord<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R> fmt::Debug for LastWord<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastWord")
    }
}

/// Where the surplus is while it waits or is spoken to.
#[derive(Debug)]
pub(super) struct Room {
    seated: AtomicUsize,
    held: Gauge,
}

impl Room {
    pub(super) fn new(reason: CloseReason) -> Self {
        Self {
            seated: AtomicUsize::new(0),
            held: gauge!("tower_net_surplus_held", "reason" => reason.label()),
        }
    }

    /// A seat, if fewer than `at_once` are taken.
    pub(super) fn enter(self: &Arc<Self>, at_once: usize) -> Option<Seat> {
        let entered = self
            .seated
            .fetch_update(Relaxed, Relaxed, |seated| {
                (seated < at_once).then_some(seated + 1)
            });
        entered.ok()?;
        self.held.increment(1.0);
        Some(Seat(Arc::clone(self)))
    }

    pub(super) fn seated(&self) -> usize {
        self.seated.load(Relaxed)
    }
}

#[derive(Debug)]
pub(super) struct Seat(Arc<Room>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.seated.fetch_sub(1, Relaxed);
        self.0.held.decrement(1.0);
    }
}

/// Why nobody waits any longer.
#[derive(Debug)]
pub(super) enum NoMore {
    Late,
    Left(CloseReason),
}

/// Waits for `until`, but not after `by`, nor once the connection is told to leave.
pub(super) async fn wait<F: Future>(
    info: &ConnInfo,
    by: Option<Instant>,
    until: F,
) -> Result<F::Output, NoMore> {
    let late = async {
        match by {
            Some(by) => sleep_until(by).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        done = until => Ok(done),
        reason = info.ending.told_to_leave() => Err(NoMore::Left(reason)),
        () = late => Err(NoMore::Late),
    }
}

/// Says the last word and closes.
pub(super) async fn speak<I: Io>(mut conn: Conn<I>, word: Bytes) {
    // Once both sides have ended this changes nothing; before, nothing is left behind.
    reset_on_drop(conn.io(), conn.info());
    let speaking = async {
        conn.write_all(&word).await?;
        let limits = Linger::default()
            .quiet(QUIET)
            .bytes(UNREAD);
        linger(conn, limits).await
    };
    // Heard or not: there is nobody to tell.
    let _heard = timeout(TIME, speaking).await;
}

/// Some round trips of a bad line; a peer that takes longer cannot keep a descriptor busy for it.
const TIME: Duration = Duration::from_secs(2);

const QUIET: Duration = Duration::from_secs(1);

/// What a client sends ahead of an answer it expects.
const UNREAD: u64 = 64 * 1024;

/// Some hundred kilobytes of memory, and few beside the descriptors of a process.
pub(super) const AT_ONCE: usize = 1024;
