//! Where in the answers of HTTP/1 a server is, as far as it can be told from what it writes.

use memchr::memchr;

use crate::base::http1::Chunks;

/// Follows them from the first on (RFC 9112, section 6.3), for as long as it is certain where one ends. It is not behind
/// one that ends with the connection, or of which it is not known whether it has a body.
#[derive(Debug)]
pub(super) struct Answers {
    at: At,
    line: Start,
}

#[derive(Debug)]
enum At {
    /// In the line that begins a head.
    Status,
    /// In one of the others.
    Fields(Head),
    /// So much of a body is still to come.
    Body(u64),
    Chunks(Chunks),
    /// It is not certain.
    Lost,
}

/// What matters of a head.
#[derive(Debug, Clone, Copy)]
struct Head {
    status: [u8; 3],
    length: Option<u64>,
    in_chunks: bool,
}

impl Answers {
    pub(super) fn new() -> Self {
        Self {
            at: At::Status,
            line: Start::new(),
        }
    }

    /// From here on it is not certain.
    pub(super) fn lose(&mut self) {
        self.at = At::Lost;
    }

    pub(super) fn are_lost(&self) -> bool {
        matches!(self.at, At::Lost)
    }

    /// Goes on with what was written; whether the protocol is another from here on (RFC 9110, section 15.2.2).
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let end = match &mut self.at {
                At::Status | At::Fields(_) => {
                    let end = memchr(b'\n', bytes);
                    self.line
                        .read(&bytes[..end.unwrap_or(bytes.len())]);
                    end.map(|end| end + 1)
                }
                At::Body(left) => {
                    let taken = (bytes.len() as u64).min(*left);
                    *left -= taken;
                    (*left == 0).then_some(taken as usize)
                }
                At::Chunks(chunks) => chunks.find_end(bytes),
                At::Lost => None,
            };
            let Some(end) = end else {
                return false;
            };
            bytes = &bytes[end..];
            let line = std::mem::replace(&mut self.line, Start::new());
            self.at = match &self.at {
                At::Status => Head::of(&line).map_or(At::Lost, At::Fields),
                At::Fields(head) if line.text().is_empty() => match head.status {
                    SWITCHING => return true,
                    _ => head.body(),
                },
                At::Fields(head) => head
                    .with(&line)
                    .map_or(At::Lost, At::Fields),
                At::Body(_) | At::Chunks(_) => At::Status,
                At::Lost => At::Lost,
            };
        }
        false
    }
}

impl Head {
    /// A head that begins with this line.
    fn of(line: &Start) -> Option<Self> {
        let (version, rest) = line.text().split_at_checked(9)?;
        version
            .starts_with(b"HTTP/1.")
            .then_some(())?;
        Some(Self {
            status: *rest.first_chunk()?,
            length: None,
            in_chunks: false,
        })
    }

    /// The same with one more line.
    fn with(mut self, line: &Start) -> Option<Self> {
        let text = line.text();
        let name = &text[..memchr(b':', text).unwrap_or(0)];
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.in_chunks = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let value = text[name.len() + 1..].trim_ascii();
            let value = std::str::from_utf8(value).ok()?;
            self.length = Some(value.parse().ok()?);
            (!line.is_cut()).then_some(())?;
        }
        Some(self)
    }

    /// What comes behind it.
    fn body(self) -> At {
        match (self.status, self.length) {
            ([b'1', ..] | [b'2', b'0', b'4'] | [b'3', b'0', b'4'], _) => At::Status,
            _ if self.in_chunks => At::Chunks(Chunks::new()),
            (_, Some(0)) => At::Status,
            (_, Some(length)) => At::Body(length),
            (_, None) => At::Lost,
        }
    }
}

/// The beginning of a line, longer than any that matters.
#[derive(Debug)]
struct Start {
    bytes: [u8; LONGEST],
    /// Of the whole line.
    length: usize,
}

impl Start {
    fn new() -> Self {
        Self {
            bytes: [0; LONGEST],
            length: 0,
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        let room = self
            .bytes
            .get_mut(self.length..)
            .unwrap_or_default();
        let kept = room.len().min(bytes.len());
        room[..kept].copy_from_slice(&bytes[..kept]);
        self.length = self.length.saturating_add(bytes.len());
    }

    fn is_cut(&self) -> bool {
        self.length > LONGEST
    }

    fn text(&self) -> &[u8] {
        self.bytes[..self.length.min(LONGEST)].trim_ascii_end()
    }
}

const SWITCHING: [u8; 3] = *b"101";

/// `content-length: `, with as many digits as there may be and a CR.
const LONGEST: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many bytes it has switched, written at once and in two pieces split anywhere.
    fn switched_after(answers: &str) -> Option<usize> {
        let bytes = answers.as_bytes();
        let mut by_byte = Answers::new();
        let at = (0..bytes.len()).find(|at| by_byte.write(&bytes[*at..=*at]));
        for cut in 0..=bytes.len() {
            let mut in_two = Answers::new();
            let switched = in_two.write(&bytes[..cut]) || in_two.write(&bytes[cut..]);
            assert_eq!(switched, at.is_some(), "{answers:?} {cut}");
        }
        at.map(|at| at + 1)
    }

    const UPGRADE: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n";

    #[test]
    fn an_upgrade_is_one_behind_all_that_was_answered_before() {
        for before in [
            "",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/",
            "HTTP/1.0 404 Not Found\ncontent-length:7\n\nnothing",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 70\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nlast: 1\r\n\r\n",
            "HTTP/1.1 500 \r\ncontent-length: 1\r\n\r\n.HTTP/1.1 204\r\n\r\n",
        ] {
            let answers = [before, UPGRADE].concat();
            assert_eq!(switched_after(&answers), Some(answers.len()), "{before:?}");
        }
    }

    #[test]
    fn what_looks_like_an_upgrade_in_a_body_is_none() {
        let length = UPGRADE.len() + 1;
        for before in [
            format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"),
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n"),
            "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
            format!("HTTP/1.1 200 OK\r\ncontent-length:{:40}\r\n\r\n", 1),
            "220 at your service\r\n".to_owned(),
        ] {
            let answers = [&before, UPGRADE].concat();
            assert_eq!(switched_after(&answers), None, "{before:?}");
        }
    }
}
