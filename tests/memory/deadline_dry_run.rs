//! Limits that only count what passes.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, DuplexStream, duplex},
    time::{Instant, advance, sleep},
};
use tokio_test::{assert_pending, task};
use tower::{ServiceBuilder, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, Deadline, Safeguard,
    deadline::{DeadlineIo, DeadlineLayer, Deadlines, Elapsed},
    error::{BoxError, find},
    frame::{Delimited, FrameLayer, Framing},
};
use tower_service::Service;

use crate::{
    deadline::{echo, none},
    support::{
        peer::Peer,
        readings::{Readings, recorded},
        service::{millis, obey, secs},
    },
};

/// The limits in a dry run, and what it counts.
fn dry(deadlines: Deadlines) -> (DeadlineLayer, Readings) {
    recorded(|| DeadlineLayer::new(deadlines.dry_run(true)).unwrap())
}

/// A peer of a service that echoes.
fn echoed(deadlines: Deadlines) -> (Peer, Readings) {
    let (layer, metrics) = dry(deadlines);
    let service = layer.layer(service_fn(echo::<DeadlineIo<DuplexStream>>));
    (Peer::of(service), metrics)
}

/// A peer of requests, which are not timed themselves.
fn framed(deadlines: Deadlines) -> (Peer, Readings) {
    let (layer, metrics) = dry(deadlines);
    let forever = Duration::MAX;
    let framing = Framing::default()
        .request_deadline(forever)
        .handler_deadline(forever)
        .reply_deadline(forever);
    let service = ServiceBuilder::new()
        .layer(layer)
        .layer(FrameLayer::with_framing(Delimited::lines(1_000), framing).unwrap())
        .service_fn(obey);
    (Peer::of(service), metrics)
}

fn count(metrics: &Readings, reason: CloseReason) -> f64 {
    metrics.of("tower_net_dry_run_total", &[("reason", reason.label())])
}

