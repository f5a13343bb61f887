//! What of a request has come, as far as it can be told from the bytes alone, beside hyper that parses them.

use crate::{
    base::http2::{Frames, Opened, Opening},
    middleware::http::messages::Messages,
};

/// Follows the bytes that a peer sends, and says whether something is here in part.
#[derive(Debug)]
pub(super) struct Progress {
    state: State,
}

#[derive(Debug)]
enum State {
    /// What has come may be HTTP/2.
    Preface(Opening),
    Http1(Messages),
    Http2(Frames),
}

/// What of a request is here in part: timed for as long as it stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Partial {
    /// What decides on the version, or the head of the first request.
    First,
    /// The head of HTTP/1 that comes after so many.
    Head(u64),
    /// What comes after so many frames or blocks of headers.
    Frame(u64),
}

/// How long the body of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyLength {
    None,
    Known(u64),
    /// It comes in chunks.
    Unknown,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            state: State::Preface(Opening::new()),
        }
    }

    pub(super) fn is_http2(&self) -> bool {
        matches!(self.state, State::Http2(_))
    }

    /// Returns how many windows of HTTP/2 were opened.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> u64 {
        if let State::Preface(opening) = &mut self.state {
            match opening.read(bytes) {
                Opened::InPart => {}
                Opened::Whole(rest) => {
                    self.state = State::Http2(Frames::new());
                    bytes = rest;
                }
                Opened::Other => {
                    let mut messages = Messages::new();
                    messages.read(opening.seen());
                    self.state = State::Http1(messages);
                }
            }
        }
        match &mut self.state {
            State::Preface(_) => 0,
            State::Http1(messages) => {
                messages.read(bytes);
                0
            }
            State::Http2(frames) => frames.read(bytes),
        }
    }

    /// HTTP/1: the head of a request has been taken.
    pub(super) fn take(&mut self, body: BodyLength) {
        if let State::Http1(messages) = &mut self.state {
            messages.take(body);
        }
    }

    /// What is here in part, after so many requests. Of HTTP/1, what comes while one is worked on is in line.
    pub(super) fn partial(&self, taken: u64, busy: bool) -> Option<Partial> {
        match &self.state {
            State::Preface(opening) => (!opening.seen().is_empty()).then_some(Partial::First),
            State::Http1(messages) if busy || !messages.has_begun() => None,
            State::Http1(_) if taken == 0 => Some(Partial::First),
            State::Http1(_) => Some(Partial::Head(taken)),
            State::Http2(frames) => frames.partial().map(Partial::frame),
        }
    }

    /// HTTP/1: part of a head is here.
    pub(super) fn has_begun(&self) -> bool {
        matches!(&self.state, State::Http1(messages) if messages.has_begun())
    }
}

impl Partial {
    /// What comes after so many frames; before SETTINGS there is none.
    fn frame(after: u64) -> Self {
        match after {
            0 => Self::First,
            after => Self::Frame(after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partial_after(pieces: &[&[u8]]) -> Vec<Option<Partial>> {
        let mut progress = Progress::new();
        pieces
            .iter()
            .map(|piece| {
                progress.read(piece);
                progress.partial(0, false)
            })
            .collect()
    }

    #[test]
    fn what_decides_on_the_version_and_the_first_of_either_are_one() {
        let first = Some(Partial::First);
        assert_eq!(
            partial_after(&[b"", b"P", b"OST / HTTP/1.1\r\n"]),
            [None, first, first]
        );
        assert_eq!(partial_after(&[b"GET"]), [first]);
        assert_eq!(
            partial_after(&[b"PRI", b" * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0"]),
            [first; 3]
        );
    }

    #[test]
    fn what_looked_like_the_preface_is_of_the_head() {
        let mut progress = Progress::new();
        progress.read(b"P");
        progress.read(b"OST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabcG");
        progress.take(BodyLength::Known(3));

        assert!(progress.has_begun());
    }
}
