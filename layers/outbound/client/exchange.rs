use std::{
    io::{Error, ErrorKind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio_util::io::poll_read_buf;

use crate::{
    base::error::BoxError,
    middleware::frame::RpcCode,
    outbound::client::{
        CallError, Disconnected, Heard, Lease, Protocol, Unasked,
        timers::{HEAR_OUT, Stall},
    },
};

/// One call on a connection that it has for itself.
#[derive(Debug)]
pub(super) struct Exchange<L> {
    pub(super) lease: L,
    pub(super) id: u64,
    pub(super) output: BytesMut,
    /// How much of it is written.
    pub(super) sent: usize,
    is_flushed: bool,
    input: BytesMut,
    /// Why nothing can be written any more, and for how long the answer is waited for in spite of it.
    broken: Option<(Error, Stall)>,
    ended: bool,
    leaving: bool,
}

/// What a call came to, and whether the connection is as good as before.
pub(super) type Outcome<R> = (Result<R, CallError>, bool);

impl<L: Lease> Exchange<L> {
    pub(super) fn new(lease: L) -> Self {
        // Ids rise on every connection, whoever used it before: so they rise over all.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            lease,
            id: NEXT.fetch_add(1, Relaxed),
            output: BytesMut::new(),
            sent: 0,
            is_flushed: false,
            input: BytesMut::new(),
            broken: None,
            ended: false,
            leaving: false,
        }
    }

    /// Writes the call and reads the answer; a peer that answers early is heard, and so is one that takes no more.
    pub(super) fn poll<Q, P: Protocol<Q>>(
        &mut self,
        protocol: &mut P,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Outcome<P::Reply>, Disconnected>> {
        if self.broken.is_none() {
            let failed = self.poll_write(cx).err();
            self.broken = failed.map(|error| (error, Stall::new()));
        }
        loop {
            match protocol.hear(&mut self.input, self.ended) {
                Ok(None) => {}
                Ok(Some(Heard::Answer { id, answer })) if id.is_none_or(|id| id == self.id) => {
                    // Of an answer that was not read to its end, the rest is still to come.
                    let is_whole = answer
                        .as_ref()
                        .err()
                        .is_none_or(|failure| {
                            !matches!(failure.code(), RpcCode::Oversize | RpcCode::NotUnderstood)
                        });
                    let is_clean = is_whole
                        && self.is_flushed
                        && self.input.is_empty()
                        && !self.ended
                        && !self.leaving;
                    return Poll::Ready(Ok((answer.map_err(CallError::failed), is_clean)));
                }
                Ok(Some(Heard::Answer { id, .. })) => {
                    let unasked: BoxError = Unasked::new(id).into();
                    return Poll::Ready(Err(Disconnected::Protocol(unasked)));
                }
                Ok(Some(Heard::Leaving { last })) => {
                    self.leaving = true;
                    if last < self.id {
                        let never_begun = CallError::closed(Arc::new(Disconnected::Ended), true);
                        return Poll::Ready(Ok((Err(never_begun), false)));
                    }
                    continue;
                }
                Ok(Some(Heard::Ending(failure))) => {
                    return Poll::Ready(Err(Disconnected::Told(failure)));
                }
                Err(error) => return Poll::Ready(Err(Disconnected::Protocol(error))),
            }
            if self.ended {
                return Poll::Ready(Err(self.end()));
            }
            if self.input.capacity() - self.input.len() < ENOUGH {
                // By what has come, never by what is announced.
                self.input
                    .reserve(CHUNK.max(self.input.len()));
            }
            match poll_read_buf(Pin::new(&mut self.lease), cx, &mut self.input) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::UnexpectedEof => {
                    self.ended = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Disconnected::Io(error))),
                Poll::Pending => {
                    if let Some((_, patience)) = &mut self.broken {
                        // Nobody answers what nobody has a byte of.
                        if self.sent > 0 {
                            ready!(patience.poll(0, HEAR_OUT, cx));
                        }
                        return Poll::Ready(Err(self.end()));
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Why it is over, where reading says nothing else.
    fn end(&mut self) -> Disconnected {
        let broken = self.broken.take();
        broken.map_or(Disconnected::Ended, |(error, _)| Disconnected::Io(error))
    }

    /// Writes as much as there is room for.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        while self.sent < self.output.len() {
            let unsent = &self.output[self.sent..];
            match Pin::new(&mut self.lease).poll_write(cx, unsent) {
                Poll::Ready(Ok(0)) => return Err(ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => self.sent += written,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
        if !self.is_flushed {
            if let Poll::Ready(flushed) = Pin::new(&mut self.lease).poll_flush(cx) {
                flushed?;
                self.is_flushed = true;
                self.output = BytesMut::new();
                self.sent = self.sent.max(1);
            }
        }
        Ok(())
    }
}

/// A small answer, and its header.
const CHUNK: usize = 4 * 1024;

/// With less room than this left, a read is not worth its system call.
const ENOUGH: usize = 1024;
