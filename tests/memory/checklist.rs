use std::time::Duration;

use tokio::io::AsyncReadExt;
use tower::ServiceBuilder;
use tower_net::{
    Checklist, Conn, Safeguard, Server,
    deadline::{DeadlineLayer, Deadlines},
    error::BoxError,
    frame::{Delimited, FrameLayer, Framing},
    limit::ConnectionLimitLayer,
    meter::MeterLayer,
};
use tower_service::Service;

use crate::support::{io::Queue, peer::Peer, service::obey};

/// Serves one connection to its end with `service`, and asks before, while it is open, and after.
async fn lists_of<S>(service: S, drain: Duration) -> [Checklist; 3]
where
    S: Service<Conn<tokio::io::DuplexStream>, Response = (), Error = BoxError, Future: Send>,
    S: Clone + Send + 'static,
{
    let (queue, dialler) = Queue::pair();
    let serve = Server::new(queue)
        .serve(service)
        .drain_for(drain);
    let handle = serve.handle();
    let serving = tokio::spawn(serve.into_future());
    tokio::task::yield_now().await;
    let before = handle.checklist();

    let mut far = dialler.dial(64);
    tokio::io::AsyncWriteExt::write_all(&mut far, b"hi\n")
        .await
        .unwrap();
    far.read_u8().await.unwrap();
    let open = handle.checklist();

    drop(far);
    handle.shutdown();
    serving.await.unwrap().unwrap();
    [before, open, handle.checklist()]
}

fn missing(list: &Checklist) -> Vec<Safeguard> {
    list.missing().collect()
}

#[tokio::test(start_paused = true)]
async fn a_guard_counts_once_a_connection_has_passed_it() {
    let service = ServiceBuilder::new()
        .layer(MeterLayer::new("test"))
        .layer(ConnectionLimitLayer::new(9).unwrap())
        .layer(DeadlineLayer::default())
        .layer(FrameLayer::new(Delimited::lines(64)))
        .service_fn(obey);

    let [before, open, after] = lists_of(service, Duration::from_secs(30)).await;

    let by_the_server = [Safeguard::Descriptors, Safeguard::Drain];
    let lacked = Safeguard::ALL
        .iter()
        .filter(|one| !by_the_server.contains(one));
    assert_eq!(missing(&before), lacked.copied().collect::<Vec<_>>());
    assert_eq!(missing(&open), [Safeguard::PerPeerLimit]);
    assert_eq!(open, after);
    assert!(!after.is_complete() && after.has(Safeguard::Meter));
    assert!(
        after
            .to_string()
            .contains("missing per_peer_limit\n"),
        "{after}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_off_is_no_guard() {
    let off = Duration::MAX;
    let deadlines = Deadlines::none().idle(Duration::from_secs(9));
    let framing = Framing::default()
        .request_deadline(off)
        .handler_deadline(off)
        .reply_deadline(off);
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(deadlines).unwrap())
        .layer(FrameLayer::with_framing(Delimited::lines(64), framing).unwrap())
        .service_fn(obey);

    let [_, _, after] = lists_of(service, off).await;

    let present: Vec<_> = Safeguard::ALL
        .iter()
        .filter(|one| after.has(**one))
        .collect();
    assert_eq!(
        present,
        [
            &Safeguard::Descriptors,
            &Safeguard::FrameCap,
            &Safeguard::Idle
        ]
    );
}

#[tokio::test]
async fn a_connection_knows_what_it_has_passed() {
    let service = ServiceBuilder::new()
        .layer(MeterLayer::new("test"))
        .layer(FrameLayer::new(Delimited::lines(64)))
        .service_fn(obey);
    let mut peer = Peer::of(service);
    peer.send("hi\n").await;
    peer.hear().await;

    assert!(peer.info.has_passed(Safeguard::Meter));
    assert!(
        !peer
            .info
            .has_passed(Safeguard::ConnectionLimit)
    );
}

#[test]
fn every_guard_has_a_name_of_its_own() {
    let mut names: Vec<_> = Safeguard::ALL
        .iter()
        .map(|one| one.label())
        .collect();
    names.sort_unstable();
    names.dedup();

    assert_eq!(names.len(), Safeguard::ALL.len());
}
