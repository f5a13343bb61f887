use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio_util::codec::{Decoder, Encoder};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
        time::KeepsTime,
    },
    conn::{
        Conn,
        turn::Turn,
        watch::{Limits, Verdict, Watch},
    },
    middleware::frame::{
        FrameError, Framing, Request,
        driver::Driver,
        metrics::Metrics,
        protocol::{InOrder, Replies, Requests},
    },
};

/// Turns a service of requests into a service of connections. See the [module](crate::frame).
#[derive(Debug, Clone)]
pub struct FrameLayer<C, L = Silent> {
    codec: C,
    last: L,
    shared: Arc<Shared>,
}

/// What all connections of a layer have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) framing: Framing,
    pub(super) metrics: Metrics,
    no_limits: Arc<Limits>,
    keeps_time: KeepsTime,
}

impl Shared {
    pub(super) fn new(framing: Framing, by_id: bool) -> Self {
        Self {
            metrics: Metrics::new(&framing.service, framing.dry_run, by_id),
            no_limits: Arc::new(Limits::NONE),
            keeps_time: KeepsTime::default(),
            framing,
        }
    }

    /// Whether deadlines can be kept at all.
    pub(super) fn poll_ready(&self) -> Poll<Result<(), BoxError>> {
        Poll::Ready(
            self.keeps_time
                .check()
                .map_err(Into::into),
        )
    }
}

impl<C> FrameLayer<C> {
    /// Frames by `codec`, with every setting of [`Framing`] at its default: one request at a time, and 30 s
    /// each for a request, its handler and its reply.
    ///
    /// The codec is cloned for each connection.
    #[must_use]
    pub fn new(codec: C) -> Self {
        Self::unchecked(codec, Framing::default())
    }

    /// Frames by `codec`, with settings.
    ///
    /// # Errors
    ///
    /// A setting of zero, or [`multiplexed`](Framing::multiplexed), for which a codec must have ids.
    pub fn with_framing(codec: C, framing: Framing) -> Result<Self, ConfigError> {
        framing.check()?;
        if framing.multiplexed {
            let problem = "needs a codec whose requests have ids, and `RpcLayer`";
            return Err(ConfigError::new("multiplexed", problem));
        }
        Ok(Self::unchecked(codec, framing))
    }

    fn unchecked(codec: C, framing: Framing) -> Self {
        Self {
            codec,
            last: Silent::default(),
            shared: Arc::new(Shared::new(framing, false)),
        }
    }

    /// Says in the protocol's own terms why a request has no other reply. See [`LastReply`].
    #[must_use]
    pub fn last_reply<R, L: Fn(&FrameError) -> Option<R>>(self, last: L) -> FrameLayer<C, L> {
        FrameLayer {
            codec: self.codec,
            last,
            shared: self.shared,
        }
    }
}

impl<S, C: Clone, L: Clone> Layer<S> for FrameLayer<C, L> {
    type Service = Frame<S, C, L>;

    fn layer(&self, inner: S) -> Self::Service {
        Frame {
            inner,
            codec: self.codec.clone(),
            last: self.last.clone(),
            shared: Arc::clone(&self.shared),
        }
    }
}

/// What to reply when something goes wrong that the service has no reply for.
///
/// Implemented by every `Fn(&FrameError) -> Option<Reply>`, and by [`Silent`]. `None` says nothing.
pub trait LastReply<R> {
    /// The reply to whatever `error` befell.
    fn last_reply(&self, error: &FrameError) -> Option<R>;
}

impl<R, F: Fn(&FrameError) -> Option<R>> LastReply<R> for F {
    fn last_reply(&self, error: &FrameError) -> Option<R> {
        self(error)
    }
}

/// No last reply: the connection just ends.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Silent;

impl<R> LastReply<R> for Silent {
    fn last_reply(&self, _: &FrameError) -> Option<R> {
        None
    }
}

/// The service of [`FrameLayer`].
#[derive(Debug, Clone)]
pub struct Frame<S, C, L> {
    inner: S,
    codec: C,
    last: L,
    shared: Arc<Shared>,
}

impl<I, S, C, L> Service<Conn<I>> for Frame<S, C, L>
where
    I: Io,
    S: Service<Request<C::Item>> + Clone,
    S::Error: Into<BoxError>,
    C: Decoder + Encoder<S::Response> + Clone,
    <C as Decoder>::Error: Into<BoxError>,
    <C as Encoder<S::Response>>::Error: Into<BoxError>,
    L: LastReply<S::Response> + Clone,
{
    type Response = ();
    type Error = BoxError;
    type Future = FrameFuture<I, S, C, L>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.shared.poll_ready()
    }

    fn call(&mut self, conn: Conn<I>) -> FrameFuture<I, S, C, L> {
        let protocol = InOrder {
            codec: self.codec.clone(),
            last: self.last.clone(),
        };
        FrameFuture {
            crossing: Crossing::new(conn, self.inner.clone(), protocol, &self.shared),
        }
    }
}

