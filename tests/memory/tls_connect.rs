//! TLS on connections that we open.

use std::{future::pending, io, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{Instant, sleep},
};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio_test::{assert_pending, task};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, Spent,
    connect::{Name, Target, TargetError},
    deadline::ConnectDeadlineLayer,
    error::{BoxError, NoTimer, find},
    meter::MeterConnectLayer,
    tls::{
        HandshakeFailure, ServerNameError, TlsAcceptLayer, TlsClientIo, TlsConnect,
        TlsConnectError, TlsConnectFuture, TlsConnectLayer, TlsVersion,
    },
};
use tower_service::Service;

use crate::{
    support::{
        io::Script,
        pki::{Authority, BOTH, provider},
        readings::{Readings, recorded},
        service::secs,
    },
    tls::{exchange, layer, open, town},
};

/// A connector whose connections are these, whatever the target.
fn giving(
    far: DuplexStream,
) -> impl Service<&'static str, Response = Conn<DuplexStream>, Error = BoxError, Future: Send> + Clone
{
    let far = Arc::new(std::sync::Mutex::new(Some(far)));
    service_fn(move |_: &'static str| {
        let far = far.lock().unwrap().take();
        async move { Ok::<_, BoxError>(Conn::new(far.expect("opened once"), ())) }
    })
}

async fn connect(
    config: impl Into<Arc<ClientConfig>>,
    far: DuplexStream,
) -> Result<Conn<TlsClientIo<DuplexStream>>, BoxError> {
    TlsConnectLayer::new(config)
        .layer(giving(far))
        .oneshot("a.test:443")
        .await
}

/// What a handshake with `layer` comes to.
async fn failure(config: ClientConfig, layer: &TlsAcceptLayer) -> TlsConnectError {
    let (far, _, _served) = open(layer);
    let error = connect(config, far).await.unwrap_err();
    *error.downcast().unwrap()
}

fn outcome(metrics: &Readings, outcome: &str) -> f64 {
    metrics.of(
        "tower_net_outgoing_handshakes_total",
        &[("outcome", outcome)],
    )
}

// === What is known

