//! The first message of TLS, however it comes: by name, by protocol, and broken.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tower::service_fn;
use tower_layer::Layer;
use tower_net::{
    Conn,
    detect::{Answer, ClientHello, DetectLayer, HelloError, NothingElse, Protocol},
    error::BoxError,
    io::{Io, RewoundIo, prelude::Step},
};

use crate::support::{
    io::{Drip, Script},
    peer::serve,
    random::Random,
};

const VECTORS: &str = include_str!("../vectors/tls_hello.json");

/// What we decide otherwise, and why.
const OTHERWISE: (&str, &str) = (
    "tls-sniff-sni-with-non-ascii-bytes-ideographic-full-stops",
    "its name was made four bytes longer, and the lengths around it were not: extensions whose lengths do not add \
     up are not read, and ask for no name; with the lengths put right it is refused as expected",
);

/// What a hello asks for.
type Asked = (Option<String>, Vec<Vec<u8>>);

fn asked(hello: &ClientHello) -> Asked {
    let name = hello.server_name().map(str::to_owned);
    (
        name,
        hello
            .alpn()
            .map(<[u8]>::to_vec)
            .collect(),
    )
}

/// `None` while there is more to come.
fn read(wire: &[u8]) -> Result<Option<Asked>, HelloError> {
    read_within(wire, 1 << 14)
}

fn read_within(wire: &[u8], limit: usize) -> Result<Option<Asked>, HelloError> {
    match ClientHello::read(wire, limit)? {
        Step::Done(hello, 0) => Ok(Some(asked(&hello))),
        Step::More(more) => {
            assert!(more > 0);
            Ok(None)
        }
        step => panic!("a hello that takes bytes away: {step:?}"),
    }
}

/// What the hello of a connection asks for, if it was read.
async fn detected<I: Io>(io: I) -> Option<Asked> {
    let found = Arc::<Mutex<Option<Asked>>>::default();
    let tells = Arc::clone(&found);
    let service = service_fn(move |conn: Conn<RewoundIo<I>>| {
        let hello = conn
            .info()
            .detected()
            .unwrap()
            .client_hello();
        *tells.lock().unwrap() = hello.map(asked);
        std::future::ready(Ok::<_, BoxError>(()))
    });
    let layer = DetectLayer::new().route(Protocol::client_hello("any", |_| true), service);
    let _refused = serve(io, layer.layer(NothingElse))
        .1
        .await
        .unwrap();
    found.lock().unwrap().take()
}

// === The vectors of others

