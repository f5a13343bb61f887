//! Three protocols on one port.

use std::{
    io::{Read, Write},
    process::Command,
};

use serde_json::json;

use super::Site;
use crate::support::tool::output;

#[test]
fn https_http_and_frames_are_told_apart() {
    let site = Site::start("one_port", "");
    let port = site.port();
    for (flags, url) in [
        ("--http1.1", format!("http://127.0.0.1:{port}/")),
        (
            "--http2-prior-knowledge",
            format!("http://127.0.0.1:{port}/"),
        ),
        ("--http1.1", format!("https://127.0.0.1:{port}/")),
        ("--http2", format!("https://127.0.0.1:{port}/")),
    ] {
        let said = output(Command::new("curl").args(["--silent", "--insecure", flags, &url]));
        assert_eq!(said, "hello\n", "{flags} {url}");
    }
    let mut frames = site.at.tcp();
    frames
        .write_all(b"\0\0\0\x05hello")
        .unwrap();
    let mut reply = [0; 9];
    frames.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"\0\0\0\x05hello");
    drop(frames);

    let (report, code) = site.drained();
    assert_eq!(
        (&report["closed"], code),
        (&json!({"peer": 5}), 0),
        "{report}"
    );
}

#[test]
fn who_is_slow_on_any_of_the_routes_is_closed() {
    let site = Site::start("one_port", "--first-byte 1s --idle 1s --handshake 1s");
    let mut silent = site.at.tcp();
    let mut hello = site.at.tcp();
    hello
        .write_all(b"\x16\x03\x01\x02\0\x01")
        .unwrap();
    let mut idle = site.at.tcp();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .unwrap();
    let mut frames = site.at.tcp();
    frames
        .write_all(b"\0\0\0\x01a")
        .unwrap();

    for socket in [&mut silent, &mut hello, &mut idle, &mut frames] {
        // Replies first, where there are any.
        while socket.read(&mut [0; 1024]).unwrap_or(0) > 0 {}
    }

    let (report, _) = site.drained();
    let each = json!({"first_byte": 1, "handshake": 1, "idle": 2});
    assert_eq!(report["closed"], each, "{report}");
}
