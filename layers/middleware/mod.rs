//! The layers: siblings of one shape, none of which uses another.

pub mod deadline;
pub mod filter;
pub mod detect;
pub mod frame;
pub mod limit;
pub mod meter;
<<<<<<< HEAD
#[cfg(feature = "proxy-protocol")]
pub mod proxy_protocol;
pub mod throttle;
=======
#[cfg(feature = "tls")]
pub mod tls;
>>>>>>> 9a3cabc (tls: accept as a layer, swappable configuration, certificates by name)
pub mod trace;
