//! A handshake that succeeds, what is known after it, and how its stream ends.

use std::{
    io,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tower::{ServiceBuilder, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, ConnInfo, Handshakes,
    deadline::DeadlineLayer,
    error::{BoxError, find},
    frame::{CodecError, Delimited, FrameLayer, Framing, Request},
    io::{Io, Linger, Lingered, linger},
    meter::MeterLayer,
    tls::{TlsAcceptLayer, TlsConfig, TlsIo, TlsVersion},
    trace::TraceLayer,
};
use tower_service::Service;

use crate::{
    support::{
        hello::SplitHello,
        io::{Drip, Script},
        peer::serve,
        pki::{Authority, BOTH, Pair, connect, connect_with, provider},
        readings::recorded,
        service::{obey, secs},
    },
    trace::Log,
};

/// An authority, and a server of `example.org` and `a.test` that it vouches for.
pub(crate) fn town() -> (Authority, Pair) {
    let authority = Authority::new("town hall");
    let server = authority.server(&["example.org", "a.test"]);
    (authority, server)
}

/// Echoes until the client ends its side, and ends ours.
pub(crate) async fn echo<I: Io>(mut conn: Conn<TlsIo<I>>) -> Result<(), BoxError> {
    let mut buffer = [0; 256];
    loop {
        match conn.read(&mut buffer).await? {
            0 => break,
            read => conn.write_all(&buffer[..read]).await?,
        }
        conn.flush().await?;
    }
    conn.shutdown().await?;
    Ok(())
}

pub(crate) type Served = JoinHandle<Result<(), BoxError>>;

/// A connection through the layer to an echo: the client's end, what is known of it, and how it ends.
pub(crate) fn open(layer: &TlsAcceptLayer) -> (DuplexStream, Arc<ConnInfo>, Served) {
    let (near, far) = duplex(64 * 1024);
    let (info, served) = serve(near, layer.layer(service_fn(echo)));
    (far, info, served)
}

pub(crate) fn layer(config: ServerConfig) -> TlsAcceptLayer {
    TlsAcceptLayer::new(TlsConfig::new(config))
}

/// One exchange with an echo.
pub(crate) async fn exchange<I>(io: &mut I, word: &str) -> String
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    io.write_all(word.as_bytes())
        .await
        .unwrap();
    io.flush().await.unwrap();
    let mut heard = vec![0; word.len()];
    io.read_exact(&mut heard).await.unwrap();
    String::from_utf8(heard).unwrap()
}

// === What is known

