//! What we open: to OpenSSL, and through everything that a connection of ours may go through.

use std::{process::Command, sync::Arc};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_rustls::rustls::{ClientConfig, pki_types::ServerName};
use tower::{ServiceBuilder, ServiceExt};
use tower_net::{
    Conn, Server,
    connect::TcpConnector,
    deadline::ConnectDeadlineLayer,
    error::{BoxError, find},
    frame::{Delimited, FrameLayer, Request},
    io::{Io, Linger, Lingered, linger},
    listen::Tcp,
    meter::MeterConnectLayer,
    proxy_protocol::{Header, ProxyConnectLayer, ProxyProtocolLayer, Version},
    tls::{HandshakeFailure, TlsAcceptLayer, TlsConnectError, TlsConnectLayer, TlsVersion},
};

use crate::{
    peer::soon,
    stack::Loop,
    support::{
        pki::{Authority, BOTH, Folder},
        tool::Tool,
    },
};

/// OpenSSL's server for `a.test`, which gives each line back reversed, and wants a certificate if it is to.
struct SServer {
    authority: Authority,
    tool: Tool,
    _folder: Folder,
}

impl SServer {
    fn start(args: &str) -> Self {
        let authority = Authority::new("town hall");
        let folder = Folder::new();
        let (chain, key) = authority
            .server(&["a.test"])
            .write(&folder, "a");
        let roots = folder.write("ca.pem", &authority.pem());
        let tool = Tool::listening(|addr| {
            let mut command = Command::new("openssl");
            command
                .args(["s_server", "-quiet", "-rev", "-accept"])
                .arg(addr.to_string())
                .arg("-cert")
                .arg(&chain)
                .arg("-key")
                .arg(&key)
                .arg("-CAfile")
                .arg(&roots)
                .args(args.split_whitespace());
            command
        });
        Self {
            authority,
            tool,
            _folder: folder,
        }
    }

    async fn connect(
        &self,
        config: impl Into<Arc<ClientConfig>>,
    ) -> Result<Conn<impl Io>, BoxError> {
        let name = ServerName::try_from("a.test").unwrap();
        let connector = ServiceBuilder::new()
            .layer(TlsConnectLayer::to(config, name))
            .service(TcpConnector::new());
        soon(connector.oneshot(self.tool.addr)).await
    }
}

async fn ask<I: Io>(conn: &mut Conn<I>, line: &str) -> std::io::Result<String> {
    conn.write_all(format!("{line}\n").as_bytes())
        .await?;
    conn.flush().await?;
    let mut answer = vec![0; line.len() + 1];
    soon(conn.read_exact(&mut answer)).await?;
    Ok(String::from_utf8(answer).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_serves_us_in_both_versions_and_we_know_what_was_agreed_on() {
    let server = SServer::start("-alpn line");
    for (version, expected) in BOTH
        .into_iter()
        .zip([TlsVersion::Tls12, TlsVersion::Tls13])
    {
        let mut config = server.authority.trusting_of(&[version]);
        config.alpn_protocols = vec![b"h2".to_vec(), b"line".to_vec()];
        let config = Arc::new(config);

        for resumed in [false, true] {
            let mut conn = server
                .connect(Arc::clone(&config))
                .await
                .unwrap();
            assert_eq!(ask(&mut conn, "hello").await.unwrap(), "olleh\n");

            let known = conn.info().tls().unwrap();
            assert_eq!((known.version(), known.is_resumed()), (expected, resumed));
            assert_eq!(known.alpn(), Some(&b"line"[..]));
            let lingered = soon(linger(conn, Linger::default()))
                .await
                .unwrap();
            assert_eq!(lingered, Lingered::Ended);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_takes_our_certificate_and_refuses_us_without_one() {
    let server = SServer::start("-Verify 1 -verify_return_error");
    let alice = server.authority.client("alice");

    let mut known = server
        .connect(server.authority.trusting_as(&alice))
        .await
        .unwrap();
    let answer = ask(&mut known, "hello").await;
    drop(known);
    let old = server
        .connect(server.authority.trusting_of(&BOTH[..1]))
        .await;
    let mut stranger = server
        .connect(server.authority.trusting())
        .await
        .unwrap();
    let refused = ask(&mut stranger, "hello").await;

    assert_eq!(answer.unwrap(), "olleh\n");
    let old = old.map(drop).unwrap_err();
    let old = find::<TlsConnectError>(&*old).unwrap();
    assert!(
        matches!(
            old.failure(),
            HandshakeFailure::OurCertificate | HandshakeFailure::NoCommonCipher
        ),
        "{old:?}"
    );
    // It says so after the handshake.
    assert!(refused.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_goes_through_all_that_it_may_go_through() {
    let authority = Authority::new("town hall");
    let stack = ServiceBuilder::new()
        .layer(ProxyProtocolLayer::required_from(["127.0.0.0/8"]).unwrap())
        .layer(TlsAcceptLayer::new(
            authority
                .server(&["localhost"])
                .serving(),
        ))
        .layer(FrameLayer::new(Delimited::lines(1024)))
        .service_fn(async |request: Request<bytes::Bytes>| {
            Ok::<_, BoxError>(request.conn().peer().to_string())
        });
    let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = Server::new(listener).serve(stack);
    let server = Loop::spawn(serve.handle(), serve.into_future());
    let (meter, tally) = MeterConnectLayer::pair("backend");
    let client = "192.0.2.7:4711".parse().unwrap();
    let connector = ServiceBuilder::new()
        .layer(meter)
        .layer(ConnectDeadlineLayer::new(std::time::Duration::from_secs(50)).unwrap())
        .layer(TlsConnectLayer::new(authority.trusting()))
        .layer(ProxyConnectLayer::new(move |_: &(&str, u16), conn| {
            Header::tcp(Version::V2, client, conn.wire_peer().tcp().unwrap())
        }))
        .service(TcpConnector::new());

    let conn = soon(connector.oneshot(("localhost", port)))
        .await
        .unwrap();
    let mut conn = BufReader::new(conn);
    conn.write_all(b"whoami\n")
        .await
        .unwrap();
    conn.flush().await.unwrap();
    let mut line = String::new();
    soon(conn.read_line(&mut line))
        .await
        .unwrap();

    assert_eq!(line, "192.0.2.7:4711\n");
    drop(conn);
    let counts = tally.snapshot();
    let connections = counts.connections();
    // Plain text, and neither header nor handshake.
    assert_eq!((connections.written(), connections.read()), (7, 15));
    server.drained().await.unwrap();
}
