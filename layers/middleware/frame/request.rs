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
    pub fn new(message: T, conn: &Arc<ConnInfo>) -> Self {
        Self {
            message,
            conn: ConnRef::to(conn),
        }
    }

    /// The message.
    pub fn message(&self) -> &T {
        &self.message
    }

    /// The message alone.
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
        let spare = match SPARE.take() {
            Spare::Unwanted => None,
            Spare::Wanted => {
                SPARE.set(Spare::Wanted);
                None
            }
            Spare::Kept(spare) => {
                SPARE.set(Spare::Wanted);
                Some(spare).filter(|spare| Arc::ptr_eq(spare, conn))
            }
        };
        Self(Some(spare.unwrap_or_else(|| Arc::clone(conn))))
    }
}

impl Drop for ConnRef {
    #[inline]
    fn drop(&mut self) {
        // A thread that is ending has no place to keep it any more.
        let _ended = SPARE.try_with(|spare| match spare.take() {
            Spare::Wanted => spare.set(
                self.0
                    .take()
                    .map_or(Spare::Wanted, Spare::Kept),
            ),
            other => spare.set(other),
        });
    }
}

/// A burst of requests on this thread: references are handed on until it is dropped.
#[derive(Debug)]
pub(super) struct Burst {
    outer: Spare,
}

impl Burst {
    pub(super) fn begin() -> Self {
        Self {
            outer: SPARE.replace(Spare::Wanted),
        }
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        SPARE.set(std::mem::take(&mut self.outer));
    }
}

/// The reference that the last request of the burst has left.
#[derive(Debug, Default)]
enum Spare {
    /// There is no burst.
    #[default]
    Unwanted,
    Wanted,
    Kept(Arc<ConnInfo>),
}

thread_local! {
    static SPARE: Cell<Spare> = const { Cell::new(Spare::Unwanted) };
}
