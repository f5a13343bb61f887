use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio_util::codec::{Decoder, Encoder};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
    },
    conn::Conn,
    middleware::frame::{
        Correlated, FrameParts, Framing, Outgoing, Request, RpcCodec,
        budget::RefusalBudget,
        protocol::ById,
        serve::{Crossing, Shared},
    },
};

/// Turns a service of requests into a service of connections, where requests have ids.
///
/// What [`FrameLayer`](crate::frame::FrameLayer) does, and besides:
///
/// - **Replies** go out as they come if [multiplexed](Framing::multiplexed), which is the default, and in the order of
///   their requests if [pipelined](Framing::pipelined).
/// - **The time that a caller has left** is the request's [`Deadline`](crate::Deadline) if it is before ours. As ours it
///   begins when the handler first waits or asks; where a request had to wait for room, when that was seen. What it took
///   on the way nobody knows. Work whose time is used up on arrival is refused before it is begun, within a
///   [budget](Framing::refusal_budget).
/// - **A cancel** drops the handler and frees its place; nothing is answered.
/// - **A request that fails**, panics, is late, too long or not understood is answered with an
///   [`RpcFailure`](crate::frame::RpcFailure), and the connection goes on with the others. What is late is dropped.
/// - **Told to leave**, it says at once which request is the last that it has taken, finishes those, and closes.
///
/// ```
/// use bytes::Bytes;
/// use tower::ServiceBuilder;
/// use tower_net::frame::{Request, RpcLayer};
///
/// let stack = ServiceBuilder::new()
///     .layer(RpcLayer::new(1 << 20)) // payloads of 1 MiB, 64 requests at once
///     .service_fn(async |request: Request<Bytes>| Ok::<_, std::io::Error>(request.into_message()));
/// # drop(stack);
/// ```
///
/// | what happens | what it does | reason |
/// |---|---|---|
/// | request fails, panics, is late, refused | a failure in its stead, and on | |
/// | reply too long | the same | |
/// | cancel of a request in flight | drops the handler, and on | |
/// | cancel of any other | nothing | |
/// | id that is in flight already | finishes what is in flight, a failure with id 0, an orderly close | `protocol` |
/// | bytes that are no frame, a reply from a client | the same | `protocol` |
/// | request not complete in time | the same | `request` |
/// | the service will never be ready | the same, and those not begun are refused | `error` |
/// | a codec that panics, or a handler as it is dropped | drops what is in flight, a failure with id 0, an orderly close | `panic` |
/// | the notice to leave | says so, finishes what has begun to arrive, an orderly close | `drain`, `age`, `served` |
///
/// An orderly close waits up to 1 s of silence for the peer to end its side, also where nothing was in flight.
///
/// # Readiness
///
/// As [`FrameLayer`](crate::frame::FrameLayer): always ready itself, and the inner service is made ready for each
/// request. While that is not, no cancel is seen either; nor is one behind a full depth where replies keep their order,
/// nor once the connection leaves.
///
/// # Errors
///
/// [`FrameError`](crate::frame::FrameError), unless the connection ended well.
///
/// # On drop
///
/// As [`FrameLayer`](crate::frame::FrameLayer).
#[derive(Debug, Clone)]
pub struct RpcLayer<C = RpcCodec> {
    codec: C,
    shared: Arc<Shared>,
}

impl RpcLayer {
    /// Our own framing with payloads of at most `max_payload` bytes; 64 requests of a connection at once, replies as
    /// they come, and other settings of [`Framing`] at their defaults.
    #[must_use]
    pub fn new(max_payload: usize) -> Self {
        let framing = Framing::default().multiplexed(DEPTH);
        let framing = framing.room_for(max_payload);
        Self {
            codec: RpcCodec::max_payload(max_payload),
            shared: Arc::new(Shared::new(framing, true)),
        }
    }
}

impl<C> RpcLayer<C> {
    /// Any codec whose messages are [`Correlated`] and which encodes [`Outgoing`], with settings. The codec is cloned
    /// for each connection.
    ///
    /// # Errors
    ///
    /// A setting of zero.
    pub fn with_framing(codec: C, framing: Framing) -> Result<Self, ConfigError> {
        framing.check()?;
        Ok(Self {
            codec,
            shared: Arc::new(Shared::new(framing, true)),
        })
    }
}

