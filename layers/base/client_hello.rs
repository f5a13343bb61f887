//! The first message of TLS, as far as one must know it before the handshake: which name and which protocols a
//! client asks for (RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3; RFC 7301, section 3.1).
//!
//! It is read from the wire form, across records and however it is split, and nothing is kept that it
//! announces and does not send. What is malformed behind the framing is left to the TLS library to refuse:
//! here a name that cannot be read is no name, except where two readers might take it for different ones.

use std::{error::Error, fmt};

use crate::base::io::prelude::Step;

/// What a client asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHello {
    server_name: Option<String>,
    /// As it came: each name behind its length. So a list of many short names takes no more than it came as.
    alpn: Vec<u8>,
}

impl ClientHello {
    /// Reads the hello that `seen`, the first bytes of a connection, begins with: of at most `limit` bytes without
    /// the headers in front of it.
    ///
    /// [`Step::Done`] never says that bytes were used up: whoever terminates TLS reads them again.
    ///
    /// # Errors
    ///
    /// It is no TLS, too long, or broken.
    pub fn read(seen: &[u8], limit: usize) -> Result<Step<Self>, HelloError> {
        HelloReader::new(limit).step(seen)
    }

    /// The host it wants to reach (SNI), in lower case.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// The protocols it speaks (ALPN), the one it likes best first.
    pub fn alpn(&self) -> impl Iterator<Item = &[u8]> {
        let mut list = &self.alpn[..];
        std::iter::from_fn(move || take(&mut list, 1))
    }
}

/// Reads a hello as its bytes come; remembers how far it has looked, so that single bytes cost no more.
#[derive(Debug)]
pub(crate) struct HelloReader {
    limit: usize,
    /// Where the next record begins.
    at: usize,
    /// How much of the message the records so far have.
    have: usize,
    /// How long the message is, once its header has come.
    need: Option<usize>,
    header: [u8; HEADER],
}

impl HelloReader {
    /// For a hello of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            at: 0,
            have: 0,
            need: None,
            header: [0; HEADER],
        }
    }

    /// Looks at all that has come so far. Nothing of it is consumed: whoever terminates TLS reads it again.
    pub(crate) fn step(&mut self, seen: &[u8]) -> Result<Step<ClientHello>, HelloError> {
        loop {
            let rest = seen.get(self.at..).unwrap_or_default();
            // What is certain by the first bytes is said at once: a client of another protocol may send no more.
            if rest
                .first()
                .is_some_and(|kind| *kind != HANDSHAKE)
            {
                return Err(HelloError::not_tls(self.at));
            }
            if rest
                .get(1)
                .is_some_and(|major| *major != 3)
            {
                return Err(HelloError::not_tls(self.at));
            }
            let [_, _, _, high, low, body @ ..] = rest else {
                return Ok(Step::More(RECORD_HEADER - rest.len()));
            };
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if length == 0 || length > MAX_RECORD {
                return Err(HelloError::Malformed("record length"));
            }
            let here = &body[..body.len().min(length)];
            self.look_at_header(here)?;
            if let Some(need) = self.need {
                if self.have + here.len() >= need {
                    return parse(&self.message(seen, need)).map(|hello| Step::Done(hello, 0));
                }
            }
            if here.len() < length {
                return Ok(Step::More(length - here.len()));
            }
            self.have += length;
            self.at += RECORD_HEADER + length;
        }
    }

    /// The message's own header, which may be split as well. `here` is what this record has so far.
    fn look_at_header(&mut self, here: &[u8]) -> Result<(), HelloError> {
        if self.need.is_some() {
            return Ok(());
        }
        let missing = HEADER
            .saturating_sub(self.have)
            .min(here.len());
        self.header[self.have..self.have + missing].copy_from_slice(&here[..missing]);
        let [kind, high, middle, low] = self.header;
        if self.have + missing > 0 && kind != CLIENT_HELLO {
            return Err(HelloError::Malformed("no ClientHello"));
        }
        if self.have + missing < HEADER {
            return Ok(());
        }
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        if length > self.limit {
            return Err(HelloError::TooLong {
                length,
                limit: self.limit,
            });
        }
        self.need = Some(HEADER + length);
        Ok(())
    }

    /// The message behind its header, put together from its records.
    fn message(&self, seen: &[u8], need: usize) -> Vec<u8> {
        let mut message = Vec::with_capacity(need);
        let mut rest = seen;
        while let [_, _, _, high, low, body @ ..] = rest {
            if message.len() >= need {
                break;
            }
            let length = usize::from(u16::from_be_bytes([*high, *low])).min(body.len());
            message.extend_from_slice(&body[..length]);
            rest = &body[length..];
        }
        message.truncate(need);
        message.split_off(HEADER)
    }
}

