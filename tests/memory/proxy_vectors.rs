//! The vectors that others test their PROXY protocol with: each is met, or decided otherwise for a reason.

use std::{io, sync::Arc};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, duplex},
    time::{Instant, sleep},
};
use tower::service_fn;
use tower_layer::Layer;
use tower_net::{
    Addr, CloseReason, Conn, ConnInfo, Handshakes,
    deadline::{DeadlineLayer, Deadlines},
    error::{BoxError, find},
    io::prelude::{self, PreludeError, Step},
    proxy_protocol::{
        Addresses, Command, EncodeError, Header, HeaderError, HeaderRules, Others,
        ProxyConnectLayer, ProxyProtocolLayer, Tlv, TlvClass, Transport, UnixName, Version,
    },
};
use tower_service::Service;

use crate::{
    proxy_protocol::{accept, from, trusting},
    support::{io::Script, service::secs},
    vectors::bytes,
};

const VECTORS: &str = include_str!("../vectors/proxy_protocol.json");

/// What we decide otherwise, and why.
const OTHERWISE: &[(&str, &str)] = &[
    (
        "proxy-policy-tiny-payload-data-passes-through",
        NEVER_OPTIONAL,
    ),
    (
        "proxy-policy-pr-r-n-starts-like-v1-then-diverges",
        NEVER_OPTIONAL,
    ),
    (
        "proxy-policy-r-nox-starts-like-v2-then-like-v1",
        NEVER_OPTIONAL,
    ),
    (
        "proxy-policy-payload-longer-than-the-v2-header",
        NEVER_OPTIONAL,
    ),
    (
        "proxy-v2-header-parsed-from-peek-then-the-draining-read-fails",
        "nothing is peeked at: what was parsed has been read",
    ),
    (
        "proxy-encode-encoder-refuses-73345-in-the-last-group",
        "addresses are typed: the text that makes none never reaches the encoder",
    ),
    (
        "proxy-encode-encoder-refuses-null-path",
        "a name that is null cannot be written here, and an empty one is that of an unnamed socket",
    ),
];

const NEVER_OPTIONAL: &str =
    "a network must send a header or never may: nothing is guessed from the bytes";

#[tokio::test(start_paused = true)]
async fn every_vector_is_met_or_decided_otherwise_for_a_reason() {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    let mut ids = Vec::new();
    for vector in all["vectors"].as_array().unwrap() {
        let id = vector["id"].as_str().unwrap();
        ids.push(id);
        if OTHERWISE
            .iter()
            .any(|(other, _)| *other == id)
        {
            continue;
        }
        let has_input = ["input_hex", "chunks_hex", "build"]
            .iter()
            .any(|form| !vector[form].is_null());
        match vector["area"].as_str().unwrap() {
            "proxy-encode" => encodes(id, vector).await,
            "proxy-policy" => policy(id, vector).await,
            "proxy-udp" => datagram(vector),
            _ if has_input => input(id, vector).await,
            _ => scenario(id, vector).await,
        }
    }

    for (other, _) in OTHERWISE {
        let found = ids.iter().filter(|id| *id == other);
        assert_eq!(found.count(), 1, "{other} is listed, and is not one vector");
    }
}

// === What is read

