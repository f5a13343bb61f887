use std::{error::Error, fmt, io};

use crate::{base::error::BoxError, conn::Spent, middleware::forward::Side};

/// There was no upstream to forward to. Nothing had been read from the client.
#[derive(Debug)]
pub struct ConnectError {
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Failed(BoxError),
    Late(Spent),
}

impl ConnectError {
    pub(super) fn failed(error: impl Into<BoxError>) -> Self {
        Self {
            cause: Cause::Failed(error.into()),
        }
    }

    pub(super) fn late(spent: Spent) -> Self {
        Self {
            cause: Cause::Late(spent),
        }
    }

    /// Whose time ran out, if that is why: the connect timeout, or the caller's. The connector's own error is the
    /// [source](Error::source) otherwise.
    #[must_use]
    pub fn spent(&self) -> Option<Spent> {
        match self.cause {
            Cause::Failed(_) => None,
            Cause::Late(spent) => Some(spent),
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Failed(_) => f.write_str("upstream not connected"),
            Cause::Late(spent) => write!(f, "upstream not connected {spent}"),
        }
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.cause {
            Cause::Failed(error) => Some(&**error),
            Cause::Late(_) => None,
        }
    }
}

/// One side of a tunnel broke, and the other was reset.
#[derive(Debug)]
pub struct TunnelError {
    side: Side,
    error: io::Error,
}

impl TunnelError {
    pub(super) fn new(side: Side, error: io::Error) -> Self {
        Self { side, error }
    }

    /// Which side. Its own error is the [source](Error::source).
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tunnel broken by its {}", self.side)
    }
}

impl Error for TunnelError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}
