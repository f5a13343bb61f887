//! One request: from the call of the handler to the end of its response.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    thread,
};

use http::{Request, Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_service::Service;

use crate::{
    conn::{CloseReason, ConnHandle, ConnInfo, turn::Turn},
    middleware::http::{
        exchange::Exchange, patience::Patience, progress::BodyLength, serve::Shared,
    },
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
            .take(length_of(request.body()));
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
                http2,
                held_back: false,
            }),
            patience: Patience::new(&self.shared.settings),
            shared: Arc::clone(&self.shared),
        }
    }
}

fn length_of(body: &Incoming) -> BodyLength {
    if body.is_end_stream() {
        return BodyLength::None;
    }
    let length = body.size_hint().exact();
    length.map_or(BodyLength::Unknown, BodyLength::Known)
}

pin_project! {
    /// A request on its way through the service: ready first, then called.
    pub(super) struct Call<S>
    where
        S: Service<Request<Incoming>>,
    {
        #[pin]
        stage: Stage<S>,
        // Until it is answered.
        open: Option<Open>,
        #[pin]
        patience: Patience,
        shared: Arc<Shared>,
    }

    impl<S> PinnedDrop for Call<S>
    where
        S: Service<Request<Incoming>>,
    {
        fn drop(this: Pin<&mut Self>) {
            if let Some(open) = &this.open {
                abandon(open, &this.shared, this.patience.since());
            }
        }
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
        let (settings, metrics) = (&this.shared.settings, &this.shared.metrics);
        let open = this
            .open
            .as_ref()
            .expect("not polled again after it was ready");
        let polled = {
            // Of HTTP/1 the connection's own task polls, in its own turn.
            let _turn = open
                .http2
                .then(|| Turn::lend(&open.info));
            let ambient = this.patience.enter();
            let polled = this.stage.poll(cx);
            this.patience.as_mut().leave(&ambient);
            polled
        };
        if let Poll::Ready(answer) = polled {
            metrics.answered(answer.is_ok(), this.patience.since());
            let open = this.open.take();
            return Poll::Ready(answer.map(|mut response| {
                if open.as_ref().is_some_and(Open::is_last) {
                    close_after(&mut response);
                }
                response.map(|body| Tracked {
                    body: Some(body),
                    open,
                })
            }));
        }
        ready!(
            this.patience
                .as_mut()
                .poll_late(cx, settings, &open.exchange, &open.info)
        );
        if metrics.spares(CloseReason::Handler) {
            this.patience.spare();
            return Poll::Pending;
        }
        metrics.answered(false, this.patience.since());
        Poll::Ready(Ok(too_late(this.open.take())))
    }
}

/// A request will never be answered: its handler panicked, its stream was reset, its connection is over.
fn abandon(open: &Open, shared: &Shared, since: Option<Instant>) {
    shared.metrics.answered(false, since);
    if !thread::panicking() {
        return;
    }
    if open.http2 {
        // The task is hyper's own: nobody else would say so, and the connection goes on.
        tracing::warn!(conn = %open.info.id(), "handler panicked");
    } else {
        open.info.end_with(CloseReason::Panic);
    }
}

/// What a client is told for whom there is no answer in time. What it has not sent yet is not waited for: of HTTP/1 that
/// ends the connection, of HTTP/2 the stream.
fn too_late<B>(open: Option<Open>) -> Response<Tracked<B>> {
    let http2 = open
        .as_ref()
        .is_some_and(|open| open.http2);
    if let Some(open) = &open {
        tracing::debug!(conn = %open.info.id(), "handler took too long");
        if !http2 {
            open.info.end_with(CloseReason::Handler);
        }
    }
    let mut response = Response::new(Tracked { body: None, open });
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    if http2 {
        // There it has no meaning, and must not be sent (RFC 9113, section 8.2.2).
        return response;
    }
    close_after(&mut response);
    response
}

/// Says that there is no next response on this connection, unless something else goes on there.
fn close_after<B>(response: &mut Response<B>) {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let close = header::HeaderValue::from_static("close");
        response
            .headers_mut()
            .insert(header::CONNECTION, close);
    }
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
        if let Some(open) = this.open {
            open.let_go();
        }
        let frame = match this.body.as_pin_mut() {
            Some(body) => ready!(body.poll_frame(cx)),
            None => None,
        };
        match (&frame, this.open.as_mut()) {
            (None, _) => *this.open = None,
            (Some(Ok(frame)), Some(open)) if frame.is_data() => open.hold_back(),
            _ => {}
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
    http2: bool,
    /// A part of its response waits for the peer.
    held_back: bool,
}

impl Open {
    /// Of HTTP/1, whether the connection has been told to leave. Hyper hears of it only after what it answers at once.
    fn is_last(&self) -> bool {
        !self.http2 && self.info.is_leaving()
    }

    /// Hyper has a part of the response, and asks for the next once the peer has room. (Of HTTP/1 a write waits then.)
    fn hold_back(&mut self) {
        if self.http2 {
            self.held_back = true;
            if self.info.waits.hold_back() {
                self.wake();
            }
        }
    }

    /// It asks for the next.
    fn let_go(&mut self) {
        if std::mem::take(&mut self.held_back) {
            self.info.waits.let_go();
        }
    }

    /// Has the connection look what it waits for, as it does anyway where its turn ends.
    fn wake(&self) {
        if !Turn::is_of(&self.info) {
            self.info.ending.wake();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.let_go();
        self.exchange.end();
        // The last one may have ended on another task.
        if !self.exchange.is_busy() {
            self.wake();
        }
    }
}
