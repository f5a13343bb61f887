use bytes::{Buf, BufMut, Bytes, BytesMut};
use memchr::{memchr, memmem};
use tokio_util::codec::{Decoder, Encoder};

use crate::{base::error::ConfigError, middleware::frame::CodecError};

/// Frames with a delimiter behind them: lines, or anything that ends in a byte string.
///
/// **The limit** counts a frame without its delimiter. A frame that grows past it is refused as soon as that
/// is certain, once, however its bytes are split.
///
/// | input | result |
/// |---|---|
/// | nothing between two delimiters | an empty frame |
/// | too long | [`CodecError::TooLong`]: the connection ends, or [the frame is skipped](Self::skip_oversize) |
/// | end of stream without the delimiter | [`CodecError::Truncated`] |
/// | reply with the delimiter in it | [`CodecError::Delimiter`], and nothing is written |
///
/// ```
/// use bytes::BytesMut;
/// use tokio_util::codec::Decoder;
/// use tower_net::frame::Delimited;
///
/// let mut wire = BytesMut::from("one\r\ntwo\n");
/// let mut lines = Delimited::lines(80);
/// assert_eq!(lines.decode(&mut wire)?.as_deref(), Some(&b"one"[..]));
/// assert_eq!(lines.decode(&mut wire)?.as_deref(), Some(&b"two"[..]));
/// # Ok::<_, tower_net::frame::CodecError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Delimited {
    max: usize,
    end: End,
    keep: bool,
    skip_oversize: bool,
    // Bytes known to hold no delimiter, so that a slow line is not searched anew for each byte.
    searched: usize,
    skipping: bool,
}

#[derive(Debug, Clone)]
enum End {
    /// A line feed, with or without a carriage return before it.
    Line,
    Bytes(Bytes),
}

impl Delimited {
    /// Lines of at most `max` bytes, each ended by `\n` or `\r\n`; replies end in `\n`.
    #[must_use]
    pub fn lines(max: usize) -> Self {
        Self::new(End::Line, max)
    }

    /// Frames of at most `max` bytes, each ended by `delimiter`.
    ///
    /// # Errors
    ///
    /// An empty delimiter.
    pub fn by(delimiter: impl Into<Bytes>, max: usize) -> Result<Self, ConfigError> {
        let delimiter = delimiter.into();
        if delimiter.is_empty() {
            return Err(ConfigError::new("delimiter", "must not be empty"));
        }
        Ok(Self::new(End::Bytes(delimiter), max))
    }

    fn new(end: End, max: usize) -> Self {
        Self {
            max,
            end,
            keep: false,
            skip_oversize: false,
            searched: 0,
            skipping: false,
        }
    }

    /// Leaves the delimiter on the frames that come in. Default: it is taken off.
    #[must_use]
    pub fn keep_delimiter(mut self) -> Self {
        self.keep = true;
        self
    }

    /// Discards a frame over the limit up to its delimiter, and goes on with the next. Default: the
    /// connection ends.
    #[must_use]
    pub fn skip_oversize(mut self) -> Self {
        self.skip_oversize = true;
        self
    }

    fn longest_end(&self) -> usize {
        match &self.end {
            End::Line => 2,
            End::Bytes(end) => end.len(),
        }
    }

    /// Where the first frame ends, and where its delimiter does.
    fn find(&self, input: &[u8]) -> Option<(usize, usize)> {
        let from = self.searched.min(input.len());
        match &self.end {
            End::Line => {
                let feed = from + memchr(b'\n', &input[from..])?;
                let cut = usize::from(feed > 0 && input[feed - 1] == b'\r');
                Some((feed - cut, feed + 1))
            }
            End::Bytes(end) => {
                let at = from + memmem::find(&input[from..], end)?;
                Some((at, at + end.len()))
            }
        }
    }

    fn too_long(&self, length: usize) -> CodecError {
        CodecError::TooLong {
            length: length as u64,
            max: self.max,
            skipped: self.skip_oversize,
        }
    }
}

impl Decoder for Delimited {
    type Item = Bytes;
    type Error = CodecError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, CodecError> {
        while let Some((end, next)) = self.find(input) {
            self.searched = 0;
            if self.skipping {
                self.skipping = false;
                input.advance(next);
                continue;
            }
            if end > self.max {
                if self.skip_oversize {
                    input.advance(next);
                }
                return Err(self.too_long(end));
            }
            let mut frame = input.split_to(next);
            if !self.keep {
                frame.truncate(end);
            }
            return Ok(Some(frame.freeze()));
        }
        // The last bytes may be the beginning of a delimiter.
        let tail = input.len().min(self.longest_end() - 1);
        self.searched = input.len() - tail;
        if self.skipping {
            input.advance(self.searched);
            self.searched = 0;
        } else if self.searched > self.max {
            let length = input.len();
            if self.skip_oversize {
                self.skipping = true;
                input.advance(self.searched);
                self.searched = 0;
            }
            return Err(self.too_long(length));
        }
        Ok(None)
    }

    fn decode_eof(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, CodecError> {
        match self.decode(input)? {
            Some(frame) => Ok(Some(frame)),
            None if input.is_empty() && !self.skipping => Ok(None),
            None => Err(CodecError::Truncated { missing: 1 }),
        }
    }
}

impl<T: AsRef<[u8]>> Encoder<T> for Delimited {
    type Error = CodecError;

    fn encode(&mut self, frame: T, out: &mut BytesMut) -> Result<(), CodecError> {
        let frame = frame.as_ref();
        if frame.len() > self.max {
            return Err(self.too_long(frame.len()));
        }
        let end = match &self.end {
            End::Line => &b"\n"[..],
            End::Bytes(end) => end,
        };
        // Whoever put it there would put words into our mouth: it would be two frames at the other end.
        if memmem::find(frame, end).is_some() {
            return Err(CodecError::Delimiter);
        }
        out.reserve(frame.len() + end.len());
        out.put_slice(frame);
        out.put_slice(end);
        Ok(())
    }
}
