use std::{error::Error, fmt, io};

use crate::{
    base::error::{BoxError, find},
    conn::{CloseReason, Elapsed},
};

/// Why a framed connection ended early.
#[derive(Debug)]
#[non_exhaustive]
pub enum FrameError {
    /// The peer's bytes are no frame.
    Decode(BoxError),
    /// A reply could not be made a frame; nothing of it was written.
    Encode(BoxError),
    /// The service failed a request.
    Service(BoxError),
    /// A handler panicked.
    Panicked,
    /// A request, its handler or its reply took too long.
    Elapsed(Elapsed),
    /// The stream failed.
    Io(io::Error),
}

impl FrameError {
    /// The reason that the connection ends with.
    #[must_use]
    pub fn reason(&self) -> CloseReason {
        match self {
            Self::Decode(error) => match find::<CodecError>(error.as_ref()) {
                Some(CodecError::TooLong { .. }) => CloseReason::Oversize,
                _ => CloseReason::Protocol,
            },
            Self::Encode(_) | Self::Service(_) => CloseReason::Error,
            Self::Panicked => CloseReason::Panic,
            Self::Elapsed(elapsed) => elapsed.which(),
            Self::Io(_) => CloseReason::Reset,
        }
    }

    /// Whether the connection goes on after it: an oversize frame that is skipped.
    pub(crate) fn resumes(&self) -> bool {
        let Self::Decode(error) = self else {
            return false;
        };
        matches!(
            find::<CodecError>(error.as_ref()),
            Some(CodecError::TooLong { skipped: true, .. })
        )
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decode(_) => "peer sent what is no frame",
            Self::Encode(_) => "reply does not fit a frame",
            Self::Service(_) => "request failed",
            Self::Panicked => "handler panicked",
            Self::Elapsed(_) => "request took too long",
            Self::Io(_) => "stream failed",
        })
    }
}

impl Error for FrameError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Decode(error) | Self::Encode(error) | Self::Service(error) => {
                Some(error.as_ref())
            }
            Self::Panicked => None,
            Self::Elapsed(elapsed) => Some(elapsed),
            Self::Io(error) => Some(error),
        }
    }
}

/// What this crate's codecs refuse.
#[derive(Debug)]
#[non_exhaustive]
pub enum CodecError {
    /// A frame longer than the limit, found before anything was reserved for it.
    #[non_exhaustive]
    TooLong {
        /// Its length, or as much of it as has come if it announces none.
        length: u64,
        /// The limit.
        max: usize,
        /// Whether the frame is skipped, and the next one taken.
        skipped: bool,
    },
    /// A length field that means less than nothing once adjusted, or more than the field can hold.
    #[non_exhaustive]
    BadLength {
        /// The value of the field.
        value: u64,
    },
    /// A frame of a version that is not known.
    #[non_exhaustive]
    BadVersion {
        /// The version.
        version: u8,
    },
    /// A frame of a kind that is not known, or that its receiver has no use for.
    #[non_exhaustive]
    BadKind {
        /// The number of the kind.
        kind: u8,
    },
    /// A flag that must be understood and is not.
    #[non_exhaustive]
    BadFlags {
        /// All flags of the frame.
        flags: u8,
    },
    /// The id of a request that is in flight, or that may not be used again.
    #[non_exhaustive]
    BadId {
        /// The id.
        id: u64,
    },
    /// A reply has the delimiter in it, and would be more than one frame.
    Delimiter,
    /// The stream ended inside a frame.
    #[non_exhaustive]
    Truncated {
        /// How many bytes are missing, at least.
        missing: u64,
    },
    /// The stream failed.
    Io(io::Error),
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { length, max, .. } => {
                write!(f, "frame of {length} bytes is over the limit of {max}")
            }
            Self::Delimiter => f.write_str("reply has the delimiter in it"),
            Self::BadLength { value } => write!(f, "length field of {value} makes no frame"),
            Self::BadVersion { version } => write!(f, "frame is of version {version}"),
            Self::BadKind { kind } => write!(f, "frame is of kind {kind}, which has no use here"),
            Self::BadFlags { flags } => {
                write!(f, "frame has flags {flags:#04x}, which must be understood")
            }
            Self::BadId { id } => write!(f, "request id {id} cannot be used, or not again"),
            Self::Truncated { missing } => {
                write!(f, "stream ended with {missing} bytes of a frame missing")
            }
            Self::Io(_) => f.write_str("stream failed"),
        }
    }
}

impl Error for CodecError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for CodecError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
