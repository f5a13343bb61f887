//! How it leaves, and what it says it did.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use serde_json::json;
use socket2::SockRef;
use tokio::time::Instant;

use super::{drained, echo, socket_path};
use crate::support::process::PATIENCE;

#[test]
fn a_drain_finishes_the_request_in_hand_and_sends_the_idle_away() {
    let path = socket_path();
    let (mut server, at) = echo(&format!(
        "--slow-word slow --slow-for 2s --listen unix:{}",
        path.display()
    ));
    server.listening();
    let mut idle = at.client();
    idle.exchange(b"hello");
    let mut busy = at.client();
    busy.send_all(&["quick", "slow"]);
    assert_eq!(busy.reply(), b"quick");

    server.terminate();
    idle.is_closed();
    let told = Instant::now();
    while path.exists() {
        assert!(told.elapsed() < PATIENCE, "it still listens");
        thread::yield_now();
    }
    assert_eq!(busy.reply(), b"slow");
    busy.is_closed();
    drop(busy);

    let (report, code) = server.report();
    assert_eq!(code, 0);
    assert_eq!(report["closed"], json!({"drain": 2}));
    let drain = &report["drain"];
    assert_eq!(drain["finished"], 1);
    assert_eq!(drain["idle"], 1);
    assert_eq!(drain["cut"], 0);
    assert_eq!(report["stragglers"], json!([]));
}

#[test]
fn a_drain_under_load_loses_no_reply() {
    let (server, at) = echo("--threads 2");
    let mut clients: Vec<_> = (0..8).map(|_| at.client()).collect();
    for client in &mut clients {
        client.exchange(b"hello");
    }
    let replies = AtomicU32::new(8);

    thread::scope(|scope| {
        for mut client in clients {
            let replies = &replies;
            scope.spawn(move || {
                while client.tries_exchange(b"hello") {
                    replies.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let begun = Instant::now();
        while replies.load(Ordering::Relaxed) < 1000 && begun.elapsed() < PATIENCE {
            thread::yield_now();
        }
        server.terminate();
    });

    let (report, code) = server.report();
    assert_eq!(code, 0);
    assert_eq!(report["closed"], json!({"drain": 8}));
    assert_eq!(report["bytes"]["written"], replies.into_inner() * (4 + 5));
}

#[test]
fn what_has_not_left_when_the_drain_is_over_is_cut_and_named() {
    let (server, at) = echo("--drain 1s --slow-word slow --slow-for 1h --handler 1h");
    let mut busy = at.client();
    busy.send_all(&["quick", "slow"]);
    assert_eq!(busy.reply(), b"quick");

    server.interrupt();
    busy.is_reset();

    let (report, code) = server.report();
    assert_eq!(code, 1);
    assert_eq!(report["closed"], json!({"cut": 1}));
    assert_eq!(report["drain"]["cut"], 1);
    assert!(
        report["drain"]["seconds"]
            .as_f64()
            .unwrap()
            >= 1.0
    );
    let straggler = &report["stragglers"][0];
    let peer = busy.stream.local_addr().unwrap();
    assert_eq!(straggler["phase"], "handling");
    assert_eq!(straggler["peer"], peer.to_string());
}

#[test]
fn a_second_signal_cuts_without_waiting_for_the_drain() {
    let (server, at) = echo("--drain 1h --slow-word slow --slow-for 1h --handler 1h");
    let mut idle = at.client();
    idle.exchange(b"hello");
    let mut busy = at.client();
    busy.send_all(&["quick", "slow"]);
    assert_eq!(busy.reply(), b"quick");

    server.terminate();
    // The first signal has arrived: two at once might be taken for one.
    idle.is_closed();
    server.interrupt();
    busy.is_reset();

    let (report, code) = server.report();
    assert_eq!(code, 1);
    assert_eq!(report["closed"], json!({"cut": 1, "drain": 1}));
}

#[test]
fn the_report_adds_up_whatever_connections_end_of() {
    // One place: whoever is served knows that the one before has ended.
    let (server, at) =
        echo("--max-connections 1 --over-limit wait --max-frame 9 --panic-word boom");

    at.client().leave();

    let mut polite = at.client();
    polite.exchange(b"hello");
    polite.leave();

    let mut greedy = at.client();
    greedy.announce(10);
    greedy.is_closed();
    drop(greedy);

    let mut panics = at.client();
    panics.send(b"boom");
    panics.is_closed();
    drop(panics);

    let mut truncates = at.client();
    truncates.announce(9);
    truncates.leave();

    let mut resets = at.client();
    resets.exchange(b"bye");
    let socket = SockRef::from(&resets.stream);
    socket
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(resets);

    let mut last = at.client();
    last.exchange(b"me");

    let report = drained(server);
    assert_eq!(report["opened"], 7);
    let closed =
        json!({"drain": 1, "oversize": 1, "panic": 1, "peer": 2, "protocol": 1, "reset": 1});
    assert_eq!(report["closed"], closed);
    let bytes = json!({"read": 6 * 4 + 5 + 4 + 3 + 2, "written": 3 * 4 + 5 + 3 + 2});
    assert_eq!(report["bytes"], bytes);
    assert_eq!(report["accept_errors"], json!({}));
}
