//! Bytes, clocks, failure: what every floor above stands on.

#[macro_use]
mod macros;

pub mod error;
pub mod io;
pub(crate) mod time;
