use std::{
    collections::HashSet, error::Error, fmt, future::pending, io, net::SocketAddr, time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    base::{
        error::ConfigError,
        time::{later, now, require_driver},
    },
    conn::{Addr, Deadline},
    edge::connect::Shortage,
};

/// Happy Eyeballs (RFC 8305): several addresses of one host are tried in an overlapping race, so that one that does
/// not answer costs a quarter of a second and not a timeout.
///
/// The addresses are taken in turn from either family, beginning with the one that the resolver put first (section
/// 4). An attempt begins when the last has failed, or has not answered for the attempt delay (section 5); the first that
/// is connected wins, and all others are dropped, which closes them.
///
/// It knows no sockets: [`connect`](Self::connect) is given what dials, so it can race whatever has addresses.
///
/// | what | bound |
/// |---|---|
/// | addresses tried | 16 of those found |
/// | each attempt | 10 s |
/// | all of it | the deadline it is given |
#[derive(Debug, Clone)]
pub struct HappyEyeballs {
    delay: Duration,
    attempt: Duration,
    most: usize,
}

impl HappyEyeballs {
    /// How long an attempt is waited for before the next begins beside it. [`Duration::MAX`] tries one after the
    /// other. Default: 250 ms, as the RFC recommends; it also recommends 100 ms at the least.
    ///
    /// # Errors
    ///
    /// Less than 10 ms, which the RFC forbids (section 8): it would be a connection to every address.
    pub fn attempt_delay(mut self, delay: Duration) -> Result<Self, ConfigError> {
        if delay < SHORTEST_DELAY {
            let problem = format!("must be at least {SHORTEST_DELAY:?}");
            return Err(ConfigError::new("attempt_delay", problem));
        }
        self.delay = delay;
        Ok(self)
    }

    /// How long one address may take. [`Duration::MAX`] leaves it to the system, which takes two minutes. Default:
    /// 10 s.
    ///
    /// # Errors
    ///
    /// A time of zero.
    pub fn attempt_timeout(mut self, limit: Duration) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::zero("attempt_timeout"));
        }
        self.attempt = limit;
        Ok(self)
    }

    /// How many addresses of one host are tried; the rest is left alone. Default: 16.
    ///
    /// # Errors
    ///
    /// A number of zero.
    pub fn max_addresses(mut self, most: usize) -> Result<Self, ConfigError> {
        if most == 0 {
            return Err(ConfigError::zero("max_addresses"));
        }
        self.most = most;
        Ok(self)
    }

    /// Races `dial` over `addrs`, until one is connected, all have failed, or the deadline has passed.
    ///
    /// # Errors
    ///
    /// Every attempt with its error, also those that were under way when the time was up; or that the runtime cannot
    /// keep time.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops all attempts.
    pub async fn connect<T, F>(
        &self,
        addrs: impl IntoIterator<Item = SocketAddr>,
        by: Deadline,
        mut dial: impl FnMut(SocketAddr) -> F,
    ) -> Result<T, FailedAttempts>
    where
        F: Future<Output = io::Result<T>>,
    {
        let (order, left_out) = self.order(addrs);
        let mut failures = Vec::new();
        if let Err(error) = require_driver() {
            let failure = order
                .first()
                .map(|addr| FailedAttempt::new(*addr, error.into()));
            failures.extend(failure);
            let untried = order.len() + left_out - failures.len();
            return Err(FailedAttempts::new(failures, untried));
        }
        let mut rest = order.iter().copied();
        let mut under_way = FuturesUnordered::new();
        loop {
            if by.has_passed() {
                let begun = &order[..order.len() - rest.len()];
                failures.extend(unanswered(begun, &failures));
                return Err(FailedAttempts::late(failures, rest.len() + left_out));
            }
            match rest.next() {
                Some(addr) => under_way.push(self.attempt(addr, dial(addr))),
                None if under_way.is_empty() => {
                    return Err(FailedAttempts::new(failures, left_out));
                }
                None => {}
            }
            let next = match rest.len() {
                0 => None,
                _ => later(now(), self.delay),
            };
            tokio::select! {
                biased;
                Some((addr, dialled)) = under_way.next() => match dialled {
                    Ok(connected) => return Ok(connected),
                    Err(error) => failures.push(FailedAttempt::new(addr, error)),
                },
                () = at(next) => {}
                () = at(by.instant()) => {}
            }
        }
    }

    async fn attempt<T>(
        &self,
        addr: SocketAddr,
        dialling: impl Future<Output = io::Result<T>>,
    ) -> (SocketAddr, io::Result<T>) {
        let dialled = match later(now(), self.attempt) {
            None => dialling.await,
            Some(by) => timeout_at(by, dialling)
                .await
                .unwrap_or_else(|_| Err(NoAnswer(Some(self.attempt)).into())),
        };
        (addr, dialled)
    }

    /// In which order they are tried, each once, and how many are not.
    fn order(&self, addrs: impl IntoIterator<Item = SocketAddr>) -> (Vec<SocketAddr>, usize) {
        let mut addrs = addrs.into_iter().peekable();
        let v4_first = addrs
            .peek()
            .is_some_and(SocketAddr::is_ipv4);
        let (first, second) = addrs.partition::<Vec<_>, _>(|addr| addr.is_ipv4() == v4_first);
        let mut families = [first.into_iter(), second.into_iter()];
        let (mut order, mut seen) = (Vec::new(), HashSet::new());
        while families
            .iter()
            .any(|family| family.len() > 0)
        {
            for addr in families
                .iter_mut()
                .filter_map(Iterator::next)
            {
                if seen.insert(addr) && order.len() < self.most {
                    order.push(addr);
                }
            }
        }
        let left_out = seen.len() - order.len();
        (order, left_out)
    }
}

