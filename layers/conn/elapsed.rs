use std::{error::Error, fmt, io, time::Duration};

use crate::conn::CloseReason;

/// A deadline or timeout has passed.
///
/// It is the error of the stack, and inside the [`io::Error`] of whoever still touches the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed {
    which: CloseReason,
    limit: Option<Duration>,
}

impl Elapsed {
    pub(crate) fn new(which: CloseReason, limit: Option<Duration>) -> Self {
        Self { which, limit }
    }

    /// Which one.
    #[must_use]
    pub fn which(&self) -> CloseReason {
        self.which
    }

    /// How long it was, if it is a fixed one.
    #[must_use]
    pub fn limit(&self) -> Option<Duration> {
        self.limit
    }
}

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.which {
            CloseReason::FirstByte => f.write_str("no first byte")?,
            CloseReason::HalfClose => f.write_str("nothing came after one side had ended")?,
            CloseReason::Idle => f.write_str("nothing moved")?,
            CloseReason::WriteStall => f.write_str("no byte could be written")?,
            CloseReason::MinRate => f.write_str("bytes moved too slowly")?,
            CloseReason::Age => f.write_str("maximum age reached")?,
            CloseReason::Handshake => f.write_str("handshake not done in time")?,
            CloseReason::ProxyTimeout => f.write_str("PROXY header not complete in time")?,
            CloseReason::Detect => f.write_str("protocol not known in time")?,
            CloseReason::Request => f.write_str("request not complete in time")?,
            CloseReason::Handler => f.write_str("handler not done in time")?,
            CloseReason::Reply => f.write_str("reply not written in time")?,
            _ => f.write_str("deadline passed")?,
        }
        match self.limit {
            Some(limit) => write!(f, " within {limit:?}"),
            None => Ok(()),
        }
    }
}

impl Error for Elapsed {}

impl From<Elapsed> for io::Error {
    fn from(error: Elapsed) -> Self {
        Self::new(io::ErrorKind::TimedOut, error)
    }
}
