//! Requests with ids over real sockets: peers that read nothing, and a drain in the middle of it all.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::OwnedWriteHalf,
    time::{Instant, sleep, timeout},
};
use tokio_util::codec::{Decoder, Encoder};
use tower::ServiceBuilder;
use tower_net::{
    Deadline, Server,
    deadline::Deadlines,
    frame::{Framing, Request, RpcCodec, RpcFrame, RpcLayer},
};

use crate::{
    child::Child,
    kernel,
    peer::{End, Peer, alone, soon},
    stack::{FAR, Settings},
};

/// Of the server whose memory is watched.
pub(crate) fn settings() -> Settings {
    Settings {
        deadlines: Deadlines::none()
            .age_jitter(0.0)
            .write_stall(STALL),
        framing: Framing::default().multiplexed(DEPTH),
        rpc: true,
        ..Settings::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_takes_no_reply_is_reset_at_the_write_stall_and_costs_no_memory() {
    let _machine = alone().await;
    let mut server = Child::serve("multiplexed");
    let mut good = Client::new(Peer::connect(server.addr).await);
    good.call("hello").await;
    let before = server.number("memory");

    // Half of them ask for replies that are there at once, half for such as are late. The requests are long, so that
    // the kernel has soon enough of them.
    let begun = Instant::now();
    let mut peers: Vec<_> = join_all((0..STALLED).map(|_| Client::small(server.addr))).await;
    let requests = ["big 16384", "late 16384"].map(|request| format!("{request:1000}"));
    let flood = peers
        .iter_mut()
        .zip(requests.iter().cycle())
        .map(|(peer, request)| peer.flood(request));
    join_all(flood).await;
    let mut peak = 0;
    while server.number("active") > 1 {
        assert!(begun.elapsed() < FAR / 2, "not cut");
        peak = peak.max(server.number("memory"));
        good.call("still here").await;
        sleep(Duration::from_millis(200)).await;
    }

    assert!(begun.elapsed() >= STALL);
    // For each: replies up to the high-water mark and one more, in a buffer that has doubled; what one read brought, and
    // what requests in flight keep of two more.
    let bound = STALLED as u64 * (2 * (64 + 16) + 3 * 64);
    assert!(peak < before + bound, "from {before} to {peak} KiB");
    for peer in &mut peers {
        let (_, end) = peer.peer.end().await;
        assert_eq!(end, End::Reset);
    }
    let left = kernel::sockets_at(server.addr.port());
    assert!(
        left.iter()
            .all(|socket| socket.unsent == 0),
        "{left:?}"
    );
    let report = server.drained();
    assert_eq!(report["closed.write_stall"], STALLED as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_answers_what_was_taken_and_says_which_that_is() {
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&begun);
    let stack = ServiceBuilder::new()
        .layer(RpcLayer::new(1024))
        .service_fn(move |request: Request<Bytes>| {
            let number = counted.fetch_add(1, Relaxed);
            async move {
                if number % 3 > 0 {
                    sleep(Duration::from_millis(number as u64 % 20)).await;
                }
                Ok::<_, io::Error>(request.into_message())
            }
        });
    let server = Server::bind("127.0.0.1:0")
        .await
        .unwrap();
    let addr = server.local_addr().unwrap();
    let serve = server.serve(stack).drain_for(FAR);
    let handle = serve.handle();
    let serving = tokio::spawn(serve.into_future());

    let clients = (0..CLIENTS).map(|_| tokio::spawn(ask_until_told(addr)));
    let clients: Vec<_> = clients.collect();
    sleep(Duration::from_millis(300)).await;
    handle.shutdown();
    let mut answered = 0;
    for client in clients {
        answered += soon(client).await.unwrap();
    }
    let report = soon(serving).await.unwrap().unwrap();

    assert!(answered > 10 * CLIENTS, "{answered}");
    assert_eq!(answered, begun.load(Relaxed));
    assert_eq!((report.opened(), report.cut()), (CLIENTS as u64, 0));
}

/// Asks without a pause, and once the server leaves waits for what it has taken: how many replies that were.
async fn ask_until_told(addr: SocketAddr) -> usize {
    let (mut read, write) = Peer::connect(addr)
        .await
        .stream
        .into_split();
    let asking = tokio::spawn(ask_on(write));
    let mut codec = RpcCodec::max_payload(1024);
    let (mut input, mut heard, mut last) = (BytesMut::new(), BTreeSet::new(), None);
    while soon(read.read_buf(&mut input))
        .await
        .unwrap()
        > 0
    {
        while let Some(frame) = codec.decode(&mut input).unwrap() {
            match frame {
                RpcFrame::Reply { id, payload, .. } => {
                    assert_eq!(payload, id.to_string());
                    assert!(heard.insert(id));
                }
                RpcFrame::Leaving { last: id, .. } => last = Some(id),
                other => panic!("{other:?}"),
            }
        }
        if last.is_some() {
            asking.abort();
        }
    }
    // None is missing, and there is none that was not to be taken.
    assert_eq!(heard.last().copied(), last);
    assert_eq!(heard.len() as u64, last.unwrap());
    heard.len()
}

async fn ask_on(mut write: OwnedWriteHalf) {
    for id in 1.. {
        let request = wire(id, &id.to_string());
        if write.write_all(&request).await.is_err() {
            break;
        }
        if id % 16 == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A client with one call at a time, or with no manners.
struct Client {
    peer: Peer,
    id: u64,
}

impl Client {
    fn new(peer: Peer) -> Self {
        Self { peer, id: 0 }
    }

    async fn small(addr: SocketAddr) -> Self {
        Self::new(Peer::with_small_buffer(addr).await)
    }

    async fn call(&mut self, request: &str) {
        self.id += 1;
        self.peer
            .send_raw(&wire(self.id, request))
            .await;
        let mut codec = RpcCodec::max_payload(1024);
        let mut input = BytesMut::new();
        loop {
            soon(self.peer.stream.read_buf(&mut input))
                .await
                .unwrap();
            if let Some(frame) = codec.decode(&mut input).unwrap() {
                assert_eq!(frame, RpcFrame::reply(self.id, request.to_owned()));
                return;
            }
        }
    }

    /// Asks over and over until the kernel takes no more for a while, or the server has had enough.
    async fn flood(&mut self, request: &str) {
        let frame = wire(1, request);
        let mut burst = frame.repeat(50);
        loop {
            for frame in burst.chunks_mut(frame.len()) {
                self.id += 1;
                frame[8..16].copy_from_slice(&self.id.to_be_bytes());
            }
            let sent = self.peer.stream.write_all(&burst);
            let Ok(Ok(())) = timeout(QUIET, sent).await else {
                return;
            };
        }
    }
}

fn wire(id: u64, request: &str) -> BytesMut {
    let mut wire = BytesMut::new();
    let request = RpcFrame::request(id, Deadline::NEVER, request.to_owned());
    RpcCodec::max_payload(1024)
        .encode(request, &mut wire)
        .unwrap();
    wire
}

const DEPTH: usize = 64;
const STALLED: usize = 60;
const STALL: Duration = Duration::from_secs(4);
const CLIENTS: usize = 20;

/// As long as a server that still reads would never take.
const QUIET: Duration = Duration::from_millis(500);
