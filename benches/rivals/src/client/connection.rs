//! One connection of the load generator.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wire::{HEADER, Inbox, Pattern};

/// Ids of a connection start here times its number: a reply on the wrong connection is noticed.
const IDS: u64 = 1 << 32;
/// For the blocking exchange at the start.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Connection {
    stream: TcpStream,
    inbox: Inbox,
    outbox: Vec<u8>,
    /// Bytes of the outbox that are sent.
    sent: usize,
    next_request: u64,
    next_reply: u64,
}

impl Connection {
    /// Connects and, blocking, makes one exchange: now the server has accepted for certain.
    pub(crate) fn open(address: SocketAddr, index: u64, pattern: &Pattern) -> Result<Self> {
        let first = index * IDS;
        let stream = exchange(address, first, pattern)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            inbox: Inbox::new(),
            outbox: Vec::new(),
            sent: 0,
            next_request: first + 1,
            next_reply: first + 1,
        })
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn outstanding(&self) -> u64 {
        self.next_request - self.next_reply
    }

    pub(crate) fn waits_for_room(&self) -> bool {
        self.sent < self.outbox.len()
    }

    /// Queues the next `n` requests.
    pub(crate) fn ask(&mut self, pattern: &Pattern, n: usize) {
        for _ in 0..n {
            pattern.encode(self.next_request, &mut self.outbox);
            self.next_request += 1;
        }
    }

    /// Sends what is queued, as far as there is room.
    pub(crate) fn flush(&mut self) -> Result<()> {
        while self.sent < self.outbox.len() {
            match self
                .stream
                .write(&self.outbox[self.sent..])
            {
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("write"),
            }
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads once, checks the replies that are whole and says how many they were.
    pub(crate) fn take_replies(&mut self, pattern: &Pattern) -> Result<usize> {
        let n = match self.stream.read(self.inbox.spare()) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) => return Err(error).context("read"),
        };
        ensure!(n > 0, "the server closed a connection");
        self.inbox.received(n)?;
        let mut replies = 0;
        for payload in self.inbox.payloads() {
            ensure!(self.next_reply < self.next_request, "a reply to nothing");
            ensure!(
                pattern.matches(self.next_reply, payload),
                "wrong reply to {}",
                self.next_reply
            );
            self.next_reply += 1;
            replies += 1;
        }
        self.inbox.consume();
        Ok(replies)
    }
}

/// Connects and makes one exchange, blocking.
pub(crate) fn exchange(address: SocketAddr, id: u64, pattern: &Pattern) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    pattern.encode(id, &mut request);
    stream
        .write_all(&request)
        .context("write")?;
    let mut reply = vec![0; request.len()];
    stream
        .read_exact(&mut reply)
        .context("read")?;
    ensure!(
        pattern.matches(id, &reply[HEADER..]) && reply == request,
        "wrong reply to {id}"
    );
    Ok(stream)
}
