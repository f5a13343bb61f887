//! Which connection is being polled on this thread, and with whose waker.
//!
//! Remembering a waker locks the bus, twice for each. A future or stream that is polled in its connection's own
//! turn need not: whoever took the turn has seen to it, and polls it again when there is something to hear.

use std::{cell::Cell, ptr, task::Context};

use crate::conn::ConnInfo;

/// The turn of one connection; the one before it goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    outer: Whose,
}

/// Compared by address and never followed: what is compared is alive, so the same address is the same thing.
#[derive(Debug, Clone, Copy)]
struct Whose {
    conn: *const ConnInfo,
    waker: *const (),
    /// The task's waker is remembered for as long as it stays the same, and not only until it is used.
    kept: bool,
}

impl Turn {
    /// The turn of a connection whose task the caller keeps registered.
    pub(crate) fn keep(cx: &Context<'_>, info: &ConnInfo) -> Self {
        Self::enter(cx, info, true)
    }

    /// The turn of a connection, whose task is registered here unless this is its turn already.
    pub(crate) fn take(cx: &Context<'_>, info: &ConnInfo) -> Self {
        if Self::is_own(cx, info) {
            return Self { outer: TURN.get() };
        }
        info.ending.register(cx.waker());
        Self::enter(cx, info, false)
    }

    /// The turn of a connection's handler that is polled by a task of its own. What it says of the connection it says
    /// of its own request; no stream that it polls is seen to.
    #[cfg(feature = "http")]
    pub(crate) fn lend(info: &ConnInfo) -> Self {
        Self {
            outer: TURN.replace(Whose {
                conn: info,
                waker: ptr::null(),
                kept: false,
            }),
        }
    }

    fn enter(cx: &Context<'_>, info: &ConnInfo, kept: bool) -> Self {
        Self {
            outer: TURN.replace(Whose {
                conn: info,
                waker: cx.waker().data(),
                kept,
            }),
        }
    }

    /// Whether it is the turn of this connection, by this waker. A waker without data could be anybody's.
    pub(crate) fn is_own(cx: &Context<'_>, info: &ConnInfo) -> bool {
        let turn = TURN.get();
        let waker = cx.waker().data();
        ptr::eq(turn.conn, info) && turn.waker == waker && !waker.is_null()
    }

    /// Whether something is being polled in a turn of this connection.
    pub(crate) fn is_of(info: &ConnInfo) -> bool {
        ptr::eq(TURN.get().conn, info)
    }

    /// Whether it is, and its task is kept registered.
    pub(crate) fn is_kept(cx: &Context<'_>, info: &ConnInfo) -> bool {
        Self::is_own(cx, info) && TURN.get().kept
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TURN.set(self.outer);
    }
}

thread_local! {
    static TURN: Cell<Whose> = const {
        Cell::new(Whose {
            conn: ptr::null(),
            waker: ptr::null(),
            kept: false,
        })
    };
}
