//! TCP listeners: what their options do to real sockets.

use std::{
    ffi::c_int,
    fs,
    future::poll_fn,
    io::{self, ErrorKind},
    mem,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{BorrowedFd, RawFd},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::net::Listener;
use tower_net::listen::{Keepalive, Tcp, TcpOptions};

use crate::peer::soon;

#[tokio::test]
async fn accepted_sockets_have_the_options_of_their_listener() {
    let keepalive = Keepalive::new(Duration::from_secs(41), Duration::from_secs(7), 5);
    let options = Tcp::options()
        .nodelay(true)
        .keepalive(Some(keepalive))
        .user_timeout(Duration::from_millis(12_345))
        .receive_buffer(20_000)
        .send_buffer(30_000);

    let (accepted, _client) = accepted_with(&options).await;

    let socket = SockRef::from(&accepted);
    assert!(socket.tcp_nodelay().unwrap());
    assert!(socket.keepalive().unwrap());
    assert_eq!(
        socket.tcp_keepalive_time().unwrap(),
        Duration::from_secs(41)
    );
    assert_eq!(
        socket.tcp_keepalive_interval().unwrap(),
        Duration::from_secs(7)
    );
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 5);
    assert_eq!(
        socket.tcp_user_timeout().unwrap(),
        Some(Duration::from_millis(12_345))
    );
    // Linux doubles both, for its own account.
    assert_eq!(socket.recv_buffer_size().unwrap(), 40_000);
    assert_eq!(socket.send_buffer_size().unwrap(), 60_000);
}

#[tokio::test]
async fn by_default_small_writes_go_out_at_once_and_dead_peers_are_noticed() {
    let (accepted, _client) = accepted_with(&Tcp::options()).await;

    let socket = SockRef::from(&accepted);
    assert!(socket.tcp_nodelay().unwrap());
    assert!(socket.keepalive().unwrap());
    assert_eq!(
        socket.tcp_keepalive_time().unwrap(),
        Duration::from_secs(15)
    );
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
}

#[tokio::test]
async fn options_that_are_off_are_off() {
    let options = Tcp::options()
        .nodelay(false)
        .keepalive(None);

    let (accepted, _client) = accepted_with(&options).await;

    assert!(
        !SockRef::from(&accepted)
            .tcp_nodelay()
            .unwrap()
    );
    assert!(
        !SockRef::from(&accepted)
            .keepalive()
            .unwrap()
    );
}

#[tokio::test]
async fn the_backlog_bounds_how_many_wait_to_be_accepted() {
    let short = Tcp::options()
        .backlog(1)
        .bind("127.0.0.1:0")
        .await
        .unwrap();
    let long = Tcp::bind("127.0.0.1:0").await.unwrap();
    let (short_addr, long_addr) = (short.local_addr().unwrap(), long.local_addr().unwrap());

    // The kernel takes one more than it was told.
    let _first = soon(TcpStream::connect(short_addr))
        .await
        .unwrap();
    let _second = soon(TcpStream::connect(short_addr))
        .await
        .unwrap();
    let third = timeout(Duration::from_millis(200), TcpStream::connect(short_addr)).await;
    let mut many = Vec::new();
    for _ in 0..500 {
        many.push(
            soon(TcpStream::connect(long_addr))
                .await
                .unwrap(),
        );
    }

    assert!(third.is_err(), "a third one was let in");
}

#[tokio::test]
async fn an_ipv6_listener_takes_ipv4_as_well_unless_told_otherwise() {
    if Tcp::bind((Ipv6Addr::LOCALHOST, 0))
        .await
        .is_err()
    {
        // No IPv6 on this machine.
        return;
    }
    for only in [true, false] {
        let listener = Tcp::options()
            .ipv6_only(only)
            .bind((Ipv6Addr::UNSPECIFIED, 0))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();

        let v6 = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await;
        let v4 = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;

        assert!(v6.is_ok());
        assert_eq!(v4.is_err(), only);
    }
}

