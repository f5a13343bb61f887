//! HTTP/2 frame by frame: what no proper client would send, or when.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tower_net::{CloseReason, deadline::Deadlines, http::Http};

use crate::{
    http::{guarded, stack},
    support::{
        peer::Peer,
        service::{millis, secs},
    },
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = u32::try_from(payload.len()).unwrap();
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The preface, and SETTINGS with an initial window.
fn opening(window: u32) -> Vec<u8> {
    let setting = [&[0, 4][..], &window.to_be_bytes()].concat();
    [PREFACE, &frame(SETTINGS, 0, 0, setting)].concat()
}

/// The headers of a request, by the static table (RFC 7541, appendix A).
fn headers(method: u8, flags: u8, stream: u32, path: &str) -> Vec<u8> {
    let length = u8::try_from(path.len()).unwrap();
    let block = [
        &[method, 0x86, 0x41, 4],
        &b"test"[..],
        &[0x04, length],
        path.as_bytes(),
    ];
    frame(HEADERS, flags | END_HEADERS, stream, block.concat())
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    headers(0x82, END_STREAM, stream, path)
}

fn post(stream: u32, path: &str) -> Vec<u8> {
    headers(0x83, 0, stream, path)
}

fn room(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, bytes.to_be_bytes())
}

/// A frame that was heard: its kind, flags and payload.
type Heard = (u8, u8, Vec<u8>);

impl Peer {
    async fn frame(&mut self) -> Heard {
        let header = self.take(9).await;
        let length = usize::from(header[1]) << 8 | usize::from(header[2]);
        (header[3], header[4], self.take(length).await)
    }

    /// What is heard up to the first frame of a kind, which comes last.
    async fn frames_until(&mut self, kind: u8) -> Vec<Heard> {
        let mut heard = vec![self.frame().await];
        while heard[heard.len() - 1].0 != kind {
            heard.push(self.frame().await);
        }
        heard
    }

    /// The next response's body.
    async fn data(&mut self) -> String {
        let mut body = Vec::new();
        loop {
            let (kind, flags, payload) = self
                .frames_until(DATA)
                .await
                .pop()
                .unwrap();
            assert_eq!(kind, DATA);
            body.extend(payload);
            if flags & END_STREAM != 0 {
                return String::from_utf8(body).unwrap();
            }
        }
    }

    /// How long it takes until the connection ends, and for what.
    async fn falls_silent(mut self) -> (Duration, Option<CloseReason>) {
        let start = Instant::now();
        let mut rest = Vec::new();
        let heard = tokio::io::AsyncReadExt::read_to_end(&mut self.io, &mut rest);
        // A connection that is cut may end in an error.
        let _end = timeout(secs(3600), heard)
            .await
            .unwrap();
        (start.elapsed(), self.info.close_reason())
    }
}

fn is_about((took, reason): (Duration, Option<CloseReason>), due: Duration, why: CloseReason) {
    // A sixteenth of the shortest.
    assert!(took >= due && took < due + secs(4), "{took:?}");
    assert_eq!(reason, Some(why));
}

// === Arriving

#[tokio::test(start_paused = true)]
async fn a_ping_on_an_idle_http2_connection_is_no_half_request() {
    let mut peer = guarded();
    peer.send([opening(65_535), get(1, "/")].concat())
        .await;
    for _ in 0..4 {
        sleep(secs(30)).await;
        peer.send(frame(PING, 0, 0, b"pingping"))
            .await;
    }

    assert_eq!(peer.info.close_reason(), None);
    assert!(!peer.has_ended());
}

