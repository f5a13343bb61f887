//! The vectors that others test their framing and timers with: each is met, or decided otherwise for a reason.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, advance, sleep},
};
use tokio_util::codec::{Decoder, Encoder};
use tower::{ServiceBuilder, service_fn};
use tower_net::{
    CloseReason, Conn, Deadline, Server,
    deadline::{DeadlineLayer, Deadlines},
    error::BoxError,
    frame::{CodecError, Delimited, FrameLayer, Framing, LengthDelimited},
    io::{Io, Linger, Lingered, linger},
};

use crate::support::{
    io::{Queue, Script},
    peer::Peer,
    service::{millis, obey, secs},
};

const VECTORS: &str = include_str!("../vectors/framing_and_timers.json");

/// What we decide otherwise, and why.
const OTHERWISE: &[(&str, &str)] = &[
    (
        "framing-length-fail-slow-error-only-once-the-whole-oversized-frame-has-passed-repeated-twice",
        EARLY,
    ),
    (
        "framing-delimiter-nul-delimiter-limit-1-fail-slow-twice",
        EARLY,
    ),
    (
        "framing-line-limit-2-error-only-at-the-line-end-then-recovery",
        EARLY,
    ),
    (
        "framing-length-8-byte-length-with-the-top-bit-set",
        "lengths are unsigned: this one is over the limit, not negative, and refused as such",
    ),
    (
        "framing-length-constructor-validation",
        "every width from 1 to 8 is offered, and a limit of zero lets empty frames pass; types rule out the rest",
    ),
    ("framing-encode-varint-prefix-of-10", VARINT),
    ("framing-encode-varint-prefix-of-266", VARINT),
    ("framing-encode-varint-prefix-of-2097152", VARINT),
    ("framing-encode-varint-prefix-of-268435456", VARINT),
    (
        "timers-manual-keep-alive",
        "only bytes reset idle; a handler that needs longer suspends the deadlines or extends its own",
    ),
    (
        "accept-error-accept-error-pauses-the-listener",
        "the pause grows from 50 ms to 1 s, so that a moment's shortage costs no second; see `Backoff`",
    ),
    (
        "accept-error-reserve-descriptor",
        "the trick is for one thread only; we pause, and are woken early when a connection of ours ends",
    ),
    ("deadline-expired-by-800-ms-empty-bucket", REJECTION),
    ("deadline-3-served-then-1-expired", REJECTION),
    ("deadline-5-served-then-1-expired", REJECTION),
    ("deadline-dark-mode-counts-but-serves", REJECTION),
    (
        "deadline-5-expired-served-6th-rejected-7th-served",
        REJECTION,
    ),
    ("deadline-tokens-expire", REJECTION),
    ("deadline-wire-form", WIRE),
    ("deadline-wrong-length", WIRE),
];

const EARLY: &str = "an oversize frame is refused as soon as it is certain to be one, before the rest of it has passed";
const VARINT: &str = "prefixes of varying width are not offered; a codec of one's own does it";
const REJECTION: &str =
    "a deadline is set here and never carried over the wire, so none has passed on arrival";
const WIRE: &str = "a deadline has no form on the wire here";

#[tokio::test(start_paused = true)]
async fn every_vector_is_met_or_decided_otherwise_for_a_reason() {
    let mut ids = Vec::new();
    for vector in vectors() {
        let id = vector["id"].as_str().unwrap();
        ids.push(id.to_owned());
        if OTHERWISE
            .iter()
            .any(|(other, _)| *other == id)
        {
            continue;
        }
        match vector["area"].as_str().unwrap() {
            "framing-length" | "framing-line" | "framing-delimiter" => decodes(&vector),
            "framing-encode" => encodes(&vector),
            _ => scenario(id, &vector).await,
        }
    }

    for (other, _) in OTHERWISE {
        let found = ids
            .iter()
            .filter(|id| id == other)
            .count();
        assert_eq!(found, 1, "{other} is listed, and is no vector");
    }
}

fn vectors() -> Vec<Value> {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    all["vectors"]
        .as_array()
        .unwrap()
        .clone()
}

