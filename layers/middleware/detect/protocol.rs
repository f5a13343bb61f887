use std::{fmt, sync::Arc};

use super::MAX_BYTES;
use crate::base::{
    client_hello::{ClientHello, HelloReader},
    error::ConfigError,
    http2::PREFACE,
    io::prelude::Step,
};

/// How a protocol is told by the first bytes of a connection.
#[derive(Clone)]
pub struct Protocol {
    name: &'static str,
    sign: Sign,
}

#[derive(Clone)]
enum Sign {
    Tls,
    Hello(Arc<IsIt>),
    Http1,
    Http2,
    Own(Arc<Look>),
}

type IsIt = dyn Fn(&ClientHello) -> bool + Send + Sync;
type Look = dyn Fn(&[u8]) -> Answer + Send + Sync;

/// What a protocol says of the first bytes so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// They are its own.
    Yes,
    /// They are not, whatever comes after them.
    No,
    /// They may be, and so many more would tell. Zero is taken as one.
    More(usize),
}

impl Protocol {
    /// TLS: a handshake record that a ClientHello begins in (RFC 8446, sections 4.1.2 and 5.1), of any version that
    /// is framed so. Six bytes tell.
    #[must_use]
    pub fn tls() -> Self {
        Self::new("tls", Sign::Tls)
    }

    /// TLS for one of these hosts, by the name that the client asks for (SNI); in any case of letters.
    ///
    /// `*.example.com` is for one label in front, as in certificates (RFC 9525, section 6.3): `a.example.com`, and
    /// neither `a.b.example.com` nor `example.com`. A client that asks for no name, or whose hello is broken or
    /// longer than the bound, is none of these. With an encrypted hello (ECH) the name is the outer one.
    ///
    /// # Errors
    ///
    /// No hosts, or one that no client can ask for: names in other scripts are written in their ASCII form.
    pub fn sni<N: AsRef<str>>(hosts: impl IntoIterator<Item = N>) -> Result<Self, ConfigError> {
        let hosts: Vec<_> = hosts
            .into_iter()
            .map(|host| Host::parse(host.as_ref()))
            .collect::<Result<_, _>>()?;
        if hosts.is_empty() {
            return Err(ConfigError::new("sni", "has no host"));
        }
        Ok(Self::client_hello("tls_sni", move |hello| {
            hello
                .server_name()
                .is_some_and(|name| hosts.iter().any(|host| host.is(name)))
        }))
    }

    /// TLS for a client that offers one of these protocols (ALPN), whichever it likes best.
    ///
    /// # Errors
    ///
    /// No protocols, or one that ALPN cannot name: empty, or of more than 255 bytes.
    pub fn alpn<N: AsRef<[u8]>>(
        protocols: impl IntoIterator<Item = N>,
    ) -> Result<Self, ConfigError> {
        let protocols: Vec<Vec<u8>> = protocols
            .into_iter()
            .map(|name| name.as_ref().to_vec())
            .collect();
        if protocols.is_empty() {
            return Err(ConfigError::new("alpn", "has no protocol"));
        }
        if protocols
            .iter()
            .any(|name| !(1..=255).contains(&name.len()))
        {
            return Err(ConfigError::new(
                "alpn",
                "has a name that is not of 1 to 255 bytes",
            ));
        }
        Ok(Self::client_hello("tls_alpn", move |hello| {
            hello.alpn().any(|name| {
                protocols
                    .iter()
                    .any(|known| known == name)
            })
        }))
    }

    /// TLS for a client whose hello `is_it` says yes to. Other than a hello that can be read is not asked for.
    ///
    /// `name` is the label in metrics.
    #[must_use]
    pub fn client_hello(
        name: &'static str,
        is_it: impl Fn(&ClientHello) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, Sign::Hello(Arc::new(is_it)))
    }

    /// HTTP/1: a registered method in capitals, one space, and a byte that a request target begins with (RFC 9112,
    /// section 3).
    ///
    /// Not any token will do for a method, so that this is never taken for HTTP: a frame with its length in front
    /// in four bytes, unless it is longer than 512 MiB. For methods of your own, and for empty lines in front,
    /// which RFC 9112 lets a server skip, bring a matcher of your own.
    #[must_use]
    pub fn http1() -> Self {
        Self::new("http1", Sign::Http1)
    }

    /// HTTP/2 with prior knowledge: its preface (RFC 9113, section 3.4), all 24 bytes of it.
    #[must_use]
    pub fn http2() -> Self {
        Self::new("http2", Sign::Http2)
    }

    /// Whatever `look` says yes to. It is shown all bytes so far, at least one, and again when there are more, until
    /// it does not ask for more.
    ///
    /// `name` is the label in metrics. [`ClientHello::read`] is there for what has to know why a hello is none.
    #[must_use]
    pub fn own(name: &'static str, look: impl Fn(&[u8]) -> Answer + Send + Sync + 'static) -> Self {
        Self::new(name, Sign::Own(Arc::new(look)))
    }

    fn new(name: &'static str, sign: Sign) -> Self {
        Self { name, sign }
    }

    /// The same under another name in metrics and in [`Detected`](super::Detected): two routes of one kind are
    /// counted apart only under two names.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it says of these first bytes, within the default bound: to try a protocol without a connection.
    #[must_use]
    pub fn look(&self, seen: &[u8]) -> Answer {
        self.ask(seen, &mut Hello::new(MAX_BYTES))
    }

    /// As [`look`](Self::look), with what is known of the hello already.
    pub(super) fn ask(&self, seen: &[u8], hello: &mut Hello) -> Answer {
        match &self.sign {
            Sign::Tls => tls(seen),
            Sign::Hello(is_it) => match hello.read(seen) {
                Hello::Known(hello) if is_it(hello) => Answer::Yes,
                Hello::Known(_) | Hello::None => Answer::No,
                Hello::Reading { want, .. } => Answer::More(*want),
            },
            Sign::Http1 => http1(seen),
            Sign::Http2 => starts_with(seen, PREFACE),
            Sign::Own(look) => look(seen),
        }
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Protocol")
            .field(&self.name)
            .finish()
    }
}

