//! What is counted of connections that we open.

use std::{io, task::Poll};

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_test::{assert_pending, task};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn,
    error::BoxError,
    meter::{
        ConnectTally, MeterConnect, MeterConnectFuture, MeterConnectLayer, MeterIo, MeterLayer,
    },
};
use tower_service::Service;

use crate::support::{
    io::Script,
    readings::{Readings, recorded},
    service::secs,
};

fn metered() -> (MeterConnectLayer, ConnectTally, Readings) {
    let ((layer, tally), metrics) = recorded(|| MeterConnectLayer::pair("backend"));
    (layer, tally, metrics)
}

fn outcome(metrics: &Readings, outcome: &str) -> f64 {
    let labels = [("service", "backend"), ("outcome", outcome)];
    metrics.of("tower_net_connects_total", &labels)
}

#[tokio::test]
async fn a_connection_is_counted_from_its_beginning_to_its_end_with_its_bytes() {
    let (layer, tally, metrics) = metered();
    let (near, mut far) = duplex(64);
    let mut near = Some(near);
    let mut connector = layer.layer(service_fn(move |()| {
        let near = near.take().unwrap();
        async move { Ok::<_, BoxError>(Conn::new(near, ())) }
    }));

    let mut conn = connector
        .ready()
        .await
        .unwrap()
        .call(())
        .await
        .unwrap();
    conn.write_all(b"hello").await.unwrap();
    far.write_all(b"hi").await.unwrap();
    conn.read_exact(&mut [0; 2])
        .await
        .unwrap();
    let open = tally.snapshot();
    assert_eq!(
        (conn.info().bytes_written(), conn.info().bytes_read()),
        (5, 2)
    );
    drop(far);
    assert_eq!(conn.read(&mut [0; 1]).await.unwrap(), 0);
    drop(conn);
    let closed = tally.snapshot();

    assert_eq!((open.begun(), open.pending(), open.failed()), (1, 0, 0));
    assert_eq!(open.connections().active(), 1);
    let connections = closed.connections();
    assert_eq!((connections.read(), connections.written()), (2, 5));
    assert_eq!(connections.closed_for(CloseReason::Peer), 1);
    assert_eq!(outcome(&metrics, "ok"), 1.0);
    for (name, expected) in [
        ("tower_net_outgoing_opened_total", 1.0),
        ("tower_net_outgoing_closed_total", 1.0),
        ("tower_net_outgoing_active", 0.0),
        ("tower_net_outgoing_received_bytes_total", 2.0),
        ("tower_net_outgoing_sent_bytes_total", 5.0),
        ("tower_net_outgoing_first_byte_seconds", 1.0),
        ("tower_net_outgoing_seconds", 1.0),
        ("tower_net_connect_seconds", 1.0),
        ("tower_net_connects_pending", 0.0),
    ] {
        let service = [("service", "backend")];
        assert_eq!(metrics.of(name, &service), expected, "{name}");
    }
}

#[tokio::test]
async fn a_failure_is_counted_and_passed_on_untouched() {
    let (layer, tally, metrics) = metered();
    let connector = layer.layer(service_fn(async |()| {
        Err::<Conn<Script>, _>(io::Error::from(io::ErrorKind::ConnectionRefused))
    }));

    let error = connector.oneshot(()).await.unwrap_err();

    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let counts = tally.snapshot();
    assert_eq!((counts.begun(), counts.failed()), (1, 1));
    assert_eq!(counts.connections().opened(), 0);
    assert_eq!(outcome(&metrics, "failed"), 1.0);
    assert_eq!(metrics.of("tower_net_connect_seconds", &[]), 0.0);
}

#[tokio::test(start_paused = true)]
async fn one_that_nobody_waits_for_is_abandoned() {
    let (layer, tally, metrics) = metered();
    let mut connector = layer.layer(service_fn(async |()| {
        tokio::time::sleep(secs(1)).await;
        Ok::<_, BoxError>(Conn::new(Script::new(), ()))
    }));
    let mut call = task::spawn(connector.call(()));
    assert_pending!(call.poll());
    assert_eq!(tally.snapshot().pending(), 1);
    assert_eq!(metrics.of("tower_net_connects_pending", &[]), 1.0);

    drop(call);
    drop(connector.call(()));

    let counts = tally.snapshot();
    assert_eq!((counts.abandoned(), counts.pending()), (2, 0));
    assert_eq!(outcome(&metrics, "abandoned"), 2.0);
    assert_eq!(metrics.of("tower_net_connects_pending", &[]), 0.0);
}

#[tokio::test]
async fn what_is_opened_and_what_is_accepted_are_never_mixed() {
    let ((connect, accept), metrics) =
        recorded(|| (MeterConnectLayer::new("same"), MeterLayer::new("same")));
    let connector = connect.layer(service_fn(async |()| {
        Ok::<_, BoxError>(Conn::new(Script::new(), ()))
    }));

    drop(connector.oneshot(()).await.unwrap());

    assert_eq!(accept.tally().snapshot().opened(), 0);
    assert_eq!(metrics.of("tower_net_connections_opened_total", &[]), 0.0);
    assert_eq!(metrics.of("tower_net_outgoing_opened_total", &[]), 1.0);
}

#[tokio::test]
async fn a_clone_shares_the_counts() {
    let (layer, tally) = MeterConnectLayer::pair("backend");
    let connector = layer
        .clone()
        .layer(service_fn(async |()| {
            Ok::<_, BoxError>(Conn::new(Script::new(), ()))
        }));

    let conns = (
        connector
            .clone()
            .oneshot(())
            .await
            .unwrap(),
        connector.oneshot(()).await.unwrap(),
    );

    assert_eq!(layer.tally().snapshot(), tally.snapshot());
    assert_eq!(tally.snapshot().connections().active(), 2);
    drop(conns);
    assert_eq!(tally.snapshot().connections().active(), 0);
}

#[tokio::test]
async fn the_connector_is_asked_whether_it_is_ready() {
    let (mut service, mut handle) =
        tower_test::mock::spawn_layer::<(), Conn<Script>, _>(MeterConnectLayer::new("backend"));
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.allow(1);
    assert!(matches!(service.poll_ready(), Poll::Ready(Ok(()))));
}

#[test]
fn types_are_send_and_debug() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    fn future<T: Send + std::fmt::Debug>() {}
    check::<MeterConnectLayer>();
    check::<MeterConnect<()>>();
    check::<ConnectTally>();
    future::<MeterConnectFuture<std::future::Ready<()>>>();
    future::<MeterIo<Script>>();
}
