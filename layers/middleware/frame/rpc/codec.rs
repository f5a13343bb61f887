use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::middleware::frame::{
    CodecError, Outgoing, RpcCode, RpcFailure, RpcFrame, RpcKind,
    rpc::failure::{FIXED, MAX_TEXT},
};

/// Our own framing for RPC: requests with an id and the time that is left for them.
///
/// **The limit** counts the payload of a request or a reply. It is checked as soon as the header is here and before a
/// byte is reserved: memory is taken for what has arrived, never for what was announced.
///
/// # A frame, byte by byte
///
/// Numbers are unsigned and big-endian.
///
/// | at | bytes | what |
/// |---|---|---|
/// | 0 | 4 | length of all that follows: header and payload |
/// | 4 | 1 | version: 1 |
/// | 5 | 1 | kind: 1 request, 2 reply, 3 failure, 4 cancel, 5 leaving |
/// | 6 | 1 | flags: none is defined, all are sent as 0 |
/// | 7 | 1 | length of the header, counted from the version: 16 or more |
/// | 8 | 8 | id |
/// | 16 | 4 | of a request, the time left in milliseconds, rounded down: 0 is none at all, `0xFFFF_FFFF` is no limit, and what is longer than `0xFFFF_FFFE` is sent as that. Of others sent as 0, and not looked at |
/// | 20 | | what the header has beyond 16 bytes: skipped |
/// | | | the payload, which may be empty |
///
/// **Ids** are the client's choice, each above all before it on the connection. Zero is no request, but the connection
/// itself. So an id is never used twice, and "up to" an id is a meaning that both sides share.
///
/// **Failure**: the payload is a code of 2 bytes, see [`RpcCode`], and 2 bytes of bits: the lowest says that the work was
/// never begun, others are ignored. Then comes text in UTF-8, of which 256 bytes are looked at. With id 0 it says why the
/// connection ends.
///
/// **Cancel**: nobody waits for the reply to this id any more. The server drops the work and answers nothing, unless it
/// has answered already: a client expects either. The payload is empty, or skipped.
///
/// **Leaving**: requests above this id were not begun and never will be on this connection, so that they may be sent on
/// another; those up to it are answered, or refused one by one. The payload is empty, or skipped.
///
/// # Later versions
///
/// A change that an old peer can live with adds to the header, or takes a flag of the lower half (`0x0F`) or a kind
/// above 127: whoever does not know these ignores the flag and skips the frame. A flag of the upper half (`0xF0`) must be
/// understood, or the request is refused; a kind of 6 to 127 must be understood, or the connection is. Any other change
/// is another version. The length and the version are where they are in all of them.
///
/// # What is no frame, and what becomes of it
///
/// | input | result |
/// |---|---|
/// | payload of length zero | a frame like any other |
/// | payload over the limit, of a request, a reply or a failure | [`Unreadable`](RpcFrame::Unreadable) as soon as the header is here; the payload is discarded as it comes, and the next frame is taken |
/// | unknown flag of the upper half, on one of these | the same |
/// | the same on another kind | [`CodecError::BadFlags`], the end |
/// | kind above 127 | skipped |
/// | kind 0, or 6 to 127 | [`CodecError::BadKind`], the end |
/// | another version | [`CodecError::BadVersion`], as soon as that byte is here: the end |
/// | header shorter than 16 bytes, or longer than the frame | [`CodecError::BadLength`], the end |
/// | failure whose payload is shorter than 4 bytes | [`CodecError::BadLength`], the end |
/// | id of a request or a cancel that is zero, id of a request that is not above the last | [`CodecError::BadId`], the end |
/// | end of stream inside a frame | [`CodecError::Truncated`] |
/// | payload over the limit, to be sent | [`CodecError::TooLong`], and nothing is written |
///
/// ```
/// use bytes::BytesMut;
/// use tokio_util::codec::{Decoder, Encoder};
/// use tower_net::frame::{RpcCodec, RpcFrame};
///
/// let mut codec = RpcCodec::max_payload(1024);
/// let mut wire = BytesMut::new();
/// codec.encode(RpcFrame::reply(7, "hi"), &mut wire)?;
/// assert_eq!(&wire[..], b"\0\0\0\x12\x01\x02\0\x10\0\0\0\0\0\0\0\x07\0\0\0\0hi");
/// assert_eq!(codec.decode(&mut wire)?, Some(RpcFrame::reply(7, "hi")));
/// # Ok::<_, tower_net::frame::CodecError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RpcCodec {
    max: usize,
    /// The id of the last request received.
    last: u64,
    /// Of a frame that is skipped, what is still to come.
    skipping: u64,
}

