//! The life of a connection, from the accept to the report.

mod accept;
#[cfg(feature = "axum")]
mod axum;
mod backoff;
mod checklist;
mod connection;
mod descriptors;
mod drain;
#[cfg(feature = "guard")]
pub mod guard;
mod incoming;
mod live;
#[cfg(test)]
mod quiet;
mod report;
mod serve;
#[cfg(feature = "tonic")]
mod tonic;

#[cfg(feature = "axum")]
pub use self::axum::AxumIncoming;
pub use self::{
    backoff::{AcceptError, Backoff, Next},
    checklist::Checklist,
    descriptors::{Descriptors, raise_descriptor_limit},
    incoming::{HandOut, HandOutFuture, Incoming, IncomingIo},
    report::{Report, Straggler},
    serve::{Serve, ServeCause, ServeError, ServeFuture, Server, ServerHandle},
};
