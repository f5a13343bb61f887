//! The locks and atomics of code that is also run under a scheduler of its own: `tests/model` compiles the same
//! files with others of these names.

pub(crate) use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};