async fn input(id: &str, vector: &Value) {
    match id {
        "proxy-v2-all-256-family-bytes-under-proxy-and-local" => return families(),
        "proxy-tlv-tlv-pass-through-filters" => return filters(vector),
        "proxy-v2-header-1832-byte-tls-record-already-prefetched"
        | "proxy-v2-same-with-17-kib-in-two-tls-records" => return records(id).await,
        "proxy-tlv-declared-length-65535-with-one-65520-byte-authority-tlv" => {
            let input = whole(vector);
            let (default, _) = outcome(&HeaderRules::default(), &input).await;
            assert_eq!(default, Err("too_long"), "{id}");
            let (header, rest) = outcome(&rules(&vector["config"]), &input).await;
            let header = header.unwrap();
            assert_eq!(header.tlvs().authority(), Some(&*"a".repeat(65_520)));
            assert_eq!(rest, b"DATA");
        }
        _ => {}
    }
    let bytes = whole(vector);
    let expect = expected(vector);
    let rules = rules(&vector["config"]);
    if !expect["need_more"].is_null() {
        assert!(matches!(rules.step(&bytes), Ok(Step::More(_))), "{id}");
        return;
    }

    assert!(
        expect["error"].is_string() || expect["ok"].is_object(),
        "{id}"
    );
    let mut ways = vec![vec![bytes.clone()], one_by_one(&bytes)];
    ways.push(chunks(vector));
    let stride = 1 + bytes.len() / 600;
    for cut in (1..bytes.len()).step_by(stride) {
        ways.push(vec![bytes.slice(..cut), bytes.slice(cut..)]);
    }
    for way in ways {
        let (read, rest) = read(&rules, &way).await;
        match (expect["error"].as_str(), read) {
            (Some(class), Err(error)) => assert_eq!(error, class, "{id}"),
            (None, Ok(header)) => meets(id, &header, &rest, &bytes, &expect["ok"]),
            (_, other) => panic!("{id}: {other:?}"),
        }
    }

    // And once by the layer.
    let layer = trusting().rules(rules);
    let served = accept(layer, script(&one_by_one(&bytes)), "10.0.0.1:1").await;
    match (expect["error"].as_str(), served) {
        (Some(expected), Err(error)) => match find::<HeaderError>(&*error) {
            Some(error) => assert_eq!(class(error), expected, "{id}"),
            None => assert!(bytes.is_empty(), "{id}: {error}"),
        },
        (None, Ok(mut conn)) => {
            let mut rest = Vec::new();
            conn.read_to_end(&mut rest)
                .await
                .unwrap();
            let header = conn.info().proxy().unwrap();
            meets(id, header, &rest, &bytes, &expect["ok"]);
        }
        (_, other) => panic!("{id}: {other:?}"),
    }
}

/// What holds here where projects disagree.
fn expected(vector: &Value) -> &Value {
    let recommend = &vector["recommend"];
    match recommend["error"].is_null() {
        true => &vector["expect"],
        false => recommend,
    }
}

fn rules(config: &Value) -> HeaderRules {
    let mut rules = HeaderRules::default()
        .accept_ipv4_in_tcp6(config["v1_accept_ipv4_in_tcp6"] == true)
        .require_unicast(config["require_unicast"] == true);
    if let Some(most) = config["max_v2_payload"].as_u64() {
        rules = rules.max_v2_payload(most as usize);
    }
    if !config["max_tlv_depth"].is_null() {
        rules = rules.max_v2_payload(65_535);
    }
    rules
}

fn chunks(vector: &Value) -> Vec<Bytes> {
    match vector["chunks_hex"].as_array() {
        Some(chunks) => chunks.iter().map(bytes).collect(),
        None => vec![whole(vector)],
    }
}

fn one_by_one(bytes: &Bytes) -> Vec<Bytes> {
    (0..bytes.len())
        .map(|at| bytes.slice(at..=at))
        .collect()
}

fn whole(vector: &Value) -> Bytes {
    if vector["chunks_hex"].is_array() {
        return chunks(vector).concat().into();
    }
    if vector["input_hex"].is_string() {
        return bytes(&vector["input_hex"]);
    }
    match vector["id"].as_str().unwrap() {
        "proxy-v1-line-padded-with-256-spaces-in-8-byte-writes" => {
            let line = "PROXY TCP4 1.2.3.4 2.3.4.5 100 100".to_owned() + &" ".repeat(256);
            line.into()
        }
        "proxy-tlv-8100-ssl-tlvs-nested-inside-each-other" => {
            let mut payload = b"AAAABBBBCCDD".to_vec();
            for depth in (0..8100_u16).rev() {
                payload.push(Tlv::SSL);
                payload.extend((depth * 8 + 5).to_be_bytes());
                payload.extend(b"\x01VVVV");
            }
            v2(0x21, 0x11, &payload)
        }
        "proxy-tlv-declared-length-65535-with-one-65520-byte-authority-tlv" => {
            let mut payload = bytes(&json!("01020304000101020305000202fff0")).to_vec();
            payload.resize(65_535, b'a');
            [&v2(0x21, 0x11, &payload)[..], b"DATA"]
                .concat()
                .into()
        }
        "proxy-v2-declared-length-4096-accepted-at-the-default-cap" => {
            let mut payload = bytes(&json!("7f0000017f000001fffdfffd040ff1")).to_vec();
            payload.resize(4096, 0);
            v2(0x21, 0x11, &payload)
        }
        id => panic!("{id} is neither built nor decided otherwise"),
    }
}

