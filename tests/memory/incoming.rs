use std::{
    future::poll_fn,
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::yield_now,
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{ServiceBuilder, util::MapFutureLayer};
use tower_layer::{Identity, Layer};
use tower_net::{
    CloseReason, Conn, Elapsed, HandOutFuture, Incoming, IncomingIo, Server,
    deadline::{DeadlineFuture, DeadlineIo, DeadlineLayer},
    error::{BoxError, find},
    limit::{ConnectionLimitLayer, OverLimit},
    meter::MeterLayer,
};

use crate::support::{
    io::{Dialler, Queue},
    service::{millis, secs},
};

type Plain = Incoming<DuplexStream>;

fn plain() -> (Plain, Dialler) {
    let (queue, dialler) = Queue::pair();
    (Server::new(queue).incoming(Identity::new()), dialler)
}

/// Lets the accept loop and the connections' tasks run.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

// === What is handed out

#[tokio::test]
async fn a_connection_is_handed_out_with_what_is_known_of_it() {
    let (mut incoming, dialler) = plain();
    let mut far = dialler.dial(64);

    let mut near = incoming.accept().await.unwrap();
    far.write_all(b"hi").await.unwrap();
    let mut heard = [0; 2];
    near.read_exact(&mut heard)
        .await
        .unwrap();

    assert_eq!(&heard, b"hi");
    assert_eq!(near.info().close_reason(), None);
    assert_eq!(incoming.handle().open(), 1);
}

#[tokio::test]
async fn what_the_stack_holds_is_free_when_the_stream_is_dropped_and_not_before() {
    let (queue, dialler) = Queue::pair();
    let (meter, tally) = MeterLayer::pair("test");
    let limit = ConnectionLimitLayer::new(1).unwrap();
    let places = limit.handle();
    let layers = ServiceBuilder::new()
        .layer(meter)
        .layer(limit);
    let mut incoming = Server::new(queue).incoming(layers.into_inner());
    let _far = dialler.dial(64);
    let near = incoming.accept().await.unwrap();
    settle().await;
    let during = (
        places.in_use(),
        tally.snapshot().active(),
        incoming.handle().open(),
    );

    // As hyper does with an upgrade: to another task, in another wrapper.
    let moved = tokio::spawn(async move { drop(Box::new(near)) });
    moved.await.unwrap();
    settle().await;

    assert_eq!(during, (1, 1, 1));
    assert_eq!(
        (
            places.in_use(),
            tally.snapshot().active(),
            incoming.handle().open()
        ),
        (0, 0, 0)
    );
}

#[tokio::test]
async fn nothing_is_accepted_while_too_much_is_unclaimed() {
    let (incoming, dialler) = plain();
    let mut incoming = incoming.unclaimed(2).unwrap();
    let far: Vec<_> = (0..5)
        .map(|_| dialler.dial(64))
        .collect();
    let first = incoming.accept().await;
    settle().await;

    // The one that was claimed, and two that were not.
    assert_eq!(incoming.handle().open(), 3);
    for _ in &far[1..] {
        assert!(incoming.accept().await.is_some());
    }
    settle().await;
    assert_eq!(incoming.handle().open(), 1);
    drop(first);
}

#[tokio::test]
async fn a_waiting_accept_is_woken_by_an_arrival() {
    let (mut incoming, dialler) = plain();
    let mut accept = task::spawn(incoming.accept());
    assert_pending!(accept.poll());

    let _far = dialler.dial(64);
    settle().await;

    assert!(accept.is_woken());
    assert!(assert_ready!(accept.poll()).is_some());
}

#[tokio::test]
async fn a_connection_that_its_stack_refuses_is_nobodys_error() {
    let (queue, dialler) = Queue::pair();
    let limit = ConnectionLimitLayer::new(1).unwrap();
    let mut incoming = Server::new(queue).incoming(limit.over_limit(OverLimit::Reset));
    let _far = dialler.dial(64);
    let first = incoming.accept().await.unwrap();
    let mut refused = dialler.dial(64);
    assert_eq!(refused.read(&mut [0]).await.unwrap(), 0);

    drop(first);
    settle().await;
    let _third = dialler.dial(64);

    assert!(incoming.accept().await.is_some());
}

#[tokio::test]
async fn a_dropped_accept_loses_no_connection() {
    let (mut incoming, dialler) = plain();
    let _far = dialler.dial(64);
    {
        let mut given_up = task::spawn(incoming.accept());
        assert_pending!(given_up.poll());
        settle().await;
    }

    assert!(incoming.accept().await.is_some());
}

#[test]
fn zero_unclaimed_is_refused() {
    let (incoming, _dialler) = plain();

    assert_eq!(
        incoming
            .unclaimed(0)
            .unwrap_err()
            .setting(),
        "unclaimed"
    );
}

// === How it ends

#[tokio::test(start_paused = true)]
async fn a_drain_hands_out_what_is_queued_and_counts_until_the_last_is_dropped() {
    let (incoming, dialler) = plain();
    let mut incoming = incoming.drain_for(secs(9));
    let handle = incoming.handle();
    let _far = dialler.dial(64);
    let first = incoming.accept().await.unwrap();
    let _queued = dialler.dial(64);
    handle.shutdown();

    let second = incoming.accept().await.unwrap();
    assert!(incoming.accept().await.is_none());
    assert!(first.info().is_leaving() && second.info().is_leaving());
    let mut report = task::spawn(incoming.report());
    assert_pending!(report.poll());
    drop((first, second));
    let report = report.await.unwrap();

    assert_eq!((report.opened(), report.cut()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn the_signal_begins_the_drain() {
    let (incoming, _dialler) = plain();
    let mut incoming = incoming.with_graceful_shutdown(tokio::time::sleep(secs(5)));

    assert!(incoming.accept().await.is_none());
    assert!(
        incoming
            .report()
            .await
            .unwrap()
            .is_clean()
    );
}

async fn cut_fails_and_wakes<I: tower_net::io::Io>(mut incoming: Incoming<I>, dialler: &Dialler) {
    let _far = dialler.dial(64);
    let handle = incoming.handle();
    let mut near = incoming.accept().await.unwrap();
    let info = Arc::clone(near.info());
    let mut scratch = [0; 8];
    let mut reading = task::spawn(near.read(&mut scratch));
    assert_pending!(reading.poll());

    handle.shutdown();
    handle.cut();
    settle().await;

    assert!(reading.is_woken());
    let Poll::Ready(Err(error)) = reading.poll() else {
        panic!("it goes on");
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let elapsed = find::<Elapsed>(&error).unwrap();
    assert_eq!(elapsed.which(), CloseReason::Cut);
    assert_eq!(info.close_reason(), Some(CloseReason::Cut));
    drop(reading);
    drop(near);
    let report = incoming.report().await.unwrap();
    assert_eq!((report.cut(), report.stragglers().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_cut_fails_the_stream_wherever_it_is() {
    let (incoming, dialler) = plain();
    cut_fails_and_wakes(incoming, &dialler).await;

    let (queue, dialler) = Queue::pair();
    let incoming = Server::new(queue).incoming(DeadlineLayer::default());
    cut_fails_and_wakes(incoming, &dialler).await;
}

#[tokio::test(start_paused = true)]
async fn deadlines_hold_for_a_stream_that_was_handed_out() {
    let (queue, dialler) = Queue::pair();
    let mut incoming = Server::new(queue).incoming(DeadlineLayer::default());
    let _far = dialler.dial(64);
    let mut near = incoming.accept().await.unwrap();

    let error = near.read(&mut [0]).await.unwrap_err();

    let elapsed = find::<Elapsed>(&error).unwrap();
    assert_eq!(elapsed.which(), CloseReason::FirstByte);
    assert_eq!(near.info().age(), secs(3));
}

#[tokio::test(start_paused = true)]
async fn who_drops_it_stops_accepting_and_keeps_what_was_handed_out() {
    let (mut incoming, dialler) = plain();
    let mut far = dialler.dial(64);
    let mut near = incoming.accept().await.unwrap();
    let handle = incoming.handle();

    drop(incoming);
    settle().await;
    let told = near.info().is_leaving();
    near.write_all(b"still").await.unwrap();
    drop(near);
    let mut heard = String::new();
    far.read_to_string(&mut heard)
        .await
        .unwrap();
    settle().await;

    assert!(told);
    assert_eq!((&*heard, handle.open()), ("still", 0));
}

#[tokio::test]
async fn what_nobody_claims_any_more_is_closed() {
    let (mut incoming, dialler) = plain();
    let _far = dialler.dial(64);
    let first = incoming.accept().await;
    let mut far = dialler.dial(64);
    settle().await;

    drop(incoming);

    assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    drop(first);
}

#[test]
fn types_are_send_and_debug() {
    fn check<T: Send + std::fmt::Debug>() {}
    check::<Incoming<DuplexStream>>();
    check::<IncomingIo<DuplexStream>>();
    fn layer<L: Layer<S>, S>(_: &L) {}
    layer::<_, Conn<DuplexStream>>(&Identity::new());
    let _error: Option<BoxError> = None;
}

// === In front of a server that does not tell of its requests

#[tokio::test(start_paused = true)]
async fn what_has_begun_must_be_answered_in_time_with_and_without_deadlines_in_the_stack() {
    for deadlines in [false, true] {
        let (queue, dialler) = Queue::pair();
        let limit = secs(5);
        let mut far = dialler.dial(64);
        if deadlines {
            let incoming = Server::new(queue).incoming(DeadlineLayer::default());
            drips_until(
                incoming
                    .request_deadline(limit)
                    .unwrap(),
                &mut far,
            )
            .await;
        } else {
            let incoming = Server::new(queue).incoming(Identity::new());
            drips_until(
                incoming
                    .request_deadline(limit)
                    .unwrap(),
                &mut far,
            )
            .await;
        }
    }
}

/// Reads what drips, as a server does that waits for a whole head, until it is ended for it.
async fn drips_until<I: tower_net::io::Io>(mut incoming: Incoming<I>, far: &mut DuplexStream) {
    let mut near = incoming.accept().await.unwrap();
    // A turn before it, answered in time: each has its own deadline.
    far.write_all(b"ask").await.unwrap();
    near.read_exact(&mut [0; 3])
        .await
        .unwrap();
    near.write_all(b"answer").await.unwrap();
    tokio::time::sleep(secs(60)).await;
    let start = tokio::time::Instant::now();
    let (mut read, _write) = tokio::io::split(&mut near);

    let error = {
        let reading = async {
            loop {
                if let Err(error) = read.read_u8().await {
                    return error;
                }
            }
        };
        let dripping = async {
            loop {
                far.write_all(b"x").await.unwrap();
                tokio::time::sleep(secs(1)).await;
            }
        };
        tokio::select! {
            error = reading => error,
            never = dripping => never,
        }
    };

    let elapsed = find::<Elapsed>(&error).unwrap();
    assert_eq!(elapsed.which(), CloseReason::Request);
    assert_eq!(start.elapsed(), secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_stream_on_which_only_the_server_speaks_has_no_request_to_be_late() {
    let (queue, dialler) = Queue::pair();
    let incoming = Server::new(queue).incoming(Identity::new());
    let mut incoming = incoming
        .request_deadline(secs(5))
        .unwrap();
    let mut far = dialler.dial(64);
    let mut near = incoming.accept().await.unwrap();
    far.write_all(b"subscribe")
        .await
        .unwrap();
    near.read_exact(&mut [0; 9])
        .await
        .unwrap();
    near.write_all(b"first").await.unwrap();
    let mut waiting = task::spawn(async { near.read_u8().await });
    assert_pending!(waiting.poll());

    tokio::time::sleep(secs(60)).await;

    assert!(!waiting.is_woken());
}

#[tokio::test]
async fn axum_itself_serves_what_is_handed_out_and_knows_the_peer() {
    use axum::{Router, extract::ConnectInfo, routing::get};
    use std::net::SocketAddr;
    use tower_net::ConnHandle;

    let (queue, dialler) = Queue::pair();
    let announce = tower::util::MapRequestLayer::new(|conn: Conn<DuplexStream>| {
        conn.info()
            .announce_peer(SocketAddr::from(([192, 0, 2, 7], 99)));
        conn
    });
    let incoming = Server::new(queue).incoming(announce);
    let app = Router::new().route(
        "/",
        get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string()),
    );
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let serving = tokio::spawn(axum::serve(incoming.for_axum(), app).into_future());
    let mut far = dialler.dial(1024);
    far.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut heard = String::new();
    far.read_to_string(&mut heard)
        .await
        .unwrap();
    assert!(heard.ends_with("192.0.2.7:99"), "{heard}");
    serving.abort();

    let (queue, dialler) = Queue::pair();
    let incoming = Server::new(queue).incoming(Identity::new());
    let app = Router::new().route(
        "/",
        get(async |ConnectInfo(conn): ConnectInfo<ConnHandle>| conn.id().to_string()),
    );
    let app = app.into_make_service_with_connect_info::<ConnHandle>();
    let serving = tokio::spawn(axum::serve(incoming, app).into_future());
    let mut far = dialler.dial(1024);
    far.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut heard = String::new();
    far.read_to_string(&mut heard)
        .await
        .unwrap();
    assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
    serving.abort();
}

// === What it costs to be on another task than the stack

/// A stack with deadlines, and how often its task was polled.
fn counted() -> (
    Incoming<DeadlineIo<DuplexStream>>,
    Dialler,
    Arc<AtomicUsize>,
) {
    let (queue, dialler) = Queue::pair();
    let polls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&polls);
    let count = MapFutureLayer::new(move |connection: DeadlineFuture<HandOutFuture>| {
        let (counter, mut connection) = (Arc::clone(&counter), Box::pin(connection));
        poll_fn(move |cx| {
            counter.fetch_add(1, Relaxed);
            connection.as_mut().poll(cx)
        })
    });
    let layers = ServiceBuilder::new()
        .layer(count)
        .layer(DeadlineLayer::default());
    let incoming = Server::new(queue).incoming(layers.into_inner());
    (incoming, dialler, polls)
}

/// A turn of a server that waits for more while it works, as hyper does.
async fn exchange<I: tower_net::io::Io>(near: &mut IncomingIo<I>, far: &mut DuplexStream) {
    let mut scratch = [0; 8];
    {
        let mut reading = task::spawn(near.read(&mut scratch));
        assert_pending!(reading.poll());
        far.write_all(b"ask").await.unwrap();
        assert_eq!(assert_ready!(reading.poll()).unwrap(), 3);
    }
    {
        let mut more = task::spawn(near.read(&mut scratch));
        assert_pending!(more.poll());
        settle().await;
    }
    near.write_all(b"answer").await.unwrap();
    far.read_exact(&mut [0; 6])
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_busy_stream_leaves_its_stack_alone() {
    let (incoming, dialler, polls) = counted();
    let mut incoming = incoming
        .request_deadline(secs(30))
        .unwrap();
    let mut far = dialler.dial(64);
    let mut near = incoming.accept().await.unwrap();
    for _ in 0..2 {
        exchange(&mut near, &mut far).await;
    }
    let before = polls.load(Relaxed);

    for _ in 0..100 {
        exchange(&mut near, &mut far).await;
    }

    assert_eq!(polls.load(Relaxed), before);
}

#[tokio::test(start_paused = true)]
async fn what_falls_silent_after_a_busy_time_is_idle_within_a_tick() {
    let (mut incoming, dialler, polls) = counted();
    let mut far = dialler.dial(64);
    let mut near = incoming.accept().await.unwrap();
    for _ in 0..1000 {
        exchange(&mut near, &mut far).await;
        tokio::time::advance(millis(17)).await;
    }
    let (start, before) = (tokio::time::Instant::now(), polls.load(Relaxed));

    let error = near.read_u8().await.unwrap_err();

    let elapsed = find::<Elapsed>(&error).unwrap();
    assert_eq!(elapsed.which(), CloseReason::Idle);
    // A sixteenth of the write stall, which is the shorter limit.
    let late = start.elapsed() - secs(90);
    assert!(late <= secs(30) / 16, "{late:?}");
    assert!(polls.load(Relaxed) - before <= 4);
    // And before it: once in a tick.
    assert!(before <= 17 * 16 / 30 + 8, "{before}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_late_before_the_next_tick_is_ended_on_time() {
    let (incoming, dialler, _) = counted();
    let mut incoming = incoming
        .request_deadline(secs(1))
        .unwrap();
    let mut far = dialler.dial(64);
    let mut near = incoming.accept().await.unwrap();
    for _ in 0..10 {
        exchange(&mut near, &mut far).await;
    }
    far.write_all(b"ask").await.unwrap();
    near.read_exact(&mut [0; 3])
        .await
        .unwrap();
    let start = tokio::time::Instant::now();

    let error = near.read_u8().await.unwrap_err();

    let elapsed = find::<Elapsed>(&error).unwrap();
    assert_eq!(elapsed.which(), CloseReason::Request);
    assert_eq!(start.elapsed(), secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_stalls_after_a_busy_time_is_ended_within_a_tick() {
    let (mut incoming, dialler, _) = counted();
    let mut far = dialler.dial(64);
    let mut near = incoming.accept().await.unwrap();
    for _ in 0..10 {
        exchange(&mut near, &mut far).await;
    }
    let start = tokio::time::Instant::now();

    let error = near
        .write_all(&[0; 65])
        .await
        .unwrap_err();

    let elapsed = find::<Elapsed>(&error).unwrap();
    assert_eq!(elapsed.which(), CloseReason::WriteStall);
    let late = start.elapsed() - secs(30);
    assert!(late <= secs(30) / 16, "{late:?}");
}
