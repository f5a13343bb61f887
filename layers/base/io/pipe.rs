//! Bytes that go from one socket to another and never come up into the process (splice(2)).

use std::{
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};

/// A pipe of the kernel, in which bytes wait between two streams without having been copied into the process.
///
/// It is a place for bytes rather than an open pipe: it takes two descriptors when there is something to put in,
/// and gives them back when it is empty and nothing comes. It holds 1 MiB at the most, and less where the system
/// allows no such pipes (`fs.pipe-max-size`, `fs.pipe-user-pages-soft`). A process keeps 16 open that nobody uses, for
/// whoever needs one next.
///
/// Made by [`forward`](crate::forward); a stream only passes it on, see [`Io::poll_read_pipe`](super::Io::poll_read_pipe).
///
/// # On drop
///
/// What it holds is lost.
pub struct Pipe {
    ends: Option<Ends>,
    held: usize,
}

/// What goes in at one end comes out at the other.
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    pub(crate) const fn new() -> Self {
        Self {
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

    #[cfg(test)]
    pub(crate) fn is_open(&self) -> bool {
        self.ends.is_some()
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
            None => self.ends.insert(spare::take()?),
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
                spare::give(ends);
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

/// Open pipes that nobody uses at the moment, at most [`KEPT`] of them, for all of the process: what the system lets have
/// it counts by user.
mod spare {
    use super::{Ends, KEPT, Mutex, MutexGuard, PoisonError, io, open};

    static SPARE: Mutex<Vec<Ends>> = Mutex::new(Vec::new());

    pub(super) fn take() -> io::Result<Ends> {
        let kept = all().pop();
        match kept {
            Some(ends) => Ok(ends),
            None => open().map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error)),
        }
    }

    pub(super) fn give(ends: Ends) {
        let mut kept = all();
        if kept.len() < KEPT {
            kept.push(ends);
        }
    }

    pub(super) fn all() -> MutexGuard<'static, Vec<Ends>> {
        SPARE
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

/// A quarter of what the system lets a user have in pipes of this size (`fs.pipe-user-pages-soft`, 64 MiB), as pages that
/// they may fill and not as memory; and 32 descriptors. A busy machine has about as many in use at the same moment.
const KEPT: usize = 16;

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn however_many_pipes_come_to_rest_few_stay_open() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let (sink, _heard) = UnixStream::pair().unwrap();
        let mut pipes: Vec<_> = (0..KEPT * 2)
            .map(|_| Pipe::new())
            .collect();
        for pipe in &mut pipes {
            near.write_all(b"x").unwrap();
            assert_eq!(pipe.fill(&far).unwrap(), 1);
        }

        for pipe in &mut pipes {
            assert_eq!(pipe.drain(&sink).unwrap(), 1);
            pipe.rest();
        }

        assert!(
            pipes
                .iter()
                .all(|pipe| pipe.ends.is_none())
        );
        assert!((1..=KEPT).contains(&spare::all().len()));
    }
}
