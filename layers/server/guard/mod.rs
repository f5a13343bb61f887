//! The whole production stack as one value: every guard on, with a default that is safe and a setter to change it.
//!
//! **Where it goes**: outermost. Below it comes the crossing to requests, or a service of connections.
//!
//! ```
//! use bytes::Bytes;
//! use tower::ServiceBuilder;
//! use tower_net::{
//!     frame::{FrameLayer, LengthDelimited, Request},
//!     guard::{Guard, Settings},
//! };
//!
//! let guard = Guard::new(Settings::default().service("rpc").connections(5000))?;
//! let stack = ServiceBuilder::new()
//!     .layer(guard)
//!     .layer(FrameLayer::new(LengthDelimited::max_frame(1 << 20)))
//!     .service_fn(async |request: Request<Bytes>| Ok::<_, std::io::Error>(request.into_message()));
//! # drop(stack);
//! # Ok::<(), tower_net::error::ConfigError>(())
//! ```
//!
//! # The checklist
//!
//! From the socket inwards, which is the order of the layers:
//!
//! | setting | default | layer | why so |
//! |---|---|---|---|
//! | `service` | none | [`meter`](crate::meter) | counts connections, bytes and ends under this name |
//! | `connections` | 10,000 | [`limit`](crate::limit) | well within the descriptors of a process whose limit is raised |
//! | `over_limit` | `reset` | | the client knows at once, and tries another server; `wait` leaves it in the kernel's queue |
//! | `pressure` | off | [`pressure`](crate::pressure) | what is scarce depends on the machine: to be set from what is measured |
//! | `proxy_protocol` | none | [`proxy_protocol`](crate::proxy_protocol) | only you know which proxies speak for others |
//! | `allow`, `deny` | everybody | [`filter`](crate::filter) | by the announced client, if there is one; a proxy's own health check is the proxy's |
//! | `connect_rate` | 100 a second, 200 at once | [`limit`](crate::limit) | an office behind one address after a restart; not a machine that has run wild |
//! | `per_peer` | 256 | [`limit`](crate::limit) | as many people as share an address, not what one client needs |
//! | `exempt` | none | | monitoring, and proxies that speak no PROXY protocol |
//! | `ipv6_prefix` | 64 | | what one customer is given at the least (RFC 6177) |
//! | | | [`trace`](crate::trace) | a span and one closing event for whoever was let in |
//! | `handshakes` | 256 at once, within 10 s | [`Handshakes`] | a PROXY header and a TLS handshake share it |
//! | `first_byte` | 3 s | [`deadline`](crate::deadline) | clients of raw protocols speak at once |
//! | `idle` | 90 s | | as Go's `http.Transport` keeps its idle connections |
//! | `write_stall` | 30 s | | longer than any pause of a peer that will go on |
//! | `max_age` | off | | what a balancer in front needs depends on it |
//! | `min_rate` | off | | what is slow depends on the clients' lines |
//! | `dry_run` | nothing | all | count first, enforce then |
//!
//! What a request may take (its size, its time, its handler's, its reply's) is bounded by the crossing below:
//! [`frame`](crate::frame) has safe defaults for it. How a server drains is the [`Server`](crate::Server)'s. Which of all
//! these a running server has, [`ServerHandle::checklist`](crate::ServerHandle::checklist) says.
//!
//! # Readiness
//!
//! As its layers: with `over_limit` at `wait`, ready once there is a place; else the inner service's.
//!
//! # Errors
//!
//! Those of its layers, each as its own type: see [`error::find`](crate::error::find).
//!
//! # On drop
//!
//! As its layers: dropping the future closes the connection and frees all that was held for it.

mod settings;
mod text;

use std::time::Duration;

use tokio_util::net::Listener;
use tower_layer::{Identity, Layer};
use tower_service::Service;

