//! Headers as bytes: what is encoded is parsed, and what is no header is never more than refused.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use tokio::io::AsyncReadExt;
use tower_net::{
    Addr, ConnInfo,
    io::prelude::{self, Step},
    proxy_protocol::{
        Addresses, Command, EncodeError, End, Header, HeaderError, HeaderRules, Tlv, Transport,
        UnixName, Version,
    },
};

use crate::support::{io::Script, random::Random};

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// For a client at 192.0.2.7:4711.
fn tcp() -> Header {
    Header::tcp(Version::V2, addr("192.0.2.7:4711"), addr("192.0.2.1:443")).unwrap()
}

fn read_again(header: &Header) -> Header {
    let wire = header.encode().unwrap();
    let (read, rest) = Header::parse(&wire).unwrap();
    assert!(rest.is_empty());
    read
}

// === By chance

fn some_ip(random: &mut Random, v6: bool) -> SocketAddr {
    let port = random.below(65_536) as u16;
    if !v6 {
        let bits = random.below(1 << 32) as u32;
        return (Ipv4Addr::from(bits), port).into();
    }
    let bits = match random.below(4) {
        0 => 1,
        1 => 0xffff_0000_0000 | u128::from(random.below(1 << 32)),
        _ => u128::from(random.below(u64::MAX)) << 64 | u128::from(random.below(u64::MAX)),
    };
    (Ipv6Addr::from(bits), port).into()
}

fn some_name(random: &mut Random) -> UnixName {
    let length = random.among(0, 109);
    let mut name: Vec<u8> = (0..length)
        .map(|_| random.among(1, 256) as u8)
        .collect();
    // An abstract one.
    if let (Some(first), 0) = (name.first_mut(), random.below(4)) {
        *first = 0;
    }
    UnixName::new(name).unwrap()
}

fn some_header(random: &mut Random) -> Header {
    let version = random.pick(&[Version::V1, Version::V2, Version::V2]);
    let v6 = random.below(2) == 0;
    let inet = Addresses::inet(some_ip(random, v6), some_ip(random, v6)).unwrap();
    if version == Version::V1 {
        return random
            .pick(&[None, Some(())])
            .map_or_else(|| Header::local(version), |()| Header::new(version, inet));
    }
    let addresses = match random.below(5) {
        0 => return Header::local(version),
        1 => return Header::new(version, Addresses::Unspecified),
        2 => Addresses::unix(some_name(random), some_name(random)),
        _ => inet,
    };
    let mut header = Header::new(version, addresses);
    if random.below(3) == 0 {
        header = header.datagram();
    }
    for _ in 0..random.below(5) {
        let length = random.among(0, 128);
        let kind = random.pick(&[
            Tlv::ALPN,
            Tlv::AUTHORITY,
            Tlv::NOOP,
            Tlv::UNIQUE_ID,
            0xe7,
            0,
        ]);
        header = header
            .tlv(kind, "x".repeat(length))
            .unwrap();
    }
    if random.below(2) == 0 {
        header = header.crc32c();
    }
    header
}

#[test]
fn what_is_encoded_is_parsed_as_it_was() {
    for seed in 0..5_000 {
        let header = some_header(&mut Random::new(seed));

        let read = read_again(&header);

        assert_eq!(read.addresses(), header.addresses(), "{seed}");
        assert_eq!(read.version(), header.version(), "{seed}");
        assert_eq!(read.command(), header.command(), "{seed}");
        assert_eq!(read.transport(), header.transport(), "{seed}");
        let mut tlvs = read.tlvs().iter().zip(header.tlvs());
        assert!(tlvs.all(|(read, sent)| { read.kind() == Tlv::CRC32C || read == sent }));
        // What was read is written as it came, its checksum included.
        assert_eq!(read.encode(), header.encode(), "{seed}");
    }
}

