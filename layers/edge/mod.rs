//! Where streams begin.

pub mod connect;
#[cfg(feature = "dns")]
pub mod dns;
pub mod listen;
mod options;
mod sockopt;
