use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use tokio::sync::oneshot;
use tokio_util::io::poll_read_buf;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError},
        http2::{Opened, Opening},
        io::{Io, Linger, RewoundIo, has_unread, linger},
        time::{KeepsTime, now},
    },
    conn::{
        CloseReason, Conn, ConnInfo,
        turn::Turn,
        waits::{Late, plus},
        watch::{Limits, Verdict, Watch},
    },
    middleware::http::{
        Http, HttpError, HttpIo, call::Handler, exchange::Exchange, metrics::Metrics,
        progress::Partial,
    },
};

/// Turns a service of HTTP requests into a service of connections. See the [module](crate::http).
#[derive(Debug, Clone)]
pub struct HttpLayer {
    shared: Arc<Shared>,
}

/// What all connections of a layer have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Http,
    pub(super) metrics: Metrics,
    no_limits: Arc<Limits>,
    keeps_time: KeepsTime,
}

impl HttpLayer {
    /// With these settings.
    ///
    /// # Errors
    ///
    /// A deadline of zero.
    pub fn new(settings: Http) -> Result<Self, ConfigError> {
        settings.check()?;
        Ok(Self::unchecked(settings))
    }

    fn unchecked(settings: Http) -> Self {
        Self {
            shared: Arc::new(Shared {
                metrics: Metrics::new(&settings.service, settings.dry_run),
                settings,
                no_limits: Arc::new(Limits::NONE),
                keeps_time: KeepsTime::default(),
            }),
        }
    }
}

impl Default for HttpLayer {
    fn default() -> Self {
        Self::unchecked(Http::default())
    }
}

impl<S> Layer<S> for HttpLayer {
    type Service = HttpService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        HttpService {
            inner,
            shared: Arc::clone(&self.shared),
        }
    }
}

/// The service of [`HttpLayer`].
#[derive(Debug, Clone)]
pub struct HttpService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<I, S, B> Service<Conn<I>> for HttpService<S>
where
    I: Io,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = ();
    type Error = BoxError;
    type Future = HttpFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(
            self.shared
                .keeps_time
                .check()
                .map_err(Into::into),
        )
    }

    fn call(&mut self, conn: Conn<I>) -> HttpFuture {
        let info = Arc::clone(conn.info());
        info.handshakes_done();
        for safeguard in self.shared.settings.safeguards() {
            info.passed.mark(safeguard);
        }
        // A head that is late is only counted in a dry run, which is for this to do.
        info.waits
            .driven
            .set(self.shared.settings.dry_run);
        // With a watch above, the deadlines of requests are kept there: one timer a connection.
        let watched = info.waits.watched.get();
        let limits = &self.shared.no_limits;
        let exchange = Arc::new(Exchange::new());
        let handler = Handler {
            service: self.inner.clone(),
            info: Arc::clone(&info),
            exchange: Arc::clone(&exchange),
            shared: Arc::clone(&self.shared),
        };
        HttpFuture {
            serving: Some(Box::pin(serve(conn, handler))),
            watch: (!watched).then(|| Box::pin(Watch::new(Arc::clone(limits)))),
            exchange,
            info,
            shared: Arc::clone(&self.shared),
            timed: None,
            given: 0,
        }
    }
}

type Serving = Pin<Box<dyn Future<Output = Result<(), HttpError>> + Send>>;

pin_project! {
    /// The future of [`HttpService`]: one connection, until it and whatever it was upgraded to have ended.
    #[must_use = "futures do nothing unless polled"]
    pub struct HttpFuture {
        serving: Option<Serving>,
        watch: Option<Pin<Box<Watch>>>,
        exchange: Arc<Exchange>,
        info: Arc<ConnInfo>,
        shared: Arc<Shared>,
        // What is timed.
        timed: Option<Partial>,
        // The time that was given to it, and all else, so far.
        given: u64,
    }
}

impl Future for HttpFuture {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let info = Arc::clone(&self.info);
        let _turn = Turn::take(cx, &info);
        loop {
            let serving = self.as_mut().project().serving;
            let serving = serving.as_mut();
            let serving = serving.expect("not polled again after it was ready");
            if let Poll::Ready(served) = serving.as_mut().poll(cx) {
                match &served {
                    Err(error) => {
                        info.end_with(error.reason());
                    }
                    Ok(()) => self.exchange.settle(&info),
                }
                return Poll::Ready(served.map_err(Into::into));
            }
            self.as_mut().park();
            let Some(watch) = self.as_mut().project().watch else {
                return Poll::Pending;
            };
            match watch.as_mut().poll(cx, &info) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Verdict::Told) => {}
                Poll::Ready(Verdict::Over(elapsed)) => {
                    info.cut(elapsed.which());
                    *self.as_mut().project().serving = None;
                    return Poll::Ready(Err(elapsed.into()));
                }
            }
        }
    }
}

