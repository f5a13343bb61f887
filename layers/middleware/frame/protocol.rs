//! What the driver must know of a protocol: whether its requests have ids, and how to say that one has no reply.

use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;
use tokio_util::codec::{Decoder, Encoder};

use crate::{
    base::error::BoxError,
    middleware::frame::{
        CodecError, Correlated, FrameError, Incoming, LastReply, Outgoing, RpcFailure,
        budget::RefusalBudget,
    },
};

/// How bytes become requests.
pub(super) trait Requests {
    /// What the service is asked.
    type Message;

    /// Which of the requests in flight it is. The default is none of them.
    type Id: Copy + Ord + Default;

    /// Requests have ids: one that comes to nothing is told so, and the others go on.
    const BY_ID: bool;

    type Frame;
    type DecodeError: Into<BoxError>;

    /// The next frame, if all of it is here.
    fn decode(
        &mut self,
        input: &mut BytesMut,
        ended: bool,
    ) -> Result<Option<Self::Frame>, Self::DecodeError>;

    /// What a frame is; an error if no peer may send it.
    fn sort(frame: Self::Frame) -> Inbound<Self::Id, Self::Message>;

    /// An id as it is told.
    fn number(_: Self::Id) -> u64 {
        0
    }

    /// Whether a request may be refused because its time is used up. If so it is paid for.
    fn may_refuse(&mut self, _: Instant) -> bool {
        true
    }
}

/// How replies become bytes. Who errs may have written something, which is taken back.
pub(super) trait Replies<R>: Requests {
    type EncodeError: Into<BoxError>;

    fn reply(
        &mut self,
        id: Self::Id,
        reply: R,
        out: &mut BytesMut,
    ) -> Result<(), Self::EncodeError>;

    /// The reply that tells of `error` in an order of replies.
    fn in_order(&self, error: &FrameError) -> Option<R>;

    /// Tells of `error` by id.
    fn fail(
        &mut self,
        id: Self::Id,
        error: &FrameError,
        out: &mut BytesMut,
    ) -> Result<(), Self::EncodeError>;

    /// Tells that nothing behind request `last` is taken.
    fn leave(&mut self, last: Self::Id, out: &mut BytesMut) -> Result<(), Self::EncodeError>;
}

/// What a frame is.
pub(super) enum Inbound<K, M> {
    Request {
        id: K,
        left: Option<Duration>,
        message: M,
    },
    Cancel(K),
    Refuse(K, RpcFailure),
    Nothing,
    Bad(CodecError),
}

/// Any codec: which request a reply belongs to is known by the order alone.
pub(super) struct InOrder<C, L> {
    pub(super) codec: C,
    pub(super) last: L,
}

impl<C, L> Requests for InOrder<C, L>
where
    C: Decoder,
    C::Error: Into<BoxError>,
{
    type Message = C::Item;
    type Id = ();
    const BY_ID: bool = false;

    type Frame = C::Item;
    type DecodeError = C::Error;

    #[inline]
    fn decode(&mut self, input: &mut BytesMut, ended: bool) -> Result<Option<C::Item>, C::Error> {
        decode(&mut self.codec, input, ended)
    }

    #[inline]
    fn sort(message: C::Item) -> Inbound<(), C::Item> {
        Inbound::Request {
            id: (),
            left: None,
            message,
        }
    }
}

impl<C, L, R> Replies<R> for InOrder<C, L>
where
    C: Decoder + Encoder<R>,
    <C as Decoder>::Error: Into<BoxError>,
    <C as Encoder<R>>::Error: Into<BoxError>,
    L: LastReply<R>,
{
    type EncodeError = <C as Encoder<R>>::Error;

    #[inline]
    fn reply(&mut self, (): (), reply: R, out: &mut BytesMut) -> Result<(), Self::EncodeError> {
        self.codec.encode(reply, out)
    }

    fn in_order(&self, error: &FrameError) -> Option<R> {
        self.last.last_reply(error)
    }

    fn fail(
        &mut self,
        (): (),
        error: &FrameError,
        out: &mut BytesMut,
    ) -> Result<(), Self::EncodeError> {
        match self.in_order(error) {
            Some(last) => self.reply((), last, out),
            None => Ok(()),
        }
    }

    fn leave(&mut self, (): (), _: &mut BytesMut) -> Result<(), Self::EncodeError> {
        Ok(())
    }
}

/// A codec whose messages tell which request they belong to.
pub(super) struct ById<C> {
    pub(super) codec: C,
    pub(super) budget: RefusalBudget,
}

impl<C> Requests for ById<C>
where
    C: Decoder<Item: Correlated>,
    C::Error: Into<BoxError>,
{
    type Message = <C::Item as Correlated>::Message;
    type Id = u64;
    const BY_ID: bool = true;

    type Frame = C::Item;
    type DecodeError = C::Error;

    #[inline]
    fn decode(&mut self, input: &mut BytesMut, ended: bool) -> Result<Option<C::Item>, C::Error> {
        decode(&mut self.codec, input, ended)
    }

    #[inline]
    fn sort(item: C::Item) -> Inbound<u64, Self::Message> {
        match item.sort() {
            Incoming::Request { id, left, message } => Inbound::Request { id, left, message },
            Incoming::Cancel { id } => Inbound::Cancel(id),
            Incoming::Refuse { id, failure } => Inbound::Refuse(id, failure),
            Incoming::Nothing => Inbound::Nothing,
            Incoming::Bad(error) => Inbound::Bad(error),
        }
    }

    fn number(id: u64) -> u64 {
        id
    }

    fn may_refuse(&mut self, now: Instant) -> bool {
        self.budget.take(now)
    }
}

impl<C, R> Replies<R> for ById<C>
where
    C: Decoder<Item: Correlated> + Encoder<Outgoing<R>>,
    <C as Decoder>::Error: Into<BoxError>,
    <C as Encoder<Outgoing<R>>>::Error: Into<BoxError>,
{
    type EncodeError = <C as Encoder<Outgoing<R>>>::Error;

    #[inline]
    fn reply(&mut self, id: u64, reply: R, out: &mut BytesMut) -> Result<(), Self::EncodeError> {
        self.budget.served();
        self.codec
            .encode(Outgoing::Reply { id, reply }, out)
    }

    fn in_order(&self, _: &FrameError) -> Option<R> {
        None
    }

    fn fail(
        &mut self,
        id: u64,
        error: &FrameError,
        out: &mut BytesMut,
    ) -> Result<(), Self::EncodeError> {
        let failure = RpcFailure::of(error);
        self.codec
            .encode(Outgoing::Failure { id, failure }, out)
    }

    fn leave(&mut self, last: u64, out: &mut BytesMut) -> Result<(), Self::EncodeError> {
        self.codec
            .encode(Outgoing::Leaving { last }, out)
    }
}

#[inline]
fn decode<C: Decoder>(
    codec: &mut C,
    input: &mut BytesMut,
    ended: bool,
) -> Result<Option<C::Item>, C::Error> {
    if ended {
        codec.decode_eof(input)
    } else {
        codec.decode(input)
    }
}
