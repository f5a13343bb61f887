//! The one task of a layer, and what it knows of connections.

use tokio::{
    runtime::{Builder, Handle},
    time::sleep,
};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason,
    error::{BoxError, NoTimer, find},
    io::GuardedIo,
    pressure::{PressureHandle, PressureLayer, Thresholds},
};
use tower_service::Service;

use crate::{
    pressure::{Dial, Held, TICK, conn, holds, patient, served},
    support::service::secs,
};

// === The one task

fn tasks() -> usize {
    Handle::current()
        .metrics()
        .num_alive_tasks()
}

#[tokio::test(start_paused = true)]
async fn one_task_measures_for_all_clones_and_ends_with_the_last_of_them_and_of_their_connections()
{
    let dial = Dial::default();
    let layer = PressureLayer::new(dial.thresholds().every(secs(3_600))).unwrap();
    let handle: PressureHandle = layer.handle();
    let (mut one, mut other) = (holds(&layer), holds(&layer.clone()));
    let before = tasks();

    let held = [one.call(conn()).await, other.call(conn()).await];
    let during = tasks();
    drop((one, other, layer));
    tokio::task::yield_now().await;
    let with_connections = tasks();
    drop(held);
    tokio::task::yield_now().await;

    assert_eq!((before, during, with_connections, tasks()), (0, 1, 1, 0));
    assert_eq!(handle.open(), 0);
}

#[test]
fn a_layer_that_outlives_its_runtime_is_not_stuck_and_measures_on_in_the_next() {
    let dial = Dial::default();
    dial.turn(1.0);
    let layer = dial.layer();
    let mut outcomes = Vec::new();

    for _ in 0..2 {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut service = holds(&layer);
            for _ in 0..2 {
                outcomes.push(service.call(conn()).await.is_ok());
                sleep(TICK).await;
            }
        });
    }

    assert_eq!(outcomes, [true, false, true, false]);
}

#[test]
fn whoever_is_idle_is_found_by_the_next_who_measures() {
    let dial = Dial::default();
    let layer = dial.layer();
    let [first, second] = [(); 2].map(|()| {
        let mut builder = Builder::new_current_thread();
        let builder = builder.enable_time().start_paused(true);
        builder.build().unwrap()
    });
    let measures = async || holds(&layer).call(conn()).await;
    let _held = first.block_on(measures()).unwrap();
    first.block_on(async { sleep(secs(60)).await });
    let idle = second.block_on(served(&layer, patient()));
    first.block_on(async { sleep(secs(1)).await });

    drop(first);
    dial.turn(0.5);
    let left = second.block_on(async {
        let _measured_again = holds(&layer)
            .call(conn())
            .await
            .unwrap();
        sleep(secs(3)).await;
        idle.info.is_leaving()
    });

    assert!(left);
}

#[tokio::test]
async fn without_thresholds_it_does_nothing_at_all() {
    let layer = PressureLayer::new(Thresholds::default()).unwrap();
    let mut service = holds(&layer);

    let held = service.call(conn()).await;

    assert!(held.is_ok());
    assert_eq!((tasks(), layer.handle().open()), (0, 0));
    assert_eq!(layer.handle().levels().count(), 0);
}

#[test]
fn a_runtime_without_a_clock_is_an_error_before_the_first_connection_if_there_is_anything_to_measure()
 {
    let runtime = Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let nothing = PressureLayer::new(Thresholds::default()).unwrap();
        let error = Dial::default()
            .layer()
            .layer(service_fn(async |conn: Held| Ok::<_, BoxError>(conn)))
            .ready()
            .await
            .map(drop)
            .unwrap_err();

        assert!(find::<NoTimer>(&*error).is_some());
        assert!(holds(&nothing).ready().await.is_ok());
    });
}

// === A connection is in the books for as long as its stream

#[tokio::test(start_paused = true)]
async fn a_connection_is_counted_until_its_stream_is_dropped_whatever_becomes_of_its_future() {
    let layer = Dial::default().layer();
    let handle = layer.handle();
    let mut service = holds(&layer);

    let never_polled = service.call(conn());
    let held = service.call(conn()).await.unwrap();
    let both = handle.open();
    drop(never_polled);
    let one = handle.open();
    drop(held.map_io(|io| GuardedIo::new(io, ())));

    assert_eq!((both, one, handle.open()), (2, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn places_of_connections_that_have_gone_are_used_again() {
    let dial = Dial::default();
    let layer = dial.layer();
    for _ in 0..3 {
        let peers = [
            served(&layer, patient()).await,
            served(&layer, patient()).await,
        ];
        sleep(secs(5)).await;
        dial.turn_now(0.5).await;
        for peer in peers {
            assert_eq!(peer.leave().await, Some(CloseReason::Reclaimed));
        }
        dial.turn_now(0.0).await;
    }

    assert_eq!((layer.handle().reclaimed(), layer.handle().open()), (6, 0));
}

#[tokio::test]
async fn the_instance_that_was_made_ready_is_the_one_called() {
    let layer = Dial::default().layer();
    // A mock panics when it is called without having been made ready.
    let (inner, mut handle) = tower_test::mock::pair::<Held, ()>();
    let mut service = layer.layer(inner).clone();

    let call = service
        .ready()
        .await
        .unwrap()
        .call(conn());
    let (held, answer) = handle.next_request().await.unwrap();
    answer.send_response(());

    assert!(call.await.is_ok());
    drop(held);
}
