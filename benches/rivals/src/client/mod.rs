//! The load generator: one thread, one epoll set, `depth` requests outstanding on each connection.
//!
//! It is written by hand so that it costs less than any server it drives, and it checks every byte
//! of every reply, so that no contestant wins by being wrong.

mod connection;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use self::connection::Connection;
pub(crate) use self::connection::exchange;
use crate::cell::Cell;
use crate::cpu::CpuClock;
use crate::wire::Pattern;

const EVENTS_PER_WAIT: usize = 64;
/// Replies to each outstanding request before measuring starts.
const TURNOVERS: u64 = 4;
/// A server that says nothing for so long is stuck.
const PATIENCE: u16 = 5_000;

/// The connections to one server.
pub(crate) struct Load {
    cell: Cell,
    pattern: Pattern,
    epoll: Epoll,
    connections: Vec<Connection>,
}

/// What the measured part of one window saw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) replies: u64,
    /// CPU time of the server process.
    pub(crate) cpu: Duration,
    pub(crate) wall: Duration,
}

impl Load {
    /// Opens the cell's connections, with one exchange on each.
    pub(crate) fn open(address: SocketAddr, cell: Cell) -> Result<Self> {
        let pattern = Pattern::new(cell.payload);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut connections = Vec::with_capacity(cell.connections);
        for index in 0..cell.connections as u64 {
            let connection = Connection::open(address, index, &pattern)?;
            epoll.add(
                connection.stream(),
                EpollEvent::new(EpollFlags::EPOLLIN, index),
            )?;
            connections.push(connection);
        }
        Ok(Self {
            cell,
            pattern,
            epoll,
            connections,
        })
    }

    /// Loads the server for `length` and measures the last two thirds of it. Afterwards nothing is
    /// outstanding, so that the server is at rest while others have their turn.
    ///
    /// What is thrown away is never less than some [`TURNOVERS`] of all pipelines: they are filled
    /// at one stroke, and a server may work through this backlog in larger batches than later on.
    pub(crate) fn window(&mut self, length: Duration, server: CpuClock) -> Result<Sample> {
        for index in 0..self.connections.len() {
            self.connections[index].ask(&self.pattern, self.cell.depth);
            self.flush(index)?;
        }
        let backlog = (self.cell.connections * self.cell.depth) as u64;
        self.run_for(length / 3, TURNOVERS * backlog)?;
        let (start, before) = (Instant::now(), server.read()?);
        let replies = self.run_for(length - length / 3, 0)?;
        let sample = Sample {
            replies,
            cpu: server.read()?.saturating_sub(before),
            wall: start.elapsed(),
        };
        while self
            .connections
            .iter()
            .any(|connection| connection.outstanding() > 0)
        {
            self.turn(false)?;
        }
        ensure!(replies > 0, "no reply within the window; make it longer");
        ensure!(
            !sample.cpu.is_zero(),
            "the CPU clock stood still; make the window longer"
        );
        Ok(sample)
    }

    /// Keeps up the load for `length`, and longer until there were `at_least` replies.
    fn run_for(&mut self, length: Duration, at_least: u64) -> Result<u64> {
        let (start, mut replies) = (Instant::now(), 0);
        while start.elapsed() < length || replies < at_least {
            replies += self.turn(true)? as u64;
        }
        Ok(replies)
    }

    /// Waits for events and handles them: takes in replies and, with `refill`, asks anew for each.
    fn turn(&mut self, refill: bool) -> Result<usize> {
        let mut events = [EpollEvent::empty(); EVENTS_PER_WAIT];
        let n = match self.epoll.wait(&mut events, PATIENCE) {
            Ok(0) => bail!("the server has stopped answering"),
            Ok(n) => n,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error).context("epoll"),
        };
        let mut replies = 0;
        for event in &events[..n] {
            let index = event.data() as usize;
            let connection = &mut self.connections[index];
            let ready = event.events();
            if ready.intersects(!EpollFlags::EPOLLOUT) {
                let got = connection.take_replies(&self.pattern)?;
                replies += got;
                if refill {
                    connection.ask(&self.pattern, got);
                }
            }
            self.flush(index)?;
        }
        Ok(replies)
    }

    /// Writes what a connection has to say, and watches for room if it does not all go out.
    fn flush(&mut self, index: usize) -> Result<()> {
        let connection = &mut self.connections[index];
        let waited = connection.waits_for_room();
        connection.flush()?;
        if connection.waits_for_room() != waited {
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, connection.waits_for_room());
            let mut event = EpollEvent::new(flags, index as u64);
            self.epoll
                .modify(connection.stream(), &mut event)?;
        }
        Ok(())
    }
}
