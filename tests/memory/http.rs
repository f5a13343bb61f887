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
    time::{Instant, sleep},
};
use tower::{ServiceBuilder, service_fn, util::BoxCloneService};
use tower_net::{
    Addr, CloseReason, Conn, ConnHandle, Deadline, Safeguard,
    deadline::{DeadlineLayer, Deadlines},
    error::BoxError,
    http::{Http, HttpLayer},
};
use tower_service::Service;

use crate::support::{peer::Peer, service::millis};

pub(crate) type Reply = Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>;

/// Does what the path says, one thing after the other, and answers with it:
///
/// | words | what it does |
/// |---|---|
/// | `wait/20` | waits 20 ms |
/// | `more/20` | gives itself 20 ms more |
/// | `hold/20` | waits 20 ms with the deadlines stopped |
/// | `left` | answers with the milliseconds left until its deadline |
/// | `fail`, `panic` | fails, panics |
/// | `sum` | answers with the length of its body |
/// | `early` | answers at once, and has a task take the body |
/// | `stream/3/20` | answers in three parts, 20 ms before each |
/// | `parts/3/20` | answers in three parts of 20 bytes, which are there at once |
/// | `upgrade` | echoes from then on |
pub(crate) async fn obey(mut request: Request<Incoming>) -> Result<Reply, BoxError> {
    let path = request.uri().path().to_owned();
    let conn = request
        .extensions()
        .get::<ConnHandle>()
        .unwrap()
        .clone();
    let words: Vec<_> = path
        .trim_start_matches('/')
        .split('/')
        .collect();
    let mut words = &words[..];
    loop {
        words = match *words {
            ["wait", time, ref rest @ ..] => {
                sleep(millis(time.parse()?)).await;
                rest
            }
            ["more", time, ref rest @ ..] => {
                conn.extend(millis(time.parse()?));
                rest
            }
            ["hold", time, ref rest @ ..] => {
                let _stopped = conn.info().suspend();
                sleep(millis(time.parse()?)).await;
                rest
            }
            ["left"] => {
                let left = Deadline::current().remaining();
                return Ok(reply(left.as_millis().to_string()));
            }
            ["fail"] => return Err("told to fail".into()),
            ["panic"] => panic!("told to panic"),
            ["sum"] => {
                let body = request.into_body().collect().await?;
                let sum = body.to_bytes().len();
                return Ok(reply(sum.to_string()));
            }
            ["early"] => {
                tokio::spawn(request.into_body().collect());
                return Ok(reply(path));
            }
            ["stream", parts, pause] => return Ok(stream(parts.parse()?, millis(pause.parse()?))),
            ["parts", parts, bytes] => {
                let (parts, bytes) = (parts.parse()?, bytes.parse()?);
                let part = Bytes::from(vec![b'x'; bytes]);
                let parts = (0..parts).map(move |_| Ok(Frame::data(part.clone())));
                let parts = futures_util::stream::iter(parts);
                return Ok(Response::new(StreamBody::new(parts).boxed()));
            }
            ["upgrade"] => {
                upgrade(&mut request);
                let mut switching = reply("");
                *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                let headers = switching.headers_mut();
                headers.insert("upgrade", "echo".parse()?);
                headers.insert("connection", "upgrade".parse()?);
                return Ok(switching);
            }
            _ => return Ok(reply(path)),
        }
    }
}

fn stream(parts: usize, pause: Duration) -> Reply {
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
    Response::new(StreamBody::new(Box::pin(parts)).boxed())
}

fn upgrade(request: &mut Request<Incoming>) {
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let (mut read, mut write) = tokio::io::split(&mut io);
        // Ends with the stream.
        let _ended = tokio::io::copy(&mut read, &mut write).await;
    });
}

pub(crate) fn reply(text: impl Into<Bytes>) -> Reply {
    Response::new(Full::new(text.into()).boxed())
}

pub(crate) type Stack = BoxCloneService<Conn<tokio::io::DuplexStream>, (), BoxError>;

pub(crate) fn stack(deadlines: Option<Deadlines>, http: Http) -> Stack {
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

pub(crate) fn guarded() -> Peer {
    Peer::of(stack(Some(Deadlines::default()), Http::default()))
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")
}

impl Peer {
    /// The status and the body of the next response, which says how long it is.
    pub(crate) async fn response(&mut self) -> (u16, String) {
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
pub(crate) async fn http2(peer: &mut Peer) -> http2::SendRequest<Empty<Bytes>> {
    let (far, _near) = tokio::io::duplex(1);
    let io = TokioIo::new(std::mem::replace(&mut peer.io, far));
    let (client, driven) = http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    tokio::spawn(driven);
    client
}

pub(crate) fn request(path: &str) -> Request<Empty<Bytes>> {
    let uri = format!("http://test{path}");
    Request::get(uri)
        .body(Empty::new())
        .unwrap()
}

pub(crate) async fn text<B>(response: Response<B>) -> String
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

#[tokio::test]
async fn a_deadline_of_zero_is_refused() {
    for http in [
        Http::default().head_deadline(Duration::ZERO),
        Http::default().handler_deadline(Duration::ZERO),
    ] {
        assert!(HttpLayer::new(http).is_err());
    }
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