// === Frames

/// Feeds what a step feeds, and finds the frames and the one error that it names.
fn decodes(vector: &Value) {
    let (id, config) = (&vector["id"], &vector["config"]);
    let mut codec: Box<dyn Decoder<Item = Bytes, Error = CodecError>> =
        if config["delimiters_hex"].is_array() {
            Box::new(delimited(config))
        } else {
            Box::new(length_delimited(config))
        };
    let mut input = BytesMut::new();
    for step in vector["steps"].as_array().unwrap() {
        input.extend_from_slice(&bytes(&step["feed_hex"]));
        let (mut frames, mut errors) = (Vec::new(), Vec::new());
        loop {
            match codec.decode(&mut input) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    errors.push(class(&error));
                    if !matches!(error, CodecError::TooLong { skipped: true, .. }) {
                        break;
                    }
                }
            }
        }

        let expected: Vec<_> = step["frames_hex"]
            .as_array()
            .unwrap()
            .iter()
            .map(bytes)
            .collect();
        let error: Vec<_> = expected_class(&step["error"])
            .into_iter()
            .collect();
        assert_eq!((frames, errors), (expected, error), "{id}");
    }
}

fn encodes(vector: &Value) {
    let (id, config) = (&vector["id"], &vector["config"]);
    let expect = &vector["expect"];
    let cases = match id.as_str().unwrap() {
        "framing-encode-encoder-limit-vs-width-of-the-length-field" => {
            vec![
                (vec![0; 255], &Value::Null),
                (vec![0; 256], &expect["256 bytes"]),
            ]
        }
        "framing-encode-payload-larger-than-the-length-field-can-express" => {
            vec![(vec![0; 256], &expect["error"])]
        }
        _ => vec![(bytes(&vector["input_hex"]).to_vec(), &expect["error"])],
    };
    for (payload, error) in cases {
        let mut codec = length_delimited(config);
        let mut out = BytesMut::new();
        let encoded = codec
            .encode(payload, &mut out)
            .map_err(|error| class(&error));

        assert_eq!(encoded.err(), expected_class(error), "{id}");
        assert!(error.is_null() || out.is_empty(), "{id}");
        if expect["output_hex"].is_string() {
            assert_eq!(out, bytes(&expect["output_hex"]), "{id}");
        }
    }
}

fn length_delimited(config: &Value) -> LengthDelimited {
    let number = |name: &str| config[name].as_i64().unwrap_or(0);
    let (width, offset) = (number("length") as usize, number("offset") as usize);
    // There the limit is for the whole frame, here for what is behind the field.
    let max = config["max_frame"]
        .as_u64()
        .map(|max| max as usize - offset - width);
    let codec = LengthDelimited::max_frame(max.unwrap_or(1 << 20));
    let codec = codec
        .width(width)
        .unwrap()
        .offset(offset)
        .unwrap();
    let codec = codec.skip_oversize();
    // A prepender adjusts what it writes, a decoder what it reads: the one is the other negated.
    let codec = match &config["includes_length"] {
        Value::Bool(true) => codec.adjust(-number("length")),
        _ if max.is_none() => codec.adjust(-number("adjust")),
        _ => codec.adjust(number("adjust")),
    };
    let codec = match config["strip"].as_u64() {
        Some(strip) => codec.strip(strip as usize).unwrap(),
        None => codec,
    };
    if config["endian"] == "little" {
        codec.little_endian()
    } else {
        codec
    }
}

fn delimited(config: &Value) -> Delimited {
    let max = config["max_frame"].as_u64().unwrap() as usize;
    let delimiters = config["delimiters_hex"]
        .as_array()
        .unwrap();
    let codec = match &delimiters[..] {
        [one] => Delimited::by(bytes(one), max).unwrap(),
        _ => Delimited::lines(max),
    };
    let codec = codec.skip_oversize();
    if config["strip"] == false {
        codec.keep_delimiter()
    } else {
        codec
    }
}

