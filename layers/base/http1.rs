//! HTTP/1 as bytes (RFC 9112): where a head ends, and where a body in chunks does.

use memchr::memchr;

/// Where in its line a head is. A line ends with LF, as hyper has it (section 2.2).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Line {
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
    pub(crate) fn find_end(&mut self, bytes: &[u8]) -> Option<usize> {
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

/// Where a body in chunks is (section 7.1). What is none leads it anywhere; whoever parses it fails.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Chunks {
    /// In the line that begins a chunk, which is of this size as far as it is known, and whether it can still grow.
    Size(u64, bool),
    /// So much of a chunk is still to come.
    Data(u64),
    /// Behind a chunk, before the next line.
    Behind,
    /// Behind the last of them.
    Trailers(Line),
}

impl Chunks {
    pub(crate) fn new() -> Self {
        Self::Size(0, true)
    }

    /// Goes on with `bytes`, up to the end of the body if it is there: how many they were.
    pub(crate) fn find_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            at += match self {
                Self::Size(size, grows) => {
                    let (byte, size) = (bytes[at], *size);
                    let digit = char::from(byte).to_digit(16);
                    *self = match (byte, digit) {
                        (b'\n', _) if size == 0 => Self::Trailers(Line::New),
                        (b'\n', _) => Self::Data(size),
                        (_, Some(digit)) if *grows => {
                            let more = size.saturating_mul(16);
                            Self::Size(more.saturating_add(digit.into()), true)
                        }
                        // What else the line says, as extensions.
                        _ => Self::Size(size, false),
                    };
                    1
                }
                Self::Data(left) => {
                    let taken =
                        (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= taken as u64;
                    if *left == 0 {
                        *self = Self::Behind;
                    }
                    taken
                }
                Self::Behind => match memchr(b'\n', &bytes[at..]) {
                    None => return None,
                    Some(end) => {
                        *self = Self::new();
                        end + 1
                    }
                },
                Self::Trailers(line) => {
                    let end = line.find_end(&bytes[at..])?;
                    return Some(at + end);
                }
            };
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_in_chunks_ends_behind_its_trailers_however_it_is_split() {
        for body in [
            "0\r\n\r\n",
            "4\r\nbody\r\n0\r\n\r\n",
            "4;name=a0\r\nbo\n\n\r\n00\r\n\r\n",
            "A \r\n\r\n0\r\n\r\n...\r\n0\r\ndigest: 0\r\nlast: \r\n\r\n",
        ] {
            let with_more = [body.as_bytes(), b"GET /"].concat();
            for cut in 0..body.len() {
                let mut chunks = Chunks::new();
                assert_eq!(chunks.find_end(&with_more[..cut]), None, "{body:?} {cut}");
                let end = chunks.find_end(&with_more[cut..]);
                assert_eq!(end, Some(body.len() - cut), "{body:?} {cut}");
            }
        }
    }

    #[test]
    fn a_chunk_of_any_size_is_waited_for() {
        let mut chunks = Chunks::new();

        let end = chunks.find_end(b"fffffffffffffffff\r\n0\r\n\r\n");

        assert_eq!(end, None);
    }
}