#[tokio::test(start_paused = true)]
async fn a_connection_opened_ahead_is_idle() {
    let mut peer = guarded();
    peer.send([opening(65_535), frame(SETTINGS, ACK, 0, "")].concat())
        .await;
    sleep(secs(80)).await;
    peer.send(get(1, "/late")).await;
    assert_eq!(peer.data().await, "/late");

    is_about(peer.falls_silent().await, secs(90), CloseReason::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_opened_in_part_is_late() {
    let opening = opening(65_535);
    for bytes in [20, 24, 30, opening.len() - 1] {
        let mut peer = guarded();
        peer.send(&opening[..bytes]).await;

        let ended = peer.falls_silent().await;
        assert_eq!(ended, (secs(10), Some(CloseReason::Request)), "{bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_in_odd_pieces_is_not_cut_however_long_it_takes() {
    let http = Http::default().handler_deadline(Duration::MAX);
    let mut peer = Peer::of(stack(Some(Deadlines::default()), http));
    peer.send([opening(65_535), post(1, "/sum")].concat())
        .await;
    let part = frame(DATA, 0, 1, [b'x'; 991]);
    // The ends of what is sent fall anywhere, in headers as well.
    for piece in part.repeat(40).chunks(777) {
        sleep(secs(4)).await;
        peer.send(piece).await;
    }
    peer.send(frame(DATA, END_STREAM, 1, ""))
        .await;

    assert_eq!(peer.data().await, (40 * 991).to_string());
}

#[tokio::test(start_paused = true)]
async fn half_a_header_of_a_frame_and_half_a_block_of_headers_are_late() {
    let half = [&post(1, "/sum")[..], &[0, 0, 8, DATA]].concat();
    let block = frame(HEADERS, END_STREAM, 1, b"\x82");
    for bytes in [half, block, get(1, "/")[..12].to_vec()] {
        let mut peer = guarded();
        peer.send([opening(65_535), bytes].concat())
            .await;

        let ended = peer.falls_silent().await;
        assert_eq!(ended, (secs(10), Some(CloseReason::Request)));
    }
}

// === Taking nothing

#[tokio::test(start_paused = true)]
async fn a_peer_without_a_window_is_stalled_whatever_else_it_says() {
    for ping in [false, true] {
        let mut peer = guarded();
        let requests = [1, 3, 5].map(|stream| get(stream, "/parts/100/1000"));
        peer.send([opening(0), requests.concat()].concat())
            .await;
        let start = Instant::now();
        for _ in 0..5 {
            sleep(secs(5)).await;
            if ping {
                peer.send(frame(PING, 0, 0, b"pingping"))
                    .await;
            }
        }

        let (_, reason) = peer.falls_silent().await;
        is_about((start.elapsed(), reason), secs(30), CloseReason::WriteStall);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stall_begins_when_there_is_something_to_take() {
    let mut peer = guarded();
    peer.send([opening(0), get(1, "/stream/2/50000")].concat())
        .await;

    // The connection has been asleep by then.
    is_about(peer.falls_silent().await, secs(80), CloseReason::WriteStall);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_slow_and_takes_something_is_not_stalled_until_it_stops() {
    let mut peer = guarded();
    peer.send([opening(0), get(1, "/parts/100/1000")].concat())
        .await;
    for _ in 0..10 {
        sleep(secs(25)).await;
        peer.send(room(1, 500)).await;
    }
    assert_eq!(peer.info.close_reason(), None);

    is_about(peer.falls_silent().await, secs(30), CloseReason::WriteStall);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_has_nothing_to_send_is_no_stall() {
    let mut peer = guarded();
    peer.send([opening(65_535), get(1, "/stream/2/100000")].concat())
        .await;
    assert_eq!(peer.data().await, "part 0\npart 1\n");
    assert_eq!(peer.info.close_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_reset_is_waited_for_no_more() {
    let mut peer = guarded();
    peer.send([opening(0), get(1, "/parts/100/1000")].concat())
        .await;
    sleep(secs(20)).await;
    peer.send(frame(RST_STREAM, 0, 1, [0, 0, 0, 8]))
        .await;

    is_about(peer.falls_silent().await, secs(90), CloseReason::Idle);
}

// === Leaving

#[tokio::test(start_paused = true)]
async fn told_to_leave_it_says_goaway_and_finishes_its_streams() {
    let mut peer = guarded();
    peer.send([opening(65_535), get(1, "/wait/2000")].concat())
        .await;
    sleep(millis(10)).await;

    peer.info.close_after_reply();

    // Twice: what was sent by the time of the first is answered (section 6.8).
    let (_, _, payload) = peer
        .frames_until(GOAWAY)
        .await
        .pop()
        .unwrap();
    assert_eq!(payload[..8], [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    let (_, _, ping) = peer
        .frames_until(PING)
        .await
        .pop()
        .unwrap();
    peer.send(get(3, "/wait/1000")).await;
    peer.send(frame(PING, ACK, 0, ping))
        .await;
    let (_, _, payload) = peer
        .frames_until(GOAWAY)
        .await
        .pop()
        .unwrap();
    assert_eq!(payload[..8], [0, 0, 0, 3, 0, 0, 0, 0]);
    assert_eq!(peer.data().await, "/wait/1000");
    assert_eq!(peer.data().await, "/wait/2000");
    assert!(peer.ended().await.is_ok());
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Served));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_goaway_has_left() {
    let mut peer = guarded();
    let upload = [post(1, "/sum"), frame(DATA, END_STREAM, 1, "abc")].concat();
    peer.send([opening(65_535), upload].concat())
        .await;
    assert_eq!(peer.data().await, "3");
    peer.send(frame(GOAWAY, 0, 0, [0; 8]))
        .await;

    assert!(peer.ended().await.is_ok());
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Peer));
}

#[tokio::test(start_paused = true)]
async fn what_breaks_the_protocol_is_told_from_a_peer_that_complains() {
    let complaint = frame(GOAWAY, 0, 0, [0, 0, 0, 0, 0, 0, 0, 1]);
    for (bytes, reason) in [
        (frame(DATA, 0, 0, "x"), CloseReason::Protocol),
        (frame(PING, 0, 0, "x"), CloseReason::Protocol),
        (complaint, CloseReason::Peer),
    ] {
        let mut peer = guarded();
        peer.send([opening(65_535), bytes].concat())
            .await;

        assert!(peer.ended().await.is_err());
        assert_eq!(peer.info.close_reason(), Some(reason));
    }
}
