//! Version 2: binary (section 2.2 of the specification).

use std::net::{SocketAddrV4, SocketAddrV6};

use crc32c::crc32c_append;

use crate::{
    base::io::prelude::Step,
    middleware::proxy_protocol::{
        error::{EncodeError, HeaderError},
        header::{Addresses, Command, Header, MAX_UNIX_NAME, Transport, UnixName, Version},
        rules::HeaderRules,
        tlv::Tlvs,
    },
};

/// Looks at a header that begins with the signature. What is wrong in its fixed part is found byte by byte, and a
/// length that is before memory is taken for it.
pub(super) fn step(seen: &[u8], rules: &HeaderRules) -> Result<Step<Header>, HeaderError> {
    let fixed = &seen[SIGNATURE.len()..seen.len().min(FIXED)];
    let [version_and_command, behind @ ..] = fixed else {
        return Ok(Step::More(FIXED - seen.len()));
    };
    let command = match (version_and_command >> 4, version_and_command & 0xf) {
        (2, 0) => Command::Local,
        (2, 1) => Command::Proxy,
        (2, command) => return Err(HeaderError::BadCommand(command)),
        (version, _) => return Err(HeaderError::BadVersion(version)),
    };
    let [kind, behind @ ..] = behind else {
        return Ok(Step::More(FIXED - seen.len()));
    };
    let family = match command {
        // Whatever it says is to be ignored.
        Command::Local => Family::Unspecified,
        Command::Proxy => Family::of(*kind)?,
    };
    let least = family.length();
    let [high, low] = behind else {
        return Ok(Step::More(FIXED + least - seen.len()));
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length < least {
        return Err(HeaderError::BadLength { length, least });
    }
    if length > rules.max_v2_payload {
        return Err(HeaderError::TooLong {
            length,
            limit: rules.max_v2_payload,
        });
    }
    let Some(whole) = seen.get(..FIXED + length) else {
        return Ok(Step::More(FIXED + length - seen.len()));
    };
    let header = read(command, family, whole, rules)?;
    Ok(Step::Done(header, whole.len()))
}

#[derive(Debug, Clone, Copy)]
enum Family {
    /// Addresses that are not read. Where they end nobody knows, so there are no TLVs either.
    Unspecified,
    Inet4(Transport),
    Inet6(Transport),
    Unix(Transport),
}

impl Family {
    /// What the 14th byte says: the family in its upper half, the transport in its lower one.
    fn of(byte: u8) -> Result<Self, HeaderError> {
        let transport = match byte & 0xf {
            0 => None,
            1 => Some(Transport::Stream),
            2 => Some(Transport::Datagram),
            _ => return Err(HeaderError::BadFamily(byte)),
        };
        Ok(match (byte >> 4, transport) {
            (0, _) | (1..=3, None) => Self::Unspecified,
            (1, Some(transport)) => Self::Inet4(transport),
            (2, Some(transport)) => Self::Inet6(transport),
            (3, Some(transport)) => Self::Unix(transport),
            _ => return Err(HeaderError::BadFamily(byte)),
        })
    }

    /// How long its addresses are.
    fn length(self) -> usize {
        match self {
            Self::Unspecified => 0,
            Self::Inet4(_) => 2 * (4 + 2),
            Self::Inet6(_) => 2 * (16 + 2),
            Self::Unix(_) => 2 * MAX_UNIX_NAME,
        }
    }
}

/// Reads a header that is there as a whole.
fn read(
    command: Command,
    family: Family,
    whole: &[u8],
    rules: &HeaderRules,
) -> Result<Header, HeaderError> {
    let mut fields = Fields(&whole[FIXED..]);
    let (addresses, transport) = match family {
        Family::Unspecified => (Addresses::Unspecified, Transport::Stream),
        Family::Inet4(transport) => {
            let (source, destination) = (fields.take::<4>(), fields.take::<4>());
            let addresses = Addresses::Inet4 {
                source: SocketAddrV4::new(source.into(), fields.port()),
                destination: SocketAddrV4::new(destination.into(), fields.port()),
            };
            (addresses, transport)
        }
        Family::Inet6(transport) => {
            let (source, destination) = (fields.take::<16>(), fields.take::<16>());
            let addresses = Addresses::Inet6 {
                source: SocketAddrV6::new(source.into(), fields.port(), 0, 0),
                destination: SocketAddrV6::new(destination.into(), fields.port(), 0, 0),
            };
            (addresses, transport)
        }
        Family::Unix(transport) => {
            let addresses = Addresses::Unix {
                source: UnixName::from_field(&fields.take::<MAX_UNIX_NAME>()),
                destination: UnixName::from_field(&fields.take::<MAX_UNIX_NAME>()),
            };
            (addresses, transport)
        }
    };
    rules.judge(&addresses)?;
    let tlvs = match family {
        Family::Unspecified => Tlvs::default(),
        _ => Tlvs::read(fields.0, rules.no_duplicate_tlvs)?,
    };
    if let (Some(sent), Some(at)) = (tlvs.crc32c(), tlvs.checksum_at()) {
        let computed = checksum(whole, FIXED + family.length() + at);
        if sent != computed {
            return Err(HeaderError::BadChecksum { sent, computed });
        }
    }
    Ok(Header {
        version: Version::V2,
        command,
        transport,
        addresses,
        tlvs,
    })
}

/// Fields of fixed length, one after the other, of which there are enough.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self
            .0
            .split_first_chunk()
            .expect("the length was checked");
        self.0 = rest;
        *field
    }

    fn port(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }
}

