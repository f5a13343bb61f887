//! The protocol: a big-endian `u32` length, then that many bytes of payload. The reply to a request
//! is the same frame, and replies come in the order of the requests.
//!
//! [`Inbox`] is the receive buffer shared by the hand-written servers and the load generator.

use std::io;

/// Bytes of the length prefix.
pub(crate) const HEADER: usize = 4;
/// A payload begins with the request's id.
pub(crate) const MIN_PAYLOAD: usize = 8;
/// What a server accepts before it drops the connection.
pub(crate) const MAX_PAYLOAD: usize = 1 << 20;

/// Bytes asked for in one read.
const READ: usize = 64 * 1024;

/// A receive buffer that knows how much of its content is whole frames.
#[derive(Debug)]
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    /// Bytes received.
    filled: usize,
    /// Bytes of these that are whole frames.
    whole: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; READ],
            filled: 0,
            whole: 0,
        }
    }

    /// Where the next read goes; never empty between [`consume`](Self::consume) and
    /// [`received`](Self::received).
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    /// Notes that `n` more bytes are in the buffer, and looks for the frames they complete.
    pub(crate) fn received(&mut self, n: usize) -> io::Result<()> {
        self.filled += n;
        while let Some(payload) = payload_len(&self.buffer[self.whole..self.filled]) {
            if payload > MAX_PAYLOAD {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
            }
            let frame = HEADER + payload;
            if self.filled - self.whole < frame {
                if frame > self.buffer.len() {
                    self.buffer.resize(frame, 0);
                }
                break;
            }
            self.whole += frame;
        }
        Ok(())
    }

    /// The whole frames, headers included.
    pub(crate) fn whole(&self) -> &[u8] {
        &self.buffer[..self.whole]
    }

    /// The payloads of the whole frames.
    pub(crate) fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.whole();
        std::iter::from_fn(move || {
            let frame = HEADER + payload_len(rest)?;
            let (frame, after) = rest.split_at(frame);
            rest = after;
            Some(&frame[HEADER..])
        })
    }

    /// Forgets the whole frames, and moves what is left of a started one to the front.
    pub(crate) fn consume(&mut self) {
        self.buffer
            .copy_within(self.whole..self.filled, 0);
        self.filled -= self.whole;
        self.whole = 0;
    }
}

fn payload_len(bytes: &[u8]) -> Option<usize> {
    let (header, _) = bytes.split_first_chunk::<HEADER>()?;
    Some(u32::from_be_bytes(*header) as usize)
}

/// What requests of one size carry: an id, then a fill that depends on the id.
#[derive(Debug)]
pub(crate) struct Pattern {
    payload: usize,
    noise: Vec<u8>,
}

impl Pattern {
    /// Number of different fills. A prime, so that it does not resonate with depths or sizes.
    const FILLS: u64 = 251;

    pub(crate) fn new(payload: usize) -> Self {
        let mut state = 0x9e37_79b9_u32;
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_be_bytes()[0]
        });
        Self {
            payload,
            noise: noise
                .take(payload + Self::FILLS as usize)
                .collect(),
        }
    }

    /// Appends the request `id`, header included.
    pub(crate) fn encode(&self, id: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.payload as u32).to_be_bytes());
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(self.fill(id));
    }

    /// Whether `payload` is, to the byte, that of request `id`.
    pub(crate) fn matches(&self, id: u64, payload: &[u8]) -> bool {
        payload
            .split_first_chunk()
            .is_some_and(|(head, fill)| *head == id.to_be_bytes() && fill == self.fill(id))
    }

    fn fill(&self, id: u64) -> &[u8] {
        &self.noise[(id % Self::FILLS) as usize..][..self.payload - MIN_PAYLOAD]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(inbox: &mut Inbox, bytes: &[u8]) -> io::Result<()> {
        inbox.spare()[..bytes.len()].copy_from_slice(bytes);
        inbox.received(bytes.len())
    }

    #[test]
    fn frames_survive_arriving_byte_by_byte() {
        for payload in [MIN_PAYLOAD, 64, READ + 1] {
            let (pattern, mut inbox) = (Pattern::new(payload), Inbox::new());
            let (mut sent, mut seen) = (Vec::new(), 0);
            (0..3).for_each(|id| pattern.encode(id, &mut sent));
            for byte in sent {
                feed(&mut inbox, &[byte]).expect("short enough");
                for payload in inbox.payloads() {
                    assert!(pattern.matches(seen, payload));
                    seen += 1;
                }
                inbox.consume();
            }
            assert_eq!(seen, 3);
        }
    }

    #[test]
    fn a_batch_ends_at_the_last_whole_frame() {
        let (pattern, mut inbox, mut sent) = (Pattern::new(64), Inbox::new(), Vec::new());
        (0..3).for_each(|id| pattern.encode(id, &mut sent));
        feed(&mut inbox, &sent[..sent.len() - 1]).expect("short enough");
        assert_eq!(inbox.whole(), &sent[..2 * (HEADER + 64)]);
        inbox.consume();
        feed(&mut inbox, &sent[sent.len() - 1..]).expect("short enough");
        assert_eq!(inbox.whole(), &sent[2 * (HEADER + 64)..]);
    }

    #[test]
    fn an_announced_length_over_the_limit_is_an_error() {
        let header = (MAX_PAYLOAD as u32 + 1).to_be_bytes();
        assert!(feed(&mut Inbox::new(), &header).is_err());
    }

    #[test]
    fn a_reply_with_another_id_or_one_wrong_byte_does_not_match() {
        let (pattern, mut frame) = (Pattern::new(64), Vec::new());
        pattern.encode(7, &mut frame);
        assert!(pattern.matches(7, &frame[HEADER..]));
        assert!(!pattern.matches(8, &frame[HEADER..]));
        frame[HEADER + 40] ^= 1;
        assert!(!pattern.matches(7, &frame[HEADER..]));
        assert!(!pattern.matches(7, &[]));
    }
}
