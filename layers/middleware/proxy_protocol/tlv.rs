use std::{fmt, str};

use crate::middleware::proxy_protocol::{
    error::{EncodeError, HeaderError},
    ssl::Ssl,
};

/// One thing that a proxy says besides the addresses: a type, and a value of so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tlv<'a> {
    kind: u8,
    value: &'a [u8],
}

impl Tlv<'_> {
    /// The protocol that the client speaks, by its ALPN name (RFC 7301).
    pub const ALPN: u8 = 0x01;
    /// The host that the client asked for, in UTF-8: its SNI, where there is TLS.
    pub const AUTHORITY: u8 = 0x02;
    /// A CRC32C of the header.
    pub const CRC32C: u8 = 0x03;
    /// Padding.
    pub const NOOP: u8 = 0x04;
    /// A name for the connection, of at most 128 bytes.
    pub const UNIQUE_ID: u8 = 0x05;
    /// What is known of the client's TLS: see [`Ssl`].
    pub const SSL: u8 = 0x20;
    /// In [`SSL`](Self::SSL): the version, in ASCII.
    pub const SSL_VERSION: u8 = 0x21;
    /// In [`SSL`](Self::SSL): the common name in the client's certificate.
    pub const SSL_CN: u8 = 0x22;
    /// In [`SSL`](Self::SSL): the cipher, in ASCII.
    pub const SSL_CIPHER: u8 = 0x23;
    /// In [`SSL`](Self::SSL): what the proxy's certificate is signed with, in ASCII.
    pub const SSL_SIG_ALG: u8 = 0x24;
    /// In [`SSL`](Self::SSL): the kind of key of the proxy's certificate, in ASCII.
    pub const SSL_KEY_ALG: u8 = 0x25;
    /// In [`SSL`](Self::SSL): the group of the key exchange, in ASCII.
    pub const SSL_GROUP: u8 = 0x26;
    /// In [`SSL`](Self::SSL): the signature scheme of the handshake, in ASCII.
    pub const SSL_SIG_SCHEME: u8 = 0x27;
    /// In [`SSL`](Self::SSL): the client's certificate, in DER.
    pub const SSL_CLIENT_CERT: u8 = 0x28;
    /// The network namespace at the proxy, in ASCII.
    pub const NETNS: u8 = 0x30;
    /// Google Cloud: the id of a Private Service Connect connection.
    pub const GCP: u8 = 0xe0;
    /// AWS: the id of a VPC endpoint.
    pub const AWS: u8 = 0xea;
    /// Azure: the id of a private endpoint's link.
    pub const AZURE: u8 = 0xee;
}

impl<'a> Tlv<'a> {
    /// The type.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &'a [u8] {
        self.value
    }

    /// Whose type it is.
    #[must_use]
    pub fn class(&self) -> TlvClass {
        TlvClass::of(self.kind)
    }
}

/// Who gives a type its meaning (section 2.2.8 of the specification).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlvClass {
    /// The specification.
    Registered,
    /// An application, for good: `0xe0` to `0xef`, where the clouds have theirs.
    Application,
    /// An experiment: `0xf0` to `0xf7`.
    Experiment,
    /// Nobody yet, for types of several bytes: `0xf8` to `0xff`.
    Future,
    /// Nobody.
    Unassigned,
}

impl TlvClass {
    /// The class of a type.
    #[must_use]
    pub fn of(kind: u8) -> Self {
        match kind {
            Tlv::ALPN..=Tlv::UNIQUE_ID | Tlv::SSL..=Tlv::SSL_CLIENT_CERT | Tlv::NETNS => {
                Self::Registered
            }
            0xe0..=0xef => Self::Application,
            0xf0..=0xf7 => Self::Experiment,
            0xf8..=0xff => Self::Future,
            _ => Self::Unassigned,
        }
    }
}

/// The TLVs of a header, in the order in which they came. Of several of one type the first is the one that
/// counts; [`iter`](Self::iter) has them all.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Tlvs {
    /// As on the wire: every one is known to be whole.
    area: Vec<u8>,
}

