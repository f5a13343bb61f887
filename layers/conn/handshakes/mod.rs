//! Peers that have connected and not yet said who they are: how many at once, and for how long.
//!
//! # Invariants
//!
//! - At most `at_once` tickets count, but for a dry run.
//! - A ticket counts from its beginning until it is dropped, or taken over by a newcomer: never twice.
//! - Nobody is woken under the lock.

mod running;
mod table;

use std::{
    error::Error,
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, gauge};

pub(crate) use self::running::Unfinished;
use self::{
    running::Running,
    table::{Slot, Table},
};
use crate::{
    base::{
        error::{ConfigError, NoTimer},
        time::{FOREVER, KeepsTime},
    },
    conn::{
        CloseReason, ConnInfo, Elapsed,
        opening::Opening,
        refusals::{Refusals, spared},
        waits::plus,
    },
};

/// How many handshakes may be under way at once, and how long each may take: one setting, since a number
/// without a time would let the first so many silent peers keep everybody else out.
///
/// A handshake is whatever a peer must say before it is served: a PROXY header, a TLS handshake. Layers that
/// are given clones of one `Handshakes` count together, and a connection that goes through several of them has
/// one time for all, which begins at the first.
///
/// At the limit, a peer that has not yet said all of its first message makes room: the one that has kept us
/// waiting for longest is closed. So the silent cannot keep out those who speak. If all have, it is the one that
/// said it longest ago, once that is a tenth of the time: so neither can those who stop there. Only if all under
/// way are at work is the newcomer reset. All are counted as [`CloseReason::HandshakeLimit`].
///
/// The default is 256 at once, within 10 s each.
#[derive(Debug, Clone)]
pub struct Handshakes {
    shared: Arc<Shared>,
    dry_run: bool,
}

#[derive(Debug)]
struct Shared {
    at_once: usize,
    within: Duration,
    pending: Gauge,
    keeps_time: KeepsTime,
    table: Mutex<Table>,
}

impl Handshakes {
    /// At most `at_once`, each `within` a time.
    ///
    /// # Errors
    ///
    /// One of them is zero, or the time is for ever.
    pub fn new(at_once: usize, within: Duration) -> Result<Self, ConfigError> {
        if at_once == 0 {
            return Err(ConfigError::zero("handshakes"));
        }
        if within.is_zero() {
            return Err(ConfigError::zero("handshake_deadline"));
        }
        if within >= FOREVER {
            let problem = "must be a time that passes: a number alone keeps nobody safe";
            return Err(ConfigError::new("handshake_deadline", problem));
        }
        Ok(Self::unchecked(at_once, within))
    }

    fn unchecked(at_once: usize, within: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                at_once,
                within,
                pending: gauge!("tower_net_handshakes_pending"),
                keeps_time: KeepsTime::default(),
                table: Mutex::default(),
            }),
            dry_run: false,
        }
    }

    /// Only counts what it would have refused or ended. Then neither the number nor the time is bounded. Clones share
    /// their places whatever their mode: what is in a dry run gets one of its own. Default: off.
    #[must_use]
    pub fn dry_run(mut self, on: bool) -> Self {
        self.dry_run = on;
        self
    }

    /// How many are under way.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.shared.lock().pending
    }

    /// How many there may be.
    #[must_use]
    pub fn at_once(&self) -> usize {
        self.shared.at_once
    }

    /// How long each may take.
    #[must_use]
    pub fn within(&self) -> Duration {
        self.shared.within
    }
}

