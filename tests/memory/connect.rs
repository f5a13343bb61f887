//! Targets, lookups, and what the connector says of its own failures.

use std::{
    convert::Infallible,
    future::pending,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    task::Poll,
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_net::{
    Conn, Spent,
    connect::{
        ConnectError, ConnectPhase, FailedAttempts, Name, Resolved, SocketOptions, SystemLookup,
        SystemResolver, Target, TargetError, TcpConnectFuture, TcpConnector, TooManyLookups,
        UnixConnectFuture, UnixConnector, UnixTarget,
    },
    deadline::ConnectDeadlineLayer,
    error::{BoxError, NoTimer, find},
    frame::{Delimited, FrameLayer, Framing, Request},
};
use tower_test::mock;

use crate::support::{
    peer::Peer,
    random::Random,
    service::{millis, secs},
};

fn target(text: &str) -> Target {
    text.parse().unwrap()
}

// === Targets

#[test]
fn a_text_is_a_name_or_an_address_and_a_port() {
    let name = target("Example.ORG:443");
    assert_eq!(name.name().unwrap().as_str(), "example.org");
    assert_eq!((name.addr(), name.port()), (None, 443));
    assert_eq!(name.to_string(), "example.org:443");

    for text in ["192.0.2.1:80", "[2001:db8::1]:80", "[fe80::1%2]:80"] {
        let addr = target(text);
        assert_eq!(addr.addr(), Some(text.parse().unwrap()));
        assert_eq!((addr.name(), addr.port()), (None, 80));
        assert_eq!(addr.to_string(), text);
    }
}

#[test]
fn a_pair_and_an_address_are_what_their_text_is() {
    let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::LOCALHOST);
    let pairs = [
        (("a.test", 80).try_into(), "a.test:80"),
        (("192.0.2.1", 80).try_into(), "192.0.2.1:80"),
        (("::1", 80).try_into(), "[::1]:80"),
        (("[::1]".to_owned(), 80).try_into(), "[::1]:80"),
        (Ok((v4, 80).into()), "192.0.2.1:80"),
        (Ok((v6, 80).into()), "[::1]:80"),
        (Ok((IpAddr::V4(v4), 80).into()), "192.0.2.1:80"),
        (Ok(SocketAddr::from((v6, 80)).into()), "[::1]:80"),
    ];
    for (made, text) in pairs {
        let made: Result<Target, TargetError> = made;
        assert_eq!(made.unwrap(), target(text));
    }
}

#[test]
fn what_is_no_target_is_refused_with_its_text_and_the_problem() {
    let longest = format!("{}.{}:1", ["a"; 63].concat(), ["b.cd"; 47].concat());
    target(&longest);
    let too_long = format!("{}:1", ["abc"; 64].join("."));
    for (text, problem) in [
        ("", "no port"),
        ("example.org", "no port"),
        ("example.org:0", "no port"),
        ("192.0.2.1:0", "no port"),
        ("example.org:", "port"),
        ("example.org:+80", "port"),
        ("example.org:65536", "port"),
        ("example.org:http", "port"),
        (":80", "no name"),
        ("::1:80", "in brackets"),
        ("[::1:80", "in brackets"),
        ("[::1]", "in brackets"),
        ("[fe80::1%eth0]:80", "in brackets"),
        ("[192.0.2.1]:80", "in brackets"),
        ("a..b:1", "no name"),
        ("-a.test:1", "no name"),
        ("a-.test:1", "no name"),
        ("a b:1", "no name"),
        ("a/b:1", "no name"),
        ("münchen.test:1", "no name"),
        ("127.1:80", "neither"),
        ("1234:80", "neither"),
        ("a.0x7f:80", "neither"),
        ("299.1.1.1:80", "neither"),
        (&*too_long, "no name"),
    ] {
        let error = text.parse::<Target>().unwrap_err();

        assert!(error.problem().contains(problem), "{text:?}: {error}");
        assert!(text.contains(error.text()), "{text:?}: {error}");
        assert!(error.to_string().len() < 300, "{error}");
    }
}

#[test]
fn whatever_is_a_target_is_one_again_as_it_is_written() {
    let pieces = [
        "a", "Z", "9", "-", "_", ".", ":", "[", "]", "%", "0x", "::", "127", ":80", "é", " ", "\0",
    ];
    let mut random = Random::new(7);
    let mut targets = 0;
    for _ in 0..20_000 {
        let mut text: String = (0..random.among(1, 9))
            .map(|_| random.pick(&pieces))
            .collect();
        text += random.pick(&["", ":80", "]:65535"]);
        if let Ok(target) = text.parse::<Target>() {
            targets += 1;
            assert_eq!(target.to_string().parse(), Ok(target), "{text:?}");
        }
    }
    assert!(targets > 300, "{targets}");
}

