//! Rates that change while they run, and what is counted of what they hold back.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};
use tower_net::throttle::{Rate, Rates, ThrottleHandle, ThrottleLayer};

use crate::{
    support::{readings::recorded, service::millis},
    throttle::{Endless, layer, move_some, rate, through},
};

fn changed(layer: &ThrottleLayer, rates: Rates) -> ThrottleHandle {
    let handle = layer.handle();
    handle.set(rates).unwrap();
    assert_eq!(handle.rates(), rates);
    handle
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_rates_reaches_streams_that_are_open_and_even_waiting() {
    type Set = fn(Rates, Rate) -> Rates;
    let sets: [(Set, u64); 4] = [
        (Rates::receive, 0),
        (Rates::send, 1),
        (Rates::receive_shared, 0),
        (Rates::send_shared, 1),
    ];
    for (set, kind) in sets {
        let slow = layer(set(Rates::new(), rate(1, 1_000)));
        let mut io = through(&slow, Endless::default()).await;
        let mut spent = 0;
        while spent < 1_000 {
            spent += move_some(&mut io, kind, 1_000).await;
        }
        let start = Instant::now();
        // In a task of its own: nobody else wakes it.
        let moving = tokio::spawn(async move {
            let mut buffer = [0; 10_000];
            match kind {
                0 => io
                    .read_exact(&mut buffer)
                    .await
                    .map(drop),
                _ => io.write_all(&buffer).await,
            }
        });
        sleep(millis(500)).await;
        changed(&slow, set(Rates::new(), rate(10_000, 1_000)));

        moving.await.unwrap().unwrap();

        // It would have waited for a minute or more; it looks once a second, and then it takes one.
        assert!(start.elapsed() < millis(2_600), "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lower_rate_holds_at_once_and_none_is_none() {
    let fast = layer(Rates::new().send(rate(1_000_000, 100_000)));
    let mut io = through(&fast, Endless::default()).await;
    move_some(&mut io, 1, 10).await;

    let handle = changed(&fast, Rates::new().send(rate(100, 50)));
    assert_eq!(move_some(&mut io, 1, 10_000).await, 50);
    assert!(handle.set(Rates::new()).is_err());
    assert_eq!(handle.rates(), Rates::new().send(rate(100, 50)));
    changed(&fast, Rates::new().receive(rate(100, 50)));

    assert_eq!(move_some(&mut io, 1, 10_000).await, 10_000);
}

#[tokio::test(start_paused = true)]
async fn what_was_made_to_wait_is_counted() {
    let rates = Rates::new()
        .receive_shared(rate(1_000, 100))
        .send(rate(1_000, 100));
    let (layer, readings) = recorded(|| layer(rates));
    let handle = layer.handle();
    let mut io = through(&layer, Endless::default()).await;

    io.write_all(&[0; 400]).await.unwrap();
    io.read_exact(&mut [0; 150])
        .await
        .unwrap();

    let metric = |direction| {
        let labels = [("direction", direction), ("dry_run", "false")];
        readings.of("tower_net_throttled_bytes_total", &labels)
    };
    assert_eq!((handle.held_back_sent(), metric("send")), (300, 300.0));
    // All but the burst, and the byte that found out.
    let held_back = handle.held_back_received();
    assert!((30..=50).contains(&held_back), "{held_back}");
    assert_eq!(metric("receive"), held_back as f64);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_what_would_have_waited_and_holds_nothing_back() {
    let one = rate(1_000, 100);
    let rates = Rates::new()
        .receive_shared(one)
        .send(one);
    let (layer, readings) = recorded(|| layer(rates).dry_run(true));
    let handle = layer.handle();
    let mut io = through(&layer, Endless::default()).await;
    let start = Instant::now();

    for _ in 0..2 {
        io.write_all(&[0; 400]).await.unwrap();
        io.read_exact(&mut [0; 150])
            .await
            .unwrap();
        assert!(start.elapsed() < millis(60));
        sleep(millis(50)).await;
    }

    // The second time half a burst has been earned.
    assert_eq!(
        (handle.held_back_sent(), handle.held_back_received()),
        (300 + 350, 50 + 100)
    );
    let labels = [("direction", "send"), ("dry_run", "true")];
    let metric = readings.of("tower_net_throttled_bytes_total", &labels);
    assert_eq!(metric, 650.0);
}

#[tokio::test(start_paused = true)]
async fn a_wait_without_end_is_no_timer_without_end() {
    let slowest = layer(Rates::new().send(rate(1, 1 << 40)));
    let mut io = through(&slowest, Endless::default()).await;
    assert_eq!(move_some(&mut io, 1, 1).await, 1);
    // As if the whole burst had been spent: what is asked for is more than a century away.
    changed(&slowest, Rates::new().send(rate(1, 1 << 40)));

    let waits = timeout(Duration::from_secs(5), move_some(&mut io, 1, 100)).await;

    assert_eq!(waits.unwrap(), 100);
}
