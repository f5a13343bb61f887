//! What a framed connection holds, gives back and reports.

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    time::sleep,
};
use tokio_test::{assert_pending, task};
use tokio_util::codec::{Decoder, Encoder};
use tower::service_fn;
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn,
    error::BoxError,
    frame::{CodecError, Delimited, FrameLayer, Framing, Request},
};
use tower_service::Service;

use crate::{
    frame::{lines, pipelined},
    frame_driver::layer,
    support::{
        io::Script,
        peer::Peer,
        readings::recorded,
        service::{millis, obey, secs},
    },
};

// === What it gives back

#[tokio::test(start_paused = true)]
async fn taken_apart_it_gives_back_what_lies_between_the_stream_and_the_handlers() {
    let mut service = layer(Framing::default()).layer(service_fn(obey));
    let (near, mut far) = duplex(16);
    let call = service.call(Conn::new(near, ()));
    far.write_all(b"long 20\nrest")
        .await
        .unwrap();
    let mut call = task::spawn(call);
    assert_pending!(call.poll());

    let parts = call.into_inner().into_parts().unwrap();

    assert_eq!(
        (&parts.read[..], &parts.unwritten[..]),
        (&b"rest"[..], &b"xxxx\n"[..])
    );
    let mut io = parts.conn;
    far.read_exact(&mut [0; 16])
        .await
        .unwrap();
    io.write_all(&parts.unwritten)
        .await
        .unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'x');
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_cannot_be_taken_apart() {
    let mut service = layer(Framing::default()).layer(service_fn(obey));
    let mut call = service.call(Conn::new(Script::new().end(), ()));

    let ended = poll_fn(|cx| Pin::new(&mut call).poll(cx)).await;

    assert!(ended.is_ok());
    assert!(call.into_parts().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_partial_frame_survives_whatever_else_is_polled_meanwhile() {
    let mut service = layer(Framing::default()).layer(service_fn(obey));
    let (near, mut far) = duplex(64);
    let mut call = task::spawn(service.call(Conn::new(near, ())));

    for piece in ["wa", "it 1", "0 on", "e", "\n"] {
        far.write_all(piece.as_bytes())
            .await
            .unwrap();
        assert!(matches!(call.poll(), Poll::Pending));
        assert!(matches!(call.poll(), Poll::Pending));
    }
    sleep(millis(10)).await;

    assert!(call.is_woken());
    assert_pending!(call.poll());
    let mut heard = [0; 4];
    far.read_exact(&mut heard)
        .await
        .unwrap();
    assert_eq!(&heard, b"one\n");
}

#[tokio::test(start_paused = true)]
async fn handlers_of_a_dropped_connection_are_dropped_with_it() {
    let held = Arc::new(());
    let counted = Arc::clone(&held);
    let handler = service_fn(move |_: Request<Bytes>| {
        let held = Arc::clone(&counted);
        async move {
            let _held = held;
            std::future::pending::<Result<String, BoxError>>().await
        }
    });
    let mut service = layer(pipelined()).layer(handler);
    let io = Script::new().bytes("one\ntwo\nthree\n");
    let mut call = task::spawn(service.call(Conn::new(io, ())));
    assert_pending!(call.poll());
    let running = Arc::strong_count(&held);

    // Three handlers, and the service that they came from.
    drop(call);

    assert_eq!(running - Arc::strong_count(&held), 4);
}

#[tokio::test(start_paused = true)]
async fn nothing_keeps_a_connection_that_has_ended() {
    for request in ["one\n", "wait 10 one\n", "fail 10\n", "bye one\n"] {
        let mut peer = lines(pipelined());
        peer.send(request).await;
        let info = Arc::downgrade(&peer.info);
        sleep(millis(20)).await;

        peer.leave().await;

        assert!(info.upgrade().is_none(), "{request}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_large_reply_leaves_no_large_buffer_behind() {
    let service = FrameLayer::new(Delimited::lines(8 << 20)).layer(service_fn(obey));
    let mut large = Peer::with_room(8 << 20, service.clone());
    large.send("long 4000000\n").await;
    let length = large.hear().await.len();
    sleep(millis(1)).await;

    let (near, mut far) = duplex(1);
    let mut small = task::spawn({ service }.call(Conn::new(near, ())));
    for byte in b"one\ntw" {
        assert_pending!(small.poll());
        far.write_all(&[*byte]).await.unwrap();
    }
    assert_pending!(small.poll());
    let parts = small.into_inner().into_parts().unwrap();

    assert_eq!(length, 4_000_000);
    for (bytes, content) in [(parts.read, "tw"), (parts.unwritten, "ne\n")] {
        assert_eq!(bytes, content);
        let room = bytes.try_into_mut().unwrap().capacity();
        assert!(room <= 128 * 1024, "{content}: {room}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_decoder_that_keeps_frames_of_its_own_is_asked_until_it_has_none() {
    /// Takes all there is at once, and gives it out by the byte.
    #[derive(Clone, Default)]
    struct Hoard(BytesMut);
    impl Decoder for Hoard {
        type Item = u8;
        type Error = std::io::Error;
        fn decode(&mut self, input: &mut BytesMut) -> std::io::Result<Option<u8>> {
            self.0.unsplit(input.split());
            Ok(self
                .0
                .has_remaining()
                .then(|| self.0.get_u8()))
        }
    }
    impl Encoder<u8> for Hoard {
        type Error = std::io::Error;
        fn encode(&mut self, byte: u8, out: &mut BytesMut) -> std::io::Result<()> {
            out.extend_from_slice(&[byte]);
            Ok(())
        }
    }
    for framing in [Framing::default(), pipelined()] {
        let layer = FrameLayer::with_framing(Hoard::default(), framing).unwrap();
        let mut peer = Peer::of(layer.layer(service_fn(async |byte: Request<u8>| {
            if byte.message().is_ascii_digit() {
                sleep(secs(1)).await;
            }
            Ok::<_, BoxError>(byte.into_message())
        })));

        peer.send("ab1c2def").await;
        peer.finish().await;

        assert_eq!(peer.rest().await, "ab1c2def");
    }
}

// === What it reports

#[tokio::test(start_paused = true)]
async fn requests_are_counted_by_what_became_of_them() {
    for (requests, ok, failed) in [
        ("one\nwait 10 two\nthree\n", 3.0, 0.0),
        ("one\nfail\n", 1.0, 1.0),
        ("one\nfail 10\n", 1.0, 1.0),
        ("one\npanic\n", 1.0, 1.0),
        ("one\npanic 10\n", 1.0, 1.0),
    ] {
        for depth in [1, 4] {
            let framing = Framing::default()
                .service("kv")
                .pipelined(depth);
            let (layer, metrics) = recorded(|| layer(framing));
            let mut peer = Peer::of(layer.layer(service_fn(obey)));
            peer.send(requests).await;
            sleep(secs(1)).await;
            peer.leave().await;

            for (outcome, count) in [("ok", ok), ("failed", failed)] {
                let labels = [("service", "kv"), ("outcome", outcome)];
                let counted = metrics.of("tower_net_requests_total", &labels);
                let timed = metrics.of("tower_net_request_seconds", &labels);

                assert_eq!(
                    (counted, timed),
                    (count, count),
                    "{requests} {depth} {outcome}"
                );
            }
        }
    }
}

/// Lines, and a panic at one of them as it is written.
#[derive(Clone)]
struct Brittle(Delimited);

impl Decoder for Brittle {
    type Item = Bytes;
    type Error = CodecError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, CodecError> {
        self.0.decode(input)
    }
}

impl Encoder<String> for Brittle {
    type Error = CodecError;

    fn encode(&mut self, line: String, out: &mut BytesMut) -> Result<(), CodecError> {
        assert!(line != "brittle", "told to panic");
        self.0.encode(line, out)
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_its_codec_panics_at_counts_once_and_is_the_end() {
    for (request, depth) in [
        ("brittle", 1),
        ("brittle", 4),
        ("wait 10 brittle", 1),
        ("wait 10 brittle", 4),
    ] {
        let framing = Framing::default().pipelined(depth);
        let codec = Brittle(Delimited::lines(100));
        let (layer, metrics) = recorded(|| FrameLayer::with_framing(codec, framing).unwrap());
        let mut peer = Peer::of(layer.layer(service_fn(obey)));
        peer.send(format!("one\n{request}\n"))
            .await;

        assert_eq!(peer.rest().await, "one\n", "{request} {depth}");

        assert!(peer.ended().await.is_err());
        assert_eq!(peer.info.close_reason(), Some(CloseReason::Panic));
        let counted = metrics.of("tower_net_requests_total", &[]);
        assert_eq!(counted, 2.0, "{request} {depth}");
    }
}

#[tokio::test(start_paused = true)]
async fn queued_replies_are_reported_while_they_wait() {
    let framing = Framing::default().service("kv");
    let (layer, metrics) = recorded(|| layer(framing));
    let mut peer = Peer::with_room(100, layer.layer(service_fn(obey)));
    let queued = || metrics.of("tower_net_write_queue_bytes", &[("service", "kv")]);

    peer.send("long 999\n").await;
    sleep(millis(10)).await;
    let waiting = queued();
    peer.hear().await;
    sleep(millis(10)).await;
    let drained = queued();
    peer.send("long 999\n").await;
    sleep(millis(10)).await;
    peer.leave().await;

    assert_eq!((waiting, drained, queued()), (900.0, 0.0, 0.0));
}
