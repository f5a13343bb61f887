//! RPC echo benchmark: one protocol, one load generator, several servers ("contestants"), one run.
//!
//! The binary plays both parts. As the parent it generates load on one core; for each contestant
//! it starts itself again as `rivals server <name>` on another core, and reads that process's CPU
//! clock. See the README for how to run it and how to read what it prints.

#[cfg(feature = "ours")]
mod accept;
mod args;
mod base;
#[cfg(feature = "ours")]
mod calls;
mod cell;
mod checks;
mod client;
mod contestants;
mod cpu;
#[cfg(feature = "ours")]
mod forward;
mod idle;
#[cfg(feature = "ours")]
mod instructions;
#[cfg(feature = "ours")]
mod pool;
mod report;
mod rpc;
mod server;
mod stats;
#[cfg(feature = "ours")]
mod tls;
#[cfg(feature = "ours")]
mod turns;
#[cfg(feature = "ours")]
mod web;
mod wire;

use anyhow::Result;
use clap::Parser;

use crate::args::{Cli, Command};

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Server {
            name,
            core,
            upstream,
        }) => server::run(&name, core, upstream),
        Some(Command::Checks(args)) => checks::run(&args),
        Some(Command::ChecksMemory {
            name,
            capacity,
            keys,
        }) => checks::memory(&name, capacity, keys),
        Some(Command::Idle(args)) => {
            cpu::allow_many_files()?;
            cpu::pin(args.cores.client_core)?;
            idle::run(&args)
        }
        #[cfg(feature = "ours")]
        Some(Command::Accept(args)) => {
            cpu::allow_many_files()?;
            cpu::pin(args.cores.client_core)?;
            accept::run(&args)
        }
        #[cfg(feature = "ours")]
        Some(Command::Pool(args)) => pool::run(&args),
        #[cfg(feature = "ours")]
        Some(Command::Tls(args)) => {
            cpu::allow_many_files()?;
            cpu::pin(args.cores.client_core)?;
            tls::run(&args)
        }
        #[cfg(feature = "ours")]
        Some(Command::Forward(args)) => {
            cpu::pin(args.cores.client_core)?;
            forward::run(&args)
        }
        #[cfg(feature = "ours")]
        Some(Command::Calls(args)) => {
            cpu::pin(args.cores.client_core)?;
            calls::run(&args)
        }
        #[cfg(feature = "ours")]
        Some(Command::Web(args)) => {
            cpu::allow_many_files()?;
            cpu::pin(args.cores.client_core)?;
            web::run(&args)
        }
        None => {
            cpu::allow_many_files()?;
            cpu::pin(cli.rpc.cores.client_core)?;
            rpc::run(&cli.rpc)
        }
    }
}