impl Default for HappyEyeballs {
    fn default() -> Self {
        Self {
            delay: DELAY,
            attempt: ATTEMPT,
            most: MOST,
        }
    }
}

/// Those of the addresses that were tried which have not failed yet.
fn unanswered(begun: &[SocketAddr], failures: &[FailedAttempt]) -> Vec<FailedAttempt> {
    let has_failed = |addr| {
        failures
            .iter()
            .any(|failure| failure.addr == Addr::Tcp(addr))
    };
    begun
        .iter()
        .filter(|addr| !has_failed(**addr))
        .map(|addr| FailedAttempt::new(*addr, NoAnswer(None).into()))
        .collect()
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}

/// An address that could not be connected to.
#[derive(Debug)]
pub struct FailedAttempt {
    addr: Addr,
    error: io::Error,
}

impl FailedAttempt {
    pub(super) fn new(addr: impl Into<Addr>, error: io::Error) -> Self {
        Self {
            addr: addr.into(),
            error,
        }
    }

    /// The address.
    #[must_use]
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// Why. Of one that did not answer in time it is [`TimedOut`](io::ErrorKind::TimedOut).
    #[must_use]
    pub fn error(&self) -> &io::Error {
        &self.error
    }

    /// What we ran short of ourselves, if it is that: then the other end is not to blame.
    #[must_use]
    pub fn shortage(&self) -> Option<Shortage> {
        Shortage::of(&self.error)
    }
}

impl fmt::Display for FailedAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.addr)?;
        match self.shortage() {
            Some(shortage) => write!(f, "{shortage}: {}", self.error),
            None => self.error.fmt(f),
        }
    }
}

/// What came of a race that nobody won.
#[derive(Debug)]
pub struct FailedAttempts {
    attempts: Vec<FailedAttempt>,
    untried: usize,
    late: bool,
}

impl FailedAttempts {
    pub(super) fn new(attempts: Vec<FailedAttempt>, untried: usize) -> Self {
        Self {
            attempts,
            untried,
            late: false,
        }
    }

    pub(super) fn late(attempts: Vec<FailedAttempt>, untried: usize) -> Self {
        Self {
            attempts,
            untried,
            late: true,
        }
    }

    /// The addresses that were tried, in the order in which they failed; those still under way when the time was up
    /// come last.
    #[must_use]
    pub fn attempts(&self) -> &[FailedAttempt] {
        &self.attempts
    }

    /// How many addresses were not tried: beyond the bound, or because the time was up.
    #[must_use]
    pub fn untried(&self) -> usize {
        self.untried
    }

    /// Whether the deadline had passed, and not every address failed.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.late
    }
}

impl fmt::Display for FailedAttempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, attempt) in self.attempts.iter().enumerate() {
            let gap = if index == 0 { "" } else { "; " };
            write!(f, "{gap}{attempt}")?;
        }
        match (self.attempts.len(), self.untried) {
            (0, 0) => f.write_str("there was no address"),
            (0, untried) => write!(f, "none of {untried} addresses was tried"),
            (_, 0) => Ok(()),
            (_, untried) => write!(f, "; {untried} more not tried"),
        }
    }
}

impl Error for FailedAttempts {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let last = self.attempts.last()?;
        Some(&last.error)
    }
}

/// An attempt was given up: after this time, or when the time for all was up.
#[derive(Debug)]
struct NoAnswer(Option<Duration>);

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(limit) => write!(f, "no answer within {limit:?}"),
            None => f.write_str("no answer when the time was up"),
        }
    }
}

impl Error for NoAnswer {}

impl From<NoAnswer> for io::Error {
    fn from(error: NoAnswer) -> Self {
        Self::new(io::ErrorKind::TimedOut, error)
    }
}

/// RFC 8305, section 8.
const DELAY: Duration = Duration::from_millis(250);

/// RFC 8305, section 8.
const SHORTEST_DELAY: Duration = Duration::from_millis(10);

/// Linux repeats a SYN after 1, 3 and 7 seconds: so three may be lost.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Four seconds' worth of attempts that do not answer; more than any host of a service publishes at once.
const MOST: usize = 16;
