//! Connections that we open, to real listeners of every kind of temper.

use std::{
    collections::HashMap,
    convert::Infallible,
    env,
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UnixListener},
    time::timeout,
};
use tower::{ServiceExt, service_fn};
use tower_net::{
    Addr, Conn, Spent,
    connect::{
        ConnectError, ConnectPhase, HappyEyeballs, Keepalive, Name, Shortage, SocketOptions,
        TcpConnector, UnixConnector, UnixTarget,
    },
    error::find,
    open_descriptors,
};
use tower_service::Service;

use crate::{
    kernel::{descriptor_limit, leave_room_for, limit_descriptors, waits},
    peer::{soon, until},
    support::pki::Folder,
};

/// Set in the processes that such a test runs in.
const CHILD: &str = "TOWER_NET_CONNECT_CHILD";

/// A resolver that knows these and no others.
fn hosts(
    hosts: &[(&str, &[SocketAddr])],
) -> impl Service<Name, Response = Vec<SocketAddr>, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ 'static {
    let known: HashMap<_, _> = hosts
        .iter()
        .map(|(host, addrs)| ((*host).to_owned(), addrs.to_vec()))
        .collect();
    let known = Arc::new(Mutex::new(known));
    service_fn(move |name: Name| {
        let found = known
            .lock()
            .unwrap()
            .get(name.as_str())
            .cloned();
        async { Ok(found.unwrap_or_default()) }
    })
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// An address whose port is held and not listened on, for as long as the socket lives.
fn refusing() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind("127.0.0.1:0".parse().unwrap())
        .unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

/// A listener whose queue is full, which then drops every SYN: a black hole.
async fn black_hole() -> (Socket, TcpStream, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let addr = socket
        .local_addr()
        .unwrap()
        .as_socket()
        .unwrap();
    // One is queued beyond the backlog, and that is all.
    let queued = soon(TcpStream::connect(addr))
        .await
        .unwrap();
    let row = format!(":{:04X} 00000000:0000 0A 00000000:00000001", addr.port());
    until(|| {
        std::fs::read_to_string("/proc/net/tcp")
            .unwrap()
            .contains(&row)
    })
    .await;
    (socket, queued, addr)
}

async fn failed(connector: TcpConnector, to: SocketAddr) -> ConnectError {
    soon(connector.oneshot(to))
        .await
        .unwrap_err()
}

// === TCP

#[tokio::test]
async fn a_name_leads_to_its_listener_and_both_ends_are_known() {
    let (listener, addr) = listener().await;
    let connector = TcpConnector::with_resolver(hosts(&[("a.test", &[addr])]));

    let mut conn: Conn<TcpStream> = soon(connector.oneshot("a.test:1"))
        .await
        .unwrap();
    let (mut far, from) = soon(listener.accept()).await.unwrap();
    conn.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    soon(far.read_exact(&mut heard))
        .await
        .unwrap();

    assert_eq!(&heard, b"hello");
    assert_eq!(conn.info().wire_peer(), &Addr::Tcp(addr));
    assert_eq!(conn.info().local(), &Addr::Tcp(from));
}

#[tokio::test]
async fn the_systems_resolver_knows_this_host() {
    let (_listener, addr) = listener().await;

    let conn = soon(TcpConnector::new().oneshot(("localhost", addr.port())))
        .await
        .unwrap();

    assert_eq!(conn.info().peer().tcp().unwrap().port(), addr.port());
}

#[tokio::test]
async fn an_address_is_never_looked_up() {
    let (_listener, addr) = listener().await;
    let resolver = service_fn(
        |_: Name| -> std::future::Ready<Result<[IpAddr; 1], Infallible>> {
            panic!("it is an address")
        },
    );
    let connector = TcpConnector::with_resolver(resolver);

    let by_addr = soon(connector.clone().oneshot(addr)).await;
    let by_text = soon(connector.oneshot(addr.to_string())).await;

    assert!(by_addr.is_ok() && by_text.is_ok());
}

