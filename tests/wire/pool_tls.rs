//! Pooled connections through TLS, of whose socket the pool knows: what arrives may be for TLS alone.

use std::{
    net::{SocketAddr, TcpListener as Listening, TcpStream as Near},
    sync::{Arc, mpsc},
    task::Poll,
    thread,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Builder,
};
use tokio_rustls::TlsAcceptor;
use tokio_test::task;
use tower::{ServiceExt, service_fn, util::BoxCloneService};
use tower_layer::Layer;
use tower_net::{
    Conn,
    error::BoxError,
    io::Io,
    pool::{Pool, PoolLayer, PooledIo, Pooling, Served},
    tls::{TlsClientIo, TlsConnectLayer, rustls::pki_types::ServerName},
};
use tower_service::Service;

use crate::{
    kernel::{State, sockets_at},
    peer::soon,
    support::pki::Authority,
};

/// What a server does next, which has answered once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Changes its keys, which is said in a record of its own.
    ChangeKeys,
    /// Says goodbye and closes.
    Close,
}

/// Serves one connection, in a thread of its own: answers four bytes with the same, and then does as it is told.
fn serve(authority: &Authority) -> (SocketAddr, mpsc::Sender<Next>) {
    let listener = Listening::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(authority.server(&["a.test"]).serving()));
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        runtime.block_on(async {
            let stream = TcpStream::from_std(stream).unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            loop {
                let mut request = [0; 4];
                if stream
                    .read_exact(&mut request)
                    .await
                    .is_err()
                {
                    return;
                }
                stream
                    .write_all(&request)
                    .await
                    .unwrap();
                stream.flush().await.unwrap();
                match told.recv() {
                    Ok(Next::ChangeKeys) => {
                        let (_, session) = stream.get_mut();
                        session.refresh_traffic_keys().unwrap();
                        stream.flush().await.unwrap();
                    }
                    Ok(Next::Close) => return stream.shutdown().await.unwrap(),
                    Err(_) => return,
                }
            }
        });
    });
    (addr, tell)
}

type Encrypted = TlsClientIo<TcpStream>;
type Connector = BoxCloneService<SocketAddr, Conn<Encrypted>, BoxError>;

fn pool(authority: &Authority) -> Pool<Connector, SocketAddr, SocketAddr, Encrypted> {
    let name = ServerName::try_from("a.test").unwrap();
    let tcp = service_fn(async |to: SocketAddr| Conn::try_from(TcpStream::connect(to).await?));
    let connector = TlsConnectLayer::to(authority.trusting(), name).layer(tcp);
    let connector = BoxCloneService::new(connector.map_err(Into::into));
    PoolLayer::new("test", Pooling::default())
        .unwrap()
        .layer(connector)
}

async fn exchange(conn: &mut Conn<PooledIo<Encrypted>>) {
    let mut reply = [0; 4];
    conn.write_all(b"ping").await.unwrap();
    conn.flush().await.unwrap();
    conn.read_exact(&mut reply)
        .await
        .unwrap();
    assert_eq!(&reply, b"ping");
}

/// Another descriptor of the same socket.
fn socket_of(conn: &Conn<PooledIo<Encrypted>>) -> Near {
    conn.socket()
        .unwrap()
        .try_clone()
        .unwrap()
        .into()
}

/// Waits in a way that the runtime of this thread hears nothing of.
fn wait_for(mut condition: impl FnMut() -> bool) {
    let begun = SystemTime::now();
    while !condition() {
        assert!(begun.elapsed().unwrap() < Duration::from_secs(60));
        thread::yield_now();
    }
}

#[tokio::test]
async fn what_is_for_tls_alone_is_no_stray_byte_even_before_the_runtime_has_heard_of_it() {
    let authority = Authority::new("town hall");
    let (addr, server) = serve(&authority);
    let mut pool = pool(&authority);
    let mut conn = soon(pool.call(addr)).await.unwrap();
    soon(exchange(&mut conn)).await;
    let socket = socket_of(&conn);
    assert!(conn.reuse());

    server.send(Next::ChangeKeys).unwrap();
    wait_for(|| matches!(socket.peek(&mut [0; 1]), Ok(1)));
    let mut get = task::spawn(pool.call(addr));
    let Poll::Ready(Ok(mut conn)) = get.poll() else {
        panic!("it should not wait");
    };

    assert_eq!(conn.acquired().served(), Served::Idle);
    soon(exchange(&mut conn)).await;
    assert!(conn.reuse());
}

#[tokio::test]
async fn a_goodbye_that_the_runtime_has_not_heard_of_is_an_end() {
    let authority = Authority::new("town hall");
    let (addr, server) = serve(&authority);
    let mut pool = pool(&authority);
    let mut conn = soon(pool.call(addr)).await.unwrap();
    soon(exchange(&mut conn)).await;
    assert!(conn.reuse());

    server.send(Next::Close).unwrap();
    wait_for(|| {
        sockets_at(addr.port())
            .iter()
            .all(|socket| !matches!(socket.state, State::Established))
    });
    let mut get = task::spawn(pool.call(addr));

    // The listener is gone as well, and so the dial fails.
    assert!(get.poll().is_pending());
    assert_eq!(pool.handle().snapshot().idle(), 0);
}