pub(crate) fn bytes(hex: &Value) -> Bytes {
    let hex = hex.as_str().unwrap().as_bytes();
    let digit = |digit: u8| char::from(digit).to_digit(16).unwrap() as u8;
    hex.chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

fn class(error: &CodecError) -> &'static str {
    match error {
        CodecError::TooLong { .. } => "frame_too_long",
        CodecError::BadLength { .. } => "bad_length",
        CodecError::Truncated { .. } => "truncated",
        _ => "io",
    }
}

/// What a vector expects, in our classes.
fn expected_class(error: &Value) -> Option<&str> {
    Some(match error.as_str()? {
        "negative_length" | "bad_frame" => "bad_length",
        "error" => "frame_too_long",
        class => class,
    })
}

// === Times

async fn scenario(id: &str, vector: &Value) {
    let config = &vector["config"];
    match id {
        "framing-eof-eof-inside-header-or-payload" => truncated(vector),
        "accept-error-non-timeout-accept-error" => accepts_go_on().await,
        "timers-slow-but-progressing-reader-is-not-idle" => {
            slow_reader(millis_of(config, "idle_ms")).await
        }
        "timers-idle-closes-only-between-requests" => idle(millis_of(config, "idle_ms")).await,
        "timers-dribble-does-not-extend-the-header-deadline" => {
            dribble(millis_of(config, "first_request_ms")).await;
        }
        "timers-half-close-forwarded" => half_close().await,
        "timers-protocol-detection-timeout" => silence(millis_of(config, "matching_ms")).await,
        "timers-peer-reads-1-byte-per-second" => one_byte_a_second().await,
        "deadline-200-ms-left" => {
            let deadline = Deadline::within(millis(1_200));
            advance(secs(1)).await;
            assert_eq!(
                deadline.remaining(),
                millis_of(&vector["expect"], "remaining_ms")
            );
        }
        "deadline-combination-law" => combination_law(),
        "deadline-do-not-send-an-already-expired-deadline" => {
            let parent = Deadline::within(secs(1));
            advance(millis(900)).await;
            let nested = Deadline::within(millis(500)).min(parent);
            assert_eq!(nested.remaining(), millis(100));
        }
        "linger-bounded-lingering" => {
            lingers(
                millis_of(config, "linger_ms"),
                millis_of(config, "linger_idle_ms"),
            )
            .await;
        }
        _ => panic!("{id} is neither run nor decided otherwise"),
    }
}

fn millis_of(config: &Value, name: &str) -> Duration {
    millis(config[name].as_u64().unwrap())
}

fn truncated(vector: &Value) {
    for step in vector["steps"].as_array().unwrap() {
        let mut input = BytesMut::from(&bytes(&step["feed_hex"])[..]);
        let error = LengthDelimited::max_frame(64)
            .decode_eof(&mut input)
            .unwrap_err();
        assert_eq!(Some(class(&error)), expected_class(&step["error"]));
    }
}

async fn accepts_go_on() {
    let (queue, dialler) = Queue::pair();
    let service = service_fn(async |mut conn: Conn<_>| {
        conn.write_all(b"served").await?;
        Ok::<_, BoxError>(())
    });
    let serving = tokio::spawn(
        Server::new(queue)
            .serve(service)
            .into_future(),
    );

    dialler.fail(std::io::Error::from_raw_os_error(24));
    let mut heard = String::new();
    dialler
        .dial(64)
        .read_to_string(&mut heard)
        .await
        .unwrap();

    assert_eq!(heard, "served");
    serving.abort();
}

async fn slow_reader(idle: Duration) {
    let layer = DeadlineLayer::new(Deadlines::none().write_stall(idle)).unwrap();
    let service = ServiceBuilder::new()
        .layer(layer)
        .service_fn(pour);
    let mut peer = Peer::with_room(8, service);

    for pause in [2, 4, 2, 4] {
        sleep(secs(pause)).await;
        peer.take(1).await;
    }
    assert!(!peer.has_ended());
    let start = Instant::now();

    assert!(peer.ended().await.is_err());
    assert_eq!(peer.info.close_reason(), Some(CloseReason::WriteStall));
    assert!(start.elapsed() >= idle && start.elapsed() <= idle + idle / 16);
}