#[tokio::test]
async fn a_black_hole_in_front_costs_a_moment_and_its_attempt_is_closed() {
    let (_hole, queued, black) = black_hole().await;
    let (_listener, good) = listener().await;
    let connector = TcpConnector::with_resolver(hosts(&[("a.test", &[black, good])]));
    let racing = HappyEyeballs::default()
        .attempt_delay(Duration::from_millis(10))
        .unwrap();

    let connecting = connector
        .happy_eyeballs(racing)
        .oneshot("a.test:1");
    let conn = soon(connecting).await.unwrap();

    assert_eq!(conn.info().wire_peer(), &Addr::Tcp(good));
    drop(queued);
}

#[tokio::test]
async fn a_black_hole_alone_ends_at_the_deadline_and_is_named() {
    let (_hole, _queued, black) = black_hole().await;
    let limit = Duration::from_millis(100);
    let connector = TcpConnector::new()
        .timeout(limit)
        .unwrap();

    let error = failed(connector, black).await;

    assert_eq!(error.phase(), ConnectPhase::Connect);
    assert_eq!(error.spent(), Some(Spent::Limit(limit)));
    assert_eq!(
        error.to_string(),
        format!(
            "cannot connect to {black}: not connected within 100ms: {black}: no answer when the time was up"
        )
    );
}

#[tokio::test]
async fn when_all_refuse_each_is_listed() {
    let (held, hosts_of): (Vec<_>, Vec<_>) = (0..3).map(|_| refusing()).unzip();
    let connector = TcpConnector::with_resolver(hosts(&[("a.test", &hosts_of)]));

    let error = soon(connector.oneshot("a.test:1"))
        .await
        .unwrap_err();

    let tried: Vec<_> = error
        .attempts()
        .iter()
        .map(|attempt| (attempt.addr().tcp().unwrap(), attempt.error().kind()))
        .collect();
    let expected: Vec<_> = hosts_of
        .iter()
        .map(|addr| (*addr, io::ErrorKind::ConnectionRefused))
        .collect();
    assert_eq!(tried, expected);
    assert_eq!((error.spent(), error.shortage()), (None, None));
    assert!(find::<io::Error>(&error).is_some());
    assert_eq!(
        io::Error::from(error).kind(),
        io::ErrorKind::ConnectionRefused
    );
    drop(held);
}

#[tokio::test]
async fn options_are_set_and_nodelay_and_keepalive_are_from_the_beginning() {
    let (_listener, addr) = listener().await;
    let minute = Duration::from_secs(60);

    let default = soon(TcpConnector::new().oneshot(addr))
        .await
        .unwrap();
    let options = SocketOptions::default()
        .nodelay(false)
        .keepalive(Some(Keepalive::new(minute, minute, 3)))
        .user_timeout(minute)
        .receive_buffer(64 * 1024)
        .send_buffer(32 * 1024);
    let other = soon(
        TcpConnector::new()
            .options(options)
            .oneshot(addr),
    )
    .await
    .unwrap();

    let socket = SockRef::from(default.io());
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    assert_eq!(
        socket.tcp_keepalive_time().unwrap(),
        Duration::from_secs(15)
    );
    assert_eq!(socket.linger().unwrap(), None);
    let socket = SockRef::from(other.io());
    assert!(!socket.tcp_nodelay().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), minute);
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(minute));
    // Linux doubles them for its own bookkeeping.
    assert_eq!(socket.recv_buffer_size().unwrap(), 128 * 1024);
    assert_eq!(socket.send_buffer_size().unwrap(), 64 * 1024);
}

