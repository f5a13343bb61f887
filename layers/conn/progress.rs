//! Finding out by looking twice whether anything has moved.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use crate::conn::{
    CloseReason, ConnInfo,
    waits::{NEVER, Stamp, Waits, plus},
    watch::Limits,
};

/// What was seen at the last look, and when it was first seen so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) seen: u64,
    at: Stamp,
}

impl Mark {
    pub(crate) const NONE: Self = Self { seen: NEVER, at: 0 };

    /// When it is over if what is seen now never changes; `fresh` if it is seen for the first time.
    pub(crate) fn over_by(
        &mut self,
        seen: u64,
        now: Stamp,
        limit: Duration,
        fresh: &mut bool,
    ) -> Stamp {
        if self.seen != seen {
            *self = Self { seen, at: now };
            *fresh = true;
        }
        plus(self.at, limit)
    }

    /// It is over and spared: not again before something else is seen.
    pub(crate) fn spare(&mut self) {
        self.at = NEVER;
    }
}

/// How fast bytes move, each way, over stretches of time.
#[derive(Debug)]
pub(crate) struct Rates {
    incoming: Window,
    outgoing: Window,
}

impl Rates {
    /// `None` if no rate is asked for, as for most connections.
    pub(crate) fn of(limits: &Limits) -> Option<Box<Self>> {
        (limits.min_rate_in > 0 || limits.min_rate_out > 0).then(|| Box::new(Self::NONE))
    }

    const NONE: Self = Self {
        incoming: Window::NONE,
        outgoing: Window::NONE,
    };

    pub(crate) fn clear(&mut self) {
        *self = Self::NONE;
    }

    /// Windows of waits that are over: what begins again begins anew.
    pub(crate) fn forget_what_ended(&mut self, waits: &Waits) {
        if !waits.receiving.get() || self.incoming.turn != waits.turn.load(Relaxed) {
            self.incoming = Window::NONE;
        }
        if !waits.is_stalled() {
            self.outgoing = Window::NONE;
        }
    }

    /// Whether something moves, or should, that has no window yet.
    pub(crate) fn must_look(&self, waits: &Waits, limits: &Limits) -> bool {
        (limits.min_rate_in > 0 && waits.receiving.get() && self.incoming.is_none())
            || (limits.min_rate_out > 0 && waits.is_stalled() && self.outgoing.is_none())
    }

    /// When to look next; `Err` if bytes have moved too slowly. What is spared is not too slow again before it
    /// has begun anew.
    pub(crate) fn look(
        &mut self,
        now: Stamp,
        waits: &Waits,
        limits: &Limits,
    ) -> Result<Stamp, TooSlow> {
        let span = limits.rate_window;
        let mut next = NEVER;
        if limits.min_rate_in > 0 && waits.receiving.get() {
            let turn = waits.turn.load(Relaxed);
            self.incoming
                .judge(waits.moved_in(), now, limits.min_rate_in, limits)?;
            next = self
                .incoming
                .open(turn, waits.moved_in(), now, span);
        }
        if limits.min_rate_out > 0 && waits.is_stalled() {
            self.outgoing
                .judge(waits.moved_out(), now, limits.min_rate_out, limits)?;
            next = next.min(
                self.outgoing
                    .open(0, waits.moved_out(), now, span),
            );
        }
        Ok(next)
    }
}

/// Bytes moved more slowly than they must.
pub(crate) struct TooSlow;

/// A stretch of time over which a rate is taken.
#[derive(Debug, Clone, Copy)]
struct Window {
    /// The request it belongs to.
    turn: u64,
    moved: u64,
    begun: Stamp,
}

impl Window {
    const NONE: Self = Self {
        turn: NEVER,
        moved: 0,
        begun: 0,
    };

    fn is_none(&self) -> bool {
        self.turn == NEVER
    }

    /// Closes the window if it is over, by what moved in it.
    fn judge(&mut self, moved: u64, now: Stamp, rate: u64, limits: &Limits) -> Result<(), TooSlow> {
        if self.is_none() || now < plus(self.begun, limits.rate_window) {
            return Ok(());
        }
        let due = u128::from(rate) * u128::from(now - self.begun) / 1_000_000_000;
        if u128::from(moved - self.moved) >= due {
            *self = Self::NONE;
        } else if limits.spares(CloseReason::MinRate) {
            // It never ends, until what it belongs to does.
            self.begun = NEVER;
        } else {
            return Err(TooSlow);
        }
        Ok(())
    }

    /// Opens a window unless one is open; returns when it ends.
    fn open(&mut self, turn: u64, moved: u64, now: Stamp, span: Duration) -> Stamp {
        if self.is_none() {
            *self = Self {
                turn,
                moved,
                begun: now,
            };
        }
        plus(self.begun, span)
    }
}

/// All that moved, in either direction: a reader that takes a byte now and then is not idle.
pub(crate) fn progress(info: &ConnInfo) -> u64 {
    info.waits
        .moved_in()
        .wrapping_add(info.waits.moved_out())
        // Never the mark of nothing seen.
        & (u64::MAX >> 1)
}
