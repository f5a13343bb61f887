use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::{base::error::ConfigError, middleware::frame::CodecError};

/// Frames with their length in front.
///
/// A length field of 1 to 8 bytes, in either byte order, at any offset; it may count more or less than what
/// follows it. By default it is a big-endian `u32` that counts exactly what follows, and the frame that comes
/// out is just that.
///
/// **The limit** counts the bytes behind the length field, whatever the field itself is made to count. It is
/// checked as soon as the field is here and before a byte is reserved: memory is taken for what has arrived,
/// never for what was announced.
///
/// | input | result |
/// |---|---|
/// | length zero | an empty frame |
/// | length over the limit | [`CodecError::TooLong`]: the connection ends, or [the frame is skipped](Self::skip_oversize) |
/// | length that is negative once adjusted | [`CodecError::BadLength`] |
/// | end of stream inside a frame | [`CodecError::Truncated`] |
/// | reply over the limit or the field's width | an error, and nothing is written |
///
/// ```
/// use bytes::BytesMut;
/// use tokio_util::codec::{Decoder, Encoder};
/// use tower_net::frame::LengthDelimited;
///
/// let mut codec = LengthDelimited::max_frame(1024);
/// let mut wire = BytesMut::new();
/// codec.encode("hi", &mut wire)?;
/// assert_eq!(&wire[..], b"\0\0\0\x02hi");
/// assert_eq!(codec.decode(&mut wire)?.as_deref(), Some(&b"hi"[..]));
/// # Ok::<_, tower_net::frame::CodecError>(())
/// ```
#[derive(Debug, Clone)]
pub struct LengthDelimited {
    max: usize,
    adjust: i64,
    // Of a frame that is skipped, what is still to come.
    skipping: u64,
    // Narrow, since every connection has a copy.
    offset: u16,
    strip: u16,
    width: u8,
    little_endian: bool,
    skip_oversize: bool,
    // The shorter way will do.
    plain: bool,
}

impl LengthDelimited {
    /// Frames of at most `max` bytes behind a big-endian `u32`. A limit of zero lets only empty frames pass.
    #[must_use]
    pub fn max_frame(max: usize) -> Self {
        Self {
            // So that a length and its header never overflow.
            max: max.min(isize::MAX as usize),
            offset: 0,
            width: 4,
            adjust: 0,
            strip: 4,
            little_endian: false,
            skip_oversize: false,
            plain: true,
            skipping: 0,
        }
    }

    /// The length field takes up `bytes`, 1 to 8, and the header is stripped as a whole.
    ///
    /// # Errors
    ///
    /// Another width.
    pub fn width(mut self, bytes: usize) -> Result<Self, ConfigError> {
        if !(1..=8).contains(&bytes) {
            return Err(ConfigError::new("width", "must be 1 to 8 bytes"));
        }
        self.width = bytes as u8;
        self.strip = self.offset + bytes as u16;
        Ok(self.settled())
    }

    /// This many bytes stand before the length field; a reply has zeros there. The header is stripped as a
    /// whole. Default: 0.
    ///
    /// # Errors
    ///
    /// More than 1024, for which no protocol is known.
    pub fn offset(mut self, bytes: usize) -> Result<Self, ConfigError> {
        if bytes > 1024 {
            return Err(ConfigError::new("offset", "must be at most 1024 bytes"));
        }
        self.offset = bytes as u16;
        self.strip = self.offset + u16::from(self.width);
        Ok(self.settled())
    }

    /// The bytes behind the field are its value plus `adjust`: negative where the field counts itself or
    /// what is before it. Default: 0.
    #[must_use]
    pub fn adjust(mut self, adjust: i64) -> Self {
        self.adjust = adjust;
        self.settled()
    }

    /// This many bytes are taken off the front of each frame, counted from its very beginning. Set it after
    /// width and offset. Default: the header as a whole. A frame shorter than that is a bad one.
    ///
    /// # Errors
    ///
    /// More than 4096, which is beyond any header.
    pub fn strip(mut self, bytes: usize) -> Result<Self, ConfigError> {
        if bytes > 4096 {
            return Err(ConfigError::new("strip", "must be at most 4096 bytes"));
        }
        self.strip = bytes as u16;
        Ok(self.settled())
    }

    /// The least significant byte comes first. Default: last.
    #[must_use]
    pub fn little_endian(mut self) -> Self {
        self.little_endian = true;
        self.settled()
    }

    /// Discards a frame over the limit as it comes in, and goes on with the next. The error is given once, as
    /// soon as the length is known. Default: the connection ends.
    #[must_use]
    pub fn skip_oversize(mut self) -> Self {
        self.skip_oversize = true;
        self
    }

    #[inline]
    fn header(&self) -> usize {
        usize::from(self.offset) + usize::from(self.width)
    }

