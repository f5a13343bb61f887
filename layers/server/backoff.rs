use std::{io, time::Duration};

use rustix::io::Errno;

/// What kind of error an accept gave; its label in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AcceptError {
    /// The connection was gone before it was accepted, or its network was. The next one may be fine.
    Connection,
    /// The process, or the whole system, has no descriptor left.
    Descriptors,
    /// The kernel has no memory left for sockets.
    Memory,
    /// The listener itself is no listener any more.
    Listener,
    /// Anything else.
    Other,
}

impl AcceptError {
    /// Sorts an error of `accept`, by accept(2) and what Linux passes on from the new socket.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        let Some(errno) = Errno::from_io_error(error) else {
            return match error.kind() {
                io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::Interrupted
                | io::ErrorKind::TimedOut => Self::Connection,
                io::ErrorKind::OutOfMemory => Self::Memory,
                _ => Self::Other,
            };
        };
        match errno {
            Errno::MFILE | Errno::NFILE => Self::Descriptors,
            Errno::NOBUFS | Errno::NOMEM => Self::Memory,
            Errno::CONNABORTED
            | Errno::CONNREFUSED
            | Errno::CONNRESET
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::INTR
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::NONET
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP
            | Errno::PERM
            | Errno::PROTO
            | Errno::TIMEDOUT => Self::Connection,
            Errno::BADF | Errno::FAULT | Errno::NOTSOCK => Self::Listener,
            _ => Self::Other,
        }
    }

    /// The fixed name in metrics and reports.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
            Self::Listener => "listener",
            Self::Other => "other",
        }
    }
}

/// What an accept loop does after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Next {
    /// Accepts again at once.
    Retry,
    /// Accepts nothing for so long; established connections go on meanwhile.
    Wait(Duration),
    /// Ends: there is nothing to accept from.
    Stop,
}

/// How an accept loop gets over errors: the one policy that everybody writes and few get right.
///
/// | error | what it does |
/// |---|---|
/// | of one connection (`ECONNABORTED`, `EPROTO`, `EPERM`, a network down …) | retries at once, 16 times in a row at the most |
/// | out of descriptors or memory, or unknown | waits 50 ms, then twice as long each time, up to 1 s |
/// | the listener is no socket | stops |
///
/// An accept that succeeds forgets what was before. A loop that retried at once without descriptors would
/// spin, as the connection it cannot take stays in the backlog; one that ended would leave a process that
/// runs and serves nobody.
///
/// ```
/// use std::{io, time::Duration};
/// use tower_net::{Backoff, Next};
///
/// let mut backoff = Backoff::default();
/// let no_descriptors = io::Error::from_raw_os_error(24);
/// assert_eq!(backoff.after(&no_descriptors), Next::Wait(Duration::from_millis(50)));
/// assert_eq!(backoff.after(&no_descriptors), Next::Wait(Duration::from_millis(100)));
/// ```
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    wait: Duration,
    failures: u32,
    retries: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(FIRST, LONGEST)
    }
}

impl Backoff {
    /// Waits `first` after the first error that is worth a wait, and `longest` at the most.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first: first.max(Duration::from_millis(1)),
            longest: longest.max(first),
            wait: first,
            failures: 0,
            retries: 0,
        }
    }

    /// What to do after `error`.
    pub fn after(&mut self, error: &io::Error) -> Next {
        self.failures = self.failures.saturating_add(1);
        match AcceptError::of(error) {
            AcceptError::Listener => Next::Stop,
            AcceptError::Connection if self.retries < RETRIES => {
                self.retries += 1;
                Next::Retry
            }
            _ => {
                let wait = self.wait.max(self.first);
                self.wait = wait.saturating_mul(2).min(self.longest);
                self.retries = 0;
                Next::Wait(wait)
            }
        }
    }

    /// An accept succeeded. Returns how many had failed before it.
    pub fn succeeded(&mut self) -> u32 {
        self.wait = self.first;
        self.retries = 0;
        std::mem::take(&mut self.failures)
    }

    /// Failures since the last success; the first of a burst is the one worth a log line.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The least time between two attempts when there is hope of success.
    pub(crate) fn pause(&self) -> Duration {
        self.first
    }
}

/// Twenty attempts a second at the most.
const FIRST: Duration = Duration::from_millis(50);

/// As Netty, Go and axum settled on; freed descriptors are noticed earlier where we freed them.
const LONGEST: Duration = Duration::from_secs(1);

/// A burst of connections that were gone before we came is over in fewer.
const RETRIES: u32 = 16;
