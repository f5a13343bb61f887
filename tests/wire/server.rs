//! A server and its listeners, its limits, and the panics of its services.

use std::{
    future::{Ready, pending, ready},
    io,
    panic::resume_unwind,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    net::TcpStream,
    sync::mpsc,
    time::Instant,
};
use tokio_util::net::Listener;
use tower::{Service, service_fn};
use tower_net::{
    Addr, CloseReason, Conn, ServeCause, Server, io::Io, limit::OverLimit, listen::Tcp,
};

use crate::{
    peer::{End, Peer, frame, soon, until},
    stack::{Loop, Settings},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_will_never_be_ready_ends_the_server_with_its_error() {
    let listener = Tcp::bind("127.0.0.1:0").await.unwrap();

    let ended = soon(
        Server::new(listener)
            .serve(NeverReady)
            .into_future(),
    )
    .await;

    let error = ended.unwrap_err();
    assert!(matches!(error.cause(), ServeCause::Service(_)), "{error}");
}

#[test]
fn a_runtime_that_cannot_keep_time_is_an_error_before_the_first_connection() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();

    let ended = runtime.block_on(async {
        let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
        let stack = Settings::default().stack();
        Server::new(listener)
            .serve(stack.service)
            .await
    });

    assert!(matches!(ended.unwrap_err().cause(), ServeCause::NoTimer(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_and_a_stream_of_the_users_own_are_served_like_any_other() {
    let (connect, queue) = mpsc::channel(1);
    let stack = Settings::default().stack();
    let serve = Server::new(Switchboard { queue }).serve(stack.service);
    let handle = serve.handle();
    let serving = tokio::spawn(serve.into_future());

    let (near, mut far) = duplex(64);
    connect.send(near).await.unwrap();
    far.write_all(&frame("hello"))
        .await
        .unwrap();
    let mut reply = [0; 9];
    soon(tokio::io::AsyncReadExt::read_exact(&mut far, &mut reply))
        .await
        .unwrap();
    handle.shutdown();
    let report = soon(serving).await.unwrap().unwrap();

    assert_eq!(reply.as_slice(), frame("hello"));
    assert_eq!(report.closed_for(CloseReason::Drain), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_knows_its_peer_its_listener_and_our_end() {
    let plain = Tcp::bind("127.0.0.1:0").await.unwrap();
    let named = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = named.local_addr().unwrap();
    let (tell, mut told) = mpsc::unbounded_channel();
    let service = service_fn(move |conn: Conn<TcpStream>| {
        let info = conn.info();
        let facts = (
            info.peer().clone(),
            info.local().clone(),
            info.listener().map(str::to_owned),
        );
        tell.send(facts).unwrap();
        ready(Ok::<_, io::Error>(()))
    });
    let serve = Server::new(plain)
        .named("second", named)
        .serve(service);
    let server = Loop::spawn(serve.handle(), serve.into_future());

    let peer = Peer::connect(addr).await;
    let facts = soon(told.recv()).await.unwrap();

    let ours = Addr::Tcp(peer.stream.local_addr().unwrap());
    assert_eq!(facts, (ours, Addr::Tcp(addr), Some("second".to_owned())));
    until(|| server.handle.open() == 0).await;
    let report = server.drained().await.unwrap();
    assert_eq!(report.closed_for(CloseReason::Served), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_as_often_as_there_are_places_leaves_every_place_free() {
    let limit = 8;
    let server = Settings {
        limit,
        ..Settings::default()
    }
    .start()
    .await;

    for _ in 0..limit * 3 {
        let mut peer = Peer::connect(server.addr).await;
        assert_eq!(peer.call("panic").await.unwrap(), b"panic");
        assert_eq!(peer.end().await, (0, End::Closed));
        drop(peer);
        until(|| server.places.in_use() == 0).await;
    }
    let mut all = Vec::new();
    for _ in 0..limit {
        let mut peer = Peer::connect(server.addr).await;
        peer.call("hello").await.unwrap();
        all.push(peer);
    }

    assert_eq!(server.places.in_use(), limit);
    let tally = server.tally.clone();
    let report = server.drained().await;
    assert_eq!(report.closed_for(CloseReason::Panic), limit as u64 * 3);
    assert_eq!(report.closed_for(CloseReason::Drain), limit as u64);
    assert_eq!(tally.snapshot().active(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_service_may_panic_in_its_call_in_its_future_and_in_its_drop() {
    let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let turns = Arc::new(AtomicU64::new(0));
    let taken = Arc::clone(&turns);
    let service = service_fn(move |conn: Conn<TcpStream>| {
        let turn = taken.fetch_add(1, Relaxed);
        if turn == 0 {
            resume_unwind(Box::new("in the call"));
        }
        async move {
            let _held = (turn >= 2).then_some(PanicsOnDrop);
            let _conn = conn;
            if turn == 1 {
                resume_unwind(Box::new("in the future"));
            }
            if turn == 3 {
                pending::<()>().await;
            }
            Ok::<_, io::Error>(())
        }
    });
    let serve = Server::new(listener).serve(service);
    let server = Loop::spawn(serve.handle(), serve.into_future());

    for _ in 0..3 {
        assert_eq!(Peer::connect(addr).await.end().await, (0, End::Closed));
    }
    let _open = Peer::connect(addr).await;
    until(|| turns.load(Relaxed) == 4).await;
    server.handle.cut();

    let report = soon(server.serving)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(report.closed_for(CloseReason::Panic), 3, "{report}");
    assert_eq!(report.closed_for(CloseReason::Cut), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_limit_that_waits_the_surplus_stays_in_the_backlog_until_there_is_a_place() {
    let server = Settings {
        limit: 2,
        over: OverLimit::Wait,
        ..Settings::default()
    }
    .start()
    .await;
    let mut first = Peer::connect(server.addr).await;
    let mut second = Peer::connect(server.addr).await;
    first.call("hello").await.unwrap();
    second.call("hello").await.unwrap();

    let mut surplus = Peer::connect(server.addr).await;
    surplus.send("my turn").await;
    for _ in 0..200 {
        first.call("hello").await.unwrap();
        assert_eq!(server.tally.snapshot().opened(), 2);
    }
    drop(second);

    assert_eq!(surplus.receive().await.unwrap(), b"my turn");
    assert_eq!(server.places.in_use(), 2);
    let report = server.drained().await;
    assert_eq!(report.closed_for(CloseReason::Limit), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_limit_that_waits_for_a_time_the_surplus_is_reset_after_it() {
    let patience = Duration::from_millis(400);
    let server = Settings {
        limit: 1,
        over: OverLimit::WaitUpTo(patience),
        ..Settings::default()
    }
    .start()
    .await;
    // It may begin to wait as soon as the place is taken.
    let begun = Instant::now();
    let mut first = Peer::connect(server.addr).await;
    first.call("hello").await.unwrap();

    let mut surplus = Peer::connect(server.addr).await;
    let end = surplus.end().await;
    let waited = begun.elapsed();
    drop(first);
    until(|| server.handle.open() == 0).await;
    let mut next = Peer::connect(server.addr).await;

    assert_eq!(end, (0, End::Reset));
    assert!(waited >= patience, "{waited:?}");
    assert_eq!(next.call("hello").await.unwrap(), b"hello");
    let report = server.drained().await;
    assert_eq!(report.closed_for(CloseReason::Limit), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_not_held_by_a_listener_that_waits_for_a_connection() {
    let (one, two) = (
        Tcp::bind("127.0.0.1:0").await.unwrap(),
        Tcp::bind("127.0.0.1:0").await.unwrap(),
    );
    let addrs = [one.local_addr().unwrap(), two.local_addr().unwrap()];
    let stack = Settings {
        limit: 1,
        over: OverLimit::Wait,
        ..Settings::default()
    }
    .stack();
    let serve = Server::from_listeners([one, two]).serve(stack.service);
    let server = Loop::spawn(serve.handle(), serve.into_future());

    for turn in 0..50 {
        let mut peer = Peer::connect(addrs[turn % 2]).await;
        peer.call("first come").await.unwrap();
        let mut other = Peer::connect(addrs[(turn + 1) % 2]).await;
        other.send("first served").await;
        drop(peer);
        other.receive().await.unwrap();
    }

    until(|| stack.places.in_use() == 0).await;
    assert_eq!(server.drained().await.unwrap().opened(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_listener_a_server_only_drains() {
    let stack = Settings::default().stack();
    let serve = Server::<Tcp>::from_listeners([]).serve(stack.service);
    let server = Loop::spawn(serve.handle(), serve.into_future());

    let report = server.drained().await.unwrap();

    assert_eq!(report.opened(), 0);
    assert!(report.is_clean());
}

/// A service that says so.
#[derive(Clone)]
struct NeverReady;

impl Service<Conn<TcpStream>> for NeverReady {
    type Response = ();
    type Error = io::Error;
    type Future = Ready<io::Result<()>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::Error::other("never")))
    }

    fn call(&mut self, _: Conn<TcpStream>) -> Self::Future {
        unreachable!("it was never ready")
    }
}

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        resume_unwind(Box::new("in the drop"));
    }
}

/// A listener that is handed its streams.
struct Switchboard {
    queue: mpsc::Receiver<DuplexStream>,
}

impl Listener for Switchboard {
    type Io = Line;
    type Addr = ();

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Line, ())>> {
        match self.queue.poll_recv(cx) {
            Poll::Ready(Some(stream)) => Poll::Ready(Ok((Line(stream), ()))),
            _ => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream of the user's own.
struct Line(DuplexStream);

impl Io for Line {}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
