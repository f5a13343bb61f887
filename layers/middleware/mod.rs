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
#[cfg(feature = "tls")]
pub mod tls;
=======
pub mod pressure;
>>>>>>> 116f4c2 (pressure: sheds by descriptors, memory, lag and figures of one's own)
pub mod trace;
