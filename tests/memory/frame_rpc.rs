//! The RPC framing by itself: bytes in, frames out, and what is refused.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};
use tower_net::{
    Deadline,
    frame::{CodecError, Outgoing, RpcCode, RpcCodec, RpcFailure, RpcFrame, RpcKind},
};

use crate::support::random::Random;

const MAX: usize = 100;

/// A frame of any version, kind and header, whether there is such a thing or not.
struct Raw {
    version: u8,
    kind: u8,
    flags: u8,
    id: u64,
    left: u32,
    more: Vec<u8>,
    payload: Vec<u8>,
}

fn raw(kind: u8, id: u64, payload: impl AsRef<[u8]>) -> Raw {
    Raw {
        version: 1,
        kind,
        flags: 0,
        id,
        left: u32::MAX,
        more: Vec::new(),
        payload: payload.as_ref().to_vec(),
    }
}

impl Raw {
    fn bytes(&self) -> Vec<u8> {
        let header = 16 + self.more.len();
        let mut wire = Vec::new();
        wire.put_u32((header + self.payload.len()) as u32);
        wire.put_slice(&[self.version, self.kind, self.flags, header as u8]);
        wire.put_u64(self.id);
        wire.put_u32(self.left);
        wire.put_slice(&self.more);
        wire.put_slice(&self.payload);
        wire
    }
}

fn encoded(frame: RpcFrame) -> Vec<u8> {
    let mut out = BytesMut::new();
    RpcCodec::max_payload(MAX)
        .encode(frame, &mut out)
        .unwrap();
    out.to_vec()
}

/// Feeds `wire` in pieces of `size` and collects what comes out until the first error.
fn decode(wire: &[u8], size: usize) -> (Vec<RpcFrame>, Option<String>) {
    let mut codec = RpcCodec::max_payload(MAX);
    let (mut input, mut frames) = (BytesMut::new(), Vec::new());
    for piece in wire.chunks(size) {
        input.extend_from_slice(piece);
        loop {
            match codec.decode(&mut input) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error.to_string())),
            }
        }
    }
    match codec.decode_eof(&mut input) {
        Ok(frame) => {
            assert!(frame.is_none(), "what is whole was decoded before");
            (frames, None)
        }
        Err(error) => (frames, Some(error.to_string())),
    }
}

/// The one error that `wire` is met with.
fn error(wire: impl AsRef<[u8]>) -> CodecError {
    let mut input = BytesMut::from(wire.as_ref());
    RpcCodec::max_payload(MAX)
        .decode(&mut input)
        .unwrap_err()
}

fn one(wire: impl AsRef<[u8]>) -> RpcFrame {
    let (mut frames, error) = decode(wire.as_ref(), usize::MAX);
    assert_eq!((frames.len(), error), (1, None));
    frames.remove(0)
}

fn request(id: u64, payload: &'static str) -> RpcFrame {
    RpcFrame::request(id, Deadline::NEVER, payload)
}

// === As it is documented

#[tokio::test(start_paused = true)]
async fn each_kind_is_laid_out_byte_by_byte() {
    let within = Deadline::within(Duration::from_millis(0x0102));
    let failure = RpcFailure::never_started(RpcCode::Refused, "no");
    for (frame, wire) in [
        (
            RpcFrame::request(0x0807, within, "hi"),
            &b"\0\0\0\x12\x01\x01\0\x10\0\0\0\0\0\0\x08\x07\0\0\x01\x02hi"[..],
        ),
        (
            RpcFrame::reply(u64::MAX, ""),
            b"\0\0\0\x10\x01\x02\0\x10\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",
        ),
        (
            RpcFrame::failure(9, failure),
            b"\0\0\0\x16\x01\x03\0\x10\0\0\0\0\0\0\0\x09\0\0\0\0\0\x03\0\x01no",
        ),
        (
            RpcFrame::cancel(10),
            b"\0\0\0\x10\x01\x04\0\x10\0\0\0\0\0\0\0\x0a\0\0\0\0",
        ),
        (
            RpcFrame::leaving(11),
            b"\0\0\0\x10\x01\x05\0\x10\0\0\0\0\0\0\0\x0b\0\0\0\0",
        ),
    ] {
        assert_eq!(encoded(frame.clone()), wire, "{frame:?}");
        assert_eq!(one(wire), frame);
    }
}