#[tokio::test]
async fn the_other_end_sees_the_source_address_and_one_of_ours_that_is_none_is_said_clearly() {
    let (listener, addr) = listener().await;
    let from = |source: [u8; 4]| {
        let options = SocketOptions::default().source(source.into());
        TcpConnector::new().options(options)
    };

    let _conn = soon(from([127, 0, 0, 2]).oneshot(addr))
        .await
        .unwrap();
    let (_far, peer) = soon(listener.accept()).await.unwrap();
    let error = failed(from([192, 0, 2, 1]), addr).await;

    assert_eq!(peer.ip(), IpAddr::from([127, 0, 0, 2]));
    assert_eq!(error.shortage(), Some(Shortage::SourceAddress));
    let text = error.to_string();
    assert!(
        text.contains(
            "the source address is not ours: 192.0.2.1 is not an address of this machine"
        ),
        "{text}"
    );
}

/// What is a property of a process: this test binary once more, for one test.
fn in_a_process_of_its_own(test: &str) {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test])
        .env(CHILD, "on")
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
fn no_descriptor_is_left_behind() {
    in_a_process_of_its_own("connect::connects_two_hundred_times");
}

#[tokio::test]
async fn connects_two_hundred_times() {
    if env::var_os(CHILD).is_none() {
        return;
    }
    let (_hole, _queued, black) = black_hole().await;
    let (_held, refusing) = refusing();
    let (_listener, good) = listener().await;
    let connector = TcpConnector::with_resolver(hosts(&[
        ("good.test", &[refusing, good]),
        ("hole.test", &[black]),
    ]));
    let before = open_descriptors().unwrap();

    for _ in 0..100 {
        let connecting = connector.clone().oneshot("good.test:1");
        drop(soon(connecting).await.unwrap());
        let connecting = connector.clone().oneshot("hole.test:1");
        let waited = timeout(Duration::from_millis(2), connecting).await;
        assert!(waited.is_err());
    }

    assert_eq!(open_descriptors().unwrap(), before);
}

#[test]
fn without_a_descriptor_the_error_says_that_it_is_ours() {
    in_a_process_of_its_own("connect::connects_without_a_descriptor");
}

#[tokio::test]
async fn connects_without_a_descriptor() {
    if env::var_os(CHILD).is_none() {
        return;
    }
    let (_listener, addr) = listener().await;
    let connector = TcpConnector::with_resolver(hosts(&[("a.test", &[addr])]));
    let before = descriptor_limit();
    leave_room_for(1);
    let _last = File::open("/dev/null").unwrap();

    let error = soon(connector.clone().oneshot("a.test:1"))
        .await
        .unwrap_err();
    limit_descriptors(before);
    let after = soon(connector.oneshot("a.test:1")).await;

    assert_eq!(error.shortage(), Some(Shortage::Descriptors));
    let text = error.to_string();
    assert!(text.contains(": we have no descriptor left: "), "{text}");
    assert!(after.is_ok());
}

/// Client and server exchange a byte and the client closes: how that looks to the server, and the client's port.
async fn closed(options: SocketOptions) -> (io::Result<usize>, [u16; 2]) {
    let (listener, addr) = listener().await;
    let connector = TcpConnector::new().options(options);
    let mut conn = soon(connector.oneshot(addr))
        .await
        .unwrap();
    let (mut far, _) = soon(listener.accept()).await.unwrap();
    far.write_all(b"x").await.unwrap();
    soon(conn.read_exact(&mut [0; 1]))
        .await
        .unwrap();
    let port = conn
        .info()
        .local()
        .tcp()
        .unwrap()
        .port();
    drop(conn);
    (soon(far.read(&mut [0; 1])).await, [port, addr.port()])
}

#[tokio::test]
async fn with_reset_on_close_nothing_is_left_in_time_wait() {
    let (end, [near, far]) = closed(SocketOptions::default()).await;
    assert_eq!(end.unwrap(), 0);
    until(|| waits(near, far)).await;

    let (end, [near, far]) = closed(SocketOptions::default().reset_on_close(true)).await;
    assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert!(!waits(near, far));
}

