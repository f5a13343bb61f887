//! The connection, what is known of it, and how it ends.

mod addr;
mod connection;
mod control;
mod deadline;
mod ending;
mod info;
mod reason;
pub(crate) mod waits;
pub(crate) mod watch;

pub use self::{
    addr::Addr,
    connection::Conn,
    control::Suspended,
    deadline::Deadline,
    info::{ConnId, ConnInfo},
    reason::CloseReason,
    watch::Elapsed,
};
pub(crate) use self::{connection::reset_on_drop, deadline::Ambient};
