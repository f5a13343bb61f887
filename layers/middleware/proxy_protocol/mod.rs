//! The PROXY protocol, versions 1 and 2: what a proxy says of the client it forwards, in front of all else.
//!
//! **Where it goes**: below meter and connection limit, above trace, TLS and everything that asks who the
//! [`peer`](crate::ConnInfo::peer) is: what is above sees the proxy, what is below the client. A layer that limits or
//! filters by peer goes below it, and is blind to clients above it.
//!
//! ```
//! use tower::ServiceBuilder;
//! use tower_net::{Handshakes, proxy_protocol::{HeaderRules, ProxyProtocolLayer}};
//!
//! let layer = ProxyProtocolLayer::required_from(["10.0.0.0/8", "fd00::/8"])?
//!     .rules(HeaderRules::default().max_v2_payload(8192))
//!     .handshakes(Handshakes::default());
//! let stack = ServiceBuilder::new().layer(layer);
//! # drop(stack);
//! # Ok::<(), tower_net::error::ConfigError>(())
//! ```
//!
//! # Who is believed
//!
//! Whoever may send a header may name any client. So a network either *must* send one or *never* may, and nothing
//! is guessed from the bytes (section 2 of the [specification]). Whether a peer is in such a network is decided by
//! the address on the socket alone.
//!
//! | the wire peer | it sends | |
//! |---|---|---|
//! | is in the networks | a header | its source is the [`peer`](crate::ConnInfo::peer), all of it is in [`proxy()`](crate::ConnInfo::proxy) |
//! | | `LOCAL`, `UNKNOWN`, no family | the peer is the one on the socket, as if there were no header |
//! | | anything else | closed, as [`ProxyHeader`](crate::CloseReason::ProxyHeader) |
//! | is not | whatever it sends | [`Others`]: reset (the default), served untouched, or its header taken off and not believed |
//! | has no IP address | | one or the other, by [`trust_unnamed`](ProxyProtocolLayer::trust_unnamed) |
//!
//! The service below finds the first byte behind the header, and the stream has its own type: not one byte more is
//! read than the header has, so that there is none to put back.
//!
//! # Bounds
//!
//! | what | default | set by |
//! |---|---|---|
//! | a line of version 1 | 107 bytes, the specification's worst case | |
//! | what is behind the fixed part of version 2 | 4096 bytes | [`HeaderRules::max_v2_payload`] |
//! | headers outstanding at once | 256 | [`handshakes`](ProxyProtocolLayer::handshakes) |
//! | time, from the first byte that is due to the last of the header, and of a TLS handshake behind it | 10 s | the same |
//!
//! A header that comes in pieces is put together, whatever the pieces; bytes that drip in do not move the deadline.
//! Memory is taken for bytes that arrived. Of a header that was accepted its addresses and TLVs are kept for as long
//! as the connection, of one of version 1 or `LOCAL` nothing but the addresses.
//!
//! Some load balancers hold the header back until the client speaks (AWS NLB in its mode
//! `on_first_ack_with_payload`): before a service that speaks first, each then waits for the other until the deadline.
//!
//! # Strictness
//!
//! An address that two hops read differently is a way around access rules. Refused, each with a [`HeaderError`] that
//! says what was wrong: leading zeros, signs, zones, an address of the other family, a port above 65535, a line that
//! ends with LF alone, a family or command that does not exist, a TLV that is cut short, a CRC32C that is not the
//! header's. [`HeaderRules`] has what may be chosen.
//!
//! What was sent in place of a header is logged at `DEBUG`, escaped, its first 256 bytes.
//!
//! # Readiness
//!
//! The inner service's, whose ready instance waits for the header. The first time, it also checks that the runtime
//! can keep time. Headers are read in the connection's own task: none holds up another, nor the accept.
//!
//! # Errors
//!
//! [`ProxyError`], and in it [`HeaderError`] or [`Elapsed`](crate::deadline::Elapsed);
//! [`TooManyHandshakes`](crate::TooManyHandshakes); [`NoTimer`](crate::error::NoTimer). What the connection ends as:
//!
//! | | reason |
//! |---|---|
//! | the peer may not send a header, or what it sent is none, cut short or too long | [`ProxyHeader`](crate::CloseReason::ProxyHeader) |
//! | it left before a byte, as health checks do | [`Peer`](crate::CloseReason::Peer), no fault |
//! | it said nothing in time | [`FirstByte`](crate::CloseReason::FirstByte) |
//! | it began and did not finish in time | [`ProxyTimeout`](crate::CloseReason::ProxyTimeout) |
//! | the stream failed | [`Reset`](crate::CloseReason::Reset) |
//! | no place, or it made room | [`HandshakeLimit`](crate::CloseReason::HandshakeLimit) |
//! | it had said nothing when the server began to drain | [`Drain`](crate::CloseReason::Drain) |
//!
//! # On drop
//!
//! Dropping the future closes the stream and frees the place among the headers outstanding.
//!
//! [specification]: https://github.com/haproxy/haproxy/blob/master/doc/proxy-protocol.txt

mod accept;
mod connect;
mod error;
mod header;
mod rules;
mod ssl;
mod tlv;
mod v1;
mod v2;

pub use self::{
    accept::{Others, ProxyProtocol, ProxyProtocolFuture, ProxyProtocolLayer},
    connect::{ProxyConnect, ProxyConnectFuture, ProxyConnectLayer},
    error::{EncodeError, HeaderError, ProxyError},
    header::{Addresses, Command, End, Header, Transport, UnixName, Version},
    rules::HeaderRules,
    ssl::Ssl,
    tlv::{Tlv, TlvClass, TlvIter, Tlvs},
};
