//! What becomes of requests with ids that have no reply, and how their connection ends.

use std::{
    future::{Ready, ready},
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::future::Either;
use tokio::time::{Instant, sleep};
use tokio_util::codec::{Decoder, Encoder};
use tower::{ServiceBuilder, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason,
    deadline::DeadlineLayer,
    error::BoxError,
    frame::{
        CodecError, FrameError, Framing, Outgoing, Request, RpcCode, RpcCodec, RpcFailure,
        RpcFrame, RpcLayer,
    },
};
use tower_service::Service;

use crate::{
    frame_multiplexed::{Caller, MAX, ask, layer, multiplexed, wire},
    support::{
        io::Script,
        peer::serve,
        readings::recorded,
        service::{millis, obey, secs},
    },
};

fn both() -> [Framing; 3] {
    [
        multiplexed(),
        Framing::default().pipelined(4),
        Framing::default(),
    ]
}

/// Under a deadline layer, so that it can be told to leave.
fn watched(framing: Framing) -> Caller {
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::default())
        .layer(layer(framing))
        .service_fn(obey);
    Caller::of(service)
}

/// The reason, and the error.
async fn ended(mut caller: Caller) -> (Option<CloseReason>, Option<FrameError>) {
    drop(caller.peer.split());
    let error = caller.peer.ended().await.err();
    let error = error.map(|error| *error.downcast().unwrap());
    (caller.peer.info.close_reason(), error)
}

