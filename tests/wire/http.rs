//! The crossing over real sockets: what the kernel does to a response that is closed behind.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tower::{ServiceBuilder, service_fn};
use tower_net::{
    CloseReason, Conn, ConnInfo, deadline::DeadlineLayer, error::BoxError, http::HttpLayer,
};
use tower_service::Service;

use crate::peer::soon;

type Served = JoinHandle<Result<(), BoxError>>;

/// Both ends of a connection: a client's, and one that answers every request with so many bytes.
async fn connected(bytes: usize) -> (TcpStream, Arc<ConnInfo>, Served) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, accepted) = tokio::join!(client, listener.accept());
    let conn = Conn::try_from(accepted.unwrap().0).unwrap();
    let info = Arc::clone(conn.info());
    let mut service = ServiceBuilder::new()
        .layer(DeadlineLayer::default())
        .layer(HttpLayer::default())
        .service(service_fn(move |_: Request<Incoming>| async move {
            let body = Bytes::from(vec![b'x'; bytes]);
            Ok::<_, BoxError>(Response::new(Full::new(body)))
        }));
    let served = tokio::spawn(async move { service.call(conn).await });
    (client.unwrap(), info, served)
}

#[tokio::test]
async fn a_last_response_arrives_whole_though_more_was_sent_than_was_read() {
    let bytes = 8 << 20;
    let (mut client, info, served) = connected(bytes).await;
    let request = "GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    client
        .write_all(request.repeat(10_000).as_bytes())
        .await
        .unwrap();

    let mut heard = Vec::new();
    let all = soon(client.read_to_end(&mut heard)).await;

    assert!(all.is_ok(), "{all:?} after {}", heard.len());
    assert!(heard.len() > bytes && heard.ends_with(b"x"));
    drop(client);
    soon(served).await.unwrap().unwrap();
    assert_eq!(info.close_reason(), Some(CloseReason::Served));
}
