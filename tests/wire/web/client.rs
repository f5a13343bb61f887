//! Clients of our own: whatever others would not send.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio_rustls::rustls::{ClientConnection, StreamOwned, pki_types::ServerName};

use super::Site;

pub(super) trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

/// A connection, through TLS if the site speaks it.
pub(super) struct Client {
    pub(super) stream: Box<dyn Stream>,
    /// To be read with a time limit.
    socket: TcpStream,
}

impl Site {
    pub(super) fn client(&self) -> Client {
        let socket = self.at.tcp();
        let other = socket.try_clone().unwrap();
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(socket),
            Some(tls) => {
                let name = ServerName::try_from("localhost").unwrap();
                let config = Arc::new(tls.config.clone());
                let mut session = ClientConnection::new(config, name).unwrap();
                let mut socket = socket;
                while session.is_handshaking() {
                    session
                        .complete_io(&mut socket)
                        .unwrap();
                }
                Box::new(StreamOwned::new(session, socket))
            }
        };
        Client {
            stream,
            socket: other,
        }
    }
}

impl Client {
    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .write_all(bytes.as_ref())
            .unwrap();
        self.stream.flush().unwrap();
    }

    /// Reads until all that was heard ends so.
    pub(super) fn hear_until(&mut self, end: &[u8]) -> Vec<u8> {
        let (mut heard, mut byte) = (Vec::new(), [0]);
        while !heard.ends_with(end) {
            self.stream
                .read_exact(&mut byte)
                .unwrap_or_else(|error| panic!("{error} after {}", heard.escape_ascii()));
            heard.push(byte[0]);
        }
        heard
    }

    /// What is still said, up to the end, however that comes about.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return heard,
                Ok(more) => heard.extend(&buffer[..more]),
                Err(error) => {
                    let gone = matches!(
                        error.kind(),
                        ErrorKind::ConnectionReset
                            | ErrorKind::BrokenPipe
                            | ErrorKind::UnexpectedEof
                    );
                    assert!(gone, "{error}");
                    return heard;
                }
            }
        }
    }

    /// Sends a byte every so often, until the other side has had enough.
    pub(super) fn drip(&mut self, bytes: &[u8], pause: Duration) {
        self.socket
            .set_read_timeout(Some(pause))
            .unwrap();
        let mut buffer = [0; 4096];
        for byte in bytes.iter().cycle() {
            if self.stream.write_all(&[*byte]).is_err() || self.stream.flush().is_err() {
                return;
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => thread::sleep(pause),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

/// Somebody who asks for a page again and again, each time on a connection of its own.
pub(super) struct Visitor {
    over: Arc<AtomicBool>,
    visiting: JoinHandle<u32>,
}

impl Visitor {
    pub(super) fn of(site: &Site) -> Self {
        let at = site.at.clone();
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let visiting = thread::spawn(move || {
            let mut visits = 0;
            while !ends.load(Relaxed) {
                let mut stream = at.tcp();
                stream
                    .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
                    .unwrap();
                let mut heard = String::new();
                stream
                    .read_to_string(&mut heard)
                    .unwrap();
                assert!(
                    heard.starts_with("HTTP/1.1 200") && heard.ends_with("hello\n"),
                    "{heard}"
                );
                visits += 1;
                thread::sleep(Duration::from_millis(20));
            }
            visits
        });
        Self { over, visiting }
    }

    /// How often it was answered, which was always.
    pub(super) fn leave(self) -> u32 {
        self.over.store(true, Relaxed);
        self.visiting.join().unwrap()
    }
}

/// A message of a client's WebSocket, masked with nothing (RFC 6455, section 5.2).
pub(super) fn message(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 126);
    [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat()
}

pub(super) const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// What is agreed on for that key, as in RFC 6455, section 1.3.
pub(super) const ACCEPTED: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
