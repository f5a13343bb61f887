//! One way of a tunnel: reads from one side, writes to the other.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use crate::{
    base::io::{Io, Pipe},
    middleware::forward::buffer::{Buffer, Size},
};

/// See the module. At most one of buffer and pipe is being filled, and the other has been given back; what is in the buffer
/// was read first.
pub(super) struct Direction {
    stage: DirectionStage,
    buffer: Buffer,
    size: Size,
    /// `None` if bytes are copied, come what may.
    pipe: Option<Pipe>,
    /// The last read brought so much that the next goes into the pipe.
    much: bool,
    /// The sink has turned out to take nothing from a pipe.
    refused: bool,
    unflushed: bool,
    /// A write to the side that it reads from has broken for this: an end of that side is none.
    doubt: Option<io::ErrorKind>,
    /// A TLS peer that closes without a goodbye has broken.
    wants_goodbye: bool,
    /// Waits for the side that it writes to.
    blocked: bool,
    read: u64,
    written: u64,
    spliced: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DirectionStage {
    Moving,
    /// The end has been read, and is to be passed on.
    Ending,
    Ended,
    /// It can be written to no more.
    Failed,
}

/// Which of the two streams of a direction failed, and how.
#[derive(Debug)]
pub(super) enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Direction {
    pub(super) fn new(splices: bool, wants_goodbye: bool) -> Self {
        Self {
            stage: DirectionStage::Moving,
            buffer: Buffer::default(),
            size: Size::Small,
            pipe: splices.then(Pipe::new),
            much: false,
            refused: false,
            unflushed: false,
            doubt: None,
            wants_goodbye,
            blocked: false,
            read: 0,
            written: 0,
            spliced: 0,
        }
    }

    /// The side that it reads from broke, which whoever wrote to it was told, and no read will be: that says after what
    /// is still there that it is the end.
    pub(super) fn doubt(&mut self, broke: io::ErrorKind) {
        self.doubt = Some(broke);
    }

    /// What was said by a side that is known to have broken does not go on: the other takes nothing now.
    pub(super) fn is_cut_short(&self) -> bool {
        self.doubt.is_some() && self.blocked && self.holds()
    }

    /// Waits for bytes, and so for whatever becomes of the side that it reads from.
    pub(super) fn listens(&self) -> bool {
        self.stage == DirectionStage::Moving && self.is_empty()
    }

    fn holds(&self) -> bool {
        self.stage == DirectionStage::Moving && !self.is_empty()
    }

    /// Nothing more will be moved.
    pub(super) fn is_over(&self) -> bool {
        self.has_ended() || self.stage == DirectionStage::Failed
    }

    /// All was moved, and the end passed on.
    pub(super) fn has_ended(&self) -> bool {
        self.stage == DirectionStage::Ended
    }

    /// The source has said that it is done.
    pub(super) fn has_seen_end(&self) -> bool {
        matches!(self.stage, DirectionStage::Ending | DirectionStage::Ended)
    }

    /// Bytes passed on.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Of these, bytes that nobody saw.
    pub(super) fn spliced(&self) -> u64 {
        self.spliced
    }

    /// A number that changes with whatever it does.
    pub(super) fn progress(&self) -> u64 {
        let stages = match self.stage {
            DirectionStage::Moving => 0,
            DirectionStage::Ending => 1,
            DirectionStage::Ended | DirectionStage::Failed => 2,
        };
        self.read + self.written + stages
    }

    /// The same for the side that it waits for, if it does.
    pub(super) fn blocked_at(&self) -> Option<u64> {
        let at = self.written + u64::from(self.stage == DirectionStage::Ending);
        self.blocked.then_some(at)
    }

    /// What is under way is lost.
    pub(super) fn fail(&mut self) {
        self.stage = DirectionStage::Failed;
        self.blocked = false;
        self.buffer.discard();
        self.pipe = None;
    }

    /// One read, and its bytes as far as they go. Ready if there may be more to do at once.
    pub(super) fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Io,
        sink: &mut impl Io,
    ) -> Poll<Result<(), Broken>> {
        self.blocked = false;
        match self.stage {
            DirectionStage::Moving => {}
            DirectionStage::Ending => return self.poll_end(cx, sink),
            DirectionStage::Ended | DirectionStage::Failed => return Poll::Pending,
        }
        if self.is_empty() {
            match self.poll_read(cx, source, sink) {
                Poll::Pending => {
                    self.rest();
                    return self.poll_flush(cx, sink);
                }
                Poll::Ready(Ok(0)) => return self.see_end(),
                Poll::Ready(Ok(read)) => self.read += read as u64,
                // A TLS peer that just closes.
                Poll::Ready(Err(error))
                    if error.kind() == io::ErrorKind::UnexpectedEof && !self.wants_goodbye =>
                {
                    return self.see_end();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Source(error))),
            }
        }
        while !self.is_empty() {
            match self.poll_write(cx, sink) {
                Poll::Pending => {
                    self.blocked = true;
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) => {
                    let error = io::ErrorKind::WriteZero.into();
                    return Poll::Ready(Err(Broken::Sink(error)));
                }
                Poll::Ready(Ok(written)) => self.written += written as u64,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Sink(error))),
            }
        }
        self.unflushed = true;
        Poll::Ready(Ok(()))
    }

    fn see_end(&mut self) -> Poll<Result<(), Broken>> {
        if let Some(broke) = self.doubt {
            return Poll::Ready(Err(Broken::Source(broke.into())));
        }
        self.stage = DirectionStage::Ending;
        self.rest();
        // It is not needed again.
        self.pipe = None;
        Poll::Ready(Ok(()))
    }

    fn is_empty(&self) -> bool {
        self.buffer.is_empty()
            && self
                .pipe
                .as_ref()
                .is_none_or(Pipe::is_empty)
    }

    /// Waits for bytes, and holds nothing meanwhile.
    fn rest(&mut self) {
        self.buffer.rest();
        if let Some(pipe) = &mut self.pipe {
            pipe.rest();
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Io,
        sink: &impl Io,
    ) -> Poll<io::Result<usize>> {
        if let Some(pipe) = self
            .pipe
            .as_mut()
            .filter(|_| self.much && !self.refused)
        {
            if source.takes_pipes() && sink.takes_pipes() {
                match ready!(source.poll_read_pipe(cx, pipe)) {
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        tracing::debug!(%error, "splice given up");
                        self.pipe = None;
                    }
                    read => {
                        self.buffer.rest();
                        self.much = read
                            .as_ref()
                            .is_ok_and(|read| *read >= LITTLE);
                        return Poll::Ready(read);
                    }
                }
            }
        }
        let (read, next) = ready!(
            self.buffer
                .poll_read(cx, source, self.size)
        )?;
        self.size = next;
        self.much = read >= MUCH;
        if let Some(pipe) = &mut self.pipe {
            pipe.rest();
        }
        Poll::Ready(Ok(read))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, sink: &mut impl Io) -> Poll<io::Result<usize>> {
        if self.buffer.is_empty() {
            if let Some(pipe) = &mut self.pipe {
                match ready!(sink.poll_write_pipe(cx, pipe)) {
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        self.refused = true;
                        // They are there all the same.
                        self.buffer
                            .fill(|room| pipe.read(room))?;
                        self.much = false;
                    }
                    written => {
                        self.spliced += *written.as_ref().unwrap_or(&0) as u64;
                        return Poll::Ready(written);
                    }
                }
            }
        }
        self.buffer.poll_write(cx, sink)
    }

    /// Before it waits, everything written leaves.
    fn poll_flush(&mut self, cx: &mut Context<'_>, sink: &mut impl Io) -> Poll<Result<(), Broken>> {
        if self.unflushed {
            match Pin::new(sink).poll_flush(cx) {
                Poll::Pending => self.blocked = true,
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Sink(error))),
            }
        }
        Poll::Pending
    }

    fn poll_end(&mut self, cx: &mut Context<'_>, sink: &mut impl Io) -> Poll<Result<(), Broken>> {
        match Pin::new(sink).poll_shutdown(cx) {
            Poll::Pending => {
                self.blocked = true;
                Poll::Pending
            }
            Poll::Ready(Ok(())) => {
                self.stage = DirectionStage::Ended;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(Broken::Sink(error))),
        }
    }
}

/// As large a read as a few segments of a transfer, and larger than nearly all messages: then the calls that a pipe
/// costs are fewer than copying it would be.
const MUCH: usize = 16 * 1024;

/// Below it a copy costs less than what goes with a pipe.
const LITTLE: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{net::UnixStream, task::yield_now};

    use super::*;

    #[tokio::test]
    async fn it_never_holds_a_pipe_and_a_buffer_at_once() {
        let (feeds, mut source) = UnixStream::pair().unwrap();
        let (mut sink, _deaf) = UnixStream::pair().unwrap();
        let mut direction = Direction::new(true, false);

        while direction.blocked_at().is_none() {
            // What there is no room for comes next.
            let _full = feeds.try_write(&[0; 64 * 1024]);
            let stepped =
                poll_fn(|cx| Poll::Ready(direction.poll_step(cx, &mut source, &mut sink)));
            assert!(!matches!(stepped.await, Poll::Ready(Err(_))));
            let has_pipe = direction
                .pipe
                .as_ref()
                .is_some_and(Pipe::is_open);
            assert!(!(has_pipe && direction.buffer.has_memory()));
            yield_now().await;
        }

        assert!(direction.spliced() > 0);
    }
}
