//! One request: from the call of the handler to the end of its response.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};
use tower_service::Service;

use crate::{
    base::time::now,
    conn::{CloseReason, ConnHandle, ConnInfo, turn::Turn},
    middleware::http::{exchange::Exchange, serve::Shared},
};

/// The handler of one connection, as hyper calls it.
#[derive(Debug, Clone)]
pub(super) struct Handler<S> {
    pub(super) service: S,
    pub(super) info: Arc<ConnInfo>,
    pub(super) exchange: Arc<Exchange>,
    pub(super) shared: Arc<Shared>,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for Handler<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone,
{
    type Response = Response<Tracked<B>>;
    type Error = S::Error;
    type Future = Call<S>;

    fn call(&self, mut request: Request<Incoming>) -> Call<S> {
        self.exchange
            .take(!request.body().is_end_stream());
        let http2 = request.version() == Version::HTTP_2;
        let extensions = request.extensions_mut();
        extensions.insert(ConnHandle::new(Arc::clone(&self.info)));
        #[cfg(feature = "axum")]
        if let Some(peer) = self.info.peer().tcp() {
            extensions.insert(axum::extract::ConnectInfo(peer));
        }
        Call {
            stage: Stage::Waiting {
                service: self.service.clone(),
                request: Some(request),
            },
            open: Some(Open {
                exchange: Arc::clone(&self.exchange),
                info: Arc::clone(&self.info),
            }),
            http2,
            timer: None,
            since: None,
            shared: Arc::clone(&self.shared),
        }
    }
}

pin_project! {
    /// A request on its way through the service: ready first, then called.
    pub(super) struct Call<S>
    where
        S: Service<Request<Incoming>>,
    {
        #[pin]
        stage: Stage<S>,
        open: Option<Open>,
        http2: bool,
        #[pin]
        timer: Option<Sleep>,
        // Since when it waits; most do not.
        since: Option<Instant>,
        shared: Arc<Shared>,
    }
}

pin_project! {
    #[project = StageProj]
    enum Stage<S>
    where
        S: Service<Request<Incoming>>,
    {
        Waiting { service: S, request: Option<Request<Incoming>> },
        Called { #[pin] answering: S::Future },
    }
}

impl<S, B> Stage<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
{
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Response<B>, S::Error>> {
        loop {
            let answering = match self.as_mut().project() {
                StageProj::Called { answering } => return answering.poll(cx),
                StageProj::Waiting { service, request } => {
                    ready!(service.poll_ready(cx))?;
                    let request = request.take();
                    service.call(request.expect("called once"))
                }
            };
            self.set(Self::Called { answering });
        }
    }
}

impl<S, B> Future for Call<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
{
    type Output = Result<Response<Tracked<B>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let metrics = &this.shared.metrics;
        if let Poll::Ready(answer) = this.stage.poll(cx) {
            metrics.answered(answer.is_ok(), *this.since);
            let open = this.open.take();
            return Poll::Ready(answer.map(|response| {
                response.map(|body| Tracked {
                    body: Some(body),
                    open,
                })
            }));
        }
        let Some(limit) = this.shared.settings.handler_limit() else {
            return Poll::Pending;
        };
        if this.timer.is_none() {
            *this.since = Some(now());
            this.timer.set(Some(sleep(limit)));
        }
        if let Some(timer) = this.timer.as_mut().as_pin_mut() {
            ready!(timer.poll(cx));
        }
        metrics.answered(false, *this.since);
        Poll::Ready(Ok(too_late(this.open.take(), *this.http2, limit)))
    }
}

/// What a client is told for whom there is no answer in time. What it has not sent yet is not waited for: of HTTP/1 that
/// ends the connection, of HTTP/2 the stream.
fn too_late<B>(open: Option<Open>, http2: bool, limit: Duration) -> Response<Tracked<B>> {
    tracing::debug!(?limit, "handler took too long");
    if let (Some(open), false) = (&open, http2) {
        open.info.end_with(CloseReason::Handler);
    }
    let mut response = Response::new(Tracked { body: None, open });
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    if http2 {
        // There it has no meaning, and must not be sent (RFC 9113, section 8.2.2).
        return response;
    }
    let headers = response.headers_mut();
    headers.insert(
        header::CONNECTION,
        header::HeaderValue::from_static("close"),
    );
    response
}

pin_project! {
    /// The body of a response, at whose end, or drop, the request is over.
    pub(super) struct Tracked<B> {
        #[pin]
        body: Option<B>,
        open: Option<Open>,
    }
}

impl<B: Body> Body for Tracked<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = match this.body.as_pin_mut() {
            Some(body) => ready!(body.poll_frame(cx)),
            None => None,
        };
        if frame.is_none() {
            *this.open = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body
            .as_ref()
            .is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B> fmt::Debug for Tracked<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked")
            .finish_non_exhaustive()
    }
}

/// A request that is worked on; it is over when this is dropped.
#[derive(Debug)]
struct Open {
    exchange: Arc<Exchange>,
    info: Arc<ConnInfo>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.exchange.end();
        // The last one may have ended on another task; the connection's own looks whether it is idle now, as it does
        // anyway where its turn ends.
        if !self.exchange.is_busy() && !Turn::is_of(&self.info) {
            self.info.ending.wake();
        }
    }
}
