//! What the tests share.

pub mod exchange;
pub mod hello;
pub mod io;
pub mod peer;
pub mod pki;
pub mod process;
pub mod random;
pub mod readings;
pub mod rpc;
pub mod service;
pub mod tool;
