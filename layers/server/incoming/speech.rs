//! Whose turn it is, as far as it can be told from bytes alone.

use memchr::memmem;

use crate::{
    base::http2::{Frames, Opened, Opening},
    server::incoming::answers::Answers,
};

/// What is spoken on a stream: by turns, as most protocols and HTTP/1 do, or as HTTP/2 does.
#[derive(Debug)]
pub(super) enum Speech {
    /// What has come may be HTTP/2.
    Opening(Opening),
    Turns(Box<Turns>),
    /// Requests run side by side: what waits for its answer only HTTP knows.
    Http2(Frames),
    /// Either speaks as it likes, after an upgrade.
    Free,
}

#[derive(Debug)]
pub(super) struct Turns {
    /// The peer has spoken since it was last answered.
    heard: bool,
    answers: Answers,
    /// What it said last.
    last: [u8; HEAD.len() - 1],
}

impl Speech {
    pub(super) fn new() -> Self {
        Self::Opening(Opening::new())
    }

    /// The peer says something.
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        match self {
            Self::Turns(turns) => turns.hear(bytes),
            Self::Http2(frames) => {
                frames.read(bytes);
            }
            Self::Opening(opening) => match opening.read(bytes) {
                Opened::InPart => {}
                Opened::Whole(rest) => {
                    let mut frames = Frames::new();
                    frames.read(rest);
                    *self = Self::Http2(frames);
                }
                Opened::Other => {
                    let mut turns = Turns::new();
                    turns.hear(bytes);
                    *self = Self::Turns(Box::new(turns));
                }
            },
            Self::Free => {}
        }
    }

    /// It is answered; whether that ends what was waited for.
    pub(super) fn answer<'a>(&mut self, written: impl Iterator<Item = &'a [u8]>) -> bool {
        if let Self::Opening(opening) = self {
            // Settings are no answer.
            if opening.seen().is_empty() {
                return false;
            }
            *self = Self::Turns(Box::new(Turns::new()));
        }
        // Nor is one that another request gets.
        let Self::Turns(turns) = self else {
            return false;
        };
        turns.heard = false;
        for bytes in written {
            if turns.answers.write(bytes) {
                *self = Self::Free;
                break;
            }
        }
        true
    }

    /// What is to come, by a number that is another for what comes next: the rest of a request or our answer, and of
    /// HTTP/2 the rest of a head.
    pub(super) fn waits_for(&self) -> Option<u64> {
        match self {
            Self::Opening(opening) => (!opening.seen().is_empty()).then_some(0),
            Self::Turns(turns) => turns.heard.then_some(0),
            Self::Free => None,
            Self::Http2(frames) => frames.partial(),
        }
    }
}

impl Turns {
    fn new() -> Self {
        Self {
            heard: false,
            answers: Answers::new(),
            last: [0; HEAD.len() - 1],
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.heard |= !bytes.is_empty();
        if self.answers.are_lost() {
            return;
        }
        // Whether it asks for an answer without its body only HTTP knows. Where it might, none is looked for any more.
        let begins = &bytes[..bytes.len().min(self.last.len())];
        let mut across = [0; 2 * (HEAD.len() - 1)];
        let (before, behind) = across.split_at_mut(self.last.len());
        before.copy_from_slice(&self.last);
        behind[..begins.len()].copy_from_slice(begins);
        let across = &across[..self.last.len() + begins.len()];
        if memmem::find(across, HEAD).is_some() || memmem::find(bytes, HEAD).is_some() {
            self.answers.lose();
        }
        let last = bytes
            .last_chunk()
            .or_else(|| across.last_chunk());
        self.last = *last.unwrap_or(&self.last);
    }
}

/// The method of which the answer says how long a body is that it does not have (RFC 9110, section 9.3.2).
const HEAD: &[u8] = b"HEAD ";

#[cfg(test)]
mod tests {
    use super::*;

    const UPGRADE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

    fn is_free_after(heard: &[&[u8]], written: &[&[u8]]) -> bool {
        let mut speech = Speech::new();
        for bytes in heard {
            speech.hear(bytes);
        }
        speech.answer(written.iter().copied());
        matches!(speech, Speech::Free)
    }

    #[test]
    fn after_an_upgrade_either_speaks_as_it_likes() {
        let answer: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

        assert!(is_free_after(&[b"GET"], &[UPGRADE]));
        assert!(is_free_after(
            &[b"P", b"UT"],
            &[answer, b"HTTP", &UPGRADE[4..]]
        ));
    }

    #[test]
    fn where_an_answer_may_have_no_body_an_upgrade_is_none() {
        let answer: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";

        for heard in [
            &[b"HEAD / HTTP/1.1" as &[u8]] as &[&[u8]],
            &[b"HE", b"A", b"D "],
            &[b"GET / HTTP/1.1\r\n\r\nHEAD", b" /"],
        ] {
            assert!(!is_free_after(heard, &[answer, UPGRADE]), "{heard:?}");
        }
    }
}
