//! Connectors: services that open a connection to a target.
//!
//! A connector is any `Service<Target, Response = Conn<I>>`, nothing more. [`TcpConnector`] and [`UnixConnector`] are
//! two; a closure that opens something else is a third. What a connection goes through before it is of use is a layer
//! around them, and reads from the bottom up: connect, PROXY header, TLS, one deadline over all of that, meter, and
//! outermost whatever keeps connections.
//!
//! ```no_run
//! # #[cfg(all(feature = "proxy-protocol", feature = "tls"))]
//! # async fn stack(config: tower_net::tls::rustls::ClientConfig) -> Result<(), tower_net::error::BoxError> {
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_net::{connect::TcpConnector, deadline::ConnectDeadlineLayer, meter::MeterConnectLayer};
//! use tower_net::{proxy_protocol::{ProxyConnectLayer, Version}, tls::TlsConnectLayer};
//!
//! let connector = ServiceBuilder::new()
//!     .layer(MeterConnectLayer::new("backend"))                         // connects, failures, bytes of plain text
//!     .layer(ConnectDeadlineLayer::new(Duration::from_secs(5))?)        // from lookup to handshake
//!     .layer(TlsConnectLayer::new(config))                              // by the name of the target, 10 s
//!     .layer(ProxyConnectLayer::local(Version::V2))                     // before TLS
//!     .service(TcpConnector::new());                                    // 10 s an address, 30 s in all
//! let conn = connector.oneshot("backend.example.org:443").await?;
//! # drop(conn);
//! # Ok(())
//! # }
//! # #[cfg(all(feature = "proxy-protocol", feature = "tls"))]
//! # let _ = stack;
//! ```
//!
//! # Name lookup
//!
//! A name is looked up by a service of [`Name`], [`SystemResolver`] unless another is
//! [given](TcpConnector::with_resolver): a closure with a list of its own, say. With the feature `dns` there is one that asks
//! name servers itself, `dns::DnsResolver`. An address is never looked up. What a lookup finds is taken as a whole: a
//! connector does not begin with one family while the other is still being asked for, as RFC 8305 (section 3) would after
//! 50 ms.
//!
//! ```
//! use std::{convert::Infallible, net::IpAddr};
//! use tower::service_fn;
//! use tower_net::connect::{Name, TcpConnector};
//!
//! let hosts = service_fn(async |name: Name| {
//!     Ok::<Vec<IpAddr>, Infallible>(match name.as_str() {
//!         "backend" => vec![[192, 0, 2, 1].into(), [192, 0, 2, 2].into()],
//!         _ => vec![],
//!     })
//! });
//! let connector = TcpConnector::with_resolver(hosts);
//! # drop(connector);
//! ```
//!
//! # Deadlines
//!
//! | what | default | and then |
//! |---|---|---|
//! | the next address begins beside the last | after 250 ms | see [`HappyEyeballs`] |
//! | one address | 10 s | the others go on |
//! | lookup and connect in all | 30 s | [`ConnectError`] with all that was tried |
//! | a place in the queue of a Unix listener | 10 s | the same |
//!
//! The [`Deadline`](crate::Deadline) of the caller, as it is [current](crate::Deadline::current) when the connector is
//! called, holds as well. The error says which of the two ran out, see [`Spent`](crate::Spent).
//!
//! None of these has a dry run: they are here so that nothing lasts for ever. The one to be chosen from data is that of the
//! [`ConnectDeadlineLayer`](crate::deadline::ConnectDeadlineLayer) around them, which has one, and
//! `tower_net_connect_seconds` is the data.
//!
//! A connection that is open has no deadline here: silence, and a peer that takes nothing, are left to who uses it: the
//! calls of a [`client`](crate::client), the tunnels of [`forward`](crate::forward) and the idle ones of a
//! [`pool`](crate::pool) have theirs. Keepalive and user timeout are the [socket's](SocketOptions).
//!
//! # Metrics
//!
//! Those of [`MeterConnectLayer`](crate::meter::MeterConnectLayer), and of the handshakes.

mod error;
mod happy_eyeballs;
mod lookup;
mod socket;
mod target;
mod tcp;
mod unix;

pub use self::{
    error::{ConnectError, ConnectPhase, Shortage},
    happy_eyeballs::{FailedAttempt, FailedAttempts, HappyEyeballs},
    lookup::{Resolved, SystemLookup, SystemResolver, TooManyLookups},
    socket::SocketOptions,
    target::{Name, Target, TargetError},
    tcp::{TcpConnectFuture, TcpConnector},
    unix::{UnixConnectFuture, UnixConnector, UnixTarget},
};
pub use crate::edge::options::Keepalive;