impl HttpFuture {
    /// Notes what is waited for.
    fn park(self: Pin<&mut Self>) {
        let this = self.project();
        let waits = &this.info.waits;
        if waits.take_late(Late::Request) {
            this.shared
                .metrics
                .spares(CloseReason::Request);
        }
        let more = this
            .exchange
            .given_since(this.given, this.info);
        waits.request_by.extend(more);
        waits.busy.set(this.exchange.is_busy());
        let partial = this.exchange.partial();
        waits.receiving.set(partial.is_some());
        if *this.timed != partial {
            *this.timed = partial;
            if partial.is_some() {
                let limit = this.shared.settings.head;
                let by = plus(this.info.stamp(now()), limit);
                waits.request_by.set(by);
            } else {
                waits.request_by.clear();
            }
        }
    }
}

impl fmt::Debug for HttpFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpFuture")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// Serves a connection in the version that its first bytes are of, and waits for what it was upgraded to.
async fn serve<I, S, B>(conn: Conn<I>, handler: Handler<S>) -> Result<(), HttpError>
where
    I: Io,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let info = Arc::clone(&handler.info);
    let exchange = Arc::clone(&handler.exchange);
    let shared = Arc::clone(&handler.shared);
    let (back, returned) = oneshot::channel();
    let io = HttpIo::new(conn, Arc::clone(&exchange), back);
    let Some((is_http2, io)) = version_of(io, &info).await? else {
        return Ok(());
    };
    let io = TokioIo::new(io);
    let served = if is_http2 {
        let serving = shared
            .settings
            .http2
            .serve_connection(io, handler);
        drive(&info, &exchange, serving, |serving| {
            serving.graceful_shutdown()
        })
        .await
    } else {
        let serving = shared
            .settings
            .http1
            .serve_connection(io, handler);
        let serving = serving.with_upgrades();
        drive(&info, &exchange, serving, |serving| {
            serving.graceful_shutdown()
        })
        .await
    };
    exchange.upgrade();
    // It comes back when hyper is done with it, or whoever it was upgraded for.
    if let Ok(conn) = returned.await {
        // Of a peer that sends ahead, requests may be here that nobody will read.
        let may_send = served.is_ok() && !exchange.has_ended();
        if may_send && (exchange.has_body() || has_unread(&conn)) {
            // All is said: whatever ends it now is not what it ends for.
            exchange.settle(&info);
            // A peer that has gone meanwhile has nothing more to lose.
            let _gone = linger(
                conn,
                Linger::default()
                    .total(LINGER)
                    .quiet(SILENCE),
            )
            .await;
        }
    }
    served
}

/// Reads until it is certain whether this is the preface of HTTP/2; `None` for a connection that has not spoken when it
/// is told to leave, or that leaves by itself.
async fn version_of<I: Io>(
    mut io: HttpIo<I>,
    info: &ConnInfo,
) -> Result<Option<(bool, RewoundIo<HttpIo<I>>)>, HttpError> {
    let mut seen = BytesMut::new();
    loop {
        let is_http2 = match Opening::new().read(&seen) {
            Opened::InPart => None,
            Opened::Whole(_) => Some(true),
            Opened::Other => Some(false),
        };
        if let Some(is_http2) = is_http2 {
            let io = RewoundIo::new(seen.freeze(), io);
            return Ok(Some((is_http2, io)));
        }
        seen.reserve(FIRST_READ);
        let read = poll_fn(|cx| match poll_read_buf(Pin::new(&mut io), cx, &mut seen) {
            Poll::Pending if info.is_leaving() && seen.is_empty() && !has_unread(&io) => {
                Poll::Ready(Ok(0))
            }
            read => read,
        });
        if read.await.map_err(HttpError::io)? == 0 {
            return match seen.is_empty() {
                true => Ok(None),
                false => Err(HttpError::protocol("ended in its first bytes")),
            };
        }
    }
}

/// Polls hyper's connection to its end, and tells it once when it has to leave.
async fn drive<C>(
    info: &ConnInfo,
    exchange: &Exchange,
    serving: C,
    leave: impl Fn(Pin<&mut C>),
) -> Result<(), HttpError>
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let (mut serving, mut told) = (pin!(serving), false);
    poll_fn(|cx| {
        loop {
            let polled = serving.as_mut().poll(cx);
            if polled.is_ready() || told || !info.is_leaving() {
                return polled;
            }
            if !exchange.is_busy() && exchange.has_more() {
                // One more request: it is answered, or late.
                return Poll::Pending;
            }
            told = true;
            leave(serving.as_mut());
        }
    })
    .await
    .map_err(HttpError::hyper)
}

/// Reserved for the first bytes: a head of a usual size.
const FIRST_READ: usize = 512;

/// For the last response to arrive at a peer that is still sending.
const LINGER: Duration = Duration::from_secs(5);

/// A round trip to the other side of the world, several times over.
const SILENCE: Duration = Duration::from_secs(1);
