//! Requests with an id, so that replies need not come in their order.

mod codec;
mod failure;
mod message;
mod serve;

pub use self::{
    codec::RpcCodec,
    failure::{RpcCode, RpcFailure},
    message::{Correlated, Incoming, Outgoing, RpcFrame, RpcKind},
    serve::{Rpc, RpcFuture, RpcLayer},
};