pub use self::settings::{DryRun, Settings};
use self::settings::{Short, Surplus};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::Io,
    },
    conn::{Addr, Conn, Handshakes, Networks},
    middleware::{
        deadline::{DeadlineLayer, DeadlineService, Deadlines},
        filter::{Filter, FilterHandle, FilterLayer, Rules},
        limit::{
            ConnectRate, ConnectRateHandle, ConnectRateLayer, ConnectionLimit,
            ConnectionLimitHandle, ConnectionLimitLayer, OverLimit, PerPeerLimit,
            PerPeerLimitHandle, PerPeerLimitLayer,
        },
        meter::{Meter, MeterLayer, Tally},
        pressure::{Pressure, PressureHandle, PressureLayer, Thresholds},
        proxy_protocol::{Others, ProxyProtocol, ProxyProtocolLayer},
        trace::{Trace, TraceLayer},
    },
    server::{
        incoming::{HandOut, Incoming},
        serve::Server,
    },
};

/// The production stack; `H` is the handshake between the limits and the deadlines, none by default. See the
/// [module](self).
#[derive(Debug, Clone)]
pub struct Guard<H = Identity> {
    layers: Layers,
    handshake: H,
}

/// From the outside inwards, but for the handshake, which comes before the deadlines.
#[derive(Debug, Clone)]
struct Layers {
    meter: MeterLayer,
    connections: ConnectionLimitLayer,
    pressure: PressureLayer,
    proxy_protocol: ProxyProtocolLayer,
    filter: FilterLayer,
    connect_rate: ConnectRateLayer,
    per_peer: PerPeerLimitLayer,
    trace: TraceLayer,
    deadlines: DeadlineLayer,
    handshakes: Handshakes,
    /// Whether the limits of connections and of their rate for each peer are on.
    limits: (bool, bool),
}

impl Guard {
    /// All guards, as `settings` have them.
    ///
    /// # Errors
    ///
    /// A limit of zero, or what should be a network and is none.
    pub fn new(settings: Settings) -> Result<Self, ConfigError> {
        Ok(Self {
            layers: settings.layers()?,
            handshake: Identity::new(),
        })
    }
}

impl<H> Guard<H> {
    /// Has connections go through `layer`, a TLS handshake, after the limits and before the deadlines.
    ///
    /// Give it the guard's own [`handshakes`](Self::handshakes), and a PROXY header and it share one limit and one
    /// time:
    ///
    /// ```
    /// # #[cfg(feature = "tls")]
    /// # fn guarded(config: tower_net::tls::TlsConfig) -> Result<(), tower_net::error::ConfigError> {
    /// use tower_net::{guard::{Guard, Settings}, tls::TlsAcceptLayer};
    ///
    /// let guard = Guard::new(Settings::default())?;
    /// let tls = TlsAcceptLayer::new(config).handshakes(guard.handshakes());
    /// let guard = guard.handshake(tls);
    /// # drop(guard);
    /// # Ok(())
    /// # }
    /// # #[cfg(feature = "tls")]
    /// # let _never_called = guarded;
    /// ```
    #[must_use]
    pub fn handshake<L>(self, layer: L) -> Guard<L> {
        Guard {
            layers: self.layers,
            handshake: layer,
        }
    }

    /// The limit of PROXY headers and handshakes, to be shared with the [handshake](Self::handshake).
    #[must_use]
    pub fn handshakes(&self) -> Handshakes {
        self.layers.handshakes.clone()
    }

    /// Its deadlines as a layer of their own, for what branches off before them: the routes of a
    /// [`DetectLayer`](crate::detect::DetectLayer) in the place of the [handshake](Self::handshake).
    #[must_use]
    pub fn deadlines(&self) -> DeadlineLayer {
        self.layers.deadlines.clone()
    }

