//! The promise that everything else leans on: a busy, healthy connection reads no clock and touches no timer.

use std::{
    convert::Infallible,
    future::{Ready, poll_fn, ready},
    io,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{
        error::BoxError,
        time::count::{CLOCK_READS, TIMERS_ARMED},
    },
    conn::Conn,
    middleware::{
        deadline::{DeadlineLayer, Deadlines},
        frame::{FrameLayer, Framing, LengthDelimited, Request, RpcLayer},
        limit::ConnectionLimitLayer,
        meter::MeterLayer,
        trace::TraceLayer,
    },
};

/// A handler that answers at once.
#[derive(Clone)]
struct Echo;

impl Service<Request<Bytes>> for Echo {
    type Response = Bytes;
    type Error = Infallible;
    type Future = Ready<Result<Bytes, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(Ok(request.into_message()))
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_requests_in_a_second_read_no_clock_and_arm_no_timer() -> Result<(), BoxError>
{
    for dry_run in [false, true] {
        let (clock_reads, timers_armed) = ten_thousand_requests_in_a_second(dry_run).await?;

        // The accept, the first byte and one tick of the idle timeout; nothing that grows with the requests.
        assert!(clock_reads <= 8, "{clock_reads} clock reads");
        assert!(timers_armed <= 4, "{timers_armed} timers armed");
    }
    Ok(())
}

/// How often they read the clock, and armed a timer.
async fn ten_thousand_requests_in_a_second(dry_run: bool) -> Result<(u64, u64), BoxError> {
    let framing = Framing::default().dry_run(dry_run);
    let framed = FrameLayer::with_framing(LengthDelimited::max_frame(64), framing)?.layer(Echo);
    let deadlines = Deadlines::default().dry_run(dry_run);
    let guarded = DeadlineLayer::new(deadlines)?.layer(framed);
    let limited = ConnectionLimitLayer::new(1)?.layer(guarded);
    let mut stack = MeterLayer::new("quiet").layer(TraceLayer::new().layer(limited));
    let (near, mut far) = duplex(1024);
    poll_fn(|cx| Service::<Conn<DuplexStream>>::poll_ready(&mut stack, cx)).await?;
    let served = stack.call(Conn::new(near, ()));

    let client = async {
        let mut reply = [0; 6];
        let before = (CLOCK_READS.get(), TIMERS_ARMED.get());
        for _ in 0..10_000 {
            far.write_all(b"\0\0\0\x02hi").await?;
            far.read_exact(&mut reply).await?;
            tokio::time::advance(Duration::from_micros(100)).await;
        }
        let after = (CLOCK_READS.get(), TIMERS_ARMED.get());
        drop(far);
        io::Result::Ok((after.0 - before.0, after.1 - before.1))
    };
    let (served, counted) = tokio::join!(served, client);

    served?;
    Ok(counted?)
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_calls_with_deadlines_do_not_either() -> Result<(), BoxError> {
    let mut stack = DeadlineLayer::new(Deadlines::default())?.layer(RpcLayer::new(64).layer(Echo));
    let (near, mut far) = duplex(1024);
    let served = stack.call(Conn::new(near, ()));

    let client = async {
        let mut reply = [0; 22];
        let before = (CLOCK_READS.get(), TIMERS_ARMED.get());
        for id in 1..=10_000_u16 {
            let [high, low] = id.to_be_bytes();
            let mut call = *b"\0\0\0\x12\x01\x01\0\x10\0\0\0\0\0\0..\0\0\x0f\xffhi";
            (call[14], call[15]) = (high, low);
            far.write_all(&call).await?;
            far.read_exact(&mut reply).await?;
            tokio::time::advance(Duration::from_micros(100)).await;
        }
        let after = (CLOCK_READS.get(), TIMERS_ARMED.get());
        drop(far);
        io::Result::Ok((after.0 - before.0, after.1 - before.1))
    };
    let (served, counted) = tokio::join!(served, client);

    served?;
    let (clock_reads, timers_armed) = counted?;
    assert!(clock_reads <= 8, "{clock_reads} clock reads");
    assert!(timers_armed <= 4, "{timers_armed} timers armed");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn without_a_recorder_a_meter_reads_no_clock() -> Result<(), BoxError> {
    let served = tower::service_fn(async |mut conn: Conn<_>| conn.read_u8().await.map(drop));
    let mut stack = MeterLayer::new("quiet").layer(served);
    let (near, mut far) = duplex(1);
    let conn = Conn::new(near, ());
    far.write_u8(7).await?;

    let before = CLOCK_READS.get();
    stack.call(conn).await?;

    assert_eq!(CLOCK_READS.get(), before);
    Ok(())
}
