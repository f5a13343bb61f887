//! Deadlines of requests that only count what is late.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncWriteExt, duplex},
    time::{Instant, advance, sleep},
};
use tokio_test::{assert_pending, task};
use tower::{ServiceBuilder, limit::GlobalConcurrencyLimitLayer};
use tower_net::{
    CloseReason, Conn, Safeguard,
    deadline::{DeadlineLayer, Deadlines},
    frame::{Delimited, FrameLayer, Framing},
};
use tower_service::Service;

use crate::{
    frame::pipelined,
    support::{
        peer::Peer,
        readings::{Readings, recorded},
        service::{millis, obey, secs},
    },
};

type Layer = FrameLayer<Delimited>;

/// Framing in a dry run, and what it counts.
fn dry(framing: Framing) -> (Layer, Readings) {
    let framing = framing.dry_run(true);
    recorded(|| FrameLayer::with_framing(Delimited::lines(1_000), framing).unwrap())
}

/// A peer of the crossing alone, and one of it under a layer whose timer it uses.
fn peers(framing: Framing) -> [(Peer, Readings); 2] {
    peers_with_room(64 * 1024, framing)
}

fn peers_with_room(room: usize, framing: Framing) -> [(Peer, Readings); 2] {
    let (alone, of_alone) = dry(framing.clone());
    let (watched, of_watched) = dry(framing);
    let alone = ServiceBuilder::new()
        .layer(alone)
        .service_fn(obey);
    let watched = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Deadlines::none()).unwrap())
        .layer(watched)
        .service_fn(obey);
    [
        (Peer::with_room(room, alone), of_alone),
        (Peer::with_room(room, watched), of_watched),
    ]
}

fn count(metrics: &Readings, reason: CloseReason) -> f64 {
    metrics.of("tower_net_dry_run_total", &[("reason", reason.label())])
}

fn count_all(metrics: &Readings) -> f64 {
    metrics.of("tower_net_dry_run_total", &[])
}

