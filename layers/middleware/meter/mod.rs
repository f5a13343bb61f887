//! Counts connections and bytes as they pass.
//!
//! [`MeterLayer`] for connections that are accepted, [`MeterConnectLayer`] for those that a connector opens.
//!
//! **Where it goes**: outermost, to count the wire and everything that layers below refuse; below TLS, to
//! count plain text. The outermost one also keeps the counts in
//! [`ConnInfo`](crate::ConnInfo).
//!
//! ```
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_net::{Conn, meter::{MeterIo, MeterLayer}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> std::io::Result<()> {
//! let (layer, tally) = MeterLayer::pair("greeter");
//! let greeter = ServiceBuilder::new().layer(layer).service_fn(
//!     async |mut conn: Conn<MeterIo<_>>| tokio::io::AsyncWriteExt::write_all(&mut conn, b"hi").await,
//! );
//!
//! let (near, _far) = tokio::io::duplex(64);
//! greeter.oneshot(Conn::new(near, ())).await?;
//! assert_eq!((tally.snapshot().opened(), tally.snapshot().written()), (1, 2));
//! # Ok(())
//! # }
//! ```
//!
//! # Cost
//!
//! A read or write adds to two plain numbers of the connection. The shared ones take the sum when the
//! connection waits, or after 64 KiB without waiting: no lock, allocation or look-up of a name per operation.
//!
//! # Readiness
//!
//! The inner service's.
//!
//! # Errors
//!
//! None of its own. The stream's errors are passed on untouched, and not kept.
//!
//! # On drop
//!
//! A connection ends when its stream is dropped, wherever it was moved to, and is counted with its
//! [`CloseReason`](crate::CloseReason) at that moment: every one that was opened is closed exactly once.

mod accept;
mod connect;
mod stream;
mod tally;

pub use self::{
    accept::{Meter, MeterLayer},
    connect::{ConnectSnapshot, ConnectTally, MeterConnect, MeterConnectFuture, MeterConnectLayer},
    stream::MeterIo,
    tally::{Snapshot, Tally},
};