#[test]
fn a_dot_at_the_end_is_kept_for_the_resolver_and_left_out_for_others() {
    let name = Name::try_from("a.test.").unwrap();

    assert_eq!((name.as_str(), name.without_dot()), ("a.test.", "a.test"));
}

#[test]
fn a_port_that_the_resolver_knows_counts_more_than_the_targets() {
    let target = target("a.test:80");
    let addr = IpAddr::from([192, 0, 2, 1]);

    let without = Resolved::from(addr).addr(&target);
    let zero = Resolved::from(SocketAddr::new(addr, 0)).addr(&target);
    let with = Resolved::from(SocketAddr::new(addr, 81)).addr(&target);

    assert_eq!([without, zero, with].map(|addr| addr.port()), [80, 80, 81]);
}

// === Lookups

/// The error of a connector whose lookups end so.
async fn failed<F, A>(to: &str, lookup: impl Fn(Name) -> F + Clone) -> ConnectError
where
    F: Future<Output = io::Result<A>> + Send + 'static,
    A: IntoIterator<Item: Into<Resolved>>,
{
    let connector = TcpConnector::with_resolver(service_fn(lookup));
    connector
        .timeout(secs(5))
        .unwrap()
        .oneshot(to.to_owned())
        .await
        .unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_none_is_an_error_before_anything_is_looked_up() {
    let error = failed("no port", async |_| -> io::Result<Vec<IpAddr>> {
        panic!("nothing is looked up")
    })
    .await;

    assert_eq!(error.phase(), ConnectPhase::Begin);
    assert!(find::<TargetError>(&error).is_some());
    assert!(error.is_never_sent());
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_fails_is_the_cause() {
    let error = failed("a.test:1", async |_| {
        Err::<Vec<IpAddr>, _>(io::Error::new(io::ErrorKind::NotFound, "no such host"))
    })
    .await;

    assert_eq!((error.phase(), error.spent()), (ConnectPhase::Lookup, None));
    assert_eq!(
        error.to_string(),
        "cannot connect to a.test:1: name lookup failed"
    );
    assert_eq!(
        find::<io::Error>(&error)
            .unwrap()
            .to_string(),
        "no such host"
    );
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_name_without_an_address_is_said_to_have_none() {
    let error = failed("a.test:1", async |_| Ok(Vec::<SocketAddr>::new())).await;

    assert_eq!(error.phase(), ConnectPhase::Lookup);
    assert_eq!(
        error.to_string(),
        "cannot connect to a.test:1: name has no address"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_hangs_ends_at_the_connectors_own_limit() {
    let start = Instant::now();

    let error = failed("a.test:1", async |_| {
        pending::<io::Result<Vec<IpAddr>>>().await
    })
    .await;

    assert_eq!(start.elapsed(), secs(5));
    assert_eq!(error.phase(), ConnectPhase::Lookup);
    assert_eq!(error.spent(), Some(Spent::Limit(secs(5))));
    assert!(
        error
            .to_string()
            .ends_with("name not looked up within 5s")
    );
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn an_address_of_a_family_that_is_not_ours_is_not_tried() {
    let options = SocketOptions::default().source([127, 0, 0, 1].into());
    let connector = TcpConnector::with_resolver(service_fn(async |_: Name| {
        Ok::<_, Infallible>([IpAddr::V6(Ipv6Addr::LOCALHOST)])
    }));

    let error = connector
        .options(options)
        .oneshot("a.test:1")
        .await
        .unwrap_err();

    assert_eq!(error.phase(), ConnectPhase::Connect);
    assert!(error.attempts().is_empty());
    assert!(
        error
            .to_string()
            .contains("of 1 addresses none")
    );
}

#[tokio::test]
async fn the_connector_is_ready_when_its_resolver_is() {
    let (resolver, mut handle) = mock::pair::<Name, Vec<IpAddr>>();
    handle.allow(0);
    let mut connector = TcpConnector::with_resolver(resolver);
    let mut ready = task::spawn(ServiceExt::<&str>::ready(&mut connector));
    assert_pending!(ready.poll());

    handle.allow(1);
    assert!(ready.is_woken());
    assert_ready_ok!(ready.poll());
    drop(ready);

    let mut call = task::spawn(connector.call("a.test:1"));
    assert_pending!(call.poll());
    let (name, answer) = handle.next_request().await.unwrap();
    answer.send_error("unknown");
    assert_eq!(name.as_str(), "a.test");
    let Poll::Ready(Err(error)) = call.poll() else {
        panic!("the lookup has failed");
    };
    assert_eq!(error.phase(), ConnectPhase::Lookup);
}

#[tokio::test]
async fn more_lookups_than_may_wait_are_refused_at_once() {
    let mut resolver = SystemResolver::at_once(1).unwrap();
    let name = Name::try_from("localhost").unwrap();
    // Whoever is admitted counts from the call.
    let mut admitted: Vec<_> = (0..1025)
        .map(|_| resolver.call(name.clone()))
        .collect();

    let refused = resolver
        .call(name.clone())
        .await
        .unwrap_err();
    let refusal = find::<TooManyLookups>(&refused).unwrap();
    assert_eq!(
        refusal.to_string(),
        "1 name lookups are running and 1024 waiting already"
    );

    admitted.pop();
    let found = resolver.call(name).await.unwrap();
    assert!(
        found
            .iter()
            .all(|addr| addr.ip().is_loopback())
            && !found.is_empty()
    );
}

#[test]
fn a_number_that_cannot_work_is_refused_when_it_is_set() {
    assert!(SystemResolver::at_once(0).is_err());
    assert!(SystemResolver::at_once(513).is_err());
    assert!(
        TcpConnector::new()
            .timeout(secs(0))
            .is_err()
    );
    assert!(
        UnixConnector::new()
            .timeout(secs(0))
            .is_err()
    );
}

// === The caller's time

#[tokio::test(start_paused = true)]
async fn the_callers_deadline_ends_the_lookup_if_it_is_earlier() {
    let connector = ServiceBuilder::new()
        .layer(ConnectDeadlineLayer::new(secs(2)).unwrap())
        .service(TcpConnector::with_resolver(service_fn(async |_: Name| {
            pending::<io::Result<Vec<IpAddr>>>().await
        })));

    let error = connector
        .oneshot("a.test:1")
        .await
        .unwrap_err();

    let inside = find::<ConnectError>(&*error).unwrap();
    assert_eq!(inside.phase(), ConnectPhase::Lookup);
    assert_eq!(inside.spent(), Some(Spent::Caller));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_looked_up_when_the_callers_time_is_over() {
    let connector = ServiceBuilder::new()
        .layer(ConnectDeadlineLayer::new(secs(2)).unwrap())
        .service(service_fn(|target: &'static str| {
            let resolver = service_fn(|_: Name| -> std::future::Ready<io::Result<[IpAddr; 1]>> {
                panic!("nothing is looked up")
            });
            let _moved = advance(secs(2)).now_or_never();
            TcpConnector::with_resolver(resolver).call(target)
        }));

    let error = connector
        .oneshot("a.test:1")
        .await
        .unwrap_err();

    let inside = find::<ConnectError>(&*error).unwrap();
    assert_eq!(inside.phase(), ConnectPhase::Begin);
    assert_eq!(inside.spent(), Some(Spent::Caller));
    assert_eq!(
        inside.to_string(),
        "cannot connect to a.test:1: not begun, the caller's deadline has passed"
    );
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_request_is_kept_by_what_its_handler_opens() {
    let connector = TcpConnector::with_resolver(service_fn(async |_: Name| {
        pending::<io::Result<Vec<IpAddr>>>().await
    }));
    let handle = service_fn(move |_: Request<Bytes>| {
        let connecting = connector.clone().oneshot("a.test:1");
        async move {
            let start = Instant::now();
            let error = connecting.await.unwrap_err();
            assert_eq!(start.elapsed(), millis(700));
            assert_eq!(error.spent(), Some(Spent::Caller));
            Ok::<_, BoxError>("in time")
        }
    });
    let layer = FrameLayer::with_framing(
        Delimited::lines(64),
        Framing::default().handler_deadline(millis(700)),
    );
    let mut peer = Peer::of(
        ServiceBuilder::new()
            .layer(layer.unwrap())
            .service(handle),
    );

    peer.send("go\n").await;

    // Whichever of the two is polled first, neither is later than the deadline.
    let start = Instant::now();
    let _answer = peer.hear().await;
    assert!(start.elapsed() <= millis(700));
}

#[test]
fn without_a_time_driver_the_connector_says_so() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();

    let tcp = runtime.block_on(TcpConnector::new().oneshot("127.0.0.1:1"));
    let unix = runtime.block_on(UnixConnector::new().oneshot("/nowhere"));

    for error in [tcp.unwrap_err(), unix.unwrap_err()] {
        assert_eq!(error.phase(), ConnectPhase::Begin);
        assert!(find::<NoTimer>(&error).is_some());
    }
}

#[test]
fn types_are_send_and_debug() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    fn future<T: Send + std::fmt::Debug>() {}
    fn error<T: Send + Sync + std::error::Error>() {}
    check::<TcpConnector>();
    check::<TcpConnector<SystemResolver>>();
    check::<UnixConnector>();
    check::<UnixTarget>();
    check::<Target>();
    future::<TcpConnectFuture>();
    future::<UnixConnectFuture>();
    future::<SystemLookup>();
    error::<ConnectError>();
    error::<FailedAttempts>();
    fn connector<S: Service<Target, Response = Conn<tokio::net::TcpStream>>>(_: S) {}
    connector(TcpConnector::new());
}
