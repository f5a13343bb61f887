//! Limits how many connections there are.

mod connection;

pub use self::connection::{
    ConnectionLimit, ConnectionLimitFuture, ConnectionLimitHandle, ConnectionLimitLayer, Full,
    OverLimit, Place,
};
