//! How a framed connection leaves: the notice, and the orderly close.

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};
use tower::ServiceBuilder;
use tower_net::{
    CloseReason,
    deadline::DeadlineLayer,
    frame::{Delimited, FrameError, FrameLayer, Framing},
};

use crate::{
    frame::{lines, pipelined},
    support::{
        peer::Peer,
        service::{millis, obey, secs},
    },
};

// === The notice to leave

/// Pipelined lines under a deadline layer, whose peer is told to leave.
fn leaving(framing: Framing) -> Peer {
    let layer = FrameLayer::with_framing(Delimited::lines(40), framing).unwrap();
    Peer::of(
        ServiceBuilder::new()
            .layer(DeadlineLayer::default())
            .layer(layer)
            .service_fn(obey),
    )
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_leaves_at_once() {
    let mut peer = leaving(pipelined());
    peer.send("one\n").await;
    peer.hear().await;
    let start = Instant::now();

    peer.info.close_after_reply();

    assert_eq!(peer.rest().await, "");
    assert!(peer.ended().await.is_ok());
    assert_eq!(start.elapsed(), secs(0));
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Served));
}

#[tokio::test(start_paused = true)]
async fn a_connection_at_work_finishes_every_request_that_has_arrived() {
    for framing in [Framing::default(), pipelined()] {
        let mut peer = leaving(framing);
        peer.send("wait 100 one\nwait 100 two\nthree\nwait 10 four\n")
            .await;
        sleep(millis(50)).await;

        peer.info.close_after_reply();

        assert_eq!(peer.rest().await, "one\ntwo\nthree\nfour\n");
        assert_eq!(peer.leave().await, Some(CloseReason::Served));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_begun_to_arrive_is_the_last() {
    let mut peer = leaving(pipelined());
    peer.send("one\ntw").await;
    peer.hear().await;

    peer.info.close_after_reply();
    sleep(secs(1)).await;
    peer.send("o\nthree\n").await;

    assert_eq!(peer.rest().await, "two\n");
    assert_eq!(peer.leave().await, Some(CloseReason::Served));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_comes_whole_does_not_keep_a_leaving_connection() {
    let start = Instant::now();
    let mut peer = leaving(pipelined().request_deadline(secs(4)));
    peer.send("tw").await;
    sleep(secs(1)).await;
    peer.info.close_after_reply();

    peer.rest().await;

    assert_eq!(start.elapsed(), secs(4));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_pauses_cannot_keep_a_leaving_connection() {
    for framing in [Framing::default(), pipelined()] {
        let mut peer = leaving(framing);
        let (mut read, mut write) = peer.split();
        let asking = tokio::spawn(async move {
            while write
                .write_all(b"wait 10 x\n")
                .await
                .is_ok()
            {}
        });
        let hearing =
            tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
        sleep(secs(1)).await;
        let told = Instant::now();

        peer.info.close_after_reply();
        let heard = hearing.await.unwrap();

        assert!(heard.is_ok());
        assert!(told.elapsed() < secs(600), "{:?}", told.elapsed());
        asking.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_the_service_is_still_answered() {
    let (service, mut handle) = tower_test::mock::pair::<_, String>();
    handle.allow(0);
    let layer = FrameLayer::new(Delimited::lines(40));
    let mut peer = Peer::of(
        ServiceBuilder::new()
            .layer(DeadlineLayer::default())
            .layer(layer)
            .service(service),
    );
    peer.send("one\n").await;
    sleep(millis(10)).await;

    peer.info.close_after_reply();
    sleep(millis(10)).await;
    handle.allow(1);
    let (request, answer) = handle.next_request().await.unwrap();
    let request: tower_net::frame::Request<Bytes> = request;
    answer.send_response(String::from_utf8(request.message().to_vec()).unwrap());

    assert_eq!(peer.rest().await, "one\n");
}

// === The orderly close

#[tokio::test(start_paused = true)]
async fn an_orderly_close_reads_on_so_that_the_last_reply_arrives() {
    let mut peer = lines(Framing::default());
    peer.send("fail\n").await;

    let heard = peer.rest().await;
    let said = Instant::now();
    peer.send("more that nobody reads\n")
        .await;
    let early = peer.has_ended();
    let ended = peer.ended().await;

    assert_eq!((&*heard, early), ("!error\n", false));
    assert!(matches!(
        *ended.unwrap_err().downcast().unwrap(),
        FrameError::Service(_)
    ));
    assert_eq!(said.elapsed(), secs(5));
}

#[tokio::test(start_paused = true)]
async fn deadlines_that_were_met_do_not_cut_the_orderly_close_short() {
    let framing = Framing::default()
        .reply_deadline(secs(2))
        .handler_deadline(secs(3));
    let layer = FrameLayer::with_framing(Delimited::lines(400), framing).unwrap();
    let service = ServiceBuilder::new()
        .layer(layer)
        .service_fn(obey);
    let mut peer = Peer::with_room(512, service);
    peer.send("long 300\nlong 300\nfail 1000\n")
        .await;

    sleep(millis(1_500)).await;
    let heard = peer.rest().await;
    let said = Instant::now();
    let ended = peer.ended().await;

    assert_eq!(heard.len(), 2 * 301);
    assert!(matches!(
        *ended.unwrap_err().downcast().unwrap(),
        FrameError::Service(_)
    ));
    assert_eq!(said.elapsed(), secs(5));
}

#[tokio::test(start_paused = true)]
async fn an_orderly_close_is_short_for_one_that_leaves() {
    let mut peer = leaving(pipelined());
    peer.send("tw").await;
    sleep(secs(1)).await;
    peer.info.close_after_reply();
    sleep(millis(1)).await;
    peer.send("o\n").await;

    let heard = peer.rest().await;
    let said = Instant::now();
    let ended = peer.ended().await;

    assert!(ended.is_ok());
    assert_eq!((&*heard, said.elapsed()), ("two\n", secs(1)));
}

#[tokio::test(start_paused = true)]
async fn an_orderly_close_is_short_for_one_that_drips() {
    let mut peer = leaving(pipelined().request_deadline(secs(2)));
    let (mut read, mut write) = peer.split();
    let dripping = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            sleep(millis(100)).await;
        }
    });

    read.read_to_end(&mut Vec::new())
        .await
        .unwrap();
    let said = Instant::now();
    let ended = peer.ended().await;

    assert!(ended.is_err());
    assert_eq!(said.elapsed(), secs(5));
    dripping.await.unwrap();
}
