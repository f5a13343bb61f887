//! What a connection costs through each layer, from the call to the close, beside the same connection without it.

mod harness;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use harness::{Bursts, Scene};
use tokio::io::{AsyncRead, ReadBuf};
use tower::{Service, ServiceBuilder, ServiceExt, layer::util::Identity};
use tower_layer::Layer;
use tower_net::{
    Conn,
    deadline::DeadlineLayer,
    detect::{Answer, DetectLayer, Protocol},
    filter::{FilterLayer, Rules},
    frame::{FrameLayer, LengthDelimited, Request},
    guard::{Guard, Settings},
    io::Io,
    limit::{ConnectRateLayer, ConnectionLimitLayer, PerPeerLimitLayer},
    meter::MeterLayer,
    pressure::{PressureLayer, Thresholds},
    proxy_protocol::{Header, Others, ProxyProtocolLayer, Version},
    throttle::{Rate, Rates, ThrottleLayer},
    trace::TraceLayer,
};

const SCENES: &[Scene] = &[
    ("bare service", |rounds| layered(rounds, Identity::new())),
    ("meter", |rounds| layered(rounds, MeterLayer::new("bench"))),
    ("trace", |rounds| layered(rounds, TraceLayer::new())),
    ("limit", |rounds| layered(rounds, limit())),
    ("pressure", |rounds| layered(rounds, pressure())),
    ("filter", |rounds| layered(rounds, filter())),
    ("limit of each peer", |rounds| layered(rounds, per_peer())),
    ("rate of each peer", |rounds| layered(rounds, rate())),
    ("proxy_protocol, no proxy", |rounds| {
        layered(rounds, proxies("192.0.2.0/24"));
    }),
    ("proxy_protocol, a header of version 2", |rounds| {
        serve(rounds, &announced(), proxies("127.0.0.0/8").layer(ReadOne));
    }),
    ("deadline", |rounds| {
        layered(rounds, DeadlineLayer::default())
    }),
    ("throttle, each", |rounds| {
        let rates = Rates::new().receive(Rate::per_second(1 << 36));
        layered(rounds, throttle(rates));
    }),
    ("throttle, shared", |rounds| {
        let rates = Rates::new().receive_shared(Rate::per_second(1 << 36));
        layered(rounds, throttle(rates));
    }),
    ("detect, the layered service", |rounds| {
        let layer = DetectLayer::new()
            .route(Protocol::tls(), ReadOne)
            .route(Protocol::http1(), ReadOne);
        layered(rounds, layer);
    }),
    ("detect, a route", |rounds| {
        let frames = Protocol::own("frames", |_| Answer::Yes);
        layered(rounds, DetectLayer::new().route(frames, ReadOne));
    }),
    ("deadline, and pressure", |rounds| {
        let layers = ServiceBuilder::new()
            .layer(pressure())
            .layer(DeadlineLayer::default());
        layered(rounds, layers.into_inner());
    }),
    ("meter, trace, limit, deadline", |rounds| {
        let layers = ServiceBuilder::new()
            .layer(MeterLayer::new("bench"))
            .layer(limit())
            .layer(TraceLayer::new())
            .layer(DeadlineLayer::default());
        layered(rounds, layers.into_inner());
    }),
    ("all of these, and frame", |rounds| {
        let stack = ServiceBuilder::new()
            .layer(MeterLayer::new("bench"))
            .layer(limit())
            .layer(TraceLayer::new())
            .layer(DeadlineLayer::default())
            .layer(FrameLayer::new(LengthDelimited::max_frame(64)))
            .service_fn(async |request: Request<Bytes>| {
                Ok::<_, Infallible>(request.into_message())
            });
        serve(rounds, REQUEST, stack);
    }),
    ("guard", |rounds| layered(rounds, guard())),
];

fn main() {
    harness::main("stack", "a connection that sends one request", SCENES);
}

/// Its ticks are far apart: what is counted is a connection, and not the time that valgrind takes for one.
fn pressure() -> PressureLayer {
    let thresholds = Thresholds::default()
        .memory(1 << 40, 1 << 41)
        .every(Duration::from_secs(3_600));
    PressureLayer::new(thresholds).expect("thresholds that make sense")
}

fn limit() -> ConnectionLimitLayer {
    ConnectionLimitLayer::new(10).expect("not zero")
}

fn filter() -> FilterLayer {
    let rules = Rules::deny_all().allow(["10.0.0.0/8", "127.0.0.0/8"]);
    let rules = rules.and_then(|rules| rules.deny(["127.66.0.0/16"]));
    FilterLayer::new(rules.expect("networks"))
}

fn proxies(network: &str) -> ProxyProtocolLayer {
    let layer = ProxyProtocolLayer::required_from([network]).expect("a network");
    layer.others(Others::Direct)
}

/// A request that a proxy passes on.
fn announced() -> Vec<u8> {
    let client = SocketAddr::from(([198, 51, 100, 7], 4000));
    let header = Header::tcp(Version::V2, client, peer(0));
    let header = header.and_then(|header| header.encode());
    [&header.expect("a header"), REQUEST].concat()
}

fn guard() -> Guard {
    Guard::new(Settings::default()).expect("good settings")
}

fn throttle(rates: Rates) -> ThrottleLayer {
    ThrottleLayer::new(rates).expect("good rates")
}

fn per_peer() -> PerPeerLimitLayer {
    PerPeerLimitLayer::new(10).expect("not zero")
}

fn rate() -> ConnectRateLayer {
    ConnectRateLayer::new(1e9, u32::MAX).expect("not zero")
}

/// A service that reads one request and ends, under `layer`.
fn layered<L, S>(rounds: u64, layer: L)
where
    L: Layer<ReadOne, Service = S>,
    S: Service<Conn<Bursts>, Response = (), Error: Into<tower::BoxError>>,
{
    serve(rounds, REQUEST, layer.layer(ReadOne));
}

#[derive(Debug, Clone, Copy)]
struct ReadOne;

impl<I: Io> Service<Conn<I>> for ReadOne {
    type Response = ();
    type Error = io::Error;
    type Future = ReadOneFuture<I>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, conn: Conn<I>) -> Self::Future {
        ReadOneFuture { conn }
    }
}

/// Reads until the peer ends.
#[derive(Debug)]
struct ReadOneFuture<I> {
    conn: Conn<I>,
}

impl<I: Io> Future for ReadOneFuture<I> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut buffer = [0; 64];
            let mut buffer = ReadBuf::new(&mut buffer);
            ready!(Pin::new(&mut self.conn).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

const REQUEST: &[u8] = b"\0\0\0\x02hi";

/// One of sixteen hosts in turn: within the rate of each that a guard lets pass.
fn peer(round: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, (round % 16) as u8], 4000))
}

/// Serves a connection of which all comes in one burst, so many times.
fn serve<S>(rounds: u64, burst: &[u8], mut stack: S)
where
    S: Service<Conn<Bursts>, Response = (), Error: Into<tower::BoxError>>,
{
    let burst = Bytes::copy_from_slice(burst);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        for round in 0..rounds {
            let conn = Conn::new(Bursts::new(burst.clone(), 1), peer(round));
            let ready = stack
                .ready()
                .await
                .map_err(Into::into)
                .expect("ready");
            ready
                .call(conn)
                .await
                .map_err(Into::into)
                .expect("a clean end");
        }
    });
}
