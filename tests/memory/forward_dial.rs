//! A tunnel before it is one: how long its upstream is waited for, and by whose time.

use std::{
    future::pending,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncWriteExt, DuplexStream, duplex},
    time::{Instant, sleep},
};
use tower::{ServiceExt, service_fn};
use tower_net::{
    Conn, Deadline, Spent,
    error::find,
    forward::{ConnectError, Forward, Timeouts},
};
use tower_service::Service;

use crate::support::service::secs;

/// Opens a stream after so long, and puts down what deadline it found meanwhile.
fn after(
    time: Duration,
    found: &Arc<Mutex<Vec<Deadline>>>,
) -> impl Service<(), Response = Conn<DuplexStream>, Error = io::Error, Future: Send> + Clone + use<>
{
    let found = Arc::clone(found);
    service_fn(move |()| {
        let found = Arc::clone(&found);
        found
            .lock()
            .unwrap()
            .push(Deadline::current());
        async move {
            sleep(time).await;
            found
                .lock()
                .unwrap()
                .push(Deadline::current());
            Ok(Conn::new(duplex(64).0, ()))
        }
    })
}

#[tokio::test(start_paused = true)]
async fn the_time_to_connect_begins_with_the_dial_and_not_with_the_accept() {
    let (far, mut client) = duplex(64);
    let conn = Conn::new(far, ());
    let info = Arc::clone(conn.info());
    sleep(secs(3)).await;

    let served = tokio::spawn(Forward::to(after(secs(2), &Arc::default()), ()).oneshot(conn));
    client.shutdown().await.unwrap();
    // Its upstream is gone as soon as it is there.
    let _over = served.await.unwrap();

    assert_eq!(info.tunnel().unwrap().connected_in(), secs(2));
}

#[tokio::test(start_paused = true)]
async fn the_callers_deadline_holds_if_it_is_earlier_and_is_named() {
    for (caller, limit, spent, text) in [
        (1, 5, Spent::Caller, "before the caller's deadline"),
        (9, 5, Spent::Limit(secs(5)), "within 5s"),
    ] {
        let connector = service_fn(|()| pending::<io::Result<Conn<DuplexStream>>>());
        let (far, _client) = duplex(64);
        let begun = Instant::now();

        let serving = Forward::to(connector, ()).oneshot(Conn::new(far, ()));
        let served = Deadline::within(secs(caller))
            .scope(serving)
            .await;

        assert_eq!(begun.elapsed(), secs(caller.min(limit)));
        let error = served.unwrap_err();
        let error = find::<ConnectError>(&*error).unwrap();
        assert_eq!(error.spent(), Some(spent));
        assert_eq!(error.to_string(), format!("upstream not connected {text}"));
    }
}

#[tokio::test(start_paused = true)]
async fn in_a_dry_run_a_connector_finds_the_callers_deadline_and_none_of_ours() {
    let caller = Deadline::within(secs(9));
    for scope in [caller, Deadline::NEVER] {
        let found = Arc::default();
        let timeouts = Timeouts::default()
            .connect(secs(1))
            .dry_run(true);
        let service = Forward::to(after(secs(2), &found), ())
            .timeouts(timeouts)
            .unwrap();
        let (far, mut client) = duplex(64);
        client.shutdown().await.unwrap();

        let serving = service.oneshot(Conn::new(far, ()));
        scope.scope(serving).await.unwrap();

        assert_eq!(*found.lock().unwrap(), [scope; 2]);
    }
}
