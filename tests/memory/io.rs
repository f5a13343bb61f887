#[cfg(feature = "tls")]
use std::sync::atomic::Ordering::Relaxed;
use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    io::IoSlice,
    pin::Pin,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream, UnixStream},
    time::Instant,
};
use tokio_util::either::Either;
#[cfg(feature = "tls")]
use tower::ServiceExt;
use tower_layer::{Identity, Layer};
#[cfg(feature = "tls")]
use tower_net::tls::{TlsAcceptLayer, TlsClientIo, TlsConnectLayer, TlsIo};
use tower_net::{
    Conn, IncomingIo, Server,
    deadline::{DeadlineIo, DeadlineLayer},
    error::BoxError,
    http::{HttpIo, HttpLayer},
    io::{
        BoxedIo, GuardedIo, Io, Linger, Lingered, OpaqueIo, RewoundIo, linger,
        prelude::{self, PreludeError, Step},
    },
    limit::{ConnectionLimitLayer, Place},
    listen::AnyIo,
    meter::{MeterIo, MeterLayer},
    pool::{PoolLayer, PooledIo, Pooling},
    pressure::{Enrolled, PressureLayer, Thresholds},
    throttle::{Rate, Rates, ThrottleIo, ThrottleLayer},
    trace::{Closing, TraceLayer},
};
use tower_service::Service;

#[cfg(feature = "tls")]
use crate::support::{
    io::After,
    pki::{Authority, connect},
};
use crate::support::{
    io::{Drip, Queue, Script, Vectored},
    service::{millis, secs},
};

type Any = Box<dyn Io>;
type Wrap = fn(Any) -> Any;

/// Every adapter and every stream of a layer, around any stream.
const WRAPPERS: &[(&str, Wrap)] = &[
    ("BoxedIo", |io| Box::new(BoxedIo::new(io))),
    ("Conn", |io| Box::new(Conn::new(io, ()))),
    ("Either::Left", |io| Box::new(Either::<_, Any>::Left(io))),
    ("Either::Right", |io| Box::new(Either::<Any, _>::Right(io))),
    ("GuardedIo", |io| Box::new(GuardedIo::new(io, ()))),
    ("OpaqueIo", |io| Box::new(OpaqueIo::new(io))),
    ("RewoundIo", |io| Box::new(RewoundIo::new(Bytes::new(), io))),
    ("DeadlineIo of deadline", |io| {
        through::<_, DeadlineIo<Any>>(DeadlineLayer::default(), io)
    }),
    ("GuardedIo of limit", |io| {
        through::<_, GuardedIo<Any, Place>>(ConnectionLimitLayer::new(1).unwrap(), io)
    }),
    ("GuardedIo of pressure", |io| {
        through::<_, GuardedIo<Any, Enrolled>>(
            PressureLayer::new(Thresholds::default()).unwrap(),
            io,
        )
    }),
    ("GuardedIo of trace", |io| {
        through::<_, GuardedIo<Any, Closing>>(TraceLayer::new(), io)
    }),
    ("MeterIo of meter", |io| {
        through::<_, MeterIo<Any>>(MeterLayer::new("test"), io)
    }),
    ("ThrottleIo of throttle", |io| {
        let rates = Rates::new().send(Rate::per_second(1024));
        through::<_, ThrottleIo<Any>>(ThrottleLayer::new(rates).unwrap(), io)
    }),
];

#[tokio::test]
async fn every_wrapper_passes_on_vectored_writes_flush_and_shutdown() {
    for (name, wrap) in WRAPPERS {
        let (inner, calls) = Vectored::pair();

        let mut io = wrap(Box::new(inner));
        let written = write_vectored(&mut io, [b"ab", b"cd"]).await;
        io.flush().await.unwrap();
        io.shutdown().await.unwrap();

        assert!(io.is_write_vectored(), "{name}");
        assert_eq!(written.unwrap(), 4, "{name}");
        assert_eq!(calls.counts(), [0, 1, 1, 1], "{name}");
    }
}

