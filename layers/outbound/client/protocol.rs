//! What a client and its peer say to each other: with ids, or by their order alone.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::{
    base::error::BoxError,
    middleware::frame::{CodecError, RpcCodec, RpcFailure, RpcFrame, RpcKind},
};

/// What a peer says.
#[derive(Debug)]
#[non_exhaustive]
pub enum Heard<R> {
    /// What came of a call.
    Answer {
        /// That of the call, in a protocol that has ids; without one it is the call that is next in order.
        id: Option<u64>,
        /// The reply, or why there is none.
        answer: Result<R, RpcFailure>,
    },
    /// It takes no more calls on this connection.
    Leaving {
        /// Calls with ids above this one it has not begun.
        last: u64,
    },
    /// It ends the connection, and says why.
    Ending(RpcFailure),
}

/// How calls `Q` are written and answers read.
///
/// Implemented by [`RpcCodec`], and by [`InOrder`] around any codec without ids. A protocol of your own that has ids
/// implements it to be multiplexed in the same way. It is cloned for each connection.
pub trait Protocol<Q>: Clone + Send + 'static {
    /// What a call comes to.
    type Reply;

    /// Whether an answer says to which call it belongs. If not, they come in the order of the calls.
    const HAS_IDS: bool;

    /// Writes a call, whose id is above that of every call before it on the connection and not zero, and how long its
    /// caller will wait, if there is an end to that.
    ///
    /// # Errors
    ///
    /// The call is none that can be written. What is in `out` of it by then is taken back.
    fn ask(
        &mut self,
        id: u64,
        left: Option<Duration>,
        call: Q,
        out: &mut BytesMut,
    ) -> Result<(), BoxError>;

    /// Writes that nobody waits for the answer any more, which only a protocol with ids is asked to. May write nothing.
    ///
    /// # Errors
    ///
    /// It cannot be written. What is in `out` of it by then is taken back.
    fn cancel(&mut self, id: u64, out: &mut BytesMut) -> Result<(), BoxError>;

    /// The next thing that the peer has said, if all of it is here, taken off the front of `input`; with `ended`, of
    /// what there will ever be.
    ///
    /// # Errors
    ///
    /// What is here is not of this protocol. The connection ends.
    fn hear(
        &mut self,
        input: &mut BytesMut,
        ended: bool,
    ) -> Result<Option<Heard<Self::Reply>>, BoxError>;
}

impl Protocol<Bytes> for RpcCodec {
    type Reply = Bytes;

    const HAS_IDS: bool = true;

    fn ask(
        &mut self,
        id: u64,
        left: Option<Duration>,
        call: Bytes,
        out: &mut BytesMut,
    ) -> Result<(), BoxError> {
        let payload = call;
        let frame = RpcFrame::Request { id, left, payload };
        Ok(self.encode(frame, out)?)
    }

    fn cancel(&mut self, id: u64, out: &mut BytesMut) -> Result<(), BoxError> {
        Ok(self.encode(RpcFrame::cancel(id), out)?)
    }

    fn hear(
        &mut self,
        input: &mut BytesMut,
        ended: bool,
    ) -> Result<Option<Heard<Bytes>>, BoxError> {
        let frame = if ended {
            self.decode_eof(input)?
        } else {
            self.decode(input)?
        };
        let Some(frame) = frame else {
            return Ok(None);
        };
        let answer = |id, answer| {
            let id = Some(id);
            Ok(Some(Heard::Answer { id, answer }))
        };
        match frame {
            RpcFrame::Reply { id, payload } => answer(id, Ok(payload)),
            RpcFrame::Failure { id: 0, failure } => Ok(Some(Heard::Ending(failure))),
            RpcFrame::Failure { id, failure } => answer(id, Err(failure)),
            RpcFrame::Leaving { last } => Ok(Some(Heard::Leaving { last })),
            RpcFrame::Unreadable {
                id,
                kind: RpcKind::Reply | RpcKind::Failure,
                failure,
            } => {
                // What could not be read was done all the same.
                let text = failure.text().to_owned();
                answer(id, Err(RpcFailure::new(failure.code(), text)))
            }
            RpcFrame::Request { .. } | RpcFrame::Cancel { .. } | RpcFrame::Unreadable { .. } => {
                let kind = frame.kind().number();
                Err(CodecError::BadKind { kind }.into())
            }
        }
    }
}

/// Any tokio-util codec, for a peer that answers in the order of its calls: pipelined.
///
/// Such frames have no room for an id, a deadline or a cancel. And an answer that nobody waits for any more is in the
/// way of those behind it: so once a call that was sent is given up, its connection takes no more calls, new ones go to
/// a new connection, and the old one is closed as soon as nobody waits for anything on it, which is how the peer learns
/// of it. Where calls are often given up, use [`RpcCodec`].
#[derive(Debug, Clone)]
pub struct InOrder<C> {
    codec: C,
}

impl<C> InOrder<C> {
    /// Frames by `codec`.
    #[must_use]
    pub fn new(codec: C) -> Self {
        Self { codec }
    }
}

impl<C, Q> Protocol<Q> for InOrder<C>
where
    C: Encoder<Q> + Decoder + Clone + Send + 'static,
    <C as Encoder<Q>>::Error: Into<BoxError>,
    <C as Decoder>::Error: Into<BoxError>,
{
    type Reply = C::Item;

    const HAS_IDS: bool = false;

    fn ask(
        &mut self,
        _: u64,
        _: Option<Duration>,
        call: Q,
        out: &mut BytesMut,
    ) -> Result<(), BoxError> {
        self.codec
            .encode(call, out)
            .map_err(Into::into)
    }

    fn cancel(&mut self, _: u64, _: &mut BytesMut) -> Result<(), BoxError> {
        Ok(())
    }

    fn hear(
        &mut self,
        input: &mut BytesMut,
        ended: bool,
    ) -> Result<Option<Heard<C::Item>>, BoxError> {
        let answer = if ended {
            self.codec.decode_eof(input)
        } else {
            self.codec.decode(input)
        };
        let answer = answer.map_err(Into::into)?;
        Ok(answer.map(|answer| Heard::Answer {
            id: None,
            answer: Ok(answer),
        }))
    }
}