#[tokio::test(start_paused = true)]
async fn each_late_request_is_counted_once_and_served() {
    for (mut peer, metrics) in peers(Framing::default().request_deadline(secs(2))) {
        let mut counted = Vec::new();

        for pause in [1, 100, 1, 3] {
            peer.send("hal").await;
            sleep(secs(pause)).await;
            peer.send("f\n").await;
            assert_eq!(peer.hear().await, "half");
            counted.push(count(&metrics, CloseReason::Request));
        }

        assert_eq!(counted, [0.0, 1.0, 1.0, 2.0]);
        assert_eq!(peer.leave().await, Some(CloseReason::Peer));
        assert_eq!(count_all(&metrics), 2.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_drips_is_late_once() {
    for (mut peer, metrics) in peers(Framing::default().request_deadline(secs(2))) {
        for _ in 0..100 {
            peer.send("x").await;
            sleep(secs(1)).await;
        }
        peer.send("\n").await;

        assert_eq!(peer.hear().await.len(), 100);
        assert_eq!(count_all(&metrics), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn each_late_handler_is_counted_once_and_answers() {
    for (mut peer, metrics) in peers(Framing::default().handler_deadline(secs(2))) {
        for (wait, counted) in [(1_000, 0.0), (60_000, 1.0), (1_999, 1.0), (2_001, 2.0)] {
            peer.send(format!("wait {wait} done\n"))
                .await;

            assert_eq!(peer.hear().await, "done");
            assert_eq!(count(&metrics, CloseReason::Handler), counted);
        }
        assert_eq!(count_all(&metrics), 2.0);
    }
}

#[tokio::test(start_paused = true)]
async fn handlers_side_by_side_are_counted_each_on_its_own() {
    for (mut peer, metrics) in peers(pipelined().handler_deadline(secs(4))) {
        let start = Instant::now();
        peer.send("wait 10000 one\nwait 3000 two\n")
            .await;
        sleep(secs(2)).await;
        peer.send("wait 20000 three\n").await;
        let mut counted = Vec::new();
        for at in [3_999, 4_001, 5_999, 6_001] {
            sleep(millis(at).saturating_sub(start.elapsed())).await;
            counted.push(count(&metrics, CloseReason::Handler));
        }

        assert_eq!(counted, [0.0, 1.0, 1.0, 2.0]);
        for word in ["one", "two", "three"] {
            assert_eq!(peer.hear().await, word);
        }
        assert_eq!((start.elapsed(), count_all(&metrics)), (secs(22), 2.0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_took_more_time_is_not_counted() {
    for (mut peer, metrics) in peers(Framing::default().handler_deadline(secs(2))) {
        peer.send("more 9000 wait 10000 done\n")
            .await;
        assert_eq!(peer.hear().await, "done");
        let within = count_all(&metrics);
        peer.send("more 9000 wait 12000 done\n")
            .await;
        assert_eq!(peer.hear().await, "done");

        assert_eq!((within, count_all(&metrics)), (0.0, 1.0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_sees_no_deadline_that_is_not_kept() {
    for (mut peer, _) in peers(Framing::default().handler_deadline(secs(2))) {
        peer.send("left\n").await;

        let forever = Duration::MAX.as_millis().to_string();
        assert_eq!(peer.hear().await, forever);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_the_service_is_counted_once_wherever_it_waits() {
    let framing = pipelined().handler_deadline(secs(2));
    let (layer, metrics) = dry(framing);
    let service = ServiceBuilder::new()
        .layer(layer)
        .layer(GlobalConcurrencyLimitLayer::new(1))
        .service_fn(obey);
    let mut holds = Peer::of(service.clone());
    let mut waits = Peer::of(service);

    holds.send("wait 10000 held\n").await;
    sleep(millis(1)).await;
    waits.send("wait 10000 done\n").await;
    sleep(secs(9)).await;
    let waiting = count_all(&metrics);

    assert_eq!(
        (&*holds.hear().await, &*waits.hear().await),
        ("held", "done")
    );
    assert_eq!((waiting, count_all(&metrics)), (2.0, 2.0));
}

#[tokio::test(start_paused = true)]
async fn late_replies_are_counted_once_for_all_that_were_queued_together() {
    for (mut peer, metrics) in peers_with_room(8, Framing::default().reply_deadline(secs(2))) {
        let mut counted = Vec::new();
        for pause in [100, 1, 3] {
            peer.send("long 99\n").await;
            sleep(secs(pause)).await;
            counted.push(count(&metrics, CloseReason::Reply));
            assert_eq!(peer.hear().await.len(), 99);
        }

        assert_eq!(counted, [1.0, 1.0, 2.0]);
        assert_eq!(peer.leave().await, Some(CloseReason::Peer));
        assert_eq!(count_all(&metrics), 2.0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_stays_late_wakes_nobody_again() {
    let framing = pipelined()
        .request_deadline(secs(1))
        .handler_deadline(secs(2))
        .reply_deadline(secs(3));
    let (layer, metrics) = dry(framing);
    let mut service = ServiceBuilder::new()
        .layer(layer)
        .service_fn(obey);
    let (near, mut far) = duplex(40);
    let conn: Conn<_> = Conn::new(near, ());
    let mut served = task::spawn(service.call(conn));
    far.write_all(b"long 99\nwait 999999999 x\nha")
        .await
        .unwrap();
    let mut polls = 0;

    let end = Instant::now() + secs(86_400);
    while Instant::now() < end {
        if polls == 0 || served.is_woken() {
            assert_pending!(served.poll());
            polls += 1;
        }
        advance(secs(1)).await;
    }

    // To begin with, and for each of the three.
    assert_eq!((polls, count_all(&metrics)), (4, 3.0));
}

#[tokio::test(start_paused = true)]
async fn limits_of_the_connection_are_kept_beside_a_dry_run() {
    let (layer, metrics) = dry(Framing::default().handler_deadline(secs(1)));
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Deadlines::none().idle(secs(16))).unwrap())
        .layer(layer)
        .service_fn(obey);
    let mut peer = Peer::of(service);

    peer.send("wait 5000 done\n").await;
    let heard = peer.hear().await;
    let idle = Instant::now();

    assert!(peer.ended().await.is_err());
    assert_eq!((&*heard, count_all(&metrics)), ("done", 1.0));
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Idle));
    assert!(idle.elapsed() >= secs(16) && idle.elapsed() <= secs(17));
}

#[tokio::test(start_paused = true)]
async fn both_in_a_dry_run_count_each_their_own() {
    let (layer, of_frames) = dry(Framing::default().handler_deadline(secs(1)));
    let deadlines = Deadlines::none().idle(secs(16));
    let (deadlines, of_deadlines) =
        recorded(|| DeadlineLayer::new(deadlines.dry_run(true)).unwrap());
    let service = ServiceBuilder::new()
        .layer(deadlines)
        .layer(layer)
        .service_fn(obey);
    let mut peer = Peer::of(service);

    peer.send("wait 5000 done\n").await;
    let heard = peer.hear().await;
    sleep(secs(100)).await;

    assert_eq!((&*heard, peer.has_ended()), ("done", false));
    assert_eq!(count(&of_frames, CloseReason::Handler), 1.0);
    assert_eq!(count(&of_deadlines, CloseReason::Idle), 1.0);
    assert_eq!(
        (count_all(&of_frames), count_all(&of_deadlines)),
        (1.0, 1.0)
    );
}

#[tokio::test(start_paused = true)]
async fn what_bounds_memory_is_kept_in_a_dry_run() {
    for (mut peer, metrics) in peers(Framing::default().max_buffered(100)) {
        peer.send("x".repeat(200)).await;

        assert_eq!(peer.rest().await, "");
        assert_eq!(peer.leave().await, Some(CloseReason::Oversize));
        assert_eq!(count_all(&metrics), 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_only_counted_is_not_on_the_checklist() {
    for (dry_run, passed) in [(false, true), (true, false)] {
        let framing = Framing::default().dry_run(dry_run);
        let layer: Layer = FrameLayer::with_framing(Delimited::lines(9), framing).unwrap();
        let mut service = ServiceBuilder::new()
            .layer(layer)
            .service_fn(obey);
        let conn = Conn::new(duplex(64).0, ());
        let info = Arc::clone(conn.info());

        drop(service.call(conn));

        for safeguard in [Safeguard::Request, Safeguard::Handler, Safeguard::Reply] {
            assert_eq!(info.has_passed(safeguard), passed, "{safeguard}");
        }
        assert!(info.has_passed(Safeguard::FrameCap));
    }
}