#[tokio::test]
async fn with_deferred_accept_a_silent_connection_is_not_accepted_before_its_first_byte() {
    let mut listener = Tcp::options()
        .defer_accept(Duration::from_secs(60))
        .bind("127.0.0.1:0")
        .await
        .unwrap();
    let addr = listener.local_addr().unwrap();
    let mut silent = soon(TcpStream::connect(addr))
        .await
        .unwrap();
    let mut speaking = soon(TcpStream::connect(addr))
        .await
        .unwrap();

    speaking.write_all(b"x").await.unwrap();
    let (_, first) = soon(accept(&mut listener))
        .await
        .unwrap();
    silent.write_all(b"x").await.unwrap();
    let (_, second) = soon(accept(&mut listener))
        .await
        .unwrap();

    assert_eq!(first, speaking.local_addr().unwrap());
    assert_eq!(second, silent.local_addr().unwrap());
}

#[tokio::test]
async fn fast_open_is_on_for_the_listener_that_asked_for_it() {
    let with = Tcp::options()
        .fast_open(17)
        .bind("127.0.0.1:0")
        .await
        .unwrap();
    let without = Tcp::bind("127.0.0.1:0").await.unwrap();

    assert_eq!(fast_open_of(with.local_addr().unwrap().port()), 17);
    assert_eq!(fast_open_of(without.local_addr().unwrap().port()), 0);
}

#[tokio::test]
async fn a_listener_made_elsewhere_is_taken_as_it_is() {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap();
    let addr = listener.local_addr().unwrap();

    let mut listener = Tcp::from(listener);

    assert_eq!(listener.local_addr().unwrap(), addr);
    let client = TcpStream::connect(addr).await.unwrap();
    let (accepted, peer) = soon(accept(&mut listener))
        .await
        .unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    assert!(!accepted.nodelay().unwrap());
}

#[tokio::test]
async fn an_address_in_use_is_an_error_and_not_shared() {
    let first = Tcp::bind("127.0.0.1:0").await.unwrap();

    let second = Tcp::bind(first.local_addr().unwrap()).await;

    assert_eq!(second.unwrap_err().kind(), ErrorKind::AddrInUse);
}

pub(crate) async fn accept<L: Listener>(listener: &mut L) -> io::Result<(L::Io, L::Addr)> {
    poll_fn(|cx| listener.poll_accept(cx)).await
}

async fn accepted_with(options: &TcpOptions) -> (TcpStream, TcpStream) {
    let mut listener = options
        .bind("127.0.0.1:0")
        .await
        .unwrap();
    let addr = listener.local_addr().unwrap();
    let client = soon(TcpStream::connect(addr))
        .await
        .unwrap();
    let (accepted, _) = soon(accept(&mut listener))
        .await
        .unwrap();
    (accepted, client)
}

/// How many may send data with their SYN at once, by the kernel's account of the listener at `port`.
fn fast_open_of(port: u16) -> c_int {
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let open: Vec<RawFd> = open
        .map(|one| {
            one.unwrap()
                .file_name()
                .into_string()
                .unwrap()
        })
        .map(|number| number.parse().unwrap())
        .collect();
    for fd in open {
        #[expect(
            unsafe_code,
            reason = "a listener does not show its socket, and no safe crate reads this option"
        )]
        // SAFETY: the descriptor is only asked questions, and whoever owns it, or what it has become
        // meanwhile, does not matter to that. The pointers are to live values on our stack.
        unsafe {
            let borrowed = BorrowedFd::borrow_raw(fd);
            let socket = SockRef::from(&borrowed);
            let local = socket
                .local_addr()
                .ok()
                .and_then(|local| local.as_socket());
            let listens = socket.is_listener().unwrap_or(false);
            if !listens || local.is_none_or(|local| local.port() != port) {
                continue;
            }
            let (mut value, mut size) = (0, mem::size_of::<c_int>() as libc::socklen_t);
            let result = libc::getsockopt(
                fd,
                libc::IPPROTO_TCP,
                libc::TCP_FASTOPEN,
                (&raw mut value).cast(),
                &raw mut size,
            );
            assert_eq!(result, 0);
            return value;
        }
    }
    panic!("nobody listens at {port}");
}