/// One connection, and who keeps its deadlines.
pub(super) struct Crossing<I, S, P>
where
    I: Io,
    S: Service<Request<<P as Requests>::Message>>,
    P: Requests,
{
    driver: Driver<I, S, P>,
    watch: Option<Pin<Box<Watch>>>,
}

impl<I, S, P> Crossing<I, S, P>
where
    I: Io,
    S: Service<Request<<P as Requests>::Message>>,
    S::Error: Into<BoxError>,
    P: Requests + Replies<S::Response>,
{
    pub(super) fn new(conn: Conn<I>, service: S, protocol: P, shared: &Arc<Shared>) -> Self
    where
        S: Clone,
    {
        // With a watch above, the deadlines of requests are kept there: one timer a connection.
        let info = conn.info();
        info.handshakes_done();
        for safeguard in shared.framing.safeguards() {
            info.passed.mark(safeguard);
        }
        let watched = info.waits.watched.get();
        let limits = &shared.no_limits;
        Self {
            watch: (!watched).then(|| Box::pin(Watch::new(Arc::clone(limits)))),
            driver: Driver::new(conn, service, protocol, Arc::clone(shared)),
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let _turn = Turn::take(cx, self.driver.info());
        loop {
            if let Poll::Ready(result) = self.driver.poll(cx) {
                return Poll::Ready(result);
            }
            let Some(watch) = &mut self.watch else {
                return Poll::Pending;
            };
            let info = self.driver.info();
            match std::task::ready!(watch.as_mut().poll(cx, info)) {
                Verdict::Told => {}
                Verdict::Over(elapsed) => {
                    info.cut(elapsed.which());
                    self.driver.abandon();
                    return Poll::Ready(Err(FrameError::Elapsed(elapsed).into()));
                }
            }
        }
    }

    pub(super) fn into_parts(self) -> Option<FrameParts<I>> {
        let (conn, read, unwritten) = self.driver.into_parts()?;
        Some(FrameParts {
            conn,
            read,
            unwritten,
        })
    }
}

/// The future of [`Frame`]: one connection, until it ends.
#[must_use = "futures do nothing unless polled"]
pub struct FrameFuture<I, S, C, L>
where
    I: Io,
    S: Service<Request<C::Item>>,
    C: Decoder,
    C::Error: Into<BoxError>,
{
    crossing: Crossing<I, S, InOrder<C, L>>,
}

// Nothing in it is pinned in place: handlers are pinned in seats of their own.
impl<I, S, C, L> Unpin for FrameFuture<I, S, C, L>
where
    I: Io,
    S: Service<Request<C::Item>>,
    C: Decoder,
    C::Error: Into<BoxError>,
{
}

/// A framed connection taken apart; see [`FrameFuture::into_parts`].
#[derive(Debug)]
#[non_exhaustive]
pub struct FrameParts<I> {
    /// The connection.
    pub conn: Conn<I>,
    /// What was read and has not been decoded.
    pub read: Bytes,
    /// What was encoded and has not been written.
    pub unwritten: Bytes,
}

impl<I, S, C, L> FrameFuture<I, S, C, L>
where
    I: Io,
    S: Service<Request<C::Item>>,
    S::Error: Into<BoxError>,
    C: Decoder + Encoder<S::Response>,
    <C as Decoder>::Error: Into<BoxError>,
    <C as Encoder<S::Response>>::Error: Into<BoxError>,
    L: LastReply<S::Response>,
{
    /// Gives the stream back, with the bytes that are between it and the handlers; `None` once it is closed.
    ///
    /// Handlers in flight are dropped, and their requests with them; so is a request that the service was not
    /// ready for. For an accept loop that calls the crossing itself: within a stack the future is not to be had.
    #[must_use]
    pub fn into_parts(self) -> Option<FrameParts<I>> {
        self.crossing.into_parts()
    }
}

impl<I, S, C, L> Future for FrameFuture<I, S, C, L>
where
    I: Io,
    S: Service<Request<C::Item>>,
    S::Error: Into<BoxError>,
    C: Decoder + Encoder<S::Response>,
    <C as Decoder>::Error: Into<BoxError>,
    <C as Encoder<S::Response>>::Error: Into<BoxError>,
    L: LastReply<S::Response>,
{
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().crossing.poll(cx)
    }
}

impl<I, S, C, L> fmt::Debug for FrameFuture<I, S, C, L>
where
    I: Io,
    S: Service<Request<C::Item>>,
    C: Decoder,
    C::Error: Into<BoxError>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameFuture")
            .finish_non_exhaustive()
    }
}
