//! Version 1: a line of text (section 2.1 of the specification).

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    str::{self, FromStr},
};

use crate::{
    base::io::prelude::Step,
    middleware::proxy_protocol::{
        error::{EncodeError, HeaderError},
        header::{Addresses, Command, End, Header, Transport, Version},
        rules::HeaderRules,
    },
};

/// Looks at a line that begins with the signature.
///
/// The order of the checks is that of the bytes, but for the fields, which are read once the line is complete, as
/// the specification has it. So the verdict does not depend on how the line is split.
pub(super) fn step(seen: &[u8], rules: &HeaderRules) -> Result<Step<Header>, HeaderError> {
    match seen.get(SIGNATURE.len()) {
        None => return Ok(Step::More(LEAST - seen.len())),
        Some(b' ') => rules.allow(Version::V1)?,
        Some(b'\r' | b'\n') => return Err(HeaderError::BadSyntax("no protocol")),
        Some(_) => return Err(HeaderError::NotProxy),
    }
    let text = &seen[SIGNATURE.len() + 1..];
    let Some(protocol) = protocol(text)? else {
        return Ok(Step::More(least_of_word(text)));
    };
    let behind_word = SIGNATURE.len() + 1 + protocol.word().len();
    let Some(line) = line(seen)? else {
        let left = match seen.last() {
            Some(b'\r') => 1,
            _ => protocol.least_left(&seen[behind_word + 1..]),
        };
        return Ok(Step::More(left));
    };
    let addresses = match protocol {
        // The rest of the line says nothing, whatever it is.
        Protocol::Unknown => Addresses::Unspecified,
        Protocol::Tcp4 | Protocol::Tcp6 => addresses(protocol, &line[behind_word..], rules)?,
    };
    let header = Header::new(Version::V1, addresses);
    Ok(Step::Done(header, line.len() + CRLF.len()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp4,
    Tcp6,
    Unknown,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Tcp4, Self::Tcp6, Self::Unknown];

    fn word(self) -> &'static [u8] {
        match self {
            Self::Tcp4 => b"TCP4",
            Self::Tcp6 => b"TCP6",
            Self::Unknown => b"UNKNOWN",
        }
    }

    /// How long each field is at the least: two addresses, two ports.
    fn shortest(self) -> [usize; 4] {
        match self {
            Self::Tcp4 => ["0.0.0.0".len(), "0.0.0.0".len(), 1, 1],
            Self::Tcp6 => ["::".len(), "::".len(), 1, 1],
            Self::Unknown => [0; 4],
        }
    }

    /// How many bytes are still to come for certain behind `fields`, in a line that is as it should be. The better
    /// this is known, the fewer reads a line takes.
    fn least_left(self, fields: &[u8]) -> usize {
        if self == Self::Unknown {
            return CRLF.len();
        }
        let (mut begun, mut last) = (0, fields);
        for field in fields.split(|byte| *byte == b' ') {
            (begun, last) = (begun + 1, field);
        }
        let rest_of_last = match begun {
            1 | 2 if self == Self::Tcp4 => {
                let dots = last
                    .iter()
                    .filter(|byte| **byte == b'.')
                    .count();
                let digit = matches!(last, [] | [.., b'.']);
                usize::from(digit) + 2 * 3_usize.saturating_sub(dots)
            }
            1 | 2 if last.is_empty() => "::".len(),
            3 | 4 => usize::from(last.is_empty()),
            _ => 0,
        };
        let to_come = self.shortest().into_iter().skip(begun);
        let to_come: usize = to_come
            .map(|shortest| 1 + shortest)
            .sum();
        rest_of_last + to_come + CRLF.len()
    }
}

/// The protocol that a text begins with; `None` if it may still become one.
fn protocol(text: &[u8]) -> Result<Option<Protocol>, HeaderError> {
    let is_end = |byte: &u8| matches!(byte, b' ' | b'\r' | b'\n');
    let whole = text.iter().position(is_end);
    let word = &text[..whole.unwrap_or(text.len())];
    let mut known = Protocol::ALL.into_iter();
    let found = match whole {
        Some(_) => known.find(|protocol| protocol.word() == word),
        None => known.find(|protocol| protocol.word().starts_with(word)),
    };
    match found {
        Some(protocol) if whole.is_some() => Ok(Some(protocol)),
        Some(_) => Ok(None),
        None => Err(HeaderError::BadProtocol),
    }
}

/// How many bytes are still to come for certain behind the beginning of a protocol's word.
fn least_of_word(word: &[u8]) -> usize {
    let shortest = match word.first() {
        Some(b'T') => "TCP6 :: :: 0 0\r\n".len(),
        _ => "UNKNOWN\r\n".len(),
    };
    shortest - word.len()
}

