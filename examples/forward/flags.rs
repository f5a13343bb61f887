//! The flags of its own. Each sets one setting of the library; without it, the library's own default holds.

use tower_net::{error::BoxError, forward::Timeouts, proxy_protocol::Version};

use crate::shell::flags::Guards;

pub(crate) const HELP: &str = "\
A TCP proxy with every guard as a flag. It drains on SIGTERM and SIGINT; a second one cuts.

  --listen ADDR          HOST:PORT or unix:PATH; repeatable                [127.0.0.1:7000]
  --to HOST:PORT         where connections go; repeatable, in turn, and on to the next if one is not there";

pub(crate) const MORE_HELP: &str = "
  --proxy-protocol-out V tells where the client comes from: v1 or v2       [off]
  --connect TIME         to reach one of them; each has its share of it    [5s]
  --tunnel-idle TIME     of silence both ways                              [1h]
  --half-close TIME      of silence after one side has ended               [60s]
  --no-splice            copies all bytes through buffers

--first-byte and --idle are off here unless they are given: a server may be the one that speaks first, and a tunnel has
--tunnel-idle. A TIME is a number and its unit: 1500ms, 3s, 5m, 1h.";

/// What the proxy is to do.
pub(crate) struct Flags {
    pub(crate) guards: Guards,
    pub(crate) to: Vec<String>,
    pub(crate) announce: Option<Version>,
    pub(crate) timeouts: Timeouts,
    pub(crate) splice: bool,
}

impl Flags {
    /// The flags in `args`; `None` if they ask for help.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Option<Self>, BoxError> {
        let (mut to, mut announce, mut splice) = (Vec::new(), None, true);
        let mut timeouts = Timeouts::default();
        let args: Vec<_> = args.collect();
        let guards = Guards::parse("forward", args.iter().cloned(), |value| {
            let own = timeouts.clone();
            match value.flag() {
                "--to" => to.push(value.text()?),
                "--proxy-protocol-out" => {
                    let choices = [("v1", Version::V1), ("v2", Version::V2)];
                    announce = Some(value.one_of(choices)?);
                }
                "--connect" => timeouts = own.connect(value.time()?),
                "--tunnel-idle" => timeouts = own.idle(value.time()?),
                "--half-close" => timeouts = own.half_close(value.time()?),
                "--no-splice" => splice = false,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let Some(mut guards) = guards else {
            return Ok(None);
        };
        if to.is_empty() {
            return Err("--to: needs one address at least".into());
        }
        let is_given = |flag| args.iter().any(|arg| arg == flag);
        // A server may speak first, and a tunnel has a time for silence of its own.
        if !is_given("--first-byte") {
            guards.guard = guards.guard.first_byte(None);
        }
        if !is_given("--idle") {
            guards.guard = guards.guard.idle(None);
        }
        if guards.listen.is_empty() {
            guards.listen = vec!["127.0.0.1:7000".to_owned()];
        }
        let timeouts = timeouts.dry_run(guards.dry_run);
        Ok(Some(Self {
            guards,
            to,
            announce,
            timeouts,
            splice,
        }))
    }
}
