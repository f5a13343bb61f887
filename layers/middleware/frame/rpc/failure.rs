use std::{borrow::Cow, error::Error, fmt};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    base::error::{BoxError, find},
    conn::CloseReason,
    middleware::frame::{CodecError, FrameError},
};

/// Why a request has no reply: what a failure frame says.
///
/// A handler that returns one as its error, or as the cause of its error, has it sent as it is; of any other error the
/// peer hears only that the request [failed](RpcCode::Failed), since the words of an error may be none of its business.
///
/// ```
/// use tower_net::frame::{RpcCode, RpcFailure};
///
/// let busy = RpcFailure::never_started(RpcCode::Refused, "too many at once");
/// assert!(busy.is_retryable());
/// assert_eq!(busy.to_string(), "refused, never started: too many at once");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RpcFailure {
    code: RpcCode,
    never_started: bool,
    text: Cow<'static, str>,
}

impl RpcFailure {
    /// Work that was begun and came to nothing. The text is cut to 256 bytes.
    #[must_use]
    pub fn new(code: RpcCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            never_started: false,
            text: cut(text.into()),
        }
    }

    /// Work that was not begun, and never will be. The text is cut to 256 bytes.
    #[must_use]
    pub fn never_started(code: RpcCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            never_started: true,
            ..Self::new(code, text)
        }
    }

    /// What went wrong.
    #[must_use]
    pub fn code(&self) -> RpcCode {
        self.code
    }

    /// Whether it is certain that the work was never begun.
    #[must_use]
    pub fn was_never_started(&self) -> bool {
        self.never_started
    }

    /// Whether the same request may be sent again, whatever it does: it was [refused](RpcCode::Refused) and never
    /// begun. What is too long or too late will be so again.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.never_started && self.code == RpcCode::Refused
    }

    /// Words for a person, at most 256 bytes; often none.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What a peer hears of `error`: what a service said in these words is passed on, and of others only the kind.
    pub(in crate::middleware::frame) fn of(error: &FrameError) -> Self {
        let bad_frame = |error: &BoxError| match find::<CodecError>(error.as_ref()) {
            Some(error) => error.to_string(),
            None => String::new(),
        };
        match error {
            FrameError::Service(error) => match find::<Self>(error.as_ref()) {
                Some(failure) => failure.clone(),
                None => Self::new(RpcCode::Failed, ""),
            },
            FrameError::Encode(error) => match find::<CodecError>(error.as_ref()) {
                Some(CodecError::TooLong { length, max, .. }) => Self::new(
                    RpcCode::Oversize,
                    format!("reply of {length} bytes is over the limit of {max}"),
                ),
                _ => Self::new(RpcCode::Failed, ""),
            },
            FrameError::Panicked => Self::new(RpcCode::Panicked, ""),
            FrameError::Elapsed(elapsed) if elapsed.which() == CloseReason::Handler => {
                Self::new(RpcCode::Late, "")
            }
            FrameError::Elapsed(elapsed) => Self::new(RpcCode::Protocol, elapsed.to_string()),
            FrameError::Decode(error) => Self::new(RpcCode::Protocol, bad_frame(error)),
            FrameError::Io(_) => Self::new(RpcCode::Failed, ""),
        }
    }

    /// The connection ends before the work was begun.
    pub(in crate::middleware::frame) fn leaving() -> Self {
        Self::never_started(RpcCode::Refused, "the connection ends")
    }

    /// The time that the caller had left was used up, before the work was begun or while it was done.
    pub(in crate::middleware::frame) fn spent(never_started: bool) -> Self {
        Self {
            never_started,
            ..Self::new(RpcCode::Spent, "")
        }
    }

    /// As the payload of a frame.
    pub(super) fn write(&self, out: &mut BytesMut) {
        out.put_u16(self.code.number());
        out.put_u16(if self.never_started { NEVER_STARTED } else { 0 });
        out.put_slice(self.text.as_bytes());
    }

    pub(super) fn written_length(&self) -> usize {
        FIXED + self.text.len()
    }

    /// From the payload of a frame; `None` if that is too short for one.
    pub(super) fn read(mut payload: Bytes) -> Option<Self> {
        let code = payload.try_get_u16().ok()?;
        let bits = payload.try_get_u16().ok()?;
        payload.truncate(MAX_TEXT);
        let text = match std::str::from_utf8(&payload) {
            Ok(text) => text.to_owned(),
            // What is cut may be cut inside a character: that one is left out.
            Err(error) if error.error_len().is_none() => {
                String::from_utf8_lossy(&payload[..error.valid_up_to()]).into_owned()
            }
            Err(_) => String::from_utf8_lossy(&payload).into_owned(),
        };
        Some(Self {
            code: RpcCode::from_number(code),
            never_started: bits & NEVER_STARTED != 0,
            text: cut(text.into()),
        })
    }
}