#[tokio::test]
async fn no_byte_behind_a_header_is_taken_however_it_is_split() {
    for seed in 0..1_000 {
        let random = &mut Random::new(seed);
        let wire = some_header(random).encode().unwrap();
        let behind = "behind "
            .repeat(random.among(1, 40))
            .into_bytes();
        let mut left = &[&wire[..], &behind].concat()[..];
        let mut io = Script::new();
        while !left.is_empty() {
            let most = random.pick(&[1, 3, 20, 400]);
            let (piece, rest) = left.split_at(
                left.len()
                    .min(random.among(1, most + 1)),
            );
            io = io.bytes(piece);
            left = rest;
        }

        let rules = HeaderRules::default();
        let reading = prelude::read(io.end(), rules.longest(), None, |seen| rules.step(seen));
        let (taken, mut io) = reading.await.unwrap().1.into_parts();
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.unwrap();

        assert!(taken.is_empty(), "{seed}");
        assert!(rest == behind, "{seed}");
    }
}

#[test]
fn bytes_by_chance_are_refused_and_the_verdict_does_not_depend_on_their_split() {
    let beginnings = [
        &b""[..],
        b"PROXY ",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2",
        b"PROXY TCP6 ::1 ::2 ",
        b"PROXY UNKNOWN",
        b"\r\n\r\n\0\r\nQUIT\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x20",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x31\0\xe0",
    ];
    let rules = HeaderRules::default().reject_duplicate_tlvs(true);
    for seed in 0..20_000 {
        let random = &mut Random::new(seed);
        let mut bytes = random.pick(&beginnings).to_vec();
        for _ in 0..random.among(0, 300) {
            let any = random.below(256) as u8;
            bytes.push(random.pick(&[any, any, b' ', b'.', b'0', b'\r', b'\n', 0, 3]));
        }

        let whole = verdict(&rules, &bytes);
        let mut piecewise = None;
        for end in 0..=bytes.len() {
            piecewise = verdict(&rules, &bytes[..end]);
            if piecewise.is_some() {
                break;
            }
        }

        assert_eq!(whole, piecewise, "{seed}: {}", bytes.escape_ascii());
    }
}

/// `None` while there is not enough.
fn verdict(rules: &HeaderRules, seen: &[u8]) -> Option<Result<(Header, usize), HeaderError>> {
    match rules.step(seen) {
        Ok(Step::More(more)) => {
            assert!(more > 0 && seen.len() + more <= rules.longest());
            None
        }
        Ok(Step::Done(header, length)) => Some(Ok((header, length))),
        Ok(_) => unreachable!("no other step"),
        Err(error) => Some(Err(error)),
    }
}

// === Lines

#[test]
fn a_line_takes_few_reads_though_no_byte_behind_it_is_read() {
    let line = "PROXY TCP4 203.0.113.195 198.51.100.178 51234 443\r\n";
    let long = "PROXY TCP6 2001:db8:85a3:8d3:1319:8a2e:370:7348 2001:db8::1 51234 443\r\n";
    let rules = HeaderRules::default();
    for (line, most) in [(line, 8), (long, 12), ("PROXY UNKNOWN\r\n", 1)] {
        let (mut have, mut reads) = (0, 0);
        while let Step::More(more) = rules
            .step(&line.as_bytes()[..have])
            .unwrap()
        {
            have += more;
            reads += 1;
        }

        assert_eq!(have, line.len());
        assert!(reads <= most, "{reads}");
    }
}

#[test]
fn a_binary_header_takes_three_reads_and_two_without_tlvs() {
    let rules = HeaderRules::default();
    for (header, expected) in [(tcp(), 2), (tcp().crc32c(), 3)] {
        let wire = header.encode().unwrap();
        let (mut have, mut reads) = (0, 0);
        while let Step::More(more) = rules.step(&wire[..have]).unwrap() {
            have += more;
            reads += 1;
        }

        assert_eq!((have, reads), (wire.len(), expected));
    }
}

