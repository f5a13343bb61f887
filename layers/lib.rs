//! Tower middleware for raw-stream services: TCP, Unix, and whatever else reads and writes bytes.
//!
//! A raw-stream service is an `async fn(Conn<I>) -> Result<(), E>`: a plain [`tower_service::Service`], called
//! once for each connection. What every such service must do besides its work (limit connections, time out the
//! slow and the silent, cap frames, count, log, drain) is a [`tower_layer::Layer`] each, and one
//! `ServiceBuilder` stack reads from the socket to the request, top to bottom:
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use bytes::Bytes;
//! use tower::{ServiceBuilder, limit::GlobalConcurrencyLimitLayer};
//! use tower_net::{
//!     Server,
//!     deadline::DeadlineLayer,
//!     frame::{FrameLayer, Framing, LengthDelimited, Request},
//!     limit::ConnectionLimitLayer,
//!     meter::MeterLayer,
//!     trace::TraceLayer,
//! };
//!
//! # async fn shutdown_signal() {}
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stack = ServiceBuilder::new()
//!     .layer(MeterLayer::new("echo"))                   // bytes, connections, close reasons
//!     .layer(ConnectionLimitLayer::new(10_000)?)        // resets the surplus
//!     .layer(TraceLayer::new())                         // a span each, one closing event
//!     .layer(DeadlineLayer::default())                  // first byte 3 s, idle 90 s, write stall 30 s
//!     .layer(FrameLayer::with_framing(
//!         LengthDelimited::max_frame(1 << 20),
//!         Framing::default().pipelined(64),             // request, handler and reply 30 s each
//!     )?)
//!     .layer(GlobalConcurrencyLimitLayer::new(4096))    // a stock layer, at request level
//!     .service_fn(async |request: Request<Bytes>| Ok::<_, std::io::Error>(request.into_message()));
//!
//! let report = Server::bind("0.0.0.0:7000")
//!     .await?
//!     .serve(stack)
//!     .with_graceful_shutdown(shutdown_signal())
//!     .drain_for(Duration::from_secs(30))
//!     .await?;
//! println!("{report}");
//! # Ok(())
//! # }
//! ```
//!
//! # What it is not
//!
//! No framework: there is no service trait of its own, no context type, no runtime made, no signal handler
//! installed, no process ended. No protocol: bring a codec, or take one of the three here.
//!
//! # The life of a connection
//!
//! ```text
//!  listen ─► accept ─────► your stack ───────────────────────────► your service ─► close ─► report
//!              └ Backoff     meter           every byte, every end                   one CloseReason,
//!                            limit           refuse before spending anything         the first one given
//!                            pressure        what the process is short of
//!                            proxy_protocol  who the client really is
//!                            filter, limit   who is let in, how many, how fast
//!                            trace           a span, an event
//!                            tls, detect     handshake; which service
//!                            deadline        first byte, idle, write stall, age
//!                            throttle        so many bytes a second
//!                            frame           bytes ─► requests ─► replies
//!                              or forward      bytes ─► an upstream, and back
//!                          └─ all but the last three as one value: guard
//! ```
//!
//! Connections that a service opens itself come from a connector of [`connect`], through layers of the same kind: PROXY
//! header, TLS, a deadline for all of it, a meter.
//!
//! # The floors
//!
//! A folder of the source uses only the folders before it, and layers never use each other:
//!
//! ```text
//!  base        bytes, clocks, failure
//!  conn        the connection, what is known of it, and how it ends
//!  edge        where streams begin
//!  middleware  the layers
//!  outbound    what keeps connections to others
//!  server      accept, drain, report
//! ```
//!
//! # Defaults, and why
//!
//! | what | default | because |
//! |---|---|---|
//! | first byte | 3 s | clients of raw protocols speak at once; one lost packet must not cost them |
//! | upstream of a tunnel | 5 s to connect; 1 h idle, 60 s after one side has ended | see [`forward`] |
//! | first bytes that choose a service | 3 s, 16 KiB | as for the first byte; above every ClientHello that is seen |
//! | idle | 90 s | as Go's `http.Transport` keeps its idle connections |
//! | write stall | 30 s | longer than any pause of a peer that will go on |
//! | request, handler, reply | 30 s each | what callers wait before they give up themselves |
//! | head of an HTTP request | 10 s | heads are some kilobytes |
//! | handed out and not claimed | 64 connections | what a consumer takes in a moment |
//! | requests with ids | 64 at once of a connection | nobody waits for a round trip |
//! | requests refused because their time is up | one for 5 that were served in the last 10 s | as Finagle has it: a wrong clock must not have everything refused |
//! | replies queued | 64 KiB | one large write; beyond it reading stops |
//! | ClientHello | 16 KiB | as Envoy has it; clients send a tenth of it |
//! | frame | stated by you | there is no size that is right for all |
//! | connections | stated by you | it depends on descriptors and memory |
//! | burst of a rate | what passes in 100 ms, at least 1 KiB | a small message goes out whole, a large one in steps |
//! | address that is connected to | 10 s each, the next after 250 ms, 16 in all | three SYNs may be lost; RFC 8305 |
//! | lookup and connect | 30 s | as Go's `http.Transport` dials |
//! | name lookups of the system | 32 threads at once, 1024 waiting | few are slow unless all are |
//! | pressure | off; then 32 idle ones reclaimed in a tick of 100 ms, limits down to a tenth, 1 s at the least | those who do nothing make room before anybody is refused |
//! | drain | 30 s | longer than nearly every request, within what process managers allow |
//! | PROXY header | 107 bytes as a line, 4096 behind the fixed part of version 2 | nobody's is longer, but for client certificates |
//! | PROXY headers and TLS handshakes | 256 at once, within 10 s each | two cores are busy with fewer; a few lost packets, no more |
//! | peers that limits remember | 65,536 | 2.4 MB; beyond it the best behaved are forgotten first |
//! | calls in flight on a connection | 64, of 1 MiB at the most | as deep as servers commonly let one go |
//! | a call, an attempt to connect | 30 s, 10 s | as a handler; some lost packets and a handshake |
//! | a peer that says nothing while calls wait | 10 s, then new calls go to a new connection | longer than most calls take |
//! | attempts to connect | 50 ms to 5 s apart, a half of it chance | a server that was restarted is there again soon |
//! | calls made a second time | 20 % of all, and 10 a second | as Finagle and Envoy have it |
//! | calls at once of a fan-out | 64 | as many as a connection has in flight |
//! | lookup of peers | every 30 s, for 5 s, 128 of them | what short-lived records commonly are given |
//! | pooled connections | 1000 in all, 100 idle a target, for 90 s | one service's share of its descriptors; idle as Go keeps them |
//! | waiting for a pooled connection | 1024, for 30 s at the most; a dial 10 s | what callers wait before they give up themselves |
//! | backlog | 4096 | the system's own cap |
//! | TCP | no delay, keepalive after 15 s | as Go does |
//! | Unix socket | mode `0600` | whoever wants others to connect has to say so |
//!
//! # Metrics
//!
//! Through the [`metrics`] facade, with handles made once when a layer is built: install the recorder first.
//! Every label has a fixed, small set of values.
//!
//! | name | kind | labels | from |
//! |---|---|---|---|
//! | `tower_net_connections_opened_total` | counter | `service` | [`meter`] |
//! | `tower_net_connections_closed_total` | counter | `service`, `reason`: see [`CloseReason`]; the deadlines hit are reasons | [`meter`] |
//! | `tower_net_connections_active` | gauge | `service` | [`meter`] |
//! | `tower_net_received_bytes_total`, `tower_net_sent_bytes_total` | counter | `service` | [`meter`] |
//! | `tower_net_first_byte_seconds`, `tower_net_connection_seconds` | histogram | `service` | [`meter`] |
//! | `tower_net_refused_total` | counter | `reason`: those that [are refusals](CloseReason::is_refusal), and `proxy_header` for a peer that is not trusted | [`limit`], [`filter`], [`pressure`], [`proxy_protocol`], [`Handshakes`] |
//! | `tower_net_dry_run_total` | counter | `reason`: what a limit or deadline in a dry run would have ended | all that have a dry run |
//! | `tower_net_peer_table_evictions_total` | counter | `reason`: of the limit whose table is full | [`limit`] |
//! | `tower_net_surplus_held` | gauge | `reason`: of the limit that holds connections back, or tells them a last word | [`limit`] |
//! | `tower_net_pressure` | gauge | `resource`: `descriptors`, `memory`, `lag`, and the names of your own | [`pressure`] |
//! | `tower_net_proxy_headers_total` | counter | `outcome`: `v1`, `v2`, `local`; `ignored`, `direct`, `untrusted` of others; `invalid`, `timeout`, `silent`, `limit`, `failed` | [`proxy_protocol`] |
//! | `tower_net_connects_total` | counter | `service`, `outcome`: `ok`, `failed`, `abandoned` | [`meter`] |
//! | `tower_net_connects_pending` | gauge | `service` | [`meter`] |
//! | `tower_net_connect_seconds` | histogram | `service`; of those that succeeded | [`meter`] |
//! | `tower_net_outgoing_opened_total` | counter | `service` | [`meter`] |
//! | `tower_net_outgoing_closed_total` | counter | `service`, `reason`: see [`CloseReason`] | [`meter`] |
//! | `tower_net_outgoing_active` | gauge | `service` | [`meter`] |
//! | `tower_net_outgoing_received_bytes_total`, `tower_net_outgoing_sent_bytes_total` | counter | `service` | [`meter`] |
//! | `tower_net_outgoing_first_byte_seconds`, `tower_net_outgoing_seconds` | histogram | `service` | [`meter`] |
//! | `tower_net_handshakes_pending` | gauge | | [`Handshakes`] |
//! | `tower_net_handshakes_total` | counter | `outcome`: `ok_full`, `ok_resumed`, `abandoned`, or see [`HandshakeFailure`](tls::HandshakeFailure) | [`tls`] |
//! | `tower_net_handshake_seconds` | histogram | of those that succeeded | [`tls`] |
//! | `tower_net_outgoing_handshakes_total`, `tower_net_outgoing_handshake_seconds` | counter, histogram | the same of those that we begin | [`tls`] |
//! | `tower_net_tls_reloads_total` | counter | `outcome`: `ok`, or see [`ConfigFault`](tls::ConfigFault) | [`tls`] |
//! | `tower_net_detected_total` | counter | `protocol`: the names of the routes, or `other` | [`detect`] |
//! | `tower_net_forward_connects_total` | counter | `outcome`: `ok`, `failed`, `timeout` | [`forward`] |
//! | `tower_net_forwarded_bytes_total` | counter | `by`: `splice`, `copy` | [`forward`] |
//! | `tower_net_throttled_bytes_total` | counter | `direction`: `receive`, `send`; `dry_run`: `true`, `false` | [`throttle`] |
//! | `tower_net_requests_total` | counter | `service`, `outcome`: `ok`, `failed`; where requests have ids also `refused`, `cancelled` | [`frame`], [`http`] |
//! | `tower_net_request_seconds` | histogram | `service`, `outcome`; zero for a request that was answered at once | [`frame`], [`http`] |
//! | `tower_net_write_queue_bytes` | gauge | `service` | [`frame`] |
//! | `tower_net_client_calls_total` | counter | `service`, `outcome`: `ok`, `failed`, `refused`, `spent`, `cancelled`, `connect`, `closed`, `invalid` | [`client`] |
//! | `tower_net_client_call_seconds` | histogram | `service`, `outcome` | [`client`] |
//! | `tower_net_client_in_flight`, `tower_net_client_connections` | gauge | `service` | [`client`] |
//! | `tower_net_client_connects_total` | counter | `service`, `outcome`: `ok`, `failed` | [`client`] |
//! | `tower_net_client_reconnects_total` | counter | `service` | [`client`] |
//! | `tower_net_client_retries_total` | counter | `service`, `outcome`: `retried`, `no_budget` | [`client`] |
//! | `tower_net_client_late_replies_total` | counter | `service`: replies that nobody waited for any more | [`client`] |
//! | `tower_net_balance_lookups_total` | counter | `service`, `outcome`: `ok`, `failed` | [`balance`] |
//! | `tower_net_balance_endpoints` | gauge | `service` | [`balance`] |
//! | `tower_net_pool_connections` | gauge | `pool`, `state`: `idle`, `in_use`, `connecting` | [`pool`] |
//! | `tower_net_pool_waiting` | gauge | `pool` | [`pool`] |
//! | `tower_net_pool_wait_seconds` | histogram | `pool`; not of a get that found an idle connection | [`pool`] |
//! | `tower_net_pool_gets_total` | counter | `pool`, `outcome`: `idle`, `late`, `dialled`; `backoff`, `closed`, `connect`, `elapsed`, `queue_full`, `left` | [`pool`] |
//! | `tower_net_pool_connects_total` | counter | `pool`, `outcome`: `ok`, `failed`, `elapsed`, `abandoned` | [`pool`] |
//! | `tower_net_pool_closed_total` | counter | `pool`, `reason`: `age`, `broken`, `closed`, `dropped`, `ended`, `evicted`, `idle`, `renewed`, `stray`, `surplus` | [`pool`] |
//! | `tower_net_accept_errors_total` | counter | `kind`: see [`AcceptError`] | [`Server`] |
//! | `tower_net_open_descriptors`, `tower_net_descriptor_limit` | gauge | | [`Server`] |
//!
//! # Features
//!
//! None by default; `full` is all of them.
//!
//! | feature | room | brings |
//! |---|---|---|
//! | `axum` | [`Incoming`] | axum's `Listener` and `ConnectInfo` |
//! | `balance` | [`balance`] | `tower`, for its balancing |
//! | `dns` | [`dns`] | `hickory-resolver` |
//! | `guard` | [`guard`] | `serde` and `humantime`, for its settings; `proxy-protocol` |
//! | `http` | [`http`] | `hyper` and `hyper-util` |
//! | `proxy-protocol` | [`proxy_protocol`] | `crc32c` |
//! | `tls` | [`tls`] | `tokio-rustls`; the crypto provider is your choice, a feature of rustls |
//! | `tonic` | [`Incoming`] | tonic's `Connected` |
//!
//! All other rooms are always there: they need nothing beyond tokio and tower. A feature adds, and changes nothing else.
//!
//! What each of them brings beyond what is always there (`none`), which a test holds against `cargo tree`:
//!
#![doc = include_str!("features.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![doc(test(attr(deny(warnings))))]

#[macro_use]
mod base;
mod conn;
mod edge;
mod middleware;
mod outbound;
mod server;

#[cfg(all(
    any(doc, doctest),
    feature = "axum",
    feature = "guard",
    feature = "http",
    feature = "tonic"
))]
pub mod guides;

pub use crate::{base::*, conn::*, edge::*, middleware::*, outbound::*, server::*};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
