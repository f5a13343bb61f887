//! What limits can be set to, and where they can run.

use std::{future::poll_fn, time::Duration};

use tokio::{
    io::DuplexStream,
    time::{Instant, sleep},
};
use tower::{ServiceBuilder, service_fn};
use tower_layer::Layer;
use tower_net::{
    Conn, Server,
    deadline::{DeadlineIo, DeadlineLayer, Deadlines},
    error::{BoxError, NoTimer, find},
    frame::{Delimited, FrameLayer},
    io::{
        GuardedIo, Linger, linger,
        prelude::{self, PreludeError, Step},
    },
    limit::{ConnectionLimitLayer, OverLimit},
    meter::MeterLayer,
};
use tower_service::Service;

use crate::{
    deadline::{echo, framed, none},
    support::{
        io::{Queue, Script},
        peer::Peer,
        service::{obey, secs},
    },
};

#[test]
fn a_limit_of_zero_and_a_jitter_that_is_no_share_are_refused() {
    let zero = Duration::ZERO;
    for (wrong, setting) in [
        (none().first_byte(zero), "first_byte"),
        (none().idle(zero), "idle"),
        (none().write_stall(zero), "write_stall"),
        (none().max_age(zero), "max_age"),
        (none().rate_window(zero), "rate_window"),
        (none().age_jitter(1.0), "age_jitter"),
        (none().age_jitter(-0.1), "age_jitter"),
        (none().age_jitter(f64::NAN), "age_jitter"),
    ] {
        assert_eq!(
            DeadlineLayer::new(wrong)
                .unwrap_err()
                .setting(),
            setting
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_durations_are_no_limits() {
    for forever in [Duration::MAX, Duration::from_secs(u64::MAX), secs(1 << 35)] {
        let deadlines = Deadlines::default()
            .first_byte(forever)
            .idle(forever)
            .write_stall(forever)
            .max_age(forever)
            .age_grace(forever)
            .rate_window(forever)
            .min_receive_rate(1)
            .min_send_rate(1);
        let peers: [_; 8] = std::array::from_fn(|_| Peer::of(framed(deadlines.clone())));

        sleep(secs(86_400)).await;
        for mut peer in peers {
            peer.send("half").await;
            sleep(secs(86_400)).await;
            peer.send(" and half\n").await;

            assert_eq!(peer.hear().await, "half and half", "{forever:?}");
        }
    }
}

#[test]
fn a_runtime_without_a_clock_is_an_error_before_the_first_connection() {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.build().unwrap();
    runtime.block_on(async {
        let inner = || service_fn(echo::<DeadlineIo<DuplexStream>>);
        let mut deadline = DeadlineLayer::default().layer(inner());
        let ready = poll_fn(|cx| deadline.poll_ready(cx)).await;
        let server = Server::new(Queue::pair().0)
            .serve(deadline.clone())
            .await;

        assert!(find::<NoTimer>(&*ready.unwrap_err()).is_some());
        assert!(find::<NoTimer>(&server.unwrap_err()).is_some());
    });
}

#[test]
fn every_layer_with_a_timer_says_so_when_it_is_made_ready() {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.build().unwrap();
    runtime.block_on(async {
        let mut frame = FrameLayer::new(Delimited::lines(80)).layer(service_fn(obey));
        let limit = ConnectionLimitLayer::new(1).unwrap();
        let limit = limit.over_limit(OverLimit::WaitUpTo(secs(1)));
        let mut limit = limit.layer(service_fn(async |conn: Conn<GuardedIo<Script, _>>| {
            Ok::<_, BoxError>(conn)
        }));
        let _full = limit
            .call(Conn::new(Script::new(), ()))
            .await;

        let frame = poll_fn(|cx| Service::<Conn<Script>>::poll_ready(&mut frame, cx));
        let limit = poll_fn(|cx| Service::<Conn<Script>>::poll_ready(&mut limit, cx));

        assert!(find::<NoTimer>(&*frame.await.unwrap_err()).is_some());
        assert!(find::<NoTimer>(&*limit.await.unwrap_err()).is_some());
    });
}

#[test]
fn what_keeps_time_for_one_stream_says_so_as_well() {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.build().unwrap();
    runtime.block_on(async {
        let parse = |_: &[u8]| Ok::<_, BoxError>(Step::More::<()>(1));

        let lingered = linger(Script::new(), Linger::default()).await;
        let read = prelude::read(Script::new(), 8, Some(Instant::now()), parse).await;

        assert!(find::<NoTimer>(&lingered.unwrap_err()).is_some());
        let Err(PreludeError::Io(error)) = read else {
            panic!("{read:?}");
        };
        assert!(find::<NoTimer>(&error).is_some());
    });
}

#[tokio::test(start_paused = true)]
async fn a_dropped_future_leaves_the_counts_as_they_were() {
    let (meter, tally) = MeterLayer::pair("test");
    let limit = ConnectionLimitLayer::new(5).unwrap();
    let mut service = ServiceBuilder::new()
        .layer(meter)
        .layer(limit.clone())
        .layer(DeadlineLayer::default())
        .service_fn(echo);

    let mut running = tokio_test::task::spawn(service.call(Conn::new(Script::new(), ())));
    tokio_test::assert_pending!(running.poll());
    let during = (tally.snapshot().active(), limit.handle().in_use());
    drop(running);
    drop(service.call(Conn::new(Script::new(), ())));

    assert_eq!(during, (1, 1));
    assert_eq!((tally.snapshot().active(), limit.handle().in_use()), (0, 0));
}