/// Why there is no hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HelloError {
    /// These bytes do not begin a TLS handshake.
    #[non_exhaustive]
    NotTls {
        /// Whether a handshake had begun, and what is no TLS came after its first record.
        begun: bool,
    },
    /// It announces more bytes than it may have.
    #[non_exhaustive]
    TooLong {
        /// The length it announces.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// It is TLS, and broken: which part of it.
    Malformed(&'static str),
    /// The name it asks for is no host name (RFC 6066, section 3: ASCII).
    BadName,
}

impl HelloError {
    fn not_tls(at: usize) -> Self {
        Self::NotTls { begun: at > 0 }
    }
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTls { .. } => f.write_str("not TLS"),
            Self::TooLong { length, limit } => {
                write!(
                    f,
                    "ClientHello of {length} bytes is over the limit of {limit}"
                )
            }
            Self::Malformed(part) => write!(f, "malformed ClientHello: {part}"),
            Self::BadName => f.write_str("ClientHello asks for what is no host name"),
        }
    }
}

impl Error for HelloError {}

/// The body of a ClientHello.
fn parse(body: &[u8]) -> Result<ClientHello, HelloError> {
    let mut hello = ClientHello::default();
    // What does not add up has no extensions that could be trusted; the TLS library refuses it.
    if let Some(extensions) = extensions(body) {
        read_extensions(extensions, &mut hello)?;
    }
    Ok(hello)
}

/// Behind version, random, session, ciphers and compression: the extensions, if their length is right.
fn extensions(body: &[u8]) -> Option<&[u8]> {
    let mut rest = body.get(2 + 32..)?;
    take(&mut rest, 1)?;
    take(&mut rest, 2)?;
    take(&mut rest, 1)?;
    let extensions = take(&mut rest, 2)?;
    rest.is_empty().then_some(extensions)
}

fn read_extensions(mut extensions: &[u8], hello: &mut ClientHello) -> Result<(), HelloError> {
    // RFC 8446, section 4.2: none may come twice. Of two names, two readers might each take another.
    let (mut named, mut offered) = (false, false);
    while let [high, low, rest @ ..] = extensions {
        extensions = rest;
        let Some(body) = take(&mut extensions, 2) else {
            return Err(HelloError::Malformed("extension length"));
        };
        match u16::from_be_bytes([*high, *low]) {
            SERVER_NAME if !named => {
                named = true;
                hello.server_name = server_name(body)?;
            }
            ALPN if !offered => {
                offered = true;
                hello.alpn = protocols(body)?;
            }
            SERVER_NAME | ALPN => return Err(HelloError::Malformed("extension twice")),
            _ => {}
        }
    }
    Ok(())
}

fn server_name(mut body: &[u8]) -> Result<Option<String>, HelloError> {
    let Some(mut names) = take(&mut body, 2) else {
        return Err(HelloError::Malformed("server name"));
    };
    let mut found = None;
    while let [kind, rest @ ..] = names {
        names = rest;
        let Some(name) = take(&mut names, 2) else {
            return Err(HelloError::Malformed("server name"));
        };
        if *kind == HOST_NAME {
            // RFC 6066, section 3: one of a kind.
            if found.is_some() {
                return Err(HelloError::Malformed("two server names"));
            }
            found = Some(host_name(name)?);
        }
    }
    Ok(found)
}

fn host_name(name: &[u8]) -> Result<String, HelloError> {
    let is_good = |byte: &u8| byte.is_ascii_graphic() && *byte != b'/';
    if name.is_empty() || name.len() > 255 || !name.iter().all(is_good) {
        return Err(HelloError::BadName);
    }
    let name = String::from_utf8_lossy(name);
    // Some clients send the final dot of a full name all the same.
    let name = name.strip_suffix('.').unwrap_or(&name);
    if name.is_empty() {
        return Err(HelloError::BadName);
    }
    Ok(name.to_ascii_lowercase())
}

fn protocols(mut body: &[u8]) -> Result<Vec<u8>, HelloError> {
    let Some(list) = take(&mut body, 2) else {
        return Err(HelloError::Malformed("ALPN"));
    };
    let mut rest = list;
    while !rest.is_empty() {
        if take(&mut rest, 1).is_none_or(<[u8]>::is_empty) {
            return Err(HelloError::Malformed("ALPN"));
        }
    }
    Ok(list.to_vec())
}

/// Takes what a length of so many bytes in front says.
fn take<'a>(rest: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
    let length = rest.get(..width)?;
    let length = length
        .iter()
        .fold(0, |length, byte| length << 8 | usize::from(*byte));
    let taken = rest.get(width..width + length)?;
    *rest = &rest[width + length..];
    Some(taken)
}

/// Of a record: what it is, a version and a length.
const RECORD_HEADER: usize = 5;

/// RFC 8446, section 5.1; encrypted records are longer, and none of them comes before a hello.
const MAX_RECORD: usize = 1 << 14;

/// Of a handshake message: what it is, and a length.
const HEADER: usize = 4;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const ALPN: u16 = 16;
