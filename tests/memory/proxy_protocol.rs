use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::UnixStream,
    runtime,
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, task};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_net::{
    Addr, CloseReason, Conn, ConnInfo, Handshakes, Networks, Server,
    deadline::{DeadlineIo, DeadlineLayer, Deadlines, Elapsed},
    error::{BoxError, NoTimer, find},
    io::Io,
    limit::{PerPeerLimitLayer, Surplus},
    proxy_protocol::{
        Command, Header, HeaderError, HeaderRules, Others, ProxyError, ProxyProtocol,
        ProxyProtocolFuture, ProxyProtocolLayer, Version,
    },
    trace::TraceLayer,
};
use tower_service::Service;
use tracing::subscriber::{DefaultGuard, set_default};

use crate::support::{
    io::{Drip, Queue, Script, Witness},
    readings::{Readings, recorded},
    service::secs,
};

/// What a proxy says that forwards a client's connection.
const LINE: &str = "PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n";
const PROXY: &str = "10.0.0.1:1";
const STRANGER: &str = "192.0.2.9:9";

/// Proxies are in `10.0.0.0/8`.
pub(crate) fn trusting() -> ProxyProtocolLayer {
    ProxyProtocolLayer::required_from(["10.0.0.0/8"]).unwrap()
}

/// A connection whose socket has this address at its other end.
pub(crate) fn from<I>(io: I, wire_peer: &str) -> Conn<I> {
    Conn::new(io, Addr::Tcp(wire_peer.parse().unwrap()))
}

/// Takes one connection through the layer, and hands it out again.
pub(crate) async fn accept<I: Io>(
    layer: ProxyProtocolLayer,
    io: I,
    wire_peer: &str,
) -> Result<Conn<I>, BoxError> {
    through(layer, from(io, wire_peer)).await
}

async fn through<I: Io>(layer: ProxyProtocolLayer, conn: Conn<I>) -> Result<Conn<I>, BoxError> {
    let mut service = layer.layer(service_fn(async |conn: Conn<I>| Ok::<_, BoxError>(conn)));
    service.ready().await?.call(conn).await
}

async fn rest<I: Io>(mut conn: Conn<I>) -> String {
    let mut rest = String::new();
    conn.read_to_string(&mut rest)
        .await
        .unwrap();
    rest
}

/// The error of a connection that is not served, and what it ended as.
async fn refused<I: Io>(layer: ProxyProtocolLayer, io: I) -> (ProxyError, Option<CloseReason>) {
    let conn = from(io, PROXY);
    let info = Arc::clone(conn.info());
    let error = through(layer, conn)
        .await
        .err()
        .unwrap();
    let error = error.downcast::<ProxyError>().unwrap();
    (*error, info.close_reason())
}

fn budget(at_once: usize, within: Duration) -> Handshakes {
    Handshakes::new(at_once, within).unwrap()
}

// === A header

#[tokio::test]
async fn the_client_is_whom_the_proxy_names_and_the_wire_peer_stays() {
    let io = Script::new()
        .bytes(LINE.to_owned() + "hello")
        .end();

    let conn = accept(trusting(), io, PROXY)
        .await
        .unwrap();

    let info = Arc::clone(conn.info());
    assert_eq!(info.peer().to_string(), "192.0.2.7:4711");
    assert_eq!(info.wire_peer().to_string(), PROXY);
    let header = info.proxy().unwrap();
    assert_eq!(header.version(), Version::V1);
    assert_eq!(
        header
            .destination()
            .unwrap()
            .to_string(),
        "192.0.2.1:443"
    );
    assert_eq!(rest(conn).await, "hello");
}

#[tokio::test]
async fn what_else_the_proxy_says_is_a_fact_of_the_connection() {
    let addr = |text: &str| text.parse().unwrap();
    let header = Header::tcp(Version::V2, addr("[2001:db8::7]:1"), addr("[::1]:443")).unwrap();
    let header = header
        .authority("example.com")
        .unwrap()
        .unique_id("id-1")
        .unwrap();
    let wire = header.crc32c().encode().unwrap();

    let conn = accept(trusting(), Drip::new(Script::new().bytes(wire)), PROXY)
        .await
        .unwrap();

    let header = conn.info().proxy().unwrap();
    assert_eq!(conn.info().peer(), &header.source().unwrap());
    assert_eq!(header.tlvs().authority(), Some("example.com"));
    assert_eq!(header.tlvs().unique_id(), Some(&b"id-1"[..]));
    assert!(header.tlvs().crc32c().is_some());
}

