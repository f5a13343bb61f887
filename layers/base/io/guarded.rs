use tokio::io::{AsyncRead, AsyncWrite};

use crate::base::io::Io;

/// A stream and something that lives exactly as long: a permit, a counter, a log line.
///
/// Wherever the stream goes (into TLS, into HTTP, through an upgrade, to another task), the guard goes with
/// it. On drop the stream is closed first and the guard dropped after, so that whoever takes a freed place
/// never meets the old connection.
#[derive(Debug)]
pub struct GuardedIo<I, G> {
    // Dropped in this order.
    io: I,
    guard: G,
}

impl<I, G> GuardedIo<I, G> {
    /// Ties `guard` to `io`.
    pub fn new(io: I, guard: G) -> Self {
        Self { io, guard }
    }

    /// The guard.
    pub fn guard(&self) -> &G {
        &self.guard
    }
}

impl<I: Io, G: Unpin + Send + 'static> Io for GuardedIo<I, G> {
    delegate_socket!(io);
    delegate_pipes!(io);
}

impl<I: Io, G: Unpin> AsyncRead for GuardedIo<I, G> {
    delegate_read!(io);
}

impl<I: Io, G: Unpin> AsyncWrite for GuardedIo<I, G> {
    delegate_write!(io);
}
