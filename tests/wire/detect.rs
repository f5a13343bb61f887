//! One port for several protocols, over real sockets.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        pki_types::{PrivateKeyDer, ServerName},
    },
};
use tower::service_fn;
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, Server,
    detect::{DetectLayer, Protocol},
    error::BoxError,
    io::RewoundIo,
    listen::Tcp,
};

use crate::{
    peer::{End, Peer, soon, until},
    stack::{Loop, Settings},
};

type Plain = Conn<RewoundIo<TcpStream>>;

/// A certificate for `name`, for both sides.
fn certified(name: &str) -> (TlsAcceptor, TlsConnector) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let cert = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut roots = RootCertStore::empty();
    roots.add(cert.clone()).unwrap();
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .unwrap();
    let client = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server).into(), Arc::new(client).into())
}

/// Terminates TLS, and sends back the first five bytes.
async fn echo_in_tls(acceptor: TlsAcceptor, conn: Plain) -> Result<(), BoxError> {
    let mut stream = acceptor.accept(conn).await?;
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).await?;
    stream.write_all(&bytes).await?;
    stream.shutdown().await?;
    Ok(())
}

/// Reads a request head, and answers with its length.
async fn web(mut conn: Plain) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(conn.read_u8().await?);
    }
    let reply = format!("HTTP/1.1 200 OK\r\nx-read: {}\r\n\r\n", head.len());
    conn.write_all(reply.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_serves_tls_by_name_and_http_and_frames_and_drains_the_silent() {
    let (acceptor, connector) = certified("tls.example");
    let stack = Settings::default().stack();
    let detect = DetectLayer::new()
        .route(
            Protocol::sni(["*.example"]).unwrap(),
            service_fn(move |conn: Plain| echo_in_tls(acceptor.clone(), conn)),
        )
        .route(Protocol::http1(), service_fn(web));
    let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Server::new(listener).serve(detect.layer(stack.service));
    let server = Loop::spawn(serve.handle(), serve.into_future());

    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("tls.example").unwrap();
    let mut tls = soon(connector.connect(name, stream))
        .await
        .unwrap();
    tls.write_all(b"hello").await.unwrap();
    let mut echoed = Vec::new();
    soon(tls.read_to_end(&mut echoed))
        .await
        .unwrap();
    assert_eq!(echoed, b"hello");

    let mut http = TcpStream::connect(addr).await.unwrap();
    http.write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut reply = String::new();
    soon(http.read_to_string(&mut reply))
        .await
        .unwrap();
    assert_eq!(reply, "HTTP/1.1 200 OK\r\nx-read: 18\r\n\r\n");

    // Both have seen their end, and the server may not have counted it yet.
    until(|| server.handle.open() == 0).await;
    let mut frames = Peer::connect(addr).await;
    assert_eq!(frames.call("hello").await.unwrap(), b"hello");

    let mut silent = Peer::connect(addr).await;
    until(|| server.handle.open() == 2).await;
    let report = server.drained().await.unwrap();
    assert_eq!(silent.end().await, (0, End::Closed));
    assert_eq!(report.closed_for(CloseReason::Drain), 2, "{report}");
}
