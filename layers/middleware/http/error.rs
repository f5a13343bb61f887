use std::{error::Error, fmt, io};

use crate::{base::error::find, conn::CloseReason};

/// Why a connection that speaks HTTP did not end well.
#[derive(Debug)]
pub struct HttpError {
    reason: CloseReason,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Protocol(&'static str),
    Hyper(hyper::Error),
    Io(io::Error),
}

impl HttpError {
    pub(super) fn protocol(problem: &'static str) -> Self {
        Self {
            reason: CloseReason::Protocol,
            source: Source::Protocol(problem),
        }
    }

    pub(super) fn io(error: io::Error) -> Self {
        Self {
            reason: if just_ends(&error) {
                CloseReason::Peer
            } else {
                CloseReason::Reset
            },
            source: Source::Io(error),
        }
    }

    pub(super) fn hyper(error: hyper::Error) -> Self {
        Self {
            reason: reason_of(&error),
            source: Source::Hyper(error),
        }
    }

    /// The reason that the connection ends with.
    #[must_use]
    pub fn reason(&self) -> CloseReason {
        self.reason
    }
}

fn reason_of(error: &hyper::Error) -> CloseReason {
    if error.is_parse() || error.is_parse_too_large() {
        return CloseReason::Protocol;
    }
    if error.is_user() {
        return CloseReason::Error;
    }
    if error.is_timeout() && error.source().is_none() {
        // Hyper's own limit for a head, which somebody has set; that of a ping has a source.
        return CloseReason::Request;
    }
    if error.is_incomplete_message() {
        return CloseReason::Peer;
    }
    if let Some(error) = find::<io::Error>(error) {
        return if just_ends(error) {
            CloseReason::Peer
        } else {
            CloseReason::Reset
        };
    }
    match find::<h2::Error>(error) {
        // It is the peer that has complained, and left.
        Some(error) if error.is_remote() => CloseReason::Peer,
        Some(_) => CloseReason::Protocol,
        None => CloseReason::Reset,
    }
}

/// A TLS peer has left without a goodbye.
fn just_ends(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Protocol(problem) => write!(f, "HTTP connection {problem}"),
            Source::Hyper(_) => f.write_str("HTTP connection failed"),
            Source::Io(_) => f.write_str("stream failed"),
        }
    }
}

impl Error for HttpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.source {
            Source::Protocol(_) => None,
            Source::Hyper(error) => Some(error),
            Source::Io(error) => Some(error),
        }
    }
}
