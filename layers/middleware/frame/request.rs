use std::sync::Arc;

use crate::conn::{ConnInfo, Deadline};

/// A request: the message, and the connection it came on.
#[derive(Debug)]
pub struct Request<T> {
    message: T,
    conn: Arc<ConnInfo>,
}

impl<T> Request<T> {
    /// A request that came on `conn`.
    pub fn new(message: T, conn: Arc<ConnInfo>) -> Self {
        Self { message, conn }
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
        &self.conn
    }

    /// By when the reply must be there. Ask in the handler, before it hands the work to another task: see
    /// [`Deadline::current`].
    pub fn deadline(&self) -> Deadline {
        Deadline::current()
    }
}
