//! What an `Incoming` makes of bytes it does not understand: whose turn it is, and when there is nothing more to come.

use std::{
    io,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_test::{assert_pending, task};
use tokio_util::net::Listener;
use tower::{ServiceExt, layer::layer_fn, service_fn};
use tower_layer::Identity;
use tower_net::{
    Addr, CloseReason, Conn, Elapsed, HandOut, Incoming, IncomingIo, Server,
    deadline::{DeadlineIo, DeadlineLayer, Deadlines},
    error::find,
};

use crate::support::{
    io::{Dialler, Queue},
    service::secs,
};

type Timed = Incoming<DeadlineIo<DuplexStream>>;

/// Under these deadlines, and five minutes for a request.
fn timed(deadlines: Deadlines) -> (Timed, Dialler) {
    let (queue, dialler) = Queue::pair();
    let layer = DeadlineLayer::new(deadlines).unwrap();
    let incoming = Server::new(queue)
        .incoming(layer)
        .request_deadline(secs(300))
        .unwrap();
    (incoming, dialler)
}

/// Says `what`, which is read, and waits for more.
async fn asked(
    incoming: &mut Timed,
    dialler: &Dialler,
    what: &[u8],
) -> (IncomingIo<DeadlineIo<DuplexStream>>, DuplexStream) {
    let mut far = dialler.dial(4096);
    let mut near = incoming.accept().await.unwrap();
    far.write_all(what).await.unwrap();
    near.read_exact(&mut vec![0; what.len()])
        .await
        .unwrap();
    (near, far)
}

fn why(error: &io::Error) -> CloseReason {
    find::<Elapsed>(error).unwrap().which()
}

// === Whose turn it is

#[tokio::test(start_paused = true)]
async fn a_peer_that_waits_for_its_answer_is_not_idle() {
    let (mut incoming, dialler) = timed(Deadlines::default());
    let (mut near, mut far) = asked(&mut incoming, &dialler, b"ask").await;

    let early = timeout(secs(200), near.read_u8()).await;
    assert!(early.is_err(), "{early:?}");
    near.write_all(b"answer").await.unwrap();

    far.read_exact(&mut [0; 6])
        .await
        .unwrap();
    let error = near.read_u8().await.unwrap_err();
    assert_eq!(why(&error), CloseReason::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_waits_for_its_answer_owes_no_bytes() {
    let (mut incoming, dialler) = timed(Deadlines::default().min_receive_rate(1_000));
    let (mut near, _far) = asked(&mut incoming, &dialler, b"ask").await;

    let error = near.read_u8().await.unwrap_err();

    assert_eq!(why(&error), CloseReason::Request);
}

#[tokio::test(start_paused = true)]
async fn one_that_nobody_takes_is_not_to_blame_for_what_nobody_reads() {
    let (mut incoming, dialler) = timed(Deadlines::default());
    let _first = dialler.dial(64);
    let _first = incoming.accept().await.unwrap();
    let mut far = dialler.dial(64);
    far.write_all(b"ask").await.unwrap();

    sleep(secs(60)).await;

    let mut near = incoming.accept().await.unwrap();
    near.read_exact(&mut [0; 3])
        .await
        .unwrap();
    assert_eq!(near.info().close_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_taken_late_and_is_silent_is_closed_for_that() {
    let (mut incoming, dialler) = timed(Deadlines::default());
    let _first = dialler.dial(64);
    let _first = incoming.accept().await.unwrap();
    let _far = dialler.dial(64);
    sleep(secs(60)).await;
    let mut near = incoming.accept().await.unwrap();

    let error = timeout(secs(3), near.read_u8()).await;

    let error = error.unwrap().unwrap_err();
    assert_eq!(why(&error), CloseReason::FirstByte);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http_any_more_has_no_turns() {
    let (mut incoming, dialler) = timed(Deadlines::default());
    let (mut near, mut far) = asked(&mut incoming, &dialler, b"GET / HTTP/1.1\r\n\r\n").await;
    near.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        .await
        .unwrap();
    far.write_all(b"a message")
        .await
        .unwrap();
    near.read_exact(&mut [0; 9])
        .await
        .unwrap();

    // Idle, which is shorter: nobody waits for an answer.
    let error = near.read_u8().await.unwrap_err();

    assert_eq!(why(&error), CloseReason::Idle);
}

/// The preface, and empty SETTINGS.
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test(start_paused = true)]
async fn over_http2_what_is_said_between_requests_waits_for_no_answer() {
    let (mut incoming, dialler) = timed(Deadlines::default());
    let (mut near, mut far) = asked(&mut incoming, &dialler, OPENING).await;
    near.write_all(b"settings, and an answer")
        .await
        .unwrap();
    // That our SETTINGS have come.
    let acknowledged = [0, 0, 0, 4, 1, 0, 0, 0, 0];
    far.write_all(&acknowledged)
        .await
        .unwrap();
    near.read_exact(&mut [0; 9])
        .await
        .unwrap();

    let error = near.read_u8().await.unwrap_err();

    assert_eq!(why(&error), CloseReason::Idle);
}

#[tokio::test(start_paused = true)]
async fn over_http2_a_head_that_drips_is_late_whatever_is_written() {
    let (mut incoming, dialler) = timed(Deadlines::default());
    let headers = [OPENING, &[0, 1, 0, 1, 0, 0, 0, 0, 1]].concat();
    let (near, mut far) = asked(&mut incoming, &dialler, &headers).await;
    let start = tokio::time::Instant::now();
    let (mut read, mut write) = tokio::io::split(near);

    let reading = async {
        loop {
            if let Err(error) = read.read_u8().await {
                return error;
            }
        }
    };
    let meanwhile = async {
        loop {
            sleep(secs(20)).await;
            far.write_all(b"x").await.unwrap();
            // As an answer to another request, or to a ping.
            let _late = write.write_all(b"answer").await;
        }
    };
    let error = tokio::select! {
        error = reading => error,
        () = meanwhile => unreachable!(),
    };

    assert_eq!(why(&error), CloseReason::Request);
    assert_eq!(start.elapsed(), secs(300));
}

#[tokio::test(start_paused = true)]
async fn over_http2_a_preface_without_settings_is_late_whatever_is_written() {
    let (mut incoming, dialler) = timed(Deadlines::default());
    let (mut near, _far) = asked(&mut incoming, &dialler, &OPENING[..24]).await;
    near.write_all(b"our settings")
        .await
        .unwrap();

    let error = near.read_u8().await.unwrap_err();

    assert_eq!(why(&error), CloseReason::Request);
}

// === When there is nothing more to come

fn plain() -> (Incoming<DuplexStream>, Dialler) {
    let (queue, dialler) = Queue::pair();
    (Server::new(queue).incoming(Identity::new()), dialler)
}

/// Accepts until there are no more.
fn accepting<I: Send + 'static>(mut incoming: Incoming<I>) -> JoinHandle<usize> {
    tokio::spawn(async move {
        let mut accepted = 0;
        while incoming.accept().await.is_some() {
            accepted += 1;
        }
        // As a server that waits for connections of its own.
        sleep(secs(3600)).await;
        accepted
    })
}

#[tokio::test(start_paused = true)]
async fn the_consumer_is_to_close_once_it_has_all_that_were_queued() {
    let (incoming, dialler) = plain();
    let (handle, closing) = (incoming.handle(), incoming.closing());
    let mut closing = task::spawn(closing);
    let accepting = accepting(incoming);
    sleep(secs(1)).await;
    assert_pending!(closing.poll());
    let _far: Vec<_> = (0..10)
        .map(|_| dialler.dial(64))
        .collect();

    handle.shutdown();
    closing.await;

    assert_eq!(accepting.await.unwrap(), 10);
}

#[tokio::test(start_paused = true)]
async fn the_consumer_is_to_close_when_the_listener_fails() {
    let incoming = Server::new(Broken).incoming::<_, DuplexStream>(Identity::new());
    let (handle, closing) = (incoming.handle(), incoming.closing());
    let _accepting = accepting(incoming);

    closing.await;

    assert_eq!(handle.report().await.opened(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_consumer_does_not_wait_for_a_handshake_that_goes_on() {
    let (queue, dialler) = Queue::pair();
    let a_minute_each = layer_fn(|inner: HandOut<DuplexStream>| {
        service_fn(move |conn: Conn<DuplexStream>| {
            let inner = inner.clone();
            async move {
                sleep(secs(60)).await;
                inner.oneshot(conn).await
            }
        })
    });
    let incoming = Server::new(queue).incoming(a_minute_each);
    let (handle, closing) = (incoming.handle(), incoming.closing());
    let accepting = accepting(incoming);
    let _far = dialler.dial(64);
    sleep(secs(1)).await;
    let start = tokio::time::Instant::now();

    handle.shutdown();
    closing.await;

    assert_eq!(start.elapsed(), secs(1));
    assert!(!accepting.is_finished());
}

#[test]
fn a_server_that_cannot_keep_time_has_a_report_all_the_same() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (mut incoming, _dialler) = plain();
        let handle = incoming.handle();

        assert!(incoming.accept().await.is_none());
        assert_eq!(handle.report().await.opened(), 0);
    });
}

/// A listener that is none any more.
struct Broken;

impl Listener for Broken {
    type Io = DuplexStream;
    type Addr = Addr;

    fn poll_accept(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<io::Result<(DuplexStream, tower_net::Addr)>> {
        Poll::Ready(Err(io::Error::from_raw_os_error(libc::EBADF)))
    }

    fn local_addr(&self) -> io::Result<Addr> {
        Ok(Addr::Unnamed)
    }
}