impl RpcCodec {
    /// Frames with payloads of at most `max` bytes. A limit of zero lets only empty ones pass; one above 4 GiB is 4 GiB,
    /// which is as much as the length can say.
    #[must_use]
    pub fn max_payload(max: usize) -> Self {
        Self {
            max: max.min(LONGEST),
            last: 0,
            skipping: 0,
        }
    }

    #[inline]
    fn frame(&mut self, head: &Head, payload: Bytes) -> Result<RpcFrame, CodecError> {
        let id = head.id;
        Ok(match RpcKind::from_number(head.kind) {
            Some(RpcKind::Request) => {
                self.check_rises(id)?;
                let left = left_of(head.left);
                RpcFrame::Request { id, left, payload }
            }
            Some(RpcKind::Reply) => RpcFrame::Reply { id, payload },
            Some(RpcKind::Failure) => {
                let value = head.length.into();
                let failure = RpcFailure::read(payload);
                let failure = failure.ok_or(CodecError::BadLength { value })?;
                RpcFrame::Failure { id, failure }
            }
            Some(RpcKind::Cancel) if id != 0 => RpcFrame::Cancel { id },
            Some(RpcKind::Cancel) => return Err(CodecError::BadId { id }),
            Some(RpcKind::Leaving) => RpcFrame::Leaving { last: id },
            None => return Err(CodecError::BadKind { kind: head.kind }),
        })
    }

    #[inline]
    fn check_rises(&mut self, id: u64) -> Result<(), CodecError> {
        if id <= self.last {
            return Err(CodecError::BadId { id });
        }
        self.last = id;
        Ok(())
    }

    #[inline]
    fn limit(&self, kind: u8) -> usize {
        if kind <= RpcKind::Reply as u8 {
            self.max
        } else {
            // Whatever the limit is, a failure can be told; the others have nothing that is looked at.
            self.max.max(FIXED + MAX_TEXT)
        }
    }

    /// A frame that is discarded, and what is said of it.
    #[cold]
    fn refuse(
        &mut self,
        head: &Head,
        payload: usize,
        input: &mut BytesMut,
    ) -> Result<Option<RpcFrame>, CodecError> {
        let (id, kind) = (head.id, RpcKind::from_number(head.kind));
        if kind.is_none() && head.kind < MAY_SKIP {
            return Err(CodecError::BadKind { kind: head.kind });
        }
        let not_understood = head.flags & MUST_KNOW != 0;
        let frame = match kind {
            Some(kind @ (RpcKind::Request | RpcKind::Reply | RpcKind::Failure)) => {
                if kind == RpcKind::Request {
                    self.check_rises(id)?;
                }
                let failure = if not_understood {
                    let text = format!("flags {:#04x} must be understood", head.flags);
                    RpcFailure::never_started(RpcCode::NotUnderstood, text)
                } else {
                    let text = format!("{payload} bytes are over the limit of {}", self.max);
                    RpcFailure::never_started(RpcCode::Oversize, text)
                };
                Some(RpcFrame::Unreadable { id, kind, failure })
            }
            Some(_) if not_understood => {
                return Err(CodecError::BadFlags { flags: head.flags });
            }
            // The payload of a cancel or a leaving means nothing; but nobody has a reason to make it long.
            Some(kind) => {
                return Err(CodecError::TooLong {
                    length: payload as u64,
                    max: self.limit(kind as u8),
                    skipped: false,
                });
            }
            None => None,
        };
        self.skipping = 4 + u64::from(head.length);
        self.skip(input);
        Ok(frame)
    }