#[test]
fn a_server_writes_the_same_frames() {
    let mut codec = RpcCodec::max_payload(MAX);
    let failure = RpcFailure::new(RpcCode::Failed, "no");
    let mut out = BytesMut::new();
    for message in [
        Outgoing::Reply {
            id: 1,
            reply: "one",
        },
        Outgoing::Failure {
            id: 2,
            failure: failure.clone(),
        },
        Outgoing::Leaving { last: 3 },
    ] {
        codec.encode(message, &mut out).unwrap();
    }

    let frames = [
        RpcFrame::reply(1, "one"),
        RpcFrame::failure(2, failure),
        RpcFrame::leaving(3),
    ];
    assert_eq!(out, frames.map(encoded).concat());
}

#[test]
fn frames_come_out_the_same_however_they_are_split() {
    let wire = [
        raw(1, 1, "one").bytes(),
        raw(200, 7, [b'x'; 300]).bytes(),
        raw(1, 2, "").bytes(),
        raw(1, 3, [b'y'; 300]).bytes(),
        raw(4, 2, "").bytes(),
        raw(1, 9, "nine").bytes(),
    ]
    .concat();
    let whole = decode(&wire, usize::MAX);

    assert_eq!(whole.0.len(), 5);
    assert_eq!(whole.0[4], request(9, "nine"));
    assert!(whole.1.is_none());
    for size in 1..=wire.len() {
        assert_eq!(decode(&wire, size), whole, "{size}");
    }
}

#[test]
fn whatever_is_sent_is_received() {
    for seed in 1..=200 {
        let mut random = Random::new(seed);
        let (mut sent, mut wire, mut id) = (Vec::new(), Vec::new(), 0);
        for _ in 0..random.among(1, 30) {
            id += random.among(1, 1000) as u64;
            let payload = vec![random.below(256) as u8; random.among(0, MAX)];
            let frame = match random.below(5) {
                0 => RpcFrame::request(id, Deadline::NEVER, payload),
                1 => RpcFrame::reply(id, payload),
                2 => {
                    let code = RpcCode::from_number(random.below(12) as u16);
                    let text = "é".repeat(random.among(0, 200));
                    let failure = if random.below(2) == 0 {
                        RpcFailure::new(code, text)
                    } else {
                        RpcFailure::never_started(code, text)
                    };
                    RpcFrame::failure(id, failure)
                }
                3 => RpcFrame::cancel(id),
                _ => RpcFrame::leaving(id),
            };
            wire.extend(encoded(frame.clone()));
            sent.push(frame);
        }

        let received = decode(&wire, random.among(1, 500));

        assert_eq!(received, (sent, None), "seed {seed}");
    }
}

#[test]
fn a_payload_is_a_slice_of_what_was_read() {
    let mut input = BytesMut::from(&raw(1, 1, "payload").bytes()[..]);
    let read = input.as_ptr();

    let frame = RpcCodec::max_payload(MAX)
        .decode(&mut input)
        .unwrap();

    let Some(RpcFrame::Request { payload, .. }) = frame else {
        panic!("{frame:?}");
    };
    assert_eq!(payload.as_ptr(), read.wrapping_add(20));
}

// === Time

