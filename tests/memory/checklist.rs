use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tower::{ServiceBuilder, service_fn};
use tower_net::{
    Checklist, Conn, Networks, Safeguard, Server,
    deadline::{DeadlineLayer, Deadlines},
    detect::{DetectLayer, Protocol},
    error::BoxError,
    frame::{Delimited, FrameLayer, Framing},
    limit::ConnectionLimitLayer,
    meter::MeterLayer,
    proxy_protocol::ProxyProtocolLayer,
};
use tower_service::Service;

use crate::{
    support::{io::Queue, peer::Peer, service::obey},
    tls::{layer, town},
    trace::Log,
};

/// Serves one connection to its end with `service`, and asks before, while it is open, and after.
async fn lists_of<S>(service: S, drain: Duration) -> [Checklist; 3]
where
    S: Service<Conn<DuplexStream>, Response = (), Error = BoxError, Future: Send>,
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
    far.write_all(b"hi\n").await.unwrap();
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

/// What the log says of missing guards once each of these has said so much, and left.
async fn said_of<S>(service: S, visits: &[&[u8]]) -> Vec<String>
where
    S: Service<Conn<DuplexStream>, Response = (), Error = BoxError, Future: Send>,
    S: Clone + Send + 'static,
{
    let (log, _on) = Log::start();
    let (queue, dialler) = Queue::pair();
    let serve = Server::new(queue).serve(service);
    let handle = serve.handle();
    let serving = tokio::spawn(serve.into_future());
    for said in visits {
        let mut far = dialler.dial(64);
        far.write_all(said).await.unwrap();
        far.shutdown().await.unwrap();
        far.read_to_end(&mut Vec::new())
            .await
            .unwrap();
    }
    handle.shutdown();
    serving.await.unwrap().unwrap();
    log.lines("production guard")
}

#[tokio::test(start_paused = true)]
async fn the_log_goes_by_a_connection_that_was_served_and_not_by_a_probe() {
    let proxies = || {
        ProxyProtocolLayer::required_from(Networks::new())
            .unwrap()
            .trust_unnamed(true)
    };
    let guarded = ServiceBuilder::new()
        .layer(MeterLayer::new("test"))
        .layer(ConnectionLimitLayer::new(9).unwrap())
        .layer(proxies())
        .layer(DeadlineLayer::default())
        .layer(FrameLayer::new(Delimited::lines(64)))
        .service_fn(obey);

    let said = said_of(
        guarded,
        &[
            b"",
            b"PROXY ",
            b"GET / HTTP/1.1",
            b"PROXY UNKNOWN\r\nhi\n",
            b"",
        ],
    )
    .await;

    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("missing=per_peer_limit"), "{said:?}");
}

async fn behind<I>(_: Conn<I>) -> Result<(), BoxError> {
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_log_says_nothing_of_guards_behind_a_handshake_that_nobody_has_done() {
    let (_, server) = town();
    let tls = ServiceBuilder::new()
        .layer(layer(server.serving()))
        .service_fn(behind);
    let detect = ServiceBuilder::new()
        .layer(DetectLayer::new().route(Protocol::tls(), service_fn(behind)))
        .service_fn(behind);

    assert_eq!(said_of(tls, &[b"", b"GET /"]).await, [""; 0]);
    assert_eq!(said_of(detect, &[b""]).await, [""; 0]);
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