    fn skip(&mut self, input: &mut BytesMut) {
        let now = self.skipping.min(input.len() as u64);
        input.advance(now as usize);
        self.skipping -= now;
    }

    /// Nothing is written if the payload is over the limit.
    #[inline(never)]
    fn put(
        &self,
        kind: RpcKind,
        id: u64,
        left: u32,
        payload: &[u8],
        out: &mut BytesMut,
    ) -> Result<(), CodecError> {
        if payload.len() > self.max {
            return Err(CodecError::TooLong {
                length: payload.len() as u64,
                max: self.max,
                skipped: false,
            });
        }
        out.reserve(WHOLE + payload.len());
        out.put_slice(&head(kind, id, left, payload.len()));
        out.put_slice(payload);
        Ok(())
    }

    fn put_failure(id: u64, failure: &RpcFailure, out: &mut BytesMut) {
        let length = failure.written_length();
        out.reserve(WHOLE + length);
        out.put_slice(&head(RpcKind::Failure, id, 0, length));
        failure.write(out);
    }
}

impl Decoder for RpcCodec {
    type Item = RpcFrame;
    type Error = CodecError;

    #[inline]
    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<RpcFrame>, CodecError> {
        loop {
            if self.skipping > 0 {
                self.skip(input);
            }
            let Some(head) = input.first_chunk() else {
                return check_begun(input).map(|()| None);
            };
            let head = Head::of(head);
            let payload = head.check()?;
            if payload > self.limit(head.kind) || !head.is_understood() {
                match self.refuse(&head, payload, input)? {
                    None => continue,
                    unreadable => return Ok(unreadable),
                }
            }
            let whole = 4 + head.length as usize;
            if input.len() < whole {
                return Ok(None);
            }
            let mut frame = input.split_to(whole).freeze();
            frame.advance(4 + usize::from(head.header));
            return self.frame(&head, frame).map(Some);
        }
    }

    fn decode_eof(&mut self, input: &mut BytesMut) -> Result<Option<RpcFrame>, CodecError> {
        if let Some(frame) = self.decode(input)? {
            return Ok(Some(frame));
        }
        let missing = if self.skipping > 0 {
            self.skipping
        } else if input.is_empty() {
            return Ok(None);
        } else {
            let whole = match input.first_chunk() {
                Some(length) => 4 + u64::from(u32::from_be_bytes(*length)),
                None => WHOLE as u64,
            };
            whole.saturating_sub(input.len() as u64)
        };
        Err(CodecError::Truncated { missing })
    }
}

impl Encoder<RpcFrame> for RpcCodec {
    type Error = CodecError;

    fn encode(&mut self, frame: RpcFrame, out: &mut BytesMut) -> Result<(), CodecError> {
        match frame {
            RpcFrame::Request { id, left, payload } => {
                self.put(RpcKind::Request, id, left_on_wire(left), &payload, out)
            }
            RpcFrame::Reply { id, payload } => self.put(RpcKind::Reply, id, 0, &payload, out),
            RpcFrame::Failure { id, failure } => {
                Self::put_failure(id, &failure, out);
                Ok(())
            }
            RpcFrame::Cancel { id } => self.put(RpcKind::Cancel, id, 0, &[], out),
            RpcFrame::Leaving { last } => self.put(RpcKind::Leaving, last, 0, &[], out),
            RpcFrame::Unreadable { kind, .. } => Err(CodecError::BadKind {
                kind: kind.number(),
            }),
        }
    }
}

impl<R: AsRef<[u8]>> Encoder<Outgoing<R>> for RpcCodec {
    type Error = CodecError;

