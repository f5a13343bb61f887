//! The server over a listener in memory; with real sockets and processes it is in the other binary.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tower::{ServiceBuilder, service_fn};
use tower_net::{
    CloseReason, Conn, Report, ServeCause, ServeError, Server, ServerHandle,
    deadline::DeadlineLayer,
    error::BoxError,
    frame::{Delimited, FrameLayer, Framing},
    io::Io,
    limit::{ConnectionLimitLayer, OverLimit},
};
use tower_service::Service;

use crate::support::{
    io::{Dialler, Queue},
    service::{millis, obey, secs},
};

type Running = JoinHandle<Result<Report, ServeError>>;

/// Serves what is dialled, and drains for five seconds once it is told to.
fn running<S>(service: S) -> (Dialler, ServerHandle, Running)
where
    S: Service<Conn<DuplexStream>, Response = (), Error: Into<BoxError>, Future: Send + 'static>,
    S: Clone + Send + 'static,
{
    let (queue, dialler) = Queue::pair();
    let serve = Server::new(queue)
        .serve(service)
        .drain_for(secs(5))
        .keep_descriptor_limit();
    let handle = serve.handle();
    (dialler, handle, tokio::spawn(serve.into_future()))
}

async fn swallow<I: Io>(mut conn: Conn<I>) -> Result<(), BoxError> {
    tokio::io::copy(&mut conn, &mut tokio::io::sink()).await?;
    Ok(())
}

/// What is still queued is waited for, for a moment, before anything else is done.
fn assert_soon_after(start: Instant, time: Duration) {
    let late = start.elapsed().checked_sub(time);
    assert!(late.is_some_and(|late| late <= millis(20)), "{late:?}");
}

/// Too many open files.
const EMFILE: i32 = 24;

