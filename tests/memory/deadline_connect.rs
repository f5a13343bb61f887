//! One deadline for the opening of a connection.

use std::{error::Error, future::pending, io, time::Duration};

use futures_util::FutureExt;
use tokio::time::{Instant, advance, sleep};
use tokio_test::{assert_pending, task};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_net::{
    Conn, Deadline, Spent,
    connect::ConnectError,
    deadline::{ConnectDeadline, ConnectDeadlineFuture, ConnectDeadlineLayer, ConnectElapsed},
    error::{BoxError, NoTimer, find},
};
use tower_service::Service;

use crate::support::{
    io::Script,
    readings::recorded,
    service::{millis, secs},
};

fn within(limit: Duration) -> ConnectDeadlineLayer {
    ConnectDeadlineLayer::new(limit).unwrap()
}

async fn opened() -> Result<Conn<Script>, BoxError> {
    Ok(Conn::new(Script::new(), ()))
}

#[tokio::test(start_paused = true)]
async fn what_is_open_in_time_is_passed_on_and_so_is_what_fails_in_time() {
    let connector = within(secs(1)).layer(service_fn(async |fails: bool| {
        sleep(millis(999)).await;
        if fails {
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
        }
        opened().await
    }));

    let conn = connector.clone().oneshot(false).await;
    let error = connector.oneshot(true).await;

    assert!(conn.is_ok());
    let error = error.unwrap_err();
    assert!(find::<ConnectElapsed>(&*error).is_none());
    assert!(error.is::<io::Error>());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_open_in_time_is_dropped_and_the_error_says_whose_time_it_was() {
    let start = Instant::now();
    let connector = within(secs(1)).layer(service_fn(async |()| {
        pending::<Result<Conn<Script>, BoxError>>().await
    }));

    let error = connector.oneshot(()).await.unwrap_err();

    assert_eq!(start.elapsed(), secs(1));
    let elapsed = find::<ConnectElapsed>(&*error).unwrap();
    assert_eq!(elapsed.spent(), Spent::Limit(secs(1)));
    assert!(elapsed.is_never_sent());
    assert_eq!(error.to_string(), "connection not open within 1s");
    let elapsed = error
        .downcast::<ConnectElapsed>()
        .unwrap();
    assert_eq!(io::Error::from(*elapsed).kind(), io::ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn the_earlier_of_the_limit_and_the_callers_deadline_holds_and_is_named() {
    for (outer, inner, spent, named) in [
        (1, 5, Spent::Caller, "before the caller's deadline"),
        (5, 1, Spent::Limit(secs(1)), "within 1s"),
    ] {
        let start = Instant::now();
        let connector = ServiceBuilder::new()
            .layer(within(secs(outer)))
            .layer(within(secs(inner)))
            .service(service_fn(async |()| {
                pending::<Result<Conn<Script>, BoxError>>().await
            }));

        let error = connector.oneshot(()).await.unwrap_err();

        assert_eq!(start.elapsed(), secs(1));
        // The outer one says so too when it is its own time.
        let inside = match error.downcast::<ConnectElapsed>() {
            Ok(elapsed) if outer == 1 => {
                assert_eq!(elapsed.spent(), Spent::Limit(secs(1)));
                let source = elapsed.source();
                find::<ConnectElapsed>(source.unwrap())
                    .unwrap()
                    .spent()
            }
            other => other.unwrap().spent(),
        };
        assert_eq!(inside, spent);
        assert!(format!("connection not open {spent}").ends_with(named));
    }
}

#[tokio::test(start_paused = true)]
async fn the_connector_finds_the_deadline_when_it_is_called_and_nobody_does_after() {
    let connector = service_fn(|()| {
        let found = Deadline::current().remaining();
        async move {
            assert_eq!(found, secs(3));
            opened().await
        }
    });

    let opened = within(secs(3))
        .layer(connector)
        .oneshot(())
        .await;

    assert!(opened.is_ok());
    assert_eq!(Deadline::current(), Deadline::NEVER);
}

#[tokio::test(start_paused = true)]
async fn the_connector_finds_the_deadline_whenever_it_is_polled_as_well() {
    let connector = service_fn(async |()| {
        sleep(secs(1)).await;
        assert_eq!(Deadline::current().remaining(), secs(2));
        opened().await
    });

    let connecting = within(secs(3))
        .layer(connector)
        .oneshot(());

    assert!(connecting.await.is_ok());
    assert_eq!(Deadline::current(), Deadline::NEVER);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_once_what_is_not_open_in_time_and_lets_it_go_on() {
    let (layer, metrics) = recorded(|| within(secs(1)).dry_run(true));
    let connector = layer.layer(service_fn(async |time: Duration| {
        sleep(time).await;
        assert_eq!(Deadline::current(), Deadline::NEVER);
        opened().await
    }));

    for time in [millis(999), secs(3), secs(90)] {
        assert!(
            connector
                .clone()
                .oneshot(time)
                .await
                .is_ok()
        );
    }

    let spared = metrics.of("tower_net_dry_run_total", &[("reason", "upstream")]);
    assert_eq!(spared, 2.0);
}

#[tokio::test(start_paused = true)]
async fn in_a_dry_run_the_callers_deadline_holds_as_ever() {
    for (caller, counted) in [(5, 1.0), (1, 0.0)] {
        let (layer, metrics) = recorded(|| within(secs(2)).dry_run(true));
        let connector = layer.layer(service_fn(async |()| {
            pending::<Result<Conn<Script>, BoxError>>().await
        }));
        let start = Instant::now();

        let connecting = Deadline::within(secs(caller)).scope(connector.oneshot(()));
        let error = connecting.await.unwrap_err();

        assert_eq!(start.elapsed(), secs(caller));
        let elapsed = find::<ConnectElapsed>(&*error).unwrap();
        assert_eq!(elapsed.spent(), Spent::Caller);
        let spared = metrics.of("tower_net_dry_run_total", &[("reason", "upstream")]);
        assert_eq!(spared, counted);
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_callers_time_is_over_the_connector_is_not_called() {
    let connector = within(secs(1)).layer(service_fn(|()| {
        let never = service_fn(|()| -> std::future::Ready<Result<Conn<Script>, BoxError>> {
            panic!("it must not be called")
        });
        let _moved = advance(secs(2)).now_or_never();
        within(secs(5)).layer(never).call(())
    }));

    let error = connector.oneshot(()).await.unwrap_err();

    let outer = error
        .downcast::<ConnectElapsed>()
        .unwrap();
    let inner = find::<ConnectElapsed>(outer.source().unwrap()).unwrap();
    assert_eq!(inner.spent(), Spent::Caller);
    assert!(inner.source().is_none());
}

#[tokio::test(start_paused = true)]
async fn no_limit_leaves_it_to_the_caller() {
    let connector = within(Duration::MAX).layer(service_fn(|()| {
        let found = Deadline::current();
        async move {
            sleep(secs(3600)).await;
            assert_eq!(found, Deadline::NEVER);
            opened().await
        }
    }));

    assert!(connector.oneshot(()).await.is_ok());
    assert!(ConnectDeadlineLayer::new(secs(0)).is_err());
}

#[tokio::test(start_paused = true)]
async fn the_deadline_wakes_its_task() {
    let connector = within(secs(1)).layer(service_fn(async |()| {
        pending::<Result<Conn<Script>, BoxError>>().await
    }));
    let mut call = task::spawn(connector.oneshot(()));
    assert_pending!(call.poll());

    sleep(secs(1)).await;

    assert!(call.is_woken());
    assert!(call.poll().is_ready());
}

#[test]
fn without_a_time_driver_the_layer_says_so() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let connector = within(secs(1)).layer(service_fn(async |()| opened().await));

    let error = runtime.block_on(connector.oneshot(()));

    assert!(find::<NoTimer>(&*error.unwrap_err()).is_some());
}

#[test]
fn types_are_send_and_debug() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    fn future<T: Send + std::fmt::Debug>() {}
    check::<ConnectDeadlineLayer>();
    check::<ConnectDeadline<()>>();
    future::<ConnectDeadlineFuture<std::future::Ready<()>>>();
    future::<ConnectError>();
}
