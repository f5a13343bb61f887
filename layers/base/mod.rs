//! Bytes, clocks, failure: what every floor above stands on.

#[macro_use]
mod macros;

pub(crate) mod client_hello;
pub mod error;
#[cfg(feature = "http")]
pub(crate) mod http1;
pub(crate) mod http2;
pub mod io;
pub(crate) mod process;
pub(crate) mod sync;
pub(crate) mod time;

pub use self::process::open_descriptors;
