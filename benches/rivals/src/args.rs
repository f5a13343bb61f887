//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::cell::Cell;

#[derive(Debug, Parser)]
#[command(about, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) rpc: RpcArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure the memory of an idle connection instead of the CPU of a request
    Idle(IdleArgs),
    /// Measure TLS instead: the CPU of a handshake with one byte behind it, and the memory of an idle connection
    #[cfg(feature = "ours")]
    Tls(TlsArgs),
    /// Measure a short connection instead: the CPU of its accept, one exchange and its close
    #[cfg(feature = "ours")]
    Accept(AcceptArgs),
    /// Measure a pool instead: a connection that is got and given back, beside what one would use instead
    #[cfg(feature = "ours")]
    Pool(PoolArgs),
    /// Measure HTTP/1.1 requests instead: an axum `Router`, behind the guards and without
    #[cfg(feature = "ours")]
    Web(WebArgs),
    /// Measure a proxy of one stream instead: CPU a byte, beside tokio's copy and HAProxy
    #[cfg(feature = "ours")]
    Forward(ForwardArgs),
    /// Measure calls that are answered by id instead, beside tarpc and tonic: the CPU of a call
    #[cfg(feature = "ours")]
    Calls(CallsArgs),
    /// Measure a rate check for each peer instead: time and memory, beside keyed `governor`
    Checks(ChecksArgs),
    /// Say how much memory one contestant takes (started by `checks`)
    #[command(hide = true)]
    ChecksMemory {
        name: String,
        capacity: u32,
        keys: u32,
    },
    /// Be the server process of one contestant (started by the other commands)
    #[command(hide = true)]
    Server {
        name: String,
        #[arg(long, default_value_t = 0)]
        core: usize,
        /// Whom a proxy forwards to
        #[arg(long)]
        upstream: Option<SocketAddr>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RpcArgs {
    /// Contestants to run, comma separated [default: all]
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Cells to measure, PAYLOADxDEPTHxCONNECTIONS, comma separated [default: all twelve]
    #[arg(long, value_delimiter = ',')]
    pub(crate) cells: Vec<Cell>,
    /// Windows per contestant and cell
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Length of a window; its first third is thrown away
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) window_ms: u64,
    /// Contestant the ratios are taken against
    #[arg(long, default_value = "tokio")]
    pub(crate) baseline: String,
    /// Also write the figures, with every single round, to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cores: Cores,
}

#[derive(Debug, Args)]
pub(crate) struct IdleArgs {
    /// Contestants to run, comma separated [default: all]
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Idle connections per contestant; both processes need as many file descriptors
    #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// Server processes measured per contestant
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cores: Cores,
}

#[cfg(feature = "ours")]
#[derive(Debug, Args)]
pub(crate) struct TlsArgs {
    /// Turns of each contestant
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Handshakes in a turn
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) handshakes: u32,
    /// Let the client resume its session
    #[arg(long)]
    pub(crate) resumed: bool,
    /// Idle connections per contestant
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// Also count the instructions of a handshake, with valgrind
    #[arg(long)]
    pub(crate) instructions: bool,
    #[command(flatten)]
    pub(crate) cores: Cores,
}

#[cfg(feature = "ours")]
#[derive(Debug, Args)]
pub(crate) struct AcceptArgs {
    /// Turns of each contestant
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Connections in a turn
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// Connections that are made before the first of them is waited for
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) at_once: u32,
    /// Also count the instructions of a connection, with valgrind
    #[arg(long)]
    pub(crate) instructions: bool,
    #[command(flatten)]
    pub(crate) cores: Cores,
}

#[cfg(feature = "ours")]
#[derive(Debug, Args)]
pub(crate) struct WebArgs {
    /// Windows per contestant
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Length of a window; its first third is thrown away
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) window_ms: u64,
    /// Connections kept alive, with one request at a time on each
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// Let the handler wait once before it answers
    #[arg(long)]
    pub(crate) waiting: bool,
    #[command(flatten)]
    pub(crate) cores: Cores,
}

#[cfg(feature = "ours")]
#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// Turns of each contestant
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// MiB in a turn
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) mib: u64,
    /// Leave HAProxy out, where it is not installed
    #[arg(long = "no-haproxy", action = clap::ArgAction::SetFalse)]
    pub(crate) haproxy: bool,
    #[command(flatten)]
    pub(crate) cores: Cores,
}

#[cfg(feature = "ours")]
#[derive(Debug, Args)]
pub(crate) struct CallsArgs {
    /// Turns of each contestant
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Calls in a turn, rounded up to as many for each caller
    #[arg(long, default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) calls: u32,
    /// Connections, all of which call at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// Calls at once on a connection, comma separated
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64], value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) depths: Vec<u32>,
    /// Bytes of a request, and of its reply
    #[arg(long, default_value_t = 64)]
    pub(crate) payload: usize,
    #[command(flatten)]
    pub(crate) cores: Cores,
}

#[cfg(feature = "ours")]
#[derive(Debug, Args)]
pub(crate) struct PoolArgs {
    /// Gets per contestant and round
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(64..))]
    pub(crate) gets: u32,
    /// Rounds, in each of which every contestant takes its turn; one more comes first and is thrown away
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Core to run on
    #[arg(long, default_value_t = 0)]
    pub(crate) core: usize,
    /// The other one, for two threads
    #[arg(long, default_value_t = 1)]
    pub(crate) other_core: usize,
}

#[derive(Debug, Args)]
pub(crate) struct ChecksArgs {
    /// How many peers there are, comma separated
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100_000, 1_000_000])]
    pub(crate) keys: Vec<u32>,
    /// How many peers flood a table of the library's default size, to see what stays resident
    #[arg(long, default_value_t = 10_000_000)]
    pub(crate) flood: u32,
    /// Checks of random peers per contestant and round
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) checks: u32,
    /// Rounds, in each of which every contestant takes its turn
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Core to run on
    #[arg(long, default_value_t = 0)]
    pub(crate) core: usize,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Where the two processes run. They must not share a core, or each measures the other.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Cores {
    /// Core of the server processes
    #[arg(long, default_value_t = 0, value_name = "CORE")]
    pub(crate) server_core: usize,
    /// Core of the load generator
    #[arg(long, default_value_t = 1, value_name = "CORE")]
    pub(crate) client_core: usize,
}