/// The CRC32C of a header (RFC 4960, appendix B), in which the four bytes at `at` count as zeros.
fn checksum(header: &[u8], at: usize) -> u32 {
    let sum = crc32c_append(0, &header[..at]);
    let sum = crc32c_append(sum, &[0; 4]);
    crc32c_append(sum, &header[at + 4..])
}

pub(super) fn encode(header: &Header) -> Result<Vec<u8>, EncodeError> {
    // A sender of LOCAL gives no addresses, and without them nobody knows where TLVs begin.
    let bare = header.command == Command::Local || header.addresses == Addresses::Unspecified;
    if let (true, Some(tlv)) = (bare, header.tlvs.iter().next()) {
        return Err(EncodeError::BadTlv {
            kind: tlv.kind(),
            problem: "has no addresses in front of it",
        });
    }
    let command = match header.command {
        Command::Local => return Ok(fixed(0x20, 0x00, 0)),
        Command::Proxy => 0x21,
    };
    let transport = match header.transport {
        Transport::Stream => 0x01,
        Transport::Datagram => 0x02,
    };
    let mut addresses = Vec::new();
    let family = match &header.addresses {
        Addresses::Unspecified => return Ok(fixed(command, 0x00, 0)),
        Addresses::Inet4 {
            source,
            destination,
        } => {
            addresses.extend_from_slice(&source.ip().octets());
            addresses.extend_from_slice(&destination.ip().octets());
            addresses.extend_from_slice(&source.port().to_be_bytes());
            addresses.extend_from_slice(&destination.port().to_be_bytes());
            0x10
        }
        Addresses::Inet6 {
            source,
            destination,
        } => {
            addresses.extend_from_slice(&source.ip().octets());
            addresses.extend_from_slice(&destination.ip().octets());
            addresses.extend_from_slice(&source.port().to_be_bytes());
            addresses.extend_from_slice(&destination.port().to_be_bytes());
            0x20
        }
        Addresses::Unix {
            source,
            destination,
        } => {
            addresses.extend_from_slice(source.as_bytes());
            addresses.resize(MAX_UNIX_NAME, 0);
            addresses.extend_from_slice(destination.as_bytes());
            addresses.resize(2 * MAX_UNIX_NAME, 0);
            0x30
        }
    };
    let tlvs = header.tlvs.as_bytes();
    let length = addresses.len() + tlvs.len();
    let Ok(announced) = u16::try_from(length) else {
        return Err(EncodeError::TooLong { length });
    };
    let mut whole = fixed(command, family | transport, announced);
    whole.extend_from_slice(&addresses);
    whole.extend_from_slice(tlvs);
    if let Some(at) = header.tlvs.checksum_at() {
        let at = FIXED + addresses.len() + at;
        let sum = checksum(&whole, at);
        whole[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    }
    Ok(whole)
}

fn fixed(version_and_command: u8, family: u8, length: u16) -> Vec<u8> {
    let mut fixed = Vec::with_capacity(FIXED + usize::from(length));
    fixed.extend_from_slice(SIGNATURE);
    fixed.extend_from_slice(&[version_and_command, family]);
    fixed.extend_from_slice(&length.to_be_bytes());
    fixed
}

/// No text of any common protocol.
pub(super) const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and transport, length.
pub(super) const FIXED: usize = SIGNATURE.len() + 4;