/// A header of version 2 with this behind its fixed part.
fn v2(command: u8, family: u8, payload: &[u8]) -> Bytes {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, family]);
    header.extend(
        u16::try_from(payload.len())
            .unwrap()
            .to_be_bytes(),
    );
    header.extend(payload);
    header.into()
}

/// Reads a header in these pieces: what is read, and what the stream has behind it.
async fn read(rules: &HeaderRules, pieces: &[Bytes]) -> (Result<Header, &'static str>, Vec<u8>) {
    let reading = prelude::read(script(pieces), rules.longest(), None, |seen| {
        rules.step(seen)
    });
    match reading.await {
        Ok((header, io)) => {
            let (taken, mut io) = io.into_parts();
            assert!(taken.is_empty(), "a byte behind the header was taken");
            let mut rest = Vec::new();
            io.read_to_end(&mut rest).await.unwrap();
            (Ok(header), rest)
        }
        Err(PreludeError::Refused(error)) => (Err(class(&error)), Vec::new()),
        Err(PreludeError::Ended(_)) => (Err("truncated"), Vec::new()),
        Err(other) => panic!("{other}"),
    }
}

/// A stream of these pieces, which then ends.
fn script(pieces: &[Bytes]) -> Script {
    // An empty one would be the end already.
    let pieces = pieces
        .iter()
        .filter(|piece| !piece.is_empty());
    pieces
        .fold(Script::new(), Script::bytes)
        .end()
}

async fn outcome(rules: &HeaderRules, bytes: &Bytes) -> (Result<Header, &'static str>, Vec<u8>) {
    read(rules, std::slice::from_ref(bytes)).await
}

fn class(error: &HeaderError) -> &'static str {
    match error {
        HeaderError::NotProxy => "not_proxy",
        HeaderError::Truncated { .. } => "truncated",
        HeaderError::TooLong { .. } => "too_long",
        HeaderError::BadSyntax(_) => "bad_syntax",
        HeaderError::BadProtocol => "bad_proto",
        HeaderError::BadAddress { .. } => "bad_address",
        HeaderError::BadPort(_) => "bad_port",
        HeaderError::BadVersion(_) => "bad_version",
        HeaderError::BadCommand(_) => "bad_command",
        HeaderError::BadFamily(_) => "bad_family",
        HeaderError::BadLength { .. } => "bad_length",
        HeaderError::BadTlv { .. } => "bad_tlv",
        HeaderError::BadChecksum { .. } => "bad_crc",
        other => panic!("no class for {other}"),
    }
}

/// Compares with whatever a vector says; no vector says all of it.
fn meets(id: &str, header: &Header, rest: &[u8], input: &[u8], ok: &Value) {
    let says = |name: &str, found: Value| {
        if !ok[name].is_null() && ok[name] != "ignored" {
            assert_eq!(ok[name], found, "{id}: {name}");
        }
    };
    says("version", json!(1 + header.version() as u8));
    says(
        "command",
        json!(match header.command() {
            Command::Proxy => "PROXY",
            _ => "LOCAL",
        }),
    );
    says("family", json!(family(header)));
    let end = |addr: Option<Addr>| match addr {
        None => Value::Null,
        Some(Addr::Unix(path)) => json!(path.as_deref()),
        Some(addr) => json!(addr.to_string()),
    };
    assert_eq!(ok["src"], end(header.source()), "{id}");
    if ok["dst"].is_string() {
        assert_eq!(ok["dst"], end(header.destination()), "{id}");
    }
    says("consumed", json!(input.len() - rest.len()));
    if ok["rest_hex"].is_string() {
        assert_eq!(bytes(&ok["rest_hex"]), rest, "{id}");
    }
    if let Some(tlvs) = ok["tlvs"].as_array() {
        let found: Vec<_> = header.tlvs().iter().collect();
        assert_eq!(found.len(), tlvs.len(), "{id}");
        for (tlv, expected) in found.iter().zip(tlvs) {
            assert_eq!(expected["type"], format!("{:#04x}", tlv.kind()), "{id}");
            if expected["value_hex"].is_string() {
                assert_eq!(bytes(&expected["value_hex"]), tlv.value(), "{id}");
            }
            if let Some(length) = expected["length"].as_u64() {
                assert_eq!(length, tlv.value().len() as u64, "{id}");
            }
        }
    }
}

