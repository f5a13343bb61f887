//! The end of a server.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep},
};
use tower_net::{CloseReason, Server, frame::Framing, limit::OverLimit, listen::Tcp};

use crate::{
    child::Child,
    kernel::{self, State},
    peer::{End, Peer, alone, frame, soon, until},
    stack::{BLOCKING, FAR, Settings},
};

/// Of the server with ten thousand connections.
pub(crate) fn settings() -> Settings {
    Settings::default()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_drain_in_time_and_no_accepted_request_is_lost() {
    let _machine = alone().await;
    let mut server = Child::serve("drain");
    let addr = server.addr;
    let mut peers = Vec::new();
    while peers.len() < MANY {
        peers.extend(join_all((0..500).map(|_| Peer::connect(addr))).await);
    }
    let mut busy = peers.split_off(MANY - BUSY);
    let mut idle = peers.split_off(SILENT);
    let mut silent = peers;
    for some in idle.chunks_mut(500) {
        join_all(
            some.iter_mut()
                .map(|peer| peer.call("hello")),
        )
        .await;
    }
    let before = server.number("started");
    join_all(
        busy.iter_mut()
            .map(|peer| peer.send("after 2000")),
    )
    .await;
    while server.number("started") < before + BUSY as u64 {}
    assert_eq!(server.number("active"), MANY as u64);

    server.ask("shutdown");

    let replies = join_all(busy.iter_mut().map(Peer::receive)).await;
    assert!(
        replies
            .iter()
            .all(|reply| reply.as_deref() == Ok(b"after 2000"))
    );
    for peer in silent
        .iter_mut()
        .chain(&mut idle)
        .chain(&mut busy)
    {
        assert_eq!(peer.end().await, (0, End::Closed));
    }
    drop((silent, idle, busy));
    let report = server.report();
    assert_eq!(report["opened"], MANY as u64);
    assert_eq!(report["finished"], BUSY as u64);
    assert_eq!(report["idle"], (MANY - BUSY) as u64);
    assert_eq!(report["closed.drain"], MANY as u64);
    assert_eq!(report["cut"], 0);
    assert!(report["millis"] < FAR.as_millis() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_silent_and_the_idle_leave_at_once_and_the_one_that_stopped_reading_at_the_deadline() {
    let grace = Duration::from_secs(2);
    let server = Settings {
        drain: grace,
        ..Settings::default()
    }
    .start()
    .await;
    let mut silent = Peer::connect(server.addr).await;
    let mut idle = Peer::connect(server.addr).await;
    idle.call("hello").await.unwrap();
    let mut stuck = Peer::with_small_buffer(server.addr).await;
    stuck.flood("big 16384").await;

    let begun = Instant::now();
    server.handle.shutdown();
    assert_eq!(silent.end().await, (0, End::Closed));
    assert_eq!(idle.end().await, (0, End::Closed));
    // The peer sees the end a moment before the server has counted it.
    until(|| server.handle.open() == 1).await;
    assert!(begun.elapsed() < grace, "gone at the deadline only");
    let report = server.report().await;

    assert!(begun.elapsed() >= grace);
    assert!(report.drained_in() >= grace);
    assert_eq!(stuck.end().await.1, End::Reset);
    assert_eq!(
        (report.closed_idle(), report.finished(), report.cut()),
        (2, 0, 1)
    );
    assert_eq!(report.closed_for(CloseReason::Drain), 2);
    assert_eq!(report.closed_for(CloseReason::Cut), 1);
    assert_eq!(report.stragglers().len(), 1);
    assert_eq!(report.stragglers()[0].phase(), "writing");
    assert!(!report.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_reply_that_nobody_takes_is_cut_and_not_called_finished() {
    let server = Settings {
        // The whole reply is below the mark, so that nothing is left to do but to write it.
        framing: Framing::default().high_water(64 << 20),
        drain: Duration::from_secs(1),
        ..Settings::default()
    }
    .start()
    .await;
    let mut stuck = Peer::with_small_buffer(server.addr).await;
    for _ in 0..4 {
        stuck.send("big 4000000").await;
    }
    until(|| server.tally.snapshot().read() >= 4 * frame("big 4000000").len() as u64).await;

    let report = server.drained().await;

    assert_eq!((report.finished(), report.cut()), (0, 1), "{report}");
    assert_eq!(report.closed_for(CloseReason::Cut), 1, "{report}");
    assert_eq!(report.stragglers().len(), 1);
    assert_eq!(stuck.end().await.1, End::Reset);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_service_that_heard_the_notice_and_stayed_is_cut() {
    let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let service = tower::service_fn(async |conn: tower_net::Conn<TcpStream>| {
        conn.info().told_to_leave().await;
        std::future::pending::<io::Result<()>>().await
    });
    let serve = Server::new(listener)
        .serve(service)
        .drain_for(Duration::from_millis(300));
    let handle = serve.handle();
    let serving = tokio::spawn(serve.into_future());
    let _peer = Peer::connect(addr).await;
    until(|| handle.open() == 1).await;

    handle.shutdown();
    let report = soon(serving).await.unwrap().unwrap();

    assert_eq!(report.cut(), 1, "{report}");
    assert_eq!(report.closed_for(CloseReason::Cut), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_had_arrived_are_answered_and_a_peer_that_never_pauses_is_not_served_for_ever()
 {
    let server = Settings {
        framing: Framing::default().serial(),
        drain: FAR,
        ..Settings::default()
    }
    .start()
    .await;
    let peer = Peer::connect(server.addr).await;
    let (mut input, mut output) = peer.stream.into_split();
    let sending = tokio::spawn(async move {
        let burst = frame(format!("{:<1000}", "after 1")).repeat(100);
        while output.write_all(&burst).await.is_ok() {}
    });
    let reading = tokio::spawn(async move {
        let mut replies = Vec::new();
        let ended = input.read_to_end(&mut replies).await;
        (ended.is_ok(), replies.len())
    });
    until(|| server.tally.snapshot().written() > 1000).await;

    let report = server.drained().await;

    sending.await.unwrap();
    let (_, replies) = reading.await.unwrap();
    assert!(replies > 0);
    assert_eq!((report.finished(), report.cut()), (1, 0), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_arrived_is_answered_and_what_has_begun_to_arrive_as_well() {
    for depth in [1, 64] {
        let server = Settings {
            framing: Framing::default().pipelined(depth),
            ..Settings::default()
        }
        .start()
        .await;
        let mut many = Peer::connect(server.addr).await;
        let mut half = Peer::connect(server.addr).await;
        let mut idle = Peer::connect(server.addr).await;
        let mut requests = frame("after 20").repeat(20);
        requests.extend(frame("after 1000"));
        let last = frame("the last one");
        half.send_raw(&last[..7]).await;
        until(|| server.tally.snapshot().read() == 7).await;
        many.send_raw(&requests).await;
        assert_eq!(many.receive().await.unwrap(), b"after 20");

        server.handle.shutdown();
        // All are told to leave at the same moment.
        assert_eq!(idle.end().await, (0, End::Closed));
        half.send_raw(&last[7..]).await;

        for _ in 1..20 {
            assert_eq!(many.receive().await.unwrap(), b"after 20");
        }
        assert_eq!(many.receive().await.unwrap(), b"after 1000");
        assert_eq!(half.receive().await.unwrap(), b"the last one");
        assert_eq!(many.end().await, (0, End::Closed));
        assert_eq!(half.end().await, (0, End::Closed));
        drop((many, half));
        let report = server.report().await;
        assert_eq!((report.finished(), report.cut()), (2, 0), "{report}");
    }
}

#[tokio::test]
async fn a_request_that_arrived_before_the_notice_is_answered_even_if_nobody_has_seen_it_yet() {
    let server = Settings::default().start().await;
    let mut peers = Vec::new();
    for _ in 0..100 {
        let mut peer = Peer::connect(server.addr).await;
        peer.call("hello").await.unwrap();
        peers.push(peer);
    }

    // On this one thread the server cannot look between the two.
    let request = frame("the last one");
    for peer in &peers {
        assert_eq!(peer.stream.try_write(&request).unwrap(), request.len());
    }
    server.handle.shutdown();

    for peer in &mut peers {
        assert_eq!(peer.receive().await.unwrap(), b"the last one");
        assert_eq!(peer.end().await, (0, End::Closed));
    }
    drop(peers);
    let report = server.report().await;
    assert_eq!(report.closed_for(CloseReason::Drain), 100, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_skips_ahead() {
    let server = Settings::default().start().await;
    let mut working = Peer::connect(server.addr).await;
    working.send("after 200000").await;
    until(|| server.tally.snapshot().read() > 0).await;

    server.handle.shutdown();
    until_the_listener_is_gone(server.addr).await;
    until(|| server.handle.open() == 1).await;
    server.handle.cut();
    let report = server.report().await;

    assert_eq!(working.end().await.1, End::Reset);
    assert_eq!(report.cut(), 1, "{report}");
    assert!(report.drained_in() < FAR);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_never_yields_does_not_hold_up_the_end() {
    let server = Settings {
        drain: Duration::from_millis(200),
        ..Settings::default()
    }
    .start()
    .await;
    let mut blocking = Peer::connect(server.addr).await;
    blocking.send("block 2500").await;
    // Without a timer: while a thread of the runtime is blocked, nobody may be looking after those.
    while BLOCKING.load(Relaxed) == 0 {
        std::thread::yield_now();
    }

    let report = server.drained().await;

    assert_eq!((report.stuck(), report.cut()), (1, 1), "{report}");
    assert!(!report.is_clean());
}

#[test]
fn connections_that_are_queued_when_the_drain_begins_are_served() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        // The server has not run yet, so all of them are in the kernel's queue, with their requests.
        let mut queued = Vec::new();
        for number in 0..QUEUED {
            use std::io::Write;
            let mut peer = std::net::TcpStream::connect(addr).unwrap();
            peer.write_all(&frame(format!("request {number}")))
                .unwrap();
            queued.push(peer);
        }
        let stack = Settings::default().stack();
        let serving = Server::new(listener)
            .serve(stack.service)
            .with_graceful_shutdown(std::future::ready(()))
            .into_future();
        let serving = tokio::spawn(serving);

        for (number, peer) in queued.into_iter().enumerate() {
            peer.set_nonblocking(true).unwrap();
            let stream = TcpStream::from_std(peer).unwrap();
            let mut peer = Peer { stream };
            let reply = peer.receive().await;
            assert_eq!(
                reply.unwrap(),
                format!("request {number}").into_bytes(),
                "of number {number}"
            );
            assert_eq!(peer.end().await, (0, End::Closed));
        }
        let report = soon(serving).await.unwrap().unwrap();
        assert_eq!(report.opened(), QUEUED as u64);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_keep_coming_do_not_put_off_the_drain() {
    let server = Settings::default().start().await;
    let mut idle = Peer::connect(server.addr).await;
    idle.call("hello").await.unwrap();

    server.handle.shutdown();
    let addr = server.addr;
    let coming = tokio::spawn(async move {
        while Peer::try_connect(addr).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert_eq!(idle.end().await, (0, End::Closed));
    soon(coming).await.unwrap();

    let report = server.report().await;
    assert!(report.opened() < 1000, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_waits_for_a_place_is_served_in_a_drain() {
    let server = Settings {
        limit: 1,
        over: OverLimit::Wait,
        ..Settings::default()
    }
    .start()
    .await;
    let mut first = Peer::connect(server.addr).await;
    first.call("hello").await.unwrap();
    first.send("after 300").await;
    let mut queued = Vec::new();
    for _ in 0..20 {
        let mut peer = Peer::connect(server.addr).await;
        peer.send("my turn").await;
        queued.push(peer);
    }

    server.handle.shutdown();

    assert_eq!(first.receive().await.unwrap(), b"after 300");
    drop(first);
    for mut peer in queued {
        assert_eq!(peer.receive().await.unwrap(), b"my turn");
        assert_eq!(peer.end().await, (0, End::Closed));
    }
    let report = server.report().await;
    assert_eq!(report.opened(), 21);
    assert!(report.is_clean(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_serve_future_closes_everything() {
    let server = Settings::default().start().await;
    let mut idle = Peer::connect(server.addr).await;
    idle.call("hello").await.unwrap();
    let mut working = Peer::connect(server.addr).await;
    working.send("after 200000").await;
    until(|| server.tally.snapshot().read() > 20).await;

    server.serving.abort();

    assert_eq!(idle.end().await, (0, End::Closed));
    assert_eq!(working.end().await, (0, End::Closed));
    until(|| server.handle.open() == 0).await;
    until_the_listener_is_gone(server.addr).await;
    let closed = server.tally.snapshot();
    assert_eq!(closed.closed_for(CloseReason::Aborted), 2, "{closed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_last_reply_reaches_a_peer_that_is_still_sending() {
    let server = Settings::default().start().await;
    let peer = Peer::connect(server.addr).await;
    let (mut input, mut output) = peer.stream.into_split();
    let sending = tokio::spawn(async move {
        output
            .write_all(&frame("big 3000000"))
            .await
            .unwrap();
        // No frame: the connection ends behind the reply. Then what a socket closed with unread input is
        // reset for.
        output
            .write_all(&[0xff; 4])
            .await
            .unwrap();
        let mut sent = 0;
        while sent < 8 << 20
            && output
                .write_all(&[0; 16384])
                .await
                .is_ok()
        {
            sent += 16384;
        }
        output
    });
    let mut replies = Vec::new();
    let ended = soon(input.read_to_end(&mut replies)).await;
    drop(soon(sending).await.unwrap());

    ended.unwrap();
    let last = frame("oversize");
    assert_eq!(replies.len(), 4 + 3_000_000 + last.len());
    assert!(replies.ends_with(&last));
    let report = server.drained().await;
    assert_eq!(report.closed_for(CloseReason::Oversize), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_is_reset_and_leaves_nothing_behind() {
    let server = Settings {
        limit: 1,
        ..Settings::default()
    }
    .start()
    .await;
    let mut admitted = Peer::connect(server.addr).await;
    admitted.call("hello").await.unwrap();

    for _ in 0..50 {
        match Peer::try_connect(server.addr).await {
            Ok(mut refused) => assert_eq!(refused.end().await, (0, End::Reset)),
            // It was refused before the client had even looked.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }

    let sockets = kernel::sockets_at(server.addr.port());
    assert!(
        !sockets
            .iter()
            .any(|socket| socket.state == State::TimeWait),
        "{sockets:?}"
    );
    admitted
        .call("still here")
        .await
        .unwrap();
    let report = server.drained().await;
    assert_eq!(report.closed_for(CloseReason::Limit), 50);
}

async fn until_the_listener_is_gone(addr: SocketAddr) {
    soon(async { while Peer::try_connect(addr).await.is_ok() {} }).await;
    let refused = Peer::try_connect(addr)
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

const MANY: usize = 10_000;
const BUSY: usize = 500;
const SILENT: usize = 500;

/// More than a runtime lets one task do at a time.
const QUEUED: usize = 1000;
