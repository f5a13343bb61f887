//! Limits how many connections are open at once, in all and for each peer, and how fast a peer may open them.
//!
//! | layer | bounds | the surplus |
//! |---|---|---|
//! | [`ConnectionLimitLayer`] | connections open, of all | [`OverLimit`]: reset, or left in the kernel's backlog |
//! | [`PerPeerLimitLayer`] | connections open, of each peer | [`Surplus`]: reset, held, or told a last word |
//! | [`ConnectRateLayer`] | new connections a second, of each peer | the same |
//!
//! **Where they go**: right below the meter, so that a refusal costs nothing but is counted; the limits for each peer
//! below the PROXY header if there is one, or all clients of the proxy are one peer. The rate goes above the number:
//! what it refuses needs no place.
//!
//! ```
//! use std::time::Duration;
//!
//! use tower::ServiceBuilder;
//! use tower_net::{Networks, limit::{ConnectRateLayer, ConnectionLimitLayer, PeerFull, PerPeerLimitLayer, Surplus}};
//!
//! let monitoring = Networks::parse(["10.0.0.0/24"])?;
//! let busy = Surplus::last_word_with(|full: &PeerFull, _| format!("ERR {full}\n").into());
//! let stack = ServiceBuilder::new()
//!     .layer(ConnectionLimitLayer::new(10_000)?)
//!     .layer(ConnectRateLayer::new(10.0, 20)?.surplus(Surplus::WaitUpTo(Duration::from_secs(1))))
//!     .layer(PerPeerLimitLayer::new(100)?.exempt(monitoring).surplus(busy));
//! # drop(stack);
//! # Ok::<(), tower_net::error::ConfigError>(())
//! ```
//!
//! A place is held by the stream itself, through TLS, HTTP, upgrades and other tasks, and is free again
//! exactly when the stream is dropped: at a normal end, an error, a timeout, a panic, a cancel or a drain.
//!
//! # Who a peer is
//!
//! The address of [`ConnInfo::peer`](crate::ConnInfo::peer): what a trusted proxy announced, or else what is on the
//! socket. An IPv4-mapped IPv6 address is the IPv4 address that it is, an IPv6 peer is a `/64`
//! ([settable](PerPeerLimitLayer::ipv6_prefix)). A peer without an IP address, on a Unix socket say, is not counted,
//! [unless asked for](PerPeerLimitLayer::count_unnamed). A connection counts for the same peer from the call to its end,
//! whatever is announced meanwhile.
//!
//! # What is remembered, and what happens when that is full
//!
//! Each of the two layers has one table, of a size that is fixed when it is built: 36 bytes for each peer of its
//! [capacity](PerPeerLimitLayer::capacity), memory that is not there before it is used. It never grows, whoever comes.
//! A peer is in it while it has a connection open, or until its burst is whole again, and then no longer.
//!
//! A peer has its slot in one of two places of eight slots. When a new one finds both full, **the one of the sixteen
//! that is the nearest to being forgotten anyway makes room**: the one with the fewest connections open, or the one
//! whose burst is whole again soonest. So no newcomer is ever refused for want of room, and the worst offenders stay
//! remembered. (Which slots those are is decided by a hash with a secret key: nobody can choose his neighbours.) Each is
//! counted in `tower_net_peer_table_evictions_total`. A table that is as large as there are peers forgets fewer than ten
//! in a million of them.
//!
//! A peer that was forgotten begins anew: it may have as many more connections as it had open when that happened,
//! while those are open, or its burst once more. What it had before does not free places that it takes after. A peer
//! with a connection open is in the table of [`PerPeerLimitLayer`] once, so a capacity that is no less than what
//! [`ConnectionLimitLayer`] lets in is never short; whatever is forgotten, all together are bounded by that one.
//!
//! # Readiness
//!
//! [`OverLimit::Wait`] and [`OverLimit::WaitUpTo`]: ready once there is a place, which the service then holds until the
//! call; a clone does not take it along, and dropping the service gives it back. All others: the inner service's. A
//! connection that waits keeps the service that was ready when it came.
//!
//! # Errors
//!
//! [`Full`], [`PeerFull`] or [`TooFast`] for a connection that was refused; nothing of it was read.
//! [`NoTimer`](crate::error::NoTimer) from the readiness of one that has to wait on a runtime that cannot.
//!
//! # Cost
//!
//! A peer is looked up in the call, under a lock of a sixty-fourth of the table: some tens of nanoseconds, and no
//! allocation. The rate takes the moment of the accept for its clock. Refusing by a reset allocates the error. A
//! connection that waits or is told a last word costs a box, a descriptor, and a timer.
//!
//! # On drop
//!
//! Dropping the future drops the stream, and so frees the place. One that waits leaves the queue, or passes on the
//! place it was just given; the turn that it had in a rate is not given back. One that is being told its last word is
//! reset.

mod connection;
mod gcra;
mod peers;
mod per_peer;
mod places;
mod rate;
mod settings;
mod surplus;
mod table;

pub use self::{
    connection::{
        ConnectionLimit, ConnectionLimitHandle, ConnectionLimitLayer, Full, OverLimit, Place,
    },
    peers::TrackedPeer,
    per_peer::{
        PeerFull, PeerPlace, PerPeerLimit, PerPeerLimitFuture, PerPeerLimitHandle,
        PerPeerLimitLayer,
    },
    rate::{ConnectRate, ConnectRateFuture, ConnectRateHandle, ConnectRateLayer, TooFast},
    surplus::{LastWord, Surplus},
};
