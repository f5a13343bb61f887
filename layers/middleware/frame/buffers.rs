//! What one connection has read and not decoded, and encoded and not written.
//!
//! A connection that waits holds no memory for either: it takes a buffer when bytes arrive and gives it back
//! when they are dealt with. Buffers go from connection to connection of a thread, which keeps a few of each
//! size; asking the allocator each time costs more than many a request, and for large ones it returns the
//! memory to the system each time.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// Read and not yet decoded.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) bytes: BytesMut,
    /// How large a buffer to read into: what the last reads were worth.
    size: Size,
    /// The size of the buffer as it was taken, unless it was replaced since.
    taken: Option<Size>,
    largest: u32,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self {
            bytes: BytesMut::new(),
            size: Size::Small,
            taken: None,
            largest: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads once; ready with zero at the end of the stream.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<usize>> {
        if self.bytes.capacity() - self.bytes.len() < ENOUGH {
            self.make_room();
        }
        let room = self.bytes.capacity() - self.bytes.len();
        let read = ready!(poll_read_buf(Pin::new(io), cx, &mut self.bytes))?;
        self.largest = self.largest.max(read as u32);
        if read == room {
            self.size = self.size.larger();
        }
        Poll::Ready(Ok(read))
    }

    /// Makes room, by what was received and never by what a peer announced.
    #[cold]
    fn make_room(&mut self) {
        if self.bytes.is_empty() {
            self.give_back();
            self.bytes = spare::take(self.size);
            self.taken = Some(self.size);
        } else {
            let size = self.size.bytes().max(self.bytes.len());
            self.bytes.reserve(size);
            self.taken = None;
        }
    }

    /// The connection parks: gives back what it does not need meanwhile.
    pub(crate) fn park(&mut self) {
        let largest = std::mem::take(&mut self.largest) as usize;
        if largest > 0 && largest < self.size.smaller().bytes() / 2 {
            self.size = self.size.smaller();
        }
        if self.bytes.is_empty() {
            self.give_back();
        } else if self.bytes.len() <= ENOUGH
            && self
                .taken
                .is_none_or(|size| size != Size::Small)
        {
            // A little of the next frame must not keep the whole of a large buffer.
            let little = BytesMut::from(&self.bytes[..]);
            self.give_back();
            self.bytes = little;
        }
    }

    fn give_back(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if let Some(size) = self.taken.take() {
            spare::give(bytes, size);
        }
    }
}

/// Encoded and not yet written.
#[derive(Debug)]
pub(crate) struct Output {
    pub(super) bytes: BytesMut,
    /// How much of the bytes is written.
    sent: usize,
    /// How much was written before.
    written: u64,
    /// Where a reply begins that is being encoded. A queue is not allowed to be gigabytes.
    begun: u32,
    /// How large a buffer to encode into: what the last bursts came to.
    size: Size,
    taken: Size,
    unflushed: bool,
}

impl Output {
    pub(crate) fn new() -> Self {
        Self {
            bytes: BytesMut::new(),
            sent: 0,
            written: 0,
            begun: WHOLE,
            size: Size::Small,
            taken: Size::Small,
            unflushed: false,
        }
    }

    /// Bytes that wait.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Everything is written and flushed.
    #[inline]
    pub(crate) fn is_clear(&self) -> bool {
        self.bytes.is_empty() && !self.unflushed
    }

    /// All bytes that were ever queued, written or not: a place in the stream of replies.
    pub(crate) fn queued(&self) -> u64 {
        self.written + self.bytes.len() as u64
    }

    /// All bytes that were ever written.
    pub(crate) fn written(&self) -> u64 {
        self.written + self.sent as u64
    }

    /// Where the next reply goes, which is not there before it is [finished](Self::finish).
    #[inline]
    pub(crate) fn begin(&mut self) -> &mut BytesMut {
        if self.bytes.capacity() == 0 {
            self.bytes = spare::take(self.size);
            self.taken = self.size;
        }
        self.begun = self.bytes.len() as u32;
        &mut self.bytes
    }

    /// The reply is whole.
    #[inline]
    pub(crate) fn finish(&mut self) {
        self.begun = WHOLE;
    }

    /// Takes back what an encoder that failed or panicked has left.
    pub(crate) fn take_back_unfinished(&mut self) {
        if self.begun != WHOLE {
            self.bytes.truncate(self.begun as usize);
            self.begun = WHOLE;
        }
    }