#[tokio::test(start_paused = true)]
async fn what_the_handshake_settled_is_known_to_the_handler_in_both_versions() {
    let (authority, server) = town();
    for (version, expected) in [(&TLS12, TlsVersion::Tls12), (&TLS13, TlsVersion::Tls13)] {
        let mut config = server.serving();
        config.alpn_protocols = vec![b"h2".to_vec(), b"line".to_vec()];
        let (far, info, _served) = open(&layer(config));
        let mut client = authority.trusting_of(&[version]);
        client.alpn_protocols = vec![b"line".to_vec()];
        assert!(info.tls().is_none());

        let mut client = connect(client, "EXAMPLE.org", far)
            .await
            .unwrap();
        assert_eq!(exchange(&mut client, "hello").await, "hello");

        let tls = info.tls().unwrap();
        assert_eq!(tls.server_name(), Some("example.org"));
        assert_eq!(tls.alpn(), Some(&b"line"[..]));
        assert_eq!(tls.version(), expected);
        let suite = client
            .get_ref()
            .1
            .negotiated_cipher_suite();
        assert_eq!(Some(tls.cipher_suite()), suite.unwrap().suite().as_str());
        assert!(!tls.is_resumed());
        assert_eq!(tls.client_certificates().len(), 0);
        assert_eq!(tls.client_subject(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_certificate_reaches_the_handler_and_so_does_that_of_a_resumed_session() {
    let (authority, server) = town();
    for version in BOTH {
        let layer = layer(asking_of(&authority, &server, &[version]));
        let alice = authority.client("alice");
        let client = Arc::new(authority.trusting_as(&alice));

        for resumed in [false, true] {
            let (far, info, _served) = open(&layer);
            let mut client = connect_with(&client, "a.test", far)
                .await
                .unwrap();
            exchange(&mut client, "hello").await;

            let tls = info.tls().unwrap();
            let chain: Vec<_> = tls.client_certificates().collect();
            assert_eq!(chain, [alice.chain[0].as_ref()]);
            assert_eq!(
                tls.client_subject().as_deref(),
                Some(r"O=Example\, Ltd,CN=alice")
            );
            assert_eq!(tls.is_resumed(), resumed, "{version:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_connection_resumes_in_both_versions_and_both_are_counted_as_what_they_are() {
    let (authority, server) = town();
    for version in BOTH {
        let (layer, metrics) = recorded(|| layer(server.serving()));
        let client = Arc::new(authority.trusting_of(&[version]));

        for _ in 0..3 {
            let (far, _, _served) = open(&layer);
            let mut client = connect_with(&client, "a.test", far)
                .await
                .unwrap();
            exchange(&mut client, "hello").await;
        }

        let outcome = |outcome| metrics.of("tower_net_handshakes_total", &[("outcome", outcome)]);
        assert_eq!((outcome("ok_full"), outcome("ok_resumed")), (1.0, 2.0));
        assert_eq!(metrics.of("tower_net_handshake_seconds", &[]), 3.0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_connections_span_says_version_protocol_and_name() {
    let (log, _on) = Log::start();
    let (authority, server) = town();
    let mut config = server.serving();
    config.alpn_protocols = vec![b"line".to_vec()];
    let stack = ServiceBuilder::new()
        .layer(TraceLayer::new())
        .layer(layer(config))
        .service_fn(echo);
    let (near, far) = duplex(64 * 1024);
    let (_, _served) = serve(near, stack);
    let mut client = authority.trusting();
    client.alpn_protocols = vec![b"line".to_vec()];

    let mut client = connect(client, "a.test", far)
        .await
        .unwrap();
    exchange(&mut client, "hello").await;

    let recorded = log.lines("record");
    for part in ["tls=TLSv1.3", "alpn=line", "sni=a.test"] {
        assert!(
            recorded
                .iter()
                .any(|line| line.contains(part)),
            "{recorded:?}"
        );
    }
}

// === However the hello comes

#[tokio::test(start_paused = true)]
async fn a_handshake_may_come_in_single_bytes() {
    let (authority, server) = town();
    let (near, far) = duplex(64 * 1024);
    let service = layer(server.serving()).layer(service_fn(echo));
    let (info, _served) = serve(Drip::new(near), service);

    let mut client = connect(authority.trusting(), "a.test", Drip::new(far))
        .await
        .unwrap();

    assert_eq!(exchange(&mut client, "hello").await, "hello");
    assert_eq!(info.tls().unwrap().server_name(), Some("a.test"));
}

#[tokio::test(start_paused = true)]
async fn a_hello_may_come_in_records_of_any_size() {
    let (authority, server) = town();
    let layer = layer(server.serving());
    for size in [1, 2, 7, 100] {
        let (far, info, _served) = open(&layer);

        let far = SplitHello::new(far, size);
        let mut client = connect(authority.trusting(), "a.test", far)
            .await
            .unwrap();

        assert_eq!(exchange(&mut client, "hello").await, "hello");
        assert_eq!(info.tls().unwrap().server_name(), Some("a.test"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_place_of_a_handshake_is_free_while_the_connection_is_served() {
    let (authority, server) = town();
    let handshakes = Handshakes::new(1, secs(10)).unwrap();
    let layer = layer(server.serving()).handshakes(handshakes.clone());

    let (far, _, _served) = open(&layer);
    let mut first = connect(authority.trusting(), "a.test", far)
        .await
        .unwrap();
    exchange(&mut first, "hello").await;
    assert_eq!(handshakes.pending(), 0);
    // Long after the time of a handshake.
    tokio::time::sleep(secs(60)).await;

    assert_eq!(exchange(&mut first, "still").await, "still");
}

// === How it ends

#[tokio::test(start_paused = true)]
async fn the_end_is_announced_before_the_stream_ends() {
    let (authority, server) = town();
    for version in BOTH {
        let (far, info, served) = open(&layer(server.serving()));
        let client = authority.trusting_of(&[version]);
        let mut client = connect(client, "a.test", far)
            .await
            .unwrap();
        exchange(&mut client, "hello").await;

        client.shutdown().await.unwrap();
        let end = client.read(&mut [0; 8]).await.unwrap();

        // Without a `close_notify` this would have been an error.
        assert_eq!(end, 0);
        served.await.unwrap().unwrap();
        assert!(info.close_reason().is_none());
        assert_eq!(
            client
                .get_mut()
                .0
                .read(&mut [0; 8])
                .await
                .unwrap(),
            0
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lingering_close_works_over_tls_with_and_without_the_peers_goodbye() {
    let (authority, server) = town();
    for says_goodbye in [true, false] {
        let (near, far) = duplex(64 * 1024);
        let service = service_fn(async |mut conn: Conn<TlsIo<_>>| {
            conn.write_all(b"last reply").await?;
            assert_eq!(linger(conn, Linger::default()).await?, Lingered::Ended);
            Ok::<_, BoxError>(())
        });
        let (_, served) = serve(near, layer(server.serving()).layer(service));
        let mut client = connect(authority.trusting(), "a.test", far)
            .await
            .unwrap();

        client
            .write_all(b"never read")
            .await
            .unwrap();
        client.flush().await.unwrap();
        let mut heard = String::new();
        client
            .read_to_string(&mut heard)
            .await
            .unwrap();
        if says_goodbye {
            client.shutdown().await.unwrap();
        }
        drop(client);

        assert_eq!(heard, "last reply");
        served.await.unwrap().unwrap();
    }
}

/// Lines over TLS with all that watches an ending, and a client that has said `said` and then drops its socket.
async fn end_of_lines_after(said: &str) -> (String, Option<CloseReason>, Result<(), BoxError>) {
    let (authority, server) = town();
    let stack = ServiceBuilder::new()
        .layer(MeterLayer::new("test"))
        .layer(layer(server.serving()))
        .layer(DeadlineLayer::default())
        .layer(FrameLayer::with_framing(Delimited::lines(40), Framing::default()).unwrap())
        .service_fn(obey);
    let (near, far) = duplex(64 * 1024);
    let (info, served) = serve(near, stack);
    let mut client = connect(authority.trusting(), "a.test", far)
        .await
        .unwrap();
    client
        .write_all(said.as_bytes())
        .await
        .unwrap();
    client.flush().await.unwrap();

    // Ends the stream below, and says nothing about it above.
    client
        .get_mut()
        .0
        .shutdown()
        .await
        .unwrap();
    let ended = served.await.unwrap();
    let mut heard = String::new();
    client
        .read_to_string(&mut heard)
        .await
        .unwrap();
    (heard, info.close_reason(), ended)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_just_closes_between_frames_has_left_in_order() {
    for said in ["", "one\ntwo\n"] {
        let (heard, reason, ended) = end_of_lines_after(said).await;

        assert_eq!(heard, said);
        assert_eq!(reason, Some(CloseReason::Peer));
        ended.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_just_closes_inside_a_frame_has_not() {
    let (heard, reason, ended) = end_of_lines_after("one\nhal").await;

    assert_eq!(heard, "one\n");
    assert_eq!(reason, Some(CloseReason::Protocol));
    let error = ended.unwrap_err();
    assert!(
        matches!(find(&*error), Some(CodecError::Truncated { .. })),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_codec_that_takes_what_is_left_for_a_frame_is_not_asked_after_an_end_that_nobody_announced()
 {
    let lines = tokio_util::codec::LinesCodec::new();
    let stack = FrameLayer::new(lines).layer(service_fn(async |line: Request<String>| {
        Ok::<_, BoxError>(line.into_message())
    }));
    let io = Script::new()
        .bytes("one\npay 10")
        .fail(io::ErrorKind::UnexpectedEof);
    let written = io.written();

    let (info, served) = serve(io, stack);

    served.await.unwrap().unwrap_err();
    assert_eq!(written.text(), "one\n");
    assert_eq!(info.close_reason(), Some(CloseReason::Protocol));
}

// === In a stack

#[tokio::test(start_paused = true)]
async fn the_service_that_was_made_ready_is_the_one_called() {
    #[derive(Debug)]
    struct Careful(bool);
    impl Clone for Careful {
        fn clone(&self) -> Self {
            Self(false)
        }
    }
    impl<I: Io> Service<Conn<TlsIo<I>>> for Careful {
        type Response = ();
        type Error = BoxError;
        type Future = std::future::Ready<Result<(), BoxError>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            self.0 = true;
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Conn<TlsIo<I>>) -> Self::Future {
            assert!(self.0, "called without having been made ready");
            std::future::ready(Ok(()))
        }
    }
    let (authority, server) = town();
    let (near, far) = duplex(64 * 1024);

    let (_, served) = serve(near, layer(server.serving()).layer(Careful(false)));
    let _client = connect(authority.trusting(), "a.test", far)
        .await
        .unwrap();

    served.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_first_byte_deadline_below_begins_after_the_handshake() {
    let (authority, server) = town();
    let (near, far) = duplex(64 * 1024);
    let stack = ServiceBuilder::new()
        .layer(layer(server.serving()))
        .layer(DeadlineLayer::default())
        .layer(FrameLayer::new(Delimited::lines(40)))
        .service_fn(async |line: Request<Bytes>| Ok::<_, BoxError>(line.into_message()));
    let (info, _served) = serve(near, stack);

    tokio::time::sleep(secs(5)).await;
    let mut client = connect(authority.trusting(), "a.test", far)
        .await
        .unwrap();
    tokio::time::sleep(secs(2)).await;
    assert_eq!(exchange(&mut client, "hello\n").await, "hello\n");

    assert_eq!(info.close_reason(), None);
}

// === Helpers

/// A server that requires certificates of clients.
pub(crate) fn asking_of(
    authority: &Authority,
    server: &Pair,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let roots: Arc<RootCertStore> = Arc::new(authority.roots());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(server.chain.clone(), server.key())
        .unwrap()
}
