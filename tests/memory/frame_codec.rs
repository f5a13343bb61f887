//! The codecs by themselves: bytes in, frames out, and what is refused.

use bytes::{Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};
use tower_net::frame::{CodecError, Delimited, LengthDelimited};

use crate::support::random::Random;

fn length(max: usize) -> LengthDelimited {
    LengthDelimited::max_frame(max)
}

/// Feeds `wire` in pieces of `size` and collects what comes out until the first error.
fn decode<C>(mut codec: C, wire: &[u8], size: usize) -> (Vec<String>, Option<CodecError>)
where
    C: Decoder<Item = Bytes, Error = CodecError>,
{
    let (mut input, mut frames) = (BytesMut::new(), Vec::new());
    for piece in wire.chunks(size) {
        input.extend_from_slice(piece);
        loop {
            match codec.decode(&mut input) {
                Ok(Some(frame)) => frames.push(String::from_utf8(frame.to_vec()).unwrap()),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    match codec.decode_eof(&mut input) {
        Ok(frame) => {
            assert!(frame.is_none(), "what is whole was decoded before");
            (frames, None)
        }
        Err(error) => (frames, Some(error)),
    }
}

fn encode<C: Encoder<&'static [u8], Error = CodecError>>(
    mut codec: C,
    frame: &'static [u8],
) -> Result<BytesMut, CodecError> {
    let mut out = BytesMut::from("before");
    let encoded = codec.encode(frame, &mut out);
    if encoded.is_err() {
        assert_eq!(out, "before", "an encode that fails writes nothing");
    }
    encoded.map(|()| out.split_off(6))
}

// === Length in front

#[test]
fn frames_come_out_the_same_however_they_are_split() {
    let wire = b"\0\0\0\x03one\0\0\0\0\0\0\0\x05three";
    for size in 1..=wire.len() {
        let (frames, error) = decode(length(5), wire, size);

        assert_eq!(frames, ["one", "", "three"]);
        assert!(error.is_none(), "{error:?}");
    }
}

#[test]
fn every_width_and_order_of_the_length_is_read_as_it_is_written() {
    for width in 1..=8 {
        for little_endian in [false, true] {
            for offset in [0, 3] {
                let codec = || {
                    let codec = length(200).width(width).unwrap();
                    let codec = codec.offset(offset).unwrap();
                    if little_endian {
                        codec.little_endian()
                    } else {
                        codec
                    }
                };

                let wire = encode(codec(), &[b'x'; 200]).unwrap();
                let (frames, _) = decode(codec(), &wire, 7);

                assert_eq!(wire.len(), offset + width + 200);
                let at = offset + if little_endian { 0 } else { width - 1 };
                assert_eq!(wire[at], 200, "{width} {little_endian} {offset}");
                assert_eq!(frames, ["x".repeat(200)]);
            }
        }
    }
}

#[test]
fn a_length_may_count_more_or_less_than_what_follows() {
    for (adjust, field) in [(-4, 7), (0, 3), (2, 1)] {
        let codec = || length(3).adjust(adjust);

        let wire = encode(codec(), b"one").unwrap();
        let (frames, _) = decode(codec(), &wire, 1);

        assert_eq!((wire[3], &frames[..]), (field, &["one".to_owned()][..]));
    }
}

#[test]
fn the_limit_counts_what_is_behind_the_field_whatever_the_field_counts() {
    for adjust in [-4, 0, 4] {
        let codec = |max| length(max).adjust(adjust);
        let wire = encode(codec(10), b"0123456789").unwrap();

        let (_, at_the_limit) = decode(codec(10), &wire, 64);
        let (_, above) = decode(codec(9), &wire, 64);

        assert!(at_the_limit.is_none(), "{adjust}");
        let Some(CodecError::TooLong { length, max, .. }) = above else {
            panic!("{adjust}: {above:?}");
        };
        assert_eq!((length, max), (10, 9));
    }
}

#[test]
fn a_header_may_be_kept_in_part() {
    let wire = b"ab\0\x02hi";
    for (strip, frame) in [(0, "ab\0\x02hi"), (2, "\0\x02hi"), (4, "hi"), (5, "i")] {
        let codec = length(9).width(2).unwrap();
        let codec = codec
            .offset(2)
            .unwrap()
            .strip(strip)
            .unwrap();

        assert_eq!(decode(codec, wire, 1).0, [frame]);
    }
}

#[test]
fn a_frame_shorter_than_what_is_taken_off_it_is_a_bad_one() {
    let codec = length(9).strip(6).unwrap();

    let (_, error) = decode(codec, b"\0\0\0\x01x", 64);

    assert!(
        matches!(error, Some(CodecError::BadLength { value: 1, .. })),
        "{error:?}"
    );
}

#[test]
fn a_length_below_zero_is_a_bad_one() {
    let (_, error) = decode(length(9).adjust(-4), b"\0\0\0\x03", 64);

    assert!(
        matches!(error, Some(CodecError::BadLength { value: 3, .. })),
        "{error:?}"
    );
}

#[test]
fn the_longest_length_is_refused_before_anything_is_reserved() {
    for width in [4, 8] {
        let codec = length(1 << 20).width(width).unwrap();
        let mut input = BytesMut::with_capacity(64);
        input.extend_from_slice(&[0xff; 8]);
        let room = input.capacity();

        let error = { codec }
            .decode(&mut input)
            .unwrap_err();

        assert!(matches!(error, CodecError::TooLong { .. }), "{error:?}");
        assert_eq!(input.capacity(), room);
    }
}

#[test]
fn a_length_within_the_limit_reserves_nothing_either() {
    let mut input = BytesMut::with_capacity(64);
    input.extend_from_slice(b"\xff\xff\xff\xff");
    let room = input.capacity();

    let decoded = length(usize::MAX).decode(&mut input);

    assert!(matches!(decoded, Ok(None)));
    assert_eq!(input.capacity(), room);
}

#[test]
fn no_length_overflows_whatever_the_settings() {
    for value in [u64::MAX, u64::MAX - 8, u64::MAX / 2, u64::MAX / 2 + 1] {
        for adjust in [i64::MIN, -8, 0, 8, i64::MAX] {
            for strip in [0, 8] {
                let codec = length(usize::MAX).width(8).unwrap();
                let mut codec = codec
                    .adjust(adjust)
                    .strip(strip)
                    .unwrap();
                let mut wire = BytesMut::from(&value.to_be_bytes()[..]);
                wire.extend_from_slice(b"rest");

                let decoded = codec.decode(&mut wire);
                let _ended = codec.decode_eof(&mut wire);
                let _encoded = codec.encode("x", &mut BytesMut::new());

                // Only where field and adjustment cancel out is there a frame, an empty one.
                let length = i128::from(value) + i128::from(adjust);
                assert_eq!(
                    matches!(decoded, Ok(Some(_))),
                    length == 0,
                    "{value} {adjust}"
                );
            }
        }
    }
}

#[test]
fn garbage_ends_in_frames_or_one_error_and_never_in_a_panic() {
    let mut random = Random::new(1);
    for round in 0..2_000 {
        // Many zeros, so that there are short lengths.
        let wire: Vec<_> = (0..64)
            .map(|_| [0, 0, 0, random.below(128) as u8][random.among(0, 4)])
            .collect();
        let codec = length(20).adjust(i64::from(round % 5) - 2);

        let whole = decode(codec.clone(), &wire, 64);
        let split = decode(codec, &wire, 1);

        assert_eq!(whole.0, split.0);
        assert_eq!(whole.1.is_some(), split.1.is_some());
    }
}

#[test]
fn the_end_of_the_stream_inside_a_frame_says_how_much_is_missing() {
    for (wire, missing) in [(&b"\0\0"[..], 2), (b"\0\0\0\x05", 5), (b"\0\0\0\x05abc", 2)] {
        let (frames, error) = decode(length(9), wire, 64);

        let Some(CodecError::Truncated { missing: said, .. }) = error else {
            panic!("{error:?}");
        };
        assert_eq!((frames.len(), said), (0, missing));
    }
    assert!(decode(length(9), b"", 64).1.is_none());
}

#[test]
fn a_skipped_frame_gives_one_error_however_it_is_split() {
    let wire = b"\0\0\0\x0c123456789012\0\0\0\x02ok\0\0\0\x0babcdefghijk\0\0\0\x03end";
    for size in 1..=wire.len() {
        let mut codec = length(10).skip_oversize();
        let (mut input, mut seen) = (BytesMut::new(), Vec::new());
        for piece in wire.chunks(size) {
            input.extend_from_slice(piece);
            loop {
                match codec.decode(&mut input) {
                    Ok(Some(frame)) => seen.push(String::from_utf8(frame.to_vec()).unwrap()),
                    Ok(None) => break,
                    Err(CodecError::TooLong {
                        length, skipped, ..
                    }) => {
                        assert!(skipped);
                        seen.push(length.to_string());
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
        }

        assert_eq!(seen, ["12", "ok", "11", "end"], "{size}");
        assert!(input.len() < 8);
    }
}

#[test]
fn a_reply_over_the_limit_or_the_width_of_the_field_writes_nothing() {
    let narrow = || length(1_000).width(1).unwrap();

    assert!(encode(narrow(), &[0; 255]).is_ok());
    assert!(matches!(
        encode(narrow(), &[0; 256]),
        Err(CodecError::TooLong { length: 256, .. })
    ));
    assert!(matches!(
        encode(narrow().adjust(-1), &[0; 255]),
        Err(CodecError::TooLong { .. })
    ));
    assert!(matches!(
        encode(length(3), b"long"),
        Err(CodecError::TooLong { max: 3, .. })
    ));
    assert!(matches!(
        encode(length(9).adjust(2), b"x"),
        Err(CodecError::BadLength { .. })
    ));
}

#[test]
fn a_limit_of_zero_lets_only_empty_frames_pass() {
    let (frames, error) = decode(length(0), b"\0\0\0\0\0\0\0\x01x", 1);

    assert_eq!(frames, [""]);
    assert!(
        matches!(error, Some(CodecError::TooLong { length: 1, .. })),
        "{error:?}"
    );
}

#[test]
fn a_header_that_cannot_be_is_refused_when_it_is_set() {
    assert_eq!(
        length(1)
            .width(0)
            .unwrap_err()
            .setting(),
        "width"
    );
    assert_eq!(
        length(1)
            .width(9)
            .unwrap_err()
            .setting(),
        "width"
    );
    assert_eq!(
        length(1)
            .offset(1_025)
            .unwrap_err()
            .setting(),
        "offset"
    );
    assert_eq!(
        length(1)
            .strip(4_097)
            .unwrap_err()
            .setting(),
        "strip"
    );
    assert_eq!(
        Delimited::by("", 1)
            .unwrap_err()
            .setting(),
        "delimiter"
    );
}

// === Delimiter behind

#[test]
fn lines_come_out_the_same_however_they_are_split() {
    let wire = b"one\r\n\ntwo\rtoo\nthree\n";
    for size in 1..=wire.len() {
        let (frames, error) = decode(Delimited::lines(7), wire, size);

        assert_eq!(frames, ["one", "", "two\rtoo", "three"]);
        assert!(error.is_none(), "{error:?}");
    }
}

#[test]
fn a_delimiter_may_be_any_bytes_and_come_in_pieces() {
    let wire = b"one--two-END-three--END-";
    for size in 1..=wire.len() {
        let codec = Delimited::by("-END-", 20).unwrap();

        assert_eq!(decode(codec, wire, size).0, ["one--two", "three-"]);
    }
}

#[test]
fn a_delimiter_may_be_kept() {
    let (lines, _) = decode(Delimited::lines(3).keep_delimiter(), b"one\r\ntwo\n", 1);

    assert_eq!(lines, ["one\r\n", "two\n"]);
}

#[test]
fn the_limit_of_a_line_leaves_its_delimiter_out() {
    for size in 1..=8 {
        let (at_the_limit, none) = decode(Delimited::lines(4), b"four\r\n", size);
        let (_, above) = decode(Delimited::lines(4), b"fives\r\n", size);

        assert_eq!(at_the_limit, ["four"]);
        assert!(none.is_none() && matches!(above, Some(CodecError::TooLong { max: 4, .. })));
    }
}

#[test]
fn a_line_that_never_ends_is_refused_long_before_it_does() {
    let mut codec = Delimited::lines(10);
    let mut input = BytesMut::from(&[b'x'; 12][..]);

    let error = codec.decode(&mut input).unwrap_err();

    assert!(
        matches!(error, CodecError::TooLong { length: 12, .. }),
        "{error:?}"
    );
}

#[test]
fn a_skipped_line_gives_one_error_however_it_is_split() {
    let long = "x".repeat(30);
    let wire = format!("one\r\n{long}\r\ntwo\n{long}\n\nthree\r\n");
    for size in 1..=wire.len() {
        let mut codec = Delimited::lines(10).skip_oversize();
        let (mut input, mut seen) = (BytesMut::new(), Vec::new());
        for piece in wire.as_bytes().chunks(size) {
            input.extend_from_slice(piece);
            loop {
                match codec.decode(&mut input) {
                    Ok(Some(frame)) => seen.push(String::from_utf8(frame.to_vec()).unwrap()),
                    Ok(None) => break,
                    Err(error) => seen.push(error.to_string().split_off(0)[..5].to_owned()),
                }
            }
            assert!(input.len() <= 12, "what is skipped is not kept");
        }

        assert_eq!(
            seen,
            ["one", "frame", "two", "frame", "", "three"],
            "{size}"
        );
    }
}

#[test]
fn a_line_cut_short_by_the_end_of_the_stream_is_an_error() {
    let (lines, error) = decode(Delimited::lines(10), b"one\ntwo", 64);

    assert_eq!(lines, ["one"]);
    assert!(
        matches!(error, Some(CodecError::Truncated { .. })),
        "{error:?}"
    );
}

#[test]
fn a_long_line_is_searched_once_and_not_anew_for_each_byte() {
    let start = std::time::SystemTime::now();
    let mut codec = Delimited::lines(1 << 20);
    let mut input = BytesMut::new();

    for _ in 0..1 << 20 {
        input.extend_from_slice(b"x");
        assert!(matches!(codec.decode(&mut input), Ok(None)));
    }

    // Searched anew each time it would be 500 GB to look through.
    assert!(start.elapsed().unwrap() < std::time::Duration::from_secs(60));
}

#[test]
fn replies_are_written_with_their_delimiter_or_not_at_all() {
    let by = |max| Delimited::by("||", max).unwrap();

    assert_eq!(encode(Delimited::lines(3), b"one").unwrap(), "one\n");
    assert_eq!(encode(by(3), b"one").unwrap(), "one||");
    assert!(matches!(
        encode(by(9), b"one||two"),
        Err(CodecError::Delimiter)
    ));
    assert!(matches!(
        encode(Delimited::lines(9), b"one\ntwo"),
        Err(CodecError::Delimiter)
    ));
    assert!(matches!(
        encode(by(2), b"one"),
        Err(CodecError::TooLong { length: 3, .. })
    ));
}