#[tokio::test(start_paused = true)]
async fn every_vector_is_met_whole_cut_anywhere_and_byte_by_byte() {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap();
    let vectors = vectors["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 10);
    for vector in vectors {
        let (id, expect) = (vector["id"].as_str().unwrap(), &vector["expect"]);
        let wire = wire_of(vector);
        let limit = vector["config"]["max_client_hello"].as_u64();
        let limit = limit.map_or(1 << 14, |limit| limit as usize);

        let result = read_within(&wire, limit);

        match (&expect["error"], &expect["sni"]) {
            _ if id == OTHERWISE.0 => {
                assert_eq!(result, Ok(Some((None, Vec::new()))), "{}", OTHERWISE.1);
                let put_right = for_host("CHAT4\u{3002}LEANCLOUD\u{3002}CN");
                assert_eq!(read(&put_right), Err(HelloError::BadName));
            }
            (Value::String(error), _) => match &**error {
                "not_tls" => assert!(matches!(result, Err(HelloError::NotTls { .. })), "{id}"),
                "frame_too_long (before buffering)" => {
                    assert!(matches!(result, Err(HelloError::TooLong { .. })), "{id}");
                }
                "timeout (handshake)" => times_out(&wire).await,
                other => panic!("{id} expects {other}"),
            },
            (_, Value::String(name)) => {
                assert_eq!(
                    result
                        .clone()
                        .unwrap()
                        .unwrap()
                        .0
                        .as_ref(),
                    Some(name),
                    "{id}"
                );
            }
            // Nothing is said to be asked for: no name, or nothing that is TLS here.
            _ if expect["result"].is_string() => {
                assert!(matches!(result, Err(HelloError::NotTls { .. })), "{id}");
            }
            _ => assert_eq!(result, Ok(Some((None, Vec::new()))), "{id}"),
        }
        comes_to_the_same(&wire, limit, &result);
        if limit == 1 << 14 {
            let whole = result.ok().flatten();
            for at in 1..wire.len() {
                let io = Script::new()
                    .bytes(&wire[..at])
                    .bytes(&wire[at..]);
                assert_eq!(detected(io.end()).await, whole, "{id} cut at {at}");
            }
            let io = Drip::new(Script::new().bytes(&wire).end());
            assert_eq!(detected(io).await, whole, "{id} byte by byte");
        }
    }
}

fn wire_of(vector: &Value) -> Vec<u8> {
    if let Some(hex) = vector["input_hex"].as_str() {
        return bytes_of(hex);
    }
    if let Some(chunks) = vector["chunks_hex"].as_array() {
        let chunks = chunks
            .iter()
            .map(|hex| bytes_of(hex.as_str().unwrap()));
        return chunks.collect::<Vec<_>>().concat();
    }
    match vector["build"].as_str().unwrap() {
        "15 + 1023 x 00" => [&[0x15][..], &[0; 1023][..]].concat(),
        "16 02 00 ... (SSLv2-like)" => [&[0x16, 2, 0][..], &[0; 64][..]].concat(),
        other => panic!("how to build {other}?"),
    }
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A peer that says nothing at all.
async fn times_out(wire: &[u8]) {
    let layer = DetectLayer::new().route(Protocol::tls(), NothingElse);
    let (info, served) = serve(Script::new(), layer.layer(NothingElse));
    assert!(wire.is_empty() && served.await.unwrap().is_err());
    assert_eq!(info.close_reason(), Some(tower_net::CloseReason::FirstByte));
}

/// Fewer bytes either ask for more or say the same already, and smaller records change nothing.
fn comes_to_the_same(wire: &[u8], limit: usize, whole: &Result<Option<Asked>, HelloError>) {
    for end in 0..wire.len() {
        let part = read_within(&wire[..end], limit);
        assert!(part == Ok(None) || part == *whole, "{end} bytes: {part:?}");
    }
    for size in [1, 2, 3, 5, 7] {
        if let Some(split) = in_records_of(size, wire) {
            assert_eq!(read_within(&split, limit), *whole, "in records of {size}");
        }
    }
}

/// The same message in other records; `None` if this is no whole record to begin with.
fn in_records_of(size: usize, wire: &[u8]) -> Option<Vec<u8>> {
    let (mut message, mut rest) = (Vec::new(), wire);
    while let [0x16, 3, _, high, low, body @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        message.extend_from_slice(body.get(..length)?);
        rest = &body[length..];
    }
    let records = message
        .chunks(size)
        .map(|part| [&[0x16, 3, 1, 0, part.len() as u8][..], part].concat());
    (rest.is_empty() && !message.is_empty()).then(|| records.collect::<Vec<_>>().concat())
}

// === Hellos of our own

/// Puts a length of so many bytes in front.
fn sized(width: usize, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = (body.len() as u64).to_be_bytes();
    [&length[8 - width..], body].concat()
}

fn extension(kind: u16, body: impl AsRef<[u8]>) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), sized(2, body)].concat()
}

fn names(names: &[&[u8]]) -> Vec<u8> {
    let names: Vec<_> = names
        .iter()
        .map(|name| [&[0][..], &sized(2, name)].concat())
        .collect();
    extension(0, sized(2, names.concat()))
}

fn alpn(protocols: &[&str]) -> Vec<u8> {
    let protocols: Vec<_> = protocols
        .iter()
        .map(|name| sized(1, name))
        .collect();
    extension(16, sized(2, protocols.concat()))
}

/// A hello with these extensions, in one record.
fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    let body = [
        &[3, 3][..],
        &[7; 32],
        &sized(1, [1; 32]),
        &sized(2, [0x13, 1, 0x13, 2]),
        &sized(1, [0]),
        &sized(2, extensions.concat()),
    ]
    .concat();
    let message = [&[1][..], &sized(3, body)].concat();
    [&[0x16, 3, 1][..], &sized(2, message)].concat()
}

fn for_host(name: &str) -> Vec<u8> {
    hello(&[names(&[name.as_bytes()])])
}