#[tokio::test]
async fn a_proxy_that_speaks_for_itself_is_its_own_client() {
    let unspecified = Header::new(Version::V2, Default::default());
    let wires = [
        Header::local(Version::V1)
            .encode()
            .unwrap(),
        Header::local(Version::V2)
            .encode()
            .unwrap(),
        unspecified.encode().unwrap(),
        b"PROXY UNKNOWN 192.0.2.7 192.0.2.1 1 2\r\n".to_vec(),
    ];
    for wire in wires {
        let conn = accept(trusting(), Script::new().bytes(wire), PROXY)
            .await
            .unwrap();

        let info = conn.info();
        assert_eq!(info.peer(), info.wire_peer());
        assert_eq!(info.proxy().unwrap().source(), None);
    }
}

#[tokio::test]
async fn a_header_that_is_malformed_ends_the_connection_and_says_why() {
    let io = Script::new().bytes("PROXY TCP4 1.2.3.4 01.2.3.4 1 2\r\n");

    let (error, reason) = refused(trusting(), io).await;

    let problem = error.header().unwrap().to_string();
    assert_eq!(problem, "destination address is no IPv4 address");
    assert_eq!(error.to_string(), "PROXY header refused");
    assert_eq!(reason, Some(CloseReason::ProxyHeader));
    let error = io::Error::from(error);
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(find::<HeaderError>(&error).is_some());
}

