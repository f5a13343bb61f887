//! Peers that say nothing, too little, or that too slowly: closed on time, each for its reason, whatever they speak.

use std::{thread, time::Duration};

use tokio::time::Instant;

use serde_json::json;

use super::{Site, client::Client};

/// An empty SETTINGS, and the beginning of HEADERS that announce a hundred bytes.
const BEGUN: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x64\x01\x04\0\0\0\x01";

fn silent(client: &mut Client) {
    client.rest();
}

fn one_byte(client: &mut Client) {
    client.send("P");
    client.rest();
}

fn preface_alone(client: &mut Client) {
    client.send(&BEGUN[..24]);
    client.rest();
}

fn dripped_head(client: &mut Client) {
    client.send("GET / HTTP/1.1\r\nhost: localhost\r\nx-slow: ");
    client.drip(b"x", PAUSE);
}

fn dripped_headers(client: &mut Client) {
    client.send(BEGUN);
    // A literal header with a long name, which never ends.
    client.drip(b"\x40", PAUSE);
}

/// All of them at once: each is closed at its second, or a little later.
fn all_are_closed(site: Site) {
    let cases: [Bad; 5] = [
        silent,
        one_byte,
        preface_alone,
        dripped_head,
        dripped_headers,
    ];
    thread::scope(|scope| {
        for (number, case) in cases.into_iter().enumerate() {
            let mut client = site.client();
            scope.spawn(move || {
                let start = Instant::now();
                case(&mut client);
                let (took, due) = (start.elapsed(), Duration::from_secs(1));
                let on_time = due - EARLY..due + LATE;
                assert!(on_time.contains(&took), "case {number} took {took:?}");
            });
        }
    });

    let (report, code) = site.drained();
    let expected = json!({"first_byte": 1, "request": 4});
    assert_eq!((&report["closed"], code), (&expected, 0));
}

/// What a client does before it falls silent.
type Bad = fn(&mut Client);

#[test]
fn plain_under_axum_serve() {
    let flags = "--first-byte 1s --request 1s --idle 30s";
    all_are_closed(Site::start("axum_guarded", flags));
}

#[test]
fn encrypted_under_axum_serve() {
    let flags = "--first-byte 1s --request 1s --idle 30s";
    all_are_closed(Site::encrypted("axum_guarded", flags));
}

#[test]
fn plain_in_one_stack() {
    let flags = "--first-byte 1s --head 1s --idle 30s";
    all_are_closed(Site::start("axum_stack", flags));
}

#[test]
fn encrypted_in_one_stack() {
    let flags = "--first-byte 1s --head 1s --idle 30s";
    all_are_closed(Site::encrypted("axum_stack", flags));
}

#[test]
fn plain_in_a_hyper_loop() {
    let flags = "--first-byte 1s --request 1s --idle 30s";
    all_are_closed(Site::start("hyper_guarded", flags));
}

#[test]
fn who_is_silent_in_its_handshake_is_closed_as_well() {
    for example in super::BOTH {
        let site = Site::encrypted(example, "--handshake 1s");
        let start = Instant::now();
        let mut silent = site.at.tcp();
        let mut half = site.at.tcp();
        std::io::Write::write_all(&mut half, b"\x16\x03\x01").unwrap();
        for socket in [&mut silent, &mut half] {
            assert_eq!(std::io::Read::read(socket, &mut [0; 64]).unwrap_or(0), 0);
        }

        assert!(start.elapsed() < Duration::from_secs(1) + LATE);
        let (report, _) = site.drained();
        assert_eq!(report["closed"], json!({"first_byte": 1, "handshake": 1}));
    }
}

const PAUSE: Duration = Duration::from_millis(100);

/// A client's clock begins a little after ours: it has connected when we accept.
const EARLY: Duration = Duration::from_millis(200);

/// Far from the 30 s that would hold without the flags.
const LATE: Duration = Duration::from_secs(8);
