//! The server: one stack, from the socket to the store. Read it from the top, as a request travels.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tower::{ServiceBuilder, limit::GlobalConcurrencyLimitLayer};
use tower_net::{
    Report, Server,
    deadline::{DeadlineLayer, Deadlines},
    error::BoxError,
    frame::{FrameLayer, Framing, Request, RpcCode, RpcCodec, RpcFailure, RpcLayer},
    limit::ConnectionLimitLayer,
    listen::Tcp,
    meter::MeterLayer,
    trace::TraceLayer,
};

use crate::{
    protocol::{self, Call, MAX_FRAME, Mode, ServerCodec, last_reply},
    store::Store,
};

/// What a server of your own would read from its configuration.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where the counts go; `MeterLayer::pair` also gives a handle to read them.
    pub(crate) meter: MeterLayer,
    pub(crate) max_connections: usize,
    /// First byte, idle, write stall, age.
    pub(crate) deadlines: Deadlines,
    /// Whether replies keep the order of their calls.
    pub(crate) mode: Mode,
    /// How many calls of a connection at once, and the deadlines of each.
    pub(crate) framing: Framing,
    /// Calls at once, over all connections. Waits count, too.
    pub(crate) max_requests: usize,
    /// How long connections may take to leave.
    pub(crate) drain: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            meter: MeterLayer::new("rpc"),
            max_connections: 10_000,
            deadlines: Deadlines::default(),
            mode: Mode::default(),
            framing: Framing::default()
                .pipelined(DEPTH)
                .service("rpc"),
            max_requests: 4096,
            drain: Duration::from_secs(30),
        }
    }
}

impl Settings {
    /// The same in another mode.
    pub(crate) fn mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }
}

/// Serves `store` until `shutdown`, then drains.
pub(crate) async fn serve(
    listener: Tcp,
    store: Store,
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Report, BoxError> {
    // Connections: counted, the surplus reset, the rest traced and held to their deadlines.
    let connections = ServiceBuilder::new()
        .layer(settings.meter)
        .layer(ConnectionLimitLayer::new(settings.max_connections)?)
        .layer(TraceLayer::new())
        .layer(DeadlineLayer::new(settings.deadlines)?);
    // Requests: any tower layer fits here.
    let requests =
        ServiceBuilder::new().layer(GlobalConcurrencyLimitLayer::new(settings.max_requests));
    // Between the two is the crossing: bytes above, calls below.
    let server = Server::new(listener);
    let report = match settings.mode {
        Mode::Pipelined => {
            let frames = FrameLayer::with_framing(ServerCodec::new(), settings.framing)?;
            let answer = move |call: Request<Call>| store.clone().answer(call);
            let stack = connections.layer(frames.last_reply(last_reply));
            server
                .serve(stack.layer(requests).service_fn(answer))
                .with_graceful_shutdown(shutdown)
                .drain_for(settings.drain)
                .await?
        }
        Mode::Multiplexed => {
            let framing = settings.framing.multiplexed(DEPTH);
            let frames = RpcLayer::with_framing(RpcCodec::max_payload(MAX_FRAME), framing)?;
            let answer = move |request| answer(store.clone(), request);
            server
                .serve(
                    connections
                        .layer(frames)
                        .layer(requests)
                        .service_fn(answer),
                )
                .with_graceful_shutdown(shutdown)
                .drain_for(settings.drain)
                .await?
        }
    };
    Ok(report)
}

/// One call as the payload of a frame, whose deadline is the caller's if that is before ours.
async fn answer(store: Store, request: Request<Bytes>) -> Result<Bytes, BoxError> {
    let conn = Arc::clone(request.conn());
    let Ok(call) = protocol::parse(request.into_message()) else {
        return Err(RpcFailure::new(RpcCode::Failed, "the frame holds no call").into());
    };
    let reply = store
        .answer(Request::new(call, &conn))
        .await?;
    protocol::encode(&reply)
}

/// Calls of a connection at once.
const DEPTH: usize = 64;
