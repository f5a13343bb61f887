//! The flags that set the guards. Each sets one setting of the library; without it, the library's own default holds.

use std::time::Duration;

use tower_net::{
    error::BoxError,
    guard::{DryRun, Settings},
};
use tracing::level_filters::LevelFilter;

use super::{tls::Tls, value::Value};

pub(crate) const HELP: &str = "\
  --log LEVEL            to standard error: debug, info, warn              [warn]
  --drain TIME           to leave in, then what is left is cut             [30s]

  --max-connections N    open at once                                      [10000]
  --over-limit WHAT      with the surplus: reset, or wait in the backlog   [reset]
  --per-peer N           open at once of one peer                          [off]
  --per-peer-rate N/s    new ones a second of one peer                     [off]
  --per-peer-burst N     and so many at once                               [the rate]
  --exempt CIDR          peers without these limits; repeatable
  --allow CIDR           lets in these peers and no others; repeatable
  --deny CIDR            keeps out these, unless a longer one is allowed; repeatable
  --proxy-protocol CIDR  proxies that must announce their clients; repeatable
  --tls CERT,KEY         files in PEM; `own` makes a certificate for localhost
  --alpn A,B             protocols that TLS agrees on, the best one first
  --client-ca FILE       whose certificates clients must have
  --handshake TIME       for a PROXY header and a TLS handshake together   [10s]
  --max-handshakes N     under way at once                                 [256]
  --first-byte TIME      from the accept to the first byte                 [3s]
  --idle TIME            of silence between requests                       [90s]
  --write-stall TIME     without a byte that can be written                [30s]
  --max-age TIME         of a connection, a tenth more or less             [off]
  --min-rate BYTES/s     in a request that arrives, a reply that waits     [off]
  --dry-run              limits and deadlines count what they would do";

/// How every service here is guarded.
pub(crate) struct Guards {
    pub(crate) listen: Vec<String>,
    pub(crate) log: LevelFilter,
    pub(crate) guard: Settings,
    pub(crate) tls: Option<Tls>,
    pub(crate) dry_run: bool,
    pub(crate) drain: Duration,
}

impl Guards {
    /// Reads `args`. What sets no guard is for `own`, which says whether the flag is one of its; `None` if they ask for
    /// help.
    pub(crate) fn parse(
        service: &str,
        args: impl IntoIterator<Item = String>,
        mut own: impl FnMut(&mut Value<'_>) -> Result<bool, BoxError>,
    ) -> Result<Option<Self>, BoxError> {
        let mut args = args.into_iter();
        let mut guards = Parsed::of(service);
        while let Some(flag) = args.next() {
            let mut value = Value {
                flag: &flag,
                rest: &mut args,
            };
            if flag == "--help" {
                return Ok(None);
            }
            if !guards.take(&mut value)? && !own(&mut value)? {
                return Err(format!("{flag}: no such flag; --help lists them").into());
            }
        }
        guards.finish().map(Some)
    }

    /// The one address to listen on.
    pub(crate) fn listen_or<'a>(&'a self, default: &'a str) -> Result<&'a str, BoxError> {
        match &self.listen[..] {
            [] => Ok(default),
            [one] => Ok(one),
            _ => Err("--listen: this program listens on one address".into()),
        }
    }
}

/// The guards, and what comes in several flags.
struct Parsed {
    guards: Guards,
    rate: Option<f64>,
    burst: Option<u32>,
    at_once: usize,
    within: Duration,
    tls: Option<Tls>,
    alpn: Vec<String>,
    client_ca: Option<String>,
}

impl Parsed {
    fn of(service: &str) -> Self {
        Self {
            guards: Guards {
                listen: Vec::new(),
                log: LevelFilter::WARN,
                // Whoever tries this out is one peer, and opens as many connections as there are.
                guard: Settings::default()
                    .service(service)
                    .per_peer(None)
                    .no_connect_rate(),
                tls: None,
                dry_run: false,
                drain: Duration::from_secs(30),
            },
            rate: None,
            burst: None,
            at_once: 256,
            within: Duration::from_secs(10),
            tls: None,
            alpn: Vec::new(),
            client_ca: None,
        }
    }

    /// Takes a flag, unless it is none of these.
    fn take(&mut self, value: &mut Value<'_>) -> Result<bool, BoxError> {
        let flags = &mut self.guards;
        let guard = flags.guard.clone();
        match value.flag() {
            "--listen" => flags.listen.push(value.text()?),
            "--log" => flags.log = value.parsed("is no level: debug, info, warn")?,
            "--drain" => flags.drain = value.time()?,
            "--max-connections" => flags.guard = guard.connections(value.number::<usize>()?),
            "--over-limit" => {
                let choices = [("reset", false), ("wait", true)];
                flags.guard = guard.wait_over_limit(value.one_of(choices)?);
            }
            "--per-peer" => flags.guard = guard.per_peer(value.number::<u32>()?),
            "--per-peer-rate" => self.rate = Some(value.rate()?),
            "--per-peer-burst" => self.burst = Some(value.number()?),
            "--exempt" => flags.guard = guard.exempt([value.text()?]),
            "--allow" => flags.guard = guard.allow([value.text()?]),
            "--deny" => flags.guard = guard.deny([value.text()?]),
            "--proxy-protocol" => flags.guard = guard.proxy_protocol([value.text()?]),
            "--tls" => self.tls = Some(Tls::of(value.pair()?)),
            "--alpn" => self.alpn = value.list()?,
            "--client-ca" => self.client_ca = Some(value.text()?),
            "--handshake" => self.within = value.time()?,
            "--max-handshakes" => self.at_once = value.number()?,
            "--first-byte" => flags.guard = guard.first_byte(value.time()?),
            "--idle" => flags.guard = guard.idle(value.time()?),
            "--write-stall" => flags.guard = guard.write_stall(value.time()?),
            "--max-age" => flags.guard = guard.max_age(value.time()?),
            "--min-rate" => flags.guard = guard.min_rate(value.number::<u64>()?),
            "--dry-run" => {
                flags.guard = guard.dry_run(DryRun::all());
                flags.dry_run = true;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(self) -> Result<Guards, BoxError> {
        let mut flags = self.guards;
        let guard = flags
            .guard
            .handshakes(self.at_once, self.within);
        flags.guard = match (self.rate, self.burst) {
            (Some(rate), Some(burst)) => guard.connect_rate(rate, burst),
            // Whoever may come so often in a second may come as often in its first moment.
            (Some(rate), None) => guard.connect_rate(rate, rate.ceil() as u32),
            (None, None) => guard,
            (None, Some(_)) => return Err("--per-peer-burst needs --per-peer-rate".into()),
        };
        flags.tls = match self.tls {
            Some(tls) => Some(tls.with(self.alpn, self.client_ca)),
            None if self.alpn.is_empty() && self.client_ca.is_none() => None,
            None => return Err("--alpn and --client-ca need --tls".into()),
        };
        Ok(flags)
    }
}