#[tokio::test]
async fn dropping_the_future_closes_what_is_being_opened() {
    let (_hole, _queued, black) = black_hole().await;
    let connecting = TcpConnector::new().oneshot(black);
    // Ends here whenever it has been polled often enough to have sent its SYN.
    let waited = timeout(Duration::from_millis(50), connecting).await;
    assert!(waited.is_err());

    // In the kernel's own time there is no socket left that asks for this port.
    let asks = || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let port = format!(":{:04X} 02 ", black.port());
        table
            .lines()
            .any(|line| line.contains(&port))
    };
    until(|| !asks()).await;
}

// === Unix sockets

#[tokio::test]
async fn a_unix_socket_is_reached_by_its_path_and_by_its_abstract_name() {
    let folder = Folder::new();
    let path = folder.path().join("socket");
    let by_path = UnixListener::bind(&path).unwrap();
    let name = format!("tower-net-{}", std::process::id());
    let by_name = UnixListener::bind(format!("\0{name}")).unwrap();

    for (listener, target, addr) in [
        (
            &by_path,
            UnixTarget::from(&*path),
            Addr::Unix(Some(path.clone().into())),
        ),
        (&by_name, UnixTarget::abstract_name(&name), Addr::Unix(None)),
    ] {
        let mut conn = soon(UnixConnector::new().oneshot(target))
            .await
            .unwrap();
        let (mut far, _) = soon(listener.accept()).await.unwrap();
        far.write_all(b"x").await.unwrap();

        soon(conn.read_exact(&mut [0; 1]))
            .await
            .unwrap();
        assert_eq!(conn.info().peer(), &addr);
    }
}

#[tokio::test]
async fn where_nobody_listens_the_error_says_so() {
    let folder = Folder::new();
    let path = folder.path().join("socket");
    let too_long = "a".repeat(200);

    let missing = soon(UnixConnector::new().oneshot(path.clone()))
        .await
        .unwrap_err();
    drop(UnixListener::bind(&path).unwrap());
    let stale = soon(UnixConnector::new().oneshot(path.clone()))
        .await
        .unwrap_err();
    let no_path = soon(UnixConnector::new().oneshot(too_long))
        .await
        .unwrap_err();

    for (error, kind) in [
        (missing, io::ErrorKind::NotFound),
        (stale, io::ErrorKind::ConnectionRefused),
        (no_path, io::ErrorKind::InvalidInput),
    ] {
        assert_eq!(error.phase(), ConnectPhase::Connect);
        assert!(
            error
                .to_string()
                .starts_with("cannot connect to unix:"),
            "{error}"
        );
        assert_eq!(io::Error::from(error).kind(), kind);
    }
}

/// A listener with a full queue, and who is in it.
fn full(path: &std::path::Path) -> (Socket, Socket) {
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let addr = socket2::SockAddr::unix(path).unwrap();
    listener.bind(&addr).unwrap();
    listener.listen(0).unwrap();
    let queued = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    queued.connect(&addr).unwrap();
    (listener, queued)
}

#[tokio::test]
async fn a_full_queue_is_waited_for() {
    let folder = Folder::new();
    let path = folder.path().join("socket");
    let (listener, _queued) = full(&path);
    let connecting = tokio::spawn(UnixConnector::new().oneshot(path));
    tokio::task::yield_now().await;

    let _first = listener.accept().unwrap();

    assert!(soon(connecting).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_queue_that_stays_full_ends_at_the_deadline() {
    let folder = Folder::new();
    let path = folder.path().join("socket");
    let (_listener, _queued) = full(&path);
    let limit = Duration::from_millis(50);
    let connector = UnixConnector::new()
        .timeout(limit)
        .unwrap();

    let error = soon(connector.oneshot(path))
        .await
        .unwrap_err();

    assert_eq!(error.spent(), Some(Spent::Limit(limit)));
    assert_eq!(error.phase(), ConnectPhase::Connect);
    assert!(
        error
            .to_string()
            .ends_with("socket: its queue stayed full"),
        "{error}"
    );
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
}
