//! The flags. Each sets one setting of the library; without it, the library's own default holds.

use std::{path::PathBuf, str::FromStr, time::Duration};

use tower_net::{error::BoxError, guard::Settings};

pub(crate) const HELP: &str = "\
A gRPC service behind every guard. It drains on SIGTERM and SIGINT; a second one cuts.

  --listen ADDR          HOST:PORT or unix:PATH                            [127.0.0.1:50051]

  --max-connections N    open at once                                      [10000]
  --per-peer N           open at once of one peer                          [256]
  --allow CIDR           lets in these peers and no others; repeatable
  --deny CIDR            keeps out these, unless a longer one is allowed; repeatable
  --proxy-protocol CIDR  proxies that must announce their clients; repeatable
  --tls CERT,KEY         files in PEM
  --handshake TIME       for a PROXY header and a TLS handshake together   [10s]
  --first-byte TIME      from there to the first byte                      [3s]
  --idle TIME            of silence, in a stream of calls as well          [90s]
  --ping TIME            asks so often whether a silent client is there    [off]
  --write-stall TIME     without a byte that can be written                [30s]
  --max-age TIME         of a connection, a tenth more or less             [off]

  --max-streams N        calls of one connection at once                   [200]
  --drain TIME           to leave in, then what is left is cut             [30s]

A TIME is a number and its unit: 1500ms, 3s, 5m.";

/// What the server is to do.
pub(crate) struct Flags {
    pub(crate) listen: String,
    pub(crate) guard: Settings,
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    pub(crate) ping: Option<Duration>,
    pub(crate) streams: u32,
    pub(crate) drain: Duration,
}

impl Flags {
    /// The flags in `args`; `None` if they ask for help.
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, BoxError> {
        let mut flags = Self {
            listen: "127.0.0.1:50051".to_owned(),
            guard: Settings::default().service("talk"),
            tls: None,
            ping: None,
            // Tonic has no limit by default: one connection could be as many calls as memory holds.
            streams: 200,
            drain: Duration::from_secs(30),
        };
        while let Some(flag) = args.next() {
            if flag == "--help" {
                return Ok(None);
            }
            flags
                .set(&flag, &mut args)
                .map_err(|error| format!("{flag}: {error}"))?;
        }
        Ok(Some(flags))
    }

    fn set(&mut self, flag: &str, args: &mut impl Iterator<Item = String>) -> Result<(), BoxError> {
        let mut value = || args.next().ok_or("needs a value");
        let guard = self.guard.clone();
        self.guard = match flag {
            "--max-connections" => guard.connections(value()?.parse::<usize>()?),
            "--per-peer" => guard.per_peer(value()?.parse::<u32>()?),
            "--allow" => guard.allow([value()?]),
            "--deny" => guard.deny([value()?]),
            "--proxy-protocol" => guard.proxy_protocol([value()?]),
            "--handshake" => guard.handshakes(256, time(&value()?)?),
            "--first-byte" => guard.first_byte(time(&value()?)?),
            "--idle" => guard.idle(time(&value()?)?),
            "--write-stall" => guard.write_stall(time(&value()?)?),
            "--max-age" => guard.max_age(time(&value()?)?),
            _ => {
                match flag {
                    "--listen" => self.listen = value()?,
                    "--tls" => self.tls = Some(pair(&value()?)?),
                    "--ping" => self.ping = Some(time(&value()?)?),
                    "--max-streams" => self.streams = value()?.parse()?,
                    "--drain" => self.drain = time(&value()?)?,
                    _ => return Err("no such flag; --help lists them".into()),
                }
                guard
            }
        };
        Ok(())
    }
}

fn pair(text: &str) -> Result<(PathBuf, PathBuf), BoxError> {
    let (one, other) = text
        .split_once(',')
        .ok_or("is no CERT,KEY")?;
    Ok((one.into(), other.into()))
}

/// A number and its unit.
fn time(text: &str) -> Result<Duration, BoxError> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(unit_at.unwrap_or(text.len()));
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err("is no time: 1500ms, 3s, 5m".into()),
    };
    let number = u64::from_str(number)?;
    let millis = number.checked_mul(millis);
    Ok(Duration::from_millis(millis.ok_or("is too long")?))
}