#[tokio::test(start_paused = true)]
async fn what_the_handshake_settled_is_known_of_the_connection_in_both_versions() {
    let (authority, server) = town();
    for (version, expected) in BOTH
        .into_iter()
        .zip([TlsVersion::Tls12, TlsVersion::Tls13])
    {
        let mut config = server.serving();
        config.alpn_protocols = vec![b"h2".to_vec(), b"line".to_vec()];
        let (far, seen, _served) = open(&layer(config));
        let mut client = authority.trusting_of(&[version]);
        client.alpn_protocols = vec![b"line".to_vec()];

        let mut conn = connect(client, far).await.unwrap();
        assert_eq!(exchange(&mut conn, "hello").await, "hello");

        let known = conn.info().tls().unwrap();
        assert_eq!(known.server_name(), Some("a.test"));
        assert_eq!(known.alpn(), Some(&b"line"[..]));
        assert_eq!(known.version(), expected);
        assert_eq!(known.cipher_suite(), seen.tls().unwrap().cipher_suite());
        assert!(!known.is_resumed());
        let chain: Vec<_> = known.server_certificates().collect();
        assert_eq!(chain, [server.chain[0].as_ref()]);
        assert_eq!(known.client_certificates().len(), 0);
        assert_eq!(known.client_subject(), None);
        assert_eq!(
            seen.tls()
                .unwrap()
                .server_certificates()
                .len(),
            0
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_is_shared_resumes_and_both_are_counted_as_what_they_are() {
    let (authority, server) = town();
    for version in BOTH {
        let layer = layer(server.serving());
        let config = Arc::new(authority.trusting_of(&[version]));
        let (tls, metrics) = recorded(|| TlsConnectLayer::new(Arc::clone(&config)));

        for resumed in [false, true, true] {
            let (far, _, _served) = open(&layer);
            let connector = tls.clone().layer(giving(far));
            let mut conn = connector
                .oneshot("a.test:443")
                .await
                .unwrap();
            exchange(&mut conn, "hello").await;

            let known = conn.info().tls().unwrap();
            assert_eq!(known.is_resumed(), resumed, "{version:?}");
            // Those of the session that was taken up.
            assert_eq!(known.server_certificates().len(), 1);
        }

        assert_eq!(
            (
                outcome(&metrics, "ok_full"),
                outcome(&metrics, "ok_resumed")
            ),
            (1.0, 2.0)
        );
        assert_eq!(metrics.of("tower_net_outgoing_handshake_seconds", &[]), 3.0);
        assert_eq!(metrics.of("tower_net_handshakes_total", &[]), 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn our_certificate_reaches_the_server() {
    let (authority, server) = town();
    let verifier = tokio_rustls::rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(authority.roots()),
        provider(),
    );
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&BOTH)
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(server.chain.clone(), server.key())
        .unwrap();
    let layer = layer(config);
    let (far, seen, _served) = open(&layer);
    let alice = authority.client("alice");

    let mut conn = connect(authority.trusting_as(&alice), far)
        .await
        .unwrap();
    exchange(&mut conn, "hello").await;

    let subject = seen.tls().unwrap().client_subject();
    assert_eq!(subject.as_deref(), Some(r"O=Example\, Ltd,CN=alice"));

    // Without one: in TLS 1.2 it fails, in TLS 1.3 the server says so later.
    let (far, _, _served) = open(&layer);
    let mut conn = connect(authority.trusting(), far)
        .await
        .unwrap();
    let error = conn
        .read(&mut [0; 1])
        .await
        .unwrap_err();
    assert!(find::<tokio_rustls::rustls::Error>(&error).is_some());
    let (far, _, _served) = open(&layer);
    let old = connect(authority.trusting_of(&BOTH[..1]), far).await;
    let error = old.unwrap_err();
    let error = find::<TlsConnectError>(&*error).unwrap();
    assert_eq!(error.failure(), HandshakeFailure::OurCertificate);
}

// === The name

#[tokio::test(start_paused = true)]
async fn the_name_is_the_targets_or_a_fixed_one_or_made_of_it() {
    let (authority, server) = town();
    let config = Arc::new(authority.trusting());
    let named = |name: &'static str| ServerName::try_from(name).unwrap();
    let layers = [
        TlsConnectLayer::new(Arc::clone(&config)),
        TlsConnectLayer::to(Arc::clone(&config), named("example.org")),
        TlsConnectLayer::with_names(config, |target: &&'static str| {
            ServerName::try_from(
                target
                    .split(':')
                    .next()
                    .unwrap_or_default(),
            )
        }),
    ];
    for (layer_of, (target, expected)) in layers.iter().zip([
        ("A.test.:443", "a.test"),
        ("10.0.0.1:443", "example.org"),
        ("a.test:443", "a.test"),
    ]) {
        let (far, seen, _served) = open(&layer(server.serving()));

        let mut conn = layer_of
            .layer(giving(far))
            .oneshot(target)
            .await
            .unwrap();
        exchange(&mut conn, "hello").await;

        assert_eq!(seen.tls().unwrap().server_name(), Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_is_checked_against_those_in_the_certificate_and_not_asked_for_by_name() {
    let authority = Authority::new("town hall");
    let server = authority.server(&["10.0.0.1"]);
    for (target, is_good) in [("10.0.0.1:443", true), ("10.0.0.2:443", false)] {
        let (far, seen, _served) = open(&layer(server.serving()));

        let connected = TlsConnectLayer::new(authority.trusting())
            .layer(giving(far))
            .oneshot(target)
            .await;

        assert_eq!(connected.is_ok(), is_good);
        if let Ok(mut conn) = connected {
            exchange(&mut conn, "hello").await;
            assert_eq!(seen.tls().unwrap().server_name(), None);
            assert_eq!(conn.info().tls().unwrap().server_name(), None);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_no_name_is_an_error_and_nothing_is_opened() {
    let never = service_fn(|_| -> std::future::Ready<Result<Conn<Script>, BoxError>> {
        panic!("nothing is opened")
    });
    let (authority, _) = town();
    let config = Arc::new(authority.trusting());

    let error = TlsConnectLayer::new(Arc::clone(&config))
        .layer(never)
        .oneshot("no port")
        .await
        .unwrap_err();
    assert!(error.is::<TargetError>());

    let error = TlsConnectLayer::with_names(config, |_: &&'static str| {
        Err::<ServerName<'static>, _>("nobody")
    })
    .layer(never)
    .oneshot("a.test:1")
    .await
    .unwrap_err();
    assert_eq!(error.to_string(), "nobody");
    assert!(find::<ServerNameError>(&*error).is_none());
}

// === How it fails

#[tokio::test(start_paused = true)]
async fn each_way_to_fail_has_its_class() {
    let (authority, server) = town();
    let line = |mut config: tokio_rustls::rustls::ServerConfig| {
        config.alpn_protocols = vec![b"line".to_vec()];
        config
    };
    let stranger = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&BOTH)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut h2 = authority.trusting();
    h2.alpn_protocols = vec![b"h2".to_vec()];
    let other = authority.server(&["b.test"]);
    let cases = [
        (
            stranger,
            layer(server.serving()),
            HandshakeFailure::TheirCertificate,
        ),
        (
            authority.trusting(),
            layer(other.serving()),
            HandshakeFailure::TheirCertificate,
        ),
        (
            h2,
            layer(line(server.serving())),
            HandshakeFailure::NoCommonAlpn,
        ),
        (
            authority.trusting_of(&BOTH[..1]),
            layer(server.serving_of(&BOTH[1..])),
            HandshakeFailure::NoCommonVersion,
        ),
    ];
    for (config, layer, expected) in cases {
        let error = failure(config, &layer).await;

        assert_eq!(error.failure(), expected);
        assert_eq!((error.server_name(), error.spent()), ("a.test", None));
        assert!(error.is_never_sent());
        assert!(
            error
                .to_string()
                .starts_with("TLS handshake with `a.test` failed: ")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_speaks_something_else_or_goes_away_is_told_apart() {
    let (authority, _) = town();
    for (answer, expected, kind) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            HandshakeFailure::NotTls,
            io::ErrorKind::InvalidData,
        ),
        (
            b"",
            HandshakeFailure::Vanished,
            io::ErrorKind::UnexpectedEof,
        ),
        (
            b"\x16\x03\x03\x00\x04\xff\x00\x00\x00",
            HandshakeFailure::Malformed,
            io::ErrorKind::InvalidData,
        ),
    ] {
        let (near, mut far) = duplex(1024);
        far.write_all(answer).await.unwrap();
        far.shutdown().await.unwrap();

        let error = connect(authority.trusting(), near)
            .await
            .unwrap_err();

        let error: TlsConnectError = *error.downcast().unwrap();
        assert_eq!(error.failure(), expected);
        assert_eq!(io::Error::from(error).kind(), kind);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_costs_ten_seconds_and_ends_for_its_handshake() {
    let (authority, _) = town();
    let (tls, metrics) = recorded(|| TlsConnectLayer::new(authority.trusting()));
    let (meter, tally) = MeterConnectLayer::pair("wire");
    let (near, far) = duplex(1024);
    let start = Instant::now();

    let error = ServiceBuilder::new()
        .layer(tls)
        .layer(meter)
        .service(giving(near))
        .oneshot("a.test:443")
        .await
        .unwrap_err();

    assert_eq!(start.elapsed(), secs(10));
    let error: TlsConnectError = *error.downcast().unwrap();
    assert_eq!(error.failure(), HandshakeFailure::Late);
    assert_eq!(error.spent(), Some(Spent::Limit(secs(10))));
    assert_eq!(
        error.to_string(),
        "TLS handshake with `a.test` failed: not done within 10s"
    );
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
    assert_eq!(outcome(&metrics, "late"), 1.0);
    let ended = tally.snapshot();
    let connections = ended.connections();
    assert_eq!(connections.closed_for(CloseReason::Handshake), 1);
    drop(far);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_fails_is_the_reason_that_its_connection_ends_with() {
    let (_, server) = town();
    let (far, _, _served) = open(&layer(server.serving()));
    let (tls, metrics) =
        recorded(|| TlsConnectLayer::new(Authority::new("somebody else").trusting()));
    let (meter, tally) = MeterConnectLayer::pair("wire");

    let connector = ServiceBuilder::new()
        .layer(tls)
        .layer(meter)
        .service(giving(far));
    assert!(
        connector
            .oneshot("a.test:443")
            .await
            .is_err()
    );

    let ended = tally.snapshot();
    let connections = ended.connections();
    assert_eq!(connections.closed_for(CloseReason::HandshakeFailed), 1);
    assert_eq!(outcome(&metrics, "their_certificate"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn the_callers_deadline_ends_a_handshake_if_it_is_earlier() {
    let (authority, _) = town();
    let (near, _far) = duplex(1024);
    let connector = ServiceBuilder::new()
        .layer(ConnectDeadlineLayer::new(secs(3)).unwrap())
        .layer(TlsConnectLayer::new(authority.trusting()))
        .service(giving(near));
    let start = Instant::now();

    let error = connector
        .oneshot("a.test:443")
        .await
        .unwrap_err();

    assert_eq!(start.elapsed(), secs(3));
    let error = find::<TlsConnectError>(&*error).unwrap();
    assert_eq!(error.spent(), Some(Spent::Caller));
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_handshake_begins_when_the_connection_is_there() {
    let (authority, server) = town();
    let config = Arc::new(authority.trusting());
    let slow = service_fn(move |_: &'static str| {
        let (far, _, _served) = open(&layer(server.serving()));
        async move {
            sleep(secs(15)).await;
            Ok::<_, BoxError>(Conn::new(far, ()))
        }
    });
    let tls = TlsConnectLayer::new(config)
        .handshake_timeout(secs(1))
        .unwrap();
    // The server has a deadline for the first byte of its own, and 15 s are beyond it.
    let start = Instant::now();

    let error = tls
        .layer(slow)
        .oneshot("a.test:443")
        .await
        .unwrap_err();

    assert_eq!(start.elapsed(), secs(15));
    let error = find::<TlsConnectError>(&*error).unwrap();
    assert_eq!(error.failure(), HandshakeFailure::Vanished);
}

#[tokio::test(start_paused = true)]
async fn the_connectors_error_is_passed_on() {
    let (authority, _) = town();
    let refused = service_fn(async |_: &'static str| {
        Err::<Conn<Script>, _>(io::Error::from(io::ErrorKind::ConnectionRefused))
    });

    let error = TlsConnectLayer::new(authority.trusting())
        .layer(refused)
        .oneshot("a.test:443")
        .await
        .unwrap_err();

    let error = error.downcast::<io::Error>().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

// === How it ends

#[tokio::test(start_paused = true)]
async fn the_end_is_announced_and_the_servers_is_heard() {
    let (authority, server) = town();
    let (far, _, served) = open(&layer(server.serving()));
    let mut conn = connect(authority.trusting(), far)
        .await
        .unwrap();
    exchange(&mut conn, "hello").await;

    conn.shutdown().await.unwrap();
    // An end that was not announced would be an error, here and there.
    let read = conn.read(&mut [0; 1]).await.unwrap();

    assert_eq!(read, 0);
    assert!(served.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_dropped_drops_the_connection_and_counts_as_abandoned() {
    let (authority, _) = town();
    let (tls, metrics) = recorded(|| TlsConnectLayer::new(authority.trusting()));
    let (near, mut far) = duplex(4096);
    let mut call = task::spawn(
        tls.layer(giving(near))
            .oneshot("a.test:443"),
    );
    assert_pending!(call.poll());

    drop(call);

    let mut hello = Vec::new();
    far.read_to_end(&mut hello)
        .await
        .unwrap();
    assert_eq!(hello[0], 22);
    assert_eq!(outcome(&metrics, "abandoned"), 1.0);
}

#[test]
fn without_a_time_driver_the_layer_says_so() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let (authority, _) = town();
    let connector =
        TlsConnectLayer::new(authority.trusting()).layer(service_fn(async |_: &'static str| {
            pending::<Result<Conn<Script>, BoxError>>().await
        }));

    let error = runtime.block_on(connector.oneshot("a.test:443"));

    assert!(find::<NoTimer>(&*error.unwrap_err()).is_some());
}

#[test]
fn a_time_of_zero_is_refused() {
    let (authority, _) = town();
    let layer = TlsConnectLayer::<Target>::new(authority.trusting());

    assert!(
        layer
            .handshake_timeout(secs(0))
            .is_err()
    );
}

#[test]
fn types_are_send_and_debug() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    fn future<T: Send + std::fmt::Debug>() {}
    check::<TlsConnectLayer<Name>>();
    check::<TlsConnect<(), Name>>();
    future::<TlsConnectFuture<std::future::Ready<()>, Script>>();
    future::<TlsClientIo<Script>>();
    future::<TlsConnectError>();
    future::<ServerNameError>();
}
