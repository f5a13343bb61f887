//! What a request costs through the frame layer, and what the layers around it add to that.

mod harness;

use std::{convert::Infallible, future::poll_fn, io, task::Poll};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use harness::{Bursts, Scene};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_net::{
    Conn,
    deadline::DeadlineLayer,
    frame::{FrameLayer, Framing, LengthDelimited, Request, RpcCodec, RpcLayer},
    limit::ConnectionLimitLayer,
    meter::MeterLayer,
    trace::TraceLayer,
};

/// One layer above the frame layer, a request of 64 bytes at a time.
macro_rules! with {
    ($layer:expr) => {
        |rounds| {
            let stack = ServiceBuilder::new()
                .layer($layer)
                .layer(layer());
            serve(stack.service_fn(echo), peer(rounds, 64, 1));
        }
    };
}

const SCENES: &[Scene] = &[
    ("frame, 64 bytes, depth 1", |rounds| framed(rounds, 64, 1)),
    ("  and meter", with!(MeterLayer::new("bench"))),
    ("  and trace", with!(TraceLayer::new())),
    ("  and limit", with!(limit())),
    ("  and deadline", with!(DeadlineLayer::default())),
    ("  and all of these", |rounds| full(rounds, 64, 1)),
    ("no layer at all, a loop by hand", |rounds| {
        bare(rounds, 64, 1);
    }),
    ("tokio-util Framed", |rounds| rival(rounds, 64, 1)),
    ("frame, 64 bytes, depth 64", |rounds| framed(rounds, 64, 64)),
    ("  and all layers", |rounds| full(rounds, 64, 64)),
    ("no layer at all, a loop by hand, depth 64", |rounds| {
        bare(rounds, 64, 64);
    }),
    ("tokio-util Framed, depth 64", |rounds| {
        rival(rounds, 64, 64)
    }),
    ("rpc, multiplexed, 64 bytes, depth 1", |rounds| {
        called(rounds, Framing::default().multiplexed(64), 1);
    }),
    ("rpc, multiplexed, 64 bytes, depth 64", |rounds| {
        called(rounds, Framing::default().multiplexed(64), 64);
    }),
    ("rpc, pipelined, 64 bytes, depth 64", |rounds| {
        called(rounds, Framing::default().pipelined(64), 64);
    }),
    ("frame, depth 64, all late", |rounds| {
        let stack = ServiceBuilder::new().layer(layer());
        serve(stack.service_fn(late), peer(rounds, 64, 64));
    }),
    ("rpc, multiplexed, depth 64, all late", |rounds| {
        let framing = Framing::default().multiplexed(64);
        let stack = ServiceBuilder::new().layer(rpc(framing));
        serve(stack.service_fn(late), caller(rounds, 64));
    }),
    ("all layers, 4096 bytes, depth 1", |rounds| {
        full(rounds, 4096, 1)
    }),
    ("all layers, 4096 bytes, depth 8", |rounds| {
        full(rounds, 4096, 8)
    }),
];

fn main() {
    harness::main("frame", "a burst", SCENES);
}

async fn echo(request: Request<Bytes>) -> Result<Bytes, Infallible> {
    Ok(request.into_message())
}

fn layer() -> FrameLayer<LengthDelimited> {
    let framing = Framing::default().pipelined(64);
    FrameLayer::with_framing(LengthDelimited::max_frame(1 << 20), framing).expect("not zero")
}

fn rpc(framing: Framing) -> RpcLayer {
    RpcLayer::with_framing(RpcCodec::max_payload(1 << 20), framing).expect("not zero")
}

/// Answers when it is polled the second time.
async fn late(request: Request<Bytes>) -> Result<Bytes, Infallible> {
    let mut polled = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    Ok(request.into_message())
}

fn limit() -> ConnectionLimitLayer {
    ConnectionLimitLayer::new(10).expect("not zero")
}

/// Only the stream: a loop that reads a burst and writes it back.
fn bare(rounds: u64, size: usize, depth: usize) {
    let mut peer = peer(rounds, size, depth);
    run(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match peer.read(&mut buffer).await? {
                0 => return Ok(()),
                read => peer.write_all(&buffer[..read]).await?,
            }
        }
    });
}

/// What one would write without this crate: no limits, no deadlines, a write for each reply.
fn rival(rounds: u64, size: usize, depth: usize) {
    let codec = LengthDelimitedCodec::new();
    let mut framed = Framed::new(peer(rounds, size, depth), codec);
    run(async move {
        while let Some(frame) = framed.next().await {
            framed.send(frame?.freeze()).await?;
        }
        Ok(())
    });
}

fn framed(rounds: u64, size: usize, depth: usize) {
    serve(
        ServiceBuilder::new()
            .layer(layer())
            .service_fn(echo),
        peer(rounds, size, depth),
    );
}

/// Requests with ids and the time left.
fn called(rounds: u64, framing: Framing, depth: usize) {
    let stack = ServiceBuilder::new().layer(rpc(framing));
    serve(stack.service_fn(echo), caller(rounds, depth));
}

fn full(rounds: u64, size: usize, depth: usize) {
    let stack = ServiceBuilder::new()
        .layer(MeterLayer::new("bench"))
        .layer(limit())
        .layer(TraceLayer::new())
        .layer(DeadlineLayer::default())
        .layer(layer())
        .service_fn(echo);
    serve(stack, peer(rounds, size, depth));
}

fn serve<S>(stack: S, peer: Bursts)
where
    S: Service<Conn<Bursts>, Response = (), Error = tower::BoxError>,
{
    let conn = Conn::new(peer, ());
    run(async move {
        stack
            .oneshot(conn)
            .await
            .map_err(io::Error::other)
    });
}

fn peer(rounds: u64, size: usize, depth: usize) -> Bursts {
    let mut burst = BytesMut::new();
    for _ in 0..depth {
        burst.put_u32(size as u32);
        burst.put_bytes(7, size);
    }
    Bursts::new(burst, rounds)
}

/// A client of the RPC framing, whose ids rise from burst to burst.
fn caller(rounds: u64, depth: usize) -> Bursts {
    let mut burst = BytesMut::new();
    for id in 1..=depth as u64 {
        burst.put_u32(16 + 64);
        burst.put_slice(&[1, 1, 0, 16]);
        burst.put_u64(id);
        burst.put_u32(5_000);
        burst.put_bytes(7, 64);
    }
    Bursts::new(burst, rounds).changing(|burst| {
        let mut next = BytesMut::from(&burst[..]);
        let depth = (next.len() / FRAME) as u64;
        for frame in next.chunks_mut(FRAME) {
            let id = frame[8..16]
                .try_into()
                .map_or(0, u64::from_be_bytes);
            frame[8..16].copy_from_slice(&(id + depth).to_be_bytes());
        }
        *burst = next.freeze();
    })
}

/// A request of 64 bytes in the RPC framing.
const FRAME: usize = 20 + 64;

fn run(future: impl Future<Output = io::Result<()>>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .and_then(|runtime| runtime.block_on(future))
        .expect("a clean end");
}
