//! How a connection of a client ends, and what becomes of the calls that it has.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use tokio::io::AsyncWrite;

use crate::{
    base::io::Io,
    conn::CloseReason,
    outbound::client::{
        Disconnected, SharedError,
        driver::Driver,
        flight::Sent,
        protocol::Protocol,
        table::{End, Fate, Lost, lock},
    },
};

impl<I, P, Q, R> Driver<I, P, Q, R>
where
    I: Io,
    P: Protocol<Q, Reply = R>,
    Q: Clone,
{
    /// The connection is lost, and with it what is in flight: it fails, or is sent once more.
    pub(super) fn lose(mut self, disconnected: Disconnected) {
        let disconnected = match (self.told.take(), disconnected) {
            (Some(failure), Disconnected::Ended | Disconnected::Io(_)) => {
                Disconnected::Told(failure)
            }
            (_, disconnected) => disconnected,
        };
        tracing::debug!(conn = %self.conn.info().id(), error = %disconnected, "client connection lost");
        let reason = match disconnected {
            Disconnected::Ended | Disconnected::Told(_) => CloseReason::Peer,
            Disconnected::Protocol(_) => CloseReason::Protocol,
            Disconnected::Stalled(_) => CloseReason::WriteStall,
            Disconnected::Io(_) | Disconnected::Aborted => CloseReason::Reset,
        };
        self.conn.info().end_with(reason);
        let error: SharedError = Arc::new(disconnected);
        self.retire(&End::Lost {
            error: SharedError::clone(&error),
            fruitless: !self.used,
        });
        let (lost, reached) = (self.flight.take_above(0), self.reached());
        self.give_back(lost, &error, |sent| fate(sent, reached));
    }

    /// Nothing can be written any more: what is in flight and of which nothing was sent fails, or is sent once more.
    pub(super) fn give_up_unsent(&mut self) {
        let reached = self.reached();
        let unsent = self.flight.take_from(reached);
        if unsent.is_empty() {
            return;
        }
        let broken = self.broken.as_ref();
        let broken = broken.map_or(Disconnected::Ended, |error| Disconnected::Io(copy(error)));
        let error: SharedError = Arc::new(broken);
        self.give_back(unsent, &error, |sent| fate(sent, reached));
    }

    /// Calls that this connection will not answer; `fate` says whether nobody has begun with one, and what may become of
    /// it.
    pub(super) fn give_back(
        &self,
        calls: Vec<Sent>,
        error: &SharedError,
        fate: impl Fn(&Sent) -> (bool, Fate),
    ) {
        let lost = |sent: &Sent| {
            let (unsent, fate) = fate(sent);
            Lost {
                key: sent.key,
                id: sent.id,
                unsent,
                fate,
            }
        };
        let lost: Vec<_> = calls.iter().map(lost).collect();
        let shared = &self.shared;
        let error = || SharedError::clone(error);
        let may_retry = || shared.may_retry();
        let todo = lock(&shared.table).lose(self.link, &lost, error, may_retry);
        shared.settle(todo);
    }

    /// Ends the connection in order, which a peer has only so long to let happen.
    pub(super) async fn close(&mut self) {
        let conn = &mut self.conn;
        let shutdown = std::future::poll_fn(|cx| Pin::new(&mut *conn).poll_shutdown(cx));
        // Whatever becomes of it, it is dropped now.
        let _ended = tokio::time::timeout(CLOSE, shutdown).await;
    }
}

impl<I: Io, P, Q, R> Driver<I, P, Q, R> {
    /// How far the peer may have come in all that was ever queued.
    ///
    /// That is what the stream says it took; but one that keeps bytes of its own, as TLS does, may have taken some in a
    /// write that then failed. Where bytes may go past it through a pipe, nothing keeps any: what a socket refuses was
    /// not sent.
    fn reached(&self) -> u64 {
        if self.writing && !self.conn.takes_pipes() {
            self.output.queued()
        } else {
            self.output.written()
        }
    }
}

impl<I: Io, P, Q, R> Drop for Driver<I, P, Q, R> {
    fn drop(&mut self) {
        self.shared
            .metrics
            .connections
            .decrement(1.0);
        let reached = self.reached();
        // In order nothing is left by now; else the task was dropped where it stood.
        let lost = self.flight.take_above(0);
        if lost.is_empty() {
            return;
        }
        let lost: Vec<_> = lost
            .iter()
            .map(|sent| Lost {
                key: sent.key,
                id: sent.id,
                unsent: sent.at >= reached,
                fate: Fate::Over,
            })
            .collect();
        let error: SharedError = Arc::new(Disconnected::Aborted);
        let error = || SharedError::clone(&error);
        let todo = lock(&self.shared.table).lose(self.link, &lost, error, || false);
        self.shared.settle(todo);
    }
}

/// Whether nobody can have begun with a call that is lost, and what may become of it.
fn fate(sent: &Sent, reached: u64) -> (bool, Fate) {
    let unsent = sent.at >= reached;
    let fate = match unsent && sent.reused {
        true => Fate::Again,
        false => Fate::Over,
    };
    (unsent, fate)
}

/// The same error once more: the connection is yet to end with it.
fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(
        || io::Error::new(error.kind(), error.to_string()),
        io::Error::from_raw_os_error,
    )
}

/// For a goodbye to be taken.
const CLOSE: Duration = Duration::from_secs(1);
