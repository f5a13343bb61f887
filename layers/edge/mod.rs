//! Where streams begin.

pub mod listen;