    /// What it counts: connections, bytes, ends by reason.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.layers.meter.tally()
    }

    /// A view of the places under the connection limit.
    #[must_use]
    pub fn connections(&self) -> ConnectionLimitHandle {
        self.layers.connections.handle()
    }

    /// What the process is short of, and what was done about it.
    #[must_use]
    pub fn pressure(&self) -> PressureHandle {
        self.layers.pressure.handle()
    }

    /// Who has how many connections open; also changes that limit.
    #[must_use]
    pub fn per_peer(&self) -> PerPeerLimitHandle {
        self.layers.per_peer.handle()
    }

    /// Who opens connections how fast; also changes that limit.
    #[must_use]
    pub fn connect_rate(&self) -> ConnectRateHandle {
        self.layers.connect_rate.handle()
    }

    /// Swaps the rules of who is let in.
    #[must_use]
    pub fn filter(&self) -> FilterHandle {
        self.layers.filter.handle()
    }

    /// Takes over while it runs what can change then: `allow`, `deny`, `per_peer` and `connect_rate`. All clones, and the
    /// stacks that were made of them, hold to it from the next connection on; those that are open stay.
    ///
    /// Other settings are left as they are, whatever `settings` say.
    ///
    /// # Errors
    ///
    /// What [`new`](Guard::new) would refuse, but for `pressure`, and a limit that is to be turned on or off: then
    /// nothing changes.
    pub fn adopt(&self, settings: &Settings) -> Result<(), ConfigError> {
        let rules = settings.rules()?;
        let (per_peer, rate) = (self.per_peer(), self.connect_rate());
        for (setting, was_on, is_on) in [
            (
                "per_peer",
                self.layers.limits.0,
                settings.per_peer.is_some(),
            ),
            (
                "connect_rate",
                self.layers.limits.1,
                settings.connect_rate.is_some(),
            ),
        ] {
            if was_on != is_on {
                return Err(ConfigError::new(
                    setting,
                    "cannot be turned on or off while it runs",
                ));
            }
        }
        // Judged as a whole before any of it is taken; but for what has to be measured for that, since a process
        // that is out of descriptors cannot, and that may be why somebody is to be kept out.
        let judged = Settings {
            pressure: Short::default(),
            ..settings.clone()
        };
        judged.layers()?;
        if let Some(limit) = settings.per_peer {
            per_peer.set_limit(limit as usize)?;
        }
        if let Some(new) = settings.connect_rate {
            rate.set_rate(new.per_second, new.burst)?;
        }
        self.filter().swap(rules);
        Ok(())
    }
}

impl<H> Guard<H> {
    /// Guards `listener` for a server with an accept loop of its own: `axum::serve`, tonic, a hyper loop. See
    /// [`Incoming`].
    ///
    /// ```no_run
    /// # #![allow(dead_code)]
    /// # #[cfg(feature = "axum")]
    /// # async fn run(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::net::SocketAddr;
    /// use tower_net::{guard::{Guard, Settings}, listen::Tcp};
    ///
    /// let incoming = Guard::new(Settings::default())?.listen(Tcp::bind("0.0.0.0:3000").await?);
    /// let app = app.into_make_service_with_connect_info::<SocketAddr>();
    /// axum::serve(incoming.for_axum(), app).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn listen<L, I>(self, listener: L) -> Incoming<I>
    where
        L: Listener + Send + 'static,
        L::Io: Io,
        L::Addr: Into<Addr>,
        Self: Layer<HandOut<I>>,
        <Self as Layer<HandOut<I>>>::Service:
            Service<Conn<L::Io>, Response = ()> + Clone + Send + 'static,
        <<Self as Layer<HandOut<I>>>::Service as Service<Conn<L::Io>>>::Error: Into<BoxError>,
        <<Self as Layer<HandOut<I>>>::Service as Service<Conn<L::Io>>>::Future: Send + 'static,
    {
        Server::new(listener).incoming(self)
    }
}

impl<S, H> Layer<S> for Guard<H>
where
    H: Layer<DeadlineService<S>>,
{
    type Service = Guarded<H::Service>;

    fn layer(&self, inner: S) -> Self::Service {
        let layers = &self.layers;
        let inner = layers.deadlines.layer(inner);
        let inner = self.handshake.layer(inner);
        let inner = layers.trace.layer(inner);
        let inner = layers.per_peer.layer(inner);
        let inner = layers.connect_rate.layer(inner);
        let inner = layers.filter.layer(inner);
        let inner = layers.proxy_protocol.layer(inner);
        let inner = layers.pressure.layer(inner);
        let inner = layers.connections.layer(inner);
        layers.meter.layer(inner)
    }
}

/// The service of a [`Guard`]: `S` is the handshake's, or below it the deadlines'.
pub type Guarded<S> =
    Meter<ConnectionLimit<Pressure<ProxyProtocol<Filter<ConnectRate<PerPeerLimit<Trace<S>>>>>>>>;

