//! The command line.

use std::time::Duration;

use crate::protocol::Call;

/// What to do.
#[derive(Debug)]
pub(crate) enum Command {
    Help,
    Demo { duration: Duration },
    Serve { listen: String },
    Call { to: String, call: Call },
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
            duration: seconds(take_flag(&mut args, "--seconds")?)?,
        },
        "serve" => Command::Serve {
            listen: take_flag(&mut args, "--listen")?.unwrap_or_else(|| ADDR.to_owned()),
        },
        "call" => Command::Call {
            to: take_flag(&mut args, "--to")?.unwrap_or_else(|| ADDR.to_owned()),
            call: take_call(&mut args)?,
        },
        other => return Err(format!("there is no command '{other}'")),
    };
    match args.first() {
        None => Ok(parsed),
        Some(surplus) => Err(format!("'{surplus}' is not understood here")),
    }
}

fn seconds(flag: Option<String>) -> Result<Duration, String> {
    match flag {
        None => Ok(Duration::from_secs(SECONDS)),
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
rpc serve [--listen ADDR]    serves until SIGTERM or SIGINT, then drains
rpc call [--to ADDR] CALL    makes one call and prints the reply

CALL is one of
  get KEY
  put KEY VALUE
  delete KEY
  scan PREFIX [--limit N]
  wait KEY                   until its value is another one

ADDR is 127.0.0.1:7000 unless given; N is 8 seconds, or 100 entries.
Exit code: 0 if all went well, 1 if not, 2 for arguments that make no sense.";

/// Where `serve` listens and `call` connects to.
const ADDR: &str = "127.0.0.1:7000";

/// Long enough for three rounds of bad peers.
const SECONDS: u64 = 8;

/// Entries that `scan` asks for.
const LIMIT: u32 = 100;
