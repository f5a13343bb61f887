use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{net::TcpStream, time::timeout_at};
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError},
        time::KeepsTime,
    },
    conn::{Conn, Deadline, spent::Allowance},
    edge::connect::{
        ConnectError, ConnectPhase, HappyEyeballs, Name, Resolved, SocketOptions, SystemResolver,
        Target, TargetError,
    },
};

/// Opens TCP connections by name or address. See the [module](crate::connect).
///
/// `R` looks names up: any service of [`Name`] whose response is addresses. Clones share nothing but the resolver, as far
/// as its clones do.
///
/// # Readiness
///
/// The resolver's. The first time, it also checks that the runtime can keep time.
///
/// # Errors
///
/// [`ConnectError`].
///
/// # On drop
///
/// Dropping the future drops the lookup, and closes every attempt that is under way.
#[derive(Debug, Clone)]
pub struct TcpConnector<R = SystemResolver> {
    resolver: R,
    settings: Arc<Settings>,
    keeps_time: Arc<KeepsTime>,
}

#[derive(Debug, Clone)]
struct Settings {
    options: SocketOptions,
    racing: HappyEyeballs,
    within: Duration,
}

impl TcpConnector {
    /// With the system's resolver and default settings. How many lookups there are at once is bounded for this
    /// connector and its clones: make one and clone it.
    #[must_use]
    pub fn new() -> Self {
        Self::with_resolver(SystemResolver::default())
    }
}

impl Default for TcpConnector {
    fn default() -> Self {
        Self::new()
    }
}

impl<R> TcpConnector<R> {
    /// With a resolver: a service of [`Name`] whose response is any number of `IpAddr` or `SocketAddr`.
    #[must_use]
    pub fn with_resolver(resolver: R) -> Self {
        Self {
            resolver,
            settings: Arc::new(Settings {
                options: SocketOptions::default(),
                racing: HappyEyeballs::default(),
                within: WITHIN,
            }),
            keeps_time: Arc::default(),
        }
    }

    /// What is set on each socket.
    #[must_use]
    pub fn options(mut self, options: SocketOptions) -> Self {
        Arc::make_mut(&mut self.settings).options = options;
        self
    }

    /// How the addresses of one host are tried, and how long each may take. Default: 250 ms apart, 10 s each, 16 in
    /// all.
    #[must_use]
    pub fn happy_eyeballs(mut self, racing: HappyEyeballs) -> Self {
        Arc::make_mut(&mut self.settings).racing = racing;
        self
    }

    /// For lookup and connect together. The caller's [`Deadline`] holds as well, if it is earlier; it is read when the
    /// connector is called. [`Duration::MAX`] leaves it to the caller. Default: 30 s.
    ///
    /// # Errors
    ///
    /// A time of zero.
    pub fn timeout(mut self, limit: Duration) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::zero("timeout"));
        }
        Arc::make_mut(&mut self.settings).within = limit;
        Ok(self)
    }
}

impl<R, T> Service<T> for TcpConnector<R>
where
    T: TryInto<Target, Error: Into<TargetError>>,
    R: Service<Name, Response: IntoIterator, Error: Into<BoxError>, Future: Send + 'static>,
    <R::Response as IntoIterator>::Item: Into<Resolved>,
{
    type Response = Conn<TcpStream>;
    type Error = ConnectError;
    type Future = TcpConnectFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.keeps_time
            .check()
            .map_err(|error| ConnectError::unready(ConnectPhase::Begin, error))?;
        self.resolver
            .poll_ready(cx)
            .map_err(|error| ConnectError::unready(ConnectPhase::Lookup, error))
    }

    fn call(&mut self, target: T) -> TcpConnectFuture {
        let target = match target.try_into() {
            Ok(target) => target,
            Err(error) => {
                let error: TargetError = error.into();
                return TcpConnectFuture::failed(ConnectError::unready(ConnectPhase::Begin, error));
            }
        };
        let allowed = Allowance::begin(self.settings.within, Deadline::current());
        if allowed.is_over() {
            let error = ConnectError::late(target, ConnectPhase::Begin, allowed.spent());
            return TcpConnectFuture::failed(error);
        }
        let settings = Arc::clone(&self.settings);
        let lookup = target
            .name()
            .map(|name| self.resolver.call(name.clone()));
        TcpConnectFuture {
            connecting: Box::pin(async move {
                let found = match (lookup, target.addr()) {
                    (Some(lookup), _) => look_up(lookup, &target, allowed).await?,
                    (None, addr) => addr.into_iter().collect(),
                };
                settings
                    .connect(&target, found, allowed)
                    .await
            }),
        }
    }
}

/// The addresses of a name.
async fn look_up<F, A, E>(
    lookup: F,
    target: &Target,
    allowed: Allowance,
) -> Result<Vec<SocketAddr>, ConnectError>
where
    F: Future<Output = Result<A, E>>,
    A: IntoIterator<Item: Into<Resolved>>,
    E: Into<BoxError>,
{
    let answer = match allowed.instant() {
        None => lookup.await,
        Some(by) => timeout_at(by, lookup)
            .await
            .map_err(|_| ConnectError::late(target, ConnectPhase::Lookup, allowed.spent()))?,
    };
    let answer =
        answer.map_err(|error| ConnectError::failed(target, ConnectPhase::Lookup, error))?;
    let found: Vec<_> = answer
        .into_iter()
        .map(|found| found.into().addr(target))
        .collect();
    if found.is_empty() {
        return Err(ConnectError::no_address(target));
    }
    Ok(found)
}

impl Settings {
    async fn connect(
        &self,
        target: &Target,
        mut found: Vec<SocketAddr>,
        allowed: Allowance,
    ) -> Result<Conn<TcpStream>, ConnectError> {
        let all = found.len();
        found.retain(|addr| self.options.reaches(addr));
        if found.is_empty() {
            return Err(ConnectError::other_family(target, all));
        }
        let dial = |addr| self.options.dial(addr);
        let raced = self
            .racing
            .connect(found, allowed.deadline(), dial);
        raced
            .await
            .map_err(|failed| ConnectError::tried(target, failed, allowed.spent()))
    }
}

/// The future of [`TcpConnector`].
#[must_use = "futures do nothing unless polled"]
pub struct TcpConnectFuture {
    connecting: Pin<Box<dyn Future<Output = Result<Conn<TcpStream>, ConnectError>> + Send>>,
}

impl TcpConnectFuture {
    fn failed(error: ConnectError) -> Self {
        Self {
            connecting: Box::pin(async { Err(error) }),
        }
    }
}

impl Future for TcpConnectFuture {
    type Output = Result<Conn<TcpStream>, ConnectError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.connecting.as_mut().poll(cx)
    }
}

impl fmt::Debug for TcpConnectFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpConnectFuture")
            .finish_non_exhaustive()
    }
}

/// As Go's `http.Transport` dials.
const WITHIN: Duration = Duration::from_secs(30);