fn family(header: &Header) -> &'static str {
    let is_stream = header.transport() == Transport::Stream;
    match header.addresses() {
        Addresses::Inet4 { .. } if is_stream => "tcp4",
        Addresses::Inet4 { .. } => "udp4",
        Addresses::Inet6 { .. } if is_stream => "tcp6",
        Addresses::Inet6 { .. } => "udp6",
        Addresses::Unix { .. } if is_stream => "unix-stream",
        Addresses::Unix { .. } => "unix-datagram",
        _ => "unspec",
    }
}

fn families() {
    let block = bytes(&json!("7f0000017f000001fffdfffd"));
    for family in 0..=255 {
        let local = Header::parse(&v2(0x20, family, &block))
            .map(|(header, _)| (header.command(), header.source()));
        let wire = v2(0x21, family, &block);
        let proxy = Header::parse(&wire);

        assert_eq!(local, Ok((Command::Local, None)));
        match family {
            0x00 | 0x01 | 0x02 | 0x10 | 0x20 | 0x30 => assert_eq!(proxy.unwrap().0.source(), None),
            0x11 | 0x12 => assert!(proxy.unwrap().0.source().is_some()),
            // Known, and longer than this.
            0x21 | 0x22 | 0x31 | 0x32 => {
                assert_eq!(class(&proxy.unwrap_err()), "bad_length");
            }
            _ => assert_eq!(proxy, Err(HeaderError::BadFamily(family))),
        }
    }
}

fn filters(vector: &Value) {
    let input = whole(vector);
    let (header, _) = Header::parse(&input).unwrap();
    let passed = |include: &dyn Fn(u8) -> bool| -> Vec<String> {
        let kinds = header
            .tlvs()
            .iter()
            .map(|tlv| tlv.kind());
        kinds
            .filter(|kind| include(*kind))
            .map(|kind| format!("{kind:#04x}"))
            .collect()
    };

    let expect = &vector["expect"];
    assert_eq!(json!(passed(&|_| true)), expect["INCLUDE_ALL"]);
    assert_eq!(json!(passed(&|_| false)), expect["INCLUDE {}"]);
    assert_eq!(json!(passed(&|kind| kind == 2)), expect["INCLUDE {0x02}"]);
}

/// TLS behind the header, in one read with it: it reaches the service whole.
async fn records(id: &str) {
    let block = bytes(&json!("0102030405060708303901bb"));
    let behind: Vec<u8> = match id {
        "proxy-v2-same-with-17-kib-in-two-tls-records" => {
            [record(16_384), record(1024 - 10 - 28)].concat()
        }
        _ => record(1832 - 5),
    };
    let wire = [&v2(0x21, 0x11, &block)[..], &behind].concat();

    let served = accept(trusting(), Script::new().bytes(wire).end(), "10.0.0.1:1");
    let mut conn = served.await.unwrap();
    let mut rest = Vec::new();
    conn.read_to_end(&mut rest)
        .await
        .unwrap();

    assert_eq!(conn.info().peer().to_string(), "1.2.3.4:12345");
    assert!(rest == behind && rest[0] == 0x16, "{id}");
}

fn record(length: usize) -> Vec<u8> {
    let mut record = vec![0x16, 3, 1];
    record.extend(
        u16::try_from(length)
            .unwrap()
            .to_be_bytes(),
    );
    record.resize(5 + length, 0xaa);
    record
}

fn datagram(vector: &Value) {
    let (id, input) = (vector["id"].as_str().unwrap(), whole(vector));
    let parsed = Header::parse(&input).map_err(|error| class(&error));
    match (vector["expect"]["error"].as_str(), parsed) {
        (None, Ok((header, rest))) => meets(id, &header, rest, &input, &vector["expect"]["ok"]),
        (error, parsed) => assert_eq!(parsed.err(), error, "{id}"),
    }
}

// === What is written

