//! A client that speaks in frames, blocks, and sees how a connection ends.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use socket2::SockRef;
use tokio::time::Instant;

use crate::support::process::{Listening, PATIENCE};

/// How the other end ended a connection.
#[derive(Debug, PartialEq)]
pub(super) enum End {
    Closed,
    Reset,
}

/// Speaks in frames.
pub(super) struct Client<S> {
    pub(super) stream: S,
}

impl Listening {
    pub(super) fn client(&self) -> Client<TcpStream> {
        Client::new(self.tcp())
    }
}

impl<S: Read + Write + AsFd> Client<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The length of a frame, and none of it.
    pub(super) fn announce(&mut self, length: u32) {
        self.write(&length.to_be_bytes());
    }

    pub(super) fn send(&mut self, body: &[u8]) {
        self.write(&frame(body));
    }

    /// Several frames at once.
    pub(super) fn send_all(&mut self, bodies: &[&str]) {
        let frames = bodies
            .iter()
            .flat_map(|body| frame(body.as_bytes()));
        self.write(&frames.collect::<Vec<_>>());
    }

    pub(super) fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream
            .read_exact(&mut bytes)
            .unwrap();
        bytes
    }

    pub(super) fn reply(&mut self) -> Vec<u8> {
        let length = self.read(4).try_into().unwrap();
        self.read(u32::from_be_bytes(length) as usize)
    }

    pub(super) fn exchange(&mut self, body: &[u8]) {
        self.send(body);
        assert!(self.reply() == body);
    }

    /// Whether it was answered, rather than the connection closed.
    pub(super) fn tries_exchange(&mut self, body: &[u8]) -> bool {
        let mut bytes = frame(body);
        let sent = self.stream.write_all(&bytes);
        match sent.and_then(|()| self.stream.read_exact(&mut bytes)) {
            Ok(()) => true,
            Err(error) => {
                assert!(is_reset(&error) || error.kind() == ErrorKind::UnexpectedEof);
                false
            }
        }
    }

    pub(super) fn has_heard_nothing(&mut self) {
        let socket = SockRef::from(&self.stream);
        socket.set_nonblocking(true).unwrap();
        let early = self.stream.read(&mut [0]);
        assert_eq!(early.unwrap_err().kind(), ErrorKind::WouldBlock);
        let socket = SockRef::from(&self.stream);
        socket.set_nonblocking(false).unwrap();
    }

    fn end(&mut self) -> io::Result<End> {
        loop {
            match self.stream.read(&mut [0]) {
                Ok(0) => return Ok(End::Closed),
                Ok(_) => panic!("there is more to read"),
                Err(error) if is_reset(&error) => return Ok(End::Reset),
                // As when the machine, or the job, was put to sleep.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn is_closed(&mut self) {
        assert_eq!(self.end().unwrap(), End::Closed);
    }

    pub(super) fn is_reset(&mut self) {
        assert_eq!(self.end().unwrap(), End::Reset);
    }

    /// In order or not: what was sent and not read decides.
    pub(super) fn has_ended(&mut self) {
        self.end().unwrap();
    }

    /// Ends our side, and waits until the server has ended its own.
    pub(super) fn leave(mut self) {
        SockRef::from(&self.stream)
            .shutdown(Shutdown::Write)
            .unwrap();
        self.is_closed();
    }

    /// Sends frames and reads no replies.
    pub(super) fn floods_until_reset(&mut self) {
        let frame = frame(&[7; 64 * 1024]);
        let error = loop {
            if let Err(error) = self.stream.write_all(&frame) {
                break error;
            }
        };
        assert!(is_reset(&error), "{error}");
    }

    /// Sends byte after byte, each after a pause, until the other end has had enough.
    pub(super) fn drip(&mut self, pause: Duration) -> End {
        SockRef::from(&self.stream)
            .set_read_timeout(Some(pause))
            .unwrap();
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match self.end() {
                Ok(end) => return end,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            if let Err(error) = self.stream.write_all(&[7]) {
                assert!(is_reset(&error), "{error}");
                return End::Reset;
            }
        }
        panic!("it goes on for ever");
    }
}

fn frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [&length.to_be_bytes(), body].concat()
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}
