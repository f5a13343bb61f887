//! Connections that are idle make room.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};
use tower::ServiceBuilder;
use tower_net::{
    CloseReason, Conn,
    deadline::DeadlineLayer,
    error::BoxError,
    frame::{Delimited, FrameLayer},
    pressure::PressureLayer,
};

use crate::{
    pressure::{Dial, TICK, patient, served, stack},
    support::{
        peer::Peer,
        service::{millis, obey, secs},
    },
};

#[tokio::test(start_paused = true)]
async fn the_longest_idle_leave_first_so_many_in_a_tick() {
    let dial = Dial::default();
    let layer = PressureLayer::new(dial.thresholds().reclaim(2)).unwrap();
    let (order, mut peers) = (Arc::new(Mutex::new(Vec::new())), Vec::new());
    for _ in 0..5 {
        peers.push(served(&layer, patient()).await);
        sleep(secs(1)).await;
    }
    // The first has spoken last.
    peers[0].send("again\n").await;
    peers[0].hear().await;
    sleep(secs(2)).await;
    let start = Instant::now();

    dial.turn(0.01);
    let mut leaving = Vec::new();
    for (number, mut peer) in peers.into_iter().enumerate() {
        let order = Arc::clone(&order);
        leaving.push(tokio::spawn(async move {
            assert_eq!(peer.rest().await, "");
            let left = (start.elapsed().as_millis() as u64 / 100, number);
            order.lock().unwrap().push(left);
            peer.leave().await
        }));
    }
    for left in leaving {
        assert_eq!(left.await.unwrap(), Some(CloseReason::Reclaimed));
    }

    let mut order = order.lock().unwrap().clone();
    order.sort_unstable();
    let first = order[0].0;
    let expected = [(0, 1), (0, 2), (1, 3), (1, 4), (2, 0)];
    assert_eq!(order, expected.map(|(tick, number)| (first + tick, number)));
    assert!(first <= 1 && layer.handle().reclaimed() == 5);
}

#[tokio::test(start_paused = true)]
async fn room_is_made_before_anybody_is_refused() {
    let dial = Dial::default();
    let layer = dial.layer();
    let idle = served(&layer, patient()).await;
    sleep(secs(5)).await;

    dial.turn_now(0.5).await;
    let newcomer = served(&layer, patient()).await;

    assert_eq!(idle.leave().await, Some(CloseReason::Reclaimed));
    assert_eq!((layer.handle().refused(), newcomer.has_ended()), (0, false));
}

#[tokio::test(start_paused = true)]
async fn nobody_has_to_leave_up_to_the_soft_point() {
    let dial = Dial::default();
    let layer = dial.layer();
    let peer = served(&layer, patient()).await;

    sleep(secs(3_600)).await;

    assert_eq!((layer.handle().reclaimed(), peer.has_ended()), (0, false));
}

#[tokio::test(start_paused = true)]
async fn who_is_at_work_is_never_touched() {
    let dial = Dial::default();
    let layer = dial.layer();
    let mut handling = served(&layer, patient()).await;
    let mut receiving = served(&layer, patient()).await;
    let mut writing = Peer::with_room(8, stack(&layer, patient()));
    handling
        .send("wait 100000 done\n")
        .await;
    receiving.send("ha").await;
    writing.send("long 99\n").await;
    sleep(secs(5)).await;

    dial.turn_now(1.0).await;
    sleep(secs(60)).await;

    assert_eq!(layer.handle().reclaimed(), 0);
    receiving.send("lf\n").await;
    assert_eq!(receiving.hear().await, "half");
    assert_eq!(writing.hear().await.len(), 99);
    assert_eq!(handling.hear().await, "done");
    sleep(secs(5)).await;
    for idle in [handling, receiving, writing] {
        assert_eq!(idle.leave().await, Some(CloseReason::Reclaimed));
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_spoken_within_a_second_is_not_idle() {
    let dial = Dial::default();
    let layer = dial.layer();
    let mut peer = served(&layer, patient()).await;
    dial.turn_now(0.9).await;

    for _ in 0..60 {
        sleep(millis(800)).await;
        peer.send("x\n").await;
        assert_eq!(peer.hear().await, "x");
    }

    assert_eq!(layer.handle().reclaimed(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_raw_service_hears_that_it_is_reclaimed_and_once() {
    let dial = Dial::default();
    let layer = dial.layer();
    let mut peer = Peer::of(
        ServiceBuilder::new()
            .layer(layer.clone())
            .layer(DeadlineLayer::new(patient()).unwrap())
            .service_fn(async |mut conn: Conn<_>| {
                let info = Arc::clone(conn.info());
                let read = tokio::select! {
                    read = conn.read_u8() => read.is_ok(),
                    _ = info.told_to_leave() => false,
                };
                assert!(!read);
                // It takes its time.
                sleep(secs(60)).await;
                let why = info.told_to_leave().await;
                conn.write_all(why.label().as_bytes())
                    .await?;
                Ok::<_, BoxError>(())
            }),
    );
    sleep(secs(5)).await;

    dial.turn_now(0.5).await;

    assert_eq!(peer.rest().await, "reclaimed");
    assert_eq!(layer.handle().reclaimed(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_deadline_layer_nobody_is_taken_to_be_idle() {
    let dial = Dial::default();
    let layer = dial.layer();
    let frames: FrameLayer<Delimited> = FrameLayer::new(Delimited::lines(40));
    let mut peer = Peer::of(
        ServiceBuilder::new()
            .layer(layer.clone())
            .layer(frames)
            .service_fn(obey),
    );
    peer.send("x\n").await;
    peer.hear().await;

    dial.turn_now(0.5).await;
    sleep(secs(60)).await;

    assert_eq!((layer.handle().reclaimed(), peer.has_ended()), (0, false));
}

#[tokio::test(start_paused = true)]
async fn of_many_the_longest_idle_are_found_however_many_there_are() {
    let dial = Dial::default();
    let layer = PressureLayer::new(dial.thresholds().reclaim(10)).unwrap();
    let mut old = Vec::new();
    for _ in 0..10 {
        old.push(served(&layer, patient()).await);
    }
    sleep(secs(10)).await;
    let mut young = Vec::new();
    for _ in 0..3_000 {
        young.push(served(&layer, patient()).await);
    }
    sleep(secs(10)).await;

    dial.turn(0.5);
    sleep(TICK).await;
    dial.turn_now(0.0).await;

    for peer in old {
        assert_eq!(peer.leave().await, Some(CloseReason::Reclaimed));
    }
    assert!(layer.handle().reclaimed() <= 20);
}
