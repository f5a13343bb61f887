//! Whom it lets in.

use std::{io::ErrorKind, thread};

use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{client::Client, drained, echo, socket_path};
use crate::support::process::Process;

#[test]
fn the_surplus_is_reset_while_the_others_are_served() {
    for over_limit in ["", "--over-limit reset"] {
        let (server, at) = echo(&format!("--max-connections 2 {over_limit}"));
        let (mut one, mut two) = (at.client(), at.client());
        one.exchange(b"one");
        two.exchange(b"two");

        at.client().is_reset();

        one.exchange(b"still here");
        two.exchange(b"still here");
        one.leave();
        two.leave();
        let report = drained(server);
        assert_eq!(report["opened"], 3);
        assert_eq!(report["closed"], json!({"limit": 1, "peer": 2}));
    }
}

#[test]
fn the_surplus_of_any_listener_waits_for_a_place_if_told_to() {
    let flags = "--max-connections 1 --over-limit wait --listen 127.0.0.1:0";
    let (mut server, here) = echo(flags);
    let there = server.listening();
    let mut first = here.client();
    first.exchange(b"first");

    let (mut second, mut third) = (there.client(), here.client());
    second.send(b"second");
    third.send(b"third");
    for _ in 0..100 {
        first.exchange(b"goes on");
    }
    second.has_heard_nothing();
    third.has_heard_nothing();

    first.leave();
    // Which of the two comes first is for the listeners to agree on.
    thread::scope(|scope| {
        for (mut client, body) in [(second, "second"), (third, "third")] {
            scope.spawn(move || {
                assert_eq!(client.reply(), body.as_bytes());
                client.leave();
            });
        }
    });
    assert_eq!(drained(server)["closed"], json!({"peer": 3}));
}

#[test]
fn the_backlog_bounds_how_many_wait_in_the_kernel() {
    let path = socket_path();
    let flags = format!(
        "--max-connections 1 --over-limit wait --backlog 3 --listen unix:{}",
        path.display()
    );
    let mut server = Process::start("echo", &flags);
    let at = server.listening();
    let mut first = Client::new(at.unix());
    first.exchange(b"first");

    // A Unix listener says that its queue is full, where a TCP one goes silent.
    let mut waiting = Vec::new();
    let refusal = loop {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
        match socket.connect(&SockAddr::unix(at.path()).unwrap()) {
            Ok(()) => waiting.push(socket),
            Err(error) => break error,
        }
    };

    assert_eq!(refusal.kind(), ErrorKind::WouldBlock);
    // Linux lets in one more than it was told.
    assert!((3..=4).contains(&waiting.len()), "{}", waiting.len());
    drop(waiting);
    first.leave();
    drained(server);
}