impl Tlvs {
    /// Takes an area of a header over, if all in it is as it must be.
    pub(super) fn read(area: &[u8], no_duplicates: bool) -> Result<Self, HeaderError> {
        let mut seen = [false; 256];
        for found in walk(area) {
            let tlv = found?;
            let again = std::mem::replace(&mut seen[usize::from(tlv.kind)], true);
            let may_repeat = match tlv.kind {
                Tlv::NOOP => true,
                // Of two, each would be in the sum of the other.
                Tlv::CRC32C => false,
                _ => !no_duplicates,
            };
            if again && !may_repeat {
                return Err(bad(tlv.kind, "is there twice"));
            }
            check(tlv.kind, tlv.value).map_err(|problem| bad(tlv.kind, problem))?;
        }
        Ok(Self {
            area: area.to_vec(),
        })
    }

    pub(super) fn push(&mut self, kind: u8, value: &[u8]) -> Result<(), EncodeError> {
        let bad = |problem| EncodeError::BadTlv { kind, problem };
        check(kind, value).map_err(bad)?;
        if kind == Tlv::CRC32C {
            self.want_checksum();
            return Ok(());
        }
        let length = u16::try_from(value.len()).map_err(|_| bad("is longer than 65535 bytes"))?;
        self.area.push(kind);
        self.area
            .extend_from_slice(&length.to_be_bytes());
        self.area.extend_from_slice(value);
        Ok(())
    }

    /// Makes room for a checksum.
    pub(super) fn want_checksum(&mut self) {
        if self.get(Tlv::CRC32C).is_none() {
            self.area
                .extend_from_slice(&[Tlv::CRC32C, 0, 4, 0, 0, 0, 0]);
        }
    }

    /// Where in the area the value of the checksum is.
    pub(super) fn checksum_at(&self) -> Option<usize> {
        let mut at = 0;
        for tlv in self.iter() {
            at += PREFIX;
            if tlv.kind == Tlv::CRC32C {
                return Some(at);
            }
            at += tlv.value.len();
        }
        None
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.area
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.area.is_empty()
    }

    /// All of them.
    #[must_use]
    pub fn iter(&self) -> TlvIter<'_> {
        TlvIter { rest: &self.area }
    }

    /// The value of the first of this type.
    #[must_use]
    pub fn get(&self, kind: u8) -> Option<&[u8]> {
        self.iter()
            .find(|tlv| tlv.kind == kind)
            .map(|tlv| tlv.value)
    }

    /// The protocol that the client speaks, by its ALPN name.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        self.get(Tlv::ALPN)
    }

    /// The host that the client asked for. The client chose it: it proves nothing.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        text(self.get(Tlv::AUTHORITY))
    }

    /// The checksum, which has been verified. Of a header that is yet to be encoded it is not known.
    #[must_use]
    pub fn crc32c(&self) -> Option<u32> {
        self.get(Tlv::CRC32C)?
            .try_into()
            .ok()
            .map(u32::from_be_bytes)
    }

    /// The proxy's name for the connection.
    #[must_use]
    pub fn unique_id(&self) -> Option<&[u8]> {
        self.get(Tlv::UNIQUE_ID)
    }

    /// What is known of the client's TLS.
    #[must_use]
    pub fn ssl(&self) -> Option<Ssl<'_>> {
        Ssl::new(self.get(Tlv::SSL)?)
    }

    /// The network namespace at the proxy.
    #[must_use]
    pub fn netns(&self) -> Option<&str> {
        text(self.get(Tlv::NETNS))
    }

    /// AWS: the id of the VPC endpoint that the client came through, such as `vpce-08d2bf15fac5001c9`.
    #[must_use]
    pub fn aws_vpc_endpoint_id(&self) -> Option<&str> {
        match self.get(Tlv::AWS)? {
            [AWS_VPC_ENDPOINT_ID, id @ ..] => text(Some(id)),
            _ => None,
        }
    }

    /// Google Cloud: the id of the Private Service Connect connection that the client came through.
    #[must_use]
    pub fn gcp_psc_connection_id(&self) -> Option<u64> {
        let id = self.get(Tlv::GCP)?.try_into();
        id.ok().map(u64::from_be_bytes)
    }

    /// Azure: the `LINKID` of the private endpoint that the client came through, which is sent little-endian.
    #[must_use]
    pub fn azure_private_endpoint_link_id(&self) -> Option<u32> {
        match self.get(Tlv::AZURE)? {
            [AZURE_LINK_ID, id @ ..] => id
                .try_into()
                .ok()
                .map(u32::from_le_bytes),
            _ => None,
        }
    }
}

