//! The server process: what it does ([`run`]), and how the parent holds it ([`ServerProcess`]).
//!
//! The child prints its port and serves until its standard input ends, so that it never outlives
//! the parent, even a killed one.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::{env, fs, process, thread};

use anyhow::{Context, Result};

use crate::contestants::{self, Contestant};
use crate::cpu::{self, CpuClock};

/// Serves as the contestant `name` until the parent lets go.
pub(crate) fn run(name: &str, core: usize, upstream: Option<SocketAddr>) -> Result<()> {
    let contestant = contestants::find(name)?;
    #[cfg(feature = "ours")]
    if let Some(upstream) = upstream {
        crate::forward::set_upstream(upstream);
    }
    #[cfg(not(feature = "ours"))]
    let _nobody_forwards = upstream;
    cpu::pin(core)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut stdout = io::stdout();
    writeln!(stdout, "{}", listener.local_addr()?.port())?;
    stdout.flush()?;
    thread::spawn(|| {
        // Whether the pipe ends or breaks: the parent is gone.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        process::exit(0);
    });
    (contestant.serve)(listener)
}

/// A running server process; killed when dropped.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    child: Child,
    address: SocketAddr,
}

impl ServerProcess {
    /// Starts this program again as the server of `contestant`.
    pub(crate) fn start(contestant: &Contestant, core: usize) -> Result<Self> {
        Self::spawn(contestant, core, &[])
    }

    /// The same for a proxy that forwards to `upstream`.
    #[cfg(feature = "ours")]
    pub(crate) fn start_before(
        contestant: &Contestant,
        core: usize,
        upstream: SocketAddr,
    ) -> Result<Self> {
        Self::spawn(contestant, core, &["--upstream", &upstream.to_string()])
    }

    fn spawn(contestant: &Contestant, core: usize, more: &[&str]) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(["server", contestant.name, "--core", &core.to_string()])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the server process")?;
        let stdout = child
            .stdout
            .take()
            .context("the server has no output")?;
        // From here on a failure must end the child.
        let mut server = Self {
            child,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let port = line
            .trim()
            .parse()
            .context("the server printed no port")?;
        server.address.set_port(port);
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn cpu_clock(&self) -> Result<CpuClock> {
        CpuClock::of(self.child.id())
    }

    /// How often the server, which has one thread for it, has gone to sleep for want of work.
    #[cfg(feature = "ours")]
    pub(crate) fn sleeps(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let switches = text
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        let switches = switches.with_context(|| format!("{path} counts no switches"))?;
        Ok(switches.trim().parse()?)
    }

    /// Bytes of anonymous memory resident in the process.
    pub(crate) fn anonymous_memory(&self) -> Result<u64> {
        anonymous_memory(&self.child.id().to_string())
    }
}

/// Bytes of anonymous memory resident in a process: heap and stacks, not code.
///
/// From `smaps_rollup`, which counts pages; the `RssAnon` of `status` may lag behind.
pub(crate) fn anonymous_memory(process: &str) -> Result<u64> {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let kib: u64 = text
        .lines()
        .find_map(|line| {
            line.strip_prefix("Anonymous:")?
                .trim()
                .strip_suffix(" kB")
        })
        .with_context(|| format!("{path} has no Anonymous line"))?
        .parse()?;
    Ok(kib * 1024)
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Fails only if the process has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
