use std::{error::Error, fmt, io};

use crate::{
    conn::handshakes::Unfinished,
    middleware::proxy_protocol::header::{End, MAX_UNIX_NAME, Version},
};

/// What is wrong with a header that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderError {
    /// It begins with neither signature.
    NotProxy,
    /// It is of a version that [the rules](super::HeaderRules::only) leave out.
    VersionRefused(Version),
    /// It ends after so many bytes, before it is complete.
    Truncated {
        /// How many bytes there are.
        length: usize,
    },
    /// It is longer than it may be.
    TooLong {
        /// Version 2: the length announced. Version 1: the least that the line has.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Version 1: the line is not made as it must be.
    BadSyntax(&'static str),
    /// Version 1: the protocol is none of `TCP4`, `TCP6`, `UNKNOWN`.
    BadProtocol,
    /// An address that cannot be one.
    BadAddress {
        /// Which of the two.
        end: End,
        /// What it is not.
        problem: &'static str,
    },
    /// Version 1: a port that is no decimal number from 0 to 65535, or has a sign or a leading zero.
    BadPort(End),
    /// Version 2: the version in the 13th byte is not 2.
    BadVersion(u8),
    /// Version 2: a command that does not exist.
    BadCommand(u8),
    /// Version 2: a family or transport that does not exist; the whole 14th byte.
    BadFamily(u8),
    /// Version 2: too short for the addresses of its family.
    BadLength {
        /// The length announced.
        length: usize,
        /// The least for these addresses.
        least: usize,
    },
    /// Version 2: a TLV of this type is broken.
    BadTlv {
        /// The type.
        kind: u8,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Version 2: the CRC32C in the header is not that of the header.
    BadChecksum {
        /// The one in the header.
        sent: u32,
        /// The one that it has.
        computed: u32,
    },
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotProxy => f.write_str("no PROXY header"),
            Self::VersionRefused(version) => write!(f, "PROXY header of {version} refused"),
            Self::Truncated { length } => write!(f, "PROXY header ends after {length} bytes"),
            Self::TooLong { length, limit } => {
                write!(
                    f,
                    "PROXY header of {length} bytes is over the limit of {limit}"
                )
            }
            Self::BadSyntax(problem) => write!(f, "malformed PROXY line: {problem}"),
            Self::BadProtocol => f.write_str("PROXY line names no protocol of version 1"),
            Self::BadAddress { end, problem } => write!(f, "{end} address {problem}"),
            Self::BadPort(end) => write!(f, "{end} port is none"),
            Self::BadVersion(version) => write!(f, "PROXY header of unknown version {version}"),
            Self::BadCommand(command) => write!(f, "PROXY header with unknown command {command}"),
            Self::BadFamily(byte) => write!(f, "PROXY header with unknown family {byte:#04x}"),
            Self::BadLength { length, least } => write!(
                f,
                "PROXY header of {length} bytes has no room for {least} bytes of addresses"
            ),
            Self::BadTlv { kind, problem } => write!(f, "TLV {kind:#04x} {problem}"),
            Self::BadChecksum { sent, computed } => write!(
                f,
                "CRC32C of PROXY header is {computed:#010x}, not {sent:#010x}"
            ),
        }
    }
}

impl Error for HeaderError {}

/// Why a header cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// One address is IPv4, the other IPv6. Whoever wants both as IPv6 maps the other one
    /// ([`to_ipv6_mapped`](std::net::Ipv4Addr::to_ipv6_mapped)).
    MixedFamilies,
    /// Version 1 has no form for this.
    NotInVersion1(&'static str),
    /// The name of a Unix socket is longer than 108 bytes, or a path with a zero byte in it.
    BadUnixName {
        /// How long the name is.
        length: usize,
    },
    /// The value is none for a TLV of this type.
    BadTlv {
        /// The type.
        kind: u8,
        /// What is wrong with the value.
        problem: &'static str,
    },
    /// Addresses and TLVs together are longer than the 65,535 bytes that a header can announce.
    TooLong {
        /// How long they are.
        length: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MixedFamilies => f.write_str("source and destination are of different families"),
            Self::NotInVersion1(what) => write!(f, "version 1 has no form for {what}"),
            Self::BadUnixName { length } => {
                write!(
                    f,
                    "{length} bytes are no name of a Unix socket: at most {MAX_UNIX_NAME}, no zero byte"
                )
            }
            Self::BadTlv { kind, problem } => write!(f, "TLV {kind:#04x} {problem}"),
            Self::TooLong { length } => {
                write!(
                    f,
                    "{length} bytes are more than a PROXY header can announce"
                )
            }
        }
    }
}

impl Error for EncodeError {}

/// Why a connection ended at its PROXY header. Nothing of it was served.
#[derive(Debug)]
pub struct ProxyError {
    problem: Problem,
}

#[derive(Debug)]
pub(super) enum Problem {
    /// No header may come from there.
    Untrusted,
    /// The peer left before it said anything.
    Left,
    Header(HeaderError),
    Unfinished(Unfinished),
    Io(io::Error),
}

impl ProxyError {
    pub(super) fn new(problem: Problem) -> Self {
        Self { problem }
    }

    /// What is wrong with the header, if there was one.
    #[must_use]
    pub fn header(&self) -> Option<&HeaderError> {
        match &self.problem {
            Problem::Header(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the peer is none from which a header may come.
    #[must_use]
    pub fn is_untrusted(&self) -> bool {
        matches!(self.problem, Problem::Untrusted)
    }

    /// Whether the peer left before it said anything, as health checks and port scans do.
    #[must_use]
    pub fn is_silent_end(&self) -> bool {
        matches!(self.problem, Problem::Left)
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.problem {
            Problem::Untrusted => "peer is not in the networks that must send a PROXY header",
            Problem::Left => "peer left before its PROXY header",
            Problem::Header(_) => "PROXY header refused",
            Problem::Unfinished(_) => "no PROXY header",
            Problem::Io(_) => "stream failed in its PROXY header",
        })
    }
}

impl Error for ProxyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.problem {
            Problem::Untrusted | Problem::Left => None,
            Problem::Header(error) => Some(error),
            Problem::Unfinished(unfinished) => Some(unfinished),
            Problem::Io(error) => Some(error),
        }
    }
}

impl From<ProxyError> for io::Error {
    fn from(error: ProxyError) -> Self {
        let kind = match &error.problem {
            Problem::Untrusted => io::ErrorKind::PermissionDenied,
            Problem::Left => io::ErrorKind::UnexpectedEof,
            Problem::Header(_) => io::ErrorKind::InvalidData,
            Problem::Unfinished(Unfinished::Elapsed(_)) => io::ErrorKind::TimedOut,
            Problem::Unfinished(_) => io::ErrorKind::ConnectionAborted,
            Problem::Io(error) => error.kind(),
        };
        Self::new(kind, error)
    }
}
