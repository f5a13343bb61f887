//! Where a request of HTTP/1 begins.

use crate::{
    base::http1::{Chunks, Line},
    middleware::http::progress::BodyLength,
};

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
    beyond: Option<Beyond>,
    /// What of the last request is still to come.
    body: Body,
    /// The last bytes that were read.
    last: u64,
}

/// What is behind a head before it is known what that is.
#[derive(Debug)]
struct Beyond {
    length: u64,
    /// Where it is, if it is a body in chunks that has not ended.
    chunks: Option<Chunks>,
    /// What is behind the end of that.
    rest: u64,
}

#[derive(Debug)]
enum Body {
    Known(u64),
    Chunks(Chunks),
    /// Chunks, somewhere.
    Somewhere,
}

impl Beyond {
    fn new() -> Self {
        Self {
            length: 0,
            chunks: Some(Chunks::new()),
            rest: 0,
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        let length = bytes.len() as u64;
        self.length += length;
        let Some(chunks) = &mut self.chunks else {
            self.rest += length;
            return;
        };
        if let Some(end) = chunks.find_end(bytes) {
            self.chunks = None;
            self.rest = length - end as u64;
        }
    }
}

impl Messages {
    pub(super) fn new() -> Self {
        Self {
            begun: false,
            line: None,
            beyond: None,
            body: Body::Known(0),
            last: 0,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    pub(super) fn read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.note_last(bytes);
        let in_body = !matches!(self.body, Body::Known(0));
        let bytes = self.read_body(bytes);
        if bytes.is_empty() || in_body && bytes == EXTRA {
            return;
        }
        if !self.begun {
            self.begun = true;
            self.line = Some(Line::Before);
        }
        if let Some(beyond) = &mut self.beyond {
            beyond.read(bytes);
        } else if let Some(line) = &mut self.line {
            if let Some(end) = line.find_end(bytes) {
                self.beyond
                    .insert(Beyond::new())
                    .read(&bytes[end..]);
            }
        }
    }

    /// What is behind the body.
    fn read_body<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let end = match &mut self.body {
            Body::Known(left) => {
                let taken = (bytes.len() as u64).min(*left);
                *left -= taken;
                return &bytes[taken as usize..];
            }
            Body::Chunks(chunks) => chunks.find_end(bytes),
            Body::Somewhere => self
                .ends_with(END_OF_CHUNKS)
                .then_some(bytes.len()),
        };
        let Some(end) = end else {
            return &[];
        };
        self.body = Body::Known(0);
        &bytes[end..]
    }

    pub(super) fn take(&mut self, body: BodyLength) {
        let beyond = self.beyond.take();
        self.line = None;
        // What is here in part does not end as a head does.
        let has_more = !self.ends_with(END_OF_HEAD) && !self.ends_with(b"\n\n");
        let is_extra = |rest| rest == EXTRA.len() as u64 && self.ends_with(EXTRA);
        let known = beyond
            .as_ref()
            .map_or(0, |beyond| beyond.length);
        (self.body, self.begun) = match (body, beyond) {
            (BodyLength::None, _) => (Body::Known(0), has_more),
            (BodyLength::Known(length), _) if known > length => {
                (Body::Known(0), has_more && !is_extra(known - length))
            }
            (BodyLength::Known(length), _) => (Body::Known(length - known), false),
            (BodyLength::Unknown, Some(beyond)) => match beyond.chunks {
                Some(chunks) => (Body::Chunks(chunks), false),
                None => (
                    Body::Known(0),
                    beyond.rest > 0 && has_more && !is_extra(beyond.rest),
                ),
            },
            (BodyLength::Unknown, None) if self.ends_with(END_OF_CHUNKS) => (Body::Known(0), false),
            (BodyLength::Unknown, None) => (Body::Somewhere, false),
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

    #[test]
    fn behind_trailers_the_next_head_has_begun_and_not_before() {
        let taken = Err(BodyLength::Unknown);
        let body: &[u8] = b"3\r\na\n\n\r\n0\r\ndigest: a\r\n\r\n";
        for cut in 0..=body.len() {
            let begins = [POST, &body[..cut]].concat();
            let begun = begun_after(&[Ok(&begins), taken, Ok(&body[cut..]), Ok(b"G")]);
            assert_eq!(begun, [true, false, false, true], "{cut}");
            let with_more = [&body[cut..], b"G"].concat();
            let begun = begun_after(&[Ok(&begins), taken, Ok(&with_more)]);
            assert_eq!(begun, [true, false, true], "{cut}");
        }
        let with_more = [POST, body, b"G"].concat();
        assert_eq!(begun_after(&[Ok(&with_more), taken]), [true, true]);
        let with_extra = [POST, body, b"\r\n"].concat();
        assert_eq!(begun_after(&[Ok(&with_extra), taken]), [true, false]);
    }
}
