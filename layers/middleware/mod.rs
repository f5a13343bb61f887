//! The layers: siblings of one shape, none of which uses another.

pub mod deadline;
pub mod filter;
pub mod detect;
pub mod frame;
pub mod limit;
pub mod meter;
#[cfg(feature = "proxy-protocol")]
pub mod proxy_protocol;
pub mod throttle;
pub mod trace;