// === A failure in its place

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_is_told_so_and_the_others_go_on() {
    for framing in both() {
        for (request, told) in [
            ("fail", "2 !failed"),
            ("fail 100", "2 !failed"),
            ("panic", "2 !handler panicked"),
            ("panic 100", "2 !handler panicked"),
        ] {
            let mut caller = Caller::new(framing.clone());
            caller.ask(1, "wait 50 one").await;
            caller.ask(2, request).await;
            caller.ask(3, "wait 200 three").await;

            let mut heard = [
                caller.hear().await,
                caller.hear().await,
                caller.hear().await,
            ];
            heard.sort();
            caller.ask(4, "four").await;

            assert_eq!(heard, ["1 one", told, "3 three"]);
            caller.hears(["4 four"]).await;
            assert_eq!(ended(caller).await.0, Some(CloseReason::Peer));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pipelined_failures_come_in_their_place() {
    let mut caller = Caller::new(Framing::default().pipelined(8));
    caller.ask(1, "wait 100 one").await;
    caller.ask(2, "fail").await;
    caller.ask(3, "panic").await;
    caller.ask(4, "panic 10").await;
    caller
        .ask(5, &"x".repeat(MAX + 1))
        .await;
    caller.ask(6, "long 1001").await;
    caller.ask(7, "seven").await;

    caller
        .hears([
            "1 one",
            "2 !failed",
            "3 !handler panicked",
            "4 !handler panicked",
            "5 !longer than a frame may be, never started: 1001 bytes are over the limit of 1000",
            "6 !longer than a frame may be: reply of 1001 bytes is over the limit of 1000",
            "7 seven",
        ])
        .await;
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_alone_may_panic_like_any_other() {
    for framing in both() {
        let mut caller = Caller::new(framing);
        for id in 1..=3 {
            caller.ask(id, "panic 10").await;
            assert_eq!(caller.hear().await, format!("{id} !handler panicked"));
        }
        caller.ask(4, "four").await;
        caller.hears(["4 four"]).await;
    }
}

/// A handler that panics when it is polled for the first time, and once more when it is dropped.
struct Twice;

impl Future for Twice {
    type Output = io::Result<String>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        panic!("told to panic");
    }
}

impl Drop for Twice {
    fn drop(&mut self) {
        panic!("told to panic once more");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_panics_at_once_may_do_so_once_more_as_it_is_dropped() {
    for framing in both() {
        let service = service_fn(|request: Request<Bytes>| {
            if request.message() == "twice" {
                Either::Left(Twice)
            } else {
                Either::Right(obey(request))
            }
        });
        let mut caller = Caller::of(layer(framing).layer(service));
        caller.ask(1, "wait 50 one").await;
        caller.ask(2, "twice").await;
        caller.ask(3, "three").await;

        let mut heard = [
            caller.hear().await,
            caller.hear().await,
            caller.hear().await,
        ];
        heard.sort();
        assert_eq!(heard, ["1 one", "2 !handler panicked", "3 three"]);
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_too_long_are_told_so_before_they_are_here() {
    let mut caller = Caller::new(multiplexed());
    let mut long = wire([ask(1, &"x".repeat(5_000))]);
    let rest = long.split_off(20);

    caller.peer.send(long).await;
    caller
        .hears([
            "1 !longer than a frame may be, never started: 5000 bytes are over the limit of 1000",
        ])
        .await;
    caller.peer.send(rest).await;
    caller.ask(2, "two").await;

    caller.hears(["2 two"]).await;
}

#[tokio::test(start_paused = true)]
async fn what_must_be_understood_and_is_not_is_refused_alone() {
    let mut caller = Caller::new(multiplexed());
    let mut odd = wire([ask(1, "one")]);
    odd[6] = 0x80;

    caller.peer.send(odd).await;
    caller.ask(2, "two").await;

    caller
        .hears([
            "1 !not understood, never started: flags 0x80 must be understood",
            "2 two",
        ])
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_a_service_says_in_these_words_is_passed_on_and_nothing_else() {
    let handler = service_fn(async |request: Request<Bytes>| {
        let failure = RpcFailure::never_started(RpcCode::Refused, "full");
        Err::<String, BoxError>(match &request.message()[..] {
            b"plain" => failure.into(),
            b"wrapped" => io::Error::other(failure).into(),
            _ => "the password is hunter2".into(),
        })
    });
    let mut caller = Caller::of(layer(multiplexed()).layer(handler));
    for (id, request) in (1..).zip(["plain", "wrapped", "other"]) {
        caller.ask(id, request).await;
    }

    caller
        .hears([
            "1 !refused, never started: full",
            "2 !refused, never started: full",
            "3 !failed",
        ])
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_will_never_be_ready_refuses_and_ends() {
    #[derive(Clone)]
    struct Once(Arc<Mutex<u32>>);
    impl Service<Request<Bytes>> for Once {
        type Response = String;
        type Error = BoxError;
        type Future = std::pin::Pin<Box<dyn Future<Output = Result<String, BoxError>> + Send>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            let mut left = self.0.lock().unwrap();
            if *left == 0 {
                return Poll::Ready(Err("dead".into()));
            }
            *left -= 1;
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, request: Request<Bytes>) -> Self::Future {
            Box::pin(async { Ok(obey(request).await?) })
        }
    }
    for framing in both() {
        let service = Once(Arc::new(Mutex::new(1)));
        let mut caller = Caller::of(layer(framing).layer(service));
        caller
            .peer
            .send(wire([
                ask(1, "wait 10 one"),
                ask(2, "two"),
                ask(3, "three"),
            ]))
            .await;

        let mut heard = Vec::new();
        for _ in 0..5 {
            heard.push(caller.hear().await);
        }

        assert!(heard.contains(&"1 one".to_owned()));
        assert!(heard.contains(&"2 !refused, never started: the connection ends".to_owned()));
        assert!(heard.contains(&"leaving after 2".to_owned()));
        assert_eq!(&heard[3..], ["0 !failed", "end"]);
        let (reason, error) = ended(caller).await;
        assert_eq!(reason, Some(CloseReason::Error));
        assert!(matches!(error, Some(FrameError::Service(_))), "{error:?}");
    }
}

// === The end of the stream, and bytes that are no frame

#[tokio::test(start_paused = true)]
async fn the_end_of_the_stream_finishes_what_is_in_flight() {
    for framing in both() {
        let mut caller = Caller::new(framing);
        caller.ask(1, "wait 100 one").await;
        caller.ask(2, "wait 200 two").await;
        caller.peer.finish().await;

        caller
            .hears(["1 one", "2 two", "end"])
            .await;
        let (reason, error) = ended(caller).await;
        assert_eq!(reason, Some(CloseReason::Peer));
        assert!(error.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_inside_a_frame_does_too_and_is_an_error() {
    let mut caller = Caller::new(multiplexed());
    let bytes = wire([ask(1, "wait 100 one"), ask(2, "two")]);
    caller
        .peer
        .send(&bytes[..bytes.len() - 1])
        .await;
    caller.peer.finish().await;

    caller
        .hears([
            "1 one",
            "0 !not of this protocol: stream ended with 1 bytes of a frame missing",
            "end",
        ])
        .await;
    assert_eq!(ended(caller).await.0, Some(CloseReason::Protocol));
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_frame_say_what_was_taken_finish_that_and_end() {
    let reply = wire([RpcFrame::reply(2, "from a client")]);
    let failure = RpcFailure::new(RpcCode::Failed, "");
    let failure = wire([RpcFrame::failure(2, failure)]);
    let again = wire([ask(1, "one")]);
    let zero = wire([RpcFrame::cancel(0)]);
    let mut kind = wire([ask(2, "")]);
    kind[5] = 99;
    for (bad, word) in [
        (&b"\0\0\0\x10\x02"[..], "frame is of version 2"),
        (b"GET / HTTP/1.1\r\n", "frame is of version 47"),
        (
            b"\0\0\0\x01\x01\x01\0\x10",
            "length field of 1 makes no frame",
        ),
        (&reply, "frame is of kind 2, which has no use here"),
        (&failure, "frame is of kind 3, which has no use here"),
        (&kind, "frame is of kind 99, which has no use here"),
        (&again, "request id 1 cannot be used, or not again"),
        (&zero, "request id 0 cannot be used, or not again"),
    ] {
        for framing in both() {
            let mut caller = Caller::new(framing.clone());
            caller.ask(1, "wait 100 one").await;
            caller.peer.send(bad).await;
            caller.ask(7, "behind it").await;

            // One at a time, it is not even seen before that.
            let mut heard = [caller.hear().await, caller.hear().await];
            heard.sort();
            assert_eq!(heard, ["1 one", "leaving after 1"]);
            caller
                .hears([&format!("0 !not of this protocol: {word}"), "end"])
                .await;
            let (reason, error) = ended(caller).await;
            assert_eq!(reason, Some(CloseReason::Protocol));
            assert!(matches!(error, Some(FrameError::Decode(_))), "{error:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_may_say_that_it_leaves() {
    let mut caller = Caller::new(multiplexed());
    caller.send(RpcFrame::leaving(0)).await;
    caller.ask(1, "one").await;

    caller.hears(["1 one"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_complete_in_time_ends_behind_what_is_in_flight() {
    let start = Instant::now();
    let mut caller = Caller::new(multiplexed().request_deadline(secs(2)));
    caller.ask(1, "wait 9000 one").await;
    caller.peer.send(b"\0\0").await;

    caller
        .hears([
            "leaving after 1",
            "1 one",
            "0 !not of this protocol: request not complete in time within 2s",
            "end",
        ])
        .await;
    assert_eq!(start.elapsed(), secs(9));
    assert_eq!(ended(caller).await.0, Some(CloseReason::Request));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_fails_drops_what_is_in_flight() {
    let io = Script::new()
        .bytes(wire([ask(1, "wait 500 x"), ask(2, "wait 500 x")]))
        .fail(io::ErrorKind::ConnectionReset);

    let (info, served) = serve(io, layer(multiplexed()).layer(service_fn(obey)));
    let error = served.await.unwrap().unwrap_err();

    assert_eq!(info.close_reason(), Some(CloseReason::Reset));
    assert!(matches!(*error.downcast().unwrap(), FrameError::Io(_)));
}

/// Panics at the third request, as it is decoded or as what became of it is encoded.
#[derive(Clone)]
struct Fragile {
    codec: RpcCodec,
    decodes: bool,
}

impl Decoder for Fragile {
    type Item = RpcFrame;
    type Error = CodecError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<RpcFrame>, CodecError> {
        let frame = self.codec.decode(input)?;
        let is_third = frame
            .as_ref()
            .is_some_and(|frame| frame.id() == 3);
        assert!(self.decodes || !is_third, "told to panic");
        Ok(frame)
    }
}

impl Encoder<Outgoing<String>> for Fragile {
    type Error = CodecError;

    fn encode(&mut self, out: Outgoing<String>, to: &mut BytesMut) -> Result<(), CodecError> {
        let is_third = matches!(
            out,
            Outgoing::Reply { id: 3, .. } | Outgoing::Failure { id: 3, .. }
        );
        assert!(!is_third, "told to panic");
        self.codec.encode(out, to)
    }
}

#[tokio::test(start_paused = true)]
async fn a_codec_that_panics_ends_its_connection_and_each_request_counts_for_what_its_handler_did()
{
    for (decodes, request, ok, failed) in [
        (false, "three", 1, 0),
        (true, "three", 2, 0),
        (true, "wait 10 three", 2, 0),
        (true, "fail", 1, 1),
        (true, "fail 10", 1, 1),
    ] {
        let codec = Fragile {
            codec: RpcCodec::max_payload(MAX),
            decodes,
        };
        let (mut caller, readings) = recorded(|| {
            let layer = RpcLayer::with_framing(codec, multiplexed()).unwrap();
            Caller::of(layer.layer(service_fn(obey)))
        });
        caller.ask(1, "one").await;
        caller.hears(["1 one"]).await;

        caller.ask(3, request).await;

        let last = if decodes { 3 } else { 1 };
        caller
            .hears([
                &format!("leaving after {last}"),
                "0 !handler panicked",
                "end",
            ])
            .await;
        assert_eq!(ended(caller).await.0, Some(CloseReason::Panic));
        let outcomes = ["ok", "failed"]
            .map(|outcome| readings.of("tower_net_requests_total", &[("outcome", outcome)]));
        assert_eq!(
            outcomes,
            [f64::from(ok), f64::from(failed)],
            "{decodes} {request}"
        );
    }
}

/// A service that panics when it is asked whether it is ready, the second time.
#[derive(Clone)]
struct Shaky(u32);

impl Service<Request<Bytes>> for Shaky {
    type Response = String;
    type Error = io::Error;
    type Future = Ready<io::Result<String>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 += 1;
        assert!(self.0 != 2, "told to panic");
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let reply = String::from_utf8(request.into_message().to_vec());
        ready(reply.map_err(io::Error::other))
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_panics_before_it_is_ready_fails_the_request_that_asked() {
    for framing in both() {
        let (mut caller, readings) = recorded(|| Caller::of(layer(framing).layer(Shaky(0))));
        for id in 1..=3 {
            caller
                .ask(id, ["one", "two", "three"][id as usize - 1])
                .await;
        }

        caller
            .hears(["1 one", "2 !handler panicked", "3 three"])
            .await;

        drop(caller.peer.split());
        assert!(caller.peer.ended().await.is_ok());
        let failed = readings.of("tower_net_requests_total", &[("outcome", "failed")]);
        assert_eq!(failed, 1.0);
    }
}

/// A handler that never answers, and panics when it is dropped.
fn clings() -> impl Service<
    Request<Bytes>,
    Response = String,
    Error = io::Error,
    Future = impl Future<Output = io::Result<String>> + Send,
> + Clone
+ Send
+ 'static {
    struct Clings;
    impl Drop for Clings {
        fn drop(&mut self) {
            panic!("told to panic");
        }
    }
    service_fn(|request: Request<Bytes>| {
        let clings = request
            .message()
            .is_empty()
            .then_some(Clings);
        async move {
            if clings.is_some() {
                std::future::pending::<()>().await;
            }
            obey(request).await
        }
    })
}

#[tokio::test(start_paused = true)]
async fn handlers_that_panic_as_they_are_dropped_end_their_connection_and_nothing_else() {
    for alone in [true, false] {
        for cancelled in [true, false] {
            let framing = multiplexed().handler_deadline(secs(1));
            let (mut caller, readings) = recorded(|| Caller::of(layer(framing).layer(clings())));
            caller.ask(1, "").await;
            if !alone {
                caller.ask(2, "").await;
                caller.ask(3, "").await;
            }

            if cancelled {
                caller.cancel(1).await;
            }

            let taken = if alone { 1 } else { 3 };
            caller
                .hears([
                    &format!("leaving after {taken}"),
                    "0 !handler panicked",
                    "end",
                ])
                .await;
            assert_eq!(ended(caller).await.0, Some(CloseReason::Panic));
            let failed = readings.of("tower_net_requests_total", &[("outcome", "failed")]);
            assert_eq!(failed, f64::from(taken), "{alone} {cancelled}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_dropped_survives_all_who_panic_at_that() {
    let all = wire((1..=4).map(|id| ask(id, "")));
    let io = Script::new().bytes(all);
    let (_info, served) = serve(io, layer(multiplexed()).layer(clings()));
    sleep(millis(1)).await;

    // A second panic while the first is under way would be the end of the process.
    served.abort();

    assert!(served.await.unwrap_err().is_cancelled());
}

// === The notice to leave

#[tokio::test(start_paused = true)]
async fn an_idle_connection_says_that_it_leaves_and_waits_a_moment_for_the_peer() {
    for framing in both() {
        let mut caller = watched(framing.clone());
        caller.ask(5, "five").await;
        caller.hears(["5 five"]).await;

        caller.peer.info.close_after_reply();
        caller
            .hears(["leaving after 5", "end"])
            .await;
        let said = Instant::now();
        // One that was on its way is discarded, and is no reset.
        caller.ask(6, "six").await;

        assert!(caller.peer.ended().await.is_ok());
        assert_eq!(said.elapsed(), secs(1));
        assert_eq!(ended_for(&caller), Some(CloseReason::Served));
        assert_eq!(framing_of_new_caller(framing).await, "leaving after 0");
    }
}

fn ended_for(caller: &Caller) -> Option<CloseReason> {
    caller.peer.info.close_reason()
}

/// What a connection says that was asked nothing.
async fn framing_of_new_caller(framing: Framing) -> String {
    let mut caller = watched(framing);
    sleep(millis(1)).await;
    caller.peer.info.close_after_reply();
    caller.hear().await
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_ends_its_side_when_told_is_not_waited_for() {
    let mut caller = watched(multiplexed());
    caller.ask(1, "wait 100 one").await;
    sleep(millis(1)).await;
    let start = Instant::now();

    caller.peer.info.close_after_reply();
    caller.hears(["leaving after 1"]).await;
    caller.peer.finish().await;
    caller.hears(["1 one", "end"]).await;

    assert!(caller.peer.ended().await.is_ok());
    assert_eq!(start.elapsed(), millis(99));
}

#[tokio::test(start_paused = true)]
async fn a_connection_at_work_says_at_once_what_it_has_taken_and_finishes_that() {
    for framing in both() {
        let mut caller = watched(framing.clone());
        caller
            .peer
            .send(wire([
                ask(1, "wait 300 one"),
                ask(2, "wait 100 two"),
                ask(3, "fail 50"),
                ask(9, "nine"),
            ]))
            .await;
        sleep(millis(10)).await;

        caller.peer.info.close_after_reply();
        sleep(millis(1)).await;
        let mut heard = Vec::new();
        while heard
            .last()
            .is_none_or(|last| last != "end")
        {
            heard.push(caller.hear().await);
        }

        heard.sort();
        assert_eq!(
            heard,
            [
                "1 one",
                "2 two",
                "3 !failed",
                "9 nine",
                "end",
                "leaving after 9"
            ],
            "{framing:?}"
        );
        assert!(caller.peer.ended().await.is_ok());
        assert_eq!(ended_for(&caller), Some(CloseReason::Served));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_begun_to_arrive_is_the_last() {
    let mut caller = watched(multiplexed());
    let mut bytes = wire([ask(1, "wait 5000 one"), ask(2, "two"), ask(3, "three")]);
    let third = bytes.split_off(bytes.len() - 25);
    let rest = bytes.split_off(bytes.len() - 2);
    caller.peer.send(bytes).await;
    sleep(millis(1)).await;

    caller.peer.info.close_after_reply();
    assert!(caller.hears_nothing_for(secs(1)).await);
    caller.peer.send(rest).await;
    caller.peer.send(third).await;

    caller
        .hears(["2 two", "leaving after 2", "1 one", "end"])
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_room_is_still_answered() {
    let mut caller = watched(Framing::default().multiplexed(1));
    caller
        .peer
        .send(wire([
            ask(1, "wait 100 one"),
            ask(2, "two"),
            ask(3, "three"),
        ]))
        .await;
    sleep(millis(1)).await;

    caller.peer.info.close_after_reply();

    caller
        .hears(["1 one", "2 two", "3 three", "leaving after 3", "end"])
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_may_be_late_while_it_leaves() {
    let mut caller = watched(multiplexed().handler_deadline(secs(5)));
    caller.ask(1, "wait 60000 one").await;
    caller.ask(2, "wait 60000 two").await;
    sleep(millis(1)).await;
    let start = Instant::now();

    caller.peer.info.close_after_reply();
    caller.hears(["leaving after 2"]).await;

    caller
        .hears([
            "1 !handler not done in time",
            "2 !handler not done in time",
            "end",
        ])
        .await;
    assert_eq!(start.elapsed(), millis(4_999));
}
