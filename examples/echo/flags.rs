//! The flags. Each sets one setting of the library; without it, the library's own default holds.

use std::{fmt, num::NonZeroUsize, path::PathBuf, str::FromStr, time::Duration};

use bytes::Bytes;
use tower_net::{
    error::BoxError,
    frame::Framing,
    guard::{DryRun, Settings},
    listen::{TcpOptions, UnixOptions},
};
use tracing::level_filters::LevelFilter;

pub(crate) const HELP: &str = "\
An echo server with every guard as a flag. It drains on SIGTERM and SIGINT; a second one cuts.

  --listen ADDR          HOST:PORT or unix:PATH; repeatable                [127.0.0.1:7000]
  --backlog N            connections that may wait to be accepted          [4096]
  --threads N            of the runtime; 1 is a current-thread runtime     [one a core]
  --log LEVEL            to standard error: debug, info, warn              [warn]

  --max-connections N    open at once                                      [10000]
  --over-limit WHAT      with the surplus: reset, or wait in the backlog   [reset]
  --per-peer N           open at once of one peer                          [off]
  --per-peer-rate N/s    new ones a second of one peer                     [off]
  --per-peer-burst N     and so many at once                               [the rate]
  --exempt CIDR          peers without these limits; repeatable
  --allow CIDR           lets in these peers and no others; repeatable
  --deny CIDR            keeps out these, unless a longer one is allowed; repeatable
  --proxy-protocol CIDR  proxies that must announce their clients; repeatable
  --tls CERT,KEY         files in PEM
  --alpn A,B             protocols that TLS agrees on, the best one first
  --client-ca FILE       whose certificates clients must have
  --handshake TIME       for a PROXY header and a TLS handshake together   [10s]
  --max-handshakes N     under way at once                                 [256]
  --first-byte TIME      from the accept to the first byte                 [3s]
  --idle TIME            of silence between requests                       [90s]
  --write-stall TIME     without a byte that can be written                [30s]
  --max-age TIME         of a connection, a tenth more or less             [off]
  --min-rate BYTES/s     in a request that arrives, a reply that waits     [off]
  --throttle BYTES/s     of each connection, each way                      [off]
  --dry-run              limits and deadlines count what they would do

  --codec WHAT           length: u32, big-endian, and so many bytes; line  [length]
  --max-frame BYTES      behind the length, or before the line's end       [8388608]
  --pipeline N           requests of a connection worked on at once        [1]
  --request TIME         from its first byte to its last                   [30s]
  --handler TIME         from a request to its reply                       [30s]

  --drain TIME           to leave in, then what is left is cut             [30s]
  --slow-word WORD       a frame that contains it is answered
  --slow-for TIME        so much later
  --panic-word WORD      a frame that contains it makes the handler panic
  --whoami               answers every frame with what is known of the connection

A TIME is a number and its unit: 1500ms, 3s, 5m, 1h.";

/// What the server is to do.
pub(crate) struct Flags {
    pub(crate) listen: Vec<String>,
    pub(crate) tcp: TcpOptions,
    pub(crate) unix: UnixOptions,
    pub(crate) threads: Option<usize>,
    pub(crate) log: LevelFilter,
    pub(crate) guard: Settings,
    pub(crate) tls: Option<Tls>,
    pub(crate) throttle: Option<u64>,
    pub(crate) dry_run: bool,
    pub(crate) codec: Codec,
    pub(crate) max_frame: usize,
    pub(crate) framing: Framing,
    pub(crate) drain: Duration,
    pub(crate) faults: Faults,
    pub(crate) whoami: bool,
}

/// Where TLS finds what it needs.
pub(crate) struct Tls {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) alpn: Vec<String>,
    pub(crate) client_ca: Option<PathBuf>,
}

/// How a frame is told from the next.
#[derive(Clone, Copy)]
pub(crate) enum Codec {
    Length,
    Line,
}