fn count_all(metrics: &Readings) -> f64 {
    metrics.of("tower_net_dry_run_total", &[])
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_counted_on_time_and_once_and_is_served_all_the_same() {
    let (mut peer, metrics) = echoed(none().first_byte(secs(3)));

    sleep(millis(2_999)).await;
    let before = count(&metrics, CloseReason::FirstByte);
    sleep(millis(2)).await;
    let after = count(&metrics, CloseReason::FirstByte);
    sleep(secs(3_600)).await;
    peer.send("x").await;

    assert_eq!(peer.take(1).await, b"x");
    assert!(peer.info.close_reason().is_none());
    assert_eq!((before, after, count_all(&metrics)), (0.0, 1.0, 1.0));
}

#[tokio::test(start_paused = true)]
async fn one_that_speaks_in_time_is_not_counted() {
    let (mut peer, metrics) = echoed(
        none()
            .first_byte(secs(3))
            .idle(secs(10)),
    );

    for _ in 0..20 {
        sleep(millis(2_900)).await;
        peer.send("x").await;
        peer.take(1).await;
    }

    assert_eq!(count_all(&metrics), 0.0);
}

#[tokio::test(start_paused = true)]
async fn silence_before_the_first_byte_is_not_idleness_as_well() {
    let (mut peer, metrics) = echoed(
        none()
            .first_byte(secs(3))
            .idle(secs(10)),
    );

    sleep(secs(100)).await;
    let silent = count_all(&metrics);
    peer.send("x").await;
    sleep(secs(100)).await;

    assert_eq!(
        (silent, count(&metrics, CloseReason::FirstByte)),
        (1.0, 1.0)
    );
    assert_eq!(count(&metrics, CloseReason::Idle), 1.0);
}

#[tokio::test(start_paused = true)]
async fn each_idle_period_that_is_too_long_is_counted_once() {
    let (mut peer, metrics) = framed(none().idle(secs(16)));
    let mut counted = Vec::new();

    for pause in [15, 100, 1_000, 1, 17] {
        peer.send("x\n").await;
        assert_eq!(peer.hear().await, "x");
        sleep(secs(pause)).await;
        sleep(secs(1)).await;
        counted.push(count(&metrics, CloseReason::Idle));
    }

    assert_eq!(counted, [0.0, 1.0, 2.0, 2.0, 3.0]);
    assert_eq!(peer.leave().await, Some(CloseReason::Peer));
}

#[tokio::test(start_paused = true)]
async fn each_stall_is_counted_once_and_the_write_goes_on() {
    let (layer, metrics) = dry(none().write_stall(secs(16)));
    let service = layer.layer(service_fn(async |mut conn: Conn<DeadlineIo<_>>| {
        tokio::io::AsyncWriteExt::write_all(&mut conn, &[7; 4]).await?;
        Ok::<_, BoxError>(())
    }));
    let mut peer = Peer::with_room(1, service);
    let mut counted = Vec::new();

    for pause in [100, 10, 1_000] {
        sleep(secs(pause)).await;
        counted.push(count(&metrics, CloseReason::WriteStall));
        assert_eq!(peer.take(1).await, [7]);
    }

    assert_eq!(counted, [1.0, 1.0, 2.0]);
    assert_eq!(peer.take(1).await, [7]);
    assert!(peer.ended().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_age_is_counted_once_and_not_told_to_leave() {
    let deadlines = none()
        .max_age(secs(100))
        .age_jitter(0.0)
        .age_grace(secs(1));
    let (mut peer, metrics) = framed(deadlines);

    sleep(secs(99)).await;
    let before = count(&metrics, CloseReason::Age);
    sleep(secs(1_000)).await;
    peer.send("x\n").await;

    assert_eq!(peer.hear().await, "x");
    assert!(!peer.info.is_leaving() && peer.info.close_reason().is_none());
    assert_eq!((before, count_all(&metrics)), (0.0, 1.0));
}

#[tokio::test(start_paused = true)]
async fn each_request_that_comes_too_slowly_is_counted_once() {
    let deadlines = none()
        .min_receive_rate(10)
        .rate_window(secs(5));
    let (mut peer, metrics) = framed(deadlines);
    let mut counted = Vec::new();

    for (bytes, times) in [("xxx", 60), ("xxxxxxxxxxxx", 12), ("xx", 7)] {
        for _ in 0..times {
            peer.send(bytes).await;
            sleep(secs(1)).await;
        }
        peer.send("\n").await;
        assert_eq!(peer.hear().await.len(), bytes.len() * times);
        counted.push(count(&metrics, CloseReason::MinRate));
    }

    assert_eq!(counted, [1.0, 1.0, 2.0]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_too_slowly_is_counted_once_a_stall() {
    let deadlines = none()
        .min_send_rate(10)
        .rate_window(secs(5));
    let (layer, metrics) = dry(deadlines);
    let service = layer.layer(service_fn(async |mut conn: Conn<DeadlineIo<_>>| {
        tokio::io::AsyncWriteExt::write_all(&mut conn, &[7; 30]).await?;
        sleep(secs(1)).await;
        tokio::io::AsyncWriteExt::write_all(&mut conn, &[7; 30]).await?;
        Ok::<_, BoxError>(())
    }));
    let mut peer = Peer::with_room(1, service);

    for _ in 0..60 {
        peer.take(1).await;
        sleep(secs(1)).await;
    }

    assert!(peer.ended().await.is_ok());
    assert_eq!(
        (count(&metrics, CloseReason::MinRate), count_all(&metrics)),
        (2.0, 2.0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_stays_passed_wakes_nobody_again() {
    let (layer, metrics) = dry(Deadlines::default().max_age(secs(600)));
    let mut service = layer.layer(service_fn(echo::<DeadlineIo<DuplexStream>>));
    let (near, _far) = duplex(64);
    let mut served = task::spawn(service.call(Conn::new(near, ())));
    let mut polls = 0;

    let end = Instant::now() + secs(86_400);
    while Instant::now() < end {
        if polls == 0 || served.is_woken() {
            assert_pending!(served.poll());
            polls += 1;
        }
        advance(secs(1)).await;
    }

    // To begin with, for the first byte, and for the age.
    assert_eq!((polls, count_all(&metrics)), (3, 2.0));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_was_suspended_is_counted_for_its_own_time() {
    let (layer, metrics) = dry(none().first_byte(secs(10)));
    let service = layer.layer(service_fn(async |mut conn: Conn<DeadlineIo<_>>| {
        sleep(secs(8)).await;
        let suspended = conn.info().suspend();
        sleep(secs(100)).await;
        drop(suspended);
        conn.read_u8().await?;
        Ok::<_, BoxError>(())
    }));
    let mut peer = Peer::of(service);

    sleep(secs(109)).await;
    let before = count_all(&metrics);
    sleep(secs(2)).await;
    let after = count_all(&metrics);
    peer.send("x").await;

    assert!(peer.ended().await.is_ok());
    assert_eq!((before, after), (0.0, 1.0));
}

#[tokio::test(start_paused = true)]
async fn deadlines_of_requests_are_kept_beside_a_dry_run() {
    let (layer, metrics) = dry(Deadlines::default());
    let framing = Framing::default().handler_deadline(secs(2));
    let service = ServiceBuilder::new()
        .layer(layer)
        .layer(FrameLayer::with_framing(Delimited::lines(40), framing).unwrap())
        .service_fn(obey);
    let mut peer = Peer::of(service);
    sleep(secs(60)).await;
    let start = Instant::now();
    peer.send("wait 60000 late\n").await;

    assert_eq!(peer.rest().await, "");
    assert_eq!(peer.leave().await, Some(CloseReason::Handler));
    assert_eq!((start.elapsed(), count_all(&metrics)), (secs(2), 1.0));
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_sets_for_its_own_reads_is_kept() {
    let (layer, metrics) = dry(Deadlines::default());
    let service = layer.layer(service_fn(async |mut conn: Conn<DeadlineIo<_>>| {
        conn.info()
            .set_read_deadline(Deadline::within(secs(1)));
        let late = conn.read_u8().await.unwrap_err();
        assert_eq!(late.kind(), std::io::ErrorKind::TimedOut);
        Ok::<_, BoxError>(())
    }));
    let mut peer = Peer::of(service);

    assert!(peer.ended().await.is_ok());
    assert_eq!(count_all(&metrics), 0.0);
}

#[tokio::test(start_paused = true)]
async fn what_is_only_counted_is_not_on_the_checklist() {
    for (dry_run, passed) in [(false, true), (true, false)] {
        let deadlines = Deadlines::default().dry_run(dry_run);
        let layer = DeadlineLayer::new(deadlines).unwrap();
        let mut service = layer.layer(service_fn(echo::<DeadlineIo<DuplexStream>>));
        let conn = Conn::new(duplex(64).0, ());
        let info = Arc::clone(conn.info());

        drop(service.call(conn));

        for safeguard in [Safeguard::FirstByte, Safeguard::Idle, Safeguard::WriteStall] {
            assert_eq!(info.has_passed(safeguard), passed, "{safeguard}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_that_is_off_ends_connections_and_counts_nothing() {
    let deadlines = none().first_byte(secs(3));
    let (layer, metrics) =
        recorded(|| DeadlineLayer::new(deadlines.dry_run(true).dry_run(false)).unwrap());
    let service = layer.layer(service_fn(echo::<DeadlineIo<DuplexStream>>));
    let mut peer = Peer::of(service);

    let error = peer.ended().await.unwrap_err();

    assert!(find::<Elapsed>(&*error).is_some());
    assert_eq!(count_all(&metrics), 0.0);
}
