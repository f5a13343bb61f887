//! The server: one stack, from the socket to the store. Read it from the top, as a request travels.

use std::time::Duration;

use tower::{ServiceBuilder, limit::GlobalConcurrencyLimitLayer};
use tower_net::{
    Report, Server,
    deadline::{DeadlineLayer, Deadlines},
    error::BoxError,
    frame::{FrameLayer, Framing, Request},
    limit::ConnectionLimitLayer,
    listen::Tcp,
    meter::MeterLayer,
    trace::TraceLayer,
};

use crate::{
    protocol::{Call, ServerCodec, last_reply},
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
            framing: Framing::default()
                .pipelined(64)
                .service("rpc"),
            max_requests: 4096,
            drain: Duration::from_secs(30),
        }
    }
}

/// Serves `store` until `shutdown`, then drains.
pub(crate) async fn serve(
    listener: Tcp,
    store: Store,
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<Report, BoxError> {
    let frames = FrameLayer::with_framing(ServerCodec::new(), settings.framing)?;
    let stack = ServiceBuilder::new()
        // Connections: counted, the surplus reset, the rest traced and held to their deadlines.
        .layer(settings.meter)
        .layer(ConnectionLimitLayer::new(settings.max_connections)?)
        .layer(TraceLayer::new())
        .layer(DeadlineLayer::new(settings.deadlines)?)
        // The crossing: bytes above, calls below.
        .layer(frames.last_reply(last_reply))
        // Requests: any tower layer fits here.
        .layer(GlobalConcurrencyLimitLayer::new(settings.max_requests))
        .service_fn(move |call: Request<Call>| store.clone().answer(call));
    let report = Server::new(listener)
        .serve(stack)
        .with_graceful_shutdown(shutdown)
        .drain_for(settings.drain)
        .await?;
    Ok(report)
}