async fn encodes(id: &str, vector: &Value) {
    let config = &vector["config"];
    match id {
        "proxy-encode-names-longer-than-108-bytes" => {
            let error = UnixName::new([b'a'; 113]).unwrap_err();
            assert_eq!(error, EncodeError::BadUnixName { length: 113 });
        }
        "proxy-encode-encoder-refuses-109-x-a" => {
            assert!(UnixName::new([b'a'; 109]).is_err());
            assert!(UnixName::new([b'a'; 108]).is_ok());
        }
        "proxy-encode-tlv-area-of-65536-bytes" => too_long(),
        "proxy-encode-proxy-writes-v1-with-the-real-client-port-and-its-own-listen-address" => {
            forwards().await;
        }
        _ => {
            let version = match config["version"].as_u64() {
                Some(1) => Version::V1,
                _ => Version::V2,
            };
            let addr = |name: &str, default: &str| {
                let text = config[name].as_str().unwrap_or(default);
                text.parse().unwrap()
            };
            let mut header = if config["command"] == "LOCAL" {
                Header::local(version)
            } else {
                let source = addr("src", "192.168.0.1:56324");
                let destination = match config["src"].is_null() || config["dst"].is_string() {
                    true => addr("dst", "192.168.0.11:443"),
                    false => source,
                };
                Header::tcp(version, source, destination).unwrap()
            };
            for tlv in config["tlvs"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let kind = kind(tlv[0].as_str().unwrap());
                header = header
                    .tlv(kind, tlv[1].as_str().unwrap())
                    .unwrap();
            }
            let expect = &vector["expect"];
            let expected = match expect["output"].as_str() {
                Some(text) => text.replace("\\r\\n", "\r\n").into(),
                None => bytes(&expect["output_hex"]),
            };
            assert_eq!(header.encode().unwrap(), expected, "{id}");
        }
    }
}

fn kind(hex: &str) -> u8 {
    u8::from_str_radix(&hex[2..], 16).unwrap()
}

fn too_long() {
    let name = || UnixName::new("/a").unwrap();
    let inet = |ip: &str| Addresses::inet(ip.parse().unwrap(), ip.parse().unwrap()).unwrap();
    for (addresses, length) in [
        (inet("1.2.3.4:1"), 12),
        (inet("[::1]:1"), 36),
        (Addresses::unix(name(), name()), 216),
    ] {
        let header = Header::new(Version::V2, addresses);
        let full = |length: usize| {
            header
                .clone()
                .tlv(0xe0, vec![0; length - 3])
        };
        let fits = full(65_535 - length).unwrap().encode();
        let over = full(65_536 - length).unwrap().encode();

        assert_eq!(fits.unwrap().len(), 16 + 65_535);
        assert_eq!(over, Err(EncodeError::TooLong { length: 65_536 }));
    }
    let area = Header::new(Version::V2, inet("1.2.3.4:1")).tlv(0xe0, vec![0; 65_536]);
    assert!(matches!(area, Err(EncodeError::BadTlv { kind: 0xe0, .. })));
}

async fn forwards() {
    let client = ConnInfo::new(
        Addr::Tcp("127.0.0.1:54321".parse().unwrap()),
        Addr::Tcp("127.0.0.1:8080".parse().unwrap()),
    );
    let client = Arc::new(client);
    let (near, mut far) = duplex(128);
    let mut near = Some(near);
    let connector = service_fn(move |_: Arc<ConnInfo>| {
        let near = near.take().unwrap();
        async move { Ok::<_, io::Error>(Conn::new(near, ())) }
    });
    let layer = ProxyConnectLayer::new(|client: &Arc<ConnInfo>, _| {
        Ok::<_, io::Error>(Header::announcing(Version::V1, client))
    });

    drop(
        layer
            .layer(connector)
            .call(client)
            .await
            .unwrap(),
    );
    let mut sent = String::new();
    far.read_to_string(&mut sent)
        .await
        .unwrap();

    assert_eq!(sent, "PROXY TCP4 127.0.0.1 127.0.0.1 54321 8080\r\n");
}

// === Scenarios

async fn scenario(id: &str, vector: &Value) {
    match id {
        "proxy-v1-incomplete-line-then-silence" => silence().await,
        "proxy-detect-protocol-sniffing" => sniffing(),
        "proxy-tlv-client-bit-field" => client_bits(),
        "proxy-tlv-type-classification" => classes(&vector["expect"]),
        "proxy-tlv-sender-side-custom-tlvs" => custom_tlvs(),
        "proxy-v2-recv-fails-on-the-first-read" => fails_after(0).await,
        "proxy-v2-recv-fails-while-tlvs-are-pending" => fails_after(30).await,
        "proxy-v2-recv-fails-after-fixed-part-1" => fails_after(17).await,
        _ => panic!("{id} is neither run nor decided otherwise"),
    }
}

