//! What the two limits for each peer have in common: whom they count, and what they do with the surplus.

use std::{sync::Arc, time::Duration};

use metrics::counter;
use tokio::time::Instant;
use tower_service::Service;

use super::{
    peers::Peers,
    surplus::{AT_ONCE, NoMore, Room, Seat, Surplus, speak, wait},
    table::Table,
};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
        time::KeepsTime,
    },
    conn::{CloseReason, Conn, refusals::Refusals, staged::Staged},
};

/// The settings of one layer; `R` is its refusal.
#[derive(Debug, Clone)]
pub(super) struct Settings<R> {
    pub(super) peers: Peers,
    pub(super) surplus: Surplus<R>,
    pub(super) at_once: usize,
    pub(super) refusals: Refusals,
    reason: CloseReason,
    room: Arc<Room>,
    keeps_time: Arc<KeepsTime>,
}

impl<R> Settings<R> {
    pub(super) fn new(reason: CloseReason) -> Self {
        Self {
            peers: Peers::default(),
            surplus: Surplus::default(),
            at_once: AT_ONCE,
            refusals: Refusals::new(reason),
            reason,
            room: Arc::new(Room::new(reason)),
            keeps_time: Arc::default(),
        }
    }

    pub(super) fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Checks that the runtime can keep time, if that is needed.
    pub(super) fn check_time(&self) -> Result<(), BoxError> {
        match self.surplus {
            Surplus::Reset => Ok(()),
            Surplus::WaitUpTo(_) | Surplus::LastWord(_) => Ok(self.keeps_time.check()?),
        }
    }

    /// How long one of the surplus may wait, and its seat meanwhile.
    pub(super) fn may_wait(&self) -> Option<(Duration, Seat)> {
        match self.surplus {
            Surplus::WaitUpTo(time) if !time.is_zero() => {
                Some((time, self.room.enter(self.at_once)?))
            }
            _ => None,
        }
    }
}

impl<R> Settings<R>
where
    R: Into<BoxError> + Send + 'static,
{
    /// Holds a connection until it may come in, or `by` is past; then it is reset.
    pub(super) fn hold<I: Io, F: Future>(
        &self,
        conn: Conn<I>,
        seat: Seat,
        by: Option<Instant>,
        until: F,
        refusal: R,
    ) -> impl Future<Output = Result<(Conn<I>, F::Output), BoxError>> + use<I, F, R> {
        let (refusals, reason) = (self.refusals.clone(), self.reason);
        async move {
            let waited = wait(conn.info(), by, until).await;
            drop(seat);
            match waited {
                Ok(done) => {
                    // We kept the peer waiting, so the time of its next handshake begins anew.
                    conn.info().handshakes_done();
                    return Ok((conn, done));
                }
                Err(NoMore::Left(reason)) => conn.refuse(reason),
                Err(NoMore::Late) => {
                    refusals.refuse();
                    conn.refuse(reason);
                }
            }
            Err(refusal.into())
        }
    }

    /// Turns a connection away, with a last word if there is to be one.
    pub(super) fn turn_away<S, I, J>(&self, conn: Conn<I>, refusal: R, service: &S) -> Staged<S, J>
    where
        S: Service<Conn<J>> + Clone,
        I: Io,
        J: 'static,
    {
        self.refusals.refuse();
        if let Surplus::LastWord(word) = &self.surplus {
            if let Some(seat) = self.room.enter(self.at_once) {
                conn.info().end_with(self.reason);
                let word = word.clone();
                let speaks = async move {
                    // Asked for here, since it is the user's: nobody else must wait for it.
                    let word = word.on(&refusal, conn.info());
                    speak(conn, word).await;
                    drop(seat);
                    Err(refusal.into())
                };
                // Never called. The one that was made ready is for the next, with all that it has reserved.
                return Staged::after(speaks, service.clone());
            }
        }
        conn.refuse(self.reason);
        Staged::refused(refusal)
    }
}

/// A table that counts whom it forgets.
pub(super) fn table(capacity: usize, reason: CloseReason) -> Table {
    let evictions = counter!(
        "tower_net_peer_table_evictions_total",
        "reason" => reason.label()
    );
    Table::new(capacity, move || evictions.increment(1))
}

pub(super) fn not_zero(setting: &'static str, number: usize) -> Result<usize, ConfigError> {
    match number {
        0 => Err(ConfigError::zero(setting)),
        number => Ok(number),
    }
}

/// The setters of a layer with `shared` (which has `with_capacity`) and `settings`.
macro_rules! peer_setters {
    ($refusal:ty) => {
        /// What to do with the surplus. Default: [`Surplus::Reset`].
        #[must_use]
        pub fn surplus(mut self, surplus: Surplus<$refusal>) -> Self {
            self.settings.surplus = surplus;
            self
        }

        /// How many of the surplus may wait, or be told their last word, at once, over all peers; beyond it they
        /// are reset. Default: 1024.
        ///
        /// # Errors
        ///
        /// Zero: say [`Surplus::Reset`].
        pub fn surplus_at_once(mut self, connections: usize) -> Result<Self, ConfigError> {
            self.settings.at_once = settings::not_zero("surplus_at_once", connections)?;
            Ok(self)
        }

        /// Peers in these networks have no limit, and are not counted. Default: none.
        #[must_use]
        pub fn exempt(mut self, networks: Networks) -> Self {
            self.settings.peers.exempt = Arc::new(networks);
            self
        }

        /// How many peers can be remembered at once; the [module](crate::limit) says what happens beyond.
        /// Default: 65,536, which takes 2.4 MB once all of it has been used.
        ///
        /// The table begins anew: clones and handles that were made before do not count with this one.
        ///
        /// # Errors
        ///
        /// Zero, or more than 67,108,864.
        pub fn capacity(mut self, peers: usize) -> Result<Self, ConfigError> {
            let peers = peers::check_capacity(peers)?;
            self.shared = Arc::new(self.shared.with_capacity(peers));
            Ok(self)
        }

        /// How many bits of an IPv6 address tell peers apart. Default: 64, the least that a customer of a provider
        /// has.
        ///
        /// Layers that count together need the same; a handle shows networks as long as they were when it was made.
        ///
        /// # Errors
        ///
        /// Zero, or more than 128.
        pub fn ipv6_prefix(mut self, bits: u8) -> Result<Self, ConfigError> {
            self.settings.peers.ipv6_prefix = peers::check_prefix(bits)?;
            Ok(self)
        }

        /// Counts all peers without an IP address (on Unix sockets, in memory) as one peer. Default: off, they have
        /// no limit.
        #[must_use]
        pub fn count_unnamed(mut self, on: bool) -> Self {
            self.settings.peers.unnamed = on;
            self
        }

        /// Only counts what it would have refused or held, and serves it. Default: off.
        #[must_use]
        pub fn dry_run(mut self, on: bool) -> Self {
            self.settings.refusals.dry_run(on);
            self
        }
    };
}

pub(super) use peer_setters;