impl Settings {
    fn layers(self) -> Result<Layers, ConfigError> {
        let dry_run = self.dry_run;
        let handshakes = Handshakes::new(self.handshakes.at_once, self.handshakes.within)?;
        let handshakes = handshakes.dry_run(dry_run.handshakes);
        Ok(Layers {
            meter: MeterLayer::new(&*self.service),
            connections: ConnectionLimitLayer::new(self.connections.unwrap_or(usize::MAX))
                .map_err(|error| error.of("connections"))?
                .over_limit(match self.over_limit {
                    Surplus::Reset => OverLimit::Reset,
                    Surplus::Wait => OverLimit::Wait,
                })
                .dry_run(dry_run.connections),
            pressure: PressureLayer::new(self.thresholds())?.dry_run(dry_run.pressure),
            proxy_protocol: self
                .proxy_layer()?
                .handshakes(handshakes.clone())
                .dry_run(dry_run.proxy_protocol),
            filter: FilterLayer::new(self.rules()?).dry_run(dry_run.filter),
            connect_rate: self.rate_layer()?,
            per_peer: PerPeerLimitLayer::new(self.per_peer.unwrap_or(u32::MAX) as usize)
                .map_err(|error| error.of("per_peer"))?
                .exempt(self.unlimited(self.per_peer.is_none())?)
                .ipv6_prefix(self.ipv6_prefix)?
                .dry_run(dry_run.per_peer),
            trace: TraceLayer::new(),
            deadlines: DeadlineLayer::new(self.deadlines())?,
            limits: (self.per_peer.is_some(), self.connect_rate.is_some()),
            handshakes,
        })
    }
}

impl Settings {
    fn thresholds(&self) -> Thresholds {
        let (short, mut thresholds) = (self.pressure, Thresholds::default());
        if let Some((soft, hard)) = short.descriptors {
            thresholds = thresholds.descriptors(soft, hard);
        }
        if let Some((soft, hard)) = short.memory {
            thresholds = thresholds.memory(soft, hard);
        }
        if let Some((soft, hard)) = short.memory_of_limit {
            thresholds = thresholds.memory_of_limit(soft, hard);
        }
        if let Some((soft, hard)) = short.lag {
            thresholds = thresholds.lag(soft, hard);
        }
        thresholds
    }

    fn proxy_layer(&self) -> Result<ProxyProtocolLayer, ConfigError> {
        let proxies = Networks::parse(&self.proxy_protocol);
        let proxies = proxies.map_err(|error| error.of("proxy_protocol"))?;
        // Without a proxy in front there is nobody who must send a header, and nobody to refuse.
        let others = if proxies.is_empty() {
            Others::Direct
        } else {
            Others::Refuse
        };
        Ok(ProxyProtocolLayer::required_from(proxies)?.others(others))
    }

    fn rules(&self) -> Result<Rules, ConfigError> {
        let rules = if self.allow.is_empty() {
            Rules::allow_all()
        } else {
            Rules::deny_all()
        };
        rules
            .allow(&self.allow)
            .map_err(|error| error.of("allow"))?
            .deny(&self.deny)
            .map_err(|error| error.of("deny"))
    }

    fn rate_layer(&self) -> Result<ConnectRateLayer, ConfigError> {
        let rate = self
            .connect_rate
            .unwrap_or(settings::CONNECT_RATE);
        ConnectRateLayer::new(rate.per_second, rate.burst)?
            .exempt(self.unlimited(self.connect_rate.is_none())?)
            .ipv6_prefix(self.ipv6_prefix)
            .map(|layer| layer.dry_run(self.dry_run.connect_rate))
    }

    /// Who has no limit: for a limit that is off, everybody.
    fn unlimited(&self, everybody: bool) -> Result<Networks, ConfigError> {
        if everybody {
            Networks::parse(["0.0.0.0/0", "::/0"])
        } else {
            Networks::parse(&self.exempt).map_err(|error| error.of("exempt"))
        }
    }

    fn deadlines(&self) -> Deadlines {
        let or_never = |limit: Option<Duration>| limit.unwrap_or(Duration::MAX);
        Deadlines::default()
            .first_byte(or_never(self.first_byte))
            .idle(or_never(self.idle))
            .write_stall(or_never(self.write_stall))
            .max_age(or_never(self.max_age))
            .min_receive_rate(self.min_rate.unwrap_or(0))
            .min_send_rate(self.min_rate.unwrap_or(0))
            .dry_run(self.dry_run.deadlines)
    }
}
