//! A pool before servers that misbehave.

use std::{
    future::{Future, poll_fn},
    io::{self, Write},
    net::{SocketAddr, TcpListener as Listening, TcpStream as Near},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tokio_test::task;
use tower::util::BoxCloneService;
use tower_layer::Layer;
use tower_net::{
    Conn,
    error::{BoxError, find},
    io::{GuardedIo, Io},
    pool::{
        Acquired, DialElapsed, Pool, PoolCause, PoolError, PoolLayer, PooledIo, Pooling, Served,
    },
};
use tower_service::Service;

use crate::{
    kernel::{State, sockets_at},
    peer::{soon, until},
    support::{process::Process, random::Random},
};

type Connector<I> = BoxCloneService<SocketAddr, Conn<I>, BoxError>;
type Pooled<I> = Pool<Connector<I>, SocketAddr, SocketAddr, I>;

fn tcp() -> Connector<TcpStream> {
    BoxCloneService::new(tower::service_fn(|to: SocketAddr| async move {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream.try_into()?)
    }))
}

fn pool<I: Io>(pooling: Pooling, connector: Connector<I>) -> Pooled<I> {
    PoolLayer::new("test", pooling)
        .unwrap()
        .layer(connector)
}

// === A server that misbehaves

/// What a server does besides answering.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// Nothing.
    Good,
    /// Closes after so many replies.
    ClosesAfter(usize),
    /// Closes in the middle of each third reply.
    BreaksOff,
    /// Ends its sending side after each reply, and goes on reading.
    HalfCloses,
    /// Resets after each reply.
    Resets,
    /// Says something that nobody asked for after each reply.
    Babbles,
}

/// Answers each four bytes with the same.
async fn serve(mut stream: TcpStream, manner: Manner) -> io::Result<()> {
    let mut request = [0; 4];
    for turn in 1.. {
        if stream
            .read_exact(&mut request)
            .await
            .is_err()
        {
            break;
        }
        match manner {
            Manner::BreaksOff if turn % 3 == 0 => {
                stream.write_all(&request[..2]).await?;
                break;
            }
            _ => stream.write_all(&request).await?,
        }
        match manner {
            Manner::ClosesAfter(replies) if turn >= replies => break,
            Manner::HalfCloses => stream.shutdown().await?,
            Manner::Resets => {
                tower_net::io::reset_on_drop(&stream)?;
                break;
            }
            Manner::Babbles => stream.write_all(b"?").await?,
            _ => {}
        }
    }
    Ok(())
}

async fn server(manner: Manner) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            tokio::spawn(serve(stream, manner));
        }
    });
    addr
}

/// A whole exchange, after which the connection is given back; if it fails, on what connection.
async fn exchange<I: Io>(mut conn: Conn<PooledIo<I>>, number: u32) -> Result<bool, Acquired> {
    let acquired = conn.acquired();
    let mut reply = [0; 4];
    let exchanging = async {
        conn.write_all(&number.to_be_bytes())
            .await?;
        conn.read_exact(&mut reply).await
    };
    exchanging.await.map_err(|_| acquired)?;
    assert_eq!(
        u32::from_be_bytes(reply),
        number,
        "a reply to somebody else"
    );
    Ok(conn.reuse())
}

#[tokio::test]
async fn whatever_a_server_does_only_a_reused_connection_ever_fails() {
    for manner in [
        Manner::ClosesAfter(1),
        Manner::ClosesAfter(3),
        Manner::HalfCloses,
        Manner::Resets,
        Manner::Babbles,
    ] {
        let addr = server(manner).await;
        let mut pool = pool(Pooling::default(), tcp());
        let mut done = 0;
        for number in 0..200 {
            // As a client does: once more, on a connection that is new, if the failure may be that of the old one.
            for _ in 0..8 {
                let conn = soon(pool.call(addr)).await.unwrap();
                match soon(exchange(conn, number)).await {
                    Ok(_) => {
                        done += 1;
                        break;
                    }
                    Err(acquired) => assert!(acquired.is_reused(), "{manner:?}"),
                }
            }
        }
        assert_eq!(done, 200, "{manner:?}");
        let handle = pool.handle();
        until(|| handle.snapshot().idle() <= 1).await;
        assert_eq!(handle.snapshot().in_use(), 0);
    }
}

#[tokio::test]
async fn what_a_server_has_ended_is_given_out_to_nobody_once_the_kernel_knows() {
    for manner in [
        Manner::ClosesAfter(1),
        Manner::HalfCloses,
        Manner::Resets,
        Manner::Babbles,
    ] {
        let addr = server(manner).await;
        let mut pool = pool(Pooling::default(), tcp());
        let handle = pool.handle();
        for number in 0..20 {
            let conn = soon(pool.call(addr)).await.unwrap();
            assert_eq!(conn.acquired().served(), Served::Dialled, "{manner:?}");
            soon(exchange(conn, number))
                .await
                .unwrap();
            // Seen by the pool's own task, and by no get.
            until(|| handle.snapshot().idle() == 0).await;
        }
        assert_eq!(handle.snapshot().open(), 0);
    }
}

