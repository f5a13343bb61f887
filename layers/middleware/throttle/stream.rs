use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, atomic::Ordering::Acquire},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::{
    Shared,
    gate::{Gate, Limits, Pass},
    rates::{Direction, Lines},
};
use crate::{base::io::Io, conn::ConnInfo};

/// A stream whose bytes pass no faster than they may.
///
/// Dropping it gives back what it had booked of the shared rates.
#[derive(Debug)]
pub struct ThrottleIo<I> {
    io: I,
    gates: Gates,
}

#[derive(Debug)]
struct Gates {
    receive: Gate,
    send: Gate,
    shared: Arc<Shared>,
    info: Arc<ConnInfo>,
    lines: Arc<Lines>,
    version: u32,
    dry_run: bool,
}

impl<I> ThrottleIo<I> {
    pub(super) fn new(io: I, shared: Arc<Shared>, info: Arc<ConnInfo>, dry_run: bool) -> Self {
        let (version, lines) = shared.lines();
        Self {
            io,
            gates: Gates {
                receive: Gate::default(),
                send: Gate::default(),
                shared,
                info,
                lines,
                version,
                dry_run,
            },
        }
    }
}

impl Gates {
    /// The gate of a direction, and what it is held to now.
    fn of(&mut self, direction: Direction) -> (&mut Gate, Limits<'_>, &ConnInfo) {
        if self.shared.version.load(Acquire) != self.version {
            (self.version, self.lines) = self.shared.lines();
        }
        let at = direction as usize;
        let limits = Limits {
            own: &self.lines.stream[at],
            shared: &self.lines.shared[at],
            pool: &self.shared.pools[at],
            held_back: &self.shared.held_back(self.dry_run)[at],
        };
        let gate = match direction {
            Direction::Receive => &mut self.receive,
            Direction::Send => &mut self.send,
        };
        (gate, limits, &self.info)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        direction: Direction,
        want: usize,
    ) -> Poll<Option<Pass>> {
        let dry_run = self.dry_run;
        let (gate, limits, info) = self.of(direction);
        let is_limited = limits.own.is_limit() || limits.shared.is_limit();
        if want == 0 || dry_run || !is_limited {
            return Poll::Ready(None);
        }
        let probing = matches!(direction, Direction::Receive);
        let pass = gate.poll(cx, limits, want as u64, probing);
        if pass.is_pending() {
            // It is we who wait, and not for the peer: it is neither idle nor stalled.
            match direction {
                Direction::Receive => info.waits.reading.set(false),
                Direction::Send => info.waits.blocked.set(false),
            }
        }
        pass.map(Some)
    }

    /// What was asked of the stream came to so many bytes, or it has to be waited for.
    fn passed(&mut self, direction: Direction, pass: Option<Pass>, bytes: Option<usize>) {
        let dry_run = self.dry_run;
        let (gate, limits, _) = self.of(direction);
        let bytes = bytes.map(|bytes| bytes as u64);
        match pass {
            Some(pass) => gate.passed(limits, pass, bytes),
            None if dry_run => gate.count(limits, bytes.unwrap_or(0)),
            None => {}
        }
    }
}

impl Drop for Gates {
    fn drop(&mut self) {
        for direction in [Direction::Receive, Direction::Send] {
            let (gate, limits, _) = self.of(direction);
            gate.close(limits);
        }
    }
}

impl<I: Io> Io for ThrottleIo<I> {
    delegate_socket!(io);
}

impl<I: Io> AsyncRead for ThrottleIo<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, gates } = self.get_mut();
        let room = buf.remaining();
        let pass = ready!(gates.poll(cx, Direction::Receive, room));
        let before = buf.filled().len();
        let read = match pass.map(Pass::most) {
            Some(most) if most < room as u64 => Pin::new(&mut io.take(most)).poll_read(cx, buf),
            _ => Pin::new(io).poll_read(cx, buf),
        };
        let bytes = read
            .is_ready()
            .then(|| buf.filled().len() - before);
        gates.passed(Direction::Receive, pass, bytes);
        read
    }
}

impl<I: Io> AsyncWrite for ThrottleIo<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { io, gates } = self.get_mut();
        let pass = ready!(gates.poll(cx, Direction::Send, buf.len()));
        let most = most_of(pass, buf.len());
        let written = Pin::new(io).poll_write(cx, &buf[..most]);
        gates.passed(Direction::Send, pass, bytes_of(&written));
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { io, gates } = self.get_mut();
        let want = bufs
            .iter()
            .fold(0_usize, |sum, buf| sum.saturating_add(buf.len()));
        let pass = ready!(gates.poll(cx, Direction::Send, want));
        let most = most_of(pass, want);
        let io = Pin::new(io);
        let written = if most == want {
            io.poll_write_vectored(cx, bufs)
        } else {
            let mut parts = [IoSlice::new(&[]); PARTS];
            let count = cut(bufs, most, &mut parts);
            io.poll_write_vectored(cx, &parts[..count])
        };
        gates.passed(Direction::Send, pass, bytes_of(&written));
        written
    }

    delegate_write!(except poll_write io);
}

impl Pass {
    fn most(self) -> u64 {
        match self {
            Self::UpTo(most) => most,
            Self::Probe => 1,
        }
    }
}

fn most_of(pass: Option<Pass>, want: usize) -> usize {
    pass.map_or(want, |pass| {
        usize::try_from(pass.most()).map_or(want, |most| most.min(want))
    })
}

fn bytes_of(written: &Poll<io::Result<usize>>) -> Option<usize> {
    match written {
        Poll::Ready(result) => Some(*result.as_ref().unwrap_or(&0)),
        Poll::Pending => None,
    }
}

/// Puts the first `most` bytes of `bufs` into `parts`, or as many as those can hold; returns how many they are.
fn cut<'a>(bufs: &'a [IoSlice<'_>], mut most: usize, parts: &mut [IoSlice<'a>]) -> usize {
    let mut count = 0;
    let bufs = bufs
        .iter()
        .filter(|buf| !buf.is_empty());
    for (part, buf) in parts.iter_mut().zip(bufs) {
        if most == 0 {
            break;
        }
        let length = buf.len().min(most);
        *part = IoSlice::new(&buf[..length]);
        most -= length;
        count += 1;
    }
    count
}

/// Of a vectored write that may pass in part only, so many slices go at once.
const PARTS: usize = 16;
