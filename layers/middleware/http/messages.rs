//! Where a request of HTTP/1 begins.

use memchr::memchr;

use crate::middleware::http::progress::BodyLength;

/// Follows the bytes of HTTP/1, and says whether those of a head are here that hyper has not taken.
///
/// Where a head ends hyper says when it takes the request, and how long the body is. How much of the body was here by
/// then it does not say: that is found by the empty line that ends a head. Where it cannot be known, as of requests in
/// line, what comes is taken to be the body, which has no deadline here, rather than the next head.
#[derive(Debug)]
pub(super) struct Messages {
    begun: bool,
    /// Where the head that is here in part has got to, if its end is looked for.
    line: Option<Line>,
    /// What was read behind the end of that head, if it was found.
    beyond: Option<u64>,
    /// How much of the body of the last request is still to come.
    body: u64,
    /// The last bytes that were read.
    last: u64,
}

/// Where in its line a head is. A line ends with LF, as hyper has it (RFC 9112, section 2.2).
#[derive(Debug, Clone, Copy)]
enum Line {
    /// Before the first, where empty ones are ignored.
    Before,
    /// At its beginning.
    New,
    /// At its beginning, but for a CR.
    Return,
    Inside,
}

impl Line {
    /// Goes on with `bytes`, up to the end of the head if it is there: how many they were.
    fn find_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        loop {
            let next = bytes.get(at).copied();
            match (*self, next?) {
                (Self::New | Self::Return, b'\n') => return Some(at + 1),
                (Self::New, b'\r') => *self = Self::Return,
                (Self::Before, b'\r' | b'\n') => {}
                _ => {
                    let Some(rest) = memchr(b'\n', &bytes[at..]) else {
                        *self = Self::Inside;
                        return None;
                    };
                    *self = Self::New;
                    at += rest;
                }
            }
            at += 1;
        }
    }
}

impl Messages {
    pub(super) fn new() -> Self {
        Self {
            begun: false,
            line: None,
            beyond: None,
            body: 0,
            last: 0,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if !self.begun && self.body == 0 {
            self.begun = true;
            self.line = Some(Line::Before);
        }
        self.note_last(bytes);
        if self.body > 0 {
            bytes = self.read_body(bytes);
            if bytes.is_empty() || bytes == EXTRA {
                return;
            }
            self.begun = true;
        }
        let length = bytes.len() as u64;
        if let Some(beyond) = &mut self.beyond {
            *beyond += length;
        } else if let Some(line) = &mut self.line {
            let end = line.find_end(bytes);
            self.beyond = end.map(|end| length - end as u64);
        }
    }

    /// What is behind the body.
    fn read_body<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.body == CHUNKED {
            if self.ends_with(END_OF_CHUNKS) {
                self.body = 0;
            }
            return &[];
        }
        let length = bytes.len() as u64;
        let taken = length.min(self.body);
        self.body -= taken;
        &bytes[taken as usize..]
    }

    pub(super) fn take(&mut self, body: BodyLength) {
        let beyond = self.beyond.take();
        let known = beyond.unwrap_or(0);
        self.line = None;
        // What is here in part does not end as a head does.
        let has_more = !self.ends_with(END_OF_HEAD) && !self.ends_with(b"\n\n");
        (self.body, self.begun) = match body {
            BodyLength::None => (0, has_more),
            BodyLength::Known(length) if known > length => {
                let extra = known - length == EXTRA.len() as u64 && self.ends_with(EXTRA);
                (0, has_more && !extra)
            }
            BodyLength::Known(length) => (length - known, false),
            BodyLength::Unknown if self.ends_with(END_OF_CHUNKS) => (0, false),
            BodyLength::Unknown => (CHUNKED, false),
        };
    }

    fn note_last(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk() {
            self.last = u64::from_be_bytes(*last);
        } else {
            for byte in bytes {
                self.last = self.last << 8 | u64::from(*byte);
            }
        }
    }

    fn ends_with(&self, end: &[u8]) -> bool {
        self.last.to_be_bytes().ends_with(end)
    }
}

