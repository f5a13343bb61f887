//! The layers: siblings of one shape, none of which uses another.

pub mod deadline;
pub mod detect;
pub mod filter;
pub mod forward;
pub mod frame;
#[cfg(feature = "http")]
pub mod http;
pub mod limit;
pub mod meter;
pub mod pressure;
#[cfg(feature = "proxy-protocol")]
pub mod proxy_protocol;
pub mod throttle;
#[cfg(feature = "tls")]
pub mod tls;
pub mod trace;
