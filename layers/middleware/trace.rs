//! Gives every connection a span, and one event when it ends.
//!
//! **Where it goes**: anywhere above what should log inside the span; below the meter, so that the event has
//! the byte counts.
//!
//! ```
//! use tower::ServiceBuilder;
//! use tower_net::trace::TraceLayer;
//!
//! let stack = ServiceBuilder::new().layer(TraceLayer::new());
//! # drop(stack);
//! ```
//!
//! The span is a root: it is nobody's child. A span that a handler makes is its child, as usual, and keeps it
//! open; one that is to outlive the connection is made with `parent: None`. Fields: `conn`, `peer`, `listener`, and of
//! a connection that is encrypted `tls` (the version), `alpn` and `sni`. Behind a proxy that is trusted both ends of it
//! are there: below the PROXY layer `peer` is the client, and `wire_peer` the proxy; above it, where the client is not
//! known yet, `peer` is the proxy, and `announced` the client once it is.
//!
//! The event can serve as the access log. It says `closed` with `reason`, `read`, `written` and `seconds`; at
//! `DEBUG` when the connection ended in order, at `INFO` when a peer was at fault or a limit was hit, at `WARN`
//! when we were. Connections refused by a layer above are never seen here: counters are for floods.
//!
//! # Readiness
//!
//! The inner service's.
//!
//! # Errors
//!
//! None of its own.
//!
//! # On drop
//!
//! The event is recorded when the stream is dropped, wherever it was moved to.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;
use tracing::{
    debug,
    field::{Empty, display},
    info, info_span, warn,
};

use crate::{
    base::io::{GuardedIo, Io},
    conn::{CloseReason, Conn, ConnInfo},
};

/// Gives every connection a span. See the [module](self).
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct TraceLayer;

impl TraceLayer {
    /// The layer; there is nothing to set, subscribers filter by level and target.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Trace { inner }
    }
}

/// The service of [`TraceLayer`].
#[derive(Debug, Clone)]
pub struct Trace<S> {
    inner: S,
}

impl<S, I> Service<Conn<I>> for Trace<S>
where
    S: Service<Conn<GuardedIo<I, Closing>>>,
    I: Io,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = TraceFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, conn: Conn<I>) -> TraceFuture<S::Future> {
        let info = Arc::clone(conn.info());
        let span = info_span!(
            parent: None,
            "connection",
            conn = info.id().get(),
            peer = %info.peer(),
            listener = info.listener(),
            wire_peer = Empty,
            announced = Empty,
            tls = Empty,
            alpn = Empty,
            sni = Empty,
        );
        if info.peer() != info.wire_peer() {
            span.record("wire_peer", display(info.wire_peer()));
        }
        info.set_span(span);
        let closing = Closing {
            info: Arc::clone(&info),
        };
        let conn = conn.map_io(|io| GuardedIo::new(io, closing));
        let inner = info
            .span()
            .in_scope(|| self.inner.call(conn));
        TraceFuture { inner, info }
    }
}

pin_project! {
    /// The future of [`Trace`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct TraceFuture<F> {
        #[pin]
        inner: F,
        info: Arc<ConnInfo>,
    }
}

impl<F: Future> Future for TraceFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _entered = this.info.span().enter();
        this.inner.poll(cx)
    }
}

/// Records the end of a connection when its stream, which holds this, is dropped.
#[derive(Debug)]
pub struct Closing {
    info: Arc<ConnInfo>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let reason = self.info.ending.settle();
        let (read, written) = (self.info.bytes_read(), self.info.bytes_written());
        macro_rules! closed {
            ($event:ident) => {
                $event!(
                    parent: self.info.span(),
                    reason = reason.label(),
                    read,
                    written,
                    seconds = self.info.age().as_secs_f64(),
                    "closed",
                )
            };
        }
        match reason {
            CloseReason::Aborted | CloseReason::Error | CloseReason::Panic => closed!(warn),
            _ if reason.is_fault() => closed!(info),
            _ => closed!(debug),
        }
    }
}
