//! Each wait for a peer has a deadline of its own.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};
use tower_net::{CloseReason, Safeguard, deadline::Deadlines, http::Http};

use crate::{
    http::{get, guarded, stack},
    support::{peer::Peer, service::secs},
};

/// Sends `first`, then nothing; how long until the connection ends, and for what.
async fn ends_after(mut peer: Peer, first: &[u8]) -> (Duration, Option<CloseReason>) {
    let start = Instant::now();
    peer.send(first).await;
    let mut rest = Vec::new();
    // A connection that is cut may end in an error.
    let _end = timeout(secs(3600), peer.io.read_to_end(&mut rest))
        .await
        .unwrap();
    (start.elapsed(), peer.info.close_reason())
}

#[tokio::test(start_paused = true)]
async fn silence_a_half_head_and_idleness_have_a_deadline_each() {
    let head = &get("/")[..20];
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (first, time, reason) in [
        (&b""[..], secs(3), CloseReason::FirstByte),
        (b"P", secs(10), CloseReason::Request),
        (head.as_bytes(), secs(10), CloseReason::Request),
        (preface, secs(10), CloseReason::Request),
    ] {
        let ended = ends_after(guarded(), first).await;
        assert_eq!(ended, (time, Some(reason)), "{first:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_is_idle_only_by_the_idle_timeout() {
    let mut peer = guarded();
    peer.send(get("/one")).await;
    peer.response().await;
    let start = Instant::now();

    assert!(peer.ended().await.is_err());

    assert_eq!(peer.info.close_reason(), Some(CloseReason::Idle));
    let idle = start.elapsed();
    assert!(idle >= secs(90) && idle < secs(96), "{idle:?}");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_drips_is_cut_on_time_without_deadlines_above_as_well() {
    for deadlines in [None, Some(Deadlines::default())] {
        let mut peer = Peer::of(stack(deadlines, Http::default().head_deadline(secs(4))));
        // A whole request before it: the deadline is each head's own.
        peer.send(get("/one")).await;
        peer.response().await;
        sleep(secs(60)).await;
        let start = Instant::now();
        let (mut read, mut write) = peer.split();
        let dripping = tokio::spawn(async move {
            while write.write_all(b"x").await.is_ok() {
                sleep(secs(1)).await;
            }
        });

        let mut rest = Vec::new();
        let _end = read.read_to_end(&mut rest).await;

        assert_eq!((start.elapsed(), rest.len()), (secs(4), 0));
        assert_eq!(peer.info.close_reason(), Some(CloseReason::Request));
        dripping.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_being_worked_on_and_a_response_that_streams_are_not_idle() {
    let deadlines = Deadlines::default().idle(secs(10));
    let http = Http::default().handler_deadline(Duration::MAX);
    let mut peer = Peer::of(stack(Some(deadlines), http));

    peer.send(get("/wait/60000")).await;
    assert_eq!(peer.response().await.1, "/wait/60000");
    peer.send(get("/stream/3/20000")).await;
    let mut streamed = String::new();
    while !streamed.ends_with("0\r") {
        streamed = peer.hear().await;
    }

    assert_eq!(peer.info.close_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn half_a_head_in_line_is_late_once_it_is_its_turn() {
    let mut peer = guarded();
    peer.send([&get("/wait/20000"), "G"].concat())
        .await;
    assert_eq!(peer.response().await.1, "/wait/20000");
    let start = Instant::now();

    assert!(peer.ended().await.is_err());

    assert_eq!(start.elapsed(), secs(10));
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Request));
}

#[tokio::test(start_paused = true)]
async fn half_a_head_behind_a_body_is_late() {
    let post = "POST /sum HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\nabc";
    for split in [post.len(), post.len() - 1, post.len() - 3] {
        let mut peer = guarded();
        peer.send(&post[..split]).await;
        sleep(secs(1)).await;
        peer.send(&post[split..]).await;
        assert_eq!(peer.response().await.1, "3");
        sleep(secs(60)).await;
        peer.send("G").await;
        let start = Instant::now();

        assert!(peer.ended().await.is_err());

        assert_eq!(start.elapsed(), secs(10));
        assert_eq!(peer.info.close_reason(), Some(CloseReason::Request));
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_head_behind_a_body_in_chunks_is_late_with_and_without_trailers() {
    for trailers in ["", "digest: none\r\n"] {
        let mut peer = guarded();
        let head = "POST /sum HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n";
        peer.send(format!("{head}3\r\nabc\r\n0\r\n{trailers}\r\n"))
            .await;
        assert_eq!(peer.response().await.1, "3");
        sleep(secs(60)).await;
        peer.send("G").await;
        let start = Instant::now();

        assert!(peer.ended().await.is_err());

        assert_eq!(start.elapsed(), secs(10));
        assert_eq!(peer.info.close_reason(), Some(CloseReason::Request));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_goes_on_after_its_response_is_no_head() {
    let bodies = [
        ("content-length: 60", "x", ""),
        ("transfer-encoding: chunked", "1\r\nx\r\n", "0\r\n\r\n"),
    ];
    for (header, part, end) in bodies {
        let mut peer = guarded();
        peer.send(format!(
            "POST /early HTTP/1.1\r\nhost: test\r\n{header}\r\n\r\n"
        ))
        .await;
        assert_eq!(peer.response().await.1, "/early");
        for _ in 0..60 {
            sleep(secs(2)).await;
            peer.send(part).await;
        }
        peer.send(end).await;
        sleep(secs(20)).await;
        peer.send(get("/next")).await;

        assert_eq!(peer.response().await.1, "/next", "{header}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_arriving_is_given_time_as_the_connection_is() {
    for deadlines in [None, Some(Deadlines::default())] {
        let mut peer = Peer::of(stack(deadlines, Http::default()));
        let start = Instant::now();
        peer.send("GET / HT").await;
        sleep(secs(4)).await;
        peer.info.extend(secs(5));
        sleep(secs(4)).await;
        let stopped = peer.info.suspend();
        sleep(secs(100)).await;
        drop(stopped);

        assert!(peer.ended().await.is_err());

        assert_eq!(start.elapsed(), secs(115));
        assert_eq!(peer.info.close_reason(), Some(CloseReason::Request));
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_no_limit_is_not_in_the_checklist() {
    let endless = Http::default()
        .head_deadline(Duration::MAX)
        .handler_deadline(Duration::MAX);
    for (http, expected) in [
        (Http::default(), [true; 3]),
        (endless, [true, false, false]),
        (Http::default().dry_run(true), [true, false, false]),
    ] {
        let peer = Peer::of(stack(None, http));
        tokio::task::yield_now().await;

        let passed = [Safeguard::FrameCap, Safeguard::Request, Safeguard::Handler];
        assert_eq!(passed.map(|guard| peer.info.has_passed(guard)), expected);
    }
}
