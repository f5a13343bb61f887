use std::{cell::Cell, sync::Arc};

use crate::conn::{ConnInfo, Deadline};

/// A request: the message, and the connection it came on.
#[derive(Debug)]
pub struct Request<T> {
    message: T,
    conn: ConnRef,
}

impl<T> Request<T> {
    /// A request that came on `conn`.
    #[inline]
    pub fn new(message: T, conn: &Arc<ConnInfo>) -> Self {
        Self {
            message,
            conn: ConnRef::to(conn),
        }
    }

    /// The message.
    #[inline]
    pub fn message(&self) -> &T {
        &self.message
    }

    /// The message alone.
    #[inline]
    pub fn into_message(self) -> T {
        self.message
    }

    /// The same request with another message, usually the old one parsed.
    pub fn map<U>(self, map: impl FnOnce(T) -> U) -> Request<U> {
        Request {
            message: map(self.message),
            conn: self.conn,
        }
    }

    /// The connection: the peer, and the handle to extend a deadline or to close after this reply.
    pub fn conn(&self) -> &Arc<ConnInfo> {
        let conn = self.conn.0.as_ref();
        conn.expect("only its drop takes it")
    }

    /// By when the reply must be there. Ask in the handler, before it hands the work to another task: see
    /// [`Deadline::current`].
    pub fn deadline(&self) -> Deadline {
        Deadline::current()
    }
}

/// A reference to the connection, handed from one request to the next.
///
/// Counting references costs more than many a handler. While a connection takes a burst of requests, and as
/// long as handlers answer at once, the reference that one request gives up is the one that the next takes.
#[derive(Debug)]
struct ConnRef(Option<Arc<ConnInfo>>);

impl ConnRef {
    #[inline]
    fn to(conn: &Arc<ConnInfo>) -> Self {
        let last = LAST
            .take()
            .filter(|last| Arc::ptr_eq(last, conn));
        Self(Some(last.unwrap_or_else(|| Arc::clone(conn))))
    }
}

impl Drop for ConnRef {
    #[inline]
    fn drop(&mut self) {
        if BURST.get() {
            // A thread that is ending has no place to keep it any more.
            let _ended = LAST.try_with(|last| last.set(self.0.take()));
        }
    }
}

/// A burst of requests on this thread: references are handed on until it is dropped, and no longer, so that
/// none outlives its connection.
#[derive(Debug)]
pub(super) struct Burst {
    outer: bool,
}

impl Burst {
    pub(super) fn begin() -> Self {
        Self {
            outer: BURST.replace(true),
        }
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        BURST.set(self.outer);
        drop(LAST.take());
    }
}

thread_local! {
    static BURST: Cell<bool> = const { Cell::new(false) };

    /// The reference that the last request of a burst has left.
    static LAST: Cell<Option<Arc<ConnInfo>>> = const { Cell::new(None) };
}
