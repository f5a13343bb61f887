//! Handshakes that come to nothing: what they are called, what is counted, and what the peer sees of it.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::UnixStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, ServerConfig,
    pki_types::ServerName,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tower::service_fn;
use tower_layer::Layer;
use tower_net::{
    CloseReason, ConnInfo,
    deadline::Elapsed,
    error::{BoxError, find},
    meter::MeterLayer,
    tls::{HandshakeError, HandshakeFailure, HelloError, TlsAcceptLayer},
};

use crate::{
    support::{
        hello::split_records,
        io::Script,
        peer::serve,
        pki::{Authority, BOTH, Pair, connect, provider},
        readings::{Readings, recorded},
        service::{millis, secs},
    },
    tls::{Served, echo, exchange, layer, open, town},
    trace::Log,
};

/// The first message of a client: 250 bytes or so in one record.
pub(crate) fn hello(authority: &Authority) -> Vec<u8> {
    hello_of(authority.trusting())
}

fn hello_of(config: ClientConfig) -> Vec<u8> {
    let config = Arc::new(config);
    let name = ServerName::try_from("a.test").unwrap();
    let mut client = ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// How a connection whose peer did `what` ended.
pub(crate) struct Ended {
    error: HandshakeError,
    reason: Option<CloseReason>,
    metrics: Readings,
}

impl Ended {
    pub(crate) async fn of(info: Arc<ConnInfo>, served: Served, metrics: Readings) -> Self {
        let error = timeout(secs(86_400), served)
            .await
            .unwrap();
        let error = error.unwrap().unwrap_err();
        Self {
            error: *error.downcast().unwrap(),
            reason: info.close_reason(),
            metrics,
        }
    }

    /// Checks the class, the reason, and that it is counted once and nothing else is.
    pub(crate) fn is(&self, failure: HandshakeFailure, reason: CloseReason) {
        assert_eq!(self.error.failure(), failure, "{:?}", self.error);
        assert_eq!(self.reason, Some(reason));
        let name = "tower_net_handshakes_total";
        let outcome = self
            .metrics
            .of(name, &[("outcome", failure.label())]);
        assert_eq!((outcome, self.metrics.of(name, &[])), (1.0, 1.0));
        assert_eq!(
            self.metrics
                .of("tower_net_handshakes_pending", &[]),
            0.0
        );
    }
}

/// What becomes of a connection that reads this script.
async fn script(io: Script, limit: Option<usize>) -> Ended {
    let (_, server) = town();
    let ((meter, layer), metrics) = recorded(|| (MeterLayer::new("tls"), layer(server.serving())));
    let layer = match limit {
        Some(limit) => layer.max_hello(limit).unwrap(),
        None => layer,
    };
    let (info, served) = serve(io, meter.layer(layer.layer(service_fn(echo))));
    let ended = Ended::of(info, served, metrics).await;
    // Whoever is above is told the same, wherever in the handshake the stream was when it ended.
    let reason = ended.reason.unwrap().label();
    let closed = ended
        .metrics
        .of("tower_net_connections_closed_total", &[("reason", reason)]);
    assert_eq!(closed, 1.0, "{reason}");
    ended
}

// === Peers that are no clients

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_closed_at_the_deadline_for_its_first_byte() {
    let start = Instant::now();

    let ended = script(Script::new(), None).await;

    ended.is(HandshakeFailure::Silent, CloseReason::FirstByte);
    let elapsed = find::<Elapsed>(&ended.error).unwrap();
    assert_eq!(elapsed.limit(), Some(secs(10)));
    assert_eq!(start.elapsed(), secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_leaves_before_it_says_anything_has_just_left() {
    for io in [
        Script::new().end(),
        Script::new().fail(io::ErrorKind::ConnectionReset),
    ] {
        let ended = script(io, None).await;

        ended.is(HandshakeFailure::Vanished, CloseReason::Peer);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_leaves_in_its_hello_or_after_it_is_a_failed_handshake() {
    let (authority, _) = town();
    let hello = hello(&authority);
    for io in [
        Script::new().bytes(&hello[..1]).end(),
        Script::new().bytes(&hello[..40]).end(),
        Script::new().bytes(&hello).end(),
        Script::new()
            .bytes(&hello)
            .fail(io::ErrorKind::ConnectionReset),
    ] {
        let ended = script(io, None).await;

        ended.is(HandshakeFailure::Vanished, CloseReason::HandshakeFailed);
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_hello_and_a_whole_one_without_more_are_late() {
    let (authority, _) = town();
    let hello = hello(&authority);
    for sent in [1, 5, 60, hello.len()] {
        let start = Instant::now();

        let ended = script(Script::new().bytes(&hello[..sent]), None).await;

        ended.is(HandshakeFailure::Late, CloseReason::Handshake);
        assert!(find::<Elapsed>(&ended.error).is_some());
        assert_eq!(start.elapsed(), secs(10));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_drips_has_no_more_time_than_any_other() {
    let (authority, _) = town();
    let start = Instant::now();
    let mut io = Script::new();
    for byte in hello(&authority) {
        io = io.bytes([byte]).pause(millis(100));
    }

    let ended = script(io, None).await;

    ended.is(HandshakeFailure::Late, CloseReason::Handshake);
    assert_eq!(start.elapsed(), secs(10));
}

#[tokio::test(start_paused = true)]
async fn who_speaks_something_else_is_no_client_of_ours_by_the_first_byte() {
    let plain: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n",
        b"S",
        b"\x15\0\0\0",
        b"\x16\x02\0",
        b"\n",
    ];
    for said in plain {
        let ended = script(Script::new().bytes(said).end(), None).await;

        ended.is(HandshakeFailure::NotTls, CloseReason::HandshakeFailed);
    }
}

#[tokio::test(start_paused = true)]
async fn plain_http_gets_a_clean_end_and_everything_it_sent_is_read() {
    let (_, server) = town();
    let layer = layer(server.serving());
    let (mut far, _, served) = open(&layer);

    far.write_all(&[b'G'; 32 * 1024])
        .await
        .unwrap();
    let mut heard = Vec::new();
    far.read_to_end(&mut heard)
        .await
        .unwrap();
    // It is still read: a socket closed with unread input would be reset.
    assert!(!served.is_finished());
    drop(far);

    assert_eq!(heard, b"");
    served.await.unwrap().unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_does_not_take_long_whatever_the_peer_does() {
    for io in [
        Script::new().bytes("GET /"),
        Script::new()
            .bytes("GET /")
            .bytes(vec![b'x'; 1 << 20]),
        Script::new()
            .bytes("GET /")
            .pause(millis(700))
            .bytes("x")
            .pause(millis(700))
            .bytes("x"),
    ] {
        let start = Instant::now();

        let ended = script(io, None).await;

        ended.is(HandshakeFailure::NotTls, CloseReason::HandshakeFailed);
        assert!(start.elapsed() <= secs(1), "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_has_gone_costs_no_handshake() {
    #[derive(Debug)]
    struct NeverAsked;
    impl ResolvesServerCert for NeverAsked {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            panic!("a certificate for nobody")
        }
    }
    let (authority, _) = town();
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&BOTH)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NeverAsked));
    let (layer, metrics) = recorded(|| layer(config));
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(&hello(&authority))
        .await
        .unwrap();
    far.shutdown().await.unwrap();

    let (info, served) = serve(near, layer.layer(service_fn(echo)));

    let ended = Ended::of(info, served, metrics).await;
    ended.is(HandshakeFailure::Vanished, CloseReason::HandshakeFailed);
}

// === Caps

#[tokio::test(start_paused = true)]
async fn a_hello_is_refused_by_the_length_that_it_announces() {
    let io = Script::new().bytes(b"\x16\x03\x03\0\x06\x01\xff\xff\xff\x03\x03");
    let written = io.written();

    let ended = script(io, Some(10)).await;

    ended.is(HandshakeFailure::TooLong, CloseReason::HandshakeFailed);
    let Some(HelloError::TooLong { length, limit, .. }) = find(&ended.error) else {
        panic!("{:?}", ended.error);
    };
    assert_eq!((*length, *limit), (0xff_ffff, 10));
    // A fatal alert: handshake failure.
    assert_eq!(written.text(), "\x15\x03\x03\0\x02\x02\x28");
}

#[tokio::test(start_paused = true)]
async fn a_hello_of_the_default_limit_is_taken_and_a_byte_more_is_not() {
    let announced = |length: u32| {
        let [_, high, middle, low] = length.to_be_bytes();
        [22, 3, 1, 0x10, 0, 1, high, middle, low]
    };

    let taken = script(Script::new().bytes(announced(16 * 1024)), None).await;
    let refused = script(Script::new().bytes(announced(16 * 1024 + 1)), None).await;

    taken.is(HandshakeFailure::Late, CloseReason::Handshake);
    refused.is(HandshakeFailure::TooLong, CloseReason::HandshakeFailed);
}

#[tokio::test(start_paused = true)]
async fn a_hello_in_ever_smaller_records_is_bounded_on_the_wire() {
    // Each record carries a single byte of a hello that is within its limit.
    let hello = [&[22, 3, 1, 0x20, 4, 1, 0, 0x20, 0][..], &[0; 0x2000]].concat();

    let io = Script::new().bytes(split_records(&hello, 1));
    let ended = script(io, Some(0x2000)).await;

    ended.is(HandshakeFailure::TooLong, CloseReason::HandshakeFailed);
}

#[tokio::test(start_paused = true)]
async fn a_longer_hello_than_rustls_takes_is_refused_by_it() {
    let mut hello = vec![1, 2, 0, 0];
    hello.resize(4 + 0x20000, 0);
    let mut wire = Vec::new();
    for part in hello.chunks(1 << 14) {
        wire.extend_from_slice(&[22, 3, 1]);
        wire.extend_from_slice(
            &u16::try_from(part.len())
                .unwrap()
                .to_be_bytes(),
        );
        wire.extend_from_slice(part);
    }

    let ended = script(Script::new().bytes(wire), Some(1 << 20)).await;

    ended.is(HandshakeFailure::Malformed, CloseReason::HandshakeFailed);
}

#[tokio::test(start_paused = true)]
async fn what_comes_with_a_hello_is_not_lost_where_rustls_takes_it_in_two_parts() {
    let (authority, _) = town();
    let of_length = |last| {
        let mut config = authority.trusting();
        config.alpn_protocols = vec![vec![b'x'; 255]; 14];
        config
            .alpn_protocols
            .extend([vec![b'y'; 200], vec![b'z'; last]]);
        hello_of(config)
    };
    // As much as it takes at once.
    let hello = of_length(1 + 4096 - of_length(1).len());
    assert_eq!(hello.len(), 4096);
    let bad_certificate = b"\x15\x03\x03\0\x02\x02\x2a";
    let rest = [&hello[3000..], bad_certificate].concat();

    let io = Script::new()
        .bytes(&hello[..2000])
        .bytes(&hello[2000..3000])
        .bytes(rest)
        .end();
    let ended = script(io, None).await;

    ended.is(
        HandshakeFailure::OurCertificate,
        CloseReason::HandshakeFailed,
    );
}

#[test]
fn a_longest_hello_of_nothing_is_refused() {
    let (_, server) = town();

    let error = layer(server.serving())
        .max_hello(0)
        .unwrap_err();

    assert_eq!(error.setting(), "max_hello");
}

#[tokio::test(start_paused = true)]
async fn what_is_broken_is_malformed() {
    let (authority, _) = town();
    let good = hello(&authority);
    let mut no_hello = good.clone();
    no_hello[5] = 2;
    let mut broken_inside = good.clone();
    // The length of the session identifier.
    broken_inside[5 + 4 + 2 + 32] = 77;
    let mut second_record = good[..].to_vec();
    second_record.extend_from_slice(b"GET / HTTP/1.1\r\n");
    for wire in [
        no_hello,
        broken_inside,
        second_record,
        b"\x16\x03\x01\0\0".to_vec(),
    ] {
        let ended = script(Script::new().bytes(wire).end(), None).await;

        ended.is(HandshakeFailure::Malformed, CloseReason::HandshakeFailed);
    }
}

// === What is said of it

#[tokio::test(start_paused = true)]
async fn probes_are_a_debug_line_and_the_rest_is_worth_an_info() {
    let (authority, _) = town();
    let hello = hello(&authority);
    for (io, level, failure) in [
        (Script::new(), "DEBUG", "silent"),
        (Script::new().end(), "DEBUG", "vanished"),
        (Script::new().bytes("GET /").end(), "DEBUG", "not_tls"),
        (Script::new().bytes(&hello), "INFO", "late"),
        (
            Script::new()
                .bytes(b"\x16\x03\x01\0\0")
                .end(),
            "INFO",
            "malformed",
        ),
    ] {
        let (log, _on) = Log::start();

        script(io, None).await;

        let lines = log.lines("TLS handshake failed");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with(level), "{lines:?}");
        assert!(
            lines[0].contains(&format!("failure={failure}")),
            "{lines:?}"
        );
        assert!(lines[0].contains("peer=unnamed"), "{lines:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_says_what_it_is_and_keeps_its_cause() {
    let ended = script(Script::new().bytes("GET /").end(), None).await;

    assert_eq!(
        ended.error.to_string(),
        "TLS handshake failed: the peer speaks no TLS"
    );
    assert!(find::<HelloError>(&ended.error).is_some());
    let kinds = [
        (script(Script::new(), None).await, io::ErrorKind::TimedOut),
        (
            script(Script::new().end(), None).await,
            io::ErrorKind::UnexpectedEof,
        ),
        (ended, io::ErrorKind::InvalidData),
    ];
    for (ended, kind) in kinds {
        let error = io::Error::from(ended.error);
        assert_eq!(error.kind(), kind);
        assert!(find::<HandshakeError>(&error).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_handshake_is_nobody_elses() {
    let (authority, server) = town();
    let layer = layer(server.serving());
    let mut kept = Vec::new();
    for _ in 0..10 {
        let (mut far, _, served) = open(&layer);
        far.write_all(b"GET /").await.unwrap();
        kept.push((far, served));
    }

    let (far, _, _served) = open(&layer);
    let mut good = connect(authority.trusting(), "a.test", far)
        .await
        .unwrap();

    assert_eq!(exchange(&mut good, "hello").await, "hello");
    sleep(secs(2)).await;
    assert_eq!(exchange(&mut good, "still").await, "still");
}

/// What the layer takes: only so that the example of its documentation is more than one.
#[tokio::test]
async fn a_plain_configuration_will_do() {
    let (authority, server): (Authority, Pair) = town();
    let layer = TlsAcceptLayer::new(Arc::new(server.serving()));
    let (near, far) = duplex(64 * 1024);
    let (_, served) = serve(near, layer.layer(service_fn(echo)));

    let mut client = connect(authority.trusting(), "a.test", far)
        .await
        .unwrap();
    exchange(&mut client, "hello").await;
    client.shutdown().await.unwrap();

    let ended: Result<(), BoxError> = served.await.unwrap();
    ended.unwrap();
}