#[test]
fn what_a_client_asks_for_is_read_in_its_order() {
    let wire = hello(&[
        extension(0x1a1a, []),
        alpn(&["h2", "http/1.1"]),
        names(&[b"A.Example.COM."]),
    ]);

    let asked = read(&wire).unwrap().unwrap();

    let protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    assert_eq!(asked, (Some("a.example.com".into()), protocols));
    comes_to_the_same(&wire, 1 << 14, &Ok(Some(asked)));
}

#[test]
fn what_comes_behind_the_hello_is_not_looked_at() {
    let wire = [&for_host("a.example")[..], b"\x17garbage"].concat();

    assert_eq!(
        read(&wire)
            .unwrap()
            .unwrap()
            .0
            .as_deref(),
        Some("a.example")
    );
}

#[test]
fn a_hello_without_extensions_asks_for_nothing() {
    let mut wire = hello(&[]);
    assert_eq!(read(&wire), Ok(Some((None, Vec::new()))));

    // Nor has it the length of none, as TLS 1.2 allows.
    wire.truncate(wire.len() - 2);
    wire[4] -= 2;
    wire[8] -= 2;
    assert_eq!(read(&wire), Ok(Some((None, Vec::new()))));
}

#[test]
fn what_two_readers_might_take_for_two_names_is_refused() {
    let twice = [names(&[b"a.example"]), names(&[b"b.example"])];
    let empty_first = [names(&[]), names(&[b"b.example"])];
    let both = [names(&[b"a.example", b"b.example"])];
    let protocols = [alpn(&["h2"]), alpn(&["h3"])];
    for extensions in [&twice[..], &empty_first, &both, &protocols] {
        let read = read(&hello(extensions));
        assert!(matches!(read, Err(HelloError::Malformed(_))), "{read:?}");
    }
}

#[test]
fn what_is_no_host_name_is_refused() {
    let long = [b'a'; 256];
    for name in [
        &b""[..],
        b".",
        b"a b",
        b"a/b",
        b"a\0b",
        "\u{fc}.example".as_bytes(),
        &long,
    ] {
        assert_eq!(read(&hello(&[names(&[name])])), Err(HelloError::BadName));
    }
    assert!(read(&hello(&[names(&[&long[..255]])])).is_ok());
}

#[test]
fn broken_lists_are_refused() {
    for broken in [
        extension(0, b"\0"),
        extension(0, b"\0\x09\0\0\x09a"),
        extension(16, b""),
        extension(16, b"\0\x01\0"),
        extension(16, b"\0\x03\x05h2"),
        b"\0\x0b\0\x09".to_vec(),
    ] {
        let read = read(&hello(&[broken]));
        assert!(matches!(read, Err(HelloError::Malformed(_))), "{read:?}");
    }
}

