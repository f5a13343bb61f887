//! The life of a connection, from the accept to the report.

mod accept;
mod backoff;
mod checklist;
mod connection;
mod descriptors;
mod drain;
#[cfg(feature = "guard")]
pub mod guard;
mod live;
#[cfg(test)]
mod quiet;
mod report;
mod serve;

pub use self::{
    backoff::{AcceptError, Backoff, Next},
    checklist::Checklist,
    descriptors::{Descriptors, raise_descriptor_limit},
    report::{Report, Straggler},
    serve::{Serve, ServeCause, ServeError, ServeFuture, Server, ServerHandle},
};
