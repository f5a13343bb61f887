use std::{error::Error, fmt, io, net::IpAddr};

use crate::{
    base::error::{BoxError, find},
    conn::Spent,
    edge::connect::{FailedAttempt, FailedAttempts, TargetError},
};

/// No connection could be opened.
///
/// It says how far it came, which time ran out if one did, and of each address that was tried why it failed.
#[derive(Debug)]
pub struct ConnectError {
    // Boxed: it is an error of every call, and rare.
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    to: Option<String>,
    phase: ConnectPhase,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    /// Something else has failed.
    Failed(BoxError),
    /// A time ran out, with what was tried until then.
    Late(Spent, FailedAttempts),
    /// All that was tried.
    Attempts(FailedAttempts),
    /// Nothing was found.
    NoAddress,
    /// Of so many that were found none can be connected to from our address.
    OtherFamily(usize),
}

/// How far a connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectPhase {
    /// Nothing was done: the target is none, the caller's time was over, or the runtime keeps no time.
    Begin,
    /// Its name was being looked up.
    Lookup,
    /// Its addresses were being tried.
    Connect,
}

impl ConnectError {
    fn new(to: Option<String>, phase: ConnectPhase, problem: Problem) -> Self {
        Self {
            inner: Box::new(Inner { to, phase, problem }),
        }
    }

    /// Before there was a target, or because there is none.
    pub(super) fn unready(phase: ConnectPhase, error: impl Into<BoxError>) -> Self {
        Self::new(None, phase, Problem::Failed(error.into()))
    }

    pub(super) fn failed(
        to: impl fmt::Display,
        phase: ConnectPhase,
        error: impl Into<BoxError>,
    ) -> Self {
        Self::new(Some(to.to_string()), phase, Problem::Failed(error.into()))
    }

    pub(super) fn late(to: impl fmt::Display, phase: ConnectPhase, spent: Spent) -> Self {
        let nothing = FailedAttempts::new(Vec::new(), 0);
        let problem = Problem::Late(spent, nothing);
        Self::new(Some(to.to_string()), phase, problem)
    }

    pub(super) fn tried(to: impl fmt::Display, failed: FailedAttempts, spent: Spent) -> Self {
        let problem = if failed.is_late() {
            Problem::Late(spent, failed)
        } else {
            Problem::Attempts(failed)
        };
        Self::new(Some(to.to_string()), ConnectPhase::Connect, problem)
    }

    pub(super) fn no_address(to: impl fmt::Display) -> Self {
        let to = Some(to.to_string());
        Self::new(to, ConnectPhase::Lookup, Problem::NoAddress)
    }

    pub(super) fn other_family(to: impl fmt::Display, found: usize) -> Self {
        let to = Some(to.to_string());
        Self::new(to, ConnectPhase::Connect, Problem::OtherFamily(found))
    }

    /// How far it came.
    #[must_use]
    pub fn phase(&self) -> ConnectPhase {
        self.inner.phase
    }

    /// Whose time ran out, if that was it: the limit of the connector for all of it, or the caller's.
    #[must_use]
    pub fn spent(&self) -> Option<Spent> {
        match self.inner.problem {
            Problem::Late(spent, _) => Some(spent),
            _ => None,
        }
    }

    /// Each address that was tried, with its error.
    #[must_use]
    pub fn attempts(&self) -> &[FailedAttempt] {
        match &self.inner.problem {
            Problem::Late(_, failed) | Problem::Attempts(failed) => failed.attempts(),
            _ => &[],
        }
    }

    /// What this process or machine ran short of, if it is that: then the other end is not to blame, and another
    /// would not have been reached either.
    #[must_use]
    pub fn shortage(&self) -> Option<Shortage> {
        if let Problem::Failed(error) = &self.inner.problem {
            return find::<io::Error>(&**error).and_then(Shortage::of);
        }
        let mut attempts = self.attempts().iter();
        attempts.find_map(FailedAttempt::shortage)
    }

