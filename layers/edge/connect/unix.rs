use std::{
    ffi::{OsStr, OsString},
    fmt, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    net::UnixStream,
    time::{sleep, timeout_at},
};
use tower_service::Service;

use crate::{
    base::{error::ConfigError, time::KeepsTime},
    conn::{Addr, Conn, Deadline, spent::Allowance},
    edge::connect::{ConnectError, ConnectPhase, FailedAttempt, FailedAttempts},
};

/// Opens connections to Unix sockets, by their path or their abstract name.
///
/// A listener whose queue is full refuses at once; the connector tries again, after a millisecond and then after
/// pauses that grow to 100 ms, until its time is up.
///
/// ```
/// use tower::ServiceExt;
/// use tower_net::{connect::UnixConnector, listen::Unix};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let path = std::env::temp_dir().join(format!("tower-net-connect-{}", std::process::id()));
/// let _listener = Unix::bind(&path)?;
/// let conn = UnixConnector::new().oneshot(path).await?;
/// # drop(conn);
/// # Ok(())
/// # }
/// ```
///
/// # Readiness
///
/// Always ready. The first time, it checks that the runtime can keep time.
///
/// # Errors
///
/// [`ConnectError`].
///
/// # On drop
///
/// Dropping the future closes what it has opened.
#[derive(Debug, Clone)]
pub struct UnixConnector {
    within: Duration,
    keeps_time: Arc<KeepsTime>,
}

impl UnixConnector {
    /// With default settings.
    #[must_use]
    pub fn new() -> Self {
        Self {
            within: WITHIN,
            keeps_time: Arc::default(),
        }
    }

    /// How long to wait for a place in the listener's queue. The caller's [`Deadline`] holds as well, if it is earlier;
    /// it is read when the connector is called. [`Duration::MAX`] leaves it to the caller. Default: 10 s.
    ///
    /// # Errors
    ///
    /// A time of zero.
    pub fn timeout(mut self, limit: Duration) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::zero("timeout"));
        }
        self.within = limit;
        Ok(self)
    }
}

impl Default for UnixConnector {
    fn default() -> Self {
        Self::new()
    }
}

/// A Unix socket to connect to: a path, or on Linux an abstract name.
///
/// It is made from a path or a text that is one. An abstract name has no file: whoever is first has it, and nobody's
/// permissions are asked.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnixTarget {
    /// As the system has it: an abstract name has a zero in front.
    name: OsString,
}

impl UnixTarget {
    /// The socket at a path.
    pub fn path(path: impl AsRef<Path>) -> Self {
        Self {
            name: path.as_ref().as_os_str().to_owned(),
        }
    }

    /// The socket of an abstract name, of bytes of any kind.
    pub fn abstract_name(name: impl AsRef<[u8]>) -> Self {
        let name = [b"\0", name.as_ref()].concat();
        Self {
            name: OsString::from_vec(name),
        }
    }

    fn addr(&self) -> Addr {
        let is_path = !self.name.as_bytes().starts_with(b"\0");
        Addr::Unix(is_path.then(|| Arc::from(Path::new(&self.name))))
    }
}

impl fmt::Display for UnixTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_bytes().strip_prefix(b"\0") {
            Some(name) => write!(f, "unix:@{}", Path::new(OsStr::from_bytes(name)).display()),
            None => write!(f, "unix:{}", Path::new(&self.name).display()),
        }
    }
}

impl fmt::Debug for UnixTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnixTarget({self})")
    }
}

impl From<&Path> for UnixTarget {
    fn from(path: &Path) -> Self {
        Self::path(path)
    }
}

impl From<PathBuf> for UnixTarget {
    fn from(path: PathBuf) -> Self {
        Self { name: path.into() }
    }
}

impl From<&str> for UnixTarget {
    fn from(path: &str) -> Self {
        Self::path(path)
    }
}

impl From<String> for UnixTarget {
    fn from(path: String) -> Self {
        Self { name: path.into() }
    }
}

impl<T: Into<UnixTarget>> Service<T> for UnixConnector {
    type Response = Conn<UnixStream>;
    type Error = ConnectError;
    type Future = UnixConnectFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        let checked = self.keeps_time.check();
        Poll::Ready(checked.map_err(|error| ConnectError::unready(ConnectPhase::Begin, error)))
    }

    fn call(&mut self, target: T) -> UnixConnectFuture {
        let target = target.into();
        let allowed = Allowance::begin(self.within, Deadline::current());
        UnixConnectFuture {
            connecting: Box::pin(connect(target, allowed)),
        }
    }
}

async fn connect(target: UnixTarget, allowed: Allowance) -> Result<Conn<UnixStream>, ConnectError> {
    if allowed.is_over() {
        let error = ConnectError::late(target, ConnectPhase::Begin, allowed.spent());
        return Err(error);
    }
    let dialling = dial(&target);
    let dialled = match allowed.instant() {
        None => Ok(dialling.await),
        Some(by) => timeout_at(by, dialling).await,
    };
    let failed = match dialled {
        Ok(Ok(conn)) => return Ok(conn),
        Ok(Err(error)) => {
            let failed = FailedAttempt::new(target.addr(), error);
            FailedAttempts::new(vec![failed], 0)
        }
        Err(_) => {
            let full = io::Error::new(io::ErrorKind::TimedOut, "its queue stayed full");
            let failed = FailedAttempt::new(target.addr(), full);
            FailedAttempts::late(vec![failed], 0)
        }
    };
    Err(ConnectError::tried(&target, failed, allowed.spent()))
}

async fn dial(target: &UnixTarget) -> io::Result<Conn<UnixStream>> {
    let mut pause = FIRST_PAUSE;
    loop {
        match UnixStream::connect(&target.name).await {
            // The queue is full, and nothing tells when it is not.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(pause).await,
            stream => return stream?.try_into(),
        }
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// The future of [`UnixConnector`].
#[must_use = "futures do nothing unless polled"]
pub struct UnixConnectFuture {
    connecting: Pin<Box<dyn Future<Output = Result<Conn<UnixStream>, ConnectError>> + Send>>,
}

impl Future for UnixConnectFuture {
    type Output = Result<Conn<UnixStream>, ConnectError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.connecting.as_mut().poll(cx)
    }
}

impl fmt::Debug for UnixConnectFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnixConnectFuture")
            .finish_non_exhaustive()
    }
}

/// As for one address of TCP.
const WITHIN: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// An accept loop that is this far behind is not caught up with by asking more often.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
