//! Which service a connection gets, when, and what becomes of those that get none.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, duplex},
    time::Instant,
};
use tokio_test::{assert_pending, assert_ready, task};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, ConnInfo, Safeguard,
    detect::{Answer, DetectLayer, Elapsed, NothingElse, Protocol, UnknownProtocol},
    error::{BoxError, find},
    io::{Io, RewoundIo},
};
use tower_service::Service;

use crate::support::{
    io::{Drip, Script, Witness},
    peer::serve,
    readings::recorded,
    service::{millis, secs},
};

pub(crate) const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The shortest that can be a hello, for what looks no further than its beginning.
pub(crate) const TLS: &[u8] = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00";

/// Who was called, and what it read.
pub(crate) type Heard = Arc<Mutex<Vec<(&'static str, Vec<u8>)>>>;

/// Reads all there is, and tells under its name.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    name: &'static str,
    heard: Heard,
}

pub(crate) fn named(name: &'static str, heard: &Heard) -> Named {
    let heard = Arc::clone(heard);
    Named { name, heard }
}

impl<I: Io> Service<Conn<RewoundIo<I>>> for Named {
    type Response = ();
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut conn: Conn<RewoundIo<I>>) -> Self::Future {
        let Self { name, heard } = self.clone();
        Box::pin(async move {
            let mut read = Vec::new();
            conn.read_to_end(&mut read).await?;
            heard.lock().unwrap().push((name, read));
            Ok(())
        })
    }
}

pub(crate) fn all_kinds<I: Io>(heard: &Heard) -> DetectLayer<I> {
    DetectLayer::new()
        .route(Protocol::tls(), named("tls", heard))
        .route(Protocol::http1(), named("http1", heard))
        .route(Protocol::http2(), named("http2", heard))
}

/// Serves `io` under `layer`, with `other` below, and says how it ended.
pub(crate) async fn run<I: Io>(
    layer: DetectLayer<I>,
    heard: &Heard,
    io: I,
) -> (Result<(), BoxError>, Arc<ConnInfo>) {
    let (info, served) = serve(io, layer.layer(named("other", heard)));
    (served.await.unwrap(), info)
}

pub(crate) fn taken(heard: &Heard) -> (&'static str, Vec<u8>) {
    heard.lock().unwrap().pop().unwrap()
}

// === Which one

