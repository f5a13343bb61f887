//! The command line.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    time::Duration,
};

use crate::protocol::{Call, Mode};

/// What to do.
#[derive(Debug)]
pub(crate) enum Command {
    Help,
    Demo { duration: Duration },
    Serve { listen: String, mode: Mode },
    Call(Ask),
    Bench(Bench),
}

/// A call to make.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) to: Vec<SocketAddr>,
    pub(crate) mode: Mode,
    /// How long it may take.
    pub(crate) within: Duration,
    pub(crate) call: Call,
}

/// Calls to measure.
#[derive(Debug)]
pub(crate) struct Bench {
    /// None to start so many servers here.
    pub(crate) to: Vec<SocketAddr>,
    pub(crate) servers: usize,
    pub(crate) mode: Mode,
    /// Calls at once.
    pub(crate) depth: usize,
    pub(crate) duration: Duration,
}

/// Reads the arguments after the program's name; the error says what is wrong with them.
pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut args: Vec<String> = args.collect();
    // Further on it may be a key or a value.
    if args
        .iter()
        .take(2)
        .any(|arg| arg == "--help" || arg == "-h")
    {
        return Ok(Command::Help);
    }
    let command = match args.first() {
        Some(first) if !first.starts_with('-') => args.remove(0),
        _ => String::new(),
    };
    let parsed = match command.as_str() {
        "" => Command::Demo {
            duration: seconds(take_flag(&mut args, "--seconds")?, SECONDS)?,
        },
        "serve" => Command::Serve {
            listen: take_flag(&mut args, "--listen")?.unwrap_or_else(|| ADDR.to_owned()),
            mode: mode(take_flag(&mut args, "--mode")?)?,
        },
        "call" => Command::Call(Ask {
            to: servers(
                take_flag(&mut args, "--to")?
                    .as_deref()
                    .unwrap_or(ADDR),
            )?,
            mode: mode(take_flag(&mut args, "--mode")?)?,
            within: within(take_flag(&mut args, "--within")?)?,
            call: take_call(&mut args)?,
        }),
        "bench" => Command::Bench(Bench {
            to: match take_flag(&mut args, "--to")? {
                Some(to) => servers(&to)?,
                None => Vec::new(),
            },
            servers: count("--servers", take_flag(&mut args, "--servers")?, 1)?,
            mode: mode(take_flag(&mut args, "--mode")?)?,
            depth: count("--depth", take_flag(&mut args, "--depth")?, DEPTH)?,
            duration: seconds(take_flag(&mut args, "--seconds")?, BENCH_SECONDS)?,
        }),
        other => return Err(format!("there is no command '{other}'")),
    };
    match args.first() {
        None => Ok(parsed),
        Some(surplus) => Err(format!("'{surplus}' is not understood here")),
    }
}

fn mode(flag: Option<String>) -> Result<Mode, String> {
    match flag.as_deref() {
        None => Ok(Mode::default()),
        Some("pipelined") => Ok(Mode::Pipelined),
        Some("multiplexed") => Ok(Mode::Multiplexed),
        Some(other) => Err(format!(
            "--mode takes pipelined or multiplexed, not '{other}'"
        )),
    }
}

/// Addresses with commas between them.
fn servers(list: &str) -> Result<Vec<SocketAddr>, String> {
    let found = list.split(',').map(|server| {
        let addrs = server.to_socket_addrs();
        let first = addrs
            .ok()
            .and_then(|mut addrs| addrs.next());
        first.ok_or_else(|| format!("'{server}' is no address of a server"))
    });
    found.collect()
}

fn within(flag: Option<String>) -> Result<Duration, String> {
    match flag {
        None => Ok(Duration::MAX),
        Some(text) => match text.parse() {
            Ok(millis @ 1..) => Ok(Duration::from_millis(millis)),
            _ => Err(format!(
                "--within takes a number of milliseconds, not '{text}'"
            )),
        },
    }
}