    /// Whether it is certain that nothing of a request has been sent, so that it may be tried again: always.
    #[must_use]
    pub fn is_never_sent(&self) -> bool {
        true
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot connect")?;
        if let Some(to) = &self.inner.to {
            write!(f, " to {to}")?;
        }
        f.write_str(": ")?;
        match (&self.inner.problem, self.inner.phase) {
            (Problem::Failed(error), ConnectPhase::Begin) if error.is::<TargetError>() => {
                f.write_str("no target")
            }
            (Problem::Failed(_), ConnectPhase::Begin) => f.write_str("not begun"),
            (Problem::Failed(_), ConnectPhase::Lookup) => f.write_str("name lookup failed"),
            (Problem::Failed(_), ConnectPhase::Connect) => f.write_str("failed"),
            (Problem::Late(..), ConnectPhase::Begin) => {
                f.write_str("not begun, the caller's deadline has passed")
            }
            (Problem::Late(spent, _), ConnectPhase::Lookup) => {
                write!(f, "name not looked up {spent}")
            }
            (Problem::Late(spent, failed), ConnectPhase::Connect) => {
                write!(f, "not connected {spent}: {failed}")
            }
            (Problem::Attempts(failed), _) => failed.fmt(f),
            (Problem::NoAddress, _) => f.write_str("name has no address"),
            (Problem::OtherFamily(found), _) => write!(
                f,
                "of {found} addresses none is of the family of our source address"
            ),
        }
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.inner.problem {
            Problem::Failed(error) => Some(&**error),
            Problem::Late(_, failed) | Problem::Attempts(failed) => failed.source(),
            Problem::NoAddress | Problem::OtherFamily(_) => None,
        }
    }
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        let kind = match &error.inner.problem {
            Problem::Late(..) => io::ErrorKind::TimedOut,
            Problem::Failed(_) if error.phase() == ConnectPhase::Begin => {
                io::ErrorKind::InvalidInput
            }
            Problem::Failed(error) => {
                find::<Self>(&**error).map_or(io::ErrorKind::Other, Self::kind)
            }
            Problem::Attempts(failed) => failed
                .attempts()
                .last()
                .map_or(io::ErrorKind::Other, |last| last.error().kind()),
            Problem::NoAddress => io::ErrorKind::NotFound,
            Problem::OtherFamily(_) => io::ErrorKind::AddrNotAvailable,
        };
        Self::new(kind, error)
    }
}

/// What a process runs short of that opens many connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shortage {
    /// No descriptor is left (EMFILE of the process, ENFILE of the machine).
    Descriptors,
    /// Nothing is left of the kernel's memory for sockets (ENOBUFS, ENOMEM).
    Memory,
    /// No local port is left towards that address (EADDRNOTAVAIL). Mostly they are held by connections in TIME_WAIT: keep
    /// connections and use them again.
    ///
    /// An address of a family that this machine has no address of fails with the same error; the connectors here tell
    /// that apart, and it is no shortage, since the other family may do.
    Ports,
    /// The [source address](crate::connect::SocketOptions::source) that was asked for is none of ours.
    SourceAddress,
}

impl Shortage {
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        let inner = error.get_ref();
        if let Some(NoAddress::Ours(_)) = inner.and_then(|inner| inner.downcast_ref()) {
            return Some(Self::SourceAddress);
        }
        match error.raw_os_error()? {
            libc::EMFILE | libc::ENFILE => Some(Self::Descriptors),
            libc::ENOBUFS | libc::ENOMEM => Some(Self::Memory),
            libc::EADDRNOTAVAIL => Some(Self::Ports),
            _ => None,
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "we have no descriptor left",
            Self::Memory => "we have no memory left for sockets",
            Self::Ports => "we have no local port left towards it",
            Self::SourceAddress => "the source address is not ours",
        })
    }
}

/// There is no address of ours to connect from.
#[derive(Debug)]
pub(super) enum NoAddress {
    /// None by which that one is reached.
    OfFamily,
    /// The one that was asked for is not ours.
    Ours(IpAddr),
}

impl fmt::Display for NoAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfFamily => f.write_str("we have no address of that family to connect from"),
            Self::Ours(source) => write!(f, "{source} is not an address of this machine"),
        }
    }
}

impl Error for NoAddress {}

impl From<NoAddress> for io::Error {
    fn from(error: NoAddress) -> Self {
        Self::new(io::ErrorKind::AddrNotAvailable, error)
    }
}
