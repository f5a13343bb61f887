//! The connection, what is known of it, and how it ends.

mod addr;
mod admission;
mod connection;
mod control;
mod deadline;
mod elapsed;
mod ending;
mod facts;
mod handle;
#[cfg(any(feature = "proxy-protocol", feature = "tls"))]
pub(crate) mod handshakes;
mod info;
pub(crate) mod networks;
pub(crate) mod opening;
pub(crate) mod progress;
mod reason;
pub(crate) mod refusals;
pub(crate) mod safeguard;
pub(crate) mod spent;
pub(crate) mod staged;
pub(crate) mod strain;
pub(crate) mod turn;
pub(crate) mod waits;
pub(crate) mod watch;

#[cfg(any(feature = "proxy-protocol", feature = "tls"))]
pub use self::handshakes::{Handshakes, TooManyHandshakes};
pub use self::{
    addr::Addr,
    admission::Admission,
    connection::Conn,
    control::Suspended,
    deadline::{Deadline, DeadlineScope},
    elapsed::Elapsed,
    handle::ConnHandle,
    info::{ConnId, ConnInfo},
    networks::Networks,
    reason::CloseReason,
    safeguard::Safeguard,
    spent::Spent,
};
pub(crate) use self::{
    connection::reset_on_drop,
    deadline::{Ambient, Entered},
    info::Origin,
};
