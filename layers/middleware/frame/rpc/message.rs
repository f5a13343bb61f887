use std::time::Duration;

use bytes::Bytes;

use crate::{
    conn::Deadline,
    middleware::frame::{CodecError, RpcFailure},
};

/// One frame of the RPC framing, in either direction. How it looks on the wire is with [`RpcCodec`](crate::frame::RpcCodec).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RpcFrame {
    /// Work to do, from client to server.
    #[non_exhaustive]
    Request {
        /// Above that of every request before it on the connection, and not zero.
        id: u64,
        /// How long the caller will wait; `None` for as long as it takes.
        left: Option<Duration>,
        /// The request itself.
        payload: Bytes,
    },
    /// What came of a request.
    #[non_exhaustive]
    Reply {
        /// That of the request.
        id: u64,
        /// The reply itself.
        payload: Bytes,
    },
    /// Why a request has no reply; with id zero, why the connection ends.
    #[non_exhaustive]
    Failure {
        /// That of the request, or zero.
        id: u64,
        /// Why.
        failure: RpcFailure,
    },
    /// Nobody waits for the reply any more.
    #[non_exhaustive]
    Cancel {
        /// That of the request.
        id: u64,
    },
    /// No new requests are taken; those up to an id are answered.
    #[non_exhaustive]
    Leaving {
        /// The id of the last request that was taken. Those above it were never begun.
        last: u64,
    },
    /// Only ever received: a request, a reply or a failure of which no more could be understood. The stream goes on
    /// behind it.
    #[non_exhaustive]
    Unreadable {
        /// Its id.
        id: u64,
        /// What it is.
        kind: RpcKind,
        /// Why: [`Oversize`](crate::frame::RpcCode::Oversize) or [`NotUnderstood`](crate::frame::RpcCode::NotUnderstood).
        failure: RpcFailure,
    },
}

impl RpcFrame {
    /// A request that is to be answered by `deadline`, from which the time left is taken now.
    pub fn request(id: u64, deadline: Deadline, payload: impl Into<Bytes>) -> Self {
        let left = deadline
            .instant()
            .map(|_| deadline.remaining());
        Self::Request {
            id,
            left,
            payload: payload.into(),
        }
    }

    /// The reply to request `id`.
    pub fn reply(id: u64, payload: impl Into<Bytes>) -> Self {
        Self::Reply {
            id,
            payload: payload.into(),
        }
    }

    /// Why request `id` has no reply; for id zero, why the connection ends.
    #[must_use]
    pub fn failure(id: u64, failure: RpcFailure) -> Self {
        Self::Failure { id, failure }
    }

    /// Nobody waits for the reply to request `id` any more.
    #[must_use]
    pub fn cancel(id: u64) -> Self {
        Self::Cancel { id }
    }

    /// No requests above `last` are taken.
    #[must_use]
    pub fn leaving(last: u64) -> Self {
        Self::Leaving { last }
    }

    /// The id of the request that it is about; zero for the connection as a whole.
    #[must_use]
    pub fn id(&self) -> u64 {
        match self {
            Self::Request { id, .. }
            | Self::Reply { id, .. }
            | Self::Failure { id, .. }
            | Self::Cancel { id }
            | Self::Unreadable { id, .. } => *id,
            Self::Leaving { .. } => 0,
        }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> RpcKind {
        match self {
            Self::Request { .. } => RpcKind::Request,
            Self::Reply { .. } => RpcKind::Reply,
            Self::Failure { .. } => RpcKind::Failure,
            Self::Cancel { .. } => RpcKind::Cancel,
            Self::Leaving { .. } => RpcKind::Leaving,
            Self::Unreadable { kind, .. } => *kind,
        }
    }
}

/// The kinds of frames, with their numbers on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum RpcKind {
    /// 1.
    Request = 1,
    /// 2.
    Reply = 2,
    /// 3.
    Failure = 3,
    /// 4.
    Cancel = 4,
    /// 5.
    Leaving = 5,
}

impl RpcKind {
    /// The kind of a number on the wire, if there is one.
    #[must_use]
    #[inline]
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Reply,
            3 => Self::Failure,
            4 => Self::Cancel,
            5 => Self::Leaving,
            _ => return None,
        })
    }

    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// What a server reads from a codec whose requests have ids, whatever the protocol.
///
/// A codec of your own that decodes to this, and encodes [`Outgoing`], is multiplexed by
/// [`RpcLayer`](crate::frame::RpcLayer) as ours is.
#[derive(Debug)]
#[non_exhaustive]
pub enum Incoming<M> {
    /// Work to do.
    Request {
        /// Unlike that of any other request in flight on the connection.
        id: u64,
        /// How long the caller will wait, if it says so.
        left: Option<Duration>,
        /// What the service is asked.
        message: M,
    },
    /// Nobody waits for the reply any more.
    Cancel {
        /// That of the request. If it is not in flight, nothing happens.
        id: u64,
    },
    /// A request that is answered with a failure, unread.
    Refuse {
        /// Its id.
        id: u64,
        /// Why.
        failure: RpcFailure,
    },
    /// What means nothing here. The connection goes on.
    Nothing,
    /// What no client may send. The connection ends.
    Bad(CodecError),
}

/// What a server writes to a codec whose requests have ids.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outgoing<R> {
    /// What came of a request.
    Reply {
        /// That of the request.
        id: u64,
        /// What the service answered.
        reply: R,
    },
    /// Why a request has no reply. A protocol that has no words for it writes nothing.
    Failure {
        /// That of the request, or zero: why the connection ends.
        id: u64,
        /// Why.
        failure: RpcFailure,
    },
    /// No more requests are taken. A protocol that has no words for it writes nothing.
    Leaving {
        /// The highest id of those that were taken, zero if there was none.
        last: u64,
    },
}

/// A message that tells which request it belongs to.
///
/// Implemented by [`RpcFrame`], and by [`Incoming`] itself.
pub trait Correlated {
    /// What the service is asked.
    type Message;

    /// What a server is to do with it.
    fn sort(self) -> Incoming<Self::Message>;
}

impl<M> Correlated for Incoming<M> {
    type Message = M;

    #[inline]
    fn sort(self) -> Self {
        self
    }
}

impl Correlated for RpcFrame {
    type Message = Bytes;

    #[inline]
    fn sort(self) -> Incoming<Bytes> {
        match self {
            Self::Request { id, left, payload } => Incoming::Request {
                id,
                left,
                message: payload,
            },
            Self::Cancel { id } => Incoming::Cancel { id },
            Self::Unreadable {
                id,
                kind: RpcKind::Request,
                failure,
            } => Incoming::Refuse { id, failure },
            // A client that leaves says so by ending its side; the words are for a server's ears only if it is asked to
            // do work both ways, which no version does.
            Self::Leaving { .. } => Incoming::Nothing,
            Self::Reply { .. } | Self::Failure { .. } | Self::Unreadable { .. } => {
                Incoming::Bad(CodecError::BadKind {
                    kind: self.kind().number(),
                })
            }
        }
    }
}