#[test]
fn a_line_is_refused_as_soon_as_it_is_certain_to_be_wrong() {
    for (beginning, expected) in [
        ("G", HeaderError::NotProxy),
        ("PROXYT", HeaderError::NotProxy),
        ("PROXY X", HeaderError::BadProtocol),
        ("PROXY TCP5", HeaderError::BadProtocol),
        ("PROXY tcp4", HeaderError::BadProtocol),
        ("PROXY TCP4 1\n", HeaderError::BadSyntax("LF without CR")),
        ("PROXY UNKNOWN\n", HeaderError::BadSyntax("LF without CR")),
        (
            "PROXY UNKNOWN x\rx",
            HeaderError::BadSyntax("CR without LF"),
        ),
    ] {
        let rules = HeaderRules::default();
        assert_eq!(
            rules
                .step(beginning.as_bytes())
                .unwrap_err(),
            expected,
            "{beginning}"
        );
    }
}

#[test]
fn fields_are_four_and_a_space_is_one() {
    for line in [
        "PROXY TCP4\r\n",
        "PROXY TCP4 \r\n",
        "PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
    ] {
        let error = Header::parse(line.as_bytes()).unwrap_err();
        assert!(matches!(error, HeaderError::BadSyntax(_)), "{line}");
    }
}

#[test]
fn which_end_is_wrong_is_said() {
    let parse = |line: &str| Header::parse(line.as_bytes()).unwrap_err();

    let address = parse("PROXY TCP6 ::1 ::1%lo 1 2\r\n");
    let port = parse("PROXY TCP6 ::1 ::1 00 2\r\n");

    let problem = "is no IPv6 address";
    let end = End::Destination;
    assert_eq!(address, HeaderError::BadAddress { end, problem });
    assert_eq!(port, HeaderError::BadPort(End::Source));
}

// === TLVs

#[test]
fn clouds_say_where_a_client_came_through() {
    let header = tcp()
        .tlv(Tlv::AWS, b"\x01vpce-08d2bf15fac5001c9")
        .unwrap()
        .tlv(Tlv::GCP, 0x1122_3344_5566_7788_u64.to_be_bytes())
        .unwrap()
        .tlv(Tlv::AZURE, b"\x01\x78\x56\x34\x12")
        .unwrap();

    let read = read_again(&header);

    let tlvs = read.tlvs();
    assert_eq!(tlvs.aws_vpc_endpoint_id(), Some("vpce-08d2bf15fac5001c9"));
    assert_eq!(tlvs.gcp_psc_connection_id(), Some(0x1122_3344_5566_7788));
    assert_eq!(tlvs.azure_private_endpoint_link_id(), Some(0x1234_5678));
}

#[test]
fn an_application_that_uses_a_clouds_type_for_itself_is_not_misread() {
    let header = tcp()
        .tlv(Tlv::AWS, b"\x02x")
        .unwrap()
        .tlv(Tlv::GCP, b"short")
        .unwrap()
        .tlv(Tlv::AZURE, b"\x01\0\0\0\0\0")
        .unwrap();

    let read = read_again(&header);

    let tlvs = read.tlvs();
    assert_eq!(tlvs.aws_vpc_endpoint_id(), None);
    assert_eq!(tlvs.gcp_psc_connection_id(), None);
    assert_eq!(tlvs.azure_private_endpoint_link_id(), None);
    assert_eq!(tlvs.get(Tlv::GCP), Some(&b"short"[..]));
}