/// The hello of a connection, read once for all routes.
pub(super) enum Hello {
    Reading { reader: HelloReader, want: usize },
    Known(ClientHello),
    None,
}

impl Hello {
    pub(super) fn new(limit: usize) -> Self {
        Self::Reading {
            reader: HelloReader::new(limit),
            want: 0,
        }
    }

    fn read(&mut self, seen: &[u8]) -> &Self {
        if let Self::Reading { reader, want } = self {
            match reader.step(seen) {
                Ok(Step::More(more)) => *want = more,
                Ok(Step::Done(hello, _)) => *self = Self::Known(hello),
                Err(_) => *self = Self::None,
            }
        }
        self
    }

    pub(super) fn into_known(self) -> Option<ClientHello> {
        match self {
            Self::Known(hello) => Some(hello),
            Self::Reading { .. } | Self::None => None,
        }
    }
}

/// A host that is asked for, in lower case.
#[derive(Debug)]
enum Host {
    Exactly(String),
    /// Behind one label and its dot.
    Under(String),
}

impl Host {
    fn parse(text: &str) -> Result<Self, ConfigError> {
        let (host, under) = match text.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        let is_label = |label: &str| {
            let mut bytes = label.bytes();
            let is_good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=63).contains(&label.len()) && bytes.all(is_good)
        };
        if host.len() > 253 || !host.split('.').all(is_label) {
            let problem = format!("has `{text}`, which is no host name in ASCII");
            return Err(ConfigError::new("sni", problem));
        }
        let host = host.to_ascii_lowercase();
        Ok(if under {
            Self::Under(host)
        } else {
            Self::Exactly(host)
        })
    }

    fn is(&self, name: &str) -> bool {
        match self {
            Self::Exactly(host) => host == name,
            Self::Under(host) => name
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && rest == host),
        }
    }
}

/// The header of a record, and the first byte of the message in it.
fn tls(seen: &[u8]) -> Answer {
    let signs: [fn(u8) -> bool; 6] = [
        |kind| kind == 22,
        |major| major == 3,
        |_| true,
        // At most 2^14 bytes.
        |high| high <= 0x40,
        |_| true,
        |message| message == 1,
    ];
    let mut of = signs.iter().zip(seen);
    if !of.all(|(is_it, byte)| is_it(*byte)) {
        return Answer::No;
    }
    if let [_, _, _, high, low, ..] = seen {
        let length = u16::from_be_bytes([*high, *low]);
        if !(1..=1 << 14).contains(&length) {
            return Answer::No;
        }
    }
    match signs.len().saturating_sub(seen.len()) {
        0 => Answer::Yes,
        more => Answer::More(more),
    }
}

fn http1(seen: &[u8]) -> Answer {
    let mut answer = Answer::No;
    // Most of what is none is known by this.
    if seen
        .first()
        .is_some_and(|first| !first.is_ascii_uppercase())
    {
        return answer;
    }
    for method in HTTP_METHODS {
        match starts_with(seen, method.as_bytes()) {
            Answer::Yes => match &seen[method.len()..] {
                // `GET` is all of it, or there is a longer one.
                [] => answer = at_least(answer, 2),
                [b' '] => return Answer::More(1),
                [b' ', first, ..] if begins_target(*first) => return Answer::Yes,
                _ => {}
            },
            Answer::More(more) => answer = at_least(answer, more + 2),
            Answer::No => {}
        }
    }
    answer
}

/// The least that some method needs: by then there is more to tell by.
fn at_least(answer: Answer, more: usize) -> Answer {
    match answer {
        Answer::More(least) => Answer::More(least.min(more)),
        _ => Answer::More(more),
    }
}

/// A path, an asterisk, or a scheme, a host or an address (RFC 9112, section 3.2).
fn begins_target(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'*' | b'[')
}

fn starts_with(seen: &[u8], whole: &[u8]) -> Answer {
    let length = seen.len().min(whole.len());
    if seen[..length] != whole[..length] {
        return Answer::No;
    }
    match whole.len() - length {
        0 => Answer::Yes,
        more => Answer::More(more),
    }
}

/// The registry of HTTP methods that RFC 9110, section 16.1 founded, but for `PRI`, which belongs to HTTP/2, and
/// for `*`, which is no method.
const HTTP_METHODS: &[&str] = &[
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];
