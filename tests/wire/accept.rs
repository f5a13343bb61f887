//! What an accept loop makes of errors.

use std::{
    collections::VecDeque,
    future::ready,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{net::TcpStream, sync::Notify, time::Instant};
use tokio_util::net::Listener;
use tower_net::{Backoff, Next, ServeCause, Server, listen::Tcp};

use crate::{
    peer::{End, Peer, soon},
    stack::{Loop, Settings},
};

#[test]
fn each_error_of_accept_is_retried_waited_for_or_final() {
    let at_once = [
        libc::ECONNABORTED,
        libc::ECONNREFUSED,
        libc::ECONNRESET,
        libc::EHOSTDOWN,
        libc::EHOSTUNREACH,
        libc::EINTR,
        libc::ENETDOWN,
        libc::ENETUNREACH,
        libc::ENONET,
        libc::ENOPROTOOPT,
        libc::EOPNOTSUPP,
        libc::EPERM,
        libc::EPROTO,
        libc::ETIMEDOUT,
    ];
    let later = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EINVAL,
        libc::EIO,
    ];
    let never = [libc::EBADF, libc::EFAULT, libc::ENOTSOCK];
    let first = |errno| Backoff::default().after(&io::Error::from_raw_os_error(errno));

    for errno in at_once {
        assert_eq!(first(errno), Next::Retry, "errno {errno}");
    }
    for errno in later {
        let wait = Next::Wait(Duration::from_millis(50));
        assert_eq!(first(errno), wait, "errno {errno}");
    }
    for errno in never {
        assert_eq!(first(errno), Next::Stop, "errno {errno}");
    }
}

#[test]
fn waits_grow_to_the_longest_and_begin_anew_after_a_success() {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    let no_descriptors = io::Error::from_raw_os_error(libc::EMFILE);
    let mut waits = || match backoff.after(&no_descriptors) {
        Next::Wait(wait) => wait.as_millis(),
        other => panic!("{other:?}"),
    };

    let grown: Vec<_> = (0..7).map(|_| waits()).collect();

    assert_eq!(grown, [50, 100, 200, 400, 800, 1000, 1000]);
    assert_eq!(backoff.succeeded(), 7);
    assert_eq!(
        backoff.after(&no_descriptors),
        Next::Wait(Duration::from_millis(50))
    );
}