/// An empty line (RFC 9112, section 2.1).
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// The last chunk, without trailers (section 7.1).
const END_OF_CHUNKS: &[u8] = b"\r\n0\r\n\r\n";

/// Old clients send it after a body, and nobody minds (section 2.2).
const EXTRA: &[u8] = b"\r\n";

/// Longer than any body that says how long it is.
const CHUNKED: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    const POST: &[u8] = b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\n";
    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    /// Whether a head has begun after each of what was read, and of those that were taken.
    fn begun_after(steps: &[Result<&[u8], BodyLength>]) -> Vec<bool> {
        let mut messages = Messages::new();
        steps
            .iter()
            .map(|step| {
                match step {
                    Ok(bytes) => messages.read(bytes),
                    Err(body) => messages.take(*body),
                }
                messages.has_begun()
            })
            .collect()
    }

    #[test]
    fn what_has_come_of_a_body_is_known_whatever_the_method_the_lines_and_the_pieces() {
        let heads: [&[u8]; 4] = [
            b"GET / HTTP/1.1\r\ncontent-length: 4\r\n\r\nbody",
            b"POST / HTTP/1.1\ncontent-length: 4\n\nbody",
            b"PUT / HTTP/1.1\r\ncontent-length: 4\n\r\nbody",
            b"\r\n\r\nPOST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nbody",
        ];
        for head in heads {
            for cut in 0..head.len() {
                let mut messages = Messages::new();
                messages.read(&head[..cut]);
                messages.read(&head[cut..]);
                messages.take(BodyLength::Known(4));
                assert!(!messages.has_begun(), "{cut}");
                // The next, from its first byte on.
                messages.read(b"G");
                assert!(messages.has_begun(), "{cut}");
            }
        }
    }

    #[test]
    fn a_head_has_begun_until_it_is_taken_and_one_in_line_stays() {
        let taken = Err(BodyLength::None);
        assert_eq!(
            begun_after(&[Ok(GET), taken, Ok(b"G"), Ok(&GET[1..]), taken]),
            [true, false, true, true, false]
        );
        let in_line = [GET, GET, b"G"].concat();
        assert_eq!(
            begun_after(&[Ok(&in_line), taken, taken, Ok(&GET[1..]), taken]),
            [true, true, true, true, false]
        );
    }

    #[test]
    fn what_is_read_of_a_body_is_no_head_however_it_is_split() {
        let taken = Err(BodyLength::Known(4));
        let whole = [POST, b"body"].concat();
        let half = [POST, b"bo"].concat();
        let more = [POST, b"bodyG"].concat();
        let extra = [POST, b"body\r\n"].concat();
        assert_eq!(begun_after(&[Ok(&whole), taken]), [true, false]);
        assert_eq!(
            begun_after(&[Ok(&half), taken, Ok(b"dy"), Ok(b"G")]),
            [true, false, false, true]
        );
        assert_eq!(
            begun_after(&[Ok(POST), taken, Ok(b"bo"), Ok(b"dyG")]),
            [true, false, false, true]
        );
        assert_eq!(begun_after(&[Ok(&more), taken]), [true, true]);
        assert_eq!(begun_after(&[Ok(&extra), taken]), [true, false]);
        assert_eq!(
            begun_after(&[Ok(POST), taken, Ok(b"body\r\n"), Ok(b"G")]),
            [true, false, false, true]
        );
    }

    #[test]
    fn a_body_in_chunks_ends_with_the_last_of_them() {
        let taken = Err(BodyLength::Unknown);
        assert_eq!(
            begun_after(&[
                Ok(POST),
                taken,
                Ok(b"4\r\nbo\n\n\r\n"),
                Ok(b"0\r\n\r"),
                Ok(b"\n"),
                Ok(b"G")
            ]),
            [true, false, false, false, false, true]
        );
        let whole = [POST, b"1\r\na\r\n0\r\n\r\n"].concat();
        assert_eq!(
            begun_after(&[Ok(&whole), taken, Ok(b"G")]),
            [true, false, true]
        );
    }
}
