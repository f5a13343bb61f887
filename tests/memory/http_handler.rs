//! Handlers: how long they may take, and how they are counted.

use std::pin::pin;

use http::StatusCode;
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceBuilder;
use tower_net::{
    CloseReason,
    deadline::Deadlines,
    http::{Http, HttpLayer},
};

use crate::{
    http::{get, http2, obey, request, stack, text},
    support::{
        peer::Peer,
        readings::{Readings, recorded},
        service::{millis, secs},
    },
};

#[tokio::test(start_paused = true)]
async fn a_handler_that_is_late_is_answered_for_and_so_is_one_that_waits_for_a_body() {
    let http = || Http::default().handler_deadline(secs(5));
    for request in [
        get("/wait/60000"),
        "POST /sum HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\nhalf".to_owned(),
    ] {
        let mut peer = Peer::of(stack(Some(Deadlines::default()), http()));
        let start = Instant::now();
        peer.send(&request).await;

        assert_eq!(peer.response().await, (503, String::new()), "{request}");
        assert_eq!(start.elapsed(), secs(5));
        assert_eq!(peer.rest().await, "");
        assert_eq!(peer.leave().await, Some(CloseReason::Handler), "{request}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_http2_a_handler_that_is_late_costs_its_own_request_and_not_the_connection() {
    let http = Http::default().handler_deadline(secs(5));
    let mut peer = Peer::of(stack(Some(Deadlines::default()), http));
    let mut client = http2(&mut peer).await;

    let late = client
        .send_request(request("/wait/60000"))
        .await
        .unwrap();
    let next = client
        .send_request(request("/next"))
        .await
        .unwrap();

    assert_eq!(late.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(late.headers().get("connection"), None);
    assert_eq!(text(next).await, "/next");
    assert_eq!(peer.info.close_reason(), None);
}

/// A peer of each version, and of each with and without deadlines above: how its requests come out, and when.
async fn each_comes_to(path: &str, expected: (u16, u64)) {
    for deadlines in [None, Some(Deadlines::none())] {
        let mut peer = Peer::of(stack(deadlines.clone(), Http::default()));
        let start = Instant::now();
        peer.send(get(path)).await;
        let (status, _) = peer.response().await;
        assert_eq!((status, rounded(start)), expected, "{path} {deadlines:?}");

        let mut peer = Peer::of(stack(deadlines.clone(), Http::default()));
        let mut client = http2(&mut peer).await;
        let start = Instant::now();
        let response = client
            .send_request(request(path))
            .await
            .unwrap();
        let status = response.status().as_u16();
        assert_eq!((status, rounded(start)), expected, "{path} {deadlines:?}");
    }
}

/// In whole seconds; what was stopped may end a sixteenth of the limit later.
fn rounded(start: Instant) -> u64 {
    let took = start.elapsed().as_secs();
    took - took % 5
}

#[tokio::test(start_paused = true)]
async fn a_handler_extends_its_own_deadline() {
    each_comes_to("/more/60000/wait/80000", (200, 80)).await;
    each_comes_to("/wait/20000/more/60000/wait/60000", (200, 80)).await;
    each_comes_to("/more/60000/wait/95000", (503, 90)).await;
}

#[tokio::test(start_paused = true)]
async fn while_the_deadlines_are_stopped_so_is_that_of_the_handler() {
    each_comes_to("/hold/100000", (200, 100)).await;
    each_comes_to("/wait/20000/hold/100000/wait/5000", (200, 125)).await;
    each_comes_to("/wait/20000/hold/100000/wait/60000", (503, 130)).await;
    // Less was left than the time after which it is asked again.
    each_comes_to("/wait/29000/hold/101000/wait/500", (200, 130)).await;
    each_comes_to("/wait/29000/hold/100000/wait/60000", (503, 130)).await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_given_time_as_the_connection_is() {
    for deadlines in [None, Some(Deadlines::none())] {
        let mut peer = Peer::of(stack(deadlines, Http::default()));
        let info = peer.info.clone();
        let start = Instant::now();
        tokio::spawn(async move {
            sleep(secs(10)).await;
            info.extend(secs(20));
        });
        let mut client = http2(&mut peer).await;
        let mut other = client.clone();
        let (late, short) = tokio::join!(
            client.send_request(request("/wait/60000")),
            other.send_request(request("/wait/45000")),
        );

        assert_eq!(late.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(short.unwrap().status(), StatusCode::OK);
        assert_eq!(start.elapsed(), secs(50));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_knows_its_deadline() {
    let limit = |limit| {
        Peer::of(stack(
            Some(Deadlines::none()),
            Http::default().handler_deadline(limit),
        ))
    };
    let mut peer = limit(secs(30));
    for (path, left) in [
        ("/left", "30000"),
        ("/wait/1000/left", "29000"),
        ("/more/5000/wait/1000/left", "34000"),
    ] {
        peer.send(get(path)).await;
        assert_eq!(peer.response().await.1, left, "{path}");
    }
    let mut peer = limit(secs(30));
    let mut client = http2(&mut peer).await;
    let response = client.send_request(request("/wait/1000/left"));
    assert_eq!(text(response.await.unwrap()).await, "29000");

    let mut peer = limit(std::time::Duration::MAX);
    peer.send(get("/wait/1000/left")).await;
    let never = std::time::Duration::MAX
        .as_millis()
        .to_string();
    assert_eq!(peer.response().await.1, never);
}

// === Counted by their outcome

/// A peer of the crossing alone, and what it counts.
fn counting() -> (Peer, Readings) {
    let (crossing, metrics) = recorded(|| {
        HttpLayer::new(
            Http::default()
                .service("web")
                .handler_deadline(secs(1)),
        )
        .unwrap()
    });
    let service = ServiceBuilder::new()
        .layer(crossing)
        .service_fn(obey);
    (Peer::of(service), metrics)
}

fn counts(metrics: &Readings) -> [f64; 2] {
    ["ok", "failed"].map(|outcome| {
        metrics.of(
            "tower_net_requests_total",
            &[("service", "web"), ("outcome", outcome)],
        )
    })
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_by_their_outcome() {
    let (mut peer, metrics) = counting();
    for path in ["/one", "/wait/20", "/wait/60000"] {
        peer.send(get(path)).await;
        peer.response().await;
    }

    assert_eq!(counts(&metrics), [2.0, 1.0]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_nobody_waits_for_any_more_has_failed() {
    let (mut peer, metrics) = counting();
    peer.send(get("/wait/500")).await;
    sleep(millis(10)).await;
    assert_eq!(counts(&metrics), [0.0, 0.0]);
    peer.leave().await;
    assert_eq!(counts(&metrics), [0.0, 1.0]);

    // The stream of HTTP/2 is reset.
    let (mut peer, metrics) = counting();
    let mut client = http2(&mut peer).await;
    let given_up = client.send_request(request("/wait/500"));
    assert!(
        timeout(millis(10), given_up)
            .await
            .is_err()
    );
    let next = client.send_request(request("/next"));
    assert_eq!(text(next.await.unwrap()).await, "/next");
    assert_eq!(counts(&metrics), [1.0, 1.0]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_counted_and_ends_the_connection_of_http1() {
    let (mut peer, metrics) = counting();
    peer.send(get("/panic")).await;

    assert_eq!(peer.rest().await, "");
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Panic));
    assert_eq!(counts(&metrics), [0.0, 1.0]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_counted_and_costs_http2_the_stream_alone() {
    let (mut peer, metrics) = counting();
    let mut client = http2(&mut peer).await;
    let panics = pin!(client.send_request(request("/panic")));
    assert!(panics.await.is_err());
    let next = client.send_request(request("/next"));

    assert_eq!(text(next.await.unwrap()).await, "/next");
    assert_eq!(peer.info.close_reason(), None);
    assert_eq!(counts(&metrics), [1.0, 1.0]);
}
