//! What it echoes.

use std::{
    io::{Read, Write},
    net::Shutdown,
};

use serde_json::json;
use tokio::time::Instant;

use super::{client::Client, drained, echo, millis, secs, socket_path};
use crate::support::process::{Listening, Process};

#[test]
fn frames_come_back_as_they_were_sent() {
    for threads in [1, 2] {
        let (server, at) = echo(&format!("--threads {threads}"));
        let mut client = at.client();
        let large = vec![7; 1 << 20];

        client.exchange(b"hello");
        client.exchange(b"");
        client.exchange(&large);
        client.leave();

        let report = drained(server);
        let bytes = 3 * 4 + 5 + large.len();
        assert_eq!(report["closed"], json!({"peer": 1}));
        assert_eq!(report["bytes"], json!({"read": bytes, "written": bytes}));
    }
}

#[test]
fn lines_come_back_with_a_plain_line_end() {
    let (server, at) = echo("--codec line");
    let mut stream = at.tcp();

    stream
        .write_all(b"one\r\n\ntwo\n")
        .unwrap();
    stream
        .shutdown(Shutdown::Write)
        .unwrap();

    let mut replies = String::new();
    stream
        .read_to_string(&mut replies)
        .unwrap();
    assert_eq!(replies, "one\n\ntwo\n");
    assert_eq!(drained(server)["closed"], json!({"peer": 1}));
}

#[test]
fn every_listener_serves_and_a_socket_file_goes_with_its_server() {
    let path = socket_path();
    let (mut server, first) = echo(&format!(
        "--listen 127.0.0.1:0 --listen unix:{}",
        path.display()
    ));
    let second = server.listening();
    let third = server.listening();
    assert_eq!(third, Listening::Unix(path.clone()));

    first.client().exchange(b"one");
    second.client().exchange(b"two");
    let mut client = Client::new(third.unix());
    client.exchange(b"three");
    client.leave();

    assert_eq!(drained(server)["opened"], 3);
    assert!(!path.exists());
}

#[test]
fn a_socket_file_that_a_crash_left_behind_is_replaced() {
    let path = socket_path();
    let flags = format!("--listen unix:{}", path.display());
    let mut server = Process::start("echo", &flags);
    server.listening();
    server.kill();
    assert!(path.exists());

    let mut server = Process::start("echo", &flags);
    let mut client = Client::new(server.listening().unix());
    client.exchange(b"hello");
    client.leave();
    drained(server);
}

#[test]
fn pipelined_replies_keep_their_order_and_their_handlers_run_side_by_side() {
    let (server, at) = echo("--pipeline 16 --slow-word slow --slow-for 1s");
    let mut client = at.client();
    let bodies = ["slow 1", "quick 2", "slow 3", "quick 4"].repeat(4);
    let begun = Instant::now();

    client.send_all(&bodies);
    for body in &bodies {
        assert_eq!(client.reply(), body.as_bytes());
    }

    let took = begun.elapsed();
    assert!(took >= secs(1), "{took:?}");
    assert!(
        took < secs(8),
        "that is how long the eight slow ones take one after the other: {took:?}"
    );
    client.leave();
    drained(server);
}

#[test]
fn without_pipelining_requests_are_handled_one_after_the_other() {
    let (server, at) = echo("--slow-word slow --slow-for 300ms");
    let mut client = at.client();
    let begun = Instant::now();

    client.send_all(&["slow"; 3]);
    for _ in 0..3 {
        assert_eq!(client.reply(), b"slow");
    }

    assert!(begun.elapsed() >= millis(900));
    client.leave();
    drained(server);
}