#[tokio::test]
async fn a_stream_out_of_a_pool_passes_on_the_same_and_shows_the_socket() {
    let (inner, calls) = Vectored::pair();
    let (near, _far) = tcp_pair().await;
    let streams = Arc::new(Mutex::new(vec![Box::new(near) as Any, Box::new(inner)]));
    let connector = tower::service_fn(move |_: u8| {
        let io = streams.lock().unwrap().pop().unwrap();
        async move { io::Result::Ok(Conn::new(io, ())) }
    });
    let pooling = Pooling::default();
    let mut pool = PoolLayer::new("test", pooling)
        .unwrap()
        .layer(connector);

    let mut io: PooledIo<Any> = pool
        .call(0)
        .await
        .unwrap()
        .into_parts()
        .0;
    let written = write_vectored(&mut io, [b"ab", b"cd"]).await;
    io.flush().await.unwrap();
    io.shutdown().await.unwrap();

    assert!(io.is_write_vectored());
    assert_eq!((written.unwrap(), calls.counts()), (4, [0, 1, 1, 1]));
    assert!(
        pool.call(0)
            .await
            .unwrap()
            .socket()
            .is_some()
    );
}

#[tokio::test]
async fn a_stream_that_was_handed_out_passes_on_the_same_and_shows_the_socket() {
    let (queue, dialler) = Queue::pair();
    let mut incoming = Server::new(queue).incoming::<_, Any>(Identity::new());
    let (inner, calls) = Vectored::pair();
    dialler.offer(Box::new(inner) as Any);
    let mut io: IncomingIo<Any> = incoming.accept().await.unwrap();

    let written = write_vectored(&mut io, [b"ab", b"cd"]).await;
    io.flush().await.unwrap();
    io.shutdown().await.unwrap();
    let (near, _far) = tcp_pair().await;
    dialler.offer(Box::new(near) as Any);
    let io = incoming.accept().await.unwrap();

    assert_eq!((written.unwrap(), calls.counts()), (4, [0, 1, 1, 1]));
    assert!(io.is_write_vectored() && io.socket().is_some());
}

#[tokio::test]
async fn a_stream_that_http_has_upgraded_shows_the_socket_and_takes_vectored_writes() {
    let (upgraded, mut taken) = tokio::sync::mpsc::channel(1);
    let service = tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        let upgraded = upgraded.clone();
        async move {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                upgraded
                    .send(upgrade.await.unwrap())
                    .await
                    .unwrap()
            });
            let switching = http::Response::builder()
                .status(101)
                .header("connection", "upgrade")
                .header("upgrade", "any");
            switching.body(http_body_util::Empty::<Bytes>::new())
        }
    });
    let (near, mut far) = tcp_pair().await;
    let mut crossing = HttpLayer::default().layer(service);
    let _served = tokio::spawn(crossing.call(Conn::new(near, ())));
    far.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: any\r\n\r\n")
        .await
        .unwrap();

    let upgraded = taken.recv().await.unwrap();
    let parts = upgraded
        .downcast::<TokioIo<RewoundIo<HttpIo<TcpStream>>>>()
        .unwrap();
    let mut io = parts.io.into_inner();

    assert!(io.is_write_vectored() && io.socket().is_some());
    assert_eq!(
        write_vectored(&mut io, [b"ab", b"cd"])
            .await
            .unwrap(),
        4
    );
}

#[tokio::test]
async fn every_wrapper_but_the_opaque_one_shows_the_socket_below() {
    for (name, wrap) in WRAPPERS {
        let (near, _far) = tcp_pair().await;
        let local = near.local_addr().unwrap();

        let io = wrap(Box::new(near));

        let shown = io.socket().map(|socket| {
            let addr = socket.local_addr().unwrap();
            addr.as_socket().unwrap()
        });
        let expected = (*name != "OpaqueIo").then_some(local);
        assert_eq!(shown, expected, "{name}");
    }
}

#[tokio::test]
async fn whoever_must_see_the_bytes_takes_no_pipes() {
    for (name, wrap) in WRAPPERS {
        let (near, _far) = tcp_pair().await;

        let io = wrap(Box::new(near));

        let must_see = ["OpaqueIo", "ThrottleIo of throttle"].contains(name);
        assert_eq!(io.takes_pipes(), !must_see, "{name}");
    }
    let (near, _far) = tcp_pair().await;
    let mut rewound = RewoundIo::new(Bytes::from("x"), near);
    assert!(!rewound.takes_pipes());
    assert_eq!(rewound.read_u8().await.unwrap(), b'x');
    assert!(rewound.takes_pipes());
}