fn framed() -> FrameLayer<Delimited> {
    FrameLayer::with_framing(Delimited::lines(80), Framing::default().pipelined(4)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_service_that_ignores_the_notice_is_cut_when_the_time_is_up() {
    let (dialler, handle, running) = running(service_fn(swallow));
    let _peer = dialler.dial(64);
    sleep(secs(1)).await;
    let start = Instant::now();

    handle.shutdown();
    let report = running.await.unwrap().unwrap();

    assert_soon_after(start, secs(5));
    assert_eq!((report.cut(), report.stuck(), report.finished()), (1, 0, 0));
    assert_eq!(report.closed_for(CloseReason::Cut), 1);
    assert_eq!(report.stragglers().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_word_cuts_at_once() {
    let (dialler, handle, running) = running(service_fn(swallow));
    let _peer = dialler.dial(64);
    sleep(secs(1)).await;
    let start = Instant::now();

    handle.shutdown();
    handle.cut();
    let report = running.await.unwrap().unwrap();

    assert_soon_after(start, secs(0));
    assert_eq!(report.cut(), 1);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_leave_and_busy_ones_finish() {
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::default())
        .layer(framed())
        .service_fn(obey);
    let (dialler, handle, running) = running(service);
    let [mut silent, mut idle, mut busy] = std::array::from_fn(|_| dialler.dial(64));
    idle.write_all(b"one\n").await.unwrap();
    busy.write_all(b"wait 3000 two\n")
        .await
        .unwrap();
    sleep(secs(1)).await;
    let start = Instant::now();

    handle.shutdown();
    let mut heard = [String::new(), String::new(), String::new()];
    for (peer, heard) in [&mut silent, &mut idle, &mut busy]
        .into_iter()
        .zip(&mut heard)
    {
        peer.read_to_string(heard)
            .await
            .unwrap();
    }
    drop((silent, idle, busy));
    let report = running.await.unwrap().unwrap();

    assert_eq!(heard, ["", "one\n", "two\n"]);
    assert_eq!(report.closed_for(CloseReason::Drain), 3);
    assert_eq!(
        (report.closed_idle(), report.finished(), report.cut()),
        (2, 1, 0)
    );
    assert_soon_after(start, secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_stack_that_runs_in_a_task_of_its_own_still_hears_the_notice() {
    let service = ServiceBuilder::new()
        .layer_fn(Elsewhere)
        .layer(DeadlineLayer::default())
        .layer(framed())
        .service_fn(obey);
    let (dialler, handle, running) = running(service);
    let mut peer = dialler.dial(64);
    peer.write_all(b"one\n").await.unwrap();
    sleep(secs(1)).await;
    let start = Instant::now();

    handle.shutdown();
    let mut heard = String::new();
    peer.read_to_string(&mut heard)
        .await
        .unwrap();
    drop(peer);
    let report = running.await.unwrap().unwrap();

    assert_soon_after(start, secs(0));
    assert_eq!(
        (&*heard, report.closed_for(CloseReason::Drain)),
        ("one\n", 1)
    );
}

/// Runs each connection in a task beside the server's own.
#[derive(Clone)]
struct Elsewhere<S>(S);

impl<S, I> Service<Conn<I>> for Elsewhere<S>
where
    S: Service<Conn<I>, Response = (), Error = BoxError, Future: Send + 'static>,
{
    type Response = ();
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, conn: Conn<I>) -> Self::Future {
        let elsewhere = tokio::spawn(self.0.call(conn));
        Box::pin(async { elsewhere.await? })
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_queued_when_the_drain_begins_is_served() {
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::default())
        .layer(framed())
        .service_fn(obey);
    let (dialler, handle, running) = running(service);
    let mut peers: Vec<_> = (0..300)
        .map(|_| dialler.dial(64))
        .collect();
    for peer in &mut peers {
        peer.write_all(b"one\n").await.unwrap();
    }

    handle.shutdown();
    for mut peer in peers {
        let mut heard = String::new();
        peer.read_to_string(&mut heard)
            .await
            .unwrap();
        assert_eq!(heard, "one\n");
    }

    assert_eq!(running.await.unwrap().unwrap().opened(), 300);
}

#[tokio::test(start_paused = true)]
async fn no_error_of_an_accept_ends_the_server_and_none_makes_it_spin() {
    let (dialler, handle, running) = running(service_fn(swallow));
    let start = Instant::now();

    for _ in 0..5 {
        dialler.fail(io::Error::from_raw_os_error(EMFILE));
    }
    dialler.fail(io::ErrorKind::ConnectionAborted.into());
    let mut peer = dialler.dial(64);
    peer.write_all(b"served").await.unwrap();
    while handle.open() == 0 {
        sleep(millis(1)).await;
    }
    let recovered = start.elapsed();
    drop(peer);
    handle.shutdown();
    let report = running.await.unwrap().unwrap();

    // 50 ms, then twice as long each time, and 1 s at the most.
    assert!(
        recovered >= millis(50 + 100 + 200 + 400 + 800),
        "{recovered:?}"
    );
    assert!(
        recovered <= millis(50 + 100 + 200 + 400 + 801),
        "{recovered:?}"
    );
    let errors: Vec<_> = report.accept_errors().collect();
    assert_eq!(errors, [("connection", 1), ("descriptors", 5)]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_call_or_after_it_ends_one_connection() {
    let panics = service_fn(|conn: Conn<DuplexStream>| {
        assert!(conn.info().id().get() % 2 == 0, "told to panic");
        async move {
            drop(conn);
            panic!("told to panic");
            #[expect(unreachable_code, reason = "the type of the service")]
            Ok::<_, BoxError>(())
        }
    });
    let (dialler, handle, running) = running(panics);

    for _ in 0..4 {
        let mut peer = dialler.dial(64);
        assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
    }
    handle.shutdown();
    let report = running.await.unwrap().unwrap();

    assert_eq!(
        (report.opened(), report.closed_for(CloseReason::Panic)),
        (4, 4)
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_ready_leaves_connections_in_the_queue() {
    let limit = ConnectionLimitLayer::new(1)
        .unwrap()
        .over_limit(OverLimit::Wait);
    let service = ServiceBuilder::new()
        .layer(limit)
        .service_fn(swallow);
    let (dialler, handle, _running) = running(service);
    let first = dialler.dial(64);
    let _second = dialler.dial(64);

    sleep(secs(60)).await;
    let while_full = handle.open();
    drop(first);
    sleep(secs(1)).await;

    assert_eq!((while_full, handle.open()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_will_never_be_ready_ends_the_server_in_order() {
    let (mock, mut control) = tower_test::mock::pair::<Conn<DuplexStream>, ()>();
    control.send_error("never");
    let (queue, _dialler) = Queue::pair();

    let ended = Server::new(queue)
        .serve(mock)
        .keep_descriptor_limit()
        .await;

    let error = ended.unwrap_err();
    assert!(matches!(error.cause(), ServeCause::Service(_)), "{error:?}");
    assert_eq!(error.report().map(Report::opened), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_dropped_aborts_what_is_open() {
    let (dialler, handle, running) = running(service_fn(swallow));
    let mut peer = dialler.dial(64);
    sleep(secs(1)).await;

    running.abort();
    let eof = peer.read(&mut [0]).await.unwrap();

    assert_eq!((eof, handle.open()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_connection_carries_the_name_of_its_listener() {
    let (sender, names) = std::sync::mpsc::channel();
    let (front, dialler) = Queue::pair();
    let service = service_fn(move |conn: Conn<DuplexStream>| {
        sender
            .send(
                conn.info()
                    .listener()
                    .map(str::to_owned),
            )
            .unwrap();
        std::future::ready(Ok::<_, BoxError>(()))
    });
    let serve = Server::from_listeners([])
        .named("front", front)
        .serve(service);
    let handle = serve.handle();
    let running = tokio::spawn(
        serve
            .keep_descriptor_limit()
            .into_future(),
    );

    let mut peer = dialler.dial(64);
    assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
    handle.shutdown();
    running.await.unwrap().unwrap();

    assert_eq!(names.try_recv().unwrap().as_deref(), Some("front"));
}
