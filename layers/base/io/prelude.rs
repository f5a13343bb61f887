//! The one safe look at the first bytes of a stream: bounded, with a deadline, and exact.
//!
//! Whoever has to decide something by the first bytes (a header in front, a handshake, which protocol this
//! is) gives a parser. The parser says how many bytes may be read next, and never one more is taken off the
//! stream; what it did not consume comes back in front of the stream.

use std::{error::Error, fmt, io};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, timeout_at},
};

use crate::base::{
    io::{Io, RewoundIo},
    time::require_driver,
};

/// What a parser says of the bytes so far.
#[derive(Debug)]
#[non_exhaustive]
pub enum Step<T> {
    /// Not enough yet; up to this many more bytes belong to it for certain. Zero is taken as one.
    More(usize),
    /// Done: the value, and how many bytes it takes up. The rest is put back.
    Done(T, usize),
}

/// Why there is no prelude.
#[derive(Debug)]
#[non_exhaustive]
pub enum PreludeError<E> {
    /// The parser refused the bytes.
    Refused(E),
    /// The peer ended the stream after this many bytes.
    Ended(usize),
    /// It was not complete within this many bytes, the bound.
    TooLong(usize),
    /// It was not complete in time.
    Elapsed,
    /// The stream failed.
    Io(io::Error),
}

impl<E: fmt::Display> fmt::Display for PreludeError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "first bytes refused: {error}"),
            Self::Ended(read) => write!(f, "stream ended after {read} first bytes"),
            Self::TooLong(limit) => write!(f, "first bytes not complete within {limit} bytes"),
            Self::Elapsed => f.write_str("first bytes not complete in time"),
            Self::Io(_) => f.write_str("stream failed in its first bytes"),
        }
    }
}

impl<E: Error + 'static> Error for PreludeError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Refused(error) => Some(error),
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// Reads the first bytes of `io` until `parse` is done, at most `limit` bytes and until `deadline`.
///
/// Memory is taken for bytes that arrived, never for a length that was announced.
///
/// # Errors
///
/// See [`PreludeError`]; the stream is gone in every such case.
///
/// # Cancel safety
///
/// Dropping the future drops the stream with it, as nobody can know how much had been read.
pub async fn read<I, T, E>(
    mut io: I,
    limit: usize,
    deadline: Option<Instant>,
    mut parse: impl FnMut(&[u8]) -> Result<Step<T>, E>,
) -> Result<(T, RewoundIo<I>), PreludeError<E>>
where
    I: Io,
{
    let mut seen = BytesMut::new();
    let taking = take(&mut io, &mut seen, (limit, 0), &mut parse);
    let (value, used) = match deadline {
        None => taking.await?,
        Some(deadline) => {
            require_driver().map_err(|error| PreludeError::Io(error.into()))?;
            let taken = timeout_at(deadline, taking).await;
            taken.map_err(|_| PreludeError::Elapsed)??
        }
    };
    seen.advance(used.min(seen.len()));
    Ok((value, RewoundIo::new(seen.freeze(), io)))
}

/// The same without a deadline, off a stream that is only lent: all that was read is in `seen`, also of what was
/// refused, and of that so many bytes are the value's. Never [`PreludeError::Elapsed`].
///
/// A read may take up to `ahead` bytes whoever they belong to, which is for a caller that keeps what is behind.
pub(crate) async fn take<R, T, E>(
    io: &mut R,
    seen: &mut BytesMut,
    (limit, ahead): (usize, usize),
    mut parse: impl FnMut(&[u8]) -> Result<Step<T>, E>,
) -> Result<(T, usize), PreludeError<E>>
where
    R: AsyncRead + Unpin,
{
    loop {
        match parse(seen).map_err(PreludeError::Refused)? {
            Step::Done(value, used) => return Ok((value, used)),
            Step::More(_) if seen.len() >= limit => return Err(PreludeError::TooLong(limit)),
            Step::More(want) => {
                let want = want.max(ahead);
                let want = want.clamp(1, limit - seen.len());
                seen.reserve(want.min(CHUNK.max(ahead)));
                let read = io
                    .take(want as u64)
                    .read_buf(seen)
                    .await;
                if read.map_err(PreludeError::Io)? == 0 {
                    return Err(PreludeError::Ended(seen.len()));
                }
            }
        }
    }
}

/// Reserved for a read at the most, so that a large bound costs nothing before bytes arrive.
const CHUNK: usize = 512;
