//! Streams that share a rate: who has its turn, and what becomes of the turns of those who leave.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::{
    support::{
        io::Script,
        peer::Peer,
        service::{millis, secs},
    },
    throttle::{layer, rate, through},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{Instant, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::service_fn;
use tower_layer::Layer;
use tower_net::{
    Conn,
    deadline::{DeadlineIo, DeadlineLayer, Deadlines, Elapsed},
    error::{BoxError, find},
    throttle::{Rates, ThrottleIo, ThrottleLayer},
};

/// Writes so many bytes, with a pause after each write, and counts them.
fn writes(layer: &ThrottleLayer, bytes: usize, pause: u64) -> Arc<AtomicU64> {
    let (layer, written) = (layer.clone(), Arc::<AtomicU64>::default());
    let counts = Arc::clone(&written);
    tokio::spawn(async move {
        let mut io = through(&layer, Script::new()).await;
        loop {
            io.write_all(&vec![0; bytes])
                .await
                .unwrap();
            counts.fetch_add(bytes as u64, Relaxed);
            sleep(millis(pause)).await;
        }
    });
    written
}

// === Turns

#[tokio::test(start_paused = true)]
async fn busy_streams_have_equal_parts_however_much_they_ask_for_at_once() {
    let layer = layer(Rates::new().send_shared(rate(80_000, 8_000)));
    let counts: Vec<_> = [100, 1_000, 10_000, 64_000]
        .map(|bytes| writes(&layer, bytes, 0))
        .into();

    sleep(secs(100)).await;

    let counts: Vec<_> = counts
        .iter()
        .map(|count| count.load(Relaxed))
        .collect();
    // The smallest asks for less than a share at a time, and so has less: it has as many turns.
    assert!(counts[0] > 300_000, "{counts:?}");
    let shares = counts[1..]
        .iter()
        .map(|count| *count as f64);
    let (least, most) = shares.fold((f64::MAX, 0.0), |(least, most), share| {
        (f64::min(least, share), f64::max(most, share))
    });
    assert!(most / least < 2.2, "{counts:?}");
    let all = counts.iter().sum::<u64>();
    assert!((7_800_000..8_010_000).contains(&all), "{all}");
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_little_is_not_made_to_wait_for_the_greedy() {
    let layer = layer(Rates::new().send_shared(rate(100_000, 10_000)));
    for _ in 0..9 {
        writes(&layer, 60_000, 0);
    }
    // A tenth of a tenth of the rate, beside nine that want all of it.
    let modest = writes(&layer, 100, 100);

    sleep(secs(100)).await;

    // Each of its hundred bytes a tenth of a second waits for nine shares of 625 bytes, at the most.
    assert!(modest.load(Relaxed) > 60_000, "{modest:?}");
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_woken_in_their_order() {
    let layer = layer(Rates::new().send_shared(rate(1_000, 160)));
    let mut first = through(&layer, Script::new()).await;
    first
        .write_all(&[0; 160])
        .await
        .unwrap();
    let mut ios = Vec::new();
    for _ in 0..3 {
        ios.push(through(&layer, Script::new()).await);
    }
    let mut waiting: Vec<_> = ios
        .iter_mut()
        .map(|io| task::spawn(io.write(&[0; 10])))
        .collect();
    for write in &mut waiting {
        assert_pending!(write.poll());
    }

    for turn in 0..3 {
        sleep(millis(10)).await;
        let woken: Vec<_> = waiting
            .iter()
            .map(|write| write.is_woken())
            .collect();
        assert!(
            woken[turn] && !woken[turn + 1..].contains(&true),
            "{woken:?}"
        );
    }
    for write in &mut waiting {
        assert_eq!(assert_ready!(write.poll()).unwrap(), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_idle_readers_hold_up_nobody() {
    let layer = layer(Rates::new().receive_shared(rate(100_000, 10_000)));
    let mut idle: Vec<DuplexStream> = Vec::new();
    let (near, mut far) = duplex(64 * 1024);
    let mut busy = through(&layer, near).await;
    tokio::spawn(async move { while far.write_all(&[0; 4_096]).await.is_ok() {} });
    busy.read_exact(&mut [0; 10_000])
        .await
        .unwrap();
    for _ in 0..1_000 {
        let (near, far) = duplex(64);
        idle.push(far);
        let mut io = through(&layer, near).await;
        tokio::spawn(async move { io.read(&mut [0; 64]).await });
    }
    let start = Instant::now();

    busy.read_exact(&mut [0; 1_000_000])
        .await
        .unwrap();

    assert!(start.elapsed() < millis(10_200), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_reader_learns_of_the_end_though_nothing_is_left() {
    let layer = layer(Rates::new().receive_shared(rate(1, 1)));
    let mut first = through(&layer, Script::new().bytes("xx")).await;
    assert_eq!(first.read(&mut [0; 9]).await.unwrap(), 1);
    let mut second = through(&layer, Script::new().end()).await;
    let start = Instant::now();

    assert_eq!(second.read(&mut [0; 9]).await.unwrap(), 0);

    assert_eq!(start.elapsed(), secs(0));
}

#[tokio::test(start_paused = true)]
async fn a_byte_that_found_out_is_paid_for() {
    let layer = layer(Rates::new().receive_shared(rate(100, 100)));
    let mut io = through(&layer, Script::new().bytes([0; 400])).await;
    let start = Instant::now();

    io.read_exact(&mut [0; 300])
        .await
        .unwrap();

    let took = start.elapsed();
    assert!((millis(1_980)..millis(2_020)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_many_have_found_out_is_owed_by_all() {
    let layer = layer(Rates::new().receive_shared(rate(10, 10)));
    let mut first = through(&layer, Script::new().bytes([0; 20])).await;
    first
        .read_exact(&mut [0; 10])
        .await
        .unwrap();
    let start = Instant::now();
    for _ in 0..20 {
        let mut io = through(&layer, Script::new().bytes("xx")).await;
        assert_eq!(io.read(&mut [0; 9]).await.unwrap(), 1);
    }
    assert_eq!(start.elapsed(), secs(0));

    first
        .read_exact(&mut [0; 2])
        .await
        .unwrap();

    let waited = start.elapsed();
    assert!((secs(2)..millis(2_300)).contains(&waited), "{waited:?}");
}

// === Those who leave

#[tokio::test(start_paused = true)]
async fn what_a_stream_had_booked_is_for_others_when_it_is_closed() {
    let layer = layer(Rates::new().send_shared(rate(160, 160)));
    let mut io = through(&layer, Script::new()).await;
    io.write_all(&[0; 160]).await.unwrap();
    for _ in 0..100 {
        let mut leaves = through(&layer, Script::new()).await;
        let mut write = task::spawn(leaves.write(&[0; 160]));
        assert_pending!(write.poll());
    }
    let start = Instant::now();

    io.write_all(&[0; 160]).await.unwrap();

    assert!(start.elapsed() < millis(1_020), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_not_taken_is_for_others() {
    let layer = layer(Rates::new().send_shared(rate(1_000, 160)));
    let (near, mut far) = duplex(1);
    let mut stuck = through(&layer, near).await;
    let mut io = through(&layer, Script::new()).await;
    stuck.write_all(b"x").await.unwrap();
    io.write_all(&[0; 159]).await.unwrap();
    // Its peer takes nothing: once its turn has come, it passes on.
    let mut write = task::spawn(stuck.write(&[0; 10]));
    assert_pending!(write.poll());
    sleep(millis(11)).await;
    assert!(write.is_woken());
    assert_pending!(write.poll());

    let mut other = task::spawn(io.write(&[0; 10]));
    assert_eq!(assert_ready!(other.poll()).unwrap(), 10);
    far.read_u8().await.unwrap();
    assert!(write.is_woken());
    assert_eq!(write.await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_not_kept_for_longer_than_a_burst_is() {
    let layer = layer(Rates::new().send_shared(rate(1_000, 160)));
    let mut ios = Vec::new();
    for _ in 0..50 {
        ios.push(through(&layer, Script::new()).await);
    }
    ios[0]
        .write_all(&[0; 160])
        .await
        .unwrap();
    for io in &mut ios {
        let _cancelled = timeout(secs(0), io.write(&[0; 10])).await;
    }
    // All of them have had their turn by now, and taken none.
    sleep(secs(60)).await;

    let start = Instant::now();
    for io in &mut ios {
        assert_eq!(io.write(&[0; 10]).await.unwrap(), 10);
    }

    let most = 160 + start.elapsed().as_millis() as u64 + 1;
    assert!(500 <= most, "500 bytes, where {most} may pass");
}

// === With deadlines

type Below = Conn<ThrottleIo<DeadlineIo<DuplexStream>>>;
type Above = Conn<DeadlineIo<ThrottleIo<DuplexStream>>>;

fn deadlines() -> DeadlineLayer {
    let deadlines = Deadlines::none()
        .idle(secs(2))
        .write_stall(secs(2));
    DeadlineLayer::new(deadlines).unwrap()
}

/// Six seconds' worth a byte a second, each way.
fn slow() -> ThrottleLayer {
    let slow = rate(1, 2);
    layer(Rates::new().receive(slow).send(slow))
}

/// Waits for longer than any deadline in each direction, if it may.
async fn ask_for_much(
    conn: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
) -> Result<(), BoxError> {
    sleep(millis(1)).await;
    conn.read_exact(&mut [0; 2]).await?;
    conn.write_all(&[0; 2]).await?;
    conn.read_exact(&mut [0; 9]).await?;
    conn.write_all(&[0; 9]).await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn below_the_deadlines_a_slowed_stream_is_neither_idle_nor_stalled() {
    // One step takes four seconds, where two are a timeout.
    let steps = layer(
        Rates::new()
            .receive(rate(1, 8))
            .send(rate(1, 8)),
    );
    let service = deadlines().layer(steps.layer(service_fn(async |mut conn: Below| {
        conn.read_exact(&mut [0; 8]).await?;
        conn.write_all(&[0; 8]).await?;
        ask_for_much(&mut conn).await
    })));
    let mut peer = Peer::of(service);
    peer.send([0; 19]).await;

    peer.take(19).await;

    peer.ended().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn above_the_deadlines_a_slowed_stream_is_idle_and_stalled() {
    for (reads, which) in [(true, "nothing moved"), (false, "no byte could be written")] {
        let steps = layer(
            Rates::new()
                .receive(rate(1, 8))
                .send(rate(1, 8)),
        );
        let service = steps.layer(deadlines().layer(service_fn(
            move |mut conn: Above| async move {
                if reads {
                    conn.read_exact(&mut [0; 19]).await?;
                } else {
                    conn.write_all(&[0; 19]).await?;
                }
                Ok::<_, BoxError>(())
            },
        )));
        let mut peer = Peer::of(service);
        peer.send([0; 19]).await;

        let error = peer.ended().await.unwrap_err();

        let elapsed = find::<Elapsed>(&*error).unwrap();
        assert!(elapsed.to_string().starts_with(which), "{elapsed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stalls_is_found_below_the_deadlines_all_the_same() {
    let service = deadlines().layer(slow().layer(service_fn(async |mut conn: Below| {
        conn.write_all(&[0; 9]).await?;
        Ok::<_, BoxError>(())
    })));
    let mut peer = Peer::with_room(4, service);
    let start = Instant::now();

    let error = peer.ended().await.unwrap_err();

    let elapsed = find::<Elapsed>(&*error).unwrap();
    assert!(
        elapsed
            .to_string()
            .starts_with("no byte"),
        "{elapsed}"
    );
    // Two bytes at once, two in two seconds more; then it is the peer that takes nothing.
    assert!(
        (secs(4)..secs(7)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_the_peer_that_ended_is_not_held_against_a_stream_that_is_slowed_next() {
    let own = layer(Rates::new().receive(rate(1, 8)));
    let service = deadlines().layer(own.layer(service_fn(async |mut conn: Below| {
        conn.read_exact(&mut [0; 7]).await?;
        // One byte is left, and it does not come; then more is asked for, which takes three seconds to earn.
        let late = timeout(millis(1), conn.read_u8()).await;
        assert!(late.is_err());
        conn.write_all(b"x").await?;
        conn.read_exact(&mut [0; 9]).await?;
        Ok::<_, BoxError>(())
    })));
    let mut peer = Peer::of(service);
    peer.send([0; 7]).await;
    peer.take(1).await;
    peer.send([0; 9]).await;

    peer.ended().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stall_of_the_peer_that_ended_is_not_held_against_a_stream_that_is_slowed_next() {
    // A byte at a time.
    let shared = layer(Rates::new().send_shared(rate(1, 16)));
    let service = shared.layer(service_fn(async |mut conn: Below| {
        conn.write_all(&[0; 6]).await?;
        Ok::<_, BoxError>(())
    }));
    let mut peer = Peer::with_room(4, deadlines().layer(service));
    sleep(millis(100)).await;
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(through(&shared, Script::new()).await);
    }
    others[0]
        .write_all(&[0; 12])
        .await
        .unwrap();
    let mut turns: Vec<_> = others
        .iter_mut()
        .map(|io| task::spawn(io.write(b"x")))
        .collect();
    for write in &mut turns {
        assert_pending!(write.poll());
    }

    // Its peer takes again, and now it is behind five others for longer than a stall may be.
    peer.take(4).await;
    sleep(secs(4)).await;
    assert!(!peer.has_ended());
    peer.take(2).await;

    peer.ended().await.unwrap();
}