fn count(name: &str, flag: Option<String>, otherwise: usize) -> Result<usize, String> {
    match flag {
        None => Ok(otherwise),
        Some(text) => match text.parse() {
            Ok(count @ 1..=1024) => Ok(count),
            _ => Err(format!(
                "{name} takes a number from 1 to 1024, not '{text}'"
            )),
        },
    }
}

fn seconds(flag: Option<String>, otherwise: u64) -> Result<Duration, String> {
    match flag {
        None => Ok(Duration::from_secs(otherwise)),
        Some(text) => match text.parse() {
            Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
            _ => Err(format!(
                "--seconds takes a whole number from 1 to 3600, not '{text}'"
            )),
        },
    }
}

fn take_call(args: &mut Vec<String>) -> Result<Call, String> {
    let limit = match take_flag(args, "--limit")? {
        None => LIMIT,
        Some(text) => text
            .parse()
            .map_err(|_| format!("--limit takes a whole number, not '{text}'"))?,
    };
    let mut words = args.drain(..);
    let verb = words
        .next()
        .ok_or("call what? get, put, delete, scan or wait")?;
    let mut word = |name| {
        words
            .next()
            .ok_or_else(|| format!("{verb} needs a {name}"))
    };
    let call = match verb.as_str() {
        "get" => Call::Get { key: word("KEY")? },
        "put" => Call::Put {
            key: word("KEY")?,
            value: word("VALUE")?,
        },
        "delete" => Call::Delete { key: word("KEY")? },
        "scan" => Call::Scan {
            prefix: word("PREFIX")?,
            limit,
        },
        "wait" => Call::Wait {
            key: word("KEY")?,
            seen: None,
        },
        other => return Err(format!("there is no call '{other}'")),
    };
    match words.next() {
        None => Ok(call),
        Some(surplus) => Err(format!("'{surplus}' is too much for {verb}")),
    }
}

/// Takes a flag and its value out of the arguments.
fn take_flag(args: &mut Vec<String>, flag: &str) -> Result<Option<String>, String> {
    let Some(at) = args.iter().position(|arg| arg == flag) else {
        return Ok(None);
    };
    args.remove(at);
    if at == args.len() {
        return Err(format!("{flag} needs a value"));
    }
    Ok(Some(args.remove(at)))
}

pub(crate) const HELP: &str = "\
A typed key-value service over length-prefixed frames, behind the full stack.

rpc [--seconds N]            the demo: a server, good clients, bad peers; a table at the end
rpc serve [--listen ADDR] [--mode MODE]
                             serves until SIGTERM or SIGINT, then drains
rpc call [--to ADDRS] [--mode MODE] [--within MS] CALL
                             makes one call and prints the reply
rpc bench [--to ADDRS | --servers N] [--mode MODE] [--depth N] [--seconds N]
                             calls one at a time, then N at once; without --to, N servers are started here

CALL is one of
  get KEY
  put KEY VALUE
  delete KEY
  scan PREFIX [--limit N]
  wait KEY                   until its value is another one

MODE is pipelined (the default): replies in the order of the calls; or multiplexed: in any order, and the
server knows how much time is left (--within) and when nobody waits any more.
ADDRS are one or several, with commas between them; each call goes to the one of two that has less to do.
ADDR is 127.0.0.1:7000 unless given; N is 8 seconds (2 for bench), 64 calls, 1 server, or 100 entries.
Exit code: 0 if all went well, 1 if not, 2 for arguments that make no sense.";

/// Where `serve` listens and `call` connects to.
const ADDR: &str = "127.0.0.1:7000";

/// Calls at once that `bench` makes.
const DEPTH: usize = 64;

/// Long enough for rates to settle.
const BENCH_SECONDS: u64 = 2;

/// Long enough for three rounds of bad peers.
const SECONDS: u64 = 8;

/// Entries that `scan` asks for.
const LIMIT: u32 = 100;
