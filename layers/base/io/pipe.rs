//! Bytes that go from one socket to another and never come up into the process (splice(2)).

use std::{
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};

/// A pipe of the kernel, in which bytes wait between two streams without having been copied into the process.
///
/// It is a place for bytes rather than an open pipe: it takes two descriptors when there is something to put in,
/// and gives them back when it is empty and nothing comes. It holds 1 MiB at the most, and less where the system
/// allows no such pipes (`fs.pipe-max-size`, `fs.pipe-user-pages-soft`).
///
/// Made by [`forward`](crate::forward); a stream only passes it on, see [`Io::poll_read_pipe`](super::Io::poll_read_pipe).
///
/// # On drop
///
/// What it holds is lost.
pub struct Pipe {
    spare: Pipes,
    ends: Option<Ends>,
    held: usize,
}

/// What goes in at one end comes out at the other.
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    pub(crate) fn new(spare: &Pipes) -> Self {
        Self {
            spare: spare.clone(),
            ends: None,
            held: 0,
        }
    }

    /// Bytes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes what `socket` has to give. Only into an empty pipe: a full one would look as a socket without bytes.
    ///
    /// `Unsupported` if this socket, or this process now, has no way to do it; nothing was taken then.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        if self.held > 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the pipe has to be empty",
            ));
        }
        let ends = match &self.ends {
            Some(ends) => ends,
            None => self.ends.insert(self.spare.take()?),
        };
        self.held = move_bytes(socket, &ends.write, MOST)?;
        Ok(self.held)
    }

    /// Gives `socket` what it takes.
    pub(super) fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else {
            return Ok(0);
        };
        let moved = move_bytes(&ends.read, socket, self.held)?;
        self.held -= moved;
        Ok(moved)
    }

    /// Takes bytes out of it into the process, for a stream that turns out to take none from a pipe.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(ends) = &self.ends else {
            return Ok(0);
        };
        let most = buf.len().min(self.held);
        let read = rustix::io::read(&ends.read, &mut buf[..most])?;
        self.held -= read;
        Ok(read)
    }

    /// Gives its descriptors back, if it holds nothing.
    pub(crate) fn rest(&mut self) {
        if self.held == 0 {
            if let Some(ends) = self.ends.take() {
                self.spare.give(ends);
            }
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // With bytes in it it is nobody else's to use.
        self.rest();
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipe")
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

/// Open pipes that nobody uses at the moment, at most [`KEPT`] of them; clones share them.
#[derive(Clone, Default)]
pub(crate) struct Pipes {
    kept: Arc<Mutex<Vec<Ends>>>,
}

impl Pipes {
    fn take(&self) -> io::Result<Ends> {
        let kept = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        match kept {
            Some(ends) => Ok(ends),
            None => open().map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error)),
        }
    }

    fn give(&self, ends: Ends) {
        let mut kept = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(ends);
        }
    }
}

impl fmt::Debug for Pipes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipes")
            .finish_non_exhaustive()
    }
}

/// A pipe as large as may be. One that is too small would move less in a call than a read and a write do.
fn open() -> io::Result<Ends> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    if fcntl_setpipe_size(&write, MOST).is_err() {
        // Over what one user may have, the system still lets have what it gives at first.
        fcntl_setpipe_size(&write, LEAST)?;
    }
    Ok(Ends { read, write })
}

fn move_bytes(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    loop {
        match splice(&from, None, &to, None, most, flags) {
            Ok(moved) => return Ok(moved),
            Err(Errno::INTR) => {}
            // Not of this kind of socket, or not in this system.
            Err(error @ (Errno::INVAL | Errno::NOSYS)) => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    io::Error::from(error),
                ));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What the system lets any user ask for, and what costs the least a byte.
const MOST: usize = 1 << 20;

/// Sixteen pages, which is what a pipe has at first.
const LEAST: usize = 64 * 1024;

/// Of one owner, 64 descriptors at the most: as many as have bytes under way at the same moment on a busy machine.
const KEPT: usize = 32;