impl Default for Handshakes {
    fn default() -> Self {
        Self::unchecked(AT_ONCE, WITHIN)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// One kind of handshake under these limits: what a layer keeps.
#[derive(Debug, Clone)]
pub(crate) struct HandshakeLimit {
    handshakes: Handshakes,
    refusals: Refusals,
    /// What one that is late after its first byte ends for.
    slow: CloseReason,
    spared_silent: Counter,
    spared_slow: Counter,
}

impl HandshakeLimit {
    /// One that is not done in time ends for `slow`, or for its missing first byte.
    pub(crate) fn new(handshakes: Handshakes, slow: CloseReason) -> Self {
        let mut refusals = Refusals::new(CloseReason::HandshakeLimit);
        refusals.dry_run(handshakes.dry_run);
        Self {
            handshakes,
            refusals,
            slow,
            spared_silent: spared(CloseReason::FirstByte),
            spared_slow: spared(slow),
        }
    }

    /// Checks that the runtime can keep time.
    pub(crate) fn check_time(&self) -> Result<(), NoTimer> {
        self.handshakes
            .shared
            .keeps_time
            .check()
    }

    /// Begins a handshake of a connection.
    pub(crate) fn begin(&self, info: &Arc<ConnInfo>) -> Result<Ticket, TooManyHandshakes> {
        let shared = &self.handshakes.shared;
        let slot = Slot::new(info);
        let (number, evicted) = {
            let mut table = shared.lock();
            let mut evicted = None;
            if table.pending >= shared.at_once && !self.refusals.is_dry_run() {
                evicted = table.evict(shared.within / PATIENCE);
                if evicted.is_none() {
                    drop(table);
                    self.refusals.refuse();
                    return Err(TooManyHandshakes {
                        at_once: shared.at_once,
                    });
                }
            } else {
                if table.pending >= shared.at_once {
                    self.refusals.refuse();
                }
                table.pending += 1;
                shared.pending.increment(1.0);
            }
            (table.begin(&slot), evicted)
        };
        if let Some(slot) = evicted {
            self.refusals.refuse();
            slot.info.ending.wake();
        }
        Ok(Ticket {
            shared: Arc::clone(shared),
            slot,
            number: AtomicU64::new(number),
            spoke: AtomicBool::new(false),
        })
    }

    /// Runs a handshake within its limits.
    pub(crate) fn run<F: Future>(&self, ticket: Arc<Ticket>, handshake: F) -> Running<'_, F> {
        let by = plus(
            ticket.slot.info.handshake_since(),
            self.handshakes.shared.within,
        );
        Running::new(self, ticket, Opening::new(by, handshake))
    }

    /// One of these handshakes is late: what it ends with, or in a dry run that it is only counted.
    pub(super) fn late(&self, spoke: bool) -> Option<Elapsed> {
        if self.refusals.is_dry_run() {
            let spared = if spoke {
                &self.spared_slow
            } else {
                &self.spared_silent
            };
            spared.increment(1);
            return None;
        }
        let which = if spoke {
            self.slow
        } else {
            CloseReason::FirstByte
        };
        Some(Elapsed::new(which, Some(self.handshakes.shared.within)))
    }
}

/// A handshake under way.
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    /// In the table; only changed under its lock.
    number: AtomicU64,
    spoke: AtomicBool,
}

impl Ticket {
    /// The peer has sent something.
    pub(crate) fn spoke(&self) {
        self.spoke.store(true, Relaxed);
    }

    /// The peer's first message is here as a whole: it makes room for nobody, unless it stops there.
    #[cfg(any(test, feature = "tls"))]
    pub(crate) fn heard(&self) {
        self.spoke();
        let mut table = self.shared.lock();
        let number = table.hear(self.number.load(Relaxed));
        self.number.store(number, Relaxed);
    }

    pub(super) fn has_spoken(&self) -> bool {
        self.spoke.load(Relaxed)
    }

    pub(super) fn is_evicted(&self) -> bool {
        self.slot.is_evicted()
    }

    pub(super) fn info(&self) -> &ConnInfo {
        &self.slot.info
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = self.shared.lock();
        // Of one that was evicted the place is the newcomer's now.
        if !self.slot.is_evicted() {
            table.end(self.number.load(Relaxed));
            self.shared.pending.decrement(1.0);
        }
    }
}

/// Too many handshakes are under way, and none of them keeps us waiting.
///
/// Nothing was started, so the peer may safely try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyHandshakes {
    at_once: usize,
}

impl TooManyHandshakes {
    /// The limit that was reached.
    #[must_use]
    pub fn at_once(&self) -> usize {
        self.at_once
    }

    /// Whether the refused work was never begun: always.
    #[must_use]
    pub fn never_started(&self) -> bool {
        true
    }
}

impl fmt::Display for TooManyHandshakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} handshakes are under way already", self.at_once)
    }
}

impl Error for TooManyHandshakes {}

impl From<TooManyHandshakes> for io::Error {
    fn from(error: TooManyHandshakes) -> Self {
        Self::new(io::ErrorKind::ConnectionRefused, error)
    }
}

/// A handshake takes milliseconds of work, so two cores are busy with far fewer.
const AT_ONCE: usize = 256;

/// Such a part of the time is what a peer may take over its next message when there is no place for a newcomer: by
/// default a second, longer than a round trip on any line. Who wants to keep others out has to open as many
/// connections in it as there are places.
const PATIENCE: u32 = 10;

