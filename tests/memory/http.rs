use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::{
    body::{Body, Frame, Incoming},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tower::{ServiceBuilder, service_fn, util::BoxCloneService};
use tower_net::{
    Addr, CloseReason, Conn, ConnHandle, Safeguard,
    deadline::{DeadlineLayer, Deadlines},
    error::BoxError,
    http::{Http, HttpLayer},
    limit::ConnectionLimitLayer,
};
use tower_service::Service;

use crate::support::{
    peer::Peer,
    readings::recorded,
    service::{millis, secs},
};

type Reply = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;

/// Does what the path says: waits, streams, counts, upgrades, panics; anything else it answers with.
async fn obey(mut request: Request<Incoming>) -> Result<Reply, BoxError> {
    let path = request.uri().path().to_owned();
    let words: Vec<_> = path
        .trim_start_matches('/')
        .split('/')
        .collect();
    match words[..] {
        ["wait", time] => sleep(millis(time.parse()?)).await,
        ["fail"] => return Err("told to fail".into()),
        ["sum"] => {
            let body = request.into_body().collect().await?;
            let sum = body.to_bytes().len();
            return Ok(reply(sum.to_string()));
        }
        ["stream", parts, pause] => {
            let (parts, pause) = (parts.parse()?, millis(pause.parse()?));
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(async move {
                for part in 0..parts {
                    sleep(pause).await;
                    let bytes = Bytes::from(format!("part {part}\n"));
                    if sender
                        .send(Ok(Frame::data(bytes)))
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            });
            let parts = futures_util::stream::unfold(receiver, async |mut receiver| {
                receiver
                    .recv()
                    .await
                    .map(|part| (part, receiver))
            });
            return Ok(Response::new(StreamBody::new(Box::pin(parts)).boxed()));
        }
        ["upgrade"] => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                let (mut read, mut write) = tokio::io::split(&mut io);
                // Ends with the stream.
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
            let mut switching = reply("");
            *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = switching.headers_mut();
            headers.insert("upgrade", "echo".parse()?);
            headers.insert("connection", "upgrade".parse()?);
            return Ok(switching);
        }
        _ => {}
    }
    Ok(reply(path))
}

fn reply(text: impl Into<Bytes>) -> Reply {
    Response::new(Full::new(text.into()).boxed())
}

type Stack = BoxCloneService<Conn<tokio::io::DuplexStream>, (), BoxError>;

fn stack(deadlines: Option<Deadlines>, http: Http) -> Stack {
    let crossing = HttpLayer::new(http).unwrap();
    match deadlines {
        Some(deadlines) => BoxCloneService::new(
            ServiceBuilder::new()
                .layer(DeadlineLayer::new(deadlines).unwrap())
                .layer(crossing)
                .service_fn(obey),
        ),
        None => BoxCloneService::new(
            ServiceBuilder::new()
                .layer(crossing)
                .service_fn(obey),
        ),
    }
}

fn guarded() -> Peer {
    Peer::of(stack(Some(Deadlines::default()), Http::default()))
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")
}

impl Peer {
    /// The status and the body of the next response, which says how long it is.
    async fn response(&mut self) -> (u16, String) {
        let (mut status, mut length) = (0, 0);
        loop {
            let line = self.hear().await;
            let line = line.trim_end();
            if let Some(code) = line.strip_prefix("HTTP/1.1 ") {
                status = code[..3].parse().unwrap();
            } else if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.parse().unwrap();
            } else if line.is_empty() {
                break;
            }
        }
        let body = self.take(length).await;
        (status, String::from_utf8(body).unwrap())
    }
}

// === Both versions

#[tokio::test(start_paused = true)]
async fn requests_of_http1_are_answered_one_after_the_other_on_one_connection() {
    let mut peer = guarded();

    for path in ["/one", "/wait/20", "/three"] {
        peer.send(get(path)).await;
        assert_eq!(peer.response().await, (200, path.to_owned()));
    }

    assert_eq!(peer.leave().await, Some(CloseReason::Peer));
}

#[tokio::test(start_paused = true)]
async fn requests_in_one_write_are_all_answered_in_order() {
    let mut peer = guarded();

    peer.send([get("/one"), get("/two"), get("/three")].concat())
        .await;

    for path in ["/one", "/two", "/three"] {
        assert_eq!(peer.response().await.1, path);
    }
}

/// A client of HTTP/2, and the task that drives it.
async fn http2(peer: &mut Peer) -> http2::SendRequest<Empty<Bytes>> {
    let (far, _near) = tokio::io::duplex(1);
    let io = TokioIo::new(std::mem::replace(&mut peer.io, far));
    let (client, driven) = http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    tokio::spawn(driven);
    client
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    let uri = format!("http://test{path}");
    Request::get(uri)
        .body(Empty::new())
        .unwrap()
}

