//! What a handler can do about the deadlines of its connection.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::oneshot,
    time::{Instant, sleep},
};
use tower::{ServiceBuilder, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, ConnInfo, Deadline,
    deadline::{DeadlineIo, DeadlineLayer, Deadlines, Elapsed},
    error::{BoxError, find},
    frame::{Delimited, FrameLayer, Framing, Request},
};
use tower_service::Service;

use crate::support::{
    io::{Script, Stall},
    peer::{Peer, serve},
    service::{millis, obey, secs},
};

type Stream = Conn<DeadlineIo<DuplexStream>>;

/// A peer of a raw service; what the service comes to is in the receiver.
fn raw<T, F>(deadlines: Deadlines, serve: fn(Stream) -> F) -> (Peer, oneshot::Receiver<T>)
where
    T: Send + std::fmt::Debug + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (sender, output) = oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let layer = DeadlineLayer::new(deadlines).unwrap();
    let service = layer.layer(service_fn(move |conn| {
        let sender = sender.lock().unwrap().take().unwrap();
        let serving = serve(conn);
        async move {
            // Nobody asks for it in a test of how the connection ends.
            let _unheard = sender.send(serving.await);
            Ok::<_, BoxError>(())
        }
    }));
    (Peer::of(service), output)
}

fn none() -> Deadlines {
    Deadlines::none()
}

// === Deadlines of reads and writes, as in Go