#[tokio::test(start_paused = true)]
async fn time_left_is_rounded_down_and_never_more_than_there_is() {
    let micros = Duration::from_micros;
    let days = |days: u64| Duration::from_secs(days * 86_400);
    for (budget, sent) in [
        (Duration::ZERO, 0),
        (micros(999), 0),
        (micros(1_000), 1),
        (micros(1_999), 1),
        (days(49), 49 * 86_400_000),
        (days(50), 0xffff_fffe),
        (days(36_000), 0xffff_fffe),
        (Duration::MAX, 0xffff_ffff),
    ] {
        let wire = encoded(RpcFrame::request(1, Deadline::within(budget), ""));
        let RpcFrame::Request { left, .. } = one(&wire) else {
            panic!();
        };

        assert_eq!((&wire[16..]).get_u32(), sent, "{budget:?}");
        let expected = (sent != u32::MAX).then(|| Duration::from_millis(sent.into()));
        assert_eq!(left, expected);
    }
}

#[test]
fn only_a_request_has_time_left() {
    for kind in [2, 3, 4, 5] {
        let mut frame = raw(kind, 1, "\0\x01\0\0");
        let plain = one(frame.bytes());
        frame.left = 5;

        assert_eq!(one(frame.bytes()), plain);
    }
}

// === Later versions

#[test]
fn what_a_header_has_more_is_skipped() {
    for more in [1, 4, 239] {
        let mut frame = raw(1, 1, "payload");
        frame.more = vec![b'x'; more];

        assert_eq!(one(frame.bytes()), request(1, "payload"));
    }
}

#[test]
fn flags_of_the_lower_half_are_ignored() {
    for kind in [1, 2, 3, 4, 5] {
        let mut frame = raw(kind, 1, "\0\x01\0\0");
        let plain = one(frame.bytes());
        frame.flags = 0x0f;

        assert_eq!(one(frame.bytes()), plain);
    }
}

#[test]
fn flags_of_the_upper_half_must_be_understood() {
    for flag in [0x10, 0x20, 0x40, 0x80] {
        for kind in [1, 2, 3] {
            let mut frame = raw(kind, 1, "skipped");
            frame.flags = flag;
            let wire = [frame.bytes(), raw(1, 2, "two").bytes()].concat();

            for size in [1, 7, usize::MAX] {
                let (frames, error) = decode(&wire, size);

                let RpcFrame::Unreadable {
                    id,
                    kind: told,
                    failure,
                    ..
                } = &frames[0]
                else {
                    panic!("{frames:?}");
                };
                assert_eq!((*id, told.number()), (1, kind));
                assert_eq!(failure.code(), RpcCode::NotUnderstood);
                assert!(failure.was_never_started() && !failure.is_retryable());
                assert_eq!((&frames[1..], error), (&[request(2, "two")][..], None));
            }
        }
        for kind in [4, 5] {
            let mut frame = raw(kind, 1, "");
            frame.flags = flag;

            assert!(matches!(
                error(frame.bytes()),
                CodecError::BadFlags { flags, .. } if flags == flag
            ));
        }
    }
}

#[test]
fn kinds_that_may_be_ignored_are_skipped_however_long() {
    for kind in [128, 200, 255] {
        for flags in [0, 0xff] {
            let mut frame = raw(kind, 0, vec![b'x'; 5000]);
            frame.flags = flags;
            let wire = [frame.bytes(), raw(1, 1, "one").bytes(), frame.bytes()].concat();

            for size in [1, 100, usize::MAX] {
                assert_eq!(decode(&wire, size), (vec![request(1, "one")], None));
            }
        }
    }
}

#[test]
fn other_kinds_are_the_end() {
    for kind in [0, 6, 127] {
        assert!(matches!(
            error(raw(kind, 1, "").bytes()),
            CodecError::BadKind { kind: told, .. } if told == kind
        ));
    }
}

#[test]
fn another_version_is_the_end_as_soon_as_it_is_seen() {
    for version in [0, 2, 255] {
        let mut frame = raw(1, 1, "");
        frame.version = version;

        assert!(matches!(
            error(&frame.bytes()[..5]),
            CodecError::BadVersion { version: told, .. } if told == version
        ));
    }
    // What is not ours at all is found out by this.
    for other in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"PRI * HTTP/2.0\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"SSH-2.0-",
    ] {
        assert!(matches!(error(other), CodecError::BadVersion { .. }));
    }
}

