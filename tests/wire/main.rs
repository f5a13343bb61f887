//! Real sockets, real processes: what only the kernel can show.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test that fails may panic, and its threads and tasks are its own"
)]

mod accept;
mod child;
mod client;
mod connect;
mod descriptors;
mod detect;
#[cfg(feature = "dns")]
mod dns;
mod drain;
mod echo;
#[cfg(all(feature = "guard", feature = "tls"))]
mod forward;
mod frames;
mod guard;
mod http;
mod kernel;
mod limit;
mod listen;
mod multiplexed;
mod peer;
mod pool;
#[cfg(feature = "tls")]
mod pool_tls;
mod pressure;
#[cfg(feature = "proxy-protocol")]
mod proxy_protocol;
mod rpc;
mod server;
mod slow;
mod soak;
mod stack;
#[path = "../support/mod.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part of it"
)]
mod support;
#[cfg(feature = "tls")]
mod tls;
mod unix;
mod web;