async fn silence() {
    let start = Instant::now();
    let line = Script::new().bytes("PROXY TCP4 1.2.3.4 5.6.7.8 1 2");
    let silent = accept(trusting(), line, "10.0.0.1:1").await;
    let waited = start.elapsed();
    let long = Script::new().bytes("PROXY TCP4 1.2.3.4 5.6.7.8 1 2".repeat(350));
    let long = accept(trusting(), long, "10.0.0.1:1").await;

    let error = silent.unwrap_err();
    let elapsed = find::<tower_net::deadline::Elapsed>(&*error).unwrap();
    assert_eq!(
        (elapsed.which(), waited),
        (CloseReason::ProxyTimeout, secs(10))
    );
    let error = long.unwrap_err();
    assert_eq!(class(find(&*error).unwrap()), "too_long");
}

fn sniffing() {
    let rules = HeaderRules::default();
    let line = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n";
    let binary = v2(0x20, 0, b"");

    assert_eq!(Header::parse(line).unwrap().0.version(), Version::V1);
    assert_eq!(
        Header::parse(&binary)
            .unwrap()
            .0
            .version(),
        Version::V2
    );
    assert!(matches!(
        rules.step(b"Invalid header"),
        Err(HeaderError::NotProxy)
    ));
    for beginning in [&line[..4], &binary[..4]] {
        assert!(matches!(rules.step(beginning), Ok(Step::More(_))));
    }
}

fn client_bits() {
    let source = "1.2.3.4:1".parse().unwrap();
    for (client, expected) in [(7, [true; 3]), (5, [true, false, true]), (0, [false; 3])] {
        let header = Header::tcp(Version::V2, source, source).unwrap();
        let header = header
            .tlv(Tlv::SSL, [client, 0, 0, 0, 0])
            .unwrap();
        let ssl = header.tlvs().ssl().unwrap();

        let found = [
            ssl.is_tls(),
            ssl.has_certificate(),
            ssl.has_session_certificate(),
        ];
        assert_eq!(found, expected);
    }
}

fn classes(expect: &Value) {
    let of = |name: &str| match name {
        "registered" => TlvClass::Registered,
        "app" => TlvClass::Application,
        "experiment" => TlvClass::Experiment,
        "future" => TlvClass::Future,
        _ => TlvClass::Unassigned,
    };
    let mut listed = 0;
    for (name, kinds) in expect.as_object().unwrap() {
        let parse = |hex: &str| u8::from_str_radix(hex, 16).unwrap();
        let kinds: Vec<u8> = match kinds
            .as_str()
            .and_then(|range| range.split_once('-'))
        {
            Some((first, last)) => (parse(first)..=parse(last)).collect(),
            None => kinds
                .as_array()
                .unwrap()
                .iter()
                .map(|kind| parse(kind.as_str().unwrap()))
                .collect(),
        };
        for kind in kinds {
            listed += 1;
            assert_eq!(TlvClass::of(kind), of(name), "{kind:#04x}");
        }
    }
    assert_eq!(listed, 15 + 16 + 8 + 8 + 4);
}

fn custom_tlvs() {
    let source = "1.2.3.4:1".parse().unwrap();
    let header = Header::tcp(Version::V2, source, source).unwrap();
    let header = header.tlv(0xe1, "foo").unwrap();
    let wire = header
        .tlv(0xe2, "")
        .unwrap()
        .encode()
        .unwrap();

    let (header, _) = Header::parse(&wire).unwrap();
    assert_eq!(header.tlvs().get(0xe1), Some(&b"foo"[..]));
    assert_eq!(header.tlvs().get(0xe2), Some(&b""[..]));
}

