use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use crate::conn::{Addr, CloseReason, ConnId, ConnInfo};

/// What a server did, given back when it has ended.
///
/// `opened` is always the sum of all that was closed and what is still [stuck](Self::stuck).
#[derive(Debug, Clone)]
pub struct Report {
    counts: Counts,
    stuck: u64,
    drained_in: Duration,
}

#[derive(Debug, Clone)]
pub(crate) struct Counts {
    pub(crate) opened: u64,
    pub(crate) closed: [u64; CloseReason::ALL.len()],
    pub(crate) finished: u64,
    pub(crate) idle: u64,
    pub(crate) cut: u64,
    pub(crate) accept_errors: BTreeMap<&'static str, u64>,
    pub(crate) stragglers: Vec<Straggler>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            opened: 0,
            closed: [0; CloseReason::ALL.len()],
            finished: 0,
            idle: 0,
            cut: 0,
            accept_errors: BTreeMap::new(),
            stragglers: Vec::new(),
        }
    }
}

impl Report {
    pub(crate) fn new(counts: Counts, stuck: usize, drained_in: Duration) -> Self {
        Self {
            counts,
            stuck: stuck as u64,
            drained_in,
        }
    }

    /// Connections accepted.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.counts.opened
    }

    /// Connections that ended, by reason; reasons that nothing ended for are left out.
    pub fn closed(&self) -> impl Iterator<Item = (CloseReason, u64)> {
        let all = CloseReason::ALL.iter().copied();
        all.map(|reason| (reason, self.closed_for(reason)))
            .filter(|(_, count)| *count > 0)
    }

    /// Connections that ended for `reason`.
    #[must_use]
    pub fn closed_for(&self, reason: CloseReason) -> u64 {
        self.counts.closed[reason.index()]
    }

    /// Of those open when the drain began: how many were at work, and finished it.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.counts.finished
    }

    /// Of those open when the drain began: how many were idle, and left.
    #[must_use]
    pub fn closed_idle(&self) -> u64 {
        self.counts.idle
    }

    /// How many were still open when the drain's time was up, and had to be cut.
    #[must_use]
    pub fn cut(&self) -> u64 {
        self.counts.cut + self.stuck
    }

    /// Of those cut: how many did not even end then, because their task never yields.
    #[must_use]
    pub fn stuck(&self) -> u64 {
        self.stuck
    }

    /// A few of those that were cut.
    #[must_use]
    pub fn stragglers(&self) -> &[Straggler] {
        &self.counts.stragglers
    }

    /// Errors of accept, by kind: see [`AcceptError::label`](crate::AcceptError::label).
    pub fn accept_errors(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let errors = self.counts.accept_errors.iter();
        errors.map(|(kind, count)| (*kind, *count))
    }

    /// How long the drain took.
    #[must_use]
    pub fn drained_in(&self) -> Duration {
        self.drained_in
    }

    /// Whether every connection ended by itself.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.cut() == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} opened; drained in {:.3?}: {} finished, {} idle, {} cut; closed:",
            self.opened(),
            self.drained_in,
            self.finished(),
            self.closed_idle(),
            self.cut(),
        )?;
        for (reason, count) in self.closed() {
            write!(f, " {reason} {count}")?;
        }
        Ok(())
    }
}

/// A connection that did not leave in time.
#[derive(Debug, Clone)]
pub struct Straggler {
    id: ConnId,
    peer: Addr,
    phase: &'static str,
    age: Duration,
}

impl Straggler {
    pub(crate) fn new(info: &Arc<ConnInfo>) -> Self {
        Self {
            id: info.id(),
            peer: info.peer().clone(),
            phase: info.phase(),
            age: info.age(),
        }
    }

    /// The connection's number.
    #[must_use]
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// The client.
    #[must_use]
    pub fn peer(&self) -> &Addr {
        &self.peer
    }

    /// What it was doing: `reading`, `receiving`, `handling`, `writing` or `serving`.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        self.phase
    }

    /// How old it was.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.age
    }
}
