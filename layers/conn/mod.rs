//! The connection, what is known of it, and how it ends.

mod addr;
mod connection;
mod control;
mod deadline;
mod elapsed;
mod ending;
#[cfg(test)]
pub(crate) mod ending_size {
    pub(crate) type E = super::ending::Ending;
}
mod info;
mod progress;
mod reason;
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
