//! What a short connection costs a server: accepted, one exchange, closed by the server.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use anyhow::{Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::args::AcceptArgs;
use crate::contestants::ACCEPT;
use crate::instructions;
use crate::turns::Turns;

/// Bytes of a request, and of its reply.
pub(crate) const EXCHANGE: usize = 64;

pub(crate) fn run(args: &AcceptArgs) -> Result<()> {
    let turns = Turns {
        rounds: args.rounds,
        pieces: args.connections,
        server_core: args.cores.server_core,
    };
    println!(
        "accept, {EXCHANGE} bytes each way, close ({} rounds of {} connections, {} at once), server CPU",
        args.rounds, args.connections, args.at_once
    );
    let client = |server| {
        Ok(Client {
            server,
            at_once: args.at_once,
            host: 0,
        })
    };
    turns.compare(ACCEPT, |_, server| client(server), Client::connect)?;
    if args.instructions {
        let core = args.cores.server_core;
        instructions::compare(ACCEPT, "a connection", core, |server, connections| {
            client(server)?.connect(connections)
        })?;
    }
    Ok(())
}

/// Connects so many at once, from one host after the other.
#[derive(Debug)]
struct Client {
    server: SocketAddr,
    at_once: u32,
    host: u32,
}

impl Client {
    fn connect(&mut self, connections: u32) -> Result<()> {
        let mut left = connections;
        while left > 0 {
            let at_once = left.min(self.at_once);
            left -= at_once;
            self.exchange(at_once)?;
        }
        Ok(())
    }

    fn exchange(&mut self, at_once: u32) -> Result<()> {
        let mut open = Vec::new();
        for _ in 0..at_once {
            let mut stream = self.open()?;
            stream.write_all(&REQUEST)?;
            open.push(stream);
        }
        for mut stream in open {
            let mut reply = Vec::new();
            // The end is the server's: it closes first, and what it does for that is counted.
            stream.read_to_end(&mut reply)?;
            ensure!(reply == REQUEST, "not the reply of {}", self.server);
        }
        Ok(())
    }

    /// A rate for each peer would be used up by one host; so many are within it.
    fn open(&mut self) -> Result<TcpStream> {
        let host = FIRST_HOST | self.host;
        self.host = (self.host + 1) % HOSTS;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::from_bits(host), 0)).into())?;
        socket.connect(&self.server.into())?;
        Ok(socket.into())
    }
}

const REQUEST: [u8; EXCHANGE] = [7; EXCHANGE];

/// 127.1.0.0, and as many behind it: all of them are this machine.
const FIRST_HOST: u32 = 0x7f01_0000;
const HOSTS: u32 = 4096;
