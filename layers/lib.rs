//! Tower middleware for raw-stream services.

#[macro_use]
mod base;
mod conn;
mod edge;
mod middleware;
mod server;

pub use crate::{base::*, conn::*, edge::*, middleware::*, server::*};
