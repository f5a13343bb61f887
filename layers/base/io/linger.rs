use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout_at},
};

use crate::base::{
    io::Io,
    time::{later, now, require_driver},
};

/// How long to go on reading, and throwing away, after the last byte was written.
///
/// A socket closed with unread input is reset by the kernel, and the reset overtakes the reply: the peer
/// never sees the end of it. So the write side is closed first and the peer's input drained, bounded in time
/// and in bytes. (The same idea as nginx's `lingering_close`; its two times are our defaults.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linger {
    total: Duration,
    quiet: Duration,
    bytes: u64,
}

impl Linger {
    /// For at most this long in all. Default: 30 s.
    #[must_use]
    pub fn total(mut self, total: Duration) -> Self {
        self.total = total;
        self
    }

    /// For at most this long after the peer's last byte. Default: 5 s.
    #[must_use]
    pub fn quiet(mut self, quiet: Duration) -> Self {
        self.quiet = quiet;
        self
    }

    /// For at most this many bytes. Default: 16 MiB.
    #[must_use]
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }
}

impl Default for Linger {
    fn default() -> Self {
        Self {
            total: Duration::from_secs(30),
            quiet: Duration::from_secs(5),
            bytes: 16 << 20,
        }
    }
}

/// How a lingering close ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lingered {
    /// The peer closed its side: everything we wrote has very likely been read.
    Ended,
    /// The peer kept the connection open, and silent or sending, past a bound.
    GaveUp,
}

/// Closes `io` in order: flush, end our side, then read and discard until the peer ends its own.
///
/// # Errors
///
/// What the stream answered, or that the runtime cannot keep time. It is closed in any case.
///
/// # Cancel safety
///
/// Dropping the future closes the stream at once.
pub async fn linger<I: Io>(mut io: I, limits: Linger) -> io::Result<Lingered> {
    require_driver()?;
    let end = later(now(), limits.total);
    let discarding = async {
        io.shutdown().await?;
        let mut left = limits.bytes;
        let mut scratch = [0_u8; 1024];
        loop {
            let read = within(later(now(), limits.quiet), io.read(&mut scratch)).await;
            match read {
                Some(Ok(0)) => return Ok(Lingered::Ended),
                // TLS, and a peer that just closes.
                Some(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(Lingered::Ended);
                }
                Some(Ok(read)) if left > read as u64 => left -= read as u64,
                Some(Err(error)) => return Err(error),
                Some(Ok(_)) | None => return Ok(Lingered::GaveUp),
            }
        }
    };
    within(end, discarding)
        .await
        .unwrap_or(Ok(Lingered::GaveUp))
}

async fn within<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}