async fn fails_after(length: usize) {
    let header = v2(0x21, 0x11, &[0; 12 + 9]);
    let script = match length {
        0 => Script::new(),
        _ => Script::new().bytes(&header[..length]),
    };
    let script = script.fail(io::ErrorKind::ConnectionReset);
    let conn = from(script, "10.0.0.1:1");
    let info = Arc::clone(conn.info());
    let mut service = trusting().layer(service_fn(async |conn: Conn<Script>| {
        Ok::<_, BoxError>(conn)
    }));

    let error = service.call(conn).await.unwrap_err();

    let failed = find::<io::Error>(&*error).unwrap();
    assert_eq!(failed.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(info.close_reason(), Some(CloseReason::Reset));
}

// === Who is believed

async fn policy(id: &str, vector: &Value) {
    let expect = &vector["expect"];
    match id {
        "proxy-policy-header-honoured-only-from-trusted-cidrs" => trusted_cidrs().await,
        "proxy-policy-deadline-set-for-the-header-is-cleared-after-it" => cleared().await,
        "proxy-policy-an-earlier-deadline-set-by-the-application-wins" => earlier().await,
        "proxy-policy-concurrent-accepts" => side_by_side().await,
        "proxy-policy-local" => {
            let local = Script::new().bytes(v2(0x20, 0x11, &[7; 12]));
            let conn = accept(trusting(), local, "10.0.0.1:1");
            assert_eq!(
                conn.await
                    .unwrap()
                    .info()
                    .peer()
                    .to_string(),
                "10.0.0.1:1"
            );
        }
        _ => {
            let (layer, peer) = match vector["config"]["policy"]
                .as_str()
                .unwrap()
            {
                "require" => (trusting(), "10.0.0.1:1"),
                "ignore" => (trusting().others(Others::IgnoreHeader), "192.0.2.9:9"),
                "reject" | "skip" => (trusting().others(Others::Direct), "192.0.2.9:9"),
                policy => panic!("{id}: no policy {policy}"),
            };
            let script = Script::new().bytes(whole(vector)).end();
            match accept(layer, script, peer).await {
                Ok(mut conn) => {
                    let mut rest = Vec::new();
                    conn.read_to_end(&mut rest)
                        .await
                        .unwrap();
                    let announced = expect["ok"]["src"].as_str();
                    let rest_hex = match announced {
                        Some(_) => &expect["ok"]["rest_hex"],
                        None => &expect["rest_hex"],
                    };
                    assert_eq!(bytes(rest_hex), rest, "{id}");
                    let peer = announced.unwrap_or(peer);
                    assert_eq!(conn.info().peer().to_string(), peer, "{id}");
                }
                Err(error) => {
                    let class = class(find(&*error).unwrap());
                    assert_eq!(expect["error"], class, "{id}");
                }
            }
        }
    }
}

async fn trusted_cidrs() {
    let line = "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nping";
    for (others, peer, rest) in [
        (Others::Refuse, None, ""),
        (Others::Direct, Some("11.0.0.1:1"), line),
        (Others::IgnoreHeader, Some("11.0.0.1:1"), "ping"),
    ] {
        for (wire_peer, peer, rest) in [
            ("10.9.9.9:1", Some("1.2.3.4:1"), "ping"),
            ("11.0.0.1:1", peer, rest),
        ] {
            let script = Script::new().bytes(line).end();
            let conn = accept(trusting().others(others), script, wire_peer).await;
            let conn = conn.ok();

            let found = conn
                .as_ref()
                .map(|conn| conn.info().peer().to_string());
            assert_eq!(found.as_deref(), peer);
            if let Some(mut conn) = conn {
                let mut read = String::new();
                conn.read_to_string(&mut read)
                    .await
                    .unwrap();
                assert_eq!(read, rest);
            }
        }
    }
}

fn short() -> ProxyProtocolLayer {
    trusting().handshakes(Handshakes::new(8, secs(1)).unwrap())
}

async fn cleared() {
    let script = Script::new()
        .bytes("PROXY UNKNOWN\r\n")
        .pause(secs(3600))
        .bytes("late");
    let mut conn = accept(short(), script, "10.0.0.1:1")
        .await
        .unwrap();

    let mut late = [0; 4];
    conn.read_exact(&mut late)
        .await
        .unwrap();

    assert_eq!(&late, b"late");
}

async fn earlier() {
    let above = DeadlineLayer::new(Deadlines::none().first_byte(secs(1))).unwrap();
    let inner = service_fn(async |_: Conn<_>| Ok::<_, BoxError>(()));
    let mut service = above.layer(trusting().layer(inner));
    let start = Instant::now();

    let ended = service
        .call(from(Script::new(), "10.0.0.1:1"))
        .await;

    assert!(ended.is_err());
    assert_eq!(start.elapsed(), secs(1));
}

async fn side_by_side() {
    let start = Instant::now();
    let layer = short();
    let first = accept(layer.clone(), Script::new(), "10.0.0.1:1");
    let second = async {
        sleep(secs(30)).await;
        let ended = accept(layer, Script::new(), "10.0.0.1:2").await;
        (ended.is_err(), start.elapsed())
    };

    let ((first, at), second) =
        tokio::join!(async { (first.await.is_err(), start.elapsed()) }, second);

    assert_eq!((first, at), (true, secs(1)));
    assert_eq!(second, (true, secs(31)));
}
