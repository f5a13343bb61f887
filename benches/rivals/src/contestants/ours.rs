//! `ours`: tower-net, with all the protection it gives switched on.
//!
//! Metering, tracing, a connection limit, first-byte, idle and write-stall deadlines, capped frames, pipelining,
//! request, handler and reply deadlines, and a server that drains.

use std::{future::ready, io, time::Duration};

use bytes::Bytes;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_net::{
    Server,
    deadline::DeadlineLayer,
    frame::{FrameLayer, Framing, LengthDelimited, Request},
    limit::ConnectionLimitLayer,
    listen::Tcp,
    meter::MeterLayer,
    trace::TraceLayer,
};

use super::no_delay;

pub(super) async fn serve(listener: TcpListener) {
    let framing = Framing::default()
        .pipelined(64)
        .request_deadline(Duration::from_secs(30));
    let stack = ServiceBuilder::new()
        .layer(MeterLayer::new("echo"))
        .layer(ConnectionLimitLayer::new(10_000).expect("not zero"))
        .layer(TraceLayer::new())
        .layer(DeadlineLayer::default())
        .layer(
            FrameLayer::with_framing(LengthDelimited::max_frame(1 << 20), framing)
                .expect("not zero"),
        )
        .service_fn(|request: Request<Bytes>| ready(Ok::<_, io::Error>(request.into_message())));
    no_delay(&listener);
    let served = Server::new(Tcp::from(listener))
        .serve(stack)
        .await;
    served.expect("a runtime with timers");
}
