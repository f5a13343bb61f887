//! The flags. Each sets one setting of the library; without it, the library's own default holds.

use std::{fmt, num::NonZeroUsize, str::FromStr, time::Duration};

use bytes::Bytes;
use tower_net::{
    deadline::Deadlines,
    error::BoxError,
    frame::Framing,
    limit::OverLimit,
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
  --first-byte TIME      from the accept to the first byte                 [3s]
  --idle TIME            of silence between requests                       [90s]
  --write-stall TIME     without a byte that can be written                [30s]
  --max-age TIME         of a connection, a tenth more or less             [off]
  --min-rate BYTES/s     in a request that arrives, a reply that waits     [off]

  --codec WHAT           length: u32, big-endian, and so many bytes; line  [length]
  --max-frame BYTES      behind the length, or before the line's end       [8388608]
  --pipeline N           requests of a connection worked on at once        [1]
  --request TIME         from its first byte to its last                   [30s]
  --handler TIME         from a request to its reply                       [30s]

  --drain TIME           to leave in, then what is left is cut             [30s]
  --slow-word WORD       a frame that contains it is answered
  --slow-for TIME        so much later
  --panic-word WORD      a frame that contains it makes the handler panic

A TIME is a number and its unit: 1500ms, 3s, 5m, 1h.";

/// What the server is to do.
pub(crate) struct Flags {
    pub(crate) listen: Vec<String>,
    pub(crate) tcp: TcpOptions,
    pub(crate) unix: UnixOptions,
    pub(crate) threads: Option<usize>,
    pub(crate) log: LevelFilter,
    pub(crate) max_connections: usize,
    pub(crate) over_limit: OverLimit,
    pub(crate) deadlines: Deadlines,
    pub(crate) codec: Codec,
    pub(crate) max_frame: usize,
    pub(crate) framing: Framing,
    pub(crate) drain: Duration,
    pub(crate) faults: Faults,
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
            // Has no default in the library: what a server can bear only its operator knows.
            max_connections: 10_000,
            over_limit: OverLimit::default(),
            deadlines: Deadlines::default(),
            codec: Codec::Length,
            // Nor has this; it is what tokio-util's codecs take.
            max_frame: 8 << 20,
            framing: Framing::default().service("echo"),
            drain: Duration::from_secs(30),
            faults: Faults::default(),
        }
    }
}

impl Flags {
    /// The flags in `args`; `None` if they ask for help.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, BoxError> {
        let mut flags = Self::default();
        let (mut deadlines, mut framing) = (flags.deadlines, flags.framing);
        let (mut slow_word, mut slow_for) = (None, None);

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

                "--max-connections" => flags.max_connections = value.number()?,
                "--over-limit" => {
                    let choices = [("reset", OverLimit::Reset), ("wait", OverLimit::Wait)];
                    flags.over_limit = value.one_of(choices)?;
                }
                "--first-byte" => deadlines = deadlines.first_byte(value.time()?),
                "--idle" => deadlines = deadlines.idle(value.time()?),
                "--write-stall" => deadlines = deadlines.write_stall(value.time()?),
                "--max-age" => deadlines = deadlines.max_age(value.time()?),
                "--min-rate" => {
                    let rate = value.number()?;
                    deadlines = deadlines.min_receive_rate(rate);
                    deadlines = deadlines.min_send_rate(rate);
                }

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

                _ => return Err(format!("{flag}: no such flag; --help lists them").into()),
            }
        }

        flags.deadlines = deadlines;
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
