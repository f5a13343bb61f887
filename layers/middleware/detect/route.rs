use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use metrics::{Counter, counter};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::protocol::Protocol;
use crate::{
    base::{
        error::BoxError,
        io::{Io, RewoundIo},
    },
    conn::{Conn, turn::Turn},
};

/// A protocol, and what serves it.
pub(super) struct Route<I> {
    pub(super) protocol: Protocol,
    pub(super) detected: Counter,
    serve: Arc<dyn Fn(Conn<RewoundIo<I>>) -> Serving + Send + Sync>,
}

/// A service at work, whose type is forgotten.
pub(super) type Serving = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

impl<I: Io> Route<I> {
    pub(super) fn new<S>(protocol: Protocol, service: S) -> Self
    where
        S: Service<Conn<RewoundIo<I>>, Response = ()> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
    {
        // Locked to be cloned and for nothing else, so that a service need not be shareable between threads.
        let service = Mutex::new(service);
        Self {
            detected: counter!("tower_net_detected_total", "protocol" => protocol.name()),
            protocol,
            serve: Arc::new(move |conn| {
                let service = service
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                Box::pin(Started::new(service, conn))
            }),
        }
    }

    pub(super) fn serve(&self, conn: Conn<RewoundIo<I>>) -> Serving {
        (self.serve)(conn)
    }
}

impl<I> Clone for Route<I> {
    fn clone(&self) -> Self {
        Self {
            protocol: self.protocol.clone(),
            detected: self.detected.clone(),
            serve: Arc::clone(&self.serve),
        }
    }
}

impl<I> fmt::Debug for Route<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.protocol.fmt(f)
    }
}

pin_project! {
    /// A service that is made ready, and then called with its connection.
    #[project = StartedProj]
    pub(super) enum Started<S, J>
    where
        S: Service<Conn<J>>,
    {
        Waiting { service: S, conn: Option<Conn<J>>, waited: bool },
        Serving { #[pin] serving: S::Future },
    }
}

impl<S, J> Started<S, J>
where
    S: Service<Conn<J>>,
{
    /// `service` is a clone, and has not been made ready.
    pub(super) fn new(service: S, conn: Conn<J>) -> Self {
        Self::Waiting {
            service,
            conn: Some(conn),
            waited: false,
        }
    }
}

impl<S, J> Future for Started<S, J>
where
    S: Service<Conn<J>, Response = ()>,
    S::Error: Into<BoxError>,
{
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let serving = match self.as_mut().project() {
                StartedProj::Serving { serving } => return serving.poll(cx).map_err(Into::into),
                StartedProj::Waiting {
                    service,
                    conn,
                    waited,
                } => {
                    let info = conn.as_ref().map(Conn::info).cloned();
                    let info = info.expect("not polled again after it was ready");
                    // Whoever drains wakes the connection's task.
                    let _turn = Turn::take(cx, &info);
                    let is_ready = service.poll_ready(cx);
                    *waited |= is_ready.is_pending();
                    if let (true, Some(reason)) = (is_ready.is_pending(), info.ending.leaving()) {
                        // Nothing was begun for it that could be finished.
                        info.end_with(reason);
                        *conn = None;
                        return Poll::Ready(Ok(()));
                    }
                    ready!(is_ready).map_err(Into::into)?;
                    let conn = conn.take();
                    let conn = conn.expect("not polled again after it was ready");
                    if *waited {
                        // We kept the peer waiting, so its handshake begins now.
                        conn.info().handshakes_done();
                    }
                    service.call(conn)
                }
            };
            self.set(Self::Serving { serving });
        }
    }
}