// === What is no frame

#[test]
fn a_length_that_does_not_fit_its_header_is_the_end_as_soon_as_it_is_seen() {
    for (length, header) in [(0, 0), (15, 15), (16, 17), (15, 16), (100, 0), (100, 15)] {
        let mut wire = raw(1, 1, "").bytes();
        wire[..4].copy_from_slice(&u32::to_be_bytes(length));
        wire[7] = header;

        for wire in [&wire[..8], &wire[..]] {
            assert!(
                matches!(error(wire), CodecError::BadLength { value, .. } if value == u64::from(length))
            );
        }
    }
}

#[test]
fn a_payload_over_the_limit_is_told_at_once_and_skipped_for_nothing() {
    for kind in [1, 2, 3] {
        let mut wire = raw(kind, 7, "").bytes();
        wire[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        let mut codec = RpcCodec::max_payload(MAX);
        let mut input = BytesMut::with_capacity(64);
        let room = input.capacity();
        input.extend_from_slice(&wire);

        let frame = codec.decode(&mut input).unwrap();

        let Some(RpcFrame::Unreadable {
            id: 7,
            kind: told,
            failure,
            ..
        }) = frame
        else {
            panic!("{frame:?}");
        };
        assert_eq!(told.number(), kind);
        assert_eq!(failure.code(), RpcCode::Oversize);
        assert!(failure.text().contains("4294967279"), "{failure}");
        assert!(input.is_empty() && input.capacity() <= room);
        // The rest of it is discarded as it comes.
        for _ in 0..1000 {
            input.extend_from_slice(&[b'x'; 40]);
            assert_eq!(codec.decode(&mut input).unwrap(), None);
            assert!(input.is_empty());
        }
        let eof = codec
            .decode_eof(&mut input)
            .unwrap_err();
        assert!(
            matches!(eof, CodecError::Truncated { missing, .. } if missing == (1 << 32) + 3 - 20 - 40_000)
        );
    }
}

#[test]
fn the_limit_is_for_the_payload_alone() {
    for (length, fits) in [(MAX, true), (MAX + 1, false)] {
        let mut frame = raw(1, 1, vec![b'x'; length]);
        frame.more = vec![0; 239];

        let is_whole = matches!(one(frame.bytes()), RpcFrame::Request { .. });

        assert_eq!(is_whole, fits);
    }
}

#[test]
fn with_a_limit_of_zero_only_empty_payloads_pass_and_failures() {
    let mut codec = RpcCodec::max_payload(0);
    let long = RpcFailure::new(RpcCode::Failed, "x".repeat(256));
    let (mut wire, mut refused) = (BytesMut::new(), BytesMut::new());
    codec
        .encode(request(1, ""), &mut wire)
        .unwrap();
    codec
        .encode(RpcFrame::failure(2, long.clone()), &mut wire)
        .unwrap();
    assert!(
        codec
            .encode(request(3, "x"), &mut refused)
            .is_err()
    );

    assert_eq!(codec.decode(&mut wire).unwrap(), Some(request(1, "")));
    assert_eq!(
        codec.decode(&mut wire).unwrap(),
        Some(RpcFrame::failure(2, long))
    );
    assert!(refused.is_empty());
}

#[test]
fn a_cancel_or_a_leaving_may_have_a_payload_that_is_not_long() {
    for (kind, frame) in [(4, RpcFrame::cancel(1)), (5, RpcFrame::leaving(1))] {
        assert_eq!(one(raw(kind, 1, [0; 260]).bytes()), frame);
        assert!(matches!(
            error(raw(kind, 1, [0; 261]).bytes()),
            CodecError::TooLong { skipped: false, .. }
        ));
    }
}

#[test]
fn ids_of_requests_rise() {
    for (first, second) in [(1, 1), (2, 1), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
        for payload in ["", "oversize"] {
            let long = payload.repeat(MAX);
            let wire = [raw(1, first, "").bytes(), raw(1, second, long).bytes()].concat();

            let (frames, error) = decode(&wire, usize::MAX);

            assert_eq!(frames, [request(first, "")]);
            assert!(
                error
                    .unwrap()
                    .contains("cannot be used")
            );
        }
    }
    for kind in [1, 4] {
        assert!(matches!(
            error(raw(kind, 0, "").bytes()),
            CodecError::BadId { id: 0, .. }
        ));
    }
}

#[test]
fn other_ids_come_in_any_order() {
    let wire = [
        raw(2, 5, "").bytes(),
        raw(2, 5, "").bytes(),
        raw(4, 3, "").bytes(),
        raw(3, 0, "\0\x09\0\0").bytes(),
        raw(5, 0, "").bytes(),
    ]
    .concat();

    let (frames, error) = decode(&wire, usize::MAX);

    let ids: Vec<u64> = frames
        .iter()
        .map(RpcFrame::id)
        .collect();
    assert_eq!((ids, error), (vec![5, 5, 3, 0, 0], None));
}

#[test]
fn the_end_inside_a_frame_is_truncated_wherever_it_is() {
    let wire = raw(1, 1, "payload").bytes();
    for length in 1..wire.len() {
        let (frames, error) = decode(&wire[..length], usize::MAX);

        assert!(frames.is_empty());
        let missing = if length < 4 { 20 - length } else { 27 - length };
        assert_eq!(
            error.unwrap(),
            format!("stream ended with {missing} bytes of a frame missing")
        );
    }
}

#[test]
fn what_does_not_fit_is_not_sent() {
    let mut codec = RpcCodec::max_payload(3);
    let mut out = BytesMut::from("before");

    for frame in [request(1, "four"), RpcFrame::reply(1, "four")] {
        let error = codec
            .encode(frame, &mut out)
            .unwrap_err();
        assert!(matches!(
            error,
            CodecError::TooLong {
                length: 4,
                max: 3,
                ..
            }
        ));
    }
    let reply = Outgoing::Reply {
        id: 1,
        reply: "four",
    };
    assert!(codec.encode(reply, &mut out).is_err());
    let unreadable = one(raw(1, 1, [0; MAX + 1]).bytes());
    assert!(
        codec
            .encode(unreadable, &mut out)
            .is_err()
    );

    assert_eq!(out, "before");
}

// === Failures

#[test]
fn a_failure_says_why_and_whether_it_may_be_sent_again() {
    for number in 0..=12 {
        for (bits, never_started) in [(0, false), (1, true), (0xfffe, false), (0xffff, true)] {
            let mut payload = Vec::new();
            payload.put_u16(number);
            payload.put_u16(bits);
            payload.put_slice(b"why");

            let RpcFrame::Failure { failure, .. } = one(raw(3, 1, payload).bytes()) else {
                panic!();
            };

            assert_eq!(failure.code().number(), number);
            assert_eq!(failure.was_never_started(), never_started);
            let may_be_sent_again = never_started && number == 3;
            assert_eq!(failure.is_retryable(), may_be_sent_again);
            assert_eq!(failure.text(), "why");
            assert!(failure.to_string().ends_with(": why"));
        }
    }
}

#[test]
fn the_text_of_a_failure_is_cut_between_characters_on_both_sides() {
    let long = "é".repeat(300);
    let received = RpcFailure::new(RpcCode::Failed, format!("x{long}"));
    let borrowed = RpcFailure::new(RpcCode::Failed, "short");
    // What a peer sends that does not cut.
    let codec = RpcCodec::max_payload(1000);
    let wire = raw(3, 1, format!("\0\x01\0\0x{long}")).bytes();
    let uncut = { codec }
        .decode(&mut BytesMut::from(&wire[..]))
        .unwrap()
        .unwrap();

    assert_eq!(received.text(), format!("x{}", "é".repeat(127)));
    assert_eq!(borrowed.text(), "short");
    assert_eq!(uncut, RpcFrame::failure(1, received));
}

#[test]
fn bytes_that_are_no_text_are_replaced() {
    let RpcFrame::Failure { failure, .. } = one(raw(3, 1, b"\0\x01\0\0a\xffb").bytes()) else {
        panic!();
    };

    assert_eq!(failure.text(), "a\u{fffd}b");
    assert!(failure.text().len() <= 256);
}

#[test]
fn a_text_of_nothing_but_bad_bytes_does_not_grow() {
    let codec = RpcCodec::max_payload(1000);
    let payload = [&b"\0\x01\0\0"[..], &[0xff; 300]].concat();
    let mut input = BytesMut::from(&raw(3, 1, payload).bytes()[..]);

    let Some(RpcFrame::Failure { failure, .. }) = { codec }.decode(&mut input).unwrap() else {
        panic!();
    };

    assert!(failure.text().len() <= 256);
}

#[test]
fn a_failure_too_short_for_a_code_is_the_end() {
    for payload in ["", "\0", "\0\x01\0"] {
        assert!(matches!(
            error(raw(3, 1, payload).bytes()),
            CodecError::BadLength { .. }
        ));
    }
}

#[test]
fn kinds_and_codes_are_what_their_numbers_say() {
    for number in 0..=u8::MAX {
        let kind = RpcKind::from_number(number);
        assert_eq!(kind.is_some(), (1..=5).contains(&number));
        assert!(kind.is_none_or(|kind| kind.number() == number));
    }
    for number in 0..=u16::MAX {
        assert_eq!(RpcCode::from_number(number).number(), number);
    }
}

// === Any bytes

#[test]
fn any_bytes_come_to_the_same_however_they_are_split() {
    for seed in 1..=2_000 {
        let mut random = Random::new(seed);
        let mut wire = Vec::new();
        for number in 1..=random.among(1, 6) {
            let mut frame = raw(
                random.pick(&[1, 1, 1, 2, 3, 4, 5, 6, 128, 255]),
                random.pick(&[number as u64, number as u64, 0, u64::MAX]),
                vec![0; random.pick(&[0, 3, 4, 50, MAX, MAX + 1, 300])],
            );
            frame.flags = random.pick(&[0, 0, 0, 0x0f, 0x10]);
            frame.more = vec![1; random.pick(&[0, 0, 0, 1, 200])];
            let mut bytes = frame.bytes();
            if random.below(6) == 0 {
                let at = random.among(0, bytes.len());
                bytes[at] = random.below(256) as u8;
            }
            bytes.truncate(random.pick(&[usize::MAX, usize::MAX, 19, 7]));
            wire.extend(bytes);
        }

        let whole = decode(&wire, usize::MAX);

        for size in [1, 2, 5, 19, 21, 64] {
            assert_eq!(decode(&wire, size), whole, "seed {seed}");
        }
        for frame in whole.0 {
            assert!(!format!("{frame:?}").is_empty());
        }
    }
}

#[test]
fn clones_know_nothing_of_each_other() {
    let codec = RpcCodec::max_payload(MAX);
    for mut codec in [codec.clone(), codec] {
        let mut input = BytesMut::from(&raw(1, 1, "one").bytes()[..]);
        assert_eq!(codec.decode(&mut input).unwrap(), Some(request(1, "one")));
    }
}

#[test]
fn payloads_are_made_of_whatever_becomes_bytes() {
    let frames = [
        RpcFrame::reply(1, "text"),
        RpcFrame::reply(1, String::from("text")),
        RpcFrame::reply(1, b"text".to_vec()),
        RpcFrame::reply(1, Bytes::from_static(b"text")),
    ];
    assert!(
        frames
            .iter()
            .all(|frame| *frame == frames[0])
    );
    assert_eq!(frames[0].kind(), RpcKind::Reply);
}