async fn text<B>(response: Response<B>) -> String
where
    B: Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let body = response
        .into_body()
        .collect()
        .await
        .unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn requests_of_http2_are_answered_side_by_side() {
    let mut peer = guarded();
    let mut client = http2(&mut peer).await;
    let start = Instant::now();

    let (one, two) = (
        client.send_request(request("/wait/500")),
        client
            .clone()
            .send_request(request("/wait/500")),
    );
    let (one, two) = tokio::join!(one, two);

    assert_eq!(
        (text(one.unwrap()).await, text(two.unwrap()).await),
        ("/wait/500".into(), "/wait/500".into())
    );
    assert_eq!(start.elapsed(), millis(500));
    drop(client);
    assert!(peer.ended().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_version_is_told_by_the_first_bytes_however_they_are_split() {
    let mut peer = guarded();
    for byte in get("/drip").bytes() {
        peer.send([byte]).await;
        sleep(millis(1)).await;
    }
    assert_eq!(peer.response().await.1, "/drip");

    // Begins as the preface does.
    let mut peer = guarded();
    peer.send("P").await;
    sleep(millis(1)).await;
    peer.send("OST /sum HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\nabc")
        .await;
    assert_eq!(peer.response().await, (200, "3".into()));
}

#[tokio::test(start_paused = true)]
async fn a_request_knows_its_connection() {
    let inner = service_fn(async |request: Request<Incoming>| {
        let conn = request
            .extensions()
            .get::<ConnHandle>()
            .unwrap();
        let axum = request
            .extensions()
            .get::<axum::extract::ConnectInfo<SocketAddr>>();
        assert_eq!(axum.map(|peer| peer.0), conn.peer().tcp());
        assert!(conn.has_passed(Safeguard::Request));
        Ok::<_, BoxError>(reply(conn.peer().to_string()))
    });
    let crossing = HttpLayer::default();
    let service = ServiceBuilder::new()
        .map_request(|conn: Conn<_>| {
            conn.info()
                .announce_peer(SocketAddr::from(([192, 0, 2, 7], 99)));
            conn
        })
        .layer(crossing)
        .service(inner);
    let mut peer = Peer::of(service);

    peer.send(get("/")).await;

    assert_eq!(peer.response().await.1, "192.0.2.7:99");
    assert_eq!(*peer.info.wire_peer(), Addr::Unnamed);
}

// === Deadlines: each of its own

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
async fn a_ping_on_an_idle_http2_connection_is_no_half_request() {
    let mut peer = guarded();
    peer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await;
    // A request on stream 1: GET / of http://test, by the static table.
    let headers = [
        &[0, 0, 8, 1, 5, 0, 0, 0, 1][..],
        &[0x82, 0x86, 0x84, 0x41, 3],
        b"abc",
    ]
    .concat();
    peer.send(headers).await;
    for _ in 0..4 {
        sleep(secs(30)).await;
        peer.send(b"\0\0\x08\x06\0\0\0\0\0pingping")
            .await;
    }

    assert_eq!(peer.info.close_reason(), None);
    assert!(!peer.has_ended());
}

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

#[tokio::test]
async fn a_deadline_of_zero_is_refused() {
    for http in [
        Http::default().head_deadline(Duration::ZERO),
        Http::default().handler_deadline(Duration::ZERO),
    ] {
        assert!(HttpLayer::new(http).is_err());
    }
}

// === How it ends

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
async fn told_to_leave_http2_says_goaway_and_finishes_its_streams() {
    let mut peer = guarded();
    let mut client = http2(&mut peer).await;
    let waiting = tokio::spawn(client.send_request(request("/wait/2000")));
    sleep(millis(10)).await;

    peer.info.close_after_reply();

    let response = waiting.await.unwrap().unwrap();
    assert_eq!(text(response).await, "/wait/2000");
    assert!(peer.ended().await.is_ok());
    assert!(
        client
            .send_request(request("/more"))
            .await
            .is_err()
    );
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
async fn requests_are_counted_by_their_outcome() {
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
    let mut peer = Peer::of(service);
    for path in ["/one", "/wait/20", "/wait/60000"] {
        peer.send(get(path)).await;
        peer.response().await;
    }

    let count = |outcome| {
        metrics.of(
            "tower_net_requests_total",
            &[("service", "web"), ("outcome", outcome)],
        )
    };
    assert_eq!((count("ok"), count("failed")), (2.0, 1.0));
}

#[test]
fn a_layer_can_be_asked_for_readiness_only_where_time_is_kept() {
    let mut service = tower_layer::Layer::layer(&HttpLayer::default(), service_fn(obey));
    let mut waker = tokio_test::task::spawn(std::future::poll_fn(move |cx| {
        Service::<Conn<tokio::io::DuplexStream>>::poll_ready(&mut service, cx)
    }));

    assert!(tokio_test::assert_ready!(waker.poll()).is_err());
}

#[tokio::test]
async fn a_request_that_is_answered_at_once_does_not_wake_its_own_connection() {
    for deadlines in [None, Some(Deadlines::default())] {
        let (near, mut far) = tokio::io::duplex(4096);
        let mut service = stack(deadlines, Http::default());
        let conn = Conn::new(near, ());
        let mut serving = tokio_test::task::spawn(service.call(conn));
        // The first request goes through what reads the version.
        for _ in 0..3 {
            far.write_all(get("/x").as_bytes())
                .await
                .unwrap();
            tokio_test::assert_pending!(serving.poll());
            let answered = far.read(&mut [0; 4096]).await.unwrap();

            assert!(answered > 0);
            // The room that its answer had taken is nothing to it either.
            assert!(!serving.is_woken());
        }
    }
}