    // Else each reply would go through memory once more.
    #[inline(always)]
    fn encode(&mut self, message: Outgoing<R>, out: &mut BytesMut) -> Result<(), CodecError> {
        match message {
            Outgoing::Reply { id, reply } => self.put(RpcKind::Reply, id, 0, reply.as_ref(), out),
            Outgoing::Failure { id, failure } => {
                Self::put_failure(id, &failure, out);
                Ok(())
            }
            Outgoing::Leaving { last } => self.put(RpcKind::Leaving, last, 0, &[], out),
        }
    }
}

/// The fixed part of a header.
struct Head {
    length: u32,
    version: u8,
    kind: u8,
    flags: u8,
    header: u8,
    id: u64,
    left: u32,
}

impl Head {
    #[inline]
    fn of(bytes: &[u8; WHOLE]) -> Self {
        let [version, kind, flags, header] = part(bytes, 4);
        Self {
            length: u32::from_be_bytes(part(bytes, 0)),
            version,
            kind,
            flags,
            header,
            id: u64::from_be_bytes(part(bytes, 8)),
            left: u32::from_be_bytes(part(bytes, 16)),
        }
    }

    /// The length of the payload.
    #[inline]
    fn check(&self) -> Result<usize, CodecError> {
        if self.version != VERSION {
            return Err(CodecError::BadVersion {
                version: self.version,
            });
        }
        let payload = self
            .length
            .checked_sub(self.header.into());
        match payload {
            Some(payload) if self.header >= HEADER => Ok(payload as usize),
            _ => Err(CodecError::BadLength {
                value: self.length.into(),
            }),
        }
    }

    /// Nothing in it that only a later version knows.
    #[inline]
    fn is_understood(&self) -> bool {
        self.flags & MUST_KNOW == 0 && RpcKind::from_number(self.kind).is_some()
    }
}

#[inline]
fn part<const N: usize>(bytes: &[u8; WHOLE], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

/// What can be wrong with a frame of which not even the header is whole.
#[cold]
fn check_begun(input: &[u8]) -> Result<(), CodecError> {
    let mut begun = [0; WHOLE];
    begun[..input.len()].copy_from_slice(input);
    let head = Head::of(&begun);
    match input.len() {
        0..=4 => Ok(()),
        5..=7 if head.version == VERSION => Ok(()),
        _ => head.check().map(|_| ()),
    }
}

#[inline]
fn head(kind: RpcKind, id: u64, left: u32, payload: usize) -> [u8; WHOLE] {
    let mut head = [0; WHOLE];
    let length = usize::from(HEADER) + payload;
    head[..4].copy_from_slice(&(length as u32).to_be_bytes());
    head[4..8].copy_from_slice(&[VERSION, kind as u8, 0, HEADER]);
    head[8..16].copy_from_slice(&id.to_be_bytes());
    head[16..].copy_from_slice(&left.to_be_bytes());
    head
}

/// Rounded down, so that nobody is given time that is not there.
fn left_on_wire(left: Option<Duration>) -> u32 {
    left.map_or(NO_LIMIT, |left| {
        u32::try_from(left.as_millis()).map_or(NO_LIMIT - 1, |left| left.min(NO_LIMIT - 1))
    })
}

#[inline]
fn left_of(wire: u32) -> Option<Duration> {
    (wire != NO_LIMIT).then(|| Duration::from_millis(wire.into()))
}

const VERSION: u8 = 1;

/// The header, counted from the version.
const HEADER: u8 = 16;

/// The header and the length before it.
const WHOLE: usize = 20;

/// The longest payload that the length can say, behind the longest header.
const LONGEST: usize = u32::MAX as usize - u8::MAX as usize;

const NO_LIMIT: u32 = u32::MAX;

/// From here on, kinds may be skipped.
const MAY_SKIP: u8 = 128;

/// Flags that must be understood.
const MUST_KNOW: u8 = 0xF0;
