//! Turns a service of requests into a service of connections: one stack, from the socket to the handler.
//!
//! **Where it goes**: innermost of the connection layers. What is above it sees [`Conn`]s, what is below it
//! sees [`Request`]s, and stock tower layers fit on either side.
//!
//! ```
//! use bytes::Bytes;
//! use tower::{ServiceBuilder, limit::GlobalConcurrencyLimitLayer};
//! use tower_net::frame::{FrameLayer, Framing, LengthDelimited, Request};
//!
//! let framing = Framing::default().pipelined(64);
//! let stack = ServiceBuilder::new()
//!     .layer(FrameLayer::with_framing(LengthDelimited::max_frame(1 << 20), framing)?)
//!     .layer(GlobalConcurrencyLimitLayer::new(4096))
//!     .service_fn(async |request: Request<Bytes>| Ok::<_, std::io::Error>(request.into_message()));
//! # drop(stack);
//! # Ok::<(), tower_net::error::ConfigError>(())
//! ```
//!
//! [`RpcLayer`] is the same for requests with ids, whose replies need not come in their order: a service of RPC.
//!
//! Any tokio-util `Decoder + Encoder` will do for a codec; [`LengthDelimited`], [`Delimited`] and [`RpcCodec`] are
//! ours. (Tokio-util's own length-delimited codec reserves what a peer announces; ours does not.) A request is a slice
//! of what was read with it, up to 64 KiB: a handler that keeps one for long copies it.
//!
//! # How it goes on
//!
//! Requests are decoded as they come, up to the [depth](Framing::pipelined). Each is handed to a handler,
//! which is polled at once; a reply that is ready is encoded there and then. When nothing is left to do
//! without waiting, everything queued goes out in one write and a flush. Then more is read. A connection that
//! waits holds no buffer in either direction.
//!
//! # How it ends
//!
//! Without ids; with them, see [`RpcLayer`].
//!
//! | what happens | what it does | reason |
//! |---|---|---|
//! | end of stream between frames | finishes what is in flight, closes | `peer` |
//! | end of stream inside a frame | the same, with an error | `protocol` |
//! | the same without a word, TLS without `close_notify` | the same; inside a frame the codec is not asked for a last one | `peer`, `protocol` |
//! | bytes that are no frame | finishes what is before them, a [last reply](LastReply), an orderly close | `protocol`, `oversize` |
//! | a frame over the limit that is skipped | a [last reply](LastReply) in its place, and on | |
//! | request late | as for bad bytes | `request` |
//! | handler late, failed or panicked | a last reply in its place, an orderly close | `handler`, `error`, `panic` |
//! | the notice to leave | finishes what has begun to arrive, an orderly close; if idle, at once | `drain`, `age`, `served` |
//! | reply late | a reset | `reply` |
//!
//! A handler that waits for something of its own (a long poll) is work under way, and waited for: it should wait for
//! [`told_to_leave`](crate::ConnInfo::told_to_leave) beside it, and answer early.
//!
//! An orderly close ends our side, then reads on and discards, so that the last reply is not lost to a reset: until
//! the peer ends its own, and at most as [`Linger`](crate::io::Linger) has it by default; for 1 s of silence while
//! leaving, and 5 s in all after a late request.
//!
//! # Readiness
//!
//! As a connection service it is always ready. The inner service is cloned for each connection and made ready
//! for each request, once there is one; while it is not, the connection reads no further.
//!
//! # Errors
//!
//! [`FrameError`], unless the connection ended well.
//!
//! # On drop
//!
//! Dropping the future drops the stream and every handler in flight. To get the stream back instead, with
//! what was read too much, see [`FrameFuture::into_parts`].

mod answer;
mod asked;
mod bells;
mod budget;
pub(crate) mod buffers;
mod close;
mod delimiter;
mod driver;
mod error;
mod flight;
mod length;
mod metrics;
mod park;
mod protocol;
mod request;
mod rpc;
mod seats;
mod serve;
mod settings;

pub use self::{
    delimiter::Delimited,
    error::{CodecError, FrameError},
    length::LengthDelimited,
    request::Request,
    rpc::{
        Correlated, Incoming, Outgoing, Rpc, RpcCode, RpcCodec, RpcFailure, RpcFrame, RpcFuture,
        RpcKind, RpcLayer,
    },
    serve::{Frame, FrameFuture, FrameLayer, FrameParts, LastReply, Silent},
    settings::Framing,
};
#[cfg(doc)]
use crate::conn::Conn;