impl<'a> IntoIterator for &'a Tlvs {
    type Item = Tlv<'a>;
    type IntoIter = TlvIter<'a>;

    fn into_iter(self) -> TlvIter<'a> {
        self.iter()
    }
}

/// Types and lengths: values may be certificates, and long.
impl fmt::Debug for Tlvs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths = self
            .iter()
            .map(|tlv| (format!("{:#04x}", tlv.kind), tlv.value.len()));
        f.debug_map().entries(lengths).finish()
    }
}

/// TLVs, one after the other.
#[derive(Debug, Clone)]
pub struct TlvIter<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Iterator for TlvIter<'a> {
    type Item = Tlv<'a>;

    fn next(&mut self) -> Option<Tlv<'a>> {
        // What is in an area is whole.
        let (tlv, rest) = split(self.rest)?;
        self.rest = rest;
        Some(tlv)
    }
}

pub(super) fn text(value: Option<&[u8]>) -> Option<&str> {
    str::from_utf8(value?).ok()
}

/// The first TLV, and what is behind it; `None` if it is cut short.
fn split(area: &[u8]) -> Option<(Tlv<'_>, &[u8])> {
    let (&[kind, high, low], rest) = area.split_first_chunk::<PREFIX>()?;
    let length = u16::from_be_bytes([high, low]).into();
    let (value, rest) = rest.split_at_checked(length)?;
    Some((Tlv { kind, value }, rest))
}

/// Every TLV, and an error in place of the one that is cut short.
pub(super) fn walk(mut area: &[u8]) -> impl Iterator<Item = Result<Tlv<'_>, HeaderError>> {
    std::iter::from_fn(move || {
        let kind = *area.first()?;
        match split(area) {
            Some((tlv, rest)) => {
                area = rest;
                Some(Ok(tlv))
            }
            None => {
                area = &[];
                Some(Err(bad(kind, "is cut short")))
            }
        }
    })
}

fn bad(kind: u8, problem: &'static str) -> HeaderError {
    HeaderError::BadTlv { kind, problem }
}

/// Whether a value is what its type must have. What applications define is theirs to judge.
fn check(kind: u8, value: &[u8]) -> Result<(), &'static str> {
    match kind {
        Tlv::AUTHORITY if str::from_utf8(value).is_err() => Err("is no UTF-8"),
        Tlv::CRC32C if value.len() != 4 => Err("is not of 4 bytes"),
        Tlv::NETNS if !value.is_ascii() => Err(NO_ASCII),
        Tlv::SSL => Ssl::check(value),
        Tlv::UNIQUE_ID if value.len() > MAX_UNIQUE_ID => Err("is longer than 128 bytes"),
        _ => Ok(()),
    }
}

pub(super) const NO_ASCII: &str = "is no ASCII";

/// Of a TLV: its type and length.
const PREFIX: usize = 3;

/// Section 2.2.5 of the specification.
const MAX_UNIQUE_ID: usize = 128;

/// The clouds each have a type of their own within their TLV, and these are the ones they document.
const AWS_VPC_ENDPOINT_ID: u8 = 0x01;
const AZURE_LINK_ID: u8 = 0x01;
