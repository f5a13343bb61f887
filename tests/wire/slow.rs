//! Peers that are slow, silent, or read nothing.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};
use tower_net::{CloseReason, deadline::Deadlines, frame::Framing};

use crate::{
    child::Child,
    kernel,
    peer::{End, Peer, alone, frame, soon, until},
    stack::{FAR, Settings},
};

/// Of the server whose memory is watched.
pub(crate) fn settings() -> Settings {
    Settings {
        deadlines: patient().write_stall(STALL),
        ..Settings::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_is_closed_at_the_first_byte_deadline_while_others_are_served() {
    let limit = Duration::from_millis(700);
    let server = first_byte(limit).start().await;
    let mut good = Peer::connect(server.addr).await;
    good.call("hello").await.unwrap();

    let begun = Instant::now();
    let mut silent = Peer::connect(server.addr).await;
    let closing = tokio::spawn(async move { silent.end().await });
    let mut answered = 0;
    while !closing.is_finished() {
        assert_eq!(good.call("still here").await.unwrap(), b"still here");
        answered += 1;
    }

    assert_eq!(closing.await.unwrap(), (0, End::Closed));
    assert!(begun.elapsed() >= limit);
    assert!(answered > 10, "{answered}");
    let report = server.drained().await;
    assert_eq!(report.closed_for(CloseReason::FirstByte), 1);
    assert_eq!(report.closed_for(CloseReason::Drain), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_silent_peers_cost_a_good_client_nothing() {
    let _machine = alone().await;
    let limit = Duration::from_secs(4);
    let server = first_byte(limit).start().await;
    let mut good = Peer::connect(server.addr).await;
    let undisturbed = best_batch(&mut good).await;

    let connecting = (0..SILENT).map(|_| Peer::connect(server.addr));
    let mut silent = join_all(connecting).await;
    until(|| server.tally.snapshot().active() == SILENT + 1).await;
    let disturbed = best_batch(&mut good).await;
    assert_eq!(server.tally.snapshot().active(), SILENT + 1);
    let closing = tokio::spawn(async move {
        let ends = join_all(silent.iter_mut().map(Peer::end)).await;
        assert!(
            ends.iter()
                .all(|end| *end == (0, End::Closed))
        );
    });
    while !closing.is_finished() {
        good.call("served while they go")
            .await
            .unwrap();
    }
    closing.await.unwrap();

    assert!(
        disturbed < undisturbed * 4,
        "{disturbed:?} beside them, {undisturbed:?} without"
    );
    let report = server.drained().await;
    assert_eq!(report.closed_for(CloseReason::FirstByte), SILENT);
    assert_eq!(report.closed_for(CloseReason::Drain), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_takes_no_reply_is_reset_at_the_write_stall_and_costs_no_memory() {
    let _machine = alone().await;
    let mut server = Child::serve("slow");
    let mut good = Peer::connect(server.addr).await;
    good.call("hello").await.unwrap();
    let before = server.number("memory");

    // Half of them never read; the others read one byte a second. Each asks for 16 MiB and more.
    let begun = Instant::now();
    let mut peers = join_all((0..STALLED).map(|_| Peer::with_small_buffer(server.addr))).await;
    join_all(
        peers
            .iter_mut()
            .map(|peer| peer.flood("big 16384")),
    )
    .await;
    let mut peak = 0;
    let (never, byte_a_second) = peers.split_at_mut(STALLED / 2);
    let mut reading = 0;
    while server.number("active") > 1 {
        assert!(begun.elapsed() < FAR / 2, "not cut");
        peak = peak.max(server.number("memory"));
        for peer in &mut *byte_a_second {
            reading += peer
                .stream
                .try_read(&mut [0])
                .unwrap_or(0);
        }
        good.call("still here").await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }

    assert!(begun.elapsed() >= STALL);
    assert!(reading > STALLED / 2, "{reading} bytes read");
    // For each: replies up to the high-water mark and one more, and what one read brought.
    let bound = STALLED as u64 * (64 + 16 + 64 + 16);
    assert!(peak < before + bound, "from {before} to {peak} KiB");
    for peer in never.iter_mut().chain(byte_a_second) {
        let (_, end) = peer.end().await;
        assert_eq!(end, End::Reset);
    }
    let left = kernel::sockets_at(server.addr.port());
    assert!(
        left.iter()
            .all(|socket| socket.unsent == 0),
        "{left:?}"
    );
    let report = server.drained();
    assert_eq!(report["closed.write_stall"], STALLED as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_ended_its_side_and_never_reads_is_reset_as_well() {
    let server = Settings {
        deadlines: patient().write_stall(Duration::from_millis(500)),
        // All replies are below the mark, so that nothing is left to do but to write them.
        framing: Framing::default().high_water(64 << 20),
        ..Settings::default()
    }
    .start()
    .await;
    let mut peer = Peer::with_small_buffer(server.addr).await;

    for _ in 0..4 {
        peer.send("big 4000000").await;
    }
    peer.stream.shutdown().await.unwrap();

    until(|| server.tally.snapshot().closed() == 1).await;
    assert_eq!(peer.end().await.1, End::Reset);
    let closed = server.tally.snapshot();
    assert_eq!(closed.closed_for(CloseReason::WriteStall), 1, "{closed:?}");
    server.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_takes_bytes_too_slowly_is_reset_at_the_reply_deadline() {
    let limit = Duration::from_secs(1);
    let server = Settings {
        framing: Framing::default().reply_deadline(limit),
        ..Settings::default()
    }
    .start()
    .await;
    let mut peer = Peer::with_small_buffer(server.addr).await;

    let begun = Instant::now();
    peer.send("big 4000000").await;
    // Reads all the time, so that nothing ever stalls, and never fast enough.
    let mut buffer = [0; 1024];
    let end = loop {
        match soon(peer.stream.read(&mut buffer)).await {
            Ok(0) => break End::Closed,
            Ok(_) => sleep(Duration::from_millis(20)).await,
            Err(_) => break End::Reset,
        }
    };

    assert_eq!(end, End::Reset);
    assert!(begun.elapsed() >= limit);
    let report = server.drained().await;
    assert_eq!(report.closed_for(CloseReason::Reply), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_dripped_a_byte_a_second_is_cut_at_the_request_deadline() {
    let limit = Duration::from_millis(2500);
    let server = Settings {
        framing: Framing::default().request_deadline(limit),
        ..Settings::default()
    }
    .start()
    .await;
    let mut good = Peer::connect(server.addr).await;
    let dripping = Peer::connect(server.addr).await;

    let begun = Instant::now();
    let (mut input, mut output) = dripping.stream.into_split();
    let drip = tokio::spawn(async move {
        for byte in frame([b'x'; 1000]) {
            let sent = output.write_all(&[byte]).await;
            if sent.is_err() {
                return;
            }
            sleep(Duration::from_secs(1)).await;
        }
    });
    let mut last = Vec::new();
    soon(input.read_to_end(&mut last))
        .await
        .unwrap();
    let cut_after = begun.elapsed();
    good.call("served meanwhile")
        .await
        .unwrap();

    assert!(cut_after >= limit, "{cut_after:?}");
    assert_eq!(last, frame("request"));
    // It drips on, and that does not keep the connection for long.
    until(|| server.tally.snapshot().active() == 1).await;
    assert!(begun.elapsed() < limit + LINGERS, "{:?}", begun.elapsed());
    drip.abort();
    let report = server.drained().await;
    assert_eq!(report.closed_for(CloseReason::Request), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_between_requests_ends_at_the_idle_timeout_and_a_working_handler_is_not_silence() {
    let limit = Duration::from_millis(600);
    let server = Settings {
        deadlines: patient().idle(limit),
        ..Settings::default()
    }
    .start()
    .await;
    let mut idle = Peer::connect(server.addr).await;
    let mut working = Peer::connect(server.addr).await;

    idle.call("hello").await.unwrap();
    let begun = Instant::now();
    let (end, reply) = tokio::join!(idle.end(), working.call("after 1500"));

    assert_eq!(end, (0, End::Closed));
    assert_eq!(reply.unwrap(), b"after 1500");
    assert!(begun.elapsed() >= limit);
    let report = server.drained().await;
    assert_eq!(report.closed_for(CloseReason::Idle), 1, "{report}");
    assert_eq!(report.closed_for(CloseReason::Drain), 1, "{report}");
}

/// The time that a few calls take when nothing else happens to run.
async fn best_batch(good: &mut Peer) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..200 {
        let begun = Instant::now();
        for _ in 0..10 {
            assert_eq!(good.call("hello").await.unwrap(), b"hello");
        }
        best = best.min(begun.elapsed());
    }
    best
}

fn first_byte(limit: Duration) -> Settings {
    Settings {
        deadlines: patient().first_byte(limit),
        ..Settings::default()
    }
}

fn patient() -> Deadlines {
    Deadlines::none().age_jitter(0.0)
}

const SILENT: u64 = 500;
const STALLED: usize = 60;
const STALL: Duration = Duration::from_secs(4);

/// Far above the few seconds in which a last reply may arrive, and below what a dripping peer could make of it.
const LINGERS: Duration = Duration::from_secs(20);
