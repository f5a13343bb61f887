//! Whom it lets in.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
};

use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};

use tokio::time::Instant;

use super::{client::Client, drained, echo, millis, socket_path};
use crate::support::process::{PATIENCE, Process};

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

/// A connection from an address of this machine that is not the usual one.
fn from(ip: &str, server: &TcpStream) -> Client<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let ip: IpAddr = ip.parse().unwrap();
    socket
        .bind(&SocketAddr::new(ip, 0).into())
        .unwrap();
    socket
        .connect(&server.peer_addr().unwrap().into())
        .unwrap();
    socket
        .set_read_timeout(Some(PATIENCE))
        .unwrap();
    Client::new(socket.into())
}

#[test]
fn one_peer_has_so_many_connections_and_others_are_not_held_to_it() {
    let (server, at) = echo("--per-peer 2 --exempt 127.0.0.9");
    let (mut one, mut two) = (at.client(), at.client());
    one.exchange(b"one");
    two.exchange(b"two");

    at.client().is_reset();
    let mut other = from("127.0.0.8", &one.stream);
    other.exchange(b"another peer");
    let mut exempt: Vec<_> = (0..3)
        .map(|_| from("127.0.0.9", &one.stream))
        .collect();
    for client in &mut exempt {
        client.exchange(b"exempt");
    }

    for client in exempt
        .into_iter()
        .chain([one, two, other])
    {
        client.leave();
    }
    assert_eq!(
        drained(server)["closed"],
        json!({"per_peer_limit": 1, "peer": 6})
    );
}

#[test]
fn one_peer_comes_so_often_and_has_its_burst_again_in_time() {
    let (server, at) = echo("--per-peer-rate 1/s --per-peer-burst 2");
    for _ in 0..2 {
        let mut client = at.client();
        client.exchange(b"within the burst");
        client.leave();
    }

    at.client().is_reset();
    thread::sleep(millis(1100));
    let mut later = at.client();
    later.exchange(b"later");

    later.leave();
    assert_eq!(
        drained(server)["closed"],
        json!({"connect_rate": 1, "peer": 3})
    );
}

#[test]
fn networks_are_let_in_or_not_and_the_longest_decides() {
    let (server, at) = echo("--allow 127.0.0.0/24 --deny 127.0.0.4/30 --allow 127.0.0.5");
    let mut usual = at.client();
    usual.exchange(b"allowed");

    from("127.0.0.6", &usual.stream).is_reset();
    from("127.0.1.1", &usual.stream).is_reset();
    let mut longest = from("127.0.0.5", &usual.stream);
    longest.exchange(b"allowed after all");

    usual.leave();
    longest.leave();
    assert_eq!(drained(server)["closed"], json!({"filter": 2, "peer": 2}));
}

#[test]
fn a_throttled_connection_gets_its_bytes_in_its_own_time() {
    let (server, at) = echo("--throttle 20000");
    let mut client = at.client();
    let begun = Instant::now();

    client.exchange(&[7; 30_000]);

    let took = begun.elapsed();
    assert!(took >= millis(1_000), "{took:?}");
    client.leave();
    drained(server);
}

#[test]
fn in_a_dry_run_everybody_is_served() {
    let flags = "--dry-run --max-connections 1 --per-peer 1 --per-peer-rate 1 --deny 127.0.0.1 --first-byte 50ms";
    let (server, at) = echo(flags);
    let mut clients: Vec<_> = (0..3).map(|_| at.client()).collect();
    thread::sleep(millis(200));

    for client in &mut clients {
        client.exchange(b"served");
    }

    for client in clients {
        client.leave();
    }
    assert_eq!(drained(server)["closed"], json!({"peer": 3}));
}
