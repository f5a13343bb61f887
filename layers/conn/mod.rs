//! The connection, what is known of it, and how it ends.

mod addr;
mod connection;
mod control;
mod deadline;
mod elapsed;
mod ending;
mod info;
mod progress;
mod reason;
pub(crate) mod turn;
pub(crate) mod waits;
pub(crate) mod watch;

pub use self::{
    addr::Addr,
    connection::Conn,
    control::Suspended,
    deadline::Deadline,
    elapsed::Elapsed,
    info::{ConnId, ConnInfo},
    reason::CloseReason,
};
pub(crate) use self::{
    connection::reset_on_drop,
    deadline::{Ambient, Entered},
    info::Origin,
};