#[test]
fn connections_that_abort_for_ever_do_not_make_the_loop_spin() {
    let mut backoff = Backoff::default();
    let aborted = io::Error::from_raw_os_error(libc::ECONNABORTED);

    let retries = (0..100)
        .take_while(|_| backoff.after(&aborted) == Next::Retry)
        .count();

    assert!((1..100).contains(&retries), "{retries}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_error_of_one_connection_ends_the_loop() {
    let faults = [
        libc::ECONNABORTED,
        libc::ECONNRESET,
        libc::EPROTO,
        libc::EHOSTUNREACH,
        libc::ETIMEDOUT,
        libc::EPERM,
        // An unknown one, which waits for a moment.
        libc::EDOM,
    ];
    let (listener, addr) = Faulty::bind(&faults).await;
    let server = serve(listener);

    for _ in 0..faults.len() {
        let mut peer = Peer::connect(addr).await;
        assert_eq!(peer.call("hello").await.unwrap(), b"hello");
    }

    let report = server.drained().await.unwrap();
    let errors: Vec<_> = report.accept_errors().collect();
    assert_eq!(errors, [("connection", 6), ("other", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_one_queued_connection_does_not_lose_those_behind_it_in_a_drain() {
    let (listener, addr) = Faulty::bind(&[libc::ECONNABORTED]).await;
    let mut queued = Peer::connect(addr).await;
    queued.send("hello").await;

    let stack = Settings::default().stack();
    let report = Server::new(listener)
        .serve(stack.service)
        .with_graceful_shutdown(ready(()))
        .into_future();
    let serving = tokio::spawn(report);

    assert_eq!(queued.receive().await.unwrap(), b"hello");
    assert_eq!(
        soon(serving)
            .await
            .unwrap()
            .unwrap()
            .opened(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_taken_whole_in_a_drain_however_slow_the_machine_is() {
    let inner = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = inner.local_addr().unwrap();
    let mut queued = Vec::new();
    for _ in 0..100 {
        let mut peer = Peer::connect(addr).await;
        peer.send("hello").await;
        queued.push(peer);
    }

    let stack = Settings::default().stack();
    let serving = Server::new(Laborious { inner })
        .serve(stack.service)
        .with_graceful_shutdown(ready(()))
        .into_future();
    let serving = tokio::spawn(serving);

    for mut peer in queued {
        assert_eq!(peer.receive().await.unwrap(), b"hello");
    }
    assert_eq!(
        soon(serving)
            .await
            .unwrap()
            .unwrap()
            .opened(),
        100
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_is_none_any_more_ends_the_server_in_order() {
    let (broken, _) = Faulty::bind(&[libc::EBADF]).await;
    let (healthy, addr) = Faulty::bind(&[]).await;
    let stack = Settings::default().stack();
    let mut open = Peer::connect(addr).await;
    open.send("after 300").await;
    let serving = Server::new(healthy)
        .named("broken", broken)
        .serve(stack.service)
        .into_future();
    let serving = tokio::spawn(serving);

    assert_eq!(open.receive().await.unwrap(), b"after 300");
    assert_eq!(open.end().await, (0, End::Closed));
    drop(open);
    let error = soon(serving)
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(error.cause(), ServeCause::Listener(_)), "{error}");
    assert_eq!(error.report().unwrap().opened(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_freed_right_after_a_failed_accept_is_noticed_before_the_wait_is_over() {
    let full = Arc::new(Full::default());
    let inner = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = inner.local_addr().unwrap();
    let listener = Exhausted {
        inner,
        full: Arc::clone(&full),
    };
    let stack = Settings::default().stack();
    let serve = Server::new(listener)
        .serve(stack.service)
        .backoff(Backoff::new(
            Duration::from_millis(400),
            Duration::from_secs(300),
        ));
    let server = Loop::spawn(serve.handle(), serve.into_future());
    let mut open = Peer::connect(addr).await;
    open.call("hello").await.unwrap();
    full.is.store(true, Relaxed);
    let mut queued = Peer::connect(addr).await;
    queued.send("at last").await;

    // It waits 0.4 s, 0.8 s, 1.6 s, 3.2 s; and then 6.4 s.
    soon(async {
        while full.attempts.load(Relaxed) < 5 {
            full.attempted.notified().await;
        }
    })
    .await;
    let freed = Instant::now();
    full.is.store(false, Relaxed);
    drop(open);
    assert_eq!(queued.receive().await.unwrap(), b"at last");

    assert!(
        freed.elapsed() < Duration::from_secs(5),
        "{:?}",
        freed.elapsed()
    );
    server.drained().await.unwrap();
}

fn serve(listener: Faulty) -> Loop {
    let serve = Server::new(listener).serve(Settings::default().stack().service);
    Loop::spawn(serve.handle(), serve.into_future())
}

/// A listener that fails before each of its first accepts.
struct Faulty {
    inner: Tcp,
    faults: VecDeque<i32>,
}

impl Faulty {
    async fn bind(faults: &[i32]) -> (Self, SocketAddr) {
        let inner = Tcp::bind("127.0.0.1:0").await.unwrap();
        let addr = inner.local_addr().unwrap();
        let faults = faults.iter().copied().collect();
        (Self { inner, faults }, addr)
    }
}

impl Listener for Faulty {
    type Io = TcpStream;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        match self.faults.pop_front() {
            Some(errno) => Poll::Ready(Err(io::Error::from_raw_os_error(errno))),
            None => self.inner.poll_accept(cx),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A listener that has no descriptor left while somebody says so.
struct Exhausted {
    inner: Tcp,
    full: Arc<Full>,
}

#[derive(Default)]
struct Full {
    is: AtomicBool,
    attempts: AtomicU64,
    attempted: Notify,
}

impl Listener for Exhausted {
    type Io = TcpStream;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        if !self.full.is.load(Relaxed) {
            return self.inner.poll_accept(cx);
        }
        self.full.attempts.fetch_add(1, Relaxed);
        self.full.attempted.notify_one();
        Poll::Ready(Err(io::Error::from_raw_os_error(libc::EMFILE)))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A listener on a machine with much else to do.
struct Laborious {
    inner: Tcp,
}

impl Listener for Laborious {
    type Io = TcpStream;
    type Addr = SocketAddr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        std::thread::sleep(Duration::from_millis(6));
        self.inner.poll_accept(cx)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}
