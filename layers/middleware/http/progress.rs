//! What of a request has come, as far as it can be told from the bytes alone, beside hyper that parses them.

/// Follows the bytes that a peer sends, and says whether something is here in part.
///
/// For HTTP/1 that is everything between the first byte after a request and the next: where a head ends hyper says.
/// For HTTP/2 it is a frame, or a block of headers, that has begun and not ended (RFC 9113, sections 4.1 and 6.2).
#[derive(Debug)]
pub(super) struct Progress {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes, and all are those of the HTTP/2 preface.
    Preface(u8),
    Http1,
    Http2(Frames),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frames {
    header: [u8; 9],
    /// How much of the header is here.
    have: u8,
    /// How much of the payload is still to come.
    left: u32,
    /// A block of headers has not ended.
    block: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            state: State::Preface(0),
        }
    }

    pub(super) fn is_http2(&self) -> bool {
        matches!(self.state, State::Http2(_))
    }

    /// Something is here in part. Of HTTP/1 only the connection knows where a request ends.
    pub(super) fn is_partial(&self) -> bool {
        match self.state {
            State::Preface(have) => have > 0,
            State::Http1 => false,
            State::Http2(frames) => frames.have > 0 || frames.block,
        }
    }

    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while let [byte, rest @ ..] = bytes {
            match &mut self.state {
                State::Http1 => return,
                State::Preface(have) => {
                    if PREFACE[usize::from(*have)] != *byte {
                        self.state = State::Http1;
                        return;
                    }
                    *have += 1;
                    bytes = rest;
                    if usize::from(*have) == PREFACE.len() {
                        self.state = State::Http2(Frames::new());
                    }
                }
                State::Http2(frames) => bytes = frames.read(bytes),
            }
        }
    }
}

impl Frames {
    fn new() -> Self {
        Self {
            header: [0; 9],
            have: 0,
            left: 0,
            block: false,
        }
    }

    /// Takes what belongs to the present frame; returns the rest.
    fn read<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let have = usize::from(self.have);
        if have < self.header.len() {
            let taken = bytes
                .len()
                .min(self.header.len() - have);
            self.header[have..have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken as u8;
            if have + taken == self.header.len() {
                let [high, middle, low, ..] = self.header;
                self.left = u32::from_be_bytes([0, high, middle, low]);
                self.end_if_complete();
            }
            return &bytes[taken..];
        }
        let taken = bytes.len().min(self.left as usize);
        self.left -= taken as u32;
        self.end_if_complete();
        &bytes[taken..]
    }

    fn end_if_complete(&mut self) {
        if self.left > 0 {
            return;
        }
        self.have = 0;
        let [_, _, _, kind, flags, ..] = self.header;
        if matches!(kind, HEADERS | CONTINUATION) {
            self.block = flags & END_HEADERS == 0;
        }
    }
}

/// RFC 9113, section 3.4.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn partial_after(pieces: &[&[u8]]) -> Vec<bool> {
        let mut progress = Progress::new();
        pieces
            .iter()
            .map(|piece| {
                progress.read(piece);
                progress.is_partial()
            })
            .collect()
    }

    #[test]
    fn a_preface_is_partial_until_it_is_whole_or_none() {
        assert_eq!(
            partial_after(&[b"PRI", b" * HTTP/2.0\r\n\r\nSM\r\n\r\n"]),
            [true, false]
        );
        assert_eq!(partial_after(&[b"P", b"OST / HTTP/1.1\r\n"]), [true, false]);
    }

    #[test]
    fn a_frame_is_partial_until_its_last_byte_however_it_is_split() {
        let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], b"12345678"].concat();
        let mut progress = Progress::new();
        progress.read(PREFACE);
        for byte in &ping[..ping.len() - 1] {
            progress.read(&[*byte]);
            assert!(progress.is_partial());
        }
        progress.read(&ping[ping.len() - 1..]);

        assert!(!progress.is_partial() && progress.is_http2());
    }

    #[test]
    fn headers_are_partial_until_their_block_ends() {
        let headers = [0, 0, 1, 1, 0, 0, 0, 0, 1, 7];
        let more = [0, 0, 1, 9, 0, 0, 0, 0, 1, 7];
        let last = [0, 0, 0, 9, 4, 0, 0, 0, 1];

        assert_eq!(
            partial_after(&[PREFACE, &headers, &more, &last]),
            [false, true, true, false]
        );
    }
}
