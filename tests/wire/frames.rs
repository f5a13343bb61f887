//! Bytes that are no frames, or not yet, or too many at once.

use std::time::Duration;

use futures_util::future::join_all;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_net::{CloseReason, Report, frame::Framing};

use crate::{
    child::Child,
    peer::{End, Peer, alone, frame, soon, until},
    stack::{Running, Settings},
};

/// Of the server whose memory is watched.
pub(crate) fn settings() -> Settings {
    Settings::default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_peers_that_announce_the_largest_frame_cost_next_to_nothing() {
    let _machine = alone().await;
    let mut server = Child::serve("frames");
    let mut good = Peer::connect(server.addr).await;
    good.call("hello").await.unwrap();
    let received = server.number("read");
    let before = server.number("memory");

    let announced = u32::try_from(settings().max_frame).unwrap();
    let mut announcing = join_all((0..ANNOUNCING).map(|_| Peer::connect(server.addr))).await;
    for peer in &mut announcing {
        peer.send_raw(&announced.to_be_bytes())
            .await;
    }
    while server.number("read") < received + ANNOUNCING * 4 {}
    good.call("served beside them")
        .await
        .unwrap();
    let after = server.number("memory");

    assert_eq!(server.number("active"), ANNOUNCING + 1);
    assert!(
        after < before + ANNOUNCING * 4,
        "from {before} to {after} KiB"
    );
    drop(announcing);
    while server.number("active") > 1 {}
    let report = server.drained();
    // Each ended inside the frame that it had begun.
    assert_eq!(report["closed.protocol"], ANNOUNCING);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_no_bytes_is_a_request_like_any_other() {
    let (server, mut peer) = small().await;

    for _ in 0..100 {
        assert_eq!(peer.call("").await.unwrap(), b"");
    }
    peer.send_raw(&[0; 4 * 100]).await;
    for _ in 0..100 {
        assert_eq!(peer.receive().await.unwrap(), b"");
    }

    assert_eq!(
        end_of(server, peer)
            .await
            .closed_for(CloseReason::Peer),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_frame_passes_and_one_byte_more_ends_the_connection_behind_what_is_before_it() {
    let (server, mut peer) = small().await;
    let largest = [b'x'; LARGEST];

    assert_eq!(peer.call(largest).await.unwrap(), largest);
    peer.send("after 100").await;
    peer.send([b'x'; LARGEST + 1]).await;

    assert_eq!(peer.receive().await.unwrap(), b"after 100");
    assert_eq!(peer.receive().await.unwrap(), b"oversize");
    assert_eq!(peer.end().await, (0, End::Closed));
    let report = end_of(server, peer).await;
    assert_eq!(report.closed_for(CloseReason::Oversize), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_length_there_is_ends_the_connection_before_a_byte_of_it_has_come() {
    let (server, mut peer) = small().await;

    peer.send_raw(&[0xff; 4]).await;

    assert_eq!(peer.receive().await.unwrap(), b"oversize");
    assert_eq!(peer.end().await, (0, End::Closed));
    let report = end_of(server, peer).await;
    assert_eq!(report.closed_for(CloseReason::Oversize), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_skipped_is_answered_in_its_place_and_the_next_one_served() {
    let server = Settings {
        max_frame: LARGEST,
        skip_oversize: true,
        ..Settings::default()
    }
    .start()
    .await;
    let mut peer = Peer::connect(server.addr).await;

    peer.send("after 100").await;
    peer.send(vec![b'x'; 500_000]).await;
    peer.send("next").await;

    assert_eq!(peer.receive().await.unwrap(), b"after 100");
    assert_eq!(peer.receive().await.unwrap(), b"oversize");
    assert_eq!(peer.receive().await.unwrap(), b"next");
    assert_eq!(
        end_of(server, peer)
            .await
            .closed_for(CloseReason::Peer),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_inside_a_frame_is_a_broken_protocol_and_what_was_whole_is_answered() {
    let whole = frame("after 50");
    for cut in 1..whole.len() {
        let (server, mut peer) = small().await;
        peer.send_raw(&[&whole[..], &whole[..cut]].concat())
            .await;
        peer.stream.shutdown().await.unwrap();

        assert_eq!(peer.receive().await.unwrap(), b"after 50");
        assert_eq!(peer.receive().await.unwrap(), b"protocol");
        assert_eq!(peer.end().await, (0, End::Closed));
        let report = end_of(server, peer).await;
        assert_eq!(report.closed_for(CloseReason::Protocol), 1, "at {cut}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_between_frames_gets_every_reply_it_is_owed() {
    let (server, mut peer) = small().await;

    for request in ["one", "after 200", "three", "after 100"] {
        peer.send(request).await;
    }
    peer.stream.shutdown().await.unwrap();

    for reply in ["one", "after 200", "three", "after 100"] {
        assert_eq!(peer.receive().await.unwrap(), reply.as_bytes());
    }
    assert_eq!(peer.end().await, (0, End::Closed));
    let report = end_of(server, peer).await;
    assert_eq!(report.closed_for(CloseReason::Peer), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_gets_an_orderly_end() {
    for hello in [
        &b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.9\r\n",
    ] {
        let (server, mut peer) = small().await;
        peer.send_raw(hello).await;

        assert_eq!(peer.receive().await.unwrap(), b"oversize");
        assert_eq!(peer.end().await, (0, End::Closed));
        let report = end_of(server, peer).await;
        assert_eq!(report.closed_for(CloseReason::Oversize), 1, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_of_any_kind_ends_its_own_connection_and_nothing_else() {
    let (server, mut good) = small().await;
    let mut noise = Noise(0x2545_f491_4f6c_dd1d);

    for round in 0..200 {
        let mut peer = Peer::connect(server.addr).await;
        let mut bytes: Vec<u8> = (0..noise.below(3000))
            .map(|_| noise.below(256) as u8)
            .collect();
        if round % 2 == 0 {
            // Lengths that pass, so that the noise is read as requests.
            for byte in bytes.iter_mut().step_by(16) {
                *byte = 0;
            }
            bytes.splice(0..0, [0, 0, 1]);
        }
        // A server that has seen enough may close while more is on its way.
        let _sent = soon(peer.stream.write_all(&bytes)).await;
        let _ended = peer.stream.shutdown().await;
        peer.end().await;
        good.call("still here").await.unwrap();
    }

    until(|| server.places.in_use() == 1).await;
    let report = end_of(server, good).await;
    let broken =
        report.closed_for(CloseReason::Oversize) + report.closed_for(CloseReason::Protocol);
    assert!(broken >= 190, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_may_come_a_byte_a_segment() {
    let (server, mut peer) = small().await;
    peer.stream.set_nodelay(true).unwrap();

    let bytes = [frame("one"), frame(""), frame("after 10"), frame("four")].concat();
    for (sent, byte) in (1..).zip(bytes) {
        peer.send_raw(&[byte]).await;
        // Read before the next one is sent, so that no two come together.
        until(|| server.tally.snapshot().read() == sent).await;
    }

    for reply in ["one", "", "after 10", "four"] {
        assert_eq!(peer.receive().await.unwrap(), reply.as_bytes());
    }
    assert_eq!(
        end_of(server, peer)
            .await
            .closed_for(CloseReason::Peer),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_pipelined_frames_are_answered_in_order_whatever_the_depth() {
    for depth in [1, 7, 64, 20_000] {
        let server = Settings {
            framing: Framing::default().pipelined(depth),
            ..Settings::default()
        }
        .start()
        .await;
        let request = |number: usize| match number % 100 {
            // Some are answered later than those behind them could be.
            50 => format!("after {}", number % 3),
            _ => format!("request {number}"),
        };
        let peer = Peer::connect(server.addr).await;
        let (mut input, mut output) = peer.stream.into_split();
        let all: Vec<u8> = (0..10_000)
            .map(request)
            .flat_map(frame)
            .collect();

        let (sent, replies) = tokio::join!(
            async {
                soon(output.write_all(&all))
                    .await
                    .unwrap();
                soon(output.shutdown()).await.unwrap();
            },
            async {
                let mut replies = Vec::new();
                soon(input.read_to_end(&mut replies))
                    .await
                    .unwrap();
                replies
            }
        );

        let () = sent;
        assert!(replies == all, "at depth {depth}");
        let report = server.drained().await;
        assert_eq!(report.closed_for(CloseReason::Peer), 1, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_fails_or_panics_has_its_last_reply_behind_those_before_it() {
    for (request, last, reason) in [
        ("fail", "error", CloseReason::Error),
        ("panic", "panic", CloseReason::Panic),
        ("big 2000", "error", CloseReason::Error),
    ] {
        let (server, mut peer) = small().await;
        for request in ["after 50", "two", request, "never answered"] {
            peer.send(request).await;
        }

        assert_eq!(peer.receive().await.unwrap(), b"after 50");
        assert_eq!(peer.receive().await.unwrap(), b"two");
        assert_eq!(peer.receive().await.unwrap(), last.as_bytes());
        assert_eq!(peer.end().await, (0, End::Closed));
        let report = end_of(server, peer).await;
        assert_eq!(report.closed_for(reason), 1, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_handler_has_its_last_reply_even_if_the_peer_has_ended_its_side() {
    for ends in [false, true] {
        let server = Settings {
            framing: Framing::default()
                .pipelined(4)
                .handler_deadline(Duration::from_millis(300)),
            ..Settings::default()
        }
        .start()
        .await;
        let mut peer = Peer::connect(server.addr).await;
        peer.send("one").await;
        peer.send("after 200000").await;
        if ends {
            peer.stream.shutdown().await.unwrap();
        }

        assert_eq!(peer.receive().await.unwrap(), b"one");
        assert_eq!(peer.receive().await.unwrap(), b"handler");
        assert_eq!(peer.end().await, (0, End::Closed));
        let report = end_of(server, peer).await;
        assert_eq!(report.closed_for(CloseReason::Handler), 1, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_may_have_the_connection_closed_behind_its_reply() {
    let (server, mut peer) = small().await;

    for request in ["after 50", "leave"] {
        peer.send(request).await;
    }

    assert_eq!(peer.receive().await.unwrap(), b"after 50");
    assert_eq!(peer.receive().await.unwrap(), b"leave");
    assert_eq!(peer.end().await, (0, End::Closed));
    let report = end_of(server, peer).await;
    assert_eq!(report.closed_for(CloseReason::Served), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_inside_a_frame_is_a_reset() {
    let (server, mut peer) = small().await;
    peer.call("hello").await.unwrap();
    let whole = frame("hello").len() as u64;
    peer.send_raw(&frame("broken off")[..7])
        .await;
    until(|| server.tally.snapshot().read() == whole + 7).await;

    SockRef::from(&peer.stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(peer);

    until(|| server.tally.snapshot().active() == 0).await;
    let report = server.drained().await;
    assert_eq!(report.closed_for(CloseReason::Reset), 1, "{report}");
}

/// A server of small frames, and a client of it.
async fn small() -> (Running, Peer) {
    let server = Settings {
        max_frame: LARGEST,
        ..Settings::default()
    }
    .start()
    .await;
    let peer = Peer::connect(server.addr).await;
    (server, peer)
}

/// The report once the last client has gone, by itself.
async fn end_of(server: Running, last: Peer) -> Report {
    drop(last);
    until(|| server.tally.snapshot().active() == 0).await;
    // The stream first, then what it held.
    until(|| server.places.in_use() == 0).await;
    server.drained().await
}

/// Numbers without an order, the same in every run (xorshift).
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

const ANNOUNCING: u64 = 1000;
const LARGEST: usize = 1000;
