//! Clients, well-behaved and otherwise.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{Mutex, MutexGuard},
    time::{sleep, timeout},
};

/// A client of length-prefixed frames.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
}

/// How a connection ended for the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Closed,
    Reset,
}

impl Peer {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self::try_connect(addr).await.unwrap()
    }

    /// Connects, if it is let.
    pub(crate) async fn try_connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = soon(TcpStream::connect(addr)).await?;
        Ok(Self { stream })
    }

    /// One for whom the kernel keeps as little as it can.
    pub(crate) async fn with_small_buffer(addr: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        let stream = soon(socket.connect(addr))
            .await
            .unwrap();
        Self { stream }
    }

    pub(crate) async fn send(&mut self, message: impl AsRef<[u8]>) {
        let frame = frame(message);
        soon(self.stream.write_all(&frame))
            .await
            .unwrap();
    }

    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        soon(self.stream.write_all(bytes))
            .await
            .unwrap();
    }

    /// The next reply, or how it ended instead.
    pub(crate) async fn receive(&mut self) -> Result<Vec<u8>, End> {
        let receiving = async {
            let length = self.stream.read_u32().await?;
            let mut reply = vec![0; length as usize];
            self.stream
                .read_exact(&mut reply)
                .await?;
            Ok(reply)
        };
        soon(receiving)
            .await
            .map_err(|error| end_of(&error))
    }

    pub(crate) async fn call(&mut self, message: impl AsRef<[u8]>) -> Result<Vec<u8>, End> {
        self.send(message).await;
        self.receive().await
    }

    /// Reads on to the end: how many bytes were still there, and how it ended.
    pub(crate) async fn end(&mut self) -> (usize, End) {
        let mut scratch = vec![0; 64 * 1024];
        let mut read = 0;
        loop {
            match soon(self.stream.read(&mut scratch)).await {
                Ok(0) => return (read, End::Closed),
                Ok(more) => read += more,
                Err(error) => return (read, end_of(&error)),
            }
        }
    }

    /// Sends one request over and over until the kernel takes no more for a while, or the server has had
    /// enough.
    pub(crate) async fn flood(&mut self, message: &str) {
        let burst = frame(message).repeat(100);
        while let Ok(Ok(())) = timeout(QUIET, self.stream.write_all(&burst)).await {}
    }
}

fn end_of(error: &io::Error) -> End {
    match error.kind() {
        ErrorKind::UnexpectedEof => End::Closed,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => End::Reset,
        _ => panic!("neither closed nor reset: {error}"),
    }
}

pub(crate) fn frame(message: impl AsRef<[u8]>) -> Vec<u8> {
    let message = message.as_ref();
    let length = u32::try_from(message.len()).unwrap();
    [&length.to_be_bytes(), message].concat()
}

/// What takes this long on a machine however busy has gone wrong.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    let waited = timeout(Duration::from_secs(60), future).await;
    waited.expect("it should have happened long ago")
}

/// Waits for something that has no event of its own.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Held by tests that take much of the machine, so that they do not run at once.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().await
}

/// The same for a test without a runtime.
pub(crate) fn alone_blocking() -> MutexGuard<'static, ()> {
    MACHINE.blocking_lock()
}

static MACHINE: Mutex<()> = Mutex::const_new(());

/// The kernel moves what it can move in far less.
const QUIET: Duration = Duration::from_millis(300);
