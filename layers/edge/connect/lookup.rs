use std::{
    error::Error,
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{sync::Semaphore, task::spawn_blocking};
use tower_service::Service;

use crate::{
    base::error::ConfigError,
    edge::connect::{Name, Target},
};

/// An address that a lookup found, with a port if the resolver knows one, as of SRV records.
///
/// Made of an `IpAddr` or a `SocketAddr`, in which a port of zero is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Resolved(SocketAddr);

impl Resolved {
    /// Where to connect for this target: the resolver's port, or else the target's.
    #[must_use]
    pub fn addr(self, target: &Target) -> SocketAddr {
        let Self(mut addr) = self;
        if addr.port() == 0 {
            addr.set_port(target.port());
        }
        addr
    }
}

impl From<IpAddr> for Resolved {
    fn from(addr: IpAddr) -> Self {
        Self(SocketAddr::new(addr, 0))
    }
}

impl From<SocketAddr> for Resolved {
    fn from(addr: SocketAddr) -> Self {
        Self(addr)
    }
}

/// Looks names up as the rest of the system does: `getaddrinfo`, with its files, its order and its caches.
///
/// The call blocks, so each runs on a thread of the runtime's blocking pool. At most 32 run at once, however long the
/// name servers take, and at most 1024 wait for their turn, first come first served; beyond that a lookup is refused at
/// once with [`TooManyLookups`]. Clones share both bounds.
///
/// # Errors
///
/// The [`io::Error`] of the system, or one that holds [`TooManyLookups`].
///
/// # On drop
///
/// A lookup that waits is forgotten. One that runs cannot be stopped: it goes on to its end, and keeps its place of
/// the 32 until then.
#[derive(Debug, Clone)]
pub struct SystemResolver {
    at_once: usize,
    /// Running and waiting.
    admitted: Arc<Semaphore>,
    running: Arc<Semaphore>,
}

impl SystemResolver {
    /// With at most so many lookups at once; 1024 more wait. Default: 32.
    ///
    /// # Errors
    ///
    /// None at once, or more than a runtime can have.
    pub fn at_once(lookups: usize) -> Result<Self, ConfigError> {
        match lookups {
            0 => Err(ConfigError::zero("at_once")),
            1..=MOST => Ok(Self::unchecked(lookups)),
            _ => Err(ConfigError::new(
                "at_once",
                format!("must be at most {MOST}"),
            )),
        }
    }

    fn unchecked(at_once: usize) -> Self {
        Self {
            at_once,
            admitted: Arc::new(Semaphore::new(at_once + WAITING)),
            running: Arc::new(Semaphore::new(at_once)),
        }
    }
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self::unchecked(AT_ONCE)
    }
}

impl Service<Name> for SystemResolver {
    type Response = Vec<SocketAddr>;
    type Error = io::Error;
    type Future = SystemLookup;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> SystemLookup {
        let admitted = Arc::clone(&self.admitted).try_acquire_owned();
        let running = Arc::clone(&self.running);
        let refusal = TooManyLookups {
            at_once: self.at_once,
        };
        SystemLookup {
            looking: Box::pin(async move {
                let admitted = admitted.map_err(|_| refusal)?;
                let turn = running
                    .acquire_owned()
                    .await
                    .expect("never closed");
                let lookup = spawn_blocking(move || {
                    let found = (name.as_str(), 0).to_socket_addrs();
                    drop((admitted, turn));
                    found.map(Iterator::collect)
                });
                lookup.await.map_err(io::Error::other)?
            }),
        }
    }
}

/// The future of [`SystemResolver`].
#[must_use = "futures do nothing unless polled"]
pub struct SystemLookup {
    looking: Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>,
}

impl Future for SystemLookup {
    type Output = io::Result<Vec<SocketAddr>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.looking.as_mut().poll(cx)
    }
}

impl fmt::Debug for SystemLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemLookup")
            .finish_non_exhaustive()
    }
}

/// More lookups of the system's resolver were asked for than may run and wait; this one was not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyLookups {
    at_once: usize,
}

impl fmt::Display for TooManyLookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_once = self.at_once;
        write!(
            f,
            "{at_once} name lookups are running and {WAITING} waiting already"
        )
    }
}

impl Error for TooManyLookups {}

impl From<TooManyLookups> for io::Error {
    fn from(error: TooManyLookups) -> Self {
        Self::new(io::ErrorKind::WouldBlock, error)
    }
}

/// What a machine of any size asks at once while its name servers answer; a sixteenth of tokio's blocking threads
/// when they do not.
const AT_ONCE: usize = 32;

/// One for each caller that a service is likely to have under way; each is a few hundred bytes.
const WAITING: usize = 1024;

/// As many threads as tokio has for what blocks.
const MOST: usize = 512;
