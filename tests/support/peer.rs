//! A client in memory, and the connection that it has with a service.

use std::{future::poll_fn, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    task::JoinHandle,
    time::timeout,
};
use tower_net::{CloseReason, Conn, ConnInfo, error::BoxError, io::Io};
use tower_service::Service;

/// The far end of a connection whose service runs in a task of its own.
#[derive(Debug)]
pub struct Peer {
    pub io: DuplexStream,
    pub info: Arc<ConnInfo>,
    served: JoinHandle<Result<(), BoxError>>,
}

impl Peer {
    /// A connection with room for 64 KiB each way.
    pub fn of<S>(service: S) -> Self
    where
        S: Service<Conn<DuplexStream>, Response = (), Error: Into<BoxError>, Future: Send>,
        S: Send + 'static,
    {
        Self::with_room(64 * 1024, service)
    }

    /// A connection with room for `bytes` each way: one more, and the writer waits.
    pub fn with_room<S>(bytes: usize, service: S) -> Self
    where
        S: Service<Conn<DuplexStream>, Response = (), Error: Into<BoxError>, Future: Send>,
        S: Send + 'static,
    {
        let (near, io) = duplex(bytes);
        let (info, served) = serve(near, service);
        Self { io, info, served }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = self.io.write_all(bytes.as_ref());
        in_time(sent).await.unwrap();
    }

    /// Ends the sending side.
    pub async fn finish(&mut self) {
        self.io.shutdown().await.unwrap();
    }

    /// The next line; less than one at the end of the stream.
    pub async fn hear(&mut self) -> String {
        let mut line = Vec::new();
        while let Ok(byte) = in_time(self.io.read_u8()).await {
            if byte == b'\n' {
                break;
            }
            line.push(byte);
        }
        String::from_utf8(line).unwrap()
    }

    /// So many bytes, for what is not sent in lines.
    pub async fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut taken = vec![0; bytes];
        let read = self.io.read_exact(&mut taken);
        in_time(read).await.unwrap();
        taken
    }

    /// Everything until the service ends its side.
    pub async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let read = self.io.read_to_end(&mut rest);
        in_time(read).await.unwrap();
        String::from_utf8(rest).unwrap()
    }

    /// Both directions apart, to be used side by side.
    pub fn split(&mut self) -> (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>) {
        split(std::mem::replace(&mut self.io, duplex(1).0))
    }

    /// Whether nothing at all is heard for so long.
    pub async fn hears_nothing_for(&mut self, time: Duration) -> bool {
        timeout(time, self.io.read_u8())
            .await
            .is_err()
    }

    /// What the service came to; the peer stays as it is.
    pub async fn ended(&mut self) -> Result<(), BoxError> {
        in_time(&mut self.served).await.unwrap()
    }

    pub fn has_ended(&self) -> bool {
        self.served.is_finished()
    }

    /// Closes this side, and says why the connection ended.
    pub async fn leave(self) -> Option<CloseReason> {
        drop(self.io);
        // The reason says more than the error, and there need not be one.
        let _error = in_time(self.served).await.unwrap();
        self.info.close_reason()
    }
}

/// On a paused clock whatever hangs fails at once.
async fn in_time<F: Future>(future: F) -> F::Output {
    let week = Duration::from_secs(7 * 86_400);
    timeout(week, future)
        .await
        .expect("it ends")
}

/// Serves one connection over `io`, as an accept loop would, in a task of its own.
pub fn serve<I, S>(io: I, mut service: S) -> (Arc<ConnInfo>, JoinHandle<Result<(), BoxError>>)
where
    I: Io,
    S: Service<Conn<I>, Response = (), Error: Into<BoxError>, Future: Send> + Send + 'static,
{
    let conn = Conn::new(io, ());
    let info = Arc::clone(conn.info());
    let served = tokio::spawn(async move {
        poll_fn(|cx| service.poll_ready(cx))
            .await
            .map_err(Into::into)?;
        service
            .call(conn)
            .await
            .map_err(Into::into)
    });
    (info, served)
}
