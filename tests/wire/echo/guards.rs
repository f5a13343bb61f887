//! Whom it puts up with, and for how long.

use std::{
    io::Read,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
};

use serde_json::json;
use tokio::time::Instant;

use super::{client::End, drained, echo, millis, secs};

#[test]
fn a_silent_peer_is_closed_at_the_first_byte_deadline() {
    let (server, at) = echo("--first-byte 1s");
    let begun = Instant::now();
    let mut silent = at.client();
    let mut good = at.client();
    good.exchange(b"hello");

    silent.is_closed();

    assert!(begun.elapsed() >= secs(1));
    good.exchange(b"not silent, if slow");
    good.leave();
    let report = drained(server);
    assert_eq!(report["closed"], json!({"first_byte": 1, "peer": 1}));
}

#[test]
fn a_request_that_drips_is_cut_at_the_request_deadline() {
    let (server, at) = echo("--request 1s");
    let begun = Instant::now();
    let mut client = at.client();
    client.announce(1000);

    assert_eq!(client.drip(millis(20)), End::Closed);

    assert!(begun.elapsed() >= secs(1));
    drop(client);
    assert_eq!(drained(server)["closed"], json!({"request": 1}));
}

#[test]
fn a_slow_handler_is_cut_at_the_handler_deadline() {
    let (server, at) = echo("--handler 1s --slow-word slow --slow-for 1h");
    let begun = Instant::now();
    let mut client = at.client();
    client.send(b"a slow one");

    client.is_closed();

    assert!(begun.elapsed() >= secs(1));
    drop(client);
    assert_eq!(drained(server)["closed"], json!({"handler": 1}));
}

#[test]
fn a_slow_word_holds_up_its_own_connection_only() {
    // It is not idle, either, while its handler is at work.
    let (server, at) = echo("--slow-word slow --slow-for 2s --idle 1s");
    let (mut slow, mut quick) = (at.client(), at.client());
    let begun = Instant::now();

    slow.send(b"a slow one");
    quick.exchange(b"a quick one");
    quick.leave();
    assert_eq!(slow.reply(), b"a slow one");

    assert!(begun.elapsed() >= secs(2));
    slow.leave();
    assert_eq!(drained(server)["closed"], json!({"peer": 2}));
}

#[test]
fn a_peer_with_nothing_more_to_say_is_closed_at_the_idle_timeout() {
    let (server, at) = echo("--idle 1s");
    let begun = Instant::now();
    let mut client = at.client();
    client.exchange(b"hello");

    client.is_closed();

    assert!(begun.elapsed() >= secs(1));
    assert_eq!(drained(server)["closed"], json!({"idle": 1}));
}

#[test]
fn a_peer_that_never_reads_is_reset_by_the_write_stall() {
    let (server, at) = echo("--write-stall 1s");
    let begun = Instant::now();
    let mut client = at.client();

    client.floods_until_reset();

    assert!(begun.elapsed() >= secs(1));
    assert_eq!(drained(server)["closed"], json!({"write_stall": 1}));
}

#[test]
fn a_connection_leaves_at_its_maximum_age() {
    let (server, at) = echo("--max-age 1s");
    let begun = Instant::now();
    let mut client = at.client();
    client.exchange(b"hello");

    client.is_closed();

    // A tenth more or less, so that those that came together do not go together.
    assert!(begun.elapsed() >= millis(900));
    assert_eq!(drained(server)["closed"], json!({"age": 1}));
}

#[test]
fn a_request_below_the_minimum_rate_is_reset() {
    let (server, at) = echo("--min-rate 1000 --request 1h");
    let mut client = at.client();
    client.announce(1_000_000);

    assert_eq!(client.drip(millis(20)), End::Reset);

    assert_eq!(drained(server)["closed"], json!({"min_rate": 1}));
}

#[test]
fn replies_taken_below_the_minimum_rate_are_reset() {
    let (server, at) = echo("--min-rate 1000");
    let mut client = at.client();
    let mut trickle = client.stream.try_clone().unwrap();

    thread::scope(|scope| {
        let (_over, is_over) = channel::<()>();
        scope.spawn(move || {
            while is_over.recv_timeout(millis(20)) == Err(RecvTimeoutError::Timeout) {
                // It will fail in the end, or find nothing for a while in the beginning.
                let _read = trickle.read(&mut [0]);
            }
        });
        client.floods_until_reset();
    });

    assert_eq!(drained(server)["closed"], json!({"min_rate": 1}));
}

#[test]
fn a_frame_over_the_limit_ends_its_connection() {
    let (server, at) = echo("--max-frame 1000");
    let mut client = at.client();
    client.exchange(&[7; 1000]);
    client.announce(1001);
    client.is_closed();
    drop(client);
    assert_eq!(drained(server)["closed"], json!({"oversize": 1}));

    let (server, at) = echo("");
    let mut client = at.client();
    client.announce(u32::MAX);
    client.is_closed();
    drop(client);
    assert_eq!(drained(server)["closed"], json!({"oversize": 1}));
}

#[test]
fn a_line_over_the_limit_ends_its_connection() {
    let (server, at) = echo("--codec line --max-frame 1000");
    let mut client = at.client();
    let line = [&[b'x'; 1000][..], b"\n"].concat();
    client.write(&line);
    assert_eq!(client.read(line.len()), line);

    client.write(&[b'x'; 1100]);
    client.is_closed();

    drop(client);
    assert_eq!(drained(server)["closed"], json!({"oversize": 1}));
}

#[test]
fn a_panic_ends_its_own_connection_and_frees_its_place() {
    let (server, at) = echo("--panic-word boom --max-connections 2 --over-limit wait");
    let mut other = at.client();
    for _ in 0..5 {
        let mut client = at.client();
        client.send(b"and boom");
        client.is_closed();
        other.exchange(b"what was that?");
    }

    other.leave();
    assert_eq!(drained(server)["closed"], json!({"panic": 5, "peer": 1}));
}

#[test]
fn replies_before_a_panic_are_sent_and_those_after_it_are_not() {
    let (server, at) = echo("--pipeline 4 --panic-word boom --slow-word slow --slow-for 300ms");
    let mut client = at.client();

    client.send_all(&["slow", "boom", "quick"]);

    assert_eq!(client.reply(), b"slow");
    client.is_closed();
    drop(client);
    assert_eq!(drained(server)["closed"], json!({"panic": 1}));
}