    /// The value of the length field.
    #[inline]
    fn field(&self, header: &[u8]) -> u64 {
        let field = &header[self.offset.into()..self.header()];
        if let (Ok(field), false) = (<[u8; 4]>::try_from(field), self.little_endian) {
            return u32::from_be_bytes(field).into();
        }
        let step = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        if self.little_endian {
            field.iter().rev().fold(0, step)
        } else {
            field.iter().fold(0, step)
        }
    }

    /// The bytes behind a length field of `value`; `None` if there can be no such number.
    #[inline]
    fn body(&self, value: u64) -> Option<u64> {
        value.checked_add_signed(self.adjust)
    }

    fn decode_any(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, CodecError> {
        if self.skipping > 0 {
            self.skip(input);
        }
        if input.len() < self.header() {
            return Ok(None);
        }
        let value = self.field(input);
        // Checked before it becomes a length: an 8-byte field holds more than a length can.
        let Some(body) = self.body(value) else {
            return Err(CodecError::BadLength { value });
        };
        if body > self.max as u64 {
            if self.skip_oversize {
                self.skipping = body.saturating_add(self.header() as u64);
                self.skip(input);
            }
            return Err(self.too_long(body));
        }
        let whole = self.header() + body as usize;
        if usize::from(self.strip) > whole {
            return Err(CodecError::BadLength { value });
        }
        if input.len() < whole {
            return Ok(None);
        }
        let mut frame = input.split_to(whole).freeze();
        frame.advance(self.strip.into());
        Ok(Some(frame))
    }

    /// The same, with it known whether the header is the one that most protocols have.
    fn settled(mut self) -> Self {
        self.plain = (self.width, self.offset, self.strip) == (4, 0, 4)
            && self.adjust == 0
            && !self.little_endian;
        self
    }

    #[inline(never)]
    fn encode_any(&self, frame: &[u8], out: &mut BytesMut) -> Result<(), CodecError> {
        let length = frame.len() as u64;
        if frame.len() > self.max {
            return Err(self.too_long(length));
        }
        let negated = self.adjust.checked_neg();
        let Some(value) = negated.and_then(|adjust| length.checked_add_signed(adjust)) else {
            return Err(CodecError::BadLength { value: length });
        };
        if value > u64::MAX >> (64 - 8 * u32::from(self.width)) {
            return Err(self.too_long(length));
        }
        out.reserve(self.header() + frame.len());
        out.put_bytes(0, self.offset.into());
        if self.little_endian {
            out.put_uint_le(value, self.width.into());
        } else {
            out.put_uint(value, self.width.into());
        }
        out.extend_from_slice(frame);
        Ok(())
    }

    fn too_long(&self, length: u64) -> CodecError {
        CodecError::TooLong {
            length,
            max: self.max,
            skipped: self.skip_oversize,
        }
    }

    fn skip(&mut self, input: &mut BytesMut) {
        let now = self.skipping.min(input.len() as u64);
        input.advance(now as usize);
        self.skipping -= now;
    }
}

impl Decoder for LengthDelimited {
    type Item = Bytes;
    type Error = CodecError;

    #[inline]
    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, CodecError> {
        if self.plain && self.skipping == 0 {
            let Some(field) = input.first_chunk() else {
                return Ok(None);
            };
            let body = u32::from_be_bytes(*field) as usize;
            if body <= self.max {
                return Ok((input.len() - 4 >= body).then(|| {
                    let mut frame = input.split_to(4 + body).freeze();
                    frame.advance(4);
                    frame
                }));
            }
        }
        self.decode_any(input)
    }

    fn decode_eof(&mut self, input: &mut BytesMut) -> Result<Option<Bytes>, CodecError> {
        if let Some(frame) = self.decode(input)? {
            return Ok(Some(frame));
        }
        let missing = if self.skipping > 0 {
            self.skipping
        } else if input.is_empty() {
            return Ok(None);
        } else if input.len() < self.header() {
            (self.header() - input.len()) as u64
        } else {
            let body = self
                .body(self.field(input))
                .unwrap_or(0);
            let whole = body.saturating_add(self.header() as u64);
            whole.saturating_sub(input.len() as u64)
        };
        Err(CodecError::Truncated { missing })
    }
}

impl<T: AsRef<[u8]>> Encoder<T> for LengthDelimited {
    type Error = CodecError;

    #[inline]
    fn encode(&mut self, frame: T, out: &mut BytesMut) -> Result<(), CodecError> {
        let frame = frame.as_ref();
        match u32::try_from(frame.len()) {
            Ok(length) if self.plain && frame.len() <= self.max => {
                out.reserve(4 + frame.len());
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(frame);
                Ok(())
            }
            _ => self.encode_any(frame, out),
        }
    }
}