#[tokio::test]
async fn a_reply_that_breaks_off_is_a_failure_and_its_connection_is_not_used_again() {
    let addr = server(Manner::BreaksOff).await;
    let mut pool = pool(Pooling::default(), tcp());
    let mut failures = 0;

    for number in 0..30 {
        let conn = soon(pool.call(addr)).await.unwrap();
        if soon(exchange(conn, number))
            .await
            .is_err()
        {
            failures += 1;
            assert_eq!(pool.handle().snapshot().open(), 0);
        }
    }

    assert_eq!(failures, 10);
}

#[tokio::test]
async fn twenty_dead_connections_cost_a_get_no_more_than_twenty_looks() {
    let listener = Listening::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut pool = pool(Pooling::default(), tcp());
    let mut far = Vec::new();
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(pool.call(addr).await.unwrap());
        far.push(listener.accept().unwrap().0);
    }
    held.into_iter()
        .for_each(|conn| assert!(conn.reuse()));

    // The runtime hears nothing of it: this is its only thread, and does not wait.
    drop(far);
    has_ended(addr);
    let mut get = task::spawn(pool.call(addr));
    let first = get.poll();

    assert!(first.is_pending());
    let now = pool.handle().snapshot();
    assert_eq!((now.idle(), now.connecting(), now.open()), (0, 1, 1));
    let conn = soon(get).await.unwrap();
    assert_eq!(conn.acquired().served(), Served::Dialled);
}

#[tokio::test]
async fn one_that_has_ended_since_its_reply_was_read_goes_to_nobody_who_waits() {
    let listener = Listening::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut pool = pool(Pooling::default().max_open(1), tcp());
    let mut conn = pool.call(addr).await.unwrap();
    let mut far = listener.accept().unwrap().0;
    let mut next = task::spawn(pool.call(addr));
    assert!(next.poll().is_pending());

    // With room for more, so that the runtime takes it that nothing is left in the socket.
    far.write_all(b"pong").unwrap();
    assert_eq!(
        soon(conn.read(&mut [0; 64]))
            .await
            .unwrap(),
        4
    );
    // It hears nothing of this, as above.
    drop(far);
    has_ended(addr);
    conn.reuse();

    assert!(next.poll().is_pending());
    let conn = soon(next).await.unwrap();
    assert_eq!(conn.acquired().served(), Served::Dialled);
}

/// Waits until the kernel knows that no connection of this address is whole, without a turn for the runtime.
fn has_ended(addr: SocketAddr) {
    let begun = std::time::SystemTime::now();
    while sockets_at(addr.port())
        .iter()
        .any(|socket| socket.state == State::Established)
    {
        assert!(begun.elapsed().unwrap() < Duration::from_secs(60));
    }
}

/// An address that answers nobody: its backlog is full.
fn silent() -> (SocketAddr, impl Sized) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let addr = socket
        .local_addr()
        .unwrap()
        .as_socket()
        .unwrap();
    let mut fill = Vec::new();
    // It has room for one or two, depending on the kernel.
    while let Ok(stream) = Near::connect_timeout(&addr, Duration::from_millis(200)) {
        fill.push(stream);
    }
    (addr, (socket, fill))
}