/// A few lost packets on a bad line, and no more.
const WITHIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::sleep;
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;
    use crate::conn::Addr;

    fn limit(at_once: usize) -> HandshakeLimit {
        let handshakes = Handshakes::new(at_once, Duration::from_secs(10)).unwrap();
        HandshakeLimit::new(handshakes, CloseReason::Handshake)
    }

    fn begin(limit: &HandshakeLimit) -> Result<Arc<Ticket>, TooManyHandshakes> {
        let info = ConnInfo::new(Addr::Unnamed, Addr::Unnamed);
        limit
            .begin(&Arc::new(info))
            .map(Arc::new)
    }

    fn reason<T>(result: Result<T, Unfinished>) -> Option<CloseReason> {
        result
            .err()
            .map(|unfinished| unfinished.reason())
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_waits_for_longest_is_woken_and_makes_room() {
        let limit = limit(2);
        let [first, second] = [(); 2].map(|()| begin(&limit).unwrap());
        let mut evicted = task::spawn(limit.run(first, pending::<()>()));
        let mut stays = task::spawn(limit.run(second, pending::<()>()));
        assert_pending!(evicted.poll());
        assert_pending!(stays.poll());

        let third = begin(&limit).unwrap();

        assert_eq!(limit.handshakes.pending(), 2);
        assert!(evicted.is_woken() && !stays.is_woken());
        let ended = reason(assert_ready!(evicted.poll()));
        assert_eq!(ended, Some(CloseReason::HandshakeLimit));
        drop(evicted);
        assert_eq!(limit.handshakes.pending(), 2);
        drop((stays, third));
        assert_eq!(limit.handshakes.pending(), 0);
    }

    #[test]
    fn whoever_was_heard_stays_and_then_the_newcomer_is_refused() {
        let limit = limit(2);
        let [first, second] = [(); 2].map(|()| begin(&limit).unwrap());
        first.heard();
        let third = begin(&limit).unwrap();
        assert!(!first.is_evicted() && second.is_evicted());

        third.heard();
        let refused = begin(&limit).unwrap_err();

        assert_eq!((refused.at_once(), refused.never_started()), (2, true));
        drop(first);
        assert!(begin(&limit).is_ok() && !third.is_evicted());
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_free_again_on_every_way_out() {
        let limit = limit(4);
        let [done, late, dropped, left] = [(); 4].map(|()| begin(&limit).unwrap());
        let info = Arc::clone(&left.slot.info);
        info.ending
            .tell_to_leave(CloseReason::Drain);

        assert!(limit.run(done, ready(())).await.is_ok());
        drop(limit.run(dropped, pending::<()>()));
        let left = limit.run(left, pending::<()>()).await;
        assert_eq!(limit.handshakes.pending(), 1);
        let late = limit.run(late, pending::<()>()).await;

        assert_eq!(reason(left), Some(CloseReason::Drain));
        assert_eq!(reason(late), Some(CloseReason::FirstByte));
        assert_eq!(limit.handshakes.pending(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dry_run_bounds_neither_the_number_nor_the_time() {
        let handshakes = limit(1).handshakes.dry_run(true);
        let limit = HandshakeLimit::new(handshakes, CloseReason::Handshake);
        let [first, second] = [(); 2].map(|()| begin(&limit).unwrap());

        assert!(!first.is_evicted() && limit.handshakes.pending() == 2);
        for ticket in [first, second] {
            let handshake = sleep(Duration::from_secs(60));
            assert!(
                limit
                    .run(ticket, handshake)
                    .await
                    .is_ok()
            );
        }
    }

    #[test]
    fn those_that_count_are_those_that_live_and_were_not_evicted_and_never_too_many() {
        let limit = limit(5);
        let mut tickets: Vec<Arc<Ticket>> = Vec::new();
        for step in 0..2_000_u64 {
            let chance = (step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
            match (chance % 8, tickets.len()) {
                (0..4, _) | (_, 0) => tickets.extend(begin(&limit)),
                (4, count) => tickets[chance / 8 % count].heard(),
                (_, count) => drop(tickets.swap_remove(chance / 8 % count)),
            }

            let count = tickets
                .iter()
                .filter(|ticket| !ticket.is_evicted())
                .count();
            assert!(count <= 5 && limit.handshakes.pending() == count);
        }
    }
}
