use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::server::guard::text::{or_off, time, time_or_off, times_or_off};

/// Every setting of a [`Guard`](crate::guard::Guard) as one value that can be kept in a file.
///
/// Each has its safe default, so that a file says only what is different; a name that is not known is an error,
/// not silence. Times are written `3s`, `1500ms` or `1h 30m`. Whatever may be turned off takes `off` in a file and
/// `None` here. The [module](crate::guard) lists them all, each with its default and the reason for it.
///
/// ```
/// use std::time::Duration;
/// use tower_net::guard::Settings;
///
/// let file = r#"{ "connections": 5000, "idle": "5m", "per_peer": "off", "deny": ["192.0.2.0/24"] }"#;
/// let settings: Settings = serde_json::from_str(file)?;
/// assert_eq!(settings, Settings::default()
///     .connections(5000)
///     .idle(Duration::from_secs(300))
///     .per_peer(None)
///     .deny(["192.0.2.0/24"]));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    pub(super) service: String,
    #[serde(with = "or_off")]
    pub(super) connections: Option<usize>,
    pub(super) over_limit: Surplus,
    pub(super) pressure: Short,
    pub(super) allow: Vec<String>,
    pub(super) deny: Vec<String>,
    pub(super) proxy_protocol: Vec<String>,
    #[serde(with = "or_off")]
    pub(super) per_peer: Option<u32>,
    #[serde(with = "or_off")]
    pub(super) connect_rate: Option<Rate>,
    pub(super) exempt: Vec<String>,
    pub(super) ipv6_prefix: u8,
    pub(super) handshakes: Pending,
    #[serde(with = "time_or_off")]
    pub(super) first_byte: Option<Duration>,
    #[serde(with = "time_or_off")]
    pub(super) idle: Option<Duration>,
    #[serde(with = "time_or_off")]
    pub(super) write_stall: Option<Duration>,
    #[serde(with = "time_or_off")]
    pub(super) max_age: Option<Duration>,
    #[serde(with = "or_off")]
    pub(super) min_rate: Option<u64>,
    pub(super) dry_run: DryRun,
}

/// What becomes of connections over the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Surplus {
    Reset,
    Wait,
}

/// From when on the process is short of something: pairs of a soft and a hard point.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Short {
    #[serde(with = "or_off")]
    pub(super) descriptors: Option<(f64, f64)>,
    #[serde(with = "or_off")]
    pub(super) memory: Option<(u64, u64)>,
    #[serde(with = "or_off")]
    pub(super) memory_of_limit: Option<(f64, f64)>,
    #[serde(with = "times_or_off")]
    pub(super) lag: Option<(Duration, Duration)>,
}

/// How fast new connections may come from one peer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rate {
    pub(super) per_second: f64,
    pub(super) burst: u32,
}

/// How many handshakes may be under way and for how long: both, or the defaults of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pending {
    pub(super) at_once: usize,
    #[serde(with = "time")]
    pub(super) within: Duration,
}

/// Which limits only count what they would have done; see [`Settings::dry_run`]. All of them enforce by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DryRun {
    pub(super) connections: bool,
    pub(super) pressure: bool,
    pub(super) proxy_protocol: bool,
    pub(super) filter: bool,
    pub(super) per_peer: bool,
    pub(super) connect_rate: bool,
    pub(super) handshakes: bool,
    pub(super) deadlines: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            service: String::new(),
            connections: Some(CONNECTIONS),
            over_limit: Surplus::Reset,
            pressure: Short::default(),
            allow: Vec::new(),
            deny: Vec::new(),
            proxy_protocol: Vec::new(),
            per_peer: Some(PER_PEER),
            connect_rate: Some(CONNECT_RATE),
            exempt: Vec::new(),
            ipv6_prefix: IPV6_PREFIX,
            handshakes: HANDSHAKES,
            first_byte: Some(FIRST_BYTE),
            idle: Some(IDLE),
            write_stall: Some(WRITE_STALL),
            max_age: None,
            min_rate: None,
            dry_run: DryRun::default(),
        }
    }
}

