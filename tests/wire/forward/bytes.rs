//! All bytes arrive, whatever they go through.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
    time::sleep,
};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_net::{
    Conn,
    deadline::DeadlineLayer,
    error::{BoxError, find},
    forward::{Forward, Side, Tunnel, TunnelError},
    io::{Io, Pipe},
    limit::ConnectionLimitLayer,
    meter::MeterLayer,
    throttle::{Rate, Rates, ThrottleLayer},
    trace::TraceLayer,
};

use super::{Proxy, forward, receive, send};
use crate::peer::{alone, soon};

/// Sends so much both ways at once, each end its own half: what is known of the tunnel then.
async fn both_ways(proxy: &mut Proxy, length: usize) -> Tunnel {
    let (client, upstream, info) = proxy.open().await;
    let (mut client_reader, mut client_writer) = client.into_split();
    let (mut upstream_reader, mut upstream_writer) = upstream.into_split();

    let client = tokio::spawn(async move { send(&mut client_writer, length).await });
    let upstream = tokio::spawn(async move { send(&mut upstream_writer, length + 1).await });
    let at_upstream = tokio::spawn(async move { receive(&mut upstream_reader).await });
    let at_client = receive(&mut client_reader).await;

    assert_eq!(at_upstream.await.unwrap(), (length, client.await.unwrap()));
    assert_eq!(at_client, (length + 1, upstream.await.unwrap()));
    info.tunnel().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_two_sockets_bytes_go_through_pipes() {
    let _machine = alone().await;
    let mut proxy = Proxy::plain().await;

    let tunnel = both_ways(&mut proxy, LONG).await;

    assert_eq!(tunnel.to_upstream(), LONG as u64);
    assert_eq!(tunnel.to_client(), LONG as u64 + 1);
    assert!(tunnel.spliced() >= LONG as u64, "{tunnel:?}");
    assert!(proxy.drained().await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_counts_the_bytes_leaves_them_in_the_pipes_and_counts_them_all() {
    let _machine = alone().await;
    let (meter, tally) = MeterLayer::pair("wire");
    let mut proxy = Proxy::start(|to| {
        ServiceBuilder::new()
            .layer(meter)
            .layer(ConnectionLimitLayer::new(10).unwrap())
            .layer(TraceLayer::new())
            .layer(DeadlineLayer::default())
            .service(forward(to))
    })
    .await;

    let tunnel = both_ways(&mut proxy, LONG).await;

    assert!(tunnel.spliced() >= LONG as u64, "{tunnel:?}");
    assert!(proxy.drained().await.is_clean());
    let counted = tally.snapshot();
    assert_eq!(counted.read(), LONG as u64);
    assert_eq!(counted.written(), LONG as u64 + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_must_see_the_bytes_has_them_copied() {
    let _machine = alone().await;
    let rate = Rate::per_second(16 << 30);
    let throttle = ThrottleLayer::new(Rates::new().send(rate).receive(rate)).unwrap();
    let mut proxy = Proxy::start(|to| {
        ServiceBuilder::new()
            .layer(throttle)
            .service(forward(to))
    })
    .await;

    let tunnel = both_ways(&mut proxy, LONG).await;

    assert_eq!(tunnel.spliced(), 0);
    assert_eq!(tunnel.to_upstream(), LONG as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_splice_all_bytes_are_copied() {
    let _machine = alone().await;
    let mut proxy = Proxy::start(|to| forward(to).without_splice()).await;

    let tunnel = both_ways(&mut proxy, LONG).await;

    assert_eq!(tunnel.spliced(), 0);
    assert_eq!(tunnel.to_client(), LONG as u64 + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_sockets_have_pipes_as_well() {
    let (mut client, far) = UnixStream::pair().unwrap();
    let (near, mut upstream) = UnixStream::pair().unwrap();
    let near = Arc::new(std::sync::Mutex::new(Some(near)));
    let connector = service_fn(move |()| {
        let near = near.lock().unwrap().take().unwrap();
        async move { Ok::<_, BoxError>(Conn::new(near, ())) }
    });
    let conn = Conn::new(far, ());
    let info = Arc::clone(conn.info());
    let serving = tokio::spawn(Forward::to(connector, ()).oneshot(conn));

    let sending = tokio::spawn(async move { (send(&mut client, SHORT).await, client) });
    let received = receive(&mut upstream).await;
    let (sum, _client) = sending.await.unwrap();
    drop(upstream);

    assert_eq!(received, (SHORT, sum));
    soon(serving).await.unwrap().unwrap();
    let tunnel = info.tunnel().unwrap();
    assert!(tunnel.spliced() > 0, "{tunnel:?}");
}

#[tokio::test]
async fn a_unix_peer_that_is_gone_after_its_end_is_missed_as_well() {
    let (mut client, far) = UnixStream::pair().unwrap();
    let (near, mut upstream) = UnixStream::pair().unwrap();
    let near = Arc::new(std::sync::Mutex::new(Some(near)));
    let connector = service_fn(move |()| {
        let near = near.lock().unwrap().take().unwrap();
        async move { Ok::<_, BoxError>(Conn::new(near, ())) }
    });
    let serving = tokio::spawn(Forward::to(connector, ()).oneshot(Conn::new(far, ())));
    client.shutdown().await.unwrap();
    assert_eq!(
        soon(upstream.read(&mut [0; 1]))
            .await
            .unwrap(),
        0
    );

    drop(client);

    let error = soon(serving)
        .await
        .unwrap()
        .unwrap_err();
    let broken = find::<TunnelError>(&*error).unwrap();
    assert_eq!(broken.side(), Side::Client);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_messages_are_copied_and_cost_no_pipe() {
    let mut proxy = Proxy::plain().await;
    let (mut client, mut upstream, info) = proxy.open().await;

    for _ in 0..200 {
        client
            .write_all(&[7; 300])
            .await
            .unwrap();
        let mut heard = [0; 300];
        soon(upstream.read_exact(&mut heard))
            .await
            .unwrap();
        upstream
            .write_all(&heard)
            .await
            .unwrap();
        soon(client.read_exact(&mut heard))
            .await
            .unwrap();
    }

    let tunnel = info.tunnel().unwrap();
    assert_eq!(
        (tunnel.to_upstream(), tunnel.to_client(), tunnel.spliced()),
        (60_000, 60_000, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_was_blocked_for_a_while_misses_nothing_in_either_direction() {
    let splices: fn(std::net::SocketAddr) -> _ = |to| boxed(forward(to));
    let copies: fn(std::net::SocketAddr) -> _ = |to| boxed(forward(to).without_splice());
    for stack in [splices, copies] {
        for to_upstream in [true, false] {
            let mut proxy = Proxy::start(stack).await;
            let (client, upstream, info) = proxy.open().await;
            let (mut writes, mut reads) = match to_upstream {
                true => (client, upstream),
                false => (upstream, client),
            };
            let sending = tokio::spawn(async move { (send(&mut writes, SHORT).await, writes) });
            sleep(Duration::from_millis(300)).await;

            let received = receive(&mut reads).await;
            send(&mut reads, 1000).await;
            let (sum, mut writes) = sending.await.unwrap();

            assert_eq!(received, (SHORT, sum));
            assert_eq!(receive(&mut writes).await.0, 1000);
            let tunnel = info.tunnel().unwrap();
            let moved = tunnel.to_upstream() + tunnel.to_client();
            assert_eq!(moved, SHORT as u64 + 1000);
        }
    }
}

/// Says that it takes pipes, and then takes none.
struct Boaster {
    io: TcpStream,
    /// How much there was in the pipes that it was shown.
    shown: Arc<AtomicUsize>,
}

impl Io for Boaster {
    fn takes_pipes(&self) -> bool {
        true
    }

    fn poll_write_pipe(&mut self, _: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        self.shown
            .fetch_add(pipe.len(), Relaxed);
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

impl AsyncRead for Boaster {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Boaster {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_a_pipe_is_not_lost_to_a_stream_that_takes_none() {
    let shown = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&shown);
    let mut proxy = Proxy::start(|to| {
        let dial = service_fn(move |to: std::net::SocketAddr| {
            let shown = Arc::clone(&counts);
            async move {
                let io = TcpStream::connect(to).await?;
                Ok::<_, BoxError>(Conn::new(Boaster { io, shown }, to))
            }
        });
        Forward::to(dial, to)
    })
    .await;

    let tunnel = both_ways(&mut proxy, SHORT).await;

    assert!(shown.load(Relaxed) > 0);
    assert_eq!((tunnel.to_upstream(), tunnel.spliced()), (SHORT as u64, 0));
}

type Boxed = tower::util::BoxCloneService<Conn<TcpStream>, (), BoxError>;

fn boxed<S>(service: S) -> Boxed
where
    S: Service<Conn<TcpStream>, Response = (), Error = BoxError, Future: Send>,
    S: Clone + Send + 'static,
{
    Boxed::new(service)
}

#[cfg(feature = "tls")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_on_one_side_all_bytes_arrive_and_so_does_each_end() {
    use tower_net::tls::TlsAcceptLayer;

    use crate::support::pki::{Authority, connect};

    let authority = Authority::new("town hall");
    let config = Arc::new(authority.server(&["a.test"]).serving());
    let mut proxy = Proxy::start(|to| {
        ServiceBuilder::new()
            .layer(MeterLayer::new("wire"))
            .layer(TlsAcceptLayer::new(config))
            .layer(DeadlineLayer::default())
            .service(forward(to))
    })
    .await;
    for question in [10, SHORT] {
        let stream = TcpStream::connect(proxy.addr)
            .await
            .unwrap();
        let mut client = soon(connect(authority.trusting(), "a.test", stream))
            .await
            .unwrap();
        let (mut upstream, _) = soon(proxy.upstream.accept())
            .await
            .unwrap();
        let info = soon(proxy.accepted.recv())
            .await
            .unwrap();
        let asking = tokio::spawn(async move { (send(&mut client, question).await, client) });

        // Both readers let the other side fill all there is on the way.
        sleep(Duration::from_millis(300)).await;
        let asked = receive(&mut upstream).await;
        let answering = tokio::spawn(async move { send(&mut upstream, SHORT).await });
        sleep(Duration::from_millis(300)).await;
        let (sum, mut client) = asking.await.unwrap();
        let answered = receive(&mut client).await;

        assert_eq!(asked, (question, sum));
        assert_eq!(answered, (SHORT, answering.await.unwrap()));
        assert_eq!(info.tunnel().unwrap().spliced(), 0);
    }
    assert!(proxy.drained().await.is_clean());
}

/// What no buffers on the way can hold.
const SHORT: usize = 16 << 20;

const LONG: usize = 64 << 20;