#[test]
fn what_a_proxy_knows_of_tls_is_read() {
    let mut ssl = b"\x07\0\0\0\0".to_vec();
    for (kind, value) in [
        (Tlv::SSL_VERSION, &b"TLSv1.3"[..]),
        (Tlv::SSL_CN, b"J\xf6rg"),
        (Tlv::SSL_CIPHER, b"TLS_AES_256_GCM_SHA384"),
        (Tlv::SSL_SIG_ALG, b"RSA-SHA256"),
        (Tlv::SSL_KEY_ALG, b"RSA2048"),
        (Tlv::SSL_GROUP, b"X25519"),
        (Tlv::SSL_SIG_SCHEME, b"rsa_pss_rsae_sha256"),
        (Tlv::SSL_CLIENT_CERT, b"\x30\x82"),
    ] {
        ssl.extend([kind, 0, value.len() as u8]);
        ssl.extend(value);
    }

    let read = read_again(&tcp().tlv(Tlv::SSL, ssl).unwrap());

    let ssl = read.tlvs().ssl().unwrap();
    assert!(ssl.is_tls() && ssl.has_certificate() && ssl.is_verified());
    assert_eq!(ssl.version(), Some("TLSv1.3"));
    assert_eq!(ssl.common_name(), Some(&b"J\xf6rg"[..]));
    assert_eq!(ssl.cipher(), Some("TLS_AES_256_GCM_SHA384"));
    assert_eq!(ssl.signature_algorithm(), Some("RSA-SHA256"));
    assert_eq!(ssl.key_algorithm(), Some("RSA2048"));
    assert_eq!(ssl.group(), Some("X25519"));
    assert_eq!(ssl.signature_scheme(), Some("rsa_pss_rsae_sha256"));
    assert_eq!(ssl.client_certificate(), Some(&b"\x30\x82"[..]));
    assert_eq!(ssl.iter().count(), 8);
}

#[test]
fn a_client_without_a_certificate_is_not_verified_whatever_the_field_says() {
    let header = tcp()
        .tlv(Tlv::SSL, b"\x01\0\0\0\0")
        .unwrap();

    let ssl = header.tlvs().ssl().unwrap();

    assert_eq!((ssl.verify(), ssl.is_verified()), (0, false));
}

#[test]
fn of_two_tlvs_the_first_counts_and_both_are_there_unless_two_are_refused() {
    let header = tcp().authority("first").unwrap();
    let header = header
        .authority("second")
        .unwrap()
        .tlv(Tlv::NOOP, "")
        .unwrap()
        .tlv(Tlv::NOOP, "")
        .unwrap();
    let wire = header.encode().unwrap();

    let (read, _) = Header::parse(&wire).unwrap();
    let strict = HeaderRules::default().reject_duplicate_tlvs(true);

    assert_eq!(read.tlvs().authority(), Some("first"));
    assert_eq!(read.tlvs().iter().count(), 4);
    let problem = "is there twice";
    let kind = Tlv::AUTHORITY;
    assert_eq!(
        strict.parse(&wire).unwrap_err(),
        HeaderError::BadTlv { kind, problem }
    );
}

#[test]
fn two_checksums_are_refused_since_each_would_be_in_the_sum_of_the_other() {
    let mut wire = tcp().crc32c().encode().unwrap();
    wire.extend_from_slice(&[Tlv::CRC32C, 0, 4, 1, 2, 3, 4]);
    wire[15] += 7;

    let error = Header::parse(&wire).unwrap_err();

    assert!(matches!(error, HeaderError::BadTlv { kind: 3, .. }));
}

#[test]
fn every_bit_of_a_header_that_has_a_checksum_is_in_it() {
    let header = tcp().authority("example.com").unwrap();
    let wire = header.crc32c().encode().unwrap();
    for bit in 0..wire.len() * 8 {
        let mut flipped = wire.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);

        // What is left to one bit: to be the proxy's own, of which all else is skipped, or to have no checksum.
        if let Ok((header, _)) = Header::parse(&flipped) {
            assert_eq!(header.tlvs().crc32c(), None, "{bit}");
        }
    }
}

#[test]
fn a_header_that_was_read_keeps_its_checksum_right_when_it_is_changed_and_sent_on() {
    let read = read_again(&tcp().crc32c());

    let sent_on = read.authority("example.com").unwrap();

    assert!(
        read_again(&sent_on)
            .tlvs()
            .crc32c()
            .is_some()
    );
}