async fn idle(idle: Duration) {
    let mut peer = framed(Deadlines::none().idle(idle), Framing::default());
    peer.send("one\n").await;
    assert_eq!(peer.hear().await, "one");

    sleep(idle * 2).await;

    assert_eq!(peer.info.close_reason(), Some(CloseReason::Idle));
    assert!(
        peer.io
            .write_all(b"two\n")
            .await
            .is_err()
    );
}

async fn dribble(limit: Duration) {
    let start = Instant::now();
    let mut peer = framed(
        Deadlines::none(),
        Framing::default().request_deadline(limit),
    );
    let (mut read, mut write) = peer.split();
    let dribbling = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            sleep(secs(1)).await;
        }
    });

    let closed = read.read(&mut [0; 8]).await.unwrap();

    assert_eq!((closed, start.elapsed()), (0, limit));
    assert_eq!(peer.info.close_reason(), Some(CloseReason::Request));
    dribbling.abort();
}

async fn half_close() {
    let mut peer = framed(Deadlines::none(), Framing::default());
    peer.send("wait 5000 answer\n").await;
    peer.finish().await;

    assert_eq!(peer.rest().await, "answer\n");
}

async fn silence(limit: Duration) {
    let start = Instant::now();
    let mut peer = framed(Deadlines::none().first_byte(limit), Framing::default());

    assert!(peer.ended().await.is_err());
    assert_eq!(
        (peer.info.close_reason(), start.elapsed()),
        (Some(CloseReason::FirstByte), limit)
    );
}

async fn one_byte_a_second() {
    for (deadlines, cut) in [
        (Deadlines::none().write_stall(secs(30)), None),
        (
            Deadlines::none()
                .write_stall(secs(30))
                .min_send_rate(100),
            Some(CloseReason::MinRate),
        ),
    ] {
        let layer = DeadlineLayer::new(deadlines).unwrap();
        let mut peer = Peer::with_room(
            1,
            ServiceBuilder::new()
                .layer(layer)
                .service_fn(pour),
        );

        for _ in 0..120 {
            if peer.has_ended() {
                break;
            }
            peer.take(1).await;
            sleep(secs(1)).await;
        }

        assert_eq!(peer.info.close_reason(), cut);
    }
}

fn combination_law() {
    let now = Instant::now();
    let points = [0, 1, 1_000, 86_400].map(|time| Deadline::at(now + secs(time)));
    for one in points {
        for other in points
            .into_iter()
            .chain([Deadline::NEVER])
        {
            let earlier = one.min(other);
            assert_eq!(earlier, other.min(one));
            assert!(earlier <= one && earlier <= other && (earlier == one || earlier == other));
        }
    }
}

async fn lingers(total: Duration, quiet: Duration) {
    let limits = Linger::default();
    assert_eq!(
        limits,
        limits.total(total).quiet(quiet),
        "the defaults are those"
    );
    let mut sends_on = Script::new();
    for _ in 0..100 {
        sends_on = sends_on.bytes("x").pause(secs(1));
    }
    let falls_silent = Script::new().pause(secs(1)).bytes("x");
    for (io, after) in [(sends_on, total), (falls_silent, secs(1) + quiet)] {
        let start = Instant::now();
        let ended = linger(io, limits).await.unwrap();
        assert_eq!((ended, start.elapsed()), (Lingered::GaveUp, after));
    }
}

async fn pour<I: Io>(mut conn: Conn<I>) -> Result<(), BoxError> {
    conn.write_all(&[0; 5 * 1024]).await?;
    Ok(())
}

fn framed(deadlines: Deadlines, framing: Framing) -> Peer {
    let layer = FrameLayer::with_framing(Delimited::lines(1_000), framing).unwrap();
    Peer::of(
        ServiceBuilder::new()
            .layer(DeadlineLayer::new(deadlines).unwrap())
            .layer(layer)
            .service_fn(obey),
    )
}
