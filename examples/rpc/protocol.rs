//! What client and server say to each other: typed messages by postcard, each in a frame of its own with a
//! big-endian `u32` length in front.
//!
//! Replies come in the order of their calls. A refusal is a reply like any other, so that a client always
//! learns in the protocol's own terms why it got nothing better. Multiplexed, the same messages are the payloads of
//! tower-net's own RPC framing.

use std::{fmt, marker::PhantomData};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio_util::codec::{Decoder, Encoder};
use tower_net::{
    CloseReason,
    error::BoxError,
    frame::{FrameError, LengthDelimited},
};

/// How calls travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Each in a frame of its own, answered in their order.
    #[default]
    Pipelined,
    /// In the RPC framing: answered in any order, with the time that the caller has left, and word if he gives up.
    Multiplexed,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pipelined => "pipelined",
            Self::Multiplexed => "multiplexed",
        })
    }
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Call {
    /// The value of a key.
    Get { key: String },
    /// Sets the value of a key.
    Put { key: String, value: String },
    /// Removes a key.
    Delete { key: String },
    /// The first keys that begin with `prefix`, in order, `limit` of them at most.
    Scan { prefix: String, limit: u32 },
    /// The value of a key as soon as it is another than the one `seen`. To name what one has seen loses no
    /// change, however many calls a long wait takes.
    Wait { key: String, seen: Option<String> },
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// To `Get` and `Wait`: the value, if there is one.
    Value(Option<String>),
    /// To `Put`: whether there was a value before.
    Stored { replaced: bool },
    /// To `Delete`: whether there was anything to remove.
    Deleted { existed: bool },
    /// To `Scan`: what was found, and whether there is more behind it.
    Entries {
        entries: Vec<(String, String)>,
        more: bool,
    },
    /// To `Wait`: nothing has changed for as long as a reply may take. Ask again.
    Unchanged,
    /// To anything.
    Refused(Refusal),
}

/// Why there is no better reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// The service failed; whether the call took effect is not known.
    Failed,
    /// The store takes no more keys.
    Full,
    /// The call was not complete in time, or its reply was not ready in time.
    Late,
    /// The frame held no call.
    Malformed,
    /// The frame or the entry was over the limit.
    TooLarge,
}

/// The last reply on a connection that is about to end, if there is something to tell.
pub(crate) fn last_reply(error: &FrameError) -> Option<Reply> {
    Some(Reply::Refused(match error.reason() {
        CloseReason::Error | CloseReason::Panic => Refusal::Failed,
        CloseReason::Handler | CloseReason::Request => Refusal::Late,
        CloseReason::Oversize => Refusal::TooLarge,
        CloseReason::Protocol => Refusal::Malformed,
        _ => return None,
    }))
}

/// Frames that hold an `In` one way and an `Out` the other.
#[derive(Debug, Clone)]
pub(crate) struct Typed<In, Out> {
    frames: LengthDelimited,
    types: PhantomData<fn(Out) -> In>,
}

/// The server's side of the wire.
pub(crate) type ServerCodec = Typed<Call, Reply>;

/// The client's side of it.
pub(crate) type ClientCodec = Typed<Reply, Call>;

impl<In, Out> Typed<In, Out> {
    pub(crate) fn new() -> Self {
        Self {
            frames: LengthDelimited::max_frame(MAX_FRAME),
            types: PhantomData,
        }
    }
}

impl<In: DeserializeOwned, Out> Decoder for Typed<In, Out> {
    type Item = In;
    type Error = BoxError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<In>, BoxError> {
        let frame = self.frames.decode(input)?;
        frame.map(parse).transpose()
    }

    fn decode_eof(&mut self, input: &mut BytesMut) -> Result<Option<In>, BoxError> {
        let frame = self.frames.decode_eof(input)?;
        frame.map(parse).transpose()
    }
}

impl<In, Out: Serialize> Encoder<Out> for Typed<In, Out> {
    type Error = BoxError;

    fn encode(&mut self, message: Out, output: &mut BytesMut) -> Result<(), BoxError> {
        Ok(self
            .frames
            .encode(encode(&message)?, output)?)
    }
}

/// A message as bytes, for a frame that has other things in it as well.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Bytes, BoxError> {
    Ok(postcard::to_stdvec(message)?.into())
}

/// And back.
pub(crate) fn parse<T: DeserializeOwned>(frame: Bytes) -> Result<T, BoxError> {
    match postcard::take_from_bytes(&frame)? {
        (message, []) => Ok(message),
        (_, rest) => Err(format!("{} bytes behind the message", rest.len()).into()),
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(Some(value)) => write!(f, "value {value:?}"),
            Self::Value(None) => f.write_str("absent"),
            Self::Stored { replaced: false } => f.write_str("stored"),
            Self::Stored { replaced: true } => f.write_str("replaced"),
            Self::Deleted { existed: true } => f.write_str("deleted"),
            Self::Deleted { existed: false } => f.write_str("absent"),
            Self::Entries { entries, more } => {
                write!(f, "{} found", entries.len())?;
                for (key, value) in entries {
                    write!(f, "\n{key:?} {value:?}")?;
                }
                f.write_str(if *more { "\nand more" } else { "" })
            }
            Self::Unchanged => f.write_str("unchanged"),
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "the service failed",
            Self::Full => "the store is full",
            Self::Late => "it took too long",
            Self::Malformed => "it is no call",
            Self::TooLarge => "it is too large",
        })
    }
}

/// The longest frame either side takes: a few of the largest entries.
pub(crate) const MAX_FRAME: usize = 256 * 1024;
