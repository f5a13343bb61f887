//! Told to leave with work in flight that never ends.

use serde_json::json;

use super::{
    Site,
    client::{Client, UPGRADE, message},
};

/// A WebSocket and a stream of events, both under way.
fn in_flight(site: &Site) -> (Client, Client) {
    let (mut socket, mut events) = (site.client(), site.client());
    socket.send(UPGRADE);
    socket.hear_until(b"\r\n\r\n");
    socket.send(message("hello"));
    socket.hear_until(b"hello");
    events.send("GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n");
    events.hear_until(b"data: 1\n\n");
    (socket, events)
}

#[test]
fn what_goes_on_under_axum_serve_is_counted_and_cut_when_the_time_is_up() {
    for site in [Site::start as fn(&str, &str) -> Site, Site::encrypted] {
        let site = site("axum_guarded", "--drain 1s");
        let (mut socket, mut events) = in_flight(&site);
        let mut idle = site.client();
        idle.send("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
        idle.hear_until(b"hello\n");

        let (report, code) = site.drained();

        assert_eq!(code, 1, "{report}");
        assert_eq!([&report["opened"], &report["drain"]["cut"]], [3, 2]);
        assert_eq!(report["closed"]["cut"], 2, "{report}");
        assert_eq!(
            report["stragglers"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        let seconds = report["drain"]["seconds"]
            .as_f64()
            .unwrap();
        assert!((1.0..10.0).contains(&seconds), "{report}");
        assert_eq!(idle.rest(), b"");
        socket.rest();
        events.rest();
    }
}

#[test]
fn in_one_stack_a_websocket_is_told_as_well() {
    let site = Site::start("axum_stack", "--drain 1s");
    let (mut socket, mut events) = in_flight(&site);
    let (mut polite, other) = in_flight(&site);
    drop(other);
    site.process.terminate();

    // 1001, going away; whoever answers that leaves in time.
    polite.hear_until(b"\x88\x0c\x03\xe9going away");
    polite.send(b"\x88\x80\0\0\0\0");
    polite.rest();
    socket.hear_until(b"\x88\x0c\x03\xe9going away");

    let (report, code) = site.process.report();
    assert_eq!(code, 1, "{report}");
    let drain = &report["drain"];
    assert_eq!([&report["opened"], &drain["cut"]], [4, 2], "{report}");
    assert_eq!(report["closed"]["cut"], 2, "{report}");
    socket.rest();
    events.rest();
}

#[test]
fn a_request_in_flight_is_answered() {
    for example in ["axum_guarded", "axum_stack"] {
        let site = Site::start(example, "");
        let mut slow = site.client();
        // In one write: once the first is answered, the second is worked on.
        let both = ["/", "/slow/1000"]
            .map(|path| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
        slow.send(both.concat());
        slow.hear_until(b"hello\n");

        let (report, code) = site.drained();

        let heard = String::from_utf8(slow.rest()).unwrap();
        assert!(heard.ends_with("hello at last\n"), "{heard}");
        assert_eq!(code, 0, "{report}");
        assert_eq!(report["closed"], json!({"drain": 1}), "{example}");
    }
}