#[tokio::test]
async fn a_connect_that_hangs_is_over_with_the_limit_of_the_get_or_of_the_dial() {
    let (addr, _held) = silent();
    let millis = Duration::from_millis;
    for (within, dial_within) in [(300, 10_000), (10_000, 300)] {
        let pooling = Pooling::default()
            .within(millis(within))
            .dial_within(millis(dial_within));
        let mut pool = pool(pooling, tcp());
        let begun = Instant::now();

        let error: PoolError = soon(pool.call(addr)).await.unwrap_err();

        assert!(begun.elapsed() >= millis(300) && begun.elapsed() < millis(10_000));
        match error.cause() {
            PoolCause::Elapsed { is_callers, .. } => assert!(within == 300 && !is_callers),
            PoolCause::Connect(_) => assert!(find::<DialElapsed>(&error).is_some()),
            _ => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn dials_that_hang_do_not_keep_others_from_their_server() {
    let (hangs, _held) = silent();
    let good = server(Manner::Good).await;
    let pooling = Pooling::default().max_open(4);
    let mut pool = pool(pooling, tcp());
    for _ in 0..4 {
        let left = timeout(Duration::from_millis(10), pool.call(hangs)).await;
        assert!(left.is_err());
    }

    for number in 0..20 {
        let conn = soon(pool.call(good)).await.unwrap();
        soon(exchange(conn, number))
            .await
            .unwrap();
    }

    assert!(pool.handle().snapshot().open() <= 4);
}

// === Through TLS

#[cfg(feature = "tls")]
mod tls {
    use super::*;
    use tower::{ServiceExt, service_fn};
    use tower_net::{
        Server,
        io::OpaqueIo,
        tls::{TlsAcceptLayer, TlsClientIo, TlsConnectLayer, rustls::pki_types::ServerName},
    };

    use crate::support::pki::{Authority, connect};

    /// With the socket in sight, as it is in earnest.
    type Encrypted = TlsClientIo<TcpStream>;

    fn connector(authority: &Authority) -> Connector<Encrypted> {
        let name = ServerName::try_from("a.test").unwrap();
        let tcp = service_fn(async |to: SocketAddr| Conn::try_from(TcpStream::connect(to).await?));
        let connector = TlsConnectLayer::to(authority.trusting(), name).layer(tcp);
        BoxCloneService::new(connector.map_err(Into::into))
    }

    /// Echoes over TLS; ends each connection after so many replies.
    async fn serve_tls(authority: &Authority, replies: usize) -> SocketAddr {
        let config = authority.server(&["a.test"]).serving();
        let layer = TlsAcceptLayer::new(config);
        let service = layer.layer(tower::service_fn(move |mut conn: Conn<_>| async move {
            let mut request = [0; 4];
            for _ in 0..replies {
                if conn
                    .read_exact(&mut request)
                    .await
                    .is_err()
                {
                    return Ok(());
                }
                conn.write_all(&request).await?;
                conn.flush().await?;
            }
            conn.shutdown().await?;
            io::Result::Ok(())
        }));
        let server = Server::bind("127.0.0.1:0")
            .await
            .unwrap();
        let addr = server.local_addr().unwrap();
        tokio::spawn(server.serve(service).into_future());
        addr
    }

    #[tokio::test]
    async fn a_session_ticket_is_no_stray_byte_and_a_goodbye_is_an_end() {
        let authority = Arc::new(Authority::new("town hall"));
        let addr = serve_tls(&authority, 5).await;
        let mut pool = pool(Pooling::default(), connector(&authority));
        let handle = pool.handle();

        for round in 0..3 {
            for number in 0..5 {
                let conn = soon(pool.call(addr)).await.unwrap();
                let served = conn.acquired().served();
                let expected = if number == 0 {
                    Served::Dialled
                } else {
                    Served::Idle
                };
                assert_eq!(served, expected, "{round}, {number}");
                soon(exchange(conn, number))
                    .await
                    .unwrap();
            }
            until(|| handle.snapshot().idle() == 0).await;
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_never_used_stays_when_its_tickets_arrive() {
        let authority = Arc::new(Authority::new("town hall"));
        let addr = serve_tls(&authority, 5).await;
        let mut pool = pool(Pooling::default(), connector(&authority));
        let handle = pool.handle();

        pool.keep_warm(addr, 1).unwrap();
        until(|| handle.snapshot().idle() == 1).await;
        sleep(Duration::from_millis(50)).await;
        pool.keep_warm(addr, 0).unwrap();
        let conn = soon(pool.call(addr)).await.unwrap();

        assert_eq!(conn.acquired().served(), Served::Idle);
        soon(exchange(conn, 7)).await.unwrap();
    }

    #[tokio::test]
    async fn a_handshake_that_hangs_is_over_with_the_limit_of_the_dial() {
        let authority = Arc::new(Authority::new("town hall"));
        let listener = Listening::bind("127.0.0.1:0").unwrap();
        let pooling = Pooling::default().dial_within(Duration::from_millis(300));
        // It knows of no deadline, unlike the one above.
        let connector = service_fn(move |to: SocketAddr| {
            let authority = Arc::clone(&authority);
            async move {
                let stream = TcpStream::connect(to).await?;
                let stream = connect(authority.trusting(), "a.test", stream).await?;
                Ok(Conn::new(OpaqueIo::new(stream), to))
            }
        });
        let mut pool = pool(pooling, BoxCloneService::new(connector));

        let error = soon(pool.call(listener.local_addr().unwrap()))
            .await
            .unwrap_err();

        assert!(find::<DialElapsed>(&error).is_some(), "{error}");
        assert_eq!(pool.handle().snapshot().open(), 0);
    }
}

// === Many at once

/// Counts the connections of one target that are open or being opened.
#[derive(Debug)]
struct Counted(Arc<[AtomicUsize; 2]>);

impl Counted {
    fn new(counts: &Arc<[AtomicUsize; 2]>) -> Self {
        let now = counts[0].fetch_add(1, SeqCst) + 1;
        counts[1].fetch_max(now, SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0[0].fetch_sub(1, SeqCst);
    }
}

type Line = GuardedIo<TcpStream, (Counted, Counted)>;

/// Gives up at the poll of this number.
async fn give_up_after<F: Future>(polls: u64, future: F) -> Option<F::Output> {
    let (mut future, mut left) = (std::pin::pin!(future), polls);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_that_give_up_at_random_exceed_no_limit_and_leave_nothing_behind() {
    let addrs = [
        server(Manner::Good).await,
        server(Manner::ClosesAfter(20)).await,
    ];
    let counts: [Arc<[AtomicUsize; 2]>; 3] = Default::default();
    let counted = counts.clone();
    let connector = tower::service_fn(move |to: SocketAddr| {
        let own = usize::from(to == addrs[1]);
        let guard = (Counted::new(&counted[own]), Counted::new(&counted[2]));
        async move {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            Ok::<_, BoxError>(Conn::new(GuardedIo::new(stream, guard), to))
        }
    });
    let pooling = Pooling::default()
        .max_open(12)
        .max_open_per_target(8);
    let pool: Pooled<Line> = self::pool(pooling, BoxCloneService::new(connector));
    let handle = pool.handle();

    let tasks = (0..64).map(|seed| {
        let mut pool = pool.clone();
        tokio::spawn(async move {
            let (mut random, mut done) = (Random::new(seed + 1), 0);
            for turn in 0..150 {
                let to = addrs[random.among(0, 4) / 3];
                let number = (seed as u32) << 16 | turn;
                let polls = random.pick(&[0, 1, 3, 10_000, 10_000, 10_000, 10_000]);
                let Some(conn) = give_up_after(polls, pool.call(to)).await else {
                    continue;
                };
                let conn = conn.unwrap();
                let acquired = conn.acquired();
                match random.below(10) {
                    0 => drop(conn),
                    1 => {
                        // Whoever gets this connection after that would read this reply.
                        let polls = random.below(4);
                        give_up_after(polls, exchange(conn, number)).await;
                    }
                    _ => match exchange(conn, number).await {
                        Ok(_) => done += 1,
                        Err(_) => assert!(acquired.is_reused()),
                    },
                }
                if random.below(4) == 0 {
                    yield_now().await;
                }
            }
            done
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut done = 0;
    for task in tasks {
        done += soon(task).await.unwrap();
    }

    assert!(done > 3_000, "{done}");
    let most = counts
        .each_ref()
        .map(|counts| counts[1].load(SeqCst));
    assert!(most[0] <= 8 && most[1] <= 8 && most[2] <= 12, "{most:?}");
    // Dials that nobody waits for any more come to their end.
    until(|| handle.snapshot().connecting() == 0).await;
    let left = handle.snapshot();
    assert_eq!((left.in_use(), left.waiting()), (0, 0), "{left:?}");
    assert!(left.open() == left.idle() && left.open() <= 12, "{left:?}");
    drop((pool, handle));
    until(|| counts[2][0].load(SeqCst) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_for_busy_connections_are_served_in_the_order_of_their_coming() {
    let addr = server(Manner::Good).await;
    let mut pool = pool(Pooling::default().max_open(1), tcp());
    let first = soon(pool.call(addr)).await.unwrap();
    let order = Arc::new(AtomicUsize::new(0));
    let gets: Vec<_> = (0..64)
        .map(|place| {
            let (mut get, order) = (task::spawn(pool.call(addr)), Arc::clone(&order));
            // In line from now on, though it is another task that goes on with it.
            assert!(get.poll().is_pending());
            let get = get.into_inner();
            tokio::spawn(async move {
                let conn = get.await.unwrap();
                assert_eq!(order.fetch_add(1, SeqCst), place);
                exchange(conn, place as u32)
                    .await
                    .unwrap();
            })
        })
        .collect();

    first.reuse();

    for get in gets {
        soon(get).await.unwrap();
    }
}

#[test]
fn the_example_shows_what_a_pool_saves() {
    let mut run = Process::start("pool_or_not", "--rate 200 --seconds 1 --tasks 4");
    let mut numbers = std::collections::BTreeMap::new();

    while let Some(line) = run.line() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let [name @ .., without, with] = &words[..] {
            if let (Ok(without), Ok(with)) = (without.parse(), with.parse()) {
                numbers.insert(name.join(" "), (without, with));
            }
        }
    }

    assert_eq!(run.end().0, 0);
    let (without, with): (u64, u64) = numbers["connects"];
    assert!(without == 200 && with <= 4, "{numbers:?}");
    let (without, with) = numbers["sockets in TIME_WAIT"];
    assert!(without > with && with <= 4, "{numbers:?}");
}
