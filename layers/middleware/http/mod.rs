//! Turns a service of HTTP requests into a service of connections: an axum `Router` below the same layers as anything.
//!
//! **Where it goes**: innermost of the connection layers, in the place of [`frame`](crate::frame): below
//! [`deadline`](crate::deadline), whose timer it shares.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower::ServiceBuilder;
//! use tower_net::{deadline::DeadlineLayer, http::HttpLayer, limit::ConnectionLimitLayer};
//!
//! let app: Router = Router::new().route("/", get(async || "hello"));
//! let stack = ServiceBuilder::new()
//!     .layer(ConnectionLimitLayer::new(10_000)?)
//!     .layer(DeadlineLayer::default())
//!     .layer(HttpLayer::default())
//!     .service(app);
//! # drop(stack);
//! # Ok::<(), tower_net::error::ConfigError>(())
//! ```
//!
//! A request is hyper's, `Request<Incoming>`, with a [`ConnHandle`](crate::ConnHandle) in its extensions, and with the
//! feature `axum` a `ConnectInfo<SocketAddr>` of the real peer.
//!
//! # How it goes on
//!
//! The version goes by the first bytes: the preface of HTTP/2 (RFC 9113, section 3.4), or else HTTP/1. Whatever TLS agreed
//! on by ALPN, a client sends what it agreed to. Hyper does the rest, with its timers set. What the peer sends is followed
//! beside it, so that each wait has a deadline of its own:
//!
//! | limit | default | begins | reset by | does not cover |
//! |---|---|---|---|---|
//! | first byte | 3 s | as [`deadline`](crate::deadline) has it | nothing | |
//! | [head](Http::head_deadline) | 10 s | when the rest of a head is first waited for; for HTTP/2 also of a frame, and of the preface and SETTINGS | nothing | bodies |
//! | [handler](Http::handler_deadline) | 30 s | when the handler first waits | nothing | the body of a response |
//! | idle | 90 s | as [`deadline`](crate::deadline) has it | any byte | a request whose response is not over |
//! | write stall | 30 s | as [`deadline`](crate::deadline) has it; for HTTP/2 also when part of a response waits for the peer's window | any byte written; any window that is opened | what the kernel, or hyper, has already taken |
//!
//! First byte, idle and write stall are the deadline layer's: without it they have no limit. A connection of HTTP/2 that is
//! opened ahead of its first request is idle once its SETTINGS are here. A ping on an idle connection is no half request,
//! and on one that takes nothing it is no window.
//!
//! A body that is still arriving when its response is over (the handler has given it to a task) has the idle timeout.
//! Of HTTP/1, so has a head behind requests in line the last of which has a body in chunks with trailers.
//!
//! A handler finds its deadline as [`Deadline::current`](crate::Deadline::current), and moves it by
//! [`extend`](crate::ConnInfo::extend); while the deadlines are [stopped](crate::ConnInfo::suspend), so is its own.
//! It notices that they run again up to a sixteenth of its limit late.
//!
//! # Dry run
//!
//! With [`Http::dry_run`] a head or handler that is late adds one to `tower_net_dry_run_total{reason}`, once each, and
//! goes on.
//!
//! # How it ends
//!
//! | what happens | what it does | reason |
//! |---|---|---|
//! | the peer ends | the connection is closed, and handlers under way are dropped | `peer` |
//! | a head is late | the connection is closed | `request` |
//! | a handler is late | `503`, and for HTTP/1 an orderly close | `handler` |
//! | a handler fails | the connection is closed, or for HTTP/2 its stream reset | `error` |
//! | a handler panics | the same; for HTTP/2 with a warning, since the connection goes on | `panic` |
//! | what is no HTTP | `400` or GOAWAY where there is a way, and a close | `protocol` |
//! | the notice to leave | idle: at once, for HTTP/2 after GOAWAY and one round trip; else `connection: close` or GOAWAY, and responses under way are finished, and that to a head that is here in part | `drain`, `age` |
//! | an upgrade | the connection lives until the stream that was upgraded is dropped, and is told and cut as any other | |
//!
//! A peer that ends only its own side cannot be told from one that has gone. A client of HTTP/1 that sends a request, shuts
//! its side and waits is answered only if hyper is [told](Http::http1) so, by `half_close(true)`. Then a handler goes on for
//! clients that have gone, until its deadline, and a response that streams until the next write fails.
//!
//! After the last response to a request with a body, or where more has arrived than was read, it reads on and discards for a
//! moment, so that no reset eats the response. All is said by then: a drain whose time is up meanwhile has cut nobody.
//!
//! Every request is counted once: `ok` when its response begins, else `failed`, also when nobody waits for it any more.
//!
//! # Readiness
//!
//! As a connection service it is always ready. The inner service is cloned for each request and made ready for it.
//!
//! # Errors
//!
//! [`HttpError`], unless the connection ended well.
//!
//! # On drop
//!
//! Dropping the future drops the stream and the handlers of HTTP/1; those of HTTP/2, at most as many as streams are
//! allowed (200 by default), are tasks that end when they next touch it.

mod call;
mod error;
mod exchange;
mod messages;
mod metrics;
mod patience;
mod progress;
mod serve;
mod settings;
mod stream;

pub use self::{
    error::HttpError,
    serve::{HttpFuture, HttpLayer, HttpService},
    settings::Http,
    stream::HttpIo,
};