#[tokio::test(start_paused = true)]
async fn a_read_fails_at_its_deadline_and_until_it_is_set_anew() {
    let (mut peer, output) = raw(none(), |mut conn| async move {
        let start = Instant::now();
        conn.info()
            .set_read_deadline(Deadline::within(secs(5)));
        let first = conn.read_u8().await.unwrap_err();
        let after = start.elapsed();
        let second = conn.read_u8().await.unwrap_err();
        conn.info()
            .set_read_deadline(Deadline::within(secs(5)));
        let third = conn.read_u8().await;
        (first.kind(), after, second.kind(), third.unwrap())
    });

    sleep(secs(6)).await;
    peer.send("x").await;

    let late = io::ErrorKind::TimedOut;
    assert_eq!(output.await.unwrap(), (late, secs(5), late, b'x'));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_is_lifted_leaves_reads_alone() {
    let (mut peer, output) = raw(none(), |mut conn| async move {
        conn.info()
            .set_read_deadline(Deadline::within(secs(5)));
        conn.info()
            .set_read_deadline(Deadline::NEVER);
        conn.read_u8().await
    });

    sleep(secs(60)).await;
    peer.send("x").await;

    assert_eq!(output.await.unwrap().unwrap(), b'x');
}

#[tokio::test(start_paused = true)]
async fn a_read_deadline_in_the_past_fails_the_next_read_at_once() {
    let (mut peer, output) = raw(none(), |mut conn| async move {
        let start = Instant::now();
        sleep(secs(1)).await;
        conn.info()
            .set_read_deadline(Deadline::at(start));
        let kind = conn
            .read_u8()
            .await
            .map_err(|error| error.kind());
        (kind, start.elapsed())
    });
    peer.send("x").await;

    let late = Err(io::ErrorKind::TimedOut);
    assert_eq!(output.await.unwrap(), (late, secs(1)));
}

#[tokio::test(start_paused = true)]
async fn a_read_deadline_moved_while_a_read_waits_holds_for_it() {
    let (peer, output) = raw(none(), |mut conn| async move {
        let start = Instant::now();
        let kind = conn
            .read_u8()
            .await
            .map_err(|error| error.kind());
        (kind, start.elapsed())
    });
    tokio::task::yield_now().await;

    peer.info
        .set_read_deadline(Deadline::within(secs(9)));
    peer.info
        .set_read_deadline(Deadline::within(secs(4)));

    let late = Err(io::ErrorKind::TimedOut);
    assert_eq!(output.await.unwrap(), (late, secs(4)));
}

#[tokio::test(start_paused = true)]
async fn a_write_fails_at_its_deadline_and_reads_go_on() {
    let (mut peer, output) = raw(none(), |mut conn| async move {
        conn.info()
            .set_write_deadline(Deadline::within(secs(5)));
        let write = conn.write_all(&[0; 100_000]).await;
        let again = conn.write(b"x").await;
        let read = conn.read_u8().await;
        conn.info()
            .set_write_deadline(Deadline::NEVER);
        let cleared = conn.flush().await;
        (
            write.unwrap_err().kind(),
            again.is_err(),
            read.unwrap(),
            cleared.is_ok(),
        )
    });
    let start = Instant::now();
    peer.send("y").await;

    let late = io::ErrorKind::TimedOut;
    assert_eq!(output.await.unwrap(), (late, true, b'y', true));
    assert_eq!(start.elapsed(), secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_read_deadline_is_no_end_of_the_connection() {
    let (peer, output) = raw(none(), |mut conn| async move {
        conn.info()
            .set_read_deadline(Deadline::within(secs(1)));
        conn.read_u8().await.unwrap_err();
        conn.info().close_reason()
    });

    assert_eq!(output.await.unwrap(), None);
    drop(peer);
}

// === Suspended

#[tokio::test(start_paused = true)]
async fn a_suspended_connection_has_no_deadline() {
    let deadlines = none()
        .first_byte(secs(3))
        .idle(secs(5))
        .write_stall(secs(5));
    let (mut peer, output) = raw(deadlines, |mut conn| async move {
        let _suspended = conn.info().suspend();
        let read = conn.read_u8().await;
        conn.write_all(&[0; 100_000])
            .await
            .and(read)
    });

    sleep(secs(60)).await;
    peer.send("x").await;
    sleep(secs(60)).await;
    peer.take(100_000).await;

    assert_eq!(output.await.unwrap().unwrap(), b'x');
}

#[tokio::test(start_paused = true)]
async fn a_suspended_connection_ages() {
    let (mut peer, _output) = raw(
        none()
            .max_age(secs(9))
            .age_grace(secs(1)),
        |conn| async move {
            let _suspended = conn.info().suspend();
            std::future::pending::<()>().await;
        },
    );

    assert!(peer.ended().await.is_err());
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Age));
}

#[tokio::test(start_paused = true)]
async fn idle_and_first_byte_run_again_from_the_end_of_the_suspension() {
    for (deadlines, first, reason) in [
        (none().idle(secs(16)), "x", CloseReason::Idle),
        (none().first_byte(secs(16)), "", CloseReason::FirstByte),
    ] {
        let (mut peer, _output) = raw(deadlines, |mut conn| async move { conn.read_u16().await });
        peer.send(first).await;
        sleep(millis(100)).await;

        let suspended = [peer.info.suspend(), peer.info.suspend()];
        sleep(secs(60)).await;
        drop(suspended);
        let resumed = Instant::now();
        let ended = peer.ended().await;

        assert!(ended.is_err(), "{reason}");
        assert_eq!(peer.info.close_reason(), Some(reason));
        let left = resumed.elapsed();
        assert!(left >= secs(15) && left <= secs(17), "{reason} {left:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn idle_runs_again_after_a_suspension_in_the_middle_of_traffic() {
    let handler = service_fn(async |request: Request<_>| {
        let _suspended = request.conn().suspend();
        sleep(secs(30)).await;
        Ok::<_, BoxError>("done")
    });
    let mut peer = Peer::of(
        ServiceBuilder::new()
            .layer(DeadlineLayer::new(none().idle(secs(16))).unwrap())
            .layer(FrameLayer::new(Delimited::lines(80)))
            .service(handler),
    );

    peer.send("go").await;
    sleep(millis(100)).await;
    peer.send("\n").await;
    let done = peer.hear().await;
    let answered = Instant::now();
    let ended = peer.ended().await;

    assert!(done == "done" && ended.is_err());
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Idle));
    assert!(answered.elapsed() <= secs(17));
}

#[tokio::test(start_paused = true)]
async fn a_handler_deadline_goes_on_from_where_it_was_suspended() {
    let handler = service_fn(async |request: Request<_>| {
        sleep(secs(3)).await;
        let suspended = request.conn().suspend();
        sleep(secs(60)).await;
        drop(suspended);
        sleep(secs(6)).await;
        Ok::<_, BoxError>("done")
    });
    let framing = Framing::default().handler_deadline(secs(10));
    let mut peer = framed(framing, handler);

    peer.send("go\n").await;

    assert_eq!(peer.hear().await, "done");
}

// === Extended

#[tokio::test(start_paused = true)]
async fn a_handler_gives_itself_more_time() {
    let framing = Framing::default().handler_deadline(secs(1));
    let mut peer = framed(framing, service_fn(obey));

    peer.send("more 1000 wait 1900 done\n")
        .await;

    assert_eq!(peer.hear().await, "done");
}

#[tokio::test(start_paused = true)]
async fn more_time_for_one_request_is_none_for_the_next() {
    let framing = Framing::default().handler_deadline(secs(1));
    let mut peer = framed(framing, service_fn(obey));

    peer.send("more 1000 wait 900 done\nwait 1100 late\n")
        .await;

    assert_eq!(peer.rest().await, "done\n");
    assert_eq!(peer.leave().await, Some(CloseReason::Handler));
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_given_more_time_from_elsewhere() {
    let framing = Framing::default().handler_deadline(secs(1));
    let mut peer = framed(framing, service_fn(obey));

    peer.send("wait 1900 done\n").await;
    sleep(millis(500)).await;
    peer.info.extend(secs(1));

    assert_eq!(peer.hear().await, "done");
}

#[tokio::test(start_paused = true)]
async fn an_extended_deadline_is_still_one() {
    let framing = Framing::default().handler_deadline(secs(1));
    let mut peer = framed(framing, service_fn(obey));
    let start = Instant::now();

    peer.send("wait 9000 done\n").await;
    sleep(millis(500)).await;
    peer.info.extend(secs(1));
    peer.rest().await;

    assert_eq!(start.elapsed(), secs(2));
    assert_eq!(peer.leave().await, Some(CloseReason::Handler));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_is_given_more_time_from_elsewhere() {
    let framing = Framing::default().request_deadline(secs(1));
    let mut peer = framed(framing, service_fn(obey));

    peer.send("ha").await;
    sleep(millis(500)).await;
    peer.info.extend(secs(1));
    sleep(secs(1)).await;
    peer.send("lf\n").await;

    assert_eq!(peer.hear().await, "half");
}

// === Ended

#[tokio::test(start_paused = true)]
async fn a_connection_closes_after_the_reply_to_the_present_request() {
    let mut peer = framed(Framing::default(), service_fn(obey));

    peer.send("one\nbye two\n").await;

    assert_eq!(peer.rest().await, "one\ntwo\n");
    assert_eq!(peer.leave().await, Some(CloseReason::Served));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_cut_fails_its_reads_at_once() {
    let (mut peer, output) = raw(none(), |mut conn| async move {
        let error = conn.read_u8().await.unwrap_err();
        find::<Elapsed>(&error).unwrap().which()
    });
    tokio::task::yield_now().await;

    peer.info.cut(CloseReason::Drain);

    assert_eq!(output.await.unwrap(), CloseReason::Drain);
    assert!(peer.ended().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stream_given_to_another_connection_fails_there_by_its_own_deadline() {
    let (sender, streams) = tokio::sync::mpsc::unbounded_channel::<Stream>();
    let streams = Arc::new(tokio::sync::Mutex::new(streams));
    let layer = DeadlineLayer::new(none().first_byte(secs(3))).unwrap();
    let mut gives = Peer::of(layer.layer(service_fn(move |conn| {
        sender.send(conn).unwrap();
        std::future::pending::<Result<(), BoxError>>()
    })));
    let layer = DeadlineLayer::new(none()).unwrap();
    let mut takes = Peer::of(layer.layer(service_fn(move |own: Stream| {
        let streams = Arc::clone(&streams);
        async move {
            let mut given = streams
                .lock()
                .await
                .recv()
                .await
                .unwrap();
            let error = given.read_u8().await.unwrap_err();
            drop(own);
            Err::<(), BoxError>(error.into())
        }
    })));

    let start = Instant::now();
    assert!(gives.ended().await.is_err());
    let error = takes.ended().await.unwrap_err();

    assert_eq!(
        find::<Elapsed>(&*error)
            .unwrap()
            .which(),
        CloseReason::FirstByte
    );
    assert_eq!(start.elapsed(), secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_cut_wakes_a_writer_in_another_task() {
    let layer = DeadlineLayer::new(none()).unwrap();
    let (sender, written) = oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let service = layer.layer(service_fn(move |mut conn: Conn<DeadlineIo<_>>| {
        let sender = sender.lock().unwrap().take().unwrap();
        tokio::spawn(async move {
            sender
                .send(conn.write_all(b"x").await)
                .unwrap()
        });
        std::future::ready(Ok::<_, BoxError>(()))
    }));
    let (info, served): (Arc<ConnInfo>, _) = serve(Stall(Script::new()), service);
    served.await.unwrap().unwrap();
    tokio::task::yield_now().await;

    info.cut(CloseReason::Cut);

    assert_eq!(
        written
            .await
            .unwrap()
            .unwrap_err()
            .kind(),
        io::ErrorKind::TimedOut
    );
}

// === Helpers

fn framed<S>(framing: Framing, handler: S) -> Peer
where
    S: Service<Request<bytes::Bytes>, Error: Into<BoxError> + Send, Future: Send>,
    S: Clone + Send + 'static,
    S::Response: AsRef<[u8]> + Send + 'static,
{
    Peer::of(
        ServiceBuilder::new()
            .layer(DeadlineLayer::new(none().idle(Duration::MAX)).unwrap())
            .layer(FrameLayer::with_framing(Delimited::lines(80), framing).unwrap())
            .service(handler),
    )
}
