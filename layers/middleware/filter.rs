//! Lets connections in, or not, by the network they come from: before a byte of them is read.
//!
//! **Where it goes**: high up, right below the connection limit, where a refusal costs nothing. It goes by the
//! [peer](crate::ConnInfo::peer): above [`proxy_protocol`](crate::proxy_protocol) that is the address on the socket, the
//! proxy's, and below it the client that the proxy announced.
//!
//! ```
//! use tower::ServiceBuilder;
//! use tower_net::filter::{FilterLayer, Rules};
//!
//! let rules = Rules::deny_all()
//!     .allow(["10.0.0.0/8", "fd00::/8"])?
//!     .deny(["10.66.0.0/16"])?;
//! let (layer, handle) = FilterLayer::pair(rules);
//! let stack = ServiceBuilder::new().layer(layer);
//!
//! // Later, while it runs:
//! handle.swap(Rules::allow_all());
//! # drop(stack);
//! # Ok::<(), tower_net::error::ConfigError>(())
//! ```
//!
//! Of all networks that an address is in, the longest decides; if the very same network is both allowed and denied, it is
//! denied. An IPv4-mapped IPv6 address is the IPv4 address that it is. Rules for IPv4 never match IPv6, nor the other
//! way round: `0.0.0.0/0` is every IPv4 address, and no other.
//!
//! # Readiness
//!
//! The inner service's.
//!
//! # Errors
//!
//! [`Denied`] for a connection that was refused; it was reset, and nothing of it was read.
//!
//! # On drop
//!
//! Dropping the future drops the inner one. The layer keeps nothing of a connection.

use std::{
    error::Error,
    fmt, io,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
};

use ipnet::IpNet;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
    },
    conn::{
        Addr, Admission, CloseReason, Conn,
        networks::{NetworkMap, parse},
        refusals::Refusals,
    },
};

/// Lets connections in by their network. See the [module](self).
#[derive(Debug, Clone)]
pub struct FilterLayer {
    rules: Arc<RwLock<Rules>>,
    refusals: Refusals,
}

impl FilterLayer {
    /// Lets in whom `rules` let in.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules: Arc::new(RwLock::new(rules)),
            refusals: Refusals::new(CloseReason::Filter),
        }
    }

    /// The layer, and a handle to swap its rules.
    #[must_use]
    pub fn pair(rules: Rules) -> (Self, FilterHandle) {
        let layer = Self::new(rules);
        let handle = layer.handle();
        (layer, handle)
    }

    /// Lets everybody in, and counts whom it would have refused. Default: off.
    #[must_use]
    pub fn dry_run(mut self, on: bool) -> Self {
        self.refusals.dry_run(on);
        self
    }

    /// A handle to swap the rules of this layer and of all that are cloned from it.
    #[must_use]
    pub fn handle(&self) -> FilterHandle {
        FilterHandle {
            rules: Arc::clone(&self.rules),
        }
    }
}

impl<S> Layer<S> for FilterLayer {
    type Service = Filter<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Filter {
            inner,
            layer: self.clone(),
        }
    }
}

/// The service of [`FilterLayer`].
#[derive(Debug, Clone)]
pub struct Filter<S> {
    inner: S,
    layer: FilterLayer,
}

impl<S, I> Service<Conn<I>> for Filter<S>
where
    S: Service<Conn<I>>,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Admission<S::Future, Denied>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, conn: Conn<I>) -> Self::Future {
        let judged = {
            let rules = self.layer.rules.read();
            let rules = rules.unwrap_or_else(PoisonError::into_inner);
            rules.judge(conn.info().peer())
        };
        match judged {
            Err(denied) if self.layer.refusals.refuse() => {
                conn.refuse(CloseReason::Filter);
                Admission::refused(denied)
            }
            _ => Admission::admitted(self.inner.call(conn)),
        }
    }
}

/// Swaps the rules of a [`FilterLayer`] while it runs; see [`FilterLayer::handle`].
#[derive(Debug, Clone)]
pub struct FilterHandle {
    rules: Arc<RwLock<Rules>>,
}

impl FilterHandle {
    /// From now on these rules hold; returns those that held. Connections that were let in stay.
    pub fn swap(&self, rules: Rules) -> Rules {
        let held = self.rules.write();
        let mut held = held.unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut held, rules)
    }

    /// A copy of the rules that hold.
    #[must_use]
    pub fn rules(&self) -> Rules {
        let held = self.rules.read();
        held.unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Who is let in: networks that are allowed or denied, and what becomes of all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    networks: NetworkMap<Rule>,
    others: bool,
}

/// A network, and whether it is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    network: IpNet,
    allowed: bool,
}

impl Rules {
    /// Lets in everybody, but for the networks that are denied.
    #[must_use]
    pub fn allow_all() -> Self {
        Self {
            networks: NetworkMap::default(),
            others: true,
        }
    }

    /// Lets in nobody, but for the networks that are allowed. Whoever has no IP address, as the peers of a Unix
    /// socket, is refused as well.
    #[must_use]
    pub fn deny_all() -> Self {
        Self {
            networks: NetworkMap::default(),
            others: false,
        }
    }

    /// Lets in `networks` as well: `10.0.0.0/8`, `2001:db8::/32`, or an address alone.
    ///
    /// # Errors
    ///
    /// One of them is no network.
    pub fn allow<N: AsRef<str>>(
        self,
        networks: impl IntoIterator<Item = N>,
    ) -> Result<Self, ConfigError> {
        self.add(networks, true)
    }

    /// Refuses `networks`, even where a shorter one is allowed.
    ///
    /// # Errors
    ///
    /// One of them is no network.
    pub fn deny<N: AsRef<str>>(
        self,
        networks: impl IntoIterator<Item = N>,
    ) -> Result<Self, ConfigError> {
        self.add(networks, false)
    }

    fn add<N: AsRef<str>>(
        mut self,
        networks: impl IntoIterator<Item = N>,
        allowed: bool,
    ) -> Result<Self, ConfigError> {
        for network in networks {
            let network = parse(network.as_ref())?;
            let held = self
                .networks
                .insert(network, Rule { network, allowed });
            // Whatever the order they were given in.
            if let Some(denied) = held.filter(|held| !held.allowed) {
                self.networks.insert(network, denied);
            }
        }
        Ok(self)
    }

    /// Whether a peer with this address is let in.
    #[must_use]
    pub fn allows(&self, peer: &Addr) -> bool {
        self.judge(peer).is_ok()
    }

    fn judge(&self, peer: &Addr) -> Result<(), Denied> {
        let rule = peer
            .ip()
            .and_then(|ip| self.networks.get(ip));
        match rule {
            Some(rule) if rule.allowed => Ok(()),
            None if self.others => Ok(()),
            _ => Err(Denied {
                network: rule.map(|rule| rule.network),
            }),
        }
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self::allow_all()
    }
}

/// The peer's network is not let in: the connection was refused before a byte of it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    network: Option<IpNet>,
}

impl Denied {
    /// The network that is denied; `None` if the peer is in none that is allowed.
    #[must_use]
    pub fn network(&self) -> Option<IpNet> {
        self.network
    }

    /// Whether the refused work was never begun: always.
    #[must_use]
    pub fn never_started(&self) -> bool {
        true
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network {
            Some(network) => write!(f, "peers from {network} are denied"),
            None => f.write_str("the peer is in no network that is allowed"),
        }
    }
}

impl Error for Denied {}

impl From<Denied> for io::Error {
    fn from(error: Denied) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, error)
    }
}
