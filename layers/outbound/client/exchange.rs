use std::{
    io::{Error, ErrorKind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
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
pub(super) struct Exchange<L, P> {
    pub(super) lease: L,
    protocol: P,
    id: u64,
    output: BytesMut,
    /// How much of it is written.
    sent: usize,
    /// A byte of it may have reached the peer.
    pub(super) has_begun: bool,
    /// What was there before it began has been read.
    has_looked: bool,
    is_flushed: bool,
    input: BytesMut,
    /// Why nothing can be written any more, and for how long the answer is waited for in spite of it.
    broken: Option<(Error, Stall)>,
    ended: bool,
    leaving: bool,
}

/// What a call came to, and whether the connection is as good as before.
pub(super) type Outcome<R> = (Result<R, CallError>, bool);

impl<L: Lease, P> Exchange<L, P> {
    pub(super) fn new(lease: L, protocol: P) -> Self {
        // Ids rise on every connection, whoever used it before: so they rise over all.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            // A fresh one has nothing to say yet.
            has_looked: !lease.is_reused(),
            lease,
            protocol,
            id: NEXT.fetch_add(1, Relaxed),
            output: BytesMut::new(),
            sent: 0,
            has_begun: false,
            is_flushed: false,
            input: BytesMut::new(),
            broken: None,
            ended: false,
            leaving: false,
        }
    }

    /// Puts the call into the form that it is sent in, with the time that is left for it.
    pub(super) fn ask<Q>(&mut self, left: Option<Duration>, call: Q) -> Result<(), BoxError>
    where
        P: Protocol<Q>,
    {
        self.protocol
            .ask(self.id, left, call, &mut self.output)
    }

    /// Writes the call and reads the answer; a peer that answers early is heard, and so is one that takes no more.
    pub(super) fn poll<Q>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Outcome<P::Reply>, Disconnected>>
    where
        P: Protocol<Q>,
    {
        if !self.has_looked {
            // An end that is here already costs no call, and what others have left behind is no answer.
            self.has_looked = true;
            if let Poll::Ready(result) = self.poll_read(cx) {
                result.map_err(Disconnected::Io)?;
            }
        }
        let is_spoilt = !self.has_begun && (self.ended || !self.input.is_empty());
        if !is_spoilt && self.broken.is_none() {
            let failed = self.poll_write(cx).err();
            self.broken = failed.map(|error| (error, Stall::new()));
        }
        loop {
            match self
                .protocol
                .hear(&mut self.input, self.ended)
            {
                Ok(None) if is_spoilt && self.leaving => {
                    return Poll::Ready(Err(Disconnected::Ended));
                }
                Ok(None) if is_spoilt && !self.ended => {
                    let stray: BoxError = Unasked::new(None).into();
                    return Poll::Ready(Err(Disconnected::Protocol(stray)));
                }
                Ok(None) => {}
                Ok(Some(Heard::Answer { id, answer }))
                    if self.has_begun && id.is_none_or(|id| id == self.id) =>
                {
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
            match self.poll_read(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Disconnected::Io(error))),
                Poll::Pending => {
                    if let Some((_, patience)) = &mut self.broken {
                        // Nobody answers what nobody has a byte of.
                        if self.has_begun {
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

    /// Reads what there is, or that there will be no more.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.input.capacity() - self.input.len() < ENOUGH {
            // By what has come, never by what is announced.
            self.input
                .reserve(CHUNK.max(self.input.len()));
        }
        match ready!(poll_read_buf(
            Pin::new(&mut self.lease),
            cx,
            &mut self.input
        )) {
            Ok(read) => self.ended = read == 0,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => self.ended = true,
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(()))
    }

    /// Writes as much as there is room for.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        while self.sent < self.output.len() {
            let unsent = &self.output[self.sent..];
            match Pin::new(&mut self.lease).poll_write(cx, unsent) {
                Poll::Ready(Ok(written)) if written > 0 => {
                    self.has_begun = true;
                    self.sent += written;
                }
                Poll::Ready(failed) => {
                    self.has_begun |= !self.lease.is_plain();
                    return Err(failed
                        .err()
                        .unwrap_or_else(|| ErrorKind::WriteZero.into()));
                }
                Poll::Pending => return Ok(()),
            }
        }
        if !self.is_flushed {
            if let Poll::Ready(flushed) = Pin::new(&mut self.lease).poll_flush(cx) {
                flushed?;
                (self.is_flushed, self.has_begun) = (true, true);
                self.output = BytesMut::new();
                self.sent = 0;
            }
        }
        Ok(())
    }
}

/// A small answer, and its header.
const CHUNK: usize = 4 * 1024;

/// With less room than this left, a read is not worth its system call.
const ENOUGH: usize = 1024;
