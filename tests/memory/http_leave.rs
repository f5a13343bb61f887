//! How connections end that speak HTTP, and for which reason.

use std::{io, time::Duration};

use tokio::{
    io::AsyncReadExt,
    time::{Instant, sleep},
};
use tower::ServiceBuilder;
use tower_net::{
    CloseReason, Conn,
    deadline::{DeadlineLayer, Deadlines},
    http::{Http, HttpLayer},
    io::OpaqueIo,
    limit::ConnectionLimitLayer,
};
use tower_service::Service;

use crate::{
    http::{get, guarded, obey, stack},
    support::{
        peer::Peer,
        service::{millis, secs},
    },
};

#[tokio::test(start_paused = true)]
async fn told_to_leave_an_idle_connection_ends_at_once_and_a_busy_one_with_its_response() {
    let mut idle = guarded();
    idle.send(get("/one")).await;
    idle.response().await;
    let mut fresh = guarded();
    let mut busy = guarded();
    busy.send(get("/wait/2000")).await;
    sleep(millis(1)).await;
    let start = Instant::now();

    for peer in [&idle, &fresh, &busy] {
        peer.info.close_after_reply();
    }

    assert!(idle.ended().await.is_ok() && fresh.ended().await.is_ok());
    assert_eq!(start.elapsed(), Duration::ZERO);
    let mut said = String::new();
    busy.io
        .read_to_string(&mut said)
        .await
        .unwrap();
    assert!(
        said.contains("connection: close") && said.ends_with("/wait/2000"),
        "{said}"
    );
    assert_eq!(busy.info.close_reason(), Some(CloseReason::Served));
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_stream_is_the_connection_until_it_is_dropped() {
    let limit = ConnectionLimitLayer::new(3).unwrap();
    let service = ServiceBuilder::new()
        .layer(limit.clone())
        .layer(DeadlineLayer::default())
        .layer(HttpLayer::default())
        .service_fn(obey);
    let mut peer = Peer::of(service);
    peer.send(
        "GET /upgrade HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
    )
    .await;
    assert_eq!(peer.response().await.0, 101);

    peer.send("echo\n").await;
    assert_eq!(peer.hear().await, "echo");
    sleep(secs(60)).await;
    let during = (peer.has_ended(), limit.handle().in_use());
    peer.finish().await;
    assert!(peer.ended().await.is_ok());

    assert_eq!((during, limit.handle().in_use()), ((false, 1), 0));
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_stream_that_falls_silent_is_idle() {
    let mut peer = guarded();
    peer.send(
        "GET /upgrade HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
    )
    .await;
    assert_eq!(peer.response().await.0, 101);
    peer.send("echo\n").await;
    peer.hear().await;

    assert!(peer.ended().await.is_err());

    assert_eq!(peer.info.close_reason(), Some(CloseReason::Idle));
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http_ends_as_a_fault_of_protocol() {
    let mut peer = guarded();
    peer.send("\0\x01\x02 nonsense\r\n\r\n")
        .await;

    assert!(
        peer.rest()
            .await
            .contains("400 Bad Request")
    );
    assert!(peer.ended().await.is_err());
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Protocol));
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_fails_ends_its_connection_as_an_error() {
    let mut peer = guarded();
    peer.send(get("/fail")).await;

    assert!(peer.ended().await.is_err());
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Error));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_leaves_before_a_byte_is_no_fault() {
    let peer = guarded();

    assert_eq!(peer.leave().await, Some(CloseReason::Peer));
}

#[tokio::test(start_paused = true)]
async fn told_to_leave_a_head_that_is_here_in_part_is_waited_for_and_answered() {
    let mut peer = guarded();
    peer.send(get("/one")).await;
    peer.response().await;
    let post = "POST /sum HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\nabc";
    peer.send(&post[..20]).await;
    sleep(millis(1)).await;

    peer.info.close_after_reply();
    sleep(secs(5)).await;
    assert!(!peer.has_ended());
    peer.send(&post[20..]).await;

    let said = peer.rest().await;
    assert!(
        said.contains("connection: close") && said.ends_with("\r\n\r\n3"),
        "{said}"
    );
    assert_eq!(peer.leave().await, Some(CloseReason::Served));
}

#[tokio::test(start_paused = true)]
async fn told_to_leave_the_rest_of_a_head_is_not_waited_for_any_longer_than_else() {
    let mut peer = guarded();
    peer.send(get("/one")).await;
    peer.response().await;
    peer.send("GET /").await;
    sleep(millis(1)).await;
    let start = Instant::now();

    peer.info.close_after_reply();

    assert!(peer.ended().await.is_err());
    let took = start.elapsed();
    assert!(took > secs(9) && took <= secs(10), "{took:?}");
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Request));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_ends_its_side_is_answered_where_hyper_is_asked_to() {
    for (half_close, answered) in [(false, ""), (true, "/wait/20")] {
        let http = Http::default().http1(|http1| {
            http1.half_close(half_close);
        });
        let mut peer = Peer::of(stack(Some(Deadlines::default()), http));
        peer.send(get("/wait/20")).await;
        peer.finish().await;

        let said = peer.rest().await;
        assert!(said.ends_with(answered), "{said}");
        assert_eq!(said.is_empty(), answered.is_empty());
        assert_eq!(peer.leave().await, Some(CloseReason::Peer));
    }
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_stream_is_cut_with_its_connection_with_and_without_deadlines() {
    for deadlines in [None, Some(Deadlines::none())] {
        let mut peer = Peer::of(stack(deadlines, Http::default()));
        peer.send(
            "GET /upgrade HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
        )
        .await;
        assert_eq!(peer.response().await.0, 101);
        peer.send("echo\n").await;
        peer.hear().await;

        peer.info.cut(CloseReason::Cut);

        assert_eq!(peer.rest().await, "");
        // The reason says more than how the service ended.
        let _ended = peer.ended().await;
        assert_eq!(peer.info.close_reason(), Some(CloseReason::Cut));
    }
}

#[tokio::test(start_paused = true)]
async fn all_is_said_before_a_peer_that_still_sends_is_waited_for() {
    let mut peer = guarded();
    peer.send(
        "POST /x HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\nconnection: close\r\n\r\nhalf",
    )
    .await;
    assert!(peer.rest().await.ends_with("/x"));

    assert!(!peer.has_ended());
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Served));
    assert!(peer.ended().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_hypers_own_for_a_head_is_the_requests() {
    let http = Http::default().http1(|http1| {
        http1.header_read_timeout(Duration::from_secs(5));
    });
    let mut peer = Peer::of(stack(Some(Deadlines::default()), http));
    let start = Instant::now();
    peer.send("GET /").await;

    assert!(peer.ended().await.is_err());
    assert_eq!(start.elapsed(), secs(5));
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Request));
}

#[tokio::test]
async fn a_stream_that_just_ends_was_left_by_its_peer_and_one_that_breaks_was_reset() {
    for (kind, reason) in [
        (io::ErrorKind::UnexpectedEof, CloseReason::Peer),
        (io::ErrorKind::ConnectionReset, CloseReason::Reset),
    ] {
        for first in ["", "P", "GET"] {
            let mut stream = tokio_test::io::Builder::new();
            if !first.is_empty() {
                stream.read(first.as_bytes());
            }
            stream.read_error(kind.into());
            let io = OpaqueIo::new(stream.build());
            drop(stream);
            let conn = Conn::new(io, ());
            let info = conn.info().clone();
            let mut service = ServiceBuilder::new()
                .layer(HttpLayer::default())
                .service_fn(obey);

            assert!(service.call(conn).await.is_err());
            assert_eq!(info.close_reason(), Some(reason), "{first}");
        }
    }
}
