//! How a framed connection ends, row by row of the table in the room's documentation.

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use tokio_util::codec::{Decoder, Encoder};
use tower::ServiceBuilder;
use tower_net::{
    CloseReason,
    error::{BoxError, find},
    frame::{CodecError, Delimited, FrameError, FrameLayer, Framing, LengthDelimited, Request},
};
use tower_service::Service;

use crate::support::{
    io::Script,
    peer::{Peer, serve},
    service::{obey, secs},
};

/// What is said last: why, in a word.
pub(crate) fn last_word(error: &FrameError) -> Option<String> {
    Some(format!("!{}", error.reason()))
}

pub(crate) fn pipelined() -> Framing {
    Framing::default().pipelined(4)
}

/// A peer of lines, who is told last why there is no other reply.
pub(crate) fn lines(framing: Framing) -> Peer {
    Peer::of(
        ServiceBuilder::new()
            .layer(
                FrameLayer::with_framing(Delimited::lines(40), framing)
                    .unwrap()
                    .last_reply(last_word),
            )
            .service_fn(obey),
    )
}

/// All that is heard, the reason, and the error in a word.
pub(crate) async fn all(mut peer: Peer) -> (String, Option<CloseReason>, Option<FrameError>) {
    let heard = peer.rest().await;
    drop(peer.split());
    let error = peer
        .ended()
        .await
        .err()
        .map(|error| *error.downcast().unwrap());
    (heard, peer.info.close_reason(), error)
}

// === End of stream

