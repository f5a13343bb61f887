//! Crowds of clients that do not get done, beside one that does.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::Instant};
use tower_net::{CloseReason, Handshakes};

use super::{Client, Settings, Town};
use crate::{
    peer::{Peer, alone, soon, until},
    support::{hello::SplitHello, io::Drip, pki::connect},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_in_single_bytes_and_in_records_of_single_bytes_is_a_hello() {
    let town = Town::start(Settings::default()).await;
    let tcp = async || {
        let tcp = soon(TcpStream::connect(town.addr))
            .await
            .unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp
    };

    let dripping = Drip::new(tcp().await);
    let mut dripping = soon(connect(town.authority.trusting(), "a.test", dripping))
        .await
        .unwrap();
    for size in [1, 3, 50] {
        let split = SplitHello::new(tcp().await, size);
        let mut split = soon(connect(town.authority.trusting(), "a.test", split))
            .await
            .unwrap();
        split.write_all(b"bye\n").await.unwrap();
        split.flush().await.unwrap();
    }
    dripping
        .write_all(b"bye\n")
        .await
        .unwrap();
    dripping.flush().await.unwrap();

    until(|| town.tally.snapshot().closed() == 4).await;
    assert_eq!(town.outcome("ok_full"), 4.0);
    town.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_that_do_not_get_done_cost_a_good_client_nothing() {
    let _machine = alone().await;
    let limit = Duration::from_secs(4);
    let town = Town::start(Settings {
        handshakes: Some(Handshakes::new(AT_ONCE, limit).unwrap()),
        ..Settings::default()
    })
    .await;
    let mut established = town.connect().await;
    let (calls_before, dials_before) = best(&town, &mut established).await;

    // Five hundred say nothing, five hundred half a hello.
    // One that has made room by the time it would speak has been reset.
    let joining = (0..CROWD).map(async |number| {
        let mut peer = Peer::try_connect(town.addr)
            .await
            .ok()?;
        if number % 2 == 1 {
            let half = b"\x16\x03\x01\x00\xc0\x01\x00\x00\xbc\x03\x03half";
            soon(peer.stream.write_all(half))
                .await
                .ok()?;
        }
        Some(peer)
    });
    let crowd: Vec<_> = join_all(joining).await;
    let mut crowd: Vec<_> = crowd.into_iter().flatten().collect();
    let mut highest = 0;
    let (calls, dials) = {
        until(|| town.tally.snapshot().opened() >= CROWD as u64).await;
        highest = highest.max(town.handshakes.pending());
        best(&town, &mut established).await
    };
    highest = highest.max(town.handshakes.pending());

    assert!(
        calls < calls_before * 4 + SLACK,
        "{calls:?} beside them, {calls_before:?} without"
    );
    assert!(
        dials < dials_before * 4 + SLACK,
        "{dials:?} beside them, {dials_before:?} without"
    );
    assert!(highest <= AT_ONCE, "{highest}");
    assert_eq!(highest, AT_ONCE);

    // Those that were not made to leave do so at their deadline, and the good one is served meanwhile.
    let closing = tokio::spawn(async move { join_all(crowd.iter_mut().map(Peer::end)).await });
    while !closing.is_finished() {
        assert_eq!(
            established
                .call("still here")
                .await
                .unwrap(),
            "still here"
        );
        assert!(town.handshakes.pending() <= AT_ONCE);
    }
    let ends = closing.await.unwrap();
    assert!(
        ends.iter()
            .all(|(heard, _)| *heard == 0)
    );
    drop(established);
    let report = town.drained().await;
    let evicted = report.closed_for(CloseReason::HandshakeLimit);
    let (silent, late) = (
        report.closed_for(CloseReason::FirstByte),
        report.closed_for(CloseReason::Handshake),
    );
    assert_eq!(evicted + silent + late, CROWD as u64, "{report}");
    assert!(evicted >= (CROWD - AT_ONCE) as u64, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_silent_clients_do_not_hold_up_the_next_one() {
    let _machine = alone().await;
    let limit = Duration::from_secs(3);
    let town = Town::start(Settings {
        handshakes: Some(Handshakes::new(AT_ONCE, limit).unwrap()),
        ..Settings::default()
    })
    .await;
    let begun = Instant::now();
    let mut silent = join_all((0..200).map(|_| Peer::connect(town.addr))).await;

    let dialled = Instant::now();
    let mut good = town.connect().await;
    good.call("hello").await.unwrap();
    let took = dialled.elapsed();
    let ends = join_all(silent.iter_mut().map(Peer::end)).await;

    assert!(took < limit / 2, "{took:?}");
    assert!(begun.elapsed() >= limit);
    assert!(
        ends.iter()
            .all(|(heard, _)| *heard == 0)
    );
    drop(good);
    let report = town.drained().await;
    assert_eq!(report.closed_for(CloseReason::FirstByte), 200, "{report}");
}

/// The best time of ten calls on a connection, and of a handshake with one call.
async fn best(town: &Town, established: &mut Client) -> (Duration, Duration) {
    let config = Arc::new(town.authority.trusting());
    let (mut calls, mut dials) = (Duration::MAX, Duration::MAX);
    for _ in 0..20 {
        let begun = Instant::now();
        for _ in 0..10 {
            established.call("hello").await.unwrap();
        }
        calls = calls.min(begun.elapsed());

        let begun = Instant::now();
        let mut client = Client::connect(town.addr, &config)
            .await
            .unwrap();
        client.call("hello").await.unwrap();
        dials = dials.min(begun.elapsed());
        assert!(town.handshakes.pending() <= AT_ONCE);
    }
    (calls, dials)
}

const AT_ONCE: usize = 256;
const CROWD: usize = 1000;

/// What a busy machine may add to the best of twenty.
const SLACK: Duration = Duration::from_millis(50);