#[test]
fn text_that_is_none_is_refused_and_not_taken_for_absent() {
    let authority = tcp().tlv(0xe7, b"\xff\xfe").unwrap();
    let mut wire = authority.encode().unwrap();
    wire[16 + 12] = Tlv::AUTHORITY;

    let error = Header::parse(&wire).unwrap_err();

    let (kind, problem) = (Tlv::AUTHORITY, "is no UTF-8");
    assert_eq!(error, HeaderError::BadTlv { kind, problem });
    assert!(
        tcp()
            .tlv(Tlv::AUTHORITY, b"\xff")
            .is_err()
    );
}

#[test]
fn debug_shows_no_values() {
    let header = tcp().unique_id("secret").unwrap();

    let text = format!("{header:?}");

    assert!(text.contains("\"0x05\": 6"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

// === Names of Unix sockets

#[test]
fn a_path_ends_at_its_zero_byte_and_an_abstract_name_begins_with_one() {
    let path = UnixName::from_path(Path::new("/run/app.sock")).unwrap();
    let hidden = UnixName::new(b"\0hidden").unwrap();
    let header = Header::new(Version::V2, Addresses::unix(hidden.clone(), path.clone()));

    let read = read_again(&header);

    assert_eq!(
        read.addresses(),
        &Addresses::unix(hidden.clone(), path.clone())
    );
    assert_eq!(path.path(), Some(Path::new("/run/app.sock")));
    assert_eq!((hidden.path(), hidden.as_bytes()), (None, &b"\0hidden"[..]));
    assert_eq!(read.source(), Some(Addr::Unix(None)));
    assert!(UnixName::new("a\0b").is_err());
}

// === What cannot be written

#[test]
fn what_has_no_form_is_an_error_and_no_bytes() {
    let v4 = addr("1.2.3.4:1");
    let v6 = addr("[::1]:1");
    assert_eq!(
        Header::tcp(Version::V2, v4, v6).unwrap_err(),
        EncodeError::MixedFamilies
    );
    let v1 = || Header::tcp(Version::V1, v4, v4).unwrap();
    let unix = Addresses::unix(UnixName::default(), UnixName::default());
    for (header, what) in [
        (v1().authority("a").unwrap(), "TLVs"),
        (v1().crc32c(), "TLVs"),
        (v1().datagram(), "datagrams"),
        (Header::new(Version::V1, unix), "Unix sockets"),
    ] {
        assert_eq!(header.encode(), Err(EncodeError::NotInVersion1(what)));
    }
    let local = Header::local(Version::V2).crc32c();
    assert!(matches!(
        local.encode(),
        Err(EncodeError::BadTlv { kind: 3, .. })
    ));
    for (kind, value) in [
        (Tlv::UNIQUE_ID, &[0; 129][..]),
        (Tlv::CRC32C, b"123"),
        (Tlv::SSL, b"1234"),
    ] {
        assert!(tcp().tlv(kind, value).is_err(), "{kind}");
    }
}

// === Passing on what is known

#[test]
fn a_client_is_announced_with_whom_it_reached() {
    let client = ConnInfo::new(
        Addr::Tcp(addr("192.0.2.7:4711")),
        Addr::Tcp(addr("192.0.2.1:443")),
    );

    let header = Header::announcing(Version::V2, &client);

    assert_eq!(header, tcp());
}

#[test]
fn a_client_that_cannot_be_named_is_not_misnamed() {
    let local = Addr::Tcp(addr("192.0.2.1:443"));
    for client in [Addr::Unnamed, Addr::Tcp(addr("[::1]:1"))] {
        let client = ConnInfo::new(client, local.clone());
        let header = Header::announcing(Version::V2, &client);
        assert_eq!(header.command(), Command::Local);
    }

    let path = Addr::Unix(Some(Path::new("/run/app.sock").into()));
    let unix = ConnInfo::new(Addr::Unix(None), path.clone());
    let header = Header::announcing(Version::V2, &unix);
    assert_eq!(header.destination(), Some(path));
    assert_eq!(header.transport(), Transport::Stream);
    assert_eq!(
        Header::announcing(Version::V1, &unix).command(),
        Command::Local
    );
}