impl Settings {
    /// The `service` label of the metrics. Default: empty.
    #[must_use]
    pub fn service(mut self, name: impl Into<String>) -> Self {
        self.service = name.into();
        self
    }

    /// At most so many connections are open at once. Default: 10,000.
    #[must_use]
    pub fn connections(mut self, limit: impl Into<Option<usize>>) -> Self {
        self.connections = limit.into();
        self
    }

    /// Connections over the limit wait in the kernel's queue, rather than being reset. Default: off.
    #[must_use]
    pub fn wait_over_limit(mut self, on: bool) -> Self {
        self.over_limit = if on { Surplus::Wait } else { Surplus::Reset };
        self
    }

    /// Sheds by open descriptors: two shares of the process's limit, from which on the longest idle make room, and
    /// from which on newcomers are reset. Default: off.
    #[must_use]
    pub fn short_of_descriptors(mut self, soft: f64, hard: f64) -> Self {
        self.pressure.descriptors = Some((soft, hard));
        self
    }

    /// The same by resident memory, in bytes. Default: off.
    #[must_use]
    pub fn short_of_memory(mut self, soft: u64, hard: u64) -> Self {
        self.pressure.memory = Some((soft, hard));
        self
    }

    /// The same by shares of the memory limit of the process's control group. Default: off.
    #[must_use]
    pub fn short_of_memory_limit(mut self, soft: f64, hard: f64) -> Self {
        self.pressure.memory_of_limit = Some((soft, hard));
        self
    }

    /// Resets newcomers by how late the runtime comes to what is due. Default: off.
    #[must_use]
    pub fn short_of_time(mut self, soft: Duration, hard: Duration) -> Self {
        self.pressure.lag = Some((soft, hard));
        self
    }

    /// Lets in these networks and no others. May be called more than once. Default: everybody is let in.
    #[must_use]
    pub fn allow<N: Into<String>>(mut self, networks: impl IntoIterator<Item = N>) -> Self {
        self.allow
            .extend(networks.into_iter().map(Into::into));
        self
    }

    /// Keeps out these networks, unless a longer one is allowed. May be called more than once. Default: none.
    #[must_use]
    pub fn deny<N: Into<String>>(mut self, networks: impl IntoIterator<Item = N>) -> Self {
        self.deny
            .extend(networks.into_iter().map(Into::into));
        self
    }

    /// Proxies in these networks announce their clients in a PROXY header, and must; whoever comes from elsewhere
    /// is refused. May be called more than once. Default: there is no proxy in front.
    #[must_use]
    pub fn proxy_protocol<N: Into<String>>(
        mut self,
        networks: impl IntoIterator<Item = N>,
    ) -> Self {
        self.proxy_protocol
            .extend(networks.into_iter().map(Into::into));
        self
    }

    /// At most so many connections of one peer are open at once. Default: 256.
    #[must_use]
    pub fn per_peer(mut self, limit: impl Into<Option<u32>>) -> Self {
        self.per_peer = limit.into();
        self
    }

    /// A peer opens at most so many connections a second, and `burst` at once. Default: 100, 200 at once.
    #[must_use]
    pub fn connect_rate(mut self, per_second: f64, burst: u32) -> Self {
        self.connect_rate = Some(Rate { per_second, burst });
        self
    }

    /// A peer opens connections as fast as it likes.
    #[must_use]
    pub fn no_connect_rate(mut self) -> Self {
        self.connect_rate = None;
        self
    }

    /// Peers in these networks are held to no limit of their own. May be called more than once. Default: none.
    #[must_use]
    pub fn exempt<N: Into<String>>(mut self, networks: impl IntoIterator<Item = N>) -> Self {
        self.exempt
            .extend(networks.into_iter().map(Into::into));
        self
    }

