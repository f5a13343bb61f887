//! The whole guard in front of a service, with a proxy and TLS: those who get nowhere, and those who do.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};
use tokio_rustls::rustls::ClientConfig;
use tower::ServiceBuilder;
use tower_net::{
    CloseReason, Handshakes, Report, Server,
    error::BoxError,
    frame::{Delimited, FrameLayer, Request},
    guard::{Guard, Settings},
    listen::Tcp,
    tls::{TlsAcceptLayer, TlsConfig},
};

use crate::{
    peer::{Peer, alone, soon},
    stack::Loop,
    support::pki::{Authority, connect_with},
};

/// A guarded service of lines, over TLS behind a proxy that is this machine.
struct Guarded {
    addr: SocketAddr,
    handshakes: Handshakes,
    client: Arc<ClientConfig>,
    server: Loop,
}

impl Guarded {
    async fn start(settings: Settings) -> Self {
        let authority = Authority::new("town hall");
        let guard = Guard::new(settings.proxy_protocol(["127.0.0.0/8"])).unwrap();
        let handshakes = guard.handshakes();
        let config = TlsConfig::new(authority.server(&["a.test"]).serving());
        let tls = TlsAcceptLayer::new(config).handshakes(guard.handshakes());
        let stack = ServiceBuilder::new()
            .layer(guard.handshake(tls))
            .layer(FrameLayer::new(Delimited::lines(64)))
            .service_fn(async |line: Request<Bytes>| {
                let peer = line.conn().peer().to_string();
                Ok::<_, BoxError>(Bytes::from(peer))
            });
        let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serve = Server::new(listener).serve(stack);
        Self {
            addr,
            handshakes,
            client: Arc::new(authority.trusting()),
            server: Loop::spawn(serve.handle(), serve.into_future()),
        }
    }

    /// A connection that says this, and stays; none if it was made to leave before.
    async fn say(&self, bytes: &[u8]) -> Option<Peer> {
        let mut peer = Peer::try_connect(self.addr)
            .await
            .ok()?;
        soon(peer.stream.write_all(bytes))
            .await
            .ok()?;
        Some(peer)
    }

    /// A whole visit by the book: header, handshake, request, reply.
    async fn visit(&self) -> Duration {
        let start = Instant::now();
        let mut tcp = soon(TcpStream::connect(self.addr))
            .await
            .unwrap();
        soon(tcp.write_all(HEADER))
            .await
            .unwrap();
        let mut tls = soon(connect_with(&self.client, "a.test", tcp))
            .await
            .unwrap();
        soon(tls.write_all(b"who\n"))
            .await
            .unwrap();
        let mut reply = [0; 15];
        soon(tls.read_exact(&mut reply))
            .await
            .unwrap();
        assert_eq!(&reply, b"203.0.113.7:99\n");
        start.elapsed()
    }

    /// The best of a few visits: what it costs, and not what the machine was busy with.
    async fn best_visit(&self) -> Duration {
        let mut best = Duration::MAX;
        for _ in 0..5 {
            best = best.min(self.visit().await);
        }
        best
    }

    async fn drained(self) -> Report {
        self.server.drained().await.unwrap()
    }
}

const HEADER: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 99 443\r\n";
const HALF_HEADER: &[u8] = b"PROXY TCP4 203.0.113.7 192.0";
const HALF_HELLO: &[u8] =
    b"PROXY TCP4 203.0.113.7 192.0.2.1 99 443\r\n\x16\x03\x01\x00\xc0\x01\x00\x00\xbc\x03\x03half";

/// Of each kind that does not get done.
const CROWD: usize = 500;

#[tokio::test(flavor = "multi_thread")]
async fn the_silent_those_with_half_a_header_and_those_with_half_a_hello_each_end_on_time_for_that()
{
    let _machine = alone().await;
    let within = Duration::from_secs(4);
    // More than there will be, so that each stays until its time is up.
    let guarded = Guarded::start(
        Settings::default()
            .handshakes(3 * CROWD + 100, within)
            .no_connect_rate()
            .per_peer(None),
    )
    .await;
    let before = guarded.best_visit().await;
    let start = Instant::now();

    let kinds = [&b""[..], HALF_HEADER, HALF_HELLO];
    let joining = (0..3 * CROWD).map(|number| guarded.say(kinds[number % 3]));
    let crowd: Vec<_> = join_all(joining)
        .await
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(crowd.len(), 3 * CROWD);
    let joined = start.elapsed();
    let beside = guarded.best_visit().await;
    let mut ends = Vec::new();
    for mut peer in crowd {
        ends.push(peer.end().await);
    }
    let over = start.elapsed();

    assert!(
        ends.iter()
            .all(|(heard, _)| *heard == 0)
    );
    assert!(
        over >= within && over < within + joined + SLACK,
        "{over:?}, joined within {joined:?}"
    );
    assert!(
        beside < before * 4 + SLACK / 10,
        "{beside:?} beside them, {before:?} without"
    );
    let report = guarded.drained().await;
    for reason in [
        CloseReason::FirstByte,
        CloseReason::ProxyTimeout,
        CloseReason::Handshake,
    ] {
        assert_eq!(
            report.closed_for(reason),
            CROWD as u64,
            "{reason}: {report}"
        );
    }
    assert_eq!(report.closed_for(CloseReason::Peer), 10, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_far_above_the_limit_of_handshakes_keeps_no_good_client_out() {
    let _machine = alone().await;
    let at_once = 60;
    let guarded = Guarded::start(
        Settings::default()
            .handshakes(at_once, Duration::from_secs(60))
            .no_connect_rate()
            .per_peer(None),
    )
    .await;
    let guarded = Arc::new(guarded);
    let before = guarded.best_visit().await;

    let (over, highest) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let watching = tokio::spawn({
        let (handshakes, over, highest) = (
            guarded.handshakes.clone(),
            Arc::clone(&over),
            Arc::clone(&highest),
        );
        async move {
            while !over.load(Relaxed) {
                highest.fetch_max(handshakes.pending(), Relaxed);
                sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let kinds = [&b""[..], HALF_HEADER, HALF_HELLO];
    let joining = (0..CROWD).map(|number| guarded.say(kinds[number % 3]));
    let crowd = join_all(joining).await;
    let beside = guarded.best_visit().await;
    over.store(true, Relaxed);
    watching.await.unwrap();

    assert_eq!(highest.load(Relaxed), at_once);
    assert!(
        beside < before * 4 + SLACK / 10,
        "{beside:?} beside them, {before:?} without"
    );
    drop(crowd);
    let Ok(guarded) = Arc::try_unwrap(guarded) else {
        panic!("somebody still has it");
    };
    let report = guarded.drained().await;
    let evicted = report.closed_for(CloseReason::HandshakeLimit);
    assert!(evicted >= (CROWD - at_once) as u64, "{report}");
}

/// What a busy machine may take for itself.
const SLACK: Duration = Duration::from_secs(3);