    /// Writes everything, then flushes once.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        if self.is_clear() {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.bytes.len() {
            let unsent = &self.bytes[self.sent..];
            let Poll::Ready(written) = Pin::new(&mut *io).poll_write(cx, unsent) else {
                self.forget_sent();
                return Poll::Pending;
            };
            let written = written?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
            self.unflushed = true;
        }
        self.size = self.size.toward(self.bytes.len());
        self.written += self.sent as u64;
        self.sent = 0;
        // Rather than advanced over: the whole buffer is there again at no cost.
        self.bytes.clear();
        ready!(Pin::new(io).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// More will be queued behind what is left, so the room of what is written must be free again.
    fn forget_sent(&mut self) {
        self.bytes.advance(self.sent);
        self.written += self.sent as u64;
        self.sent = 0;
    }

    /// The connection parks: gives back what it does not need meanwhile.
    pub(crate) fn park(&mut self) {
        if self.bytes.is_empty() && self.bytes.capacity() > 0 {
            spare::give(std::mem::take(&mut self.bytes), self.taken);
        }
    }

    /// What was encoded and has not been written.
    pub(super) fn into_unwritten(mut self) -> Bytes {
        self.forget_sent();
        self.bytes.freeze()
    }
}

/// The sizes that buffers come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// A small request, or a few.
    Small,
    /// Requests of some kilobytes: a handler that keeps one does not keep much more.
    Medium,
    /// Bursts and bulk: the system call costs little beside the bytes.
    Large,
}

impl Size {
    fn bytes(self) -> usize {
        match self {
            Self::Small => 2 * 1024,
            Self::Medium => 16 * 1024,
            Self::Large => 64 * 1024,
        }
    }

    fn larger(self) -> Self {
        match self {
            Self::Small => Self::Medium,
            Self::Medium | Self::Large => Self::Large,
        }
    }

    /// One step towards the size that holds so many bytes.
    fn toward(self, bytes: usize) -> Self {
        if bytes > self.bytes() {
            self.larger()
        } else if bytes < self.smaller().bytes() / 2 {
            self.smaller()
        } else {
            self
        }
    }

    fn smaller(self) -> Self {
        match self {
            Self::Small | Self::Medium => Self::Small,
            Self::Large => Self::Medium,
        }
    }
}

/// The buffers that a thread keeps.
mod spare {
    use std::cell::RefCell;

    use super::{BytesMut, Size};

    thread_local! {
        static SPARE: RefCell<Spare> = const { RefCell::new(Spare::new()) };
    }

    struct Spare {
        small: Vec<BytesMut>,
        medium: Vec<BytesMut>,
        large: Vec<BytesMut>,
    }

    impl Spare {
        const fn new() -> Self {
            Self {
                small: Vec::new(),
                medium: Vec::new(),
                large: Vec::new(),
            }
        }

        fn of(&mut self, size: Size) -> &mut Vec<BytesMut> {
            match size {
                Size::Small => &mut self.small,
                Size::Medium => &mut self.medium,
                Size::Large => &mut self.large,
            }
        }
    }

    pub(super) fn take(size: Size) -> BytesMut {
        let spare = SPARE.with_borrow_mut(|spare| spare.of(size).pop());
        spare.unwrap_or_else(|| BytesMut::with_capacity(size.bytes()))
    }

    /// Keeps the buffer if it is nobody else's by now, and drops it otherwise.
    pub(super) fn give(mut bytes: BytesMut, size: Size) {
        bytes.clear();
        // What frames were split off still counts: the whole comes back once they are gone.
        let whole = bytes.capacity() >= size.bytes() || bytes.try_reclaim(size.bytes());
        // One that a large reply has made grow is not of this size any more.
        if whole && bytes.capacity() <= 2 * size.bytes() {
            SPARE.with_borrow_mut(|spare| {
                let kept = spare.of(size);
                if kept.len() < KEPT {
                    kept.push(bytes);
                }
            });
        }
    }

    /// One to read into and one to write from, twice: for a connection, and for one it talks to. A thread
    /// thus keeps 328 KiB at the most.
    const KEPT: usize = 4;
}

/// With less room than this left, a read is not worth its system call.
const ENOUGH: usize = 1024;

/// No reply is being encoded.
const WHOLE: u32 = u32::MAX;
