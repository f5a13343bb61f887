//! The limits for each peer, as the kernel and a client see them.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::Instant,
};
use tower::{ServiceBuilder, service_fn};
use tower_net::{
    Conn, Server,
    error::BoxError,
    io::Io,
    limit::{ConnectRateLayer, PerPeerLimitHandle, PerPeerLimitLayer, Surplus},
    listen::Tcp,
};

use crate::peer::{End, Peer, soon};

/// Servers with one limit between them; stopped when dropped.
struct Servers {
    addrs: Vec<SocketAddr>,
    places: PerPeerLimitHandle,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.tasks
            .iter()
            .for_each(JoinHandle::abort);
    }
}

/// Echoes whatever is sent.
async fn echo<I: Io>(conn: Conn<I>) -> Result<(), BoxError> {
    let (mut read, mut write) = tokio::io::split(conn);
    tokio::io::copy(&mut read, &mut write).await?;
    Ok(())
}

async fn servers(limit: PerPeerLimitLayer, rate: ConnectRateLayer, addrs: &[&str]) -> Servers {
    let mut servers = Servers {
        addrs: Vec::new(),
        places: limit.handle(),
        tasks: Vec::new(),
    };
    for addr in addrs {
        let listener = Tcp::options().ipv6_only(false);
        let server = Server::new(listener.bind(addr).await.unwrap());
        servers
            .addrs
            .push(server.local_addr().unwrap());
        let stack = ServiceBuilder::new()
            .layer(rate.clone())
            .layer(limit.clone())
            .service(service_fn(echo));
        let serving = server.serve(stack).into_future();
        servers
            .tasks
            .push(tokio::spawn(async move {
                serving.await.unwrap();
            }));
    }
    servers
}

fn limit(limit: usize) -> PerPeerLimitLayer {
    PerPeerLimitLayer::new(limit).unwrap()
}

fn no_rate() -> ConnectRateLayer {
    ConnectRateLayer::new(1e9, u32::MAX / 2).unwrap()
}

async fn is_echoed(stream: &mut TcpStream) {
    let mut reply = [0; 4];
    soon(stream.write_all(b"here"))
        .await
        .unwrap();
    soon(stream.read_exact(&mut reply))
        .await
        .unwrap();
    assert_eq!(&reply, b"here");
}

async fn none_left(servers: &Servers) {
    soon(async {
        while servers.places.peers() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn one_host_on_an_ipv4_and_a_dual_stack_listener_is_one_peer() {
    let servers = servers(limit(1), no_rate(), &["127.0.0.1:0", "[::]:0"]).await;
    let over_ipv4 = servers.addrs[0];
    // The listener sees this client as `::ffff:127.0.0.1`.
    let over_both = SocketAddr::new("127.0.0.1".parse().unwrap(), servers.addrs[1].port());
    let mut first = Peer::connect(over_ipv4).await;
    is_echoed(&mut first.stream).await;

    let (_, end) = Peer::connect(over_both)
        .await
        .end()
        .await;
    is_echoed(&mut first.stream).await;
    drop(first);
    none_left(&servers).await;
    let mut second = Peer::connect(over_both).await;

    assert_eq!(end, End::Reset);
    is_echoed(&mut second.stream).await;
    let top = servers.places.top(2);
    assert_eq!(top[0].network().unwrap().to_string(), "127.0.0.1/32");
    assert_eq!(top.len(), 1);
}

#[tokio::test]
async fn a_last_word_reaches_a_client_that_has_sent_what_nobody_reads() {
    let word = "503 too many connections\n";
    let limit = limit(1).surplus(Surplus::last_word(word));
    let servers = servers(limit, no_rate(), &["127.0.0.1:0"]).await;
    let mut first = Peer::connect(servers.addrs[0]).await;
    is_echoed(&mut first.stream).await;

    for _ in 0..20 {
        let mut refused = Peer::connect(servers.addrs[0])
            .await
            .stream;
        soon(refused.write_all(&[7; 16 * 1024]))
            .await
            .unwrap();
        let mut heard = String::new();
        soon(refused.read_to_string(&mut heard))
            .await
            .unwrap();
        assert_eq!(heard, word);
    }

    is_echoed(&mut first.stream).await;
}

#[tokio::test]
async fn a_client_that_goes_on_sending_after_the_last_word_is_reset() {
    let limit = limit(1).surplus(Surplus::last_word("bye"));
    let servers = servers(limit, no_rate(), &["127.0.0.1:0"]).await;
    let mut first = Peer::connect(servers.addrs[0]).await;
    is_echoed(&mut first.stream).await;

    let mut refused = Peer::connect(servers.addrs[0]).await;
    let (heard, end) = refused.end().await;
    // Its own side is still open, until it has sent more than is thrown away.
    soon(async {
        while refused
            .stream
            .write_all(b"x")
            .await
            .is_ok()
        {}
    })
    .await;

    assert_eq!((heard, end), (3, End::Closed));
    assert_eq!(servers.places.surplus_held(), 0);
}

#[tokio::test]
async fn a_client_that_may_not_come_yet_is_held_and_then_served() {
    let rate = ConnectRateLayer::new(4.0, 1).unwrap();
    let rate = rate.surplus(Surplus::WaitUpTo(Duration::from_secs(30)));
    let servers = servers(limit(100), rate, &["127.0.0.1:0"]).await;
    let start = Instant::now();

    let clients = (0..4).map(|_| {
        let addr = servers.addrs[0];
        tokio::spawn(async move {
            let mut client = Peer::connect(addr).await;
            is_echoed(&mut client.stream).await;
            start.elapsed()
        })
    });
    let mut served = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        served.push(client.await.unwrap());
    }
    served.sort();

    // The clock of the accept begins a little after ours.
    for (at, time) in (0..).zip(served) {
        assert!(time >= Duration::from_millis(250) * at, "{at}: {time:?}");
    }
}
