//! A process that comes near its limit of descriptors, and what becomes of whom.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tower_net::pressure::Thresholds;

use crate::{
    child::Child,
    peer::{End, Peer, alone, frame, soon},
    stack::Settings,
};

/// Of a server that sheds by its descriptors, and of one that does not.
pub(crate) fn settings(sheds: bool) -> Settings {
    let pressure = Thresholds::default();
    Settings {
        pressure: if sheds {
            pressure.descriptors(SOFT, HARD)
        } else {
            pressure
        },
        ..Settings::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room_where_a_newcomer_would_be_stuck() {
    let _machine = alone().await;
    for (role, all) in [("unpressed", false), ("pressed", true)] {
        let mut server = Child::serve(role);
        leave_room(&mut server).await;
        let mut peers = Vec::new();
        for _ in 0..ROOM / 2 {
            let mut peer = Peer::connect(server.addr).await;
            peer.call("hello").await.unwrap();
            peers.push(peer);
        }
        sleep(IDLE).await;

        let mut served = 0;
        for _ in 0..ROOM {
            let mut peer = Peer::connect(server.addr).await;
            match timeout(STUCK, peer.call("hello")).await {
                Ok(reply) => assert_eq!(reply.unwrap(), b"hello"),
                Err(_) => break,
            }
            served += 1;
            peers.push(peer);
            // Some a tick, as the room is made.
            sleep(Duration::from_millis(20)).await;
        }

        assert_eq!(served == ROOM, all, "{served} served");
        if all {
            let (read, end) = peers[0].end().await;
            assert_eq!((read, end), (0, End::Closed));
        }
        drop(peers);
        let report = server.drained();
        assert!(!report.contains_key("closed.pressure"), "{report:?}");
        let reclaimed = report.get("closed.reclaimed").copied();
        assert_eq!(reclaimed.is_some_and(|count| count > 0), all, "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_hard_point_newcomers_are_reset_the_busy_go_on_and_it_recovers() {
    let _machine = alone().await;
    let mut server = Child::serve("pressed");
    let mut first = Peer::connect(server.addr).await;
    first.call("hello").await.unwrap();
    leave_room(&mut server).await;
    // It counts them at the next tick after a second.
    sleep(IDLE).await;
    let limit = server.number("descriptor limit") as f64;
    let left = (HARD * limit).ceil() as u64 - server.number("descriptors");
    let mut busy = Vec::new();
    first.send("after 8000").await;
    all_started(&mut server, 2).await;
    // A few more might be counted at any time: those that are open to count.
    for _ in 4..left {
        let mut peer = Peer::connect(server.addr).await;
        peer.send("after 8000").await;
        busy.push(peer);
        // Before that it would be idle, and be asked to make room for the next.
        all_started(&mut server, 2 + busy.len() as u64).await;
    }

    let mut newcomers = Vec::new();
    let refused = loop {
        // The reset may come before we know that we are connected.
        let Ok(mut newcomer) = Peer::try_connect(server.addr).await else {
            break (0, End::Reset);
        };
        // Whoever is let in says nothing, and hears nothing.
        let ended = timeout(Duration::from_millis(100), newcomer.end()).await;
        if let Ok(ended) = ended {
            break ended;
        }
        newcomers.push(newcomer);
        assert!(newcomers.len() < 10);
    };

    assert_eq!(refused, (0, End::Reset));
    assert_eq!(server.number("refused"), 1);
    // As of the next tick.
    soon(async {
        while server.number("pressure") != 1 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    for peer in busy.iter_mut().chain([&mut first]) {
        assert_eq!(peer.receive().await.unwrap(), b"after 8000");
    }
    drop((busy, newcomers));
    let recovered = async {
        loop {
            if let Ok(mut peer) = Peer::try_connect(server.addr).await {
                // One that is reset already cannot be written to.
                let _reset = peer.stream.try_write(&frame("hello"));
                if peer.receive().await.is_ok() {
                    return;
                }
            }
        }
    };
    soon(recovered).await;
    first.call("still here").await.unwrap();
    drop(first);
    let report = server.drained();
    assert!(report["closed.pressure"] >= 1, "{report:?}");
}

async fn all_started(server: &mut Child, requests: u64) {
    soon(async {
        while server.number("started") < requests {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Leaves the server so many descriptors more than it has now.
async fn leave_room(server: &mut Child) {
    // It counts them once it has begun, which takes one itself, and then not for a long time.
    while server.ask("descriptor gauges") == "0 of 0" {
        sleep(Duration::from_millis(10)).await;
    }
    server.ask(&format!("room: {ROOM}"));
}

const SOFT: f64 = 0.8;
const HARD: f64 = 0.95;

const ROOM: usize = 100;

/// Longer than one must be idle to be reclaimed, and than two counts are apart.
const IDLE: Duration = Duration::from_millis(2_500);

/// One that is not served in this time is in the backlog, and stays there.
const STUCK: Duration = Duration::from_secs(2);
