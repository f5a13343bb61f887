//! Bytes that were read and not yet written, in memory that is borrowed for as long as there are any.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The bytes of one direction.
#[derive(Default)]
pub(super) struct Buffer {
    memory: Option<(Box<[u8]>, Size)>,
    /// Of the memory, what is not yet written.
    from: usize,
    to: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Small,
    Large,
}

impl Size {
    const fn bytes(self) -> usize {
        match self {
            Self::Small => 64 * 1024,
            Self::Large => 256 * 1024,
        }
    }
}

impl Buffer {
    pub(super) fn is_empty(&self) -> bool {
        self.from == self.to
    }

    #[cfg(test)]
    pub(super) fn has_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// Reads once into the empty buffer; ready with zero at the end of the stream. Says as well what size the next
    /// read is worth.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut (impl AsyncRead + Unpin),
        size: Size,
    ) -> Poll<io::Result<(usize, Size)>> {
        let memory = self.empty(size);
        let most = memory.len();
        let mut buf = ReadBuf::new(memory);
        ready!(Pin::new(io).poll_read(cx, &mut buf))?;
        let read = buf.filled().len();
        self.to = read;
        let next = if read == most {
            Size::Large
        } else if read < Size::Small.bytes() / 4 {
            Size::Small
        } else {
            size
        };
        Poll::Ready(Ok((read, next)))
    }

    /// Fills the empty buffer by something else than a stream.
    pub(super) fn fill(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.to = read(self.empty(Size::Small))?;
        Ok(self.to)
    }

    /// Writes once.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<usize>> {
        let Some((memory, _)) = &self.memory else {
            return Poll::Ready(Ok(0));
        };
        let bytes = &memory[self.from..self.to];
        let written = ready!(Pin::new(io).poll_write(cx, bytes))?;
        self.from += written;
        Poll::Ready(Ok(written))
    }

    /// Gives the memory back, if there is nothing in it.
    pub(super) fn rest(&mut self) {
        if self.is_empty() {
            self.discard();
        }
    }

    /// Gives the memory back, whatever is in it.
    pub(super) fn discard(&mut self) {
        (self.from, self.to) = (0, 0);
        if let Some((memory, size)) = self.memory.take() {
            spare::give(memory, size);
        }
    }

    /// The memory, to be filled from its beginning.
    fn empty(&mut self, size: Size) -> &mut [u8] {
        if self
            .memory
            .as_ref()
            .is_some_and(|(_, known)| *known != size)
        {
            self.discard();
        }
        (self.from, self.to) = (0, 0);
        let (memory, _) = self
            .memory
            .get_or_insert_with(|| (spare::take(size), size));
        memory
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.discard();
    }
}

/// Memory that goes from tunnel to tunnel of a thread: the allocator would return pieces of this size to the system
/// each time.
mod spare {
    use super::{RefCell, Size};

    thread_local! {
        static SPARE: RefCell<[Vec<Box<[u8]>>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
    }

    pub(super) fn take(size: Size) -> Box<[u8]> {
        let kept = SPARE.try_with(|spare| spare.borrow_mut()[size as usize].pop());
        match kept {
            Ok(Some(memory)) => memory,
            _ => vec![0; size.bytes()].into_boxed_slice(),
        }
    }

    pub(super) fn give(memory: Box<[u8]>, size: Size) {
        // A thread that ends keeps nothing.
        let _ended = SPARE.try_with(|spare| {
            let kept = &mut spare.borrow_mut()[size as usize];
            if kept.len() < KEPT {
                kept.push(memory);
            }
        });
    }

    /// Of each size. A thread polls one tunnel at a time, which borrows one for each direction.
    const KEPT: usize = 2;
}