/// What the handler is to do besides echoing.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    pub(crate) slow: Option<(Bytes, Duration)>,
    pub(crate) panic_word: Option<Bytes>,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            tcp: TcpOptions::default(),
            unix: UnixOptions::default(),
            threads: None,
            log: LevelFilter::WARN,
            // Whoever tries this out is one peer, and opens as many connections as there are.
            guard: Settings::default()
                .service("echo")
                .per_peer(None)
                .no_connect_rate(),
            tls: None,
            throttle: None,
            dry_run: false,
            codec: Codec::Length,
            // Has no default in the library; it is what tokio-util's codecs take.
            max_frame: 8 << 20,
            framing: Framing::default().service("echo"),
            drain: Duration::from_secs(30),
            faults: Faults::default(),
            whoami: false,
        }
    }
}

impl Flags {
    /// The flags in `args`; `None` if they ask for help.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, BoxError> {
        let mut flags = Self::default();
        let (mut guard, mut framing) = (flags.guard, flags.framing);
        let (mut slow_word, mut slow_for) = (None, None);
        let (mut rate, mut burst) = (None, None);
        let (mut at_once, mut within) = (256, Duration::from_secs(10));
        let (mut pair, mut alpn, mut client_ca) = (None, Vec::new(), None);

        while let Some(flag) = args.next() {
            let mut value = Value {
                flag: &flag,
                rest: &mut args,
            };
            match flag.as_str() {
                "--help" => return Ok(None),

                "--listen" => flags.listen.push(value.text()?),
                "--backlog" => {
                    let connections = value.number()?;
                    flags.tcp = flags.tcp.backlog(connections);
                    flags.unix = flags.unix.backlog(connections);
                }
                "--threads" => flags.threads = Some(value.number::<NonZeroUsize>()?.get()),
                "--log" => flags.log = value.parsed("is no level: debug, info, warn")?,

                "--max-connections" => guard = guard.connections(value.number::<usize>()?),
                "--over-limit" => {
                    let choices = [("reset", false), ("wait", true)];
                    guard = guard.wait_over_limit(value.one_of(choices)?);
                }
                "--per-peer" => guard = guard.per_peer(value.number::<u32>()?),
                "--per-peer-rate" => rate = Some(value.rate()?),
                "--per-peer-burst" => burst = Some(value.number()?),
                "--exempt" => guard = guard.exempt([value.text()?]),
                "--allow" => guard = guard.allow([value.text()?]),
                "--deny" => guard = guard.deny([value.text()?]),
                "--proxy-protocol" => guard = guard.proxy_protocol([value.text()?]),
                "--tls" => pair = Some(value.pair()?),
                "--alpn" => alpn = value.list()?,
                "--client-ca" => client_ca = Some(value.text()?.into()),
                "--handshake" => within = value.time()?,
                "--max-handshakes" => at_once = value.number()?,
                "--first-byte" => guard = guard.first_byte(value.time()?),
                "--idle" => guard = guard.idle(value.time()?),
                "--write-stall" => guard = guard.write_stall(value.time()?),
                "--max-age" => guard = guard.max_age(value.time()?),
                "--min-rate" => guard = guard.min_rate(value.number::<u64>()?),
                "--throttle" => flags.throttle = Some(value.number()?),
                "--dry-run" => flags.dry_run = true,

                "--codec" => {
                    let choices = [("length", Codec::Length), ("line", Codec::Line)];
                    flags.codec = value.one_of(choices)?;
                }
                "--max-frame" => flags.max_frame = value.number()?,
                "--pipeline" => framing = framing.pipelined(value.number()?),
                "--request" => framing = framing.request_deadline(value.time()?),
                "--handler" => framing = framing.handler_deadline(value.time()?),

                "--drain" => flags.drain = value.time()?,
                "--slow-word" => slow_word = Some(value.text()?),
                "--slow-for" => slow_for = Some(value.time()?),
                "--panic-word" => flags.faults.panic_word = Some(value.text()?.into()),
                "--whoami" => flags.whoami = true,

                _ => return Err(format!("{flag}: no such flag; --help lists them").into()),
            }
        }