/// A handshake comes first, so it has no row in the table above.
#[cfg(feature = "tls")]
#[tokio::test]
async fn the_stream_of_tls_passes_on_vectored_writes_flush_and_shutdown_and_shows_the_socket_below()
{
    let (inner, calls) = Vectored::pair();
    let (mut io, _client) = encrypted(inner).await;

    let written = write_vectored(&mut io, [b"ab", b"cd"]).await;
    io.flush().await.unwrap();
    let before_the_end = calls.counts();
    io.shutdown().await.unwrap();

    assert!(io.is_write_vectored());
    assert_eq!(written.unwrap(), 4);
    // Both buffers in one record; the end is announced in another.
    assert_eq!(before_the_end, [0, 1, 1, 0]);
    assert_eq!(calls.counts(), [0, 2, 1, 1]);
    let (near, _far) = tcp_pair().await;
    let local = near.local_addr().unwrap();
    let (io, _client) = encrypted(near).await;
    let shown = io
        .socket()
        .unwrap()
        .local_addr()
        .unwrap();
    assert_eq!(shown.as_socket(), Some(local));
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn the_stream_of_tls_that_we_open_does_the_same() {
    let (inner, calls) = Vectored::pair();
    let (mut io, _server) = encrypted_by_us(inner).await;

    let written = write_vectored(&mut io, [b"ab", b"cd"]).await;
    io.flush().await.unwrap();
    io.shutdown().await.unwrap();

    assert!(io.is_write_vectored());
    assert_eq!(written.unwrap(), 4);
    assert_eq!(calls.counts(), [0, 2, 1, 1]);
    let (near, _far) = tcp_pair().await;
    let (io, _server) = encrypted_by_us(near).await;
    assert!(io.socket().is_some());
}

#[tokio::test]
async fn a_stream_of_any_listener_is_what_it_holds() {
    let (tcp, far_tcp) = tcp_pair().await;
    let (unix, far_unix) = UnixStream::pair().unwrap();
    let streams: [(AnyIo, Any); 2] = [
        (AnyIo::Tcp(tcp), Box::new(far_tcp)),
        (AnyIo::Unix(unix), Box::new(far_unix)),
    ];
    for (mut io, mut far) in streams {
        let written = write_vectored(&mut io, [b"ab", b"cd"]).await;
        io.flush().await.unwrap();
        io.shutdown().await.unwrap();
        let mut read = String::new();
        far.read_to_string(&mut read)
            .await
            .unwrap();

        assert!(io.is_write_vectored() && io.socket().is_some(), "{io:?}");
        assert_eq!((written.unwrap(), &*read), (4, "abcd"), "{io:?}");
    }
}

#[tokio::test]
async fn bytes_put_back_are_read_first_and_in_any_portion() {
    let inner = Script::new().bytes("after").end();

    let mut io = Drip::new(RewoundIo::new(Bytes::from("before "), inner));
    let mut read = String::new();
    io.read_to_string(&mut read)
        .await
        .unwrap();

    assert_eq!(read, "before after");
}

#[tokio::test]
async fn a_guard_is_dropped_after_its_stream() {
    struct Order(&'static str, std::sync::mpsc::Sender<&'static str>);
    impl Drop for Order {
        fn drop(&mut self) {
            self.1.send(self.0).unwrap();
        }
    }
    let (sender, order) = std::sync::mpsc::channel();
    let inner = GuardedIo::new(Script::new(), Order("stream", sender.clone()));

    drop(GuardedIo::new(inner, Order("guard", sender)));

    assert_eq!(order.iter().collect::<Vec<_>>(), ["stream", "guard"]);
}

// === The first bytes

/// A header is a length and so many bytes.
fn header(bytes: &[u8]) -> Result<Step<Vec<u8>>, Infallible> {
    Ok(match bytes {
        [] => Step::More(1),
        [length, rest @ ..] if rest.len() < usize::from(*length) => {
            Step::More(usize::from(*length) - rest.len())
        }
        [length, rest @ ..] => Step::Done(rest.to_vec(), 1 + usize::from(*length)),
    })
}

#[tokio::test]
async fn a_prelude_takes_exactly_the_header_however_it_is_split() {
    let wire = b"\x04headbody";
    for split in 1..wire.len() {
        let (first, second) = wire.split_at(split);
        let io = Script::new()
            .bytes(first)
            .bytes(second)
            .end();

        let (value, io) = prelude::read(io, 16, None, header)
            .await
            .unwrap();
        let (unread, mut io) = io.into_parts();
        let mut rest = String::new();
        io.read_to_string(&mut rest)
            .await
            .unwrap();

        assert_eq!(
            (&value[..], &unread[..], &*rest),
            (&b"head"[..], &b""[..], "body")
        );
    }
}

#[tokio::test]
async fn a_prelude_may_come_byte_by_byte() {
    let io = Drip::new(
        Script::new()
            .bytes(b"\x04headbody")
            .end(),
    );

    let (value, mut io) = prelude::read(io, 16, None, header)
        .await
        .unwrap();
    let mut rest = String::new();
    io.read_to_string(&mut rest)
        .await
        .unwrap();

    assert_eq!((&value[..], &*rest), (&b"head"[..], "body"));
}

#[tokio::test]
async fn what_a_parser_did_not_consume_is_put_back() {
    let io = Script::new().bytes("GET /").end();
    let sniff = |bytes: &[u8]| match bytes.len() {
        0..3 => Ok::<_, Infallible>(Step::More(3 - bytes.len())),
        _ => Ok(Step::Done(bytes.starts_with(b"GET"), 0)),
    };

    let (is_http, mut io) = prelude::read(io, 16, None, sniff)
        .await
        .unwrap();
    let mut rest = String::new();
    io.read_to_string(&mut rest)
        .await
        .unwrap();

    assert_eq!((is_http, &*rest), (true, "GET /"));
}

#[tokio::test]
async fn a_prelude_is_bounded() {
    let io = Script::new()
        .bytes(b"\xffmuch too long")
        .end();

    let error = prelude::read(io, 8, None, header)
        .await
        .unwrap_err();

    assert!(matches!(error, PreludeError::TooLong(8)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_prelude_has_a_deadline_that_a_drip_does_not_move() {
    let start = Instant::now();
    let mut io = Script::new().bytes(b"\x08");
    for _ in 0..8 {
        io = io.pause(secs(1)).bytes("x");
    }

    let read = prelude::read(io, 16, Some(start + secs(3)), header);
    let error = read.await.unwrap_err();

    assert!(matches!(error, PreludeError::Elapsed), "{error:?}");
    assert_eq!(start.elapsed(), secs(3));
}

#[tokio::test]
async fn a_prelude_that_ends_or_fails_early_says_so() {
    let ended = Script::new().bytes(b"\x04he").end();
    let broken = Script::new().fail(io::ErrorKind::ConnectionReset);
    let refused = |_: &[u8]| Err::<Step<()>, _>(BoxError::from("no"));

    let ended = prelude::read(ended, 16, None, header)
        .await
        .unwrap_err();
    let broken = prelude::read(broken, 16, None, header)
        .await
        .unwrap_err();
    let refused = prelude::read(Script::new(), 16, None, refused).await;

    assert!(matches!(ended, PreludeError::Ended(3)), "{ended:?}");
    assert!(matches!(broken, PreludeError::Io(_)), "{broken:?}");
    assert!(matches!(refused, Err(PreludeError::Refused(_))));
}

// === The lingering close

fn bounds() -> Linger {
    Linger::default()
        .total(secs(30))
        .quiet(secs(5))
}

#[tokio::test(start_paused = true)]
async fn a_lingering_close_ends_with_the_peer() {
    let (near, mut far) = duplex(64);
    let start = Instant::now();

    let closing = tokio::spawn(linger(near, bounds()));
    let eof = far.read(&mut [0; 8]).await.unwrap();
    far.write_all(b"late").await.unwrap();
    drop(far);

    assert_eq!((eof, closing.await.unwrap().unwrap()), (0, Lingered::Ended));
    assert_eq!(start.elapsed(), secs(0));
}

#[tokio::test(start_paused = true)]
async fn a_lingering_close_gives_up_on_silence() {
    let start = Instant::now();
    let io = Script::new().pause(secs(4)).bytes("x");

    let ended = linger(io, bounds()).await.unwrap();

    assert_eq!((ended, start.elapsed()), (Lingered::GaveUp, secs(9)));
}

#[tokio::test(start_paused = true)]
async fn a_lingering_close_is_bounded_in_all_for_a_peer_that_goes_on() {
    let start = Instant::now();
    let mut io = Script::new();
    for _ in 0..100 {
        io = io.bytes("x").pause(millis(4_500));
    }

    let ended = linger(io, bounds()).await.unwrap();

    assert_eq!((ended, start.elapsed()), (Lingered::GaveUp, secs(30)));
}

#[tokio::test(start_paused = true)]
async fn a_lingering_close_is_bounded_in_bytes() {
    let start = Instant::now();
    let io = Script::new()
        .bytes([0; 10])
        .bytes([0; 10]);

    let ended = linger(io, bounds().bytes(20))
        .await
        .unwrap();

    assert_eq!((ended, start.elapsed()), (Lingered::GaveUp, secs(0)));
}

#[tokio::test(start_paused = true)]
async fn a_lingering_close_without_bounds_waits_for_the_peer() {
    let forever = std::time::Duration::MAX;
    let io = Script::new().pause(secs(86_400)).end();

    let ended = linger(
        io,
        Linger::default()
            .total(forever)
            .quiet(forever),
    )
    .await;

    assert_eq!(ended.unwrap(), Lingered::Ended);
}

// === Helpers

async fn write_vectored<I: AsyncWrite + Unpin>(io: &mut I, parts: [&[u8]; 2]) -> io::Result<usize> {
    let parts = parts.map(IoSlice::new);
    poll_fn(|cx| Pin::new(&mut *io).poll_write_vectored(cx, &parts)).await
}

/// The stream that `layer` hands down for `io`.
fn through<L, J>(layer: L, io: Any) -> Any
where
    L: Layer<Keep<J>>,
    L::Service: Service<Conn<Any>, Response = ()>,
    J: Io,
{
    let (sender, kept) = std::sync::mpsc::channel();
    // The future is over: the stream is in the channel.
    drop(
        layer
            .layer(Keep(sender))
            .call(Conn::new(io, ())),
    );
    Box::new(kept.recv().unwrap())
}

/// Hands its stream out and is done.
struct Keep<J>(std::sync::mpsc::Sender<Conn<J>>);

impl<J> Clone for Keep<J> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<J: Io> Service<Conn<J>> for Keep<J> {
    type Response = ();
    type Error = BoxError;
    type Future = std::future::Ready<Result<(), BoxError>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), BoxError>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, conn: Conn<J>) -> Self::Future {
        self.0.send(conn).unwrap();
        std::future::ready(Ok(()))
    }
}

/// A `TlsIo` over `io`, which takes over once the handshake is done.
#[cfg(feature = "tls")]
async fn encrypted<I: Io>(
    io: I,
) -> (
    Conn<TlsIo<After<I>>>,
    tokio_rustls::client::TlsStream<tokio::io::DuplexStream>,
) {
    let authority = Authority::new("town hall");
    let config = authority.server(&["a.test"]).serving();
    let (near, far) = duplex(64 * 1024);
    let (io, is_done) = After::new(near, io);
    let (sender, kept) = std::sync::mpsc::channel();
    let accepting = TlsAcceptLayer::new(config)
        .layer(Keep(sender))
        .call(Conn::new(io, ()));
    let connecting = connect(authority.trusting(), "a.test", far);
    let (accepted, connected) = tokio::join!(accepting, connecting);
    accepted.unwrap();
    is_done.store(true, Relaxed);
    (kept.recv().unwrap(), connected.unwrap())
}

/// The same for a connection that we open.
#[cfg(feature = "tls")]
async fn encrypted_by_us<I: Io>(io: I) -> (Conn<TlsClientIo<After<I>>>, impl Sized) {
    let authority = Authority::new("town hall");
    let config = authority.server(&["a.test"]).serving();
    let (near, far) = duplex(64 * 1024);
    let (io, is_done) = After::new(near, io);
    let (sender, kept) = std::sync::mpsc::channel();
    let accepting = TlsAcceptLayer::new(config)
        .layer(Keep(sender))
        .call(Conn::new(far, ()));
    let mut io = Some(io);
    let connecting = TlsConnectLayer::new(authority.trusting())
        .layer(tower::service_fn(move |_: &'static str| {
            let io = io.take().unwrap();
            async move { Ok::<_, BoxError>(Conn::new(io, ())) }
        }))
        .oneshot("a.test:1");
    let (accepted, connected) = tokio::join!(accepting, connecting);
    accepted.unwrap();
    is_done.store(true, Relaxed);
    (connected.unwrap(), kept.recv().unwrap())
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (near.unwrap(), far.unwrap().0)
}
