//! The load: one thread, one epoll set, one request outstanding on each connection, every answer looked at.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::ANSWER;
use crate::client::Sample;
use crate::cpu::CpuClock;

/// A server that says nothing for so long is stuck.
const PATIENCE: u16 = 5_000;

/// Connections to one server, all blocking but read only when there is something.
pub(super) struct Load {
    request: Vec<u8>,
    epoll: Epoll,
    connections: Vec<Connection>,
}

struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
    /// The length of the first answer, which is that of all: a date is always as long.
    whole: usize,
    asked: bool,
}

impl Load {
    pub(super) fn open(address: SocketAddr, path: &str, connections: u32) -> Result<Self> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").into_bytes();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut open = Vec::new();
        for index in 0..u64::from(connections) {
            let connection = Connection::open(address, &request)?;
            epoll.add(
                &connection.stream,
                EpollEvent::new(EpollFlags::EPOLLIN, index),
            )?;
            open.push(connection);
        }
        Ok(Self {
            request,
            epoll,
            connections: open,
        })
    }

    /// Loads the server for `length` and measures the last two thirds of it. Afterwards nothing is outstanding.
    pub(super) fn window(&mut self, length: Duration, server: CpuClock) -> Result<Sample> {
        for connection in &mut self.connections {
            connection.ask(&self.request)?;
        }
        self.run_for(length / 3)?;
        let (start, before) = (Instant::now(), server.read()?);
        let replies = self.run_for(length - length / 3)?;
        let sample = Sample {
            replies,
            cpu: server.read()?.saturating_sub(before),
            wall: start.elapsed(),
        };
        while self
            .connections
            .iter()
            .any(|connection| connection.asked)
        {
            self.turn(false)?;
        }
        ensure!(
            replies > 0 && !sample.cpu.is_zero(),
            "the window is too short"
        );
        Ok(sample)
    }

    fn run_for(&mut self, length: Duration) -> Result<u64> {
        let (start, mut replies) = (Instant::now(), 0);
        while start.elapsed() < length {
            replies += self.turn(true)?;
        }
        Ok(replies)
    }

    /// Waits for answers and takes them in; with `again`, asks anew for each.
    fn turn(&mut self, again: bool) -> Result<u64> {
        let mut events = [EpollEvent::empty(); 64];
        let n = match self.epoll.wait(&mut events, PATIENCE) {
            Ok(0) => bail!("the server has stopped answering"),
            Ok(n) => n,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error).context("epoll"),
        };
        let mut replies = 0;
        for event in &events[..n] {
            let connection = &mut self.connections[event.data() as usize];
            if connection.take()? {
                replies += 1;
                if again {
                    connection.ask(&self.request)?;
                }
            }
        }
        Ok(replies)
    }
}

impl Connection {
    /// Connects and makes one exchange, which ends when the whole answer is here.
    fn open(address: SocketAddr, request: &[u8]) -> Result<Self> {
        let stream = TcpStream::connect(address).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(PATIENCE.into())))?;
        let mut connection = Self {
            stream,
            answer: Vec::new(),
            whole: 0,
            asked: false,
        };
        connection.ask(request)?;
        while !connection
            .answer
            .ends_with(ANSWER.as_bytes())
        {
            connection.read()?;
        }
        connection.whole = connection.answer.len();
        ensure!(connection.take_whole()?, "the first answer is cut short");
        Ok(connection)
    }

    fn ask(&mut self, request: &[u8]) -> Result<()> {
        ensure!(!self.asked, "asked again before it was answered");
        self.asked = true;
        // So little always has room.
        self.stream
            .write_all(request)
            .context("write")
    }

    /// Reads once: whether the answer is whole.
    fn take(&mut self) -> Result<bool> {
        self.read()?;
        self.take_whole()
    }

    fn read(&mut self) -> Result<()> {
        let mut some = [0; 1024];
        let n = match self.stream.read(&mut some) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error).context("read"),
        };
        ensure!(n > 0, "the server closed a connection");
        self.answer
            .extend_from_slice(&some[..n]);
        Ok(())
    }

    fn take_whole(&mut self) -> Result<bool> {
        if self.answer.len() < self.whole {
            return Ok(false);
        }
        let is_right = self
            .answer
            .starts_with(b"HTTP/1.1 200 ")
            && self.answer.ends_with(ANSWER.as_bytes());
        ensure!(
            is_right && self.asked && self.answer.len() == self.whole,
            "a wrong answer: {}",
            String::from_utf8_lossy(&self.answer)
        );
        self.answer.clear();
        self.asked = false;
        Ok(true)
    }
}
