//! Listeners, with the settings that a service needs as plain setters.
//!
//! Every one of them is a [`tokio_util::net::Listener`], and [`Server`](crate::Server) takes any of those: a
//! listener of your own implements that trait, and its streams [`Io`](crate::io::Io).
//!
//! | listener | streams |
//! |---|---|
//! | [`Tcp`] | `tokio::net::TcpStream` |
//! | [`Unix`] | `tokio::net::UnixStream` |
//! | [`Any`] | either, by an address in a string: for settings files and flags |

mod any;
mod tcp;
mod unix;

pub use self::{
    any::{Any, AnyIo},
    tcp::{Tcp, TcpOptions},
    unix::{Unix, UnixOptions},
};
pub use crate::edge::options::Keepalive;
