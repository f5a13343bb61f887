//! What tower-net's own files, compiled here once more in `checks`, ask of their crate.

pub(crate) mod sync {
    pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};
}