#[tokio::test]
async fn a_header_over_the_cap_is_refused_before_it_is_read() {
    let io = Script::new().bytes(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x10\x01");

    let (error, reason) = refused(trusting(), io).await;

    let expected = HeaderError::TooLong {
        length: 4097,
        limit: 4096,
    };
    assert_eq!(error.header(), Some(&expected));
    assert_eq!(reason, Some(CloseReason::ProxyHeader));
}

#[tokio::test]
async fn a_version_that_the_rules_leave_out_is_refused() {
    let rules = HeaderRules::default().only(Version::V2);
    let io = Script::new().bytes(LINE);

    let (error, _) = refused(trusting().rules(rules), io).await;

    assert_eq!(
        error.header(),
        Some(&HeaderError::VersionRefused(Version::V1))
    );
}

#[tokio::test]
async fn a_header_cut_short_is_no_header() {
    let io = Script::new().bytes(&LINE[..20]).end();

    let (error, reason) = refused(trusting(), io).await;

    assert_eq!(error.header(), Some(&HeaderError::Truncated { length: 20 }));
    assert_eq!(reason, Some(CloseReason::ProxyHeader));
}

#[tokio::test]
async fn who_leaves_without_a_byte_is_no_fault() {
    let (log, _on) = Log::start();

    let (error, reason) = refused(trusting(), Script::new().end()).await;

    assert!(error.is_silent_end());
    assert_eq!(reason, Some(CloseReason::Peer));
    assert!(!CloseReason::Peer.is_fault());
    assert_eq!(log.text(), "");
}

#[tokio::test]
async fn what_came_in_place_of_a_header_is_logged_for_whoever_debugs() {
    let (log, _on) = Log::start();
    let io = Script::new().bytes("GET / HTTP/1.1\r\n\x1b[2J");

    let _refused = refused(trusting(), io).await;

    let text = log.text();
    assert!(text.contains("DEBUG"), "{text}");
    assert!(text.contains("PROXY header refused"), "{text}");
    assert!(text.contains("error=no PROXY header"), "{text}");
    assert!(text.contains(r"raw=GET / HTTP/1.1"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
}

/// What a line that is logged at work says of the connection.
async fn at_work<S>(stack: S, log: &Log) -> String
where
    S: Service<Conn<Script>, Response = (), Error: std::fmt::Debug>,
{
    stack
        .oneshot(from(Script::new().bytes(LINE), PROXY))
        .await
        .unwrap();
    let text = log.text();
    let line = text
        .lines()
        .find(|line| line.contains("at work"));
    line.unwrap().to_owned()
}

async fn work<I>(_: Conn<I>) -> Result<(), BoxError> {
    tracing::info!("at work");
    Ok(())
}

#[tokio::test]
async fn the_span_of_the_connection_has_both_ends_of_the_proxy_wherever_it_is() {
    let (log, _on) = Log::start();
    let above = ServiceBuilder::new()
        .layer(TraceLayer::new())
        .layer(trusting())
        .service_fn(work);
    let said = at_work(above, &log).await;
    assert!(said.contains("peer=10.0.0.1:1 "), "{said}");
    assert!(said.contains("announced=192.0.2.7:4711"), "{said}");
    assert!(!said.contains("wire_peer"), "{said}");

    let (log, _on) = Log::start();
    let below = ServiceBuilder::new()
        .layer(trusting())
        .layer(TraceLayer::new())
        .service_fn(work);
    let said = at_work(below, &log).await;
    assert!(said.contains("peer=192.0.2.7:4711"), "{said}");
    assert!(said.contains("wire_peer=10.0.0.1:1"), "{said}");
    assert!(!said.contains("announced"), "{said}");
}

// === Who is believed

#[tokio::test]
async fn a_stranger_is_reset_before_a_byte_of_it_is_read() {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(LINE.as_bytes())
        .await
        .unwrap();
    let (io, closed) = Witness::pair(near);
    let conn = from(io, STRANGER);
    let info = Arc::clone(conn.info());
    let mut service = trusting().layer(service_fn(async |_: Conn<_>| Ok::<_, BoxError>(())));

    let never_polled = service.call(conn);

    assert!(closed.is_reset());
    assert_eq!(info.close_reason(), Some(CloseReason::ProxyHeader));
    assert_eq!(info.peer(), info.wire_peer());
    let error = never_polled.await.unwrap_err();
    assert!(
        find::<ProxyError>(&*error)
            .unwrap()
            .is_untrusted()
    );
}

#[tokio::test]
async fn a_stranger_that_is_served_all_the_same_is_never_believed() {
    for (others, left) in [(Others::Direct, LINE), (Others::IgnoreHeader, "")] {
        let io = Script::new().bytes(LINE).end();

        let conn = accept(trusting().others(others), io, STRANGER)
            .await
            .unwrap();

        assert_eq!(conn.info().peer().to_string(), STRANGER);
        assert!(conn.info().proxy().is_none());
        assert_eq!(rest(conn).await, left);
    }
}

#[tokio::test]
async fn who_must_send_a_header_is_not_served_without_whatever_others_may() {
    for others in [Others::Direct, Others::IgnoreHeader] {
        let io = Script::new().bytes("hello").end();

        let (error, _) = refused(trusting().others(others), io).await;

        assert_eq!(error.header(), Some(&HeaderError::NotProxy));
    }
}

#[tokio::test]
async fn a_stranger_whose_header_is_ignored_must_send_one_all_the_same() {
    let layer = trusting().others(Others::IgnoreHeader);
    let io = Script::new().bytes("hello").end();

    let error = accept(layer, io, STRANGER)
        .await
        .unwrap_err();

    let error = find::<HeaderError>(&*error);
    assert_eq!(error, Some(&HeaderError::NotProxy));
}

#[tokio::test]
async fn a_proxy_on_a_dual_stack_socket_is_in_its_ipv4_network() {
    let io = Script::new().bytes(LINE);

    let conn = accept(trusting(), io, "[::ffff:10.0.0.1]:1").await;

    assert_eq!(conn.unwrap().info().peer().to_string(), "192.0.2.7:4711");
}

#[tokio::test]
async fn a_client_that_was_announced_into_the_networks_is_not_trusted_for_it() {
    let inside = "PROXY TCP4 10.0.0.2 10.0.0.3 1 2\r\n";
    let io = Script::new()
        .bytes(inside.to_owned() + LINE)
        .end();
    let conn = from(io, STRANGER);
    conn.info().announce_peer(
        "10.0.0.2:1"
            .parse::<std::net::SocketAddr>()
            .unwrap(),
    );

    let refused = through(trusting(), conn).await;

    assert!(refused.is_err());
}

#[tokio::test]
async fn a_peer_without_an_address_is_one_or_the_other_as_is_said() {
    for (trust, served) in [(false, false), (true, true)] {
        let io = Script::new().bytes(LINE);

        let conn = through(trusting().trust_unnamed(trust), Conn::new(io, ())).await;

        assert_eq!(conn.is_ok(), served);
    }
}

#[test]
fn networks_are_given_in_any_form_and_wrong_ones_are_told() {
    let networks = Networks::parse(["10.0.0.0/8"]).unwrap();
    assert!(ProxyProtocolLayer::required_from(networks).is_ok());
    assert!(ProxyProtocolLayer::required_from(vec![String::from("::1")]).is_ok());
    assert!(ProxyProtocolLayer::required_from(&["fd00::/8", "127.0.0.1"][..]).is_ok());

    let error = ProxyProtocolLayer::required_from(["10.0.0.0/33"]).unwrap_err();
    assert_eq!(error.setting(), "networks");
}

#[tokio::test]
async fn in_a_dry_run_a_stranger_is_served_and_counted() {
    let (layer, metrics) = recorded(|| trusting().dry_run(true));
    let io = Script::new().bytes("hello").end();

    let conn = accept(layer.clone(), io, STRANGER)
        .await
        .unwrap();
    let (error, _) = refused(layer, Script::new().bytes("hello")).await;

    assert_eq!(rest(conn).await, "hello");
    assert!(error.header().is_some());
    let reason = [("reason", "proxy_header")];
    assert_eq!(metrics.of("tower_net_dry_run_total", &reason), 1.0);
    assert_eq!(metrics.of("tower_net_refused_total", &reason), 0.0);
}

// === The deadline

#[tokio::test(start_paused = true)]
async fn a_header_that_drips_in_does_not_move_the_deadline() {
    let start = Instant::now();
    let mut io = Script::new();
    for byte in LINE.as_bytes() {
        io = io.bytes([*byte]).pause(secs(1));
    }

    let (error, reason) = refused(trusting(), io).await;

    assert_eq!(start.elapsed(), secs(10));
    assert_eq!(reason, Some(CloseReason::ProxyTimeout));
    let elapsed = find::<Elapsed>(&error).unwrap();
    assert_eq!(
        elapsed.to_string(),
        "PROXY header not complete in time within 10s"
    );
}

#[tokio::test(start_paused = true)]
async fn silence_has_a_reason_of_its_own() {
    let start = Instant::now();
    let layer = trusting().handshakes(budget(8, secs(4)));

    let (error, reason) = refused(layer, Script::new()).await;

    assert_eq!(start.elapsed(), secs(4));
    assert_eq!(reason, Some(CloseReason::FirstByte));
    assert_eq!(
        find::<Elapsed>(&error).unwrap().which(),
        CloseReason::FirstByte
    );
}

#[tokio::test(start_paused = true)]
async fn two_headers_have_one_time() {
    let start = Instant::now();
    let handshakes = budget(8, secs(10));
    let layer = || trusting().handshakes(handshakes.clone());
    let stack = ServiceBuilder::new()
        .layer(layer())
        .layer(layer())
        .service_fn(async |_: Conn<_>| Ok::<_, BoxError>(()));
    let io = Script::new().pause(secs(6)).bytes(LINE);

    let ended = stack.oneshot(from(io, PROXY)).await;

    assert!(ended.is_err());
    assert_eq!(start.elapsed(), secs(10));
}

#[tokio::test(start_paused = true)]
async fn the_time_that_a_limit_keeps_a_connection_waiting_is_not_taken_off_its_next_handshake() {
    let handshakes = budget(8, secs(10));
    let layer = || trusting().handshakes(handshakes.clone());
    let limit = PerPeerLimitLayer::new(1)
        .unwrap()
        .surplus(Surplus::WaitUpTo(secs(60)));
    let stack = ServiceBuilder::new()
        .layer(layer())
        .layer(limit)
        .layer(layer())
        .service_fn(async |conn: Conn<_>| {
            sleep(secs(20)).await;
            drop(conn);
            Ok::<_, BoxError>(())
        });
    let visit = || {
        let io = Script::new()
            .bytes(LINE)
            .pause(secs(1))
            .bytes(LINE);
        stack.clone().oneshot(from(io, PROXY))
    };

    let (first, second) = tokio::join!(visit(), visit());

    first.unwrap();
    second.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_first_byte_of_the_service_is_timed_from_the_end_of_the_header() {
    let start = Instant::now();
    let deadlines = DeadlineLayer::new(Deadlines::none().first_byte(secs(3))).unwrap();
    let stack = ServiceBuilder::new()
        .layer(trusting())
        .layer(deadlines)
        .service_fn(async |mut conn: Conn<DeadlineIo<Script>>| {
            conn.read_u8().await?;
            Ok::<_, BoxError>(())
        });
    let io = Script::new().pause(secs(9)).bytes(LINE);
    let conn = from(io, PROXY);
    let info = Arc::clone(conn.info());

    let ended = stack.oneshot(conn).await;

    assert!(ended.is_err());
    assert_eq!(info.close_reason(), Some(CloseReason::FirstByte));
    assert_eq!(start.elapsed(), secs(12));
}

#[tokio::test(start_paused = true)]
async fn a_service_behind_the_header_has_all_the_time_it_wants() {
    let io = Script::new()
        .bytes(LINE)
        .pause(secs(86_400))
        .bytes("late")
        .end();

    let conn = accept(trusting(), io, PROXY)
        .await
        .unwrap();

    assert_eq!(rest(conn).await, "late");
}

#[tokio::test(start_paused = true)]
async fn in_a_dry_run_of_the_budget_a_late_header_is_taken_all_the_same() {
    let (layer, metrics) = recorded(|| trusting().handshakes(budget(1, secs(1)).dry_run(true)));
    let io = Script::new()
        .pause(secs(60))
        .bytes(LINE);

    let conn = accept(layer, io, PROXY).await;

    assert!(conn.is_ok());
    let reason = [("reason", "first_byte")];
    assert_eq!(metrics.of("tower_net_dry_run_total", &reason), 1.0);
}

#[test]
fn a_runtime_that_cannot_keep_time_is_told_before_the_first_connection() {
    let without = runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut service = trusting().layer(service_fn(async |_: Conn<Script>| Ok::<_, BoxError>(())));

    let ready = without.block_on(async { service.ready().await.map(drop) });

    assert!(find::<NoTimer>(&*ready.unwrap_err()).is_some());
}

// === How many at once

#[tokio::test(start_paused = true)]
async fn who_has_kept_us_waiting_longest_makes_room_and_is_reset() {
    let layer = trusting().handshakes(budget(1, secs(10)));
    let (near, _far) = UnixStream::pair().unwrap();
    let (io, closed) = Witness::pair(near);
    let silent = from(io, PROXY);
    let info = Arc::clone(silent.info());
    let mut waiting = task::spawn(through(layer.clone(), silent));
    assert_pending!(waiting.poll());

    let served = accept(layer, Script::new().bytes(LINE), PROXY).await;

    assert!(served.is_ok());
    assert!(waiting.is_woken());
    assert!(waiting.poll().is_ready());
    assert_eq!(info.close_reason(), Some(CloseReason::HandshakeLimit));
    assert!(closed.is_reset());
}

#[tokio::test(start_paused = true)]
async fn a_place_is_free_again_whichever_way_it_ends() {
    let handshakes = budget(64, secs(10));
    let layer = || trusting().handshakes(handshakes.clone());
    let inner = service_fn(async |_: Conn<Script>| Ok::<_, BoxError>(()));

    let ways = [
        Script::new().bytes(LINE),
        Script::new().bytes("GET /"),
        Script::new().bytes("PROXY").end(),
        Script::new().end(),
        Script::new().fail(io::ErrorKind::ConnectionReset),
        Script::new(),
    ];
    for io in ways {
        let _ended = layer()
            .layer(inner)
            .call(from(io, PROXY))
            .await;
        assert_eq!(handshakes.pending(), 0);
    }
    let mut dropped = task::spawn(accept(layer(), Script::new(), PROXY));
    assert_pending!(dropped.poll());
    let during = handshakes.pending();
    drop(dropped);

    assert_eq!((during, handshakes.pending()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_service_at_work_takes_no_place() {
    let handshakes = budget(1, secs(10));
    let layer = trusting().handshakes(handshakes.clone());
    let mut service = layer.layer(service_fn(async |conn: Conn<Script>| {
        std::future::pending::<()>().await;
        drop(conn);
        Ok::<_, BoxError>(())
    }));

    let mut serving = task::spawn(service.call(from(Script::new().bytes(LINE), PROXY)));

    assert_pending!(serving.poll());
    assert_eq!(handshakes.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn five_hundred_silent_peers_keep_no_good_one_out() {
    let layer = trusting().handshakes(budget(16, secs(10)));
    let mut silent: Vec<_> = (0..500)
        .map(|_| task::spawn(accept(layer.clone(), Script::new(), PROXY)))
        .collect();
    for peer in &mut silent {
        assert_pending!(peer.poll());
    }

    let good = accept(layer, Script::new().bytes(LINE), PROXY).await;

    assert!(good.is_ok());
    let evicted = silent
        .iter()
        .filter(|peer| peer.is_woken());
    assert_eq!(evicted.count(), 500 - 15);
}

// === A drain

#[tokio::test(start_paused = true)]
async fn who_has_said_nothing_leaves_at_once_when_told() {
    let conn = from(Script::new(), PROXY);
    let info = Arc::clone(conn.info());
    let mut waiting = task::spawn(through(trusting(), conn));
    assert_pending!(waiting.poll());

    info.close_after_reply();

    assert!(waiting.is_woken());
    assert!(waiting.poll().is_ready());
    assert_eq!(info.close_reason(), Some(CloseReason::Served));
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_silent_and_lets_a_header_be_finished() {
    let (queue, dialler) = Queue::pair();
    let service = trusting()
        .trust_unnamed(true)
        .layer(service_fn(async |mut conn: Conn<_>| {
            conn.write_all(b"served").await?;
            Ok::<_, BoxError>(())
        }));
    let serve = Server::new(queue).serve(service);
    let handle = serve.handle();
    let serving = tokio::spawn(serve.into_future());
    let mut silent = dialler.dial(256);
    let mut begun = dialler.dial(256);
    begun
        .write_all(&LINE.as_bytes()[..9])
        .await
        .unwrap();
    sleep(secs(1)).await;
    let start = Instant::now();

    handle.shutdown();
    let ended = silent.read(&mut [0; 8]).await.unwrap();
    let after = start.elapsed();
    begun
        .write_all(&LINE.as_bytes()[9..])
        .await
        .unwrap();
    let mut heard = String::new();
    begun
        .read_to_string(&mut heard)
        .await
        .unwrap();
    let report = serving.await.unwrap().unwrap();

    assert_eq!((ended, after), (0, secs(0)));
    assert_eq!(heard, "served");
    assert_eq!(report.closed_for(CloseReason::Drain), 2, "{report}");
    assert_eq!(report.cut(), 0);
}

// === What is counted

#[tokio::test(start_paused = true)]
async fn each_connection_has_one_outcome() {
    let (layer, metrics) = recorded(|| trusting().handshakes(budget(1, secs(1))));
    let v2 = Header::local(Version::V2)
        .encode()
        .unwrap();
    let client = "1.2.3.4:1".parse().unwrap();
    let client = Header::tcp(Version::V2, client, client).unwrap();
    let cases = [
        ("v1", PROXY, Script::new().bytes(LINE)),
        ("v2", PROXY, Script::new().bytes(client.encode().unwrap())),
        ("local", PROXY, Script::new().bytes(v2)),
        ("invalid", PROXY, Script::new().bytes("hello")),
        ("timeout", PROXY, Script::new().bytes("PROX")),
        ("silent", PROXY, Script::new()),
        ("silent", PROXY, Script::new().end()),
        (
            "failed",
            PROXY,
            Script::new().fail(io::ErrorKind::ConnectionReset),
        ),
        ("untrusted", STRANGER, Script::new()),
    ];
    for (outcome, peer, io) in cases {
        let before = outcomes(&metrics, outcome);
        let all = all_outcomes(&metrics);

        let _ended = accept(layer.clone(), io, peer).await;

        assert_eq!(outcomes(&metrics, outcome), before + 1.0, "{outcome}");
        assert_eq!(all_outcomes(&metrics), all + 1.0, "{outcome}");
    }
    let mut evicted = task::spawn(accept(layer.clone(), Script::new(), PROXY));
    assert_pending!(evicted.poll());
    let _served = accept(layer.clone(), Script::new().bytes(LINE), PROXY).await;
    assert!(evicted.poll().is_ready());
    for (others, outcome) in [
        (Others::Direct, "direct"),
        (Others::IgnoreHeader, "ignored"),
    ] {
        let layer = layer.clone().others(others);
        let _served = accept(layer, Script::new().bytes(LINE), STRANGER).await;
        assert_eq!(outcomes(&metrics, outcome), 1.0);
    }

    assert_eq!(outcomes(&metrics, "limit"), 1.0);
    let untrusted = [("reason", "proxy_header")];
    assert_eq!(metrics.of("tower_net_refused_total", &untrusted), 1.0);
}

fn outcomes(metrics: &Readings, outcome: &str) -> f64 {
    metrics.of("tower_net_proxy_headers_total", &[("outcome", outcome)])
}

fn all_outcomes(metrics: &Readings) -> f64 {
    metrics.of("tower_net_proxy_headers_total", &[])
}

// === The service

#[tokio::test]
async fn the_instance_that_was_made_ready_is_the_one_called() {
    // A mock panics when it is called without having been made ready.
    let (inner, mut handle) = tower_test::mock::pair::<Conn<Script>, ()>();
    let mut service = trusting().layer(inner).clone();

    let call = service
        .ready()
        .await
        .unwrap()
        .call(from(Script::new().bytes(LINE), PROXY));
    let call = tokio::spawn(call);
    let (conn, answer) = handle.next_request().await.unwrap();
    answer.send_response(());

    call.await.unwrap().unwrap();
    assert!(conn.info().proxy().is_some());
}

#[tokio::test]
async fn a_header_that_is_slow_holds_up_nobody_else() {
    let calls = Arc::new(AtomicUsize::new(0));
    let called = Arc::clone(&calls);
    let mut service = trusting().layer(service_fn(move |_: Conn<_>| {
        called.fetch_add(1, Relaxed);
        std::future::ready(Ok::<_, BoxError>(()))
    }));
    let (near, mut far) = duplex(64);
    let slow = service.ready().await.unwrap();
    let mut slow = task::spawn(slow.call(from(near, PROXY)));
    assert_pending!(slow.poll());

    let (near, mut quick) = duplex(64);
    quick
        .write_all(LINE.as_bytes())
        .await
        .unwrap();
    let ready = service.ready().await.unwrap();
    ready
        .call(from(near, PROXY))
        .await
        .unwrap();
    let served_first = calls.load(Relaxed);
    far.write_all(LINE.as_bytes())
        .await
        .unwrap();

    assert!(slow.is_woken());
    assert!(slow.poll().is_ready());
    assert_eq!((served_first, calls.load(Relaxed)), (1, 2));
}

#[tokio::test]
async fn a_panic_in_the_service_frees_the_place() {
    let handshakes = budget(1, secs(10));
    let layer = trusting().handshakes(handshakes.clone());
    let mut service = layer.layer(service_fn(|_: Conn<Script>| {
        panic!("told to panic");
        #[expect(unreachable_code, reason = "the type of the service")]
        std::future::ready(Ok::<_, BoxError>(()))
    }));

    let panicked = tokio::spawn(service.call(from(Script::new().bytes(LINE), PROXY))).await;

    assert!(panicked.unwrap_err().is_panic());
    assert_eq!(handshakes.pending(), 0);
}

#[test]
fn a_connection_without_a_header_has_none() {
    let info = ConnInfo::new(Addr::Unnamed, Addr::Unnamed);
    assert!(info.proxy().is_none());

    let local = Header::local(Version::V2);
    assert_eq!(local.command(), Command::Local);
}

#[test]
fn types_are_send_and_debug() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    fn future<T: Send + std::fmt::Debug>(_: &T) {}
    check::<ProxyProtocolLayer>();
    check::<ProxyProtocol<()>>();
    let mut service = trusting().layer(service_fn(async |_: Conn<Script>| Ok::<_, BoxError>(())));
    let called: ProxyProtocolFuture<_, _> = service.call(from(Script::new(), STRANGER));
    future(&called);
}

/// What is logged on this thread.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || writer.clone())
            .finish();
        let on = set_default(subscriber);
        (log, on)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap()
            .extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
