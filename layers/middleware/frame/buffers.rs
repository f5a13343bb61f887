//! What one connection has read and not decoded, and encoded and not written.
//!
//! A connection that waits holds no memory for either. Small buffers come from the allocator, which is fast
//! for them; large ones are kept by the thread, a few at a time, since asking for 64 KiB and giving it back
//! for every burst makes the allocator return it to the system each time.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::{poll_read_buf, poll_write_buf};

/// Read and not yet decoded.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) bytes: BytesMut,
    /// How much to make room for at the next read: what the last ones were worth.
    room: usize,
    largest: usize,
}

impl Input {
    pub(super) fn new() -> Self {
        Self {
            bytes: BytesMut::new(),
            room: ROOM_MIN,
            largest: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads once; ready with zero at the end of the stream.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<usize>> {
        let spare = self.bytes.capacity() - self.bytes.len();
        if spare < ROOM_MIN.min(self.room) {
            self.grow();
        }
        let room = self.bytes.capacity() - self.bytes.len();
        let read = ready!(poll_read_buf(Pin::new(io), cx, &mut self.bytes))?;
        self.largest = self.largest.max(read);
        if read == room {
            self.room = (self.room * 4).min(ROOM_MAX);
        }
        Poll::Ready(Ok(read))
    }

    /// Makes room, by what was received and never by what a peer announced.
    fn grow(&mut self) {
        if self.bytes.is_empty() && self.room >= LARGE {
            self.bytes = spare::take();
            return;
        }
        self.bytes
            .reserve(self.room.max(self.bytes.len()));
    }

    /// The connection parks: gives back what it does not need meanwhile.
    pub(super) fn park(&mut self) {
        if self.largest > 0 && self.largest * 4 < self.room {
            self.room = (self.room / 2).max(ROOM_MIN);
        }
        self.largest = 0;
        if self.bytes.is_empty() {
            spare::give(std::mem::take(&mut self.bytes));
        } else if self.bytes.len() <= ROOM_MIN && self.bytes.capacity() >= LARGE {
            // A little of the next frame must not keep the whole of a large buffer.
            let small = BytesMut::from(&self.bytes[..]);
            spare::give(std::mem::replace(&mut self.bytes, small));
        }
    }
}

/// Encoded and not yet written.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) bytes: BytesMut,
    /// How much the last bursts came to.
    room: usize,
    written: u64,
    unflushed: bool,
}

impl Output {
    pub(super) fn new() -> Self {
        Self {
            bytes: BytesMut::new(),
            room: 0,
            written: 0,
            unflushed: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Everything is written and flushed.
    pub(super) fn is_clear(&self) -> bool {
        self.bytes.is_empty() && !self.unflushed
    }

    /// All bytes that were ever queued, written or not: a place in the stream of replies.
    pub(super) fn queued(&self) -> u64 {
        self.written + self.bytes.len() as u64
    }

    /// All bytes that were ever written.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Room for the next reply.
    pub(super) fn make_room(&mut self) -> &mut BytesMut {
        if self.bytes.capacity() == 0 && self.room > 0 {
            self.bytes = match self.room {
                LARGE.. => spare::take(),
                room => BytesMut::with_capacity(room),
            };
        }
        &mut self.bytes
    }

    /// Writes everything, then flushes once.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        self.room = self
            .room
            .max(self.bytes.len())
            .min(ROOM_MAX);
        while self.bytes.has_remaining() {
            let written = ready!(poll_write_buf(Pin::new(&mut *io), cx, &mut self.bytes))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written as u64;
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The connection parks: gives back what it does not need meanwhile.
    pub(super) fn park(&mut self) {
        if self.bytes.is_empty() && self.bytes.capacity() > 0 {
            spare::give(std::mem::take(&mut self.bytes));
        }
    }
}

/// The large buffers that a thread keeps.
mod spare {
    use super::{BytesMut, ROOM_MAX, RefCell};

    thread_local! {
        static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn take() -> BytesMut {
        SPARE
            .with_borrow_mut(Vec::pop)
            .unwrap_or_else(|| BytesMut::with_capacity(ROOM_MAX))
    }

    /// Keeps `bytes` if it is large and nobody else's by now, and drops it otherwise.
    pub(super) fn give(mut bytes: BytesMut) {
        bytes.clear();
        SPARE.with_borrow_mut(|spare| {
            // What frames were split off still counts: the whole comes back once they are gone.
            if spare.len() < KEPT && bytes.try_reclaim(ROOM_MAX) {
                spare.push(bytes);
            }
        });
    }

    /// One to read into and one to write from, twice: for a connection, and for one it talks to.
    const KEPT: usize = 4;
}

/// A small request and its neighbours; still in the allocator's fastest class.
const ROOM_MIN: usize = 1024;

/// Enough for the system call to cost little beside the bytes.
const ROOM_MAX: usize = 64 * 1024;

/// From here on a buffer is worth keeping.
const LARGE: usize = 16 * 1024;
