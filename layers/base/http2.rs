//! What a client of HTTP/2 begins with, and where its frames end: for whoever times what it sends and leaves the rest
//! to others.

/// So many bytes, and all are those of the preface.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening(usize);

/// What bytes are, after those of an [`Opening`].
#[derive(Debug)]
pub(crate) enum Opened<'a> {
    /// The preface, as far as they go.
    InPart,
    /// The preface, and these behind it.
    Whole(&'a [u8]),
    /// No preface, and so no HTTP/2.
    Other,
}

impl Opening {
    pub(crate) fn new() -> Self {
        Self(0)
    }

    /// What has come so far.
    pub(crate) fn seen(self) -> &'static [u8] {
        &PREFACE[..self.0]
    }

    pub(crate) fn read<'a>(&mut self, bytes: &'a [u8]) -> Opened<'a> {
        let rest = &PREFACE[self.0..];
        let most = rest.len().min(bytes.len());
        if rest[..most] != bytes[..most] {
            return Opened::Other;
        }
        self.0 += most;
        if self.0 < PREFACE.len() {
            return Opened::InPart;
        }
        Opened::Whole(&bytes[most..])
    }
}

/// What a client of HTTP/2 says first (RFC 9113, section 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Follows the frames that a client sends after its preface (RFC 9113, sections 3.4, 4.1 and 6.2).
///
/// What is here in part is the header of a frame, its payload unless that is DATA, or a block of headers that has not
/// ended; and at the beginning everything, until SETTINGS are here.
#[derive(Debug)]
pub(crate) struct Frames {
    header: [u8; 9],
    /// How much of the header is here.
    have: u8,
    /// How much of the payload is still to come.
    left: u32,
    /// A block of headers has not ended.
    block: bool,
    /// SETTINGS have come, as they must first.
    opened: bool,
    /// Frames and blocks that have ended.
    ended: u64,
}

impl Frames {
    pub(crate) fn new() -> Self {
        Self {
            header: [0; 9],
            have: 0,
            left: 0,
            block: false,
            opened: false,
            ended: 0,
        }
    }

    /// Something is here in part: the number of what ended before it, which is zero until SETTINGS are here. For as long
    /// as it is the same, so is what is waited for.
    pub(crate) fn partial(&self) -> Option<u64> {
        if !self.opened {
            return Some(0);
        }
        let has_header = usize::from(self.have) == self.header.len();
        let in_frame = self.have > 0 && !(has_header && self.kind() == DATA);
        (in_frame || self.block).then_some(self.ended)
    }

    /// Returns how many windows were opened.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> u64 {
        let mut windows = 0;
        while !bytes.is_empty() {
            bytes = self.read_one(bytes);
            windows += u64::from(self.have == 0 && self.kind() == WINDOW_UPDATE);
        }
        windows
    }

    /// Takes what belongs to the present frame; returns the rest.
    fn read_one<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
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
        match self.kind() {
            HEADERS | CONTINUATION => self.block = self.flags() & END_HEADERS == 0,
            SETTINGS => self.opened |= self.flags() & ACK == 0,
            _ => {}
        }
        // A block is one, of however many frames; and so is all that comes before SETTINGS.
        self.ended += u64::from(self.opened && !self.block);
    }

    fn kind(&self) -> u8 {
        self.header[3]
    }

    fn flags(&self) -> u8 {
        self.header[4]
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const NO_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0pingping";

    fn opened() -> Frames {
        let mut frames = Frames::new();
        frames.read(NO_SETTINGS);
        frames
    }

    fn partial_after(pieces: &[&[u8]]) -> Vec<Option<u64>> {
        let mut frames = opened();
        pieces
            .iter()
            .map(|piece| {
                frames.read(piece);
                frames.partial()
            })
            .collect()
    }

    #[test]
    fn everything_is_of_the_first_until_settings_are_here() {
        let mut frames = Frames::new();
        let answer = [0, 0, 0, 4, 1, 0, 0, 0, 0];
        for piece in [&answer, PING, &NO_SETTINGS[..8]] {
            frames.read(piece);
            assert_eq!(frames.partial(), Some(0));
        }
        frames.read(&NO_SETTINGS[8..]);

        assert_eq!(frames.partial(), None);
    }

    #[test]
    fn a_frame_is_partial_until_its_last_byte_however_it_is_split() {
        let mut frames = opened();
        for byte in &PING[..PING.len() - 1] {
            frames.read(&[*byte]);
            assert_eq!(frames.partial(), Some(1));
        }
        frames.read(&PING[PING.len() - 1..]);
        assert_eq!(frames.partial(), None);

        frames.read(&PING[..1]);
        assert_eq!(frames.partial(), Some(2));
    }

    #[test]
    fn of_data_only_the_header_is_partial() {
        let data = [0, 0, 3, 0, 0, 0, 0, 0, 1];

        assert_eq!(
            partial_after(&[&data[..8], &data[8..], b"ab", b"c", &data[..1]]),
            [Some(1), None, None, None, Some(2)]
        );
    }

    #[test]
    fn headers_are_partial_until_their_block_ends_as_one() {
        let headers = [0, 0, 1, 1, 0, 0, 0, 0, 1, 7];
        let more = [0, 0, 1, 9, 0, 0, 0, 0, 1, 7];
        let last = [0, 0, 0, 9, 4, 0, 0, 0, 1];
        let first = Some(1);

        assert_eq!(
            partial_after(&[&headers, &more, &last, &more[..1]]),
            [first, first, None, Some(2)]
        );
    }

    #[test]
    fn a_window_is_opened_once_its_frame_is_whole() {
        let mut frames = opened();
        let window = b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01";

        assert_eq!(frames.read(&window[..12]), 0);
        assert_eq!(frames.read(&window[12..]), 1);
        assert_eq!(frames.read(&window.repeat(2)), 2);
        assert_eq!(frames.read(PING), 0);
    }
}
