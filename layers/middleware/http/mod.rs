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
//! | [head](Http::head_deadline) | 10 s | when the rest of a head is first waited for; for HTTP/2 also of a frame, and after the preface of the first request | nothing | bodies |
//! | [handler](Http::handler_deadline) | 30 s | when the handler first waits | nothing | the body of a response |
//! | idle | 90 s | as [`deadline`](crate::deadline) has it | any byte | a request whose response is not over |
//!
//! First byte and idle, and the write stall of a client that does not read, are the deadline layer's: without it they have
//! no limit. A ping on an idle connection of HTTP/2 is no half request.
//!
//! # How it ends
//!
//! | what happens | what it does | reason |
//! |---|---|---|
//! | the peer ends | what was asked is answered | `peer` |
//! | a head is late | the connection is closed | `request` |
//! | a handler is late | `503`, and for HTTP/1 an orderly close | |
//! | a handler fails | the connection is closed, or for HTTP/2 its stream reset | `error` |
//! | what is no HTTP | `400` where there is a way, and a close | `protocol` |
//! | the notice to leave | idle: at once; else `connection: close` or GOAWAY, and responses under way are finished | `drain`, `age` |
//! | an upgrade | the connection lives until the stream that was upgraded is dropped, and is told and cut as any other | |
//!
//! After the last response to a request with a body it reads on and discards for a moment, so that no reset eats the
//! response.
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
mod exchange;
mod metrics;
mod progress;
mod serve;
mod settings;
mod stream;

pub use self::{
    serve::{HttpError, HttpFuture, HttpLayer, HttpService},
    settings::Http,
    stream::HttpIo,
};
