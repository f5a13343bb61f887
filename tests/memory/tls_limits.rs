//! How many handshakes are under way, for how long, and who makes room for whom.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::UnixStream,
    time::{Instant, sleep},
};
use tokio_rustls::rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, ConnInfo, Handshakes, Server, TooManyHandshakes,
    error::{NoTimer, find},
    io::Io,
    meter::MeterLayer,
    tls::{HandshakeError, HandshakeFailure, TlsAcceptLayer},
};
use tower_service::Service;

use crate::{
    support::{
        io::{Queue, Witness},
        peer::serve,
        pki::{Authority, BOTH, connect, provider},
        readings::{Readings, recorded},
        service::{millis, secs},
    },
    tls::{Served, echo, exchange, layer, open, town},
    tls_failures::hello,
};

/// A layer for so many handshakes, within ten seconds.
fn room_for(at_once: usize) -> (Authority, TlsAcceptLayer, Handshakes, Readings) {
    let (authority, server) = town();
    let ((handshakes, layer), metrics) = recorded(|| {
        let handshakes = Handshakes::new(at_once, secs(10)).unwrap();
        let layer = layer(server.serving()).handshakes(handshakes.clone());
        (handshakes, layer)
    });
    (authority, layer, handshakes, metrics)
}

/// A peer that has said so much of its hello, and its connection.
async fn stuck(layer: &TlsAcceptLayer, said: &[u8]) -> (DuplexStream, Arc<ConnInfo>, Served) {
    let (mut far, info, served) = open(layer);
    far.write_all(said).await.unwrap();
    // So that it is read.
    sleep(millis(1)).await;
    (far, info, served)
}

fn failure_of(ended: Result<(), tower_net::error::BoxError>) -> HandshakeFailure {
    let error = ended.unwrap_err();
    find::<HandshakeError>(&*error)
        .unwrap()
        .failure()
}

// === Who makes room

#[tokio::test(start_paused = true)]
async fn the_silent_and_the_slow_make_room_for_a_good_client_the_longest_first() {
    let (authority, layer, handshakes, metrics) = room_for(2);
    let half = &hello(&authority)[..60];
    let (_far, first, first_served) = stuck(&layer, b"").await;
    let (_other_far, second, second_served) = stuck(&layer, half).await;
    assert_eq!(handshakes.pending(), 2);

    for _ in 0..3 {
        let (far, _, _served) = open(&layer);
        let mut good = connect(authority.trusting(), "a.test", far)
            .await
            .unwrap();
        assert_eq!(exchange(&mut good, "hello").await, "hello");
    }

    assert_eq!(
        failure_of(first_served.await.unwrap()),
        HandshakeFailure::Evicted
    );
    assert_eq!(first.close_reason(), Some(CloseReason::HandshakeLimit));
    assert!(!second_served.is_finished());
    assert_eq!((second.close_reason(), handshakes.pending()), (None, 1));
    let refused = [("reason", "handshake_limit")];
    assert_eq!(metrics.of("tower_net_refused_total", &refused), 1.0);
    let evicted = [("outcome", "evicted")];
    assert_eq!(metrics.of("tower_net_handshakes_total", &evicted), 1.0);
}

#[tokio::test(start_paused = true)]
async fn however_many_are_silent_the_number_is_never_above_the_limit() {
    let (authority, layer, handshakes, _) = room_for(8);
    let half = &hello(&authority)[..60];
    let mut kept = Vec::new();

    for number in 0..100 {
        kept.push(stuck(&layer, if number % 2 == 0 { b"" } else { half }).await);
        assert!(handshakes.pending() <= 8);
    }

    let open = kept
        .iter()
        .filter(|(_, _, served)| !served.is_finished());
    assert_eq!((open.count(), handshakes.pending()), (8, 8));
}

