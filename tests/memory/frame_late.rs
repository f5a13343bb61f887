//! How a framed connection ends when a request, its handler or its reply is late.

use std::time::Duration;

use tokio::{
    io::AsyncWriteExt,
    net::UnixStream,
    time::{Instant, sleep},
};
use tower::ServiceBuilder;
use tower_net::{
    CloseReason, Conn,
    deadline::{DeadlineLayer, Deadlines, Elapsed},
    error::{BoxError, find},
    frame::{Delimited, FrameError, FrameLayer, Framing},
};
use tower_service::Service;

use crate::{
    frame::{all, last_word, lines, pipelined},
    support::{
        io::{Script, Stall, Witness},
        peer::{Peer, serve},
        service::{millis, obey, secs},
    },
};

#[tokio::test(start_paused = true)]
async fn a_late_request_is_answered_behind_what_is_in_flight() {
    let start = Instant::now();
    let mut peer = lines(pipelined().request_deadline(secs(2)));
    peer.send("wait 9000 one\nhal").await;
    sleep(secs(1)).await;
    peer.send("f").await;

    let (heard, reason, error) = all(peer).await;

    assert_eq!((&*heard, start.elapsed()), ("one\n!request\n", secs(9)));
    assert_eq!(reason, Some(CloseReason::Request));
    let elapsed = *find::<Elapsed>(&error.unwrap()).unwrap();
    assert_eq!(
        (elapsed.which(), elapsed.limit()),
        (CloseReason::Request, Some(secs(2)))
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_that_drips_is_late_from_its_first_byte_on() {
    let mut io = Script::new()
        .bytes("one\n")
        .pause(secs(5));
    for _ in 0..30 {
        io = io.bytes("x").pause(secs(1));
    }
    let written = io.written();
    let start = Instant::now();
    let framing = Framing::default().request_deadline(secs(10));
    let layer = FrameLayer::with_framing(Delimited::lines(40), framing).unwrap();

    let layer = layer.last_reply(last_word);
    let (info, _served) = serve(
        io,
        ServiceBuilder::new()
            .layer(layer)
            .service_fn(obey),
    );
    while !written.text().contains('!') {
        sleep(millis(100)).await;
    }

    assert!(start.elapsed() >= secs(15) && start.elapsed() <= millis(15_100));
    assert_eq!(info.close_reason(), Some(CloseReason::Request));
}

#[tokio::test(start_paused = true)]
async fn each_request_has_its_own_time_to_arrive() {
    let mut peer = lines(Framing::default().request_deadline(secs(3)));
    for word in ["one", "two", "three"] {
        peer.send(&word[..1]).await;
        sleep(secs(2)).await;
        peer.send(format!("{}\n", &word[1..]))
            .await;

        assert_eq!(peer.hear().await, word);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_handler_is_dropped_and_answered_in_its_place() {
    let start = Instant::now();
    let mut peer = lines(pipelined().handler_deadline(secs(2)));
    peer.send("wait 1000 one\nwait 5000 late\nthree\n")
        .await;

    let (heard, reason, error) = all(peer).await;

    assert_eq!((&*heard, start.elapsed()), ("one\n!handler\n", secs(2)));
    assert_eq!(reason, Some(CloseReason::Handler));
    assert!(matches!(error, Some(FrameError::Elapsed(_))), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_handler_may_be_late_after_the_request_behind_it_was() {
    let start = Instant::now();
    let framing = pipelined().request_deadline(secs(2));
    let mut peer = lines(framing.handler_deadline(secs(5)));
    peer.send("wait 60000 one\nhal").await;

    let (heard, reason, _) = all(peer).await;

    assert_eq!((&*heard, start.elapsed()), ("!handler\n", secs(5)));
    assert_eq!(reason, Some(CloseReason::Handler));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_connection_whose_reason_is_known_already() {
    for request in ["wait 60000 one\n", "hal"] {
        let framing = Framing::default().request_deadline(secs(2));
        let mut peer = lines(framing.handler_deadline(secs(2)));
        peer.send(request).await;
        peer.info.end_with(CloseReason::Drain);

        let (_, reason, error) = all(peer).await;

        assert_eq!(reason, Some(CloseReason::Drain));
        assert!(matches!(error, Some(FrameError::Elapsed(_))), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn handlers_side_by_side_are_timed_each_from_its_own_start() {
    let start = Instant::now();
    let mut peer = lines(pipelined().handler_deadline(secs(4)));
    peer.send("wait 3000 one\n").await;
    sleep(secs(2)).await;
    peer.send("wait 3000 two\n").await;
    sleep(secs(2)).await;
    peer.send("wait 9000 late\n").await;

    let (heard, reason, _) = all(peer).await;

    assert_eq!(
        (&*heard, start.elapsed()),
        ("one\ntwo\n!handler\n", secs(8))
    );
    assert_eq!(reason, Some(CloseReason::Handler));
}

#[tokio::test(start_paused = true)]
async fn a_late_reply_is_a_reset_with_or_without_a_deadline_layer() {
    let framing = || Framing::default().reply_deadline(secs(3));
    let layer = || FrameLayer::with_framing(Delimited::lines(40), framing()).unwrap();
    let alone = ServiceBuilder::new()
        .layer(layer())
        .service_fn(obey);
    let watched = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Deadlines::none()).unwrap())
        .layer(layer())
        .service_fn(obey);

    let alone = reply_to_nobody(alone).await;
    let watched = reply_to_nobody(watched).await;

    let expected = (Some(CloseReason::Reply), true, secs(3));
    assert_eq!((alone, watched), (expected, expected));
}

/// The reason, whether it was a reset, and when, of a peer that asks and takes nothing.
async fn reply_to_nobody<S>(service: S) -> (Option<CloseReason>, bool, Duration)
where
    S: Service<Conn<Witness<Stall<UnixStream>>>, Response = (), Error = BoxError, Future: Send>,
    S: Send + 'static,
{
    let start = Instant::now();
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(b"one\n").await.unwrap();
    let (io, closed) = Witness::pair(Stall(near));
    let (info, served) = serve(io, service);
    let error = served.await.unwrap().unwrap_err();
    assert!(find::<Elapsed>(&*error).is_some(), "{error:?}");
    (info.close_reason(), closed.is_reset(), start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_trickle_does_not_move_the_reply_deadline() {
    let framing = Framing::default().reply_deadline(secs(10));
    let layer = FrameLayer::with_framing(Delimited::lines(4_000), framing).unwrap();
    let mut peer = Peer::with_room(
        8,
        ServiceBuilder::new()
            .layer(layer)
            .service_fn(obey),
    );
    let start = Instant::now();
    peer.send("long 1000\n").await;

    while !peer.has_ended() {
        peer.take(1).await;
        sleep(secs(1)).await;
    }

    assert!(start.elapsed() >= secs(10) && start.elapsed() <= secs(11));
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Reply));
}