        guard = match (rate, burst) {
            (Some(rate), Some(burst)) => guard.connect_rate(rate, burst),
            // Whoever may come so often in a second may come as often in its first moment.
            (Some(rate), None) => guard.connect_rate(rate, rate.ceil() as u32),
            (None, None) => guard,
            (None, Some(_)) => return Err("--per-peer-burst needs --per-peer-rate".into()),
        };
        if flags.dry_run {
            guard = guard.dry_run(DryRun::all());
            framing = framing.dry_run(true);
        }
        flags.guard = guard.handshakes(at_once, within);
        flags.tls = match pair {
            Some((certificate, key)) => Some(Tls {
                certificate,
                key,
                alpn,
                client_ca,
            }),
            None if alpn.is_empty() && client_ca.is_none() => None,
            None => return Err("--alpn and --client-ca need --tls".into()),
        };
        // The codec decides what is too long: the bound below it leaves room for the frame and its header.
        flags.framing = framing.max_buffered(flags.max_frame.saturating_add(1024));
        flags.faults.slow = match (slow_word, slow_for) {
            (Some(word), Some(time)) => Some((word.into(), time)),
            (None, None) => None,
            _ => return Err("--slow-word and --slow-for need each other".into()),
        };
        if flags.listen.is_empty() {
            flags.listen = vec!["127.0.0.1:7000".to_owned()];
        }
        Ok(Some(flags))
    }
}

/// The value of a flag, which is the next argument.
struct Value<'a, A> {
    flag: &'a str,
    rest: &'a mut A,
}

impl<A: Iterator<Item = String>> Value<'_, A> {
    fn text(&mut self) -> Result<String, BoxError> {
        let next = self.rest.next();
        next.ok_or_else(|| format!("{}: needs a value", self.flag).into())
    }

    fn parsed<T: FromStr>(&mut self, problem: impl fmt::Display) -> Result<T, BoxError> {
        let text = self.text()?;
        let parsed = text.parse();
        parsed.map_err(|_| format!("{}: `{text}` {problem}", self.flag).into())
    }

    fn number<T: FromStr>(&mut self) -> Result<T, BoxError> {
        self.parsed("is no number that will do")
    }

    /// So many a second, with or without saying so.
    fn rate(&mut self) -> Result<f64, BoxError> {
        let text = self.text()?;
        let number = text.strip_suffix("/s").unwrap_or(&text);
        let rate = number.parse();
        rate.map_err(|_| format!("{}: `{text}` is no rate: 10/s", self.flag).into())
    }

    /// What is separated by commas.
    fn list(&mut self) -> Result<Vec<String>, BoxError> {
        let text = self.text()?;
        Ok(text
            .split(',')
            .map(str::to_owned)
            .collect())
    }

    fn pair(&mut self) -> Result<(PathBuf, PathBuf), BoxError> {
        let text = self.text()?;
        let (one, other) = text
            .split_once(',')
            .ok_or_else(|| format!("{}: `{text}` is no CERT,KEY", self.flag))?;
        Ok((one.into(), other.into()))
    }

    fn time(&mut self) -> Result<Duration, BoxError> {
        let Time(time) = self.parsed("is no time: 1500ms, 3s, 5m, 1h")?;
        Ok(time)
    }

    fn one_of<T, const N: usize>(&mut self, choices: [(&str, T); N]) -> Result<T, BoxError> {
        let text = self.text()?;
        let names = choices
            .each_ref()
            .map(|(name, _)| *name);
        let mut choices = choices.into_iter();
        let chosen = choices.find(|(name, _)| *name == text);
        chosen
            .map(|(_, choice)| choice)
            .ok_or_else(|| {
                let names = names.join(" or ");
                format!("{}: `{text}` is not {names}", self.flag).into()
            })
    }
}

/// A number and its unit.
struct Time(Duration);

impl FromStr for Time {
    type Err = BoxError;

    fn from_str(text: &str) -> Result<Self, BoxError> {
        let unit_at = text
            .find(|c: char| !c.is_ascii_digit())
            .ok_or("no unit")?;
        let (number, unit) = text.split_at(unit_at);
        let unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err("no unit".into()),
        };
        let millis = number.parse::<u64>()?.checked_mul(unit);
        Ok(Self(Duration::from_millis(millis.ok_or("too long")?)))
    }
}