#[tokio::test]
async fn the_first_bytes_choose_the_service_which_reads_them_again() {
    let heard = Heard::default();
    for (name, wire) in [
        ("tls", TLS),
        ("http1", b"GET / HTTP/1.1\r\n\r\n"),
        ("http1", b"OPTIONS * HTTP/1.1\r\n\r\n"),
        ("http1", b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n"),
        ("http1", b"UPDATEREDIRECTREF http://a/ HTTP/1.1\r\n\r\n"),
        ("http2", HTTP2),
        ("other", b"PRI * HTTP/1.0\r\n\r\nSM\r\n\r\n"),
        ("other", b"get / HTTP/1.1\r\n\r\n"),
        ("other", b"GETS / HTTP/1.1\r\n\r\n"),
        ("other", b"GET  / HTTP/1.1\r\n\r\n"),
        ("other", b"\r\nGET / HTTP/1.1\r\n\r\n"),
        ("other", b"\0\0\0\x05hello"),
        // No handshake, no version 3, no hello, an empty record, one that is too long.
        ("other", b"\x15\x03\x01\0\x05\x01"),
        ("other", b"\x16\x02\x01\0\x05\x01"),
        ("other", b"\x16\x03\x01\0\x05\x02"),
        ("other", b"\x16\x03\x01\0\0\x01"),
        ("other", b"\x16\x03\x01\x40\x01\x01"),
        // What ends before it can be told is none of these.
        ("other", b"G"),
        ("other", b"GET "),
        ("other", &HTTP2[..23]),
        ("other", &TLS[..5]),
    ] {
        let whole = Script::new().bytes(wire).end();
        let dripped = Drip::new(Script::new().bytes(wire).end());

        let (result, info) = run(all_kinds(&heard), &heard, whole).await;
        result.unwrap();
        assert_eq!(taken(&heard), (name, wire.to_vec()));
        assert_eq!(info.detected().unwrap().protocol(), name);

        run(all_kinds(&heard), &heard, dripped)
            .await
            .0
            .unwrap();
        assert_eq!(taken(&heard), (name, wire.to_vec()), "dripped");
    }
}

#[tokio::test]
async fn a_cut_anywhere_changes_nothing() {
    let heard = Heard::default();
    for (name, wire) in [
        ("tls", TLS),
        ("http1", &b"PROPFIND /a HTTP/1.1\r\n\r\n"[..]),
        ("http2", HTTP2),
        ("other", b"PUTS"),
    ] {
        for at in 1..wire.len() {
            let (first, second) = wire.split_at(at);
            let io = Script::new()
                .bytes(first)
                .bytes(second)
                .end();

            run(all_kinds(&heard), &heard, io)
                .await
                .0
                .unwrap();

            assert_eq!(taken(&heard), (name, wire.to_vec()), "cut at {at}");
        }
    }
}

#[tokio::test]
async fn routes_are_asked_in_their_order_and_wait_for_those_before_them() {
    let heard = Heard::default();
    let long = Protocol::own("long", |seen| match seen {
        b"abcd" => Answer::Yes,
        _ if b"abcd".starts_with(seen) => Answer::More(1),
        _ => Answer::No,
    });
    let short = Protocol::own("short", |seen| match seen {
        [b'a', ..] => Answer::Yes,
        _ => Answer::No,
    });
    for (first, rest, name) in [("a", "bcd", "long"), ("a", "bxx", "short")] {
        let layer = DetectLayer::new()
            .route(long.clone(), named("long", &heard))
            .route(short.clone(), named("short", &heard));
        let io = Script::new()
            .bytes(first)
            .pause(secs(1))
            .bytes(rest)
            .end();

        run(layer, &heard, io).await.0.unwrap();

        assert_eq!(taken(&heard), (name, format!("{first}{rest}").into()));
    }
}

#[tokio::test]
async fn an_own_protocol_is_never_shown_nothing_and_may_ask_for_no_more_than_it_knows() {
    let heard = Heard::default();
    let own = Protocol::own("own", |seen| {
        assert!(!seen.is_empty());
        if seen.len() < 3 {
            Answer::More(0)
        } else {
            Answer::Yes
        }
    });
    let io = Drip::new(Script::new().bytes("abc").end());

    let layer = DetectLayer::new().route(own, named("own", &heard));
    run(layer, &heard, io).await.0.unwrap();

    assert_eq!(taken(&heard), ("own", b"abc".to_vec()));
}

#[tokio::test]
async fn without_routes_nobody_is_waited_for() {
    let heard = Heard::default();
    let io = Script::new().end();

    let (result, info) = run(DetectLayer::new(), &heard, io).await;

    result.unwrap();
    assert_eq!(taken(&heard), ("other", Vec::new()));
    assert_eq!(info.close_reason(), None);
}

#[tokio::test]
async fn all_registered_methods_are_http_and_no_frame_with_its_length_in_front_is() {
    let http1 = Protocol::http1();
    for method in [
        "GET",
        "POST",
        "PATCH",
        "BASELINE-CONTROL",
        "UPDATE",
        "QUERY",
        "ACL",
    ] {
        let line = format!("{method} / HTTP/1.1\r\n");
        assert_eq!(http1.look(line.as_bytes()), Answer::Yes, "{method}");
        // A method alone, or with its space, may still become one.
        for end in 1..method.len() + 2 {
            let answer = http1.look(&line.as_bytes()[..end]);
            assert!(
                matches!(answer, Answer::More(_)),
                "{method} to {end}: {answer:?}"
            );
        }
    }

    let mut random = crate::support::random::Random::new(7);
    for _ in 0..20_000 {
        let length = random.below(512 << 20) as u32;
        let body: [u8; 8] = std::array::from_fn(|_| random.pick(b"GETPOSTUAC /*"));
        for prefix in [length.to_be_bytes(), length.to_le_bytes()] {
            let frame = [&prefix[..], &body[..]].concat();
            assert_eq!(http1.look(&frame), Answer::No, "{frame:?}");
        }
    }
}

#[tokio::test]
async fn what_nothing_matches_is_closed_where_nothing_else_is_served() {
    let heard = Heard::default();
    let (io, closed) = Witness::pair(Script::new().bytes("hello"));

    let (info, served) = serve(io, all_kinds(&heard).layer(NothingElse));
    let error = served.await.unwrap().unwrap_err();

    assert!(find::<UnknownProtocol>(&*error).is_some());
    assert_eq!(info.close_reason(), Some(CloseReason::Detect));
    assert!(closed.is_closed() && !closed.is_reset());
}

// === Bounds

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_closed_at_the_deadline() {
    let heard = Heard::default();
    let start = Instant::now();

    let (result, info) = run(all_kinds(&heard), &heard, Script::new()).await;

    let error = result.unwrap_err();
    let elapsed = find::<Elapsed>(&*error).unwrap();
    assert_eq!(elapsed.which(), CloseReason::FirstByte);
    assert_eq!(info.close_reason(), Some(CloseReason::FirstByte));
    assert_eq!((elapsed.limit(), start.elapsed()), (Some(secs(3)), secs(3)));
}

#[tokio::test(start_paused = true)]
async fn a_drip_that_never_says_which_does_not_move_the_deadline() {
    let heard = Heard::default();
    let start = Instant::now();
    let io = HTTP2
        .iter()
        .fold(Script::new(), |io, byte| {
            io.bytes([*byte]).pause(millis(900))
        });

    let (result, info) = run(all_kinds(&heard), &heard, io).await;

    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "protocol not known in time within 3s");
    assert_eq!(info.close_reason(), Some(CloseReason::Detect));
    assert_eq!(start.elapsed(), secs(3));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_begins_here_and_not_at_the_accept() {
    let heard = Heard::default();
    let conn = Conn::new(Script::new(), ());
    tokio::time::sleep(secs(60)).await;
    let start = Instant::now();

    let mut service = all_kinds(&heard).layer(named("other", &heard));
    let error = service.call(conn).await.unwrap_err();

    assert!(find::<Elapsed>(&*error).is_some());
    assert_eq!(start.elapsed(), secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_of_zero_is_refused_and_the_longest_never_passes() {
    let heard = Heard::default();
    let layer = all_kinds::<Script>(&heard);
    assert_eq!(
        layer
            .clone()
            .within(secs(0))
            .unwrap_err()
            .setting(),
        "within"
    );
    let io = Script::new()
        .pause(secs(400 * 86_400))
        .bytes("GET /")
        .end();

    let layer = layer.within(Duration::MAX).unwrap();
    run(layer, &heard, io).await.0.unwrap();

    assert_eq!(taken(&heard).0, "http1");
}

#[tokio::test(start_paused = true)]
async fn whoever_needs_more_than_the_bound_says_no() {
    let heard = Heard::default();
    let greedy = Protocol::own("greedy", |_| Answer::More(1));
    assert!(
        DetectLayer::<Script>::new()
            .max_bytes(0)
            .is_err()
    );
    let layer = || {
        let layer = DetectLayer::new().route(greedy.clone(), named("greedy", &heard));
        layer.route(Protocol::http1(), named("http1", &heard))
    };

    for (name, bytes, bound) in [("http1", "GET /0123456", 8), ("other", "0123456789ab", 1)] {
        // The rest comes once it is too late, so that whoever waits for it is seen.
        let io = Script::new()
            .bytes(&bytes[..bound])
            .pause(secs(60))
            .bytes(&bytes[bound..])
            .end();
        let layer = layer().max_bytes(bound).unwrap();
        run(layer, &heard, io).await.0.unwrap();
        assert_eq!(taken(&heard), (name, bytes.into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_waits_for_a_greeting_may_have_the_other_service() {
    let heard = Heard::default();
    let start = Instant::now();
    let silent = Script::new()
        .pause(secs(5))
        .bytes("hello")
        .end();
    let slow = Script::new().bytes("G").pause(secs(5));
    let layer = all_kinds(&heard)
        .within(secs(1))
        .unwrap()
        .silent_is_other(true);

    let (result, info) = run(layer.clone(), &heard, silent).await;
    result.unwrap();
    let took = start.elapsed();
    let (slow, _) = run(layer, &heard, slow).await;

    assert_eq!(
        (taken(&heard), took),
        (("other", b"hello".to_vec()), secs(5))
    );
    assert_eq!(info.detected().unwrap().protocol(), "other");
    assert!(!info.has_passed(Safeguard::FirstByte));
    assert!(find::<Elapsed>(&*slow.unwrap_err()).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_whom_it_would_have_ended_once_and_waits_on() {
    let heard = Heard::default();
    let (layer, readings) = recorded(|| {
        let layer = all_kinds(&heard).dry_run(true);
        layer.layer(named("other", &heard))
    });
    let silent = Script::new()
        .pause(secs(60))
        .bytes(TLS)
        .end();
    let slow = Script::new()
        .bytes("G")
        .pause(secs(60))
        .bytes("ET /")
        .end();

    for (io, name) in [(silent, "tls"), (slow, "http1")] {
        serve(io, layer.clone())
            .1
            .await
            .unwrap()
            .unwrap();
        assert_eq!(taken(&heard).0, name);
    }

    let spared = |reason| readings.of("tower_net_dry_run_total", &[("reason", reason)]);
    assert_eq!((spared("first_byte"), spared("detect")), (1.0, 1.0));
}

// === Those who leave

#[tokio::test]
async fn a_peer_that_leaves_without_a_byte_is_no_fault() {
    let heard = Heard::default();

    let (result, info) = run(all_kinds(&heard), &heard, Script::new().end()).await;

    result.unwrap();
    assert_eq!(info.close_reason(), Some(CloseReason::Peer));
    assert!(heard.lock().unwrap().is_empty() && info.detected().is_none());
}

#[tokio::test]
async fn a_stream_that_fails_is_an_error_of_the_stack() {
    let heard = Heard::default();
    let io = Script::new()
        .bytes("G")
        .fail(io::ErrorKind::ConnectionReset);

    let (result, _) = run(all_kinds(&heard), &heard, io).await;

    let error = result.unwrap_err();
    let error = find::<io::Error>(&*error).unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn whoever_is_silent_when_told_to_leave_is_ended_at_once() {
    let heard = Heard::default();
    let conn = Conn::new(Script::new(), ());
    let info = Arc::clone(conn.info());
    let mut service = all_kinds(&heard).layer(named("other", &heard));
    let mut serving = task::spawn(service.call(conn));
    assert_pending!(serving.poll());

    info.close_after_reply();

    assert!(serving.is_woken());
    assert_ready!(serving.poll()).unwrap();
    assert_eq!(info.close_reason(), Some(CloseReason::Served));
}

#[tokio::test(start_paused = true)]
async fn whoever_has_spoken_when_told_to_leave_is_still_served() {
    let heard = Heard::default();
    let io = Script::new()
        .bytes("G")
        .pause(secs(1))
        .bytes("ET /")
        .end();
    let (info, served) = serve(io, all_kinds(&heard).layer(named("other", &heard)));
    tokio::time::sleep(millis(500)).await;

    info.close_after_reply();
    served.await.unwrap().unwrap();

    assert_eq!(taken(&heard), ("http1", b"GET /".to_vec()));
}

#[tokio::test]
async fn dropping_the_future_closes_the_stream_at_any_stage() {
    let heard = Heard::default();
    for first in ["", "G", "GET /", "hello"] {
        let (near, _far) = duplex(64);
        let (io, closed) = Witness::pair(RewoundIo::new(first.into(), near));
        let mut service = all_kinds(&heard).layer(named("other", &heard));
        let mut serving = task::spawn(service.call(Conn::new(io, ())));
        assert_pending!(serving.poll());

        drop(serving);

        assert!(closed.is_closed(), "{first}");
    }
}