impl fmt::Display for RpcFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.code, f)?;
        if self.never_started {
            f.write_str(", never started")?;
        }
        if !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        Ok(())
    }
}

impl Error for RpcFailure {}

/// What kind of failure it is, with its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RpcCode {
    /// 1: the service returned an error.
    Failed,
    /// 2: the time that the caller had left is used up. Never begun if it was so on arrival. The caller has no time
    /// for another attempt.
    Spent,
    /// 3: the service does not take it now, because it leaves or is full. Nothing is wrong with the request.
    Refused,
    /// 4: the request or its reply is longer than a frame may be.
    Oversize,
    /// 5: the request has a flag that must be understood and is not.
    NotUnderstood,
    /// 6: the handler panicked.
    Panicked,
    /// 7: the caller has cancelled it.
    Cancelled,
    /// 8: the handler took longer than the service lets any.
    Late,
    /// 9: what came is not of this protocol; under id 0, and the connection ends with it.
    Protocol,
    /// Any other number, of a later version. It is to be taken for [`Failed`](Self::Failed).
    Other(u16),
}

impl RpcCode {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Failed => 1,
            Self::Spent => 2,
            Self::Refused => 3,
            Self::Oversize => 4,
            Self::NotUnderstood => 5,
            Self::Panicked => 6,
            Self::Cancelled => 7,
            Self::Late => 8,
            Self::Protocol => 9,
            Self::Other(number) => number,
        }
    }

    /// The code of a number on the wire.
    #[must_use]
    pub fn from_number(number: u16) -> Self {
        match number {
            1 => Self::Failed,
            2 => Self::Spent,
            3 => Self::Refused,
            4 => Self::Oversize,
            5 => Self::NotUnderstood,
            6 => Self::Panicked,
            7 => Self::Cancelled,
            8 => Self::Late,
            9 => Self::Protocol,
            _ => Self::Other(number),
        }
    }
}

impl fmt::Display for RpcCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "failed",
            Self::Spent => "the caller's time is used up",
            Self::Refused => "refused",
            Self::Oversize => "longer than a frame may be",
            Self::NotUnderstood => "not understood",
            Self::Panicked => "handler panicked",
            Self::Cancelled => "cancelled",
            Self::Late => "handler not done in time",
            Self::Protocol => "not of this protocol",
            Self::Other(number) => return write!(f, "failed with code {number}"),
        })
    }
}

fn cut(mut text: Cow<'static, str>) -> Cow<'static, str> {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT)
            .rev()
            .find(|&end| text.is_char_boundary(end));
        match &mut text {
            Cow::Borrowed(text) => *text = &text[..end.unwrap_or(0)],
            Cow::Owned(text) => text.truncate(end.unwrap_or(0)),
        }
    }
    text
}

/// A sentence or two; a peer that wants to say more can do so in a reply.
pub(super) const MAX_TEXT: usize = 256;

/// The code and the bits before the text.
pub(super) const FIXED: usize = 4;

const NEVER_STARTED: u16 = 1;
