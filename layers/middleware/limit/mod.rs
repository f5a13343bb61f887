//! Limits how many connections are open at once, over every clone of the layer and every listener.
//!
//! **Where it goes**: right below the meter, so that a refusal costs nothing but is counted.
//!
//! ```
//! use tower::ServiceBuilder;
//! use tower_net::limit::{ConnectionLimitLayer, OverLimit};
//!
//! let reset_the_surplus = ConnectionLimitLayer::new(10_000)?;
//! let leave_it_in_the_backlog = ConnectionLimitLayer::new(10_000)?.over_limit(OverLimit::Wait);
//! let stack = ServiceBuilder::new().layer(reset_the_surplus);
//! # drop((stack, leave_it_in_the_backlog));
//! # Ok::<(), tower_net::error::ConfigError>(())
//! ```
//!
//! A place is held by the stream itself, through TLS, HTTP, upgrades and other tasks, and is free again
//! exactly when the stream is dropped: at a normal end, an error, a timeout, a panic, a cancel or a drain.
//!
//! # Readiness
//!
//! [`OverLimit::Reset`]: the inner service's. [`OverLimit::Wait`] and [`OverLimit::WaitUpTo`]: ready once
//! there is a place, which the service then holds until the call; a clone does not take it along, and dropping
//! the service gives it back.
//!
//! # Errors
//!
//! [`Full`] for a connection that was refused; it was reset, and nothing of it was read.
//!
//! # On drop
//!
//! Dropping the future drops the stream, and so frees the place.

mod connection;

pub use self::connection::{
    ConnectionLimit, ConnectionLimitFuture, ConnectionLimitHandle, ConnectionLimitLayer, Full,
    OverLimit, Place,
};
