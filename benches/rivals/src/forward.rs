//! What a proxy spends on a byte: one stream from a client to an upstream, both in this process.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use anyhow::{Context, Result, ensure};

use crate::args::ForwardArgs;
use crate::contestants::FORWARD;
use crate::cpu::CpuClock;
use crate::server::ServerProcess;
use crate::stats::Spread;

/// In a server process: whom to forward to.
static UPSTREAM: OnceLock<SocketAddr> = OnceLock::new();

pub(crate) fn upstream() -> SocketAddr {
    *UPSTREAM
        .get()
        .expect("the parent said where to")
}

pub(crate) fn set_upstream(addr: SocketAddr) {
    UPSTREAM.get_or_init(|| addr);
}

pub(crate) fn run(args: &ForwardArgs) -> Result<()> {
    let bytes = args.mib << 20;
    println!(
        "one stream of {} MiB through a proxy ({} rounds), CPU of the proxy",
        args.mib, args.rounds
    );
    let mut all = Vec::new();
    for contestant in FORWARD {
        let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let to = upstream.local_addr()?;
        let server = ServerProcess::start_before(contestant, args.cores.server_core, to)?;
        all.push(Contender::new(
            contestant.name,
            Proxy::Own(server),
            upstream,
        )?);
    }
    if args.haproxy {
        for (name, options) in [
            ("haproxy", ""),
            (
                "haproxy_splice",
                "option splice-request\n    option splice-response",
            ),
        ] {
            let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let proxy = HaProxy::start(options, upstream.local_addr()?, args.cores.server_core)?;
            all.push(Contender::new(name, Proxy::Ha(proxy), upstream)?);
        }
    }
    for round in 0..=args.rounds as usize {
        for turn in 0..all.len() {
            let turn = (turn + round) % all.len();
            // The first round is thrown away.
            all[turn].transfer(bytes, round > 0)?;
        }
    }
    print(&all);
    Ok(())
}

fn print(all: &[Contender]) {
    println!(
        "{:<16}{:>12}{:>28}{:>10}{:>8}",
        "contestant", "ms/GiB", "ratio", "GiB/s", "busy"
    );
    let baseline = all[0].cpu.clone();
    for contender in all {
        let (Some(cpu), Some(ratio), Some(rate), Some(busy)) = (
            Spread::of(contender.cpu.iter().copied()),
            Spread::of_ratios(&contender.cpu, &baseline),
            Spread::of(
                contender
                    .wall
                    .iter()
                    .map(|wall| 1000.0 / wall),
            ),
            Spread::of_ratios(&contender.cpu, &contender.wall),
        ) else {
            continue;
        };
        println!(
            "{:<16}{:>12.0}{:>12.3} [{:.3}..{:.3}]{:>10.2}{:>8.2}",
            contender.name,
            cpu.median,
            ratio.median,
            ratio.min,
            ratio.max,
            rate.median,
            busy.median
        );
    }
}

/// A proxy, and where it forwards to.
struct Contender {
    name: &'static str,
    proxy: Proxy,
    clock: CpuClock,
    upstream: TcpListener,
    /// Milliseconds for a GiB, of each round that counts.
    cpu: Vec<f64>,
    wall: Vec<f64>,
}

enum Proxy {
    Own(ServerProcess),
    Ha(HaProxy),
}

impl Contender {
    fn new(name: &'static str, proxy: Proxy, upstream: TcpListener) -> Result<Self> {
        let clock = match &proxy {
            Proxy::Own(server) => server.cpu_clock()?,
            Proxy::Ha(haproxy) => CpuClock::of(haproxy.child.id())?,
        };
        Ok(Self {
            name,
            proxy,
            clock,
            upstream,
            cpu: Vec::new(),
            wall: Vec::new(),
        })
    }

    fn address(&self) -> SocketAddr {
        match &self.proxy {
            Proxy::Own(server) => server.address(),
            Proxy::Ha(haproxy) => haproxy.address,
        }
    }

    /// One connection: so many bytes to the upstream, the end, and the upstream's end back.
    fn transfer(&mut self, bytes: u64, counts: bool) -> Result<()> {
        let mut client = TcpStream::connect(self.address())?;
        let (mut upstream, _) = self.upstream.accept()?;
        let (cpu, began) = (self.clock.read()?, Instant::now());
        let writer = {
            let mut client = client.try_clone()?;
            thread::spawn(move || -> Result<()> {
                let block = vec![7; BLOCK];
                let mut left = bytes;
                while left > 0 {
                    let piece = left.min(BLOCK as u64);
                    client.write_all(&block[..piece as usize])?;
                    left -= piece;
                }
                Ok(client.shutdown(Shutdown::Write)?)
            })
        };
        let mut block = vec![0; BLOCK];
        let mut received = 0;
        loop {
            match upstream.read(&mut block)? {
                0 => break,
                read => received += read as u64,
            }
        }
        drop(upstream);
        ensure!(client.read(&mut block)? == 0, "{}: no end", self.name);
        let (cpu, wall) = (self.clock.read()? - cpu, began.elapsed());
        let sent = writer.join();
        sent.ok()
            .context("the writer panicked")??;
        ensure!(
            received == bytes,
            "{}: {received} of {bytes} bytes",
            self.name
        );
        if counts {
            let gib = bytes as f64 / f64::from(1 << 30);
            self.cpu
                .push(cpu.as_secs_f64() * 1e3 / gib);
            self.wall
                .push(wall.as_secs_f64() * 1e3 / gib);
        }
        Ok(())
    }
}

/// An HAProxy with one thread; killed when dropped.
struct HaProxy {
    child: Child,
    address: SocketAddr,
    config: std::path::PathBuf,
}

impl HaProxy {
    fn start(options: &str, upstream: SocketAddr, core: usize) -> Result<Self> {
        // Free a moment ago, and nobody else is at it here.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config =
            env::temp_dir().join(format!("rivals-{}-{}.cfg", process::id(), address.port()));
        let text = format!(
            "global\n    nbthread 1\n    maxconn 100\n    maxpipes 64\ndefaults\n    mode tcp\n    timeout connect 10s\n    timeout client 60s\n    timeout server 60s\n    {options}\nfrontend in\n    bind {address}\n    default_backend out\nbackend out\n    server it {upstream}\n"
        );
        fs::write(&config, text)?;
        let child = Command::new("taskset")
            .args(["-c", &core.to_string(), "haproxy", "-q", "-db", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start haproxy; --no-haproxy goes without")?;
        let haproxy = Self {
            child,
            address,
            config,
        };
        for _ in 0..500 {
            // Not a connection: it would be forwarded, and be the first that is accepted.
            if listens(address)? {
                return Ok(haproxy);
            }
            thread::sleep(Duration::from_millis(10));
        }
        anyhow::bail!("haproxy does not listen")
    }
}

/// Whether somebody listens there, as the kernel has it.
fn listens(address: SocketAddr) -> Result<bool> {
    let port = format!(":{:04X} 00000000:0000 0A ", address.port());
    Ok(fs::read_to_string("/proc/net/tcp")?.contains(&port))
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.config);
    }
}

/// Written and read at once by both ends.
const BLOCK: usize = 256 * 1024;