/// The line without its end; `None` if that is still to come.
///
/// Neither CR nor LF may be anywhere else: who ends a line with LF alone would otherwise have bytes taken that come
/// behind it, even in a line of which nothing is read.
fn line(seen: &[u8]) -> Result<Option<&[u8]>, HeaderError> {
    // Where its CR may be at the latest.
    let bound = MAX_LINE - 1;
    let visible = &seen[..seen.len().min(bound)];
    match visible
        .iter()
        .position(|byte| matches!(byte, b'\r' | b'\n'))
    {
        Some(at) if visible[at] == b'\n' => Err(HeaderError::BadSyntax("LF without CR")),
        Some(at) => match seen.get(at + 1) {
            None => Ok(None),
            Some(b'\n') => Ok(Some(&seen[..at])),
            Some(_) => Err(HeaderError::BadSyntax("CR without LF")),
        },
        None if seen.len() >= bound => Err(HeaderError::TooLong {
            length: MAX_LINE + 1,
            limit: MAX_LINE,
        }),
        None => Ok(None),
    }
}

/// Exactly four fields, each behind exactly one space.
fn addresses(
    protocol: Protocol,
    fields: &[u8],
    rules: &HeaderRules,
) -> Result<Addresses, HeaderError> {
    let mut fields = fields.split(|byte| *byte == b' ');
    let five = std::array::from_fn(|_| fields.next());
    // Before the first space there is nothing.
    let (
        [
            Some([]),
            Some(source),
            Some(destination),
            Some(from),
            Some(to),
        ],
        None,
    ) = (five, fields.next())
    else {
        return Err(HeaderError::BadSyntax("not four fields"));
    };
    let addresses = if protocol == Protocol::Tcp4 {
        let source = ipv4(End::Source, source)?;
        let destination = ipv4(End::Destination, destination)?;
        Addresses::Inet4 {
            source: SocketAddrV4::new(source, port(End::Source, from)?),
            destination: SocketAddrV4::new(destination, port(End::Destination, to)?),
        }
    } else {
        let source = ipv6(End::Source, source, rules)?;
        let destination = ipv6(End::Destination, destination, rules)?;
        Addresses::Inet6 {
            source: SocketAddrV6::new(source, port(End::Source, from)?, 0, 0),
            destination: SocketAddrV6::new(destination, port(End::Destination, to)?, 0, 0),
        }
    };
    rules.judge(&addresses)?;
    Ok(addresses)
}

/// Four numbers without leading zeros, which the standard library refuses as well.
fn ipv4(end: End, text: &[u8]) -> Result<Ipv4Addr, HeaderError> {
    let problem = "is no IPv4 address";
    parse(text).ok_or(HeaderError::BadAddress { end, problem })
}

/// Without a zone, which means nothing on another host.
fn ipv6(end: End, text: &[u8], rules: &HeaderRules) -> Result<Ipv6Addr, HeaderError> {
    let ipv4 = || {
        let ip = parse::<Ipv4Addr>(text).filter(|_| rules.ipv4_in_tcp6);
        ip.map(|ip| ip.to_ipv6_mapped())
    };
    let problem = "is no IPv6 address";
    parse(text)
        .or_else(ipv4)
        .ok_or(HeaderError::BadAddress { end, problem })
}

/// A decimal number; the standard library would take a sign and leading zeros.
fn port(end: End, text: &[u8]) -> Result<u16, HeaderError> {
    let is_plain = match text {
        [b'0'] => true,
        [first, ..] => *first != b'0' && text.iter().all(u8::is_ascii_digit),
        [] => false,
    };
    parse(text)
        .filter(|_| is_plain)
        .ok_or(HeaderError::BadPort(end))
}

fn parse<T: FromStr>(text: &[u8]) -> Option<T> {
    str::from_utf8(text).ok()?.parse().ok()
}

/// The line, which fits into one segment on any network.
pub(super) fn encode(header: &Header) -> Result<Vec<u8>, EncodeError> {
    if !header.tlvs.is_empty() {
        return Err(EncodeError::NotInVersion1("TLVs"));
    }
    if header.command == Command::Local {
        return Ok(b"PROXY UNKNOWN\r\n".to_vec());
    }
    if header.transport != Transport::Stream {
        return Err(EncodeError::NotInVersion1("datagrams"));
    }
    let (word, source, destination) = match &header.addresses {
        Addresses::Unspecified => return Ok(b"PROXY UNKNOWN\r\n".to_vec()),
        Addresses::Inet4 {
            source,
            destination,
        } => (
            "TCP4",
            SocketAddr::V4(*source),
            SocketAddr::V4(*destination),
        ),
        Addresses::Inet6 {
            source,
            destination,
        } => (
            "TCP6",
            SocketAddr::V6(*source),
            SocketAddr::V6(*destination),
        ),
        Addresses::Unix { .. } => return Err(EncodeError::NotInVersion1("Unix sockets")),
    };
    let (from, to) = (source.port(), destination.port());
    let line = format!(
        "PROXY {word} {} {} {from} {to}\r\n",
        source.ip(),
        destination.ip()
    );
    Ok(line.into_bytes())
}

pub(super) const SIGNATURE: &[u8] = b"PROXY";

/// The specification's "worst case": longer than this is no line.
pub(super) const MAX_LINE: usize = 107;

/// The shortest line there is.
pub(super) const LEAST: usize = "PROXY UNKNOWN\r\n".len();

const CRLF: &str = "\r\n";