#[test]
fn the_limit_is_for_the_message_and_is_kept_before_it_has_come() {
    let wire = for_host("a.example");
    let length = wire.len() - 9;

    assert!(matches!(read_within(&wire, length), Ok(Some(_))));
    for end in 9..=wire.len() {
        let error = read_within(&wire[..end], length - 1).unwrap_err();
        let expected = format!(
            "ClientHello of {length} bytes is over the limit of {}",
            length - 1
        );
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn records_are_checked_as_soon_as_their_header_is_here() {
    let split = in_records_of(4, &for_host("a.example")).unwrap();
    for (at, byte) in [(9, 0x17), (10, 2)] {
        let mut wire = split.clone();
        wire[at] = byte;
        let begun = read(&wire[..=at]);
        assert!(
            matches!(begun, Err(HelloError::NotTls { begun: true, .. })),
            "{begun:?}"
        );
    }
    for length in [[0, 0], [0x40, 1]] {
        let mut wire = for_host("a.example");
        wire[3..5].copy_from_slice(&length);
        let read = read(&wire[..5]);
        assert_eq!(read, Err(HelloError::Malformed("record length")));
    }
    let mut wire = for_host("a.example");
    wire[5] = 2;
    assert_eq!(
        read(&wire[..6]),
        Err(HelloError::Malformed("no ClientHello"))
    );
}

// === By name and by protocol

fn answer(protocol: &Protocol, wire: &[u8]) -> Answer {
    protocol.look(wire)
}

#[test]
fn a_name_is_told_exactly_or_by_one_label_in_front() {
    let sni = Protocol::sni(["One.example", "*.two.example."]).unwrap();
    for (name, is_it) in [
        ("one.example", true),
        ("ONE.EXAMPLE.", true),
        ("a.one.example", false),
        ("one.example.org", false),
        ("a.two.example", true),
        ("A.Two.Example", true),
        ("a.b.two.example", false),
        ("two.example", false),
        (".two.example", false),
        ("atwo.example", false),
    ] {
        let expected = if is_it { Answer::Yes } else { Answer::No };
        assert_eq!(answer(&sni, &for_host(name)), expected, "{name}");
    }
    for none in [
        hello(&[]),
        hello(&[names(&[b"one example"])]),
        b"GET / ".to_vec(),
    ] {
        assert_eq!(answer(&sni, &none), Answer::No);
    }
    assert!(matches!(
        answer(&sni, &for_host("one.example")[..60]),
        Answer::More(_)
    ));
}

#[test]
fn a_protocol_is_told_among_all_that_are_offered() {
    let h2 = Protocol::alpn(["h3", "h2"]).unwrap();

    assert_eq!(
        answer(&h2, &hello(&[alpn(&["http/1.1", "h2"])])),
        Answer::Yes
    );
    for none in [hello(&[alpn(&["http/1.1", "H2", "h"])]), hello(&[])] {
        assert_eq!(answer(&h2, &none), Answer::No);
    }
}

#[test]
fn what_no_client_can_ask_for_is_refused_when_it_is_set() {
    for host in [
        "",
        "*",
        "*.",
        "a..b",
        "a b",
        "*.*.example",
        "a.*.example",
        "b\u{fc}cher.example",
    ] {
        let error = Protocol::sni([host]).unwrap_err();
        assert_eq!(error.setting(), "sni", "{host}");
    }
    assert!(Protocol::sni(["x".repeat(64)]).is_err());
    assert!(Protocol::sni([["x".repeat(63).as_str(); 4].join(".")]).is_err());
    assert!(Protocol::sni::<&str>([]).is_err());
    assert!(Protocol::alpn::<&str>([]).is_err() && Protocol::alpn([""]).is_err());
    assert!(Protocol::alpn([[b'x'; 256]]).is_err() && Protocol::alpn([[b'x'; 255]]).is_ok());
}

// === Whatever comes

/// Bytes that are nearly a hello.
fn mutant(random: &mut Random) -> Vec<u8> {
    let mut wire = match random.below(3) {
        0 => (0..random.among(1, 80))
            .map(|_| random.below(256) as u8)
            .collect(),
        1 => hello(&[names(&[b"a.example"]), alpn(&["h2", "h3"])]),
        _ => in_records_of(random.among(1, 9), &for_host("b.example")).unwrap(),
    };
    for _ in 0..random.below(4) {
        let at = random.among(0, wire.len());
        wire[at] = random.below(256) as u8;
    }
    wire.truncate(random.among(1, wire.len() + 1));
    wire
}

#[test]
fn whatever_comes_is_read_to_one_end_and_never_panics() {
    let mut random = Random::new(2024);
    for _ in 0..3_000 {
        let wire = mutant(&mut random);
        comes_to_the_same_end(&wire);
        for protocol in [Protocol::tls(), Protocol::http1(), Protocol::http2()] {
            let _any = protocol.look(&wire);
        }
    }
}

/// What is certain stays so, whatever comes after it.
fn comes_to_the_same_end(wire: &[u8]) {
    let mut certain = Ok(None);
    for end in 0..=wire.len() {
        let part = read(&wire[..end]);
        assert!(certain == Ok(None) || certain == part, "{end} of {wire:?}");
        certain = part;
    }
}

#[tokio::test]
async fn a_connection_comes_to_what_its_bytes_come_to_however_they_are_cut() {
    let mut random = Random::new(42);
    for _ in 0..2_000 {
        let wire = mutant(&mut random);
        let (mut io, mut rest) = (Script::new(), &wire[..]);
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(random.among(1, rest.len() + 1));
            (io, rest) = (io.bytes(piece), more);
        }

        assert_eq!(
            detected(io.end()).await,
            read(&wire).ok().flatten(),
            "{wire:?}"
        );
    }
}
