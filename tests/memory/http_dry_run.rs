//! Deadlines of requests that only count what is late.

use tokio::time::sleep;
use tower::ServiceBuilder;
use tower_net::{
    CloseReason,
    deadline::{DeadlineLayer, Deadlines},
    http::{Http, HttpLayer},
};

use crate::{
    http::{get, http2, obey, request, text},
    support::{
        peer::Peer,
        readings::{Readings, recorded},
        service::secs,
    },
};

/// A peer of the crossing alone, and one of it under a layer whose timer it uses.
fn peers(http: &Http) -> [(Peer, Readings); 2] {
    let dry = || {
        let http = http.clone().dry_run(true);
        recorded(|| HttpLayer::new(http).unwrap())
    };
    let ((alone, of_alone), (watched, of_watched)) = (dry(), dry());
    let alone = ServiceBuilder::new()
        .layer(alone)
        .service_fn(obey);
    let watched = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Deadlines::none()).unwrap())
        .layer(watched)
        .service_fn(obey);
    [(Peer::of(alone), of_alone), (Peer::of(watched), of_watched)]
}

fn count(metrics: &Readings, reason: CloseReason) -> f64 {
    metrics.of("tower_net_dry_run_total", &[("reason", reason.label())])
}

#[tokio::test(start_paused = true)]
async fn each_late_head_is_counted_once_and_answered() {
    for (mut peer, metrics) in peers(&Http::default().head_deadline(secs(2))) {
        let mut counted = Vec::new();
        for pause in [1, 100, 1, 3] {
            peer.send("GET /x HTTP/1.1\r\n").await;
            peer.send("x: ").await;
            for _ in 0..pause {
                sleep(secs(1)).await;
                peer.send("y").await;
            }
            peer.send("\r\nhost: test\r\n\r\n")
                .await;
            assert_eq!(peer.response().await, (200, "/x".to_owned()));
            counted.push(count(&metrics, CloseReason::Request));
        }

        assert_eq!(counted, [0.0, 1.0, 1.0, 2.0]);
        assert_eq!(peer.leave().await, Some(CloseReason::Peer));
    }
}

#[tokio::test(start_paused = true)]
async fn each_late_handler_is_counted_once_and_answers() {
    for (mut peer, metrics) in peers(&Http::default().handler_deadline(secs(2))) {
        for (wait, counted) in [(1_000, 0.0), (60_000, 1.0), (1_999, 1.0), (2_001, 2.0)] {
            let path = format!("/wait/{wait}");
            peer.send(get(&path)).await;
            assert_eq!(peer.response().await, (200, path));
            assert_eq!(count(&metrics, CloseReason::Handler), counted);
        }
        let answers = metrics.of("tower_net_requests_total", &[("outcome", "ok")]);
        assert_eq!(answers, 4.0);
    }
    for (mut peer, metrics) in peers(&Http::default().handler_deadline(secs(2))) {
        let mut client = http2(&mut peer).await;
        let late = client.send_request(request("/wait/60000"));
        assert_eq!(text(late.await.unwrap()).await, "/wait/60000");
        assert_eq!(count(&metrics, CloseReason::Handler), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_sees_no_deadline() {
    for (mut peer, _) in peers(&Http::default()) {
        peer.send(get("/left")).await;
        let never = std::time::Duration::MAX
            .as_millis()
            .to_string();
        assert_eq!(peer.response().await.1, never);
    }
}
