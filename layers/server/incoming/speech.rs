//! Whose turn it is, as far as it can be told from bytes alone.

use crate::base::http2::{Frames, Opened, Opening};

/// What is spoken on a stream: by turns, as most protocols and HTTP/1 do, or as HTTP/2 does.
#[derive(Debug)]
pub(super) enum Speech {
    /// What has come may be HTTP/2.
    Opening(Opening),
    /// The peer has spoken since it was last answered, or it has not.
    Turns { heard: bool },
    /// Requests run side by side: what waits for its answer only HTTP knows.
    Http2(Frames),
    /// Either speaks as it likes, after an upgrade.
    Free,
}

impl Speech {
    pub(super) fn new() -> Self {
        Self::Opening(Opening::new())
    }

    /// The peer says something.
    pub(super) fn hear(&mut self, bytes: &[u8]) {
        match self {
            Self::Turns { heard } => *heard |= !bytes.is_empty(),
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
                Opened::Other => *self = Self::Turns { heard: true },
            },
            Self::Free => {}
        }
    }

    /// It is answered; whether that ends what was waited for.
    pub(super) fn answer(&mut self, first: &[u8]) -> bool {
        match self {
            Self::Turns { heard: true } if first.starts_with(SWITCHING) => *self = Self::Free,
            Self::Turns { heard } => *heard = false,
            Self::Opening(opening) if !opening.seen().is_empty() => {
                *self = Self::Turns { heard: false };
            }
            // Settings are no answer, nor is one that another request gets.
            Self::Opening(_) | Self::Http2(_) | Self::Free => return false,
        }
        true
    }

    /// What is to come, by a number that is another for what comes next: the rest of a request or our answer, and of
    /// HTTP/2 the rest of a head.
    pub(super) fn waits_for(&self) -> Option<u64> {
        match self {
            Self::Opening(opening) => (!opening.seen().is_empty()).then_some(0),
            Self::Turns { heard } => heard.then_some(0),
            Self::Free => None,
            Self::Http2(frames) => frames.partial(),
        }
    }
}

/// An upgrade (RFC 9110, section 15.2.2), after which requests and answers are none of HTTP's.
///
/// Answers are not parsed for it, which would cost each request more than everything else here: so a piece of a body that
/// begins like this, written while more has been heard, is taken for one. It costs whoever had that sent to itself its
/// request deadline, and nobody else anything; the idle timeout stays.
const SWITCHING: &[u8] = b"HTTP/1.1 101";