#[tokio::test(start_paused = true)]
async fn the_end_of_the_stream_between_frames_finishes_what_is_in_flight() {
    for framing in [Framing::default(), pipelined()] {
        let mut peer = lines(framing);
        peer.send("wait 100 one\ntwo\nwait 50 three\n")
            .await;
        peer.finish().await;

        let (heard, reason, error) = all(peer).await;

        assert_eq!(heard, "one\ntwo\nthree\n");
        assert_eq!(reason, Some(CloseReason::Peer));
        assert!(error.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_stream_inside_a_frame_does_too_and_is_an_error() {
    let mut peer = lines(pipelined());
    peer.send("wait 100 one\nhal").await;
    peer.finish().await;

    let (heard, reason, error) = all(peer).await;

    assert_eq!(heard, "one\n!protocol\n");
    assert_eq!(reason, Some(CloseReason::Protocol));
    let error = error.unwrap();
    assert!(
        matches!(find(&error), Some(CodecError::Truncated { .. })),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_fails_after_the_end_of_the_stream_is_answered() {
    for (request, word) in [
        ("fail 100", "!error\n"),
        ("panic 100", "!panic\n"),
        ("wait 60000 x", "!handler\n"),
    ] {
        let mut peer = lines(Framing::default().handler_deadline(secs(1)));
        peer.send(format!("{request}\n")).await;
        peer.finish().await;

        assert_eq!(all(peer).await.0, word);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_at_all_and_leaves_is_no_error() {
    let mut peer = lines(Framing::default());
    peer.finish().await;

    let (heard, reason, error) = all(peer).await;

    assert_eq!((&*heard, reason), ("", Some(CloseReason::Peer)));
    assert!(error.is_none());
}

// === Bytes that are no frame

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_frame_finish_what_is_before_them_and_are_answered_last() {
    for framing in [Framing::default(), pipelined()] {
        let mut peer = lines(framing);
        peer.send("wait 100 one\ntwo\n").await;
        peer.send([b'x'; 50]).await;

        let (heard, reason, error) = all(peer).await;

        assert_eq!(heard, "one\ntwo\n!oversize\n");
        assert_eq!(reason, Some(CloseReason::Oversize));
        assert!(matches!(error, Some(FrameError::Decode(_))), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_before_the_bad_bytes_is_answered_in_their_stead() {
    let mut peer = lines(pipelined());
    peer.send("one\nfail 100\ntwo\n").await;
    peer.send([b'x'; 50]).await;

    let (heard, reason, _) = all(peer).await;

    assert_eq!(heard, "one\n!error\n");
    assert_eq!(reason, Some(CloseReason::Error));
}

#[tokio::test(start_paused = true)]
async fn a_decoder_that_errs_and_consumes_nothing_gives_one_error_and_an_end() {
    #[derive(Clone)]
    struct Stubborn;
    impl Decoder for Stubborn {
        type Item = Bytes;
        type Error = std::io::Error;
        fn decode(&mut self, _: &mut BytesMut) -> std::io::Result<Option<Bytes>> {
            Err(std::io::Error::other("no"))
        }
    }
    impl Encoder<String> for Stubborn {
        type Error = std::io::Error;
        fn encode(&mut self, reply: String, out: &mut BytesMut) -> std::io::Result<()> {
            out.extend_from_slice(reply.as_bytes());
            Ok(())
        }
    }
    let layer = FrameLayer::new(Stubborn).last_reply(last_word);
    let mut peer = Peer::of(
        ServiceBuilder::new()
            .layer(layer)
            .service_fn(obey),
    );
    peer.send("anything").await;

    let (heard, reason, error) = all(peer).await;

    assert_eq!(
        (&*heard, reason),
        ("!protocol", Some(CloseReason::Protocol))
    );
    assert!(matches!(error, Some(FrameError::Decode(_))), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_codec_with_a_larger_limit_than_the_connection_is_held_to_the_smaller() {
    let layer = FrameLayer::with_framing(
        LengthDelimited::max_frame(1 << 30),
        Framing::default().max_buffered(1000),
    );
    let layer = layer.unwrap().last_reply(last_word);
    let mut peer = Peer::of(
        ServiceBuilder::new()
            .layer(layer)
            .service_fn(obey),
    );
    peer.send([0, 0, 0xff, 0xff]).await;
    peer.send([b'x'; 1000]).await;

    let (heard, reason, _) = all(peer).await;

    assert_eq!(
        (&heard[4..], reason),
        ("!oversize", Some(CloseReason::Oversize))
    );
}

// === A frame that is skipped

#[tokio::test(start_paused = true)]
async fn a_skipped_frame_is_answered_in_its_place_and_the_connection_goes_on() {
    for framing in [Framing::default(), pipelined()] {
        let layer = FrameLayer::with_framing(Delimited::lines(40).skip_oversize(), framing);
        let layer = layer.unwrap().last_reply(last_word);
        let mut peer = Peer::of(
            ServiceBuilder::new()
                .layer(layer)
                .service_fn(obey),
        );
        let long = "x".repeat(50);
        peer.send(format!("wait 100 one\n{long}\ntwo\n{long}{long}\n"))
            .await;

        let heard = [
            peer.hear().await,
            peer.hear().await,
            peer.hear().await,
            peer.hear().await,
        ];
        peer.send("three\n").await;

        assert_eq!(heard, ["one", "!oversize", "two", "!oversize"]);
        assert_eq!(peer.hear().await, "three");
        assert_eq!(peer.leave().await, Some(CloseReason::Peer));
    }
}

#[tokio::test(start_paused = true)]
async fn a_skipped_frame_may_be_passed_over_in_silence() {
    let layer = FrameLayer::new(LengthDelimited::max_frame(10).skip_oversize());
    let mut peer = Peer::of(
        ServiceBuilder::new()
            .layer(layer)
            .service_fn(obey),
    );

    peer.send(b"\0\0\0\x0c12345678").await;
    peer.send(b"9abc\0\0\0\x02ok").await;

    assert_eq!(peer.take(6).await, b"\0\0\0\x02ok");
}

// === Failed

#[tokio::test(start_paused = true)]
async fn a_failed_handler_is_answered_in_its_place_and_ends_the_connection() {
    for (request, reason) in [
        ("fail", CloseReason::Error),
        ("fail 100", CloseReason::Error),
        ("panic", CloseReason::Panic),
        ("panic 100", CloseReason::Panic),
    ] {
        for framing in [Framing::default(), pipelined()] {
            let mut peer = lines(framing);
            peer.send(format!("wait 200 one\n{request}\nthree\n"))
                .await;

            let (heard, given, error) = all(peer).await;

            assert_eq!(heard, format!("one\n!{reason}\n"), "{request}");
            assert_eq!((given, error.unwrap().reason()), (Some(reason), reason));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_fits_no_frame_writes_nothing_of_itself() {
    let mut peer = lines(Framing::default());
    peer.send("one\nlong 41\nthree\n").await;

    let (heard, reason, error) = all(peer).await;

    assert_eq!(heard, "one\n!error\n");
    assert_eq!(reason, Some(CloseReason::Error));
    assert!(matches!(error, Some(FrameError::Encode(_))), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_says_it_will_never_be_ready_is_a_failure() {
    #[derive(Clone)]
    struct Dead;
    impl<R> Service<R> for Dead {
        type Response = String;
        type Error = BoxError;
        type Future = std::future::Pending<Result<String, BoxError>>;
        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), BoxError>> {
            std::task::Poll::Ready(Err("dead".into()))
        }
        fn call(&mut self, _: R) -> Self::Future {
            unreachable!("it was never ready")
        }
    }
    let layer = FrameLayer::new(Delimited::lines(40)).last_reply(last_word);
    let mut peer = Peer::of(
        ServiceBuilder::new()
            .layer(layer)
            .service(Dead),
    );
    peer.send("one\n").await;

    let (heard, reason, _) = all(peer).await;

    assert_eq!((&*heard, reason), ("!error\n", Some(CloseReason::Error)));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_ready_in_time_is_a_late_handler() {
    let start = Instant::now();
    let (service, mut control) = tower_test::mock::pair::<Request<Bytes>, String>();
    control.allow(0);
    let framing = Framing::default().handler_deadline(secs(2));
    let layer = FrameLayer::with_framing(Delimited::lines(40), framing).unwrap();
    let layer = layer.last_reply(last_word);
    let mut peer = Peer::of(
        ServiceBuilder::new()
            .layer(layer)
            .service(service),
    );
    peer.send("one\n").await;

    let (heard, reason, _) = all(peer).await;

    assert_eq!((&*heard, start.elapsed()), ("!handler\n", secs(2)));
    assert_eq!(reason, Some(CloseReason::Handler));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_fails_ends_as_a_reset_and_drops_what_is_in_flight() {
    let io = Script::new()
        .bytes("wait 500 x\nha")
        .fail(std::io::ErrorKind::ConnectionReset);
    let layer = FrameLayer::with_framing(Delimited::lines(40), pipelined()).unwrap();

    let (info, served) = serve(
        io,
        ServiceBuilder::new()
            .layer(layer)
            .service_fn(obey),
    );
    let error = served.await.unwrap().unwrap_err();

    assert_eq!(info.close_reason(), Some(CloseReason::Reset));
    assert!(matches!(*error.downcast().unwrap(), FrameError::Io(_)));
}