#[tokio::test(start_paused = true)]
async fn who_makes_room_is_reset() {
    let (_, layer, _, _) = room_for(1);
    let (near, _far) = UnixStream::pair().unwrap();
    let (near, closed) = Witness::pair(near);
    let (_, served) = serve(near, layer.layer(service_fn(echo)));
    sleep(millis(1)).await;

    let (_far, _, _served) = stuck(&layer, b"").await;

    assert_eq!(failure_of(served.await.unwrap()), HandshakeFailure::Evicted);
    assert!(closed.is_reset());
}

#[tokio::test(start_paused = true)]
async fn who_has_said_everything_makes_room_for_nobody_and_the_newcomer_is_reset() {
    let (authority, layer, handshakes, metrics) = room_for(1);
    let (_far, at_work, _served) = stuck(&layer, &hello(&authority)).await;
    let (near, _other_far) = UnixStream::pair().unwrap();
    let (near, closed) = Witness::pair(near);

    let (info, served) = serve(near, layer.layer(service_fn(echo)));
    let error = served.await.unwrap().unwrap_err();

    let error = find::<TooManyHandshakes>(&*error).unwrap();
    assert_eq!((error.at_once(), error.never_started()), (1, true));
    assert_eq!(info.close_reason(), Some(CloseReason::HandshakeLimit));
    assert!(closed.is_reset());
    assert_eq!((at_work.close_reason(), handshakes.pending()), (None, 1));
    // It was never begun.
    assert_eq!(metrics.of("tower_net_handshakes_total", &[]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn who_stops_after_its_hello_makes_room_as_well_once_it_has_kept_us_waiting() {
    let (authority, layer, handshakes, metrics) = room_for(2);
    let hello = hello(&authority);
    let (_far, first, first_served) = stuck(&layer, &hello).await;
    sleep(millis(600)).await;
    let (_other_far, second, _second_served) = stuck(&layer, &hello).await;
    sleep(millis(400)).await;

    // It took the first one a second, a tenth of its time.
    for _ in 0..3 {
        let (far, _, _served) = open(&layer);
        let mut good = connect(authority.trusting(), "a.test", far)
            .await
            .unwrap();
        assert_eq!(exchange(&mut good, "hello").await, "hello");
    }

    let ended = first_served.await.unwrap();
    assert_eq!(failure_of(ended), HandshakeFailure::Evicted);
    assert_eq!(first.close_reason(), Some(CloseReason::HandshakeLimit));
    assert_eq!((second.close_reason(), handshakes.pending()), (None, 1));
    let refused = [("reason", "handshake_limit")];
    assert_eq!(metrics.of("tower_net_refused_total", &refused), 1.0);
}

#[tokio::test(start_paused = true)]
async fn who_makes_room_after_its_hello_is_counted_for_that_by_a_meter_above() {
    let (authority, layer, _, _) = room_for(1);
    let (meter, metrics) = recorded(|| MeterLayer::new("tls"));
    let (near, mut far) = duplex(64 * 1024);
    let (_, served) = serve(near, meter.layer(layer.layer(service_fn(echo))));
    far.write_all(&hello(&authority))
        .await
        .unwrap();
    sleep(secs(2)).await;

    let (_other_far, _, _other_served) = open(&layer);

    assert_eq!(failure_of(served.await.unwrap()), HandshakeFailure::Evicted);
    let limit = [("reason", "handshake_limit")];
    let name = "tower_net_connections_closed_total";
    assert_eq!(
        (metrics.of(name, &limit), metrics.of(name, &[])),
        (1.0, 1.0)
    );
}

#[tokio::test(start_paused = true)]
async fn established_connections_do_not_count() {
    let (authority, layer, handshakes, _) = room_for(1);
    let mut established = Vec::new();

    for _ in 0..5 {
        let (far, _, served) = open(&layer);
        let mut client = connect(authority.trusting(), "a.test", far)
            .await
            .unwrap();
        exchange(&mut client, "hello").await;
        established.push((client, served));
    }

    assert_eq!(handshakes.pending(), 0);
}

#[tokio::test(start_paused = true)]
async fn layers_with_clones_of_the_same_handshakes_count_together() {
    let (_, layer, handshakes, _) = room_for(1);
    let (_, server) = town();
    let other = crate::tls::layer(server.serving()).handshakes(handshakes.clone());
    let (_far, _, first) = stuck(&layer, b"").await;

    let (_other_far, _, _second) = stuck(&other, b"").await;

    assert_eq!(failure_of(first.await.unwrap()), HandshakeFailure::Evicted);
    assert_eq!(handshakes.pending(), 1);
}

// === Dry run

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_what_it_would_have_done_and_does_nothing() {
    let (authority, server) = town();
    let ((handshakes, layer), metrics) = recorded(|| {
        let handshakes = Handshakes::new(1, secs(10))
            .unwrap()
            .dry_run(true);
        let layer = layer(server.serving()).handshakes(handshakes.clone());
        (handshakes, layer)
    });
    let hello = hello(&authority);
    let (silent, _, _silent) = stuck(&layer, b"").await;
    let (_slow, _, _slow_served) = stuck(&layer, &hello[..60]).await;
    let (_late, _, _late_served) = stuck(&layer, &hello).await;

    sleep(secs(60)).await;

    let spared = |reason| metrics.of("tower_net_dry_run_total", &[("reason", reason)]);
    assert_eq!(spared("handshake_limit"), 2.0);
    assert_eq!((spared("first_byte"), spared("handshake")), (1.0, 2.0));
    assert_eq!(metrics.of("tower_net_refused_total", &[]), 0.0);
    assert_eq!(handshakes.pending(), 3);
    let mut silent = connect(authority.trusting(), "a.test", silent)
        .await
        .unwrap();
    assert_eq!(exchange(&mut silent, "hello").await, "hello");
}

// === Places come back

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_handshake_frees_its_place_and_is_contained() {
    #[derive(Debug)]
    struct Panics;
    impl ResolvesServerCert for Panics {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            panic!("told to panic")
        }
    }
    let (authority, _) = town();
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&BOTH)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Panics));
    let handshakes = Handshakes::new(2, secs(10)).unwrap();
    let (queue, dialler) = Queue::pair();
    let (stack, tally, metrics) = {
        let ((meter, layer), metrics) = recorded(|| {
            let layer = layer(config).handshakes(handshakes.clone());
            (MeterLayer::new("test"), layer)
        });
        let tally = meter.tally();
        let stack = ServiceBuilder::new()
            .layer(meter)
            .layer(layer)
            .service_fn(echo);
        (stack, tally, metrics)
    };
    let serve = Server::new(queue)
        .serve(stack)
        .keep_descriptor_limit();
    let _serving = tokio::spawn(serve.into_future());

    for _ in 0..5 {
        let mut far = dialler.dial(64 * 1024);
        far.write_all(&hello(&authority))
            .await
            .unwrap();
        let mut heard = Vec::new();
        far.read_to_end(&mut heard)
            .await
            .unwrap();
    }

    assert_eq!(handshakes.pending(), 0);
    assert_eq!(
        tally
            .snapshot()
            .closed_for(CloseReason::Panic),
        5
    );
    let abandoned = [("outcome", "abandoned")];
    assert_eq!(metrics.of("tower_net_handshakes_total", &abandoned), 5.0);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_is_dropped_frees_its_place() {
    let (authority, layer, handshakes, metrics) = room_for(1);
    let (_far, _, served) = stuck(&layer, &hello(&authority)).await;
    assert_eq!(handshakes.pending(), 1);

    served.abort();
    served.await.unwrap_err();

    assert_eq!(handshakes.pending(), 0);
    let abandoned = [("outcome", "abandoned")];
    assert_eq!(metrics.of("tower_net_handshakes_total", &abandoned), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_takes_no_place() {
    let (_, layer, handshakes, _) = room_for(1);

    let (_far, info, served) = stuck(&layer, b"GET /").await;

    assert_eq!(info.close_reason(), Some(CloseReason::HandshakeFailed));
    assert!(!served.is_finished());
    assert_eq!(handshakes.pending(), 0);
}

// === Drain

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_silent_at_once_and_lets_a_handshake_that_has_begun_go_on() {
    let (authority, server) = town();
    let (queue, dialler) = Queue::pair();
    let stack = layer(server.serving()).layer(service_fn(leaving_echo));
    let serve = Server::new(queue)
        .serve(stack)
        .drain_for(secs(30))
        .keep_descriptor_limit();
    let handle = serve.handle();
    let running = tokio::spawn(serve.into_future());
    let mut silent = dialler.dial(64 * 1024);
    let begun = dialler.dial(64 * 1024);
    let (begun_near, begun_far) = duplex(64 * 1024);
    let _relay = tokio::spawn(relay_slowly(begun_near, begun));
    let client = tokio::spawn(async move {
        let config = authority.trusting();
        let mut client = connect(config, "a.test", begun_far).await?;
        let mut heard = String::new();
        client
            .read_to_string(&mut heard)
            .await?;
        std::io::Result::Ok(heard)
    });
    sleep(millis(50)).await;
    let start = Instant::now();

    handle.shutdown();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    let silent_for = start.elapsed();
    let report = running.await.unwrap().unwrap();

    assert!(silent_for <= millis(20), "{silent_for:?}");
    assert_eq!(client.await.unwrap().unwrap(), "goodbye");
    assert_eq!(report.cut(), 0);
    assert_eq!(report.closed_for(CloseReason::Drain), 2);
}

/// Says goodbye when told to leave.
async fn leaving_echo<I: Io>(
    mut conn: Conn<tower_net::tls::TlsIo<I>>,
) -> Result<(), tower_net::error::BoxError> {
    let info = Arc::clone(conn.info());
    info.told_to_leave().await;
    conn.write_all(b"goodbye").await?;
    conn.shutdown().await?;
    Ok(())
}

/// Both ways, a hundred bytes each tenth of a second.
async fn relay_slowly(mut near: DuplexStream, mut far: DuplexStream) {
    let (mut up, mut down) = ([0; 100], [0; 100]);
    loop {
        let sent = tokio::select! {
            read = near.read(&mut up) => far.write_all(&up[..read.unwrap()]).await.is_ok(),
            read = far.read(&mut down) => match read.unwrap() {
                0 => return,
                read => near.write_all(&down[..read]).await.is_ok(),
            },
        };
        if !sent {
            return;
        }
        sleep(millis(100)).await;
    }
}

// === Time

#[test]
fn a_runtime_that_keeps_no_time_is_refused_before_the_first_connection() {
    let (_, server) = town();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();

    let error = runtime.block_on(async {
        let mut service = layer(server.serving()).layer(service_fn(echo::<DuplexStream>));
        let ready = ServiceExt::<Conn<DuplexStream>>::ready(&mut service).await;
        ready.map(|_| ()).unwrap_err()
    });

    assert!(find::<NoTimer>(&*error).is_some(), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn the_service_is_as_ready_as_the_one_inside() {
    #[derive(Clone, Debug)]
    struct Busy;
    impl Service<Conn<tower_net::tls::TlsIo<DuplexStream>>> for Busy {
        type Response = ();
        type Error = std::io::Error;
        type Future = std::future::Ready<std::io::Result<()>>;

        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Pending
        }

        fn call(&mut self, _: Conn<tower_net::tls::TlsIo<DuplexStream>>) -> Self::Future {
            unreachable!("never ready")
        }
    }
    let (_, server) = town();
    let service = layer(server.serving()).layer(Busy);

    let mut ready = tokio_test::task::spawn(service.ready_oneshot());

    tokio_test::assert_pending!(ready.poll());
}
