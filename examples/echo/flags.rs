//! The flags of its own. Each sets one setting of the library; without it, the library's own default holds.

use std::{num::NonZeroUsize, time::Duration};

use bytes::Bytes;
use tower_net::{
    error::BoxError,
    frame::Framing,
    listen::{TcpOptions, UnixOptions},
};

use crate::shell::{flags::Guards, value::Value};

pub(crate) const HELP: &str = "\
An echo server with every guard as a flag. It drains on SIGTERM and SIGINT; a second one cuts.

  --listen ADDR          HOST:PORT or unix:PATH; repeatable                [127.0.0.1:7000]";

pub(crate) const MORE_HELP: &str = "
  --backlog N            connections that may wait to be accepted          [4096]
  --threads N            of the runtime; 1 is a current-thread runtime     [one a core]
  --throttle BYTES/s     of each connection, each way                      [off]

  --codec WHAT           length: u32, big-endian, and so many bytes; line  [length]
  --max-frame BYTES      behind the length, or before the line's end       [8388608]
  --pipeline N           requests of a connection worked on at once        [1]
  --request TIME         from its first byte to its last                   [30s]
  --handler TIME         from a request to its reply                       [30s]

  --slow-word WORD       a frame that contains it is answered
  --slow-for TIME        so much later
  --panic-word WORD      a frame that contains it makes the handler panic
  --whoami               answers every frame with what is known of the connection

A TIME is a number and its unit: 1500ms, 3s, 5m, 1h.";

/// What the server is to do.
pub(crate) struct Flags {
    pub(crate) guards: Guards,
    pub(crate) tcp: TcpOptions,
    pub(crate) unix: UnixOptions,
    pub(crate) threads: Option<usize>,
    pub(crate) throttle: Option<u64>,
    pub(crate) codec: Codec,
    pub(crate) max_frame: usize,
    pub(crate) framing: Framing,
    pub(crate) faults: Faults,
    pub(crate) whoami: bool,
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

/// The flags of this program alone.
struct Own {
    tcp: TcpOptions,
    unix: UnixOptions,
    threads: Option<usize>,
    throttle: Option<u64>,
    codec: Codec,
    max_frame: usize,
    framing: Framing,
    slow_word: Option<String>,
    slow_for: Option<Duration>,
    panic_word: Option<Bytes>,
    whoami: bool,
}

impl Default for Own {
    fn default() -> Self {
        Self {
            tcp: TcpOptions::default(),
            unix: UnixOptions::default(),
            threads: None,
            throttle: None,
            codec: Codec::Length,
            // Has no default in the library; it is what tokio-util's codecs take.
            max_frame: 8 << 20,
            framing: Framing::default().service("echo"),
            slow_word: None,
            slow_for: None,
            panic_word: None,
            whoami: false,
        }
    }
}

impl Flags {
    /// The flags in `args`; `None` if they ask for help.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Option<Self>, BoxError> {
        let mut own = Own::default();
        let Some(mut guards) = Guards::parse("echo", args, |value| own.take(value))? else {
            return Ok(None);
        };
        if guards.listen.is_empty() {
            guards.listen = vec!["127.0.0.1:7000".to_owned()];
        }
        let framing = own
            .framing
            .dry_run(guards.dry_run)
            // The codec decides what is too long: the bound below it leaves room for the frame and its header.
            .max_buffered(own.max_frame.saturating_add(1024));
        let slow = match (own.slow_word, own.slow_for) {
            (Some(word), Some(time)) => Some((word.into(), time)),
            (None, None) => None,
            _ => return Err("--slow-word and --slow-for need each other".into()),
        };
        Ok(Some(Self {
            guards,
            tcp: own.tcp,
            unix: own.unix,
            threads: own.threads,
            throttle: own.throttle,
            codec: own.codec,
            max_frame: own.max_frame,
            framing,
            faults: Faults {
                slow,
                panic_word: own.panic_word,
            },
            whoami: own.whoami,
        }))
    }
}

impl Own {
    /// Takes a flag, unless it is none of these.
    fn take(&mut self, value: &mut Value<'_>) -> Result<bool, BoxError> {
        let framing = self.framing.clone();
        match value.flag() {
            "--backlog" => {
                let connections = value.number()?;
                self.tcp = self.tcp.clone().backlog(connections);
                self.unix = self.unix.clone().backlog(connections);
            }
            "--threads" => self.threads = Some(value.number::<NonZeroUsize>()?.get()),
            "--throttle" => self.throttle = Some(value.number()?),
            "--codec" => {
                let choices = [("length", Codec::Length), ("line", Codec::Line)];
                self.codec = value.one_of(choices)?;
            }
            "--max-frame" => self.max_frame = value.number()?,
            "--pipeline" => self.framing = framing.pipelined(value.number()?),
            "--request" => self.framing = framing.request_deadline(value.time()?),
            "--handler" => self.framing = framing.handler_deadline(value.time()?),
            "--slow-word" => self.slow_word = Some(value.text()?),
            "--slow-for" => self.slow_for = Some(value.time()?),
            "--panic-word" => self.panic_word = Some(value.text()?.into()),
            "--whoami" => self.whoami = true,
            _ => return Ok(false),
        }
        Ok(true)
    }
}
