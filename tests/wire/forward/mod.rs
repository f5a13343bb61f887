//! Tunnels between real sockets: through pipes, through buffers, behind TLS.

mod bytes;
mod ends;
mod example;

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinHandle,
};
use tower::{Service, ServiceBuilder, service_fn};
use tower_net::{
    Conn, ConnInfo, Report, Server, ServerHandle,
    error::BoxError,
    forward::{Forward, Timeouts},
    listen::Tcp,
};

use crate::{peer::soon, support::random::Random};

/// A proxy on a free port, and the upstream that it forwards to.
struct Proxy {
    addr: SocketAddr,
    upstream: TcpListener,
    accepted: UnboundedReceiver<Arc<ConnInfo>>,
    handle: ServerHandle,
    serving: JoinHandle<Report>,
}

/// To this upstream, without any settings.
fn forward(
    to: SocketAddr,
) -> Forward<
    impl Service<SocketAddr, Response = Conn<TcpStream>, Error = BoxError, Future: Send>
    + Clone
    + Send
    + 'static,
    SocketAddr,
> {
    let dial = service_fn(async |to: SocketAddr| {
        let stream = TcpStream::connect(to).await?;
        Ok::<_, BoxError>(Conn::try_from(stream)?)
    });
    Forward::to(dial, to)
}

impl Proxy {
    /// With nothing around the tunnels.
    async fn plain() -> Self {
        Self::start(forward).await
    }

    async fn with(timeouts: Timeouts) -> Self {
        Self::start(|to| forward(to).timeouts(timeouts).unwrap()).await
    }

    /// With the stack that is made for the upstream.
    async fn start<S>(stack: impl FnOnce(SocketAddr) -> S) -> Self
    where
        S: Service<Conn<TcpStream>, Response = (), Error = BoxError, Future: Send>,
        S: Clone + Send + 'static,
    {
        let upstream = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap();
        let stack = stack(upstream.local_addr().unwrap());
        let (sender, accepted) = unbounded_channel();
        let stack = ServiceBuilder::new()
            .map_request(move |conn: Conn<TcpStream>| {
                // A test that does not ask for it has gone on without.
                let _unasked = sender.send(Arc::clone(conn.info()));
                conn
            })
            .service(stack);
        let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serve = Server::new(listener).serve(stack);
        let handle = serve.handle();
        Self {
            addr,
            upstream,
            accepted,
            handle,
            serving: tokio::spawn(async { serve.await.unwrap() }),
        }
    }

    /// A new tunnel: its client's end, its upstream's end, and what is known of it.
    async fn open(&mut self) -> (TcpStream, TcpStream, Arc<ConnInfo>) {
        let client = soon(TcpStream::connect(self.addr))
            .await
            .unwrap();
        let (upstream, _) = soon(self.upstream.accept())
            .await
            .unwrap();
        let info = soon(self.accepted.recv())
            .await
            .unwrap();
        (client, upstream, info)
    }

    async fn drained(self) -> Report {
        self.handle.shutdown();
        soon(self.serving).await.unwrap()
    }
}

/// Sends so many bytes, none like the next, and then an end: their checksum.
async fn send(io: &mut (impl AsyncWrite + Unpin), length: usize) -> u32 {
    let mut random = Random::new(length as u64 | 1);
    let block: Vec<_> = (0..PIECE * 3)
        .map(|_| random.below(256) as u8)
        .collect();
    let (mut sum, mut sent) = (0, 0);
    while sent < length {
        let from = random.among(0, PIECE);
        let piece = &block[from..from + (length - sent).min(random.among(1, PIECE * 2))];
        soon(io.write_all(piece)).await.unwrap();
        sum = crc32c::crc32c_append(sum, piece);
        sent += piece.len();
    }
    soon(io.shutdown()).await.unwrap();
    sum
}

/// Receives all until the end: how many, and their checksum.
async fn receive(io: &mut (impl AsyncRead + Unpin)) -> (usize, u32) {
    let mut piece = vec![0; PIECE];
    let (mut sum, mut received) = (0, 0);
    loop {
        let read = soon(io.read(&mut piece)).await.unwrap();
        if read == 0 {
            return (received, sum);
        }
        sum = crc32c::crc32c_append(sum, &piece[..read]);
        received += read;
    }
}

const PIECE: usize = 64 * 1024;
