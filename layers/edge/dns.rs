//! Names looked up by asking name servers ourselves, rather than the system.
//!
//! **Where it goes**: into a [`TcpConnector`](crate::connect::TcpConnector). It blocks no thread, keeps answers for as
//! long as they are good, and a lookup that nobody waits for any more ends; the system's resolver has none of that, but
//! knows whatever the system is told of names.
//!
//! ```no_run
//! use tower_net::{connect::TcpConnector, dns::DnsResolver};
//!
//! let connector = TcpConnector::with_resolver(DnsResolver::from_system()?);
//! # drop(connector);
//! # Ok::<(), tower_net::dns::hickory_resolver::ResolveError>(())
//! ```
//!
//! Addresses of both families are asked for at once. Those of IPv6 come first, as RFC 8305 (section 4) has it: where IPv6
//! leads nowhere, a connector is told so at once, or loses a quarter of a second. Both answers are waited for, though: a
//! name server that does not answer for one family costs each lookup its time.
//!
//! | what | bound, unless you give a resolver of your own |
//! |---|---|
//! | one question | 5 s, repeated twice, or what the system is set to |
//! | all of a lookup | what the connector allows |
//! | answers that are kept | 8192 |
//! | questions under way | one lookup each for those who wait in a connector |
//!
//! It is `hickory-resolver`, whose version is part of this crate's interface: see [`hickory_resolver`]. Its tasks, one for
//! each name server it is connected to, run on the runtime of whoever asks.

use std::{
    fmt,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

pub use hickory_resolver;
use hickory_resolver::{ResolveError, TokioResolver, config::LookupIpStrategy};
use tower_service::Service;

use crate::edge::connect::Name;

/// Asks name servers. See the [module](self). Clones share what is known and whom they are connected to.
///
/// # Readiness
///
/// Always ready.
///
/// # Errors
///
/// The [`ResolveError`]; also of a name that has no address.
///
/// # On drop
///
/// Dropping the future ends the lookup.
#[derive(Clone)]
pub struct DnsResolver {
    resolver: TokioResolver,
}

impl DnsResolver {
    /// With the name servers and search domains of the system (`/etc/resolv.conf`), read now, and its `/etc/hosts`.
    ///
    /// # Errors
    ///
    /// The system's configuration cannot be read.
    pub fn from_system() -> Result<Self, ResolveError> {
        let mut builder = TokioResolver::builder_tokio()?;
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        builder.options_mut().cache_size = ANSWERS;
        Ok(Self::new(builder.build()))
    }

    /// With a resolver of your own making.
    #[must_use]
    pub fn new(resolver: TokioResolver) -> Self {
        Self { resolver }
    }
}

impl fmt::Debug for DnsResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsResolver")
            .finish_non_exhaustive()
    }
}

impl Service<Name> for DnsResolver {
    type Response = Vec<IpAddr>;
    type Error = ResolveError;
    type Future = DnsLookup;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ResolveError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> DnsLookup {
        let resolver = self.resolver.clone();
        DnsLookup {
            looking: Box::pin(async move {
                let found = resolver
                    .lookup_ip(name.as_str())
                    .await?;
                let (mut first, rest) = found
                    .iter()
                    .partition::<Vec<_>, _>(IpAddr::is_ipv6);
                first.extend(rest);
                Ok(first)
            }),
        }
    }
}

/// The future of [`DnsResolver`].
#[must_use = "futures do nothing unless polled"]
pub struct DnsLookup {
    looking: Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveError>> + Send>>,
}

impl Future for DnsLookup {
    type Output = Result<Vec<IpAddr>, ResolveError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.looking.as_mut().poll(cx)
    }
}

impl fmt::Debug for DnsLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsLookup")
            .finish_non_exhaustive()
    }
}

/// A few hundred bytes each.
const ANSWERS: usize = 8192;
