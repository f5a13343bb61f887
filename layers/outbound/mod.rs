//! What keeps connections to others.

pub mod pool;
