//! `epoll`: no runtime, the physical limit of one thread with readiness. Level-triggered, one read
//! for each event, one write for all frames that read completed; a connection whose write is cut
//! short is not read until the rest is out.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::Result;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use slab::Slab;

use crate::wire::Inbox;

/// The listener's token; connections use their index in the slab.
const LISTENER: u64 = u64::MAX;
const EVENTS_PER_WAIT: usize = 256;

pub(super) fn serve(listener: TcpListener) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut connections = Slab::new();
    let mut events = [EpollEvent::empty(); EVENTS_PER_WAIT];
    loop {
        let n = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..n] {
            if event.data() == LISTENER {
                let (stream, _) = listener.accept()?;
                accept(&epoll, &mut connections, stream)?;
                continue;
            }
            let token = event.data() as usize;
            let connection: &mut Connection = &mut connections[token];
            let was = connection.wants();
            match connection.turn() {
                Ok(true) if connection.wants() == was => {}
                Ok(true) => {
                    let mut event = EpollEvent::new(connection.wants(), event.data());
                    epoll.modify(&connection.stream, &mut event)?;
                }
                // Closing the socket takes it out of the epoll set.
                Ok(false) | Err(_) => drop(connections.remove(token)),
            }
        }
    }
}

fn accept(epoll: &Epoll, connections: &mut Slab<Connection>, stream: TcpStream) -> Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let entry = connections.vacant_entry();
    epoll.add(
        &stream,
        EpollEvent::new(EpollFlags::EPOLLIN, entry.key() as u64),
    )?;
    entry.insert(Connection {
        stream,
        inbox: Inbox::new(),
        sent: 0,
    });
    Ok(())
}

struct Connection {
    stream: TcpStream,
    inbox: Inbox,
    /// Bytes of the inbox's whole frames that are already sent back.
    sent: usize,
}

impl Connection {
    fn wants(&self) -> EpollFlags {
        if self.inbox.whole().is_empty() {
            EpollFlags::EPOLLIN
        } else {
            EpollFlags::EPOLLOUT
        }
    }

    /// Goes on with whatever the connection waited for; false at its end.
    fn turn(&mut self) -> io::Result<bool> {
        if self.inbox.whole().is_empty() {
            let n = match self.stream.read(self.inbox.spare()) {
                Ok(0) => return Ok(false),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            self.inbox.received(n)?;
        }
        while self.sent < self.inbox.whole().len() {
            match self
                .stream
                .write(&self.inbox.whole()[self.sent..])
            {
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        self.inbox.consume();
        self.sent = 0;
        Ok(true)
    }
}