impl<S, C: Clone> Layer<S> for RpcLayer<C> {
    type Service = Rpc<S, C>;

    fn layer(&self, inner: S) -> Rpc<S, C> {
        Rpc {
            inner,
            codec: self.codec.clone(),
            shared: Arc::clone(&self.shared),
        }
    }
}

/// The service of [`RpcLayer`].
#[derive(Debug, Clone)]
pub struct Rpc<S, C = RpcCodec> {
    inner: S,
    codec: C,
    shared: Arc<Shared>,
}

impl<I, S, C> Service<Conn<I>> for Rpc<S, C>
where
    I: Io,
    S: Service<Request<<C::Item as Correlated>::Message>> + Clone,
    S::Error: Into<BoxError>,
    C: Decoder<Item: Correlated> + Encoder<Outgoing<S::Response>> + Clone,
    <C as Decoder>::Error: Into<BoxError>,
    <C as Encoder<Outgoing<S::Response>>>::Error: Into<BoxError>,
{
    type Response = ();
    type Error = BoxError;
    type Future = RpcFuture<I, S, C>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.shared.poll_ready()
    }

    fn call(&mut self, conn: Conn<I>) -> RpcFuture<I, S, C> {
        let framing = &self.shared.framing;
        let protocol = ById {
            codec: self.codec.clone(),
            budget: RefusalBudget::new(
                framing.refusal_cost,
                framing.refusal_window,
                conn.info().accepted_at(),
            ),
        };
        RpcFuture {
            crossing: Crossing::new(conn, self.inner.clone(), protocol, &self.shared),
        }
    }
}

/// The future of [`Rpc`]: one connection, until it ends.
#[must_use = "futures do nothing unless polled"]
pub struct RpcFuture<I, S, C>
where
    I: Io,
    S: Service<Request<<C::Item as Correlated>::Message>>,
    C: Decoder<Item: Correlated>,
    C::Error: Into<BoxError>,
{
    crossing: Crossing<I, S, ById<C>>,
}

// Nothing in it is pinned in place: handlers are pinned in seats of their own.
impl<I, S, C> Unpin for RpcFuture<I, S, C>
where
    I: Io,
    S: Service<Request<<C::Item as Correlated>::Message>>,
    C: Decoder<Item: Correlated>,
    C::Error: Into<BoxError>,
{
}

impl<I, S, C> RpcFuture<I, S, C>
where
    I: Io,
    S: Service<Request<<C::Item as Correlated>::Message>>,
    S::Error: Into<BoxError>,
    C: Decoder<Item: Correlated> + Encoder<Outgoing<S::Response>>,
    <C as Decoder>::Error: Into<BoxError>,
    <C as Encoder<Outgoing<S::Response>>>::Error: Into<BoxError>,
{
    /// Gives the stream back, as [`FrameFuture::into_parts`](crate::frame::FrameFuture::into_parts) does.
    #[must_use]
    pub fn into_parts(self) -> Option<FrameParts<I>> {
        self.crossing.into_parts()
    }
}

impl<I, S, C> Future for RpcFuture<I, S, C>
where
    I: Io,
    S: Service<Request<<C::Item as Correlated>::Message>>,
    S::Error: Into<BoxError>,
    C: Decoder<Item: Correlated> + Encoder<Outgoing<S::Response>>,
    <C as Decoder>::Error: Into<BoxError>,
    <C as Encoder<Outgoing<S::Response>>>::Error: Into<BoxError>,
{
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().crossing.poll(cx)
    }
}

impl<I, S, C> fmt::Debug for RpcFuture<I, S, C>
where
    I: Io,
    S: Service<Request<<C::Item as Correlated>::Message>>,
    C: Decoder<Item: Correlated>,
    C::Error: Into<BoxError>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcFuture")
            .finish_non_exhaustive()
    }
}

/// Enough that nobody waits for a round trip, and no more memory than a burst takes.
const DEPTH: usize = 64;
