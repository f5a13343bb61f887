//! Limits that shrink under pressure, and who is woken for it.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, task};
use tower::ServiceBuilder;
use tower_net::{
    CloseReason, Conn,
    deadline::{DeadlineLayer, Deadlines, Elapsed},
    error::{BoxError, find},
    frame::{Delimited, FrameLayer},
    pressure::PressureLayer,
};
use tower_service::Service;

use crate::{
    pressure::{Dial, TICK, served, stack},
    support::{
        peer::Peer,
        service::{millis, obey, secs},
    },
};

// === Limits shrink

#[tokio::test(start_paused = true)]
async fn idle_limits_shrink_with_the_level_down_to_their_share() {
    for (level, share, after) in [
        (0.0, 0.1, 90_000),
        (0.12, 0.1, 90_000),
        (0.5, 0.1, 49_500),
        (0.999, 0.1, 18_900),
        (1.0, 0.1, 9_000),
        (1.0, 0.5, 45_000),
        (1.0, 0.0, 1_000),
        (1.0, 1.0, 90_000),
    ] {
        let dial = Dial::default();
        let thresholds = dial
            .thresholds()
            .reclaim(0)
            .shrink_to(share);
        let layer = PressureLayer::new(thresholds).unwrap();
        let mut peer = served(&layer, Deadlines::none().idle(secs(90))).await;
        let last = Instant::now();
        sleep(millis(500)).await;
        dial.turn(level);

        let error = peer.ended().await.unwrap_err();

        let elapsed = find::<Elapsed>(&*error).unwrap();
        assert_eq!(elapsed.which(), CloseReason::Idle);
        assert_eq!(elapsed.limit(), Some(millis(after)), "{level} {share}");
        // Not before its time, and at most a tick of the unshortened limit after it.
        assert!(last.elapsed() >= millis(after), "{:?}", last.elapsed());
        assert!(
            last.elapsed() <= millis(after) + secs(90) / 16,
            "{:?}",
            last.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn first_byte_limits_shrink_for_those_who_wait_and_for_newcomers() {
    for (limit, after) in [(20, 11_000), (1, 1_000)] {
        let dial = Dial::default();
        let layer = PressureLayer::new(dial.thresholds().reclaim(0)).unwrap();
        let start = Instant::now();
        let deadlines = || Deadlines::none().first_byte(secs(limit));
        let mut first = Peer::of(stack(&layer, deadlines()));
        dial.turn_now(0.5).await;
        let mut second = Peer::of(stack(&layer, deadlines()));
        let between = start.elapsed();

        let error = first.ended().await.unwrap_err();
        let first_after = start.elapsed();
        assert!(second.ended().await.is_err());

        let elapsed = find::<Elapsed>(&*error).unwrap();
        assert_eq!(elapsed.which(), CloseReason::FirstByte);
        assert_eq!(first_after, millis(after));
        assert_eq!(start.elapsed(), millis(after) + between);
    }
}

#[tokio::test(start_paused = true)]
async fn limits_are_long_again_once_the_level_has_been_low_for_a_second() {
    let dial = Dial::default();
    let layer = PressureLayer::new(dial.thresholds().reclaim(0)).unwrap();
    let mut peer = served(&layer, Deadlines::none().idle(secs(90))).await;
    let last = Instant::now();

    dial.turn(1.0);
    sleep(secs(5)).await;
    dial.turn(0.0);
    assert!(peer.ended().await.is_err());

    assert!(last.elapsed() >= secs(90), "{:?}", last.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_does_not_lengthen_what_another_layer_has_shortened() {
    for is_outer in [true, false] {
        let (dial, other) = (Dial::default(), Dial::default());
        let layer = PressureLayer::new(dial.thresholds().reclaim(0)).unwrap();
        let dry_run = other.layer().dry_run(true);
        let (outer, inner) = if is_outer {
            (&layer, &dry_run)
        } else {
            (&dry_run, &layer)
        };
        let deadlines = Deadlines::none().idle(secs(90));
        let service = ServiceBuilder::new()
            .layer(outer.clone())
            .layer(inner.clone())
            .layer(DeadlineLayer::new(deadlines).unwrap())
            .layer(FrameLayer::new(Delimited::lines(64)))
            .service_fn(obey);
        let mut peer = Peer::of(service);
        peer.send("hello\n").await;
        assert_eq!(peer.hear().await, "hello");

        dial.turn(1.0);
        let error = peer.ended().await.unwrap_err();

        let elapsed = find::<Elapsed>(&*error).unwrap();
        assert_eq!(elapsed.limit(), Some(secs(9)), "{is_outer}");
    }
}

#[tokio::test(start_paused = true)]
async fn limits_of_replies_requests_and_age_do_not_shrink() {
    let dial = Dial::default();
    let layer = PressureLayer::new(dial.thresholds().reclaim(0)).unwrap();
    let deadlines = Deadlines::none()
        .write_stall(secs(90))
        .max_age(secs(90))
        .age_jitter(0.0);
    let start = Instant::now();
    let mut peer = Peer::with_room(8, stack(&layer, deadlines));
    dial.turn_now(1.0).await;

    peer.send("long 99\n").await;
    assert!(peer.ended().await.is_err());

    assert!(start.elapsed() >= secs(90), "{:?}", start.elapsed());
}

// === Wakes

fn woken<F: Future>(parked: &[task::Spawn<F>]) -> usize {
    let mut count = 0;
    for served in parked {
        count += usize::from(served.is_woken());
    }
    count
}

/// An idle connection with far limits, polled by hand.
fn parked(layer: &PressureLayer) -> task::Spawn<impl Future<Output = Result<(), BoxError>>> {
    let (near, far) = duplex(64);
    let deadlines = Deadlines::none().idle(secs(16_000));
    let mut served = task::spawn(stack(layer, deadlines).call(Conn::new(near, ())));
    assert_pending!(served.poll());
    std::mem::forget(far);
    served
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_is_woken_at_each_step_up_and_not_in_between() {
    let dial = Dial::default();
    let layer = PressureLayer::new(dial.thresholds().reclaim(0)).unwrap();
    let mut served = parked(&layer);
    sleep(secs(1_100)).await;
    // The first tick of its own.
    assert!(served.is_woken());
    assert_pending!(served.poll());
    let mut wakes = Vec::new();

    for percent in (0..=100).chain((0..100).rev()) {
        dial.turn_now(percent as f32 / 100.0)
            .await;
        if served.is_woken() {
            wakes.push(percent);
            assert_pending!(served.poll());
        }
    }

    assert_eq!(wakes, [13, 25, 38, 50, 63, 75, 88, 100]);
}

#[tokio::test(start_paused = true)]
async fn a_level_that_wavers_at_a_step_wakes_nobody_twice() {
    let dial = Dial::default();
    let layer = PressureLayer::new(dial.thresholds().reclaim(0)).unwrap();
    let mut served = parked(&layer);
    sleep(secs(1_100)).await;
    // The first tick of its own.
    assert!(served.is_woken());
    assert_pending!(served.poll());
    let mut wakes = 0;

    for level in [0.51, 0.49].repeat(500) {
        dial.turn_now(level).await;
        if served.is_woken() {
            wakes += 1;
            assert_pending!(served.poll());
        }
    }

    assert_eq!(wakes, 1);
}

#[tokio::test(start_paused = true)]
async fn so_many_are_woken_in_a_tick_and_the_others_in_the_next() {
    let dial = Dial::default();
    let layer = PressureLayer::new(dial.thresholds().reclaim(0)).unwrap();
    let mut parked: Vec<_> = (0..1_500)
        .map(|_| parked(&layer))
        .collect();
    // Between two of the layer's ticks; the first tick of each connection has passed.
    sleep(secs(1_100) + TICK / 2).await;
    for served in &mut parked {
        assert_pending!(served.poll());
        // So many polls in one turn of this task would each be cut short, and woken again.
        tokio::task::yield_now().await;
    }
    assert_eq!(woken(&parked), 0);
    dial.turn_now(0.5).await;
    let first = woken(&parked);
    sleep(TICK * 2).await;

    assert_eq!((first, woken(&parked)), (1024, 1_500));
}

#[tokio::test(start_paused = true)]
async fn one_at_work_is_not_woken_and_looks_when_it_is_done() {
    let dial = Dial::default();
    let layer = PressureLayer::new(dial.thresholds().reclaim(0)).unwrap();
    let (near, mut far) = duplex(64);
    let deadlines = Deadlines::none().idle(secs(90));
    let mut served = task::spawn(stack(&layer, deadlines).call(Conn::new(near, ())));
    far.write_all(b"wait 20000 done\n")
        .await
        .unwrap();
    assert_pending!(served.poll());

    dial.turn_now(1.0).await;
    let woken = served.is_woken();
    drop(tokio::spawn(served));
    let mut reply = [0; 5];
    far.read_exact(&mut reply)
        .await
        .unwrap();
    let done = Instant::now();
    assert_eq!(far.read(&mut reply).await.unwrap(), 0);

    assert!(!woken);
    assert!(
        done.elapsed() >= secs(9) && done.elapsed() <= secs(10),
        "{:?}",
        done.elapsed()
    );
}