    /// IPv6 addresses that have so many bits in common are one peer. Default: 64, what one customer is given at
    /// the least.
    #[must_use]
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        self.ipv6_prefix = bits;
        self
    }

    /// At most so many PROXY headers and TLS handshakes are under way, each done `within` a time: a number without
    /// a time is not to be had. Default: 256, within 10 s.
    #[must_use]
    pub fn handshakes(mut self, at_once: usize, within: Duration) -> Self {
        self.handshakes = Pending { at_once, within };
        self
    }

    /// For the first byte of a peer, once its handshakes are done. Default: 3 s.
    #[must_use]
    pub fn first_byte(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.first_byte = limit.into();
        self
    }

    /// For silence between requests. Default: 90 s.
    #[must_use]
    pub fn idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.idle = limit.into();
        self
    }

    /// For a write that cannot move a byte. Default: 30 s.
    #[must_use]
    pub fn write_stall(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.write_stall = limit.into();
        self
    }

    /// For the whole life of a connection, a tenth more or less. Default: off.
    #[must_use]
    pub fn max_age(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.max_age = limit.into();
        self
    }

    /// The least that a peer must send of a request under way and take of a reply, in bytes a second. Default: off.
    #[must_use]
    pub fn min_rate(mut self, bytes_per_second: impl Into<Option<u64>>) -> Self {
        self.min_rate = bytes_per_second.into();
        self
    }

    /// Which limits only count what they would have done, to be rolled out from data. Default: none.
    #[must_use]
    pub fn dry_run(mut self, dry_run: DryRun) -> Self {
        self.dry_run = dry_run;
        self
    }
}

impl DryRun {
    /// No limit, rule or deadline is enforced.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
            .connections(true)
            .pressure(true)
            .proxy_protocol(true)
            .filter(true)
            .per_peer(true)
            .connect_rate(true)
            .handshakes(true)
            .deadlines(true)
    }

    /// The connection limit.
    #[must_use]
    pub fn connections(mut self, on: bool) -> Self {
        self.connections = on;
        self
    }

    /// What the process is short of.
    #[must_use]
    pub fn pressure(mut self, on: bool) -> Self {
        self.pressure = on;
        self
    }

    /// Whom no proxy sent: it is served, and nobody is believed for that. A header that is due and is none still
    /// ends its connection, since what would be served has no beginning.
    #[must_use]
    pub fn proxy_protocol(mut self, on: bool) -> Self {
        self.proxy_protocol = on;
        self
    }

    /// Who is let in.
    #[must_use]
    pub fn filter(mut self, on: bool) -> Self {
        self.filter = on;
        self
    }

    /// The limit of connections of one peer.
    #[must_use]
    pub fn per_peer(mut self, on: bool) -> Self {
        self.per_peer = on;
        self
    }

    /// The limit of new connections of one peer.
    #[must_use]
    pub fn connect_rate(mut self, on: bool) -> Self {
        self.connect_rate = on;
        self
    }

    /// The number and time of handshakes.
    #[must_use]
    pub fn handshakes(mut self, on: bool) -> Self {
        self.handshakes = on;
        self
    }

    /// First byte, idle, write stall, age and minimum rate.
    #[must_use]
    pub fn deadlines(mut self, on: bool) -> Self {
        self.deadlines = on;
        self
    }
}

/// Well within what a process has descriptors for where these are raised as far as they may be.
const CONNECTIONS: usize = 10_000;

/// An office or a school behind one address, and not a machine that has run wild.
const PER_PEER: u32 = 256;

/// All clients of such an address at once after a restart, and then as fast as people come.
pub(super) const CONNECT_RATE: Rate = Rate {
    per_second: 100.0,
    burst: 200,
};

/// What one customer is given at the least (RFC 6177).
const IPV6_PREFIX: u8 = 64;

/// As [`Handshakes`](crate::Handshakes) has it.
const HANDSHAKES: Pending = Pending {
    at_once: 256,
    within: Duration::from_secs(10),
};

/// These three as [`Deadlines`](crate::deadline::Deadlines) has them.
const FIRST_BYTE: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(90);
const WRITE_STALL: Duration = Duration::from_secs(30);
