//! One framed connection, as a state machine: no task and no channel a request.
//!
//! # Invariants
//!
//! - Before it parks, every reply that is ready has been offered to the stream; a reply never waits because
//!   half of the next request is here.
//! - Whatever ends a wait (output drained, a handler done) leads back to decoding: it never parks on whole
//!   requests that it could have taken.
//! - Memory: what one read brings, one partial frame, `depth` requests, `high_water` bytes and one reply.
//! - The clock is read only to park with something outstanding, once.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use tokio::io::AsyncWrite;
use tokio_util::codec::{Decoder, Encoder};
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, find},
        io::{Io, Linger, linger},
        time::now,
    },
    conn::{Ambient, CloseReason, Conn, ConnInfo, Elapsed, reset_on_drop, waits::plus},
    middleware::frame::{
        CodecError, FrameError, LastReply, Request,
        buffers::{Input, Output},
        flight::{Flight, Outcome},
        serve::Shared,
    },
};

pub(super) struct Driver<I, S, C, L>
where
    S: Service<Request<C::Item>>,
    C: Decoder,
{
    /// Until it is closed.
    conn: Option<Conn<I>>,
    info: Arc<ConnInfo>,
    service: S,
    codec: C,
    last: L,
    shared: Arc<Shared>,
    input: Input,
    output: Output,
    flight: Flight<S::Future, S::Response>,
    /// Decoded, while the service is not ready for it.
    waiting: Option<Box<C::Item>>,
    /// The number of the last request taken.
    turn: u64,
    /// The number of the last request that will be taken, once it must leave.
    last_turn: u64,
    /// The number of the request whose deadline is running.
    timed_turn: u64,
    /// The place in the replies whose deadline is running.
    timed_reply: Option<u64>,
    /// Replies above the high-water mark, and not yet below the low one.
    congested: bool,
    ended: bool,
    /// Told to leave, and past the last read: only what has begun to arrive is still taken.
    sealed: bool,
    leaving: Option<CloseReason>,
    ending: Option<Box<Ending<S::Response>>>,
    closing: Option<Closing>,
    // Counted and not yet reported.
    at_once: u32,
    reported: usize,
}

type Closing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Nothing more is taken; what is in flight is finished.
struct Ending<R> {
    reason: CloseReason,
    last: Option<R>,
    error: Option<FrameError>,
    lingers: bool,
}

impl<I, S, C, L> Driver<I, S, C, L>
where
    I: Io,
    S: Service<Request<C::Item>>,
    S::Error: Into<BoxError>,
    C: Decoder + Encoder<S::Response>,
    <C as Decoder>::Error: Into<BoxError>,
    <C as Encoder<S::Response>>::Error: Into<BoxError>,
    L: LastReply<S::Response>,
{
    pub(super) fn new(conn: Conn<I>, service: S, codec: C, last: L, shared: Arc<Shared>) -> Self {
        let info = Arc::clone(conn.info());
        info.waits.driven.set(true);
        Self {
            conn: Some(conn),
            info,
            service,
            codec,
            last,
            input: Input::new(),
            output: Output::new(),
            flight: Flight::new(),
            waiting: None,
            turn: 0,
            last_turn: u64::MAX,
            timed_turn: 0,
            timed_reply: None,
            congested: false,
            ended: false,
            sealed: false,
            leaving: None,
            ending: None,
            closing: None,
            at_once: 0,
            reported: 0,
            shared,
        }
    }

    pub(super) fn info(&self) -> &Arc<ConnInfo> {
        &self.info
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.closing.is_some() {
            return self.poll_closing(cx);
        }
        self.hear();
        let mut reads = 0;
        let mut collect = true;
        loop {
            if collect {
                self.collect(cx);
            }
            collect = self.take(cx);
            if collect {
                continue;
            }
            self.say_last();
            let conn = self
                .conn
                .as_mut()
                .expect("not polled again once ready");
            if let Poll::Ready(Err(error)) = self.output.poll_write(cx, conn) {
                return Poll::Ready(Err(self.broken(error)));
            }
            if self.congested && self.output.len() <= self.shared.framing.low_water() {
                self.congested = false;
                collect = true;
                continue;
            }
            if self.ending.is_some() && self.flight.is_empty() && self.output.is_clear() {
                return self.close(cx);
            }
            if !self.wants_input() {
                break;
            }
            if reads >= READS_A_POLL {
                cx.waker().wake_by_ref();
                break;
            }
            let conn = self
                .conn
                .as_mut()
                .expect("not polled again once ready");
            match self.input.poll_read(cx, conn) {
                Poll::Ready(Ok(0)) => self.ended = true,
                Poll::Ready(Ok(_)) => reads += 1,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.broken(error))),
                Poll::Pending if self.seal() => {}
                Poll::Pending => break,
            }
        }
        self.seal();
        self.park();
        Poll::Pending
    }

    /// What others have said to the connection since the last poll.
    fn hear(&mut self) {
        if self.ending.is_some() {
            return;
        }
        match self.info.close_reason() {
            Some(which @ CloseReason::Request) => {
                let limit = self.shared.framing.request;
                self.fail(FrameError::Elapsed(Elapsed::new(which, Some(limit))));
            }
            Some(which @ CloseReason::Handler) => {
                let limit = self.shared.framing.handler;
                self.flight.clear();
                self.fail(FrameError::Elapsed(Elapsed::new(which, Some(limit))));
            }
            _ => {}
        }
        self.leaving = self.info.ending.leaving();
    }

    /// Encodes the replies that are there, in order. A panic ends the one it belongs to.
    fn collect(&mut self, cx: &mut Context<'_>) {
        if self.flight.is_empty() {
            return;
        }
        // Unwind safety: what panicked is dropped here and now.
        if catch_unwind(AssertUnwindSafe(|| self.collect_all(cx))).is_err() {
            self.flight.clear_alone();
            self.settle(Err(FrameError::Panicked));
        }
    }

    fn collect_all(&mut self, cx: &mut Context<'_>) {
        let ambient = Ambient::enter();
        while !self.congested {
            let Poll::Ready(Some(done)) = self.flight.poll_next(&ambient, cx) else {
                break;
            };
            match done.since {
                Some(since) => {
                    let took = now().saturating_duration_since(since);
                    let metrics = &self.shared.metrics;
                    metrics.waited(done.outcome.is_ok(), took);
                }
                None => self.at_once += 1,
            }
            self.settle(done.outcome);
        }
    }

    /// Takes the requests that are here, while there is room for them; `true` if any was queued.
    fn take(&mut self, cx: &mut Context<'_>) -> bool {
        if self.input.is_empty() && self.waiting.is_none() && !self.ended {
            self.take_last();
            self.leave_if_done();
            return false;
        }
        // Unwind safety: a handler that panics takes its seat along; a codec that does is not used again.
        match catch_unwind(AssertUnwindSafe(|| self.take_all(cx))) {
            Ok(queued) => queued,
            Err(_) if self.flight.is_empty() => {
                self.settle(Err(FrameError::Panicked));
                false
            }
            Err(_) => {
                self.flight
                    .push_done(Err(FrameError::Panicked));
                true
            }
        }
    }

    fn take_all(&mut self, cx: &mut Context<'_>) -> bool {
        let ambient = Ambient::enter();
        let (depth, limit) = (self.shared.framing.depth, self.shared.framing.handler);
        let mut queued = false;
        while self.ending.is_none() && !self.congested && self.flight.len() < depth {
            let waiting = self
                .waiting
                .take()
                .map(|message| *message);
            let Some(message) = waiting.or_else(|| self.decode()) else {
                break;
            };
            match self.service.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.fail(FrameError::Service(error.into()));
                    break;
                }
                Poll::Pending => {
                    self.waiting = Some(Box::new(message));
                    break;
                }
            }
            let request = Request::new(message, Arc::clone(&self.info));
            let handler = self.service.call(request);
            match self
                .flight
                .start(handler, limit, &ambient, cx)
            {
                Poll::Ready(Ok(reply)) => {
                    self.at_once += 1;
                    self.encode(reply);
                }
                Poll::Ready(Err(error)) => self.settle(Err(FrameError::Service(error.into()))),
                Poll::Pending => queued |= self.flight.is_queued(),
            }
        }
        queued
    }

    /// The next request, if all of it is here.
    fn decode(&mut self) -> Option<C::Item> {
        while self.ending.is_none() {
            if self.input.is_empty() && !self.ended {
                self.take_last();
            }
            if self.turn >= self.last_turn {
                self.leave_if_done();
                return None;
            }
            if self.input.is_empty() && !self.ended {
                return None;
            }
            let decoded = if self.ended {
                self.codec
                    .decode_eof(&mut self.input.bytes)
            } else {
                self.codec.decode(&mut self.input.bytes)
            };
            match decoded {
                Ok(Some(message)) => {
                    self.turn += 1;
                    return Some(message);
                }
                Ok(None) if self.ended => self.end(CloseReason::Peer, false),
                Ok(None) => {
                    self.take_last();
                    self.check_buffered();
                    return None;
                }
                Err(error) => self.refuse(FrameError::Decode(error.into())),
            }
        }
        None
    }

    /// The last request that is taken has been, and its reply is there.
    fn leave_if_done(&mut self) {
        if self.turn >= self.last_turn && self.flight.is_empty() && self.ending.is_none() {
            self.end(
                self.leaving
                    .unwrap_or(CloseReason::Served),
                true,
            );
        }
    }

    fn check_buffered(&mut self) {
        let (length, max) = (self.input.bytes.len(), self.shared.framing.max_buffered);
        if length >= max {
            let too_long = CodecError::TooLong {
                length: length as u64,
                max,
                skipped: false,
            };
            self.fail(FrameError::Decode(too_long.into()));
        }
    }

    /// Bytes that are no request: answered in their place and skipped, or the end.
    fn refuse(&mut self, error: FrameError) {
        if !error.resumes() {
            self.fail(error);
            return;
        }
        self.turn += 1;
        let reply = self.last.last_reply(&error);
        if self.flight.is_empty() {
            self.settle(Ok(reply));
        } else {
            self.flight.push_done(Ok(reply));
        }
    }

    fn settle(&mut self, outcome: Outcome<S::Response>) {
        match outcome {
            Ok(Some(reply)) => self.encode(reply),
            Ok(None) => {}
            Err(error) => {
                self.flight.clear();
                self.fail(error);
            }
        }
    }

    fn encode(&mut self, reply: S::Response) {
        let before = self.output.len();
        if let Err(error) = self
            .codec
            .encode(reply, self.output.buffer())
        {
            self.output.bytes.truncate(before);
            self.flight.clear();
            self.fail(FrameError::Encode(error.into()));
        }
        self.congested |= self.output.len() >= self.shared.framing.high_water;
    }

    fn fail(&mut self, error: FrameError) {
        if self.ending.is_none() {
            let last = self.last.last_reply(&error);
            // An error is the reason whatever comes of it; an orderly end is one only once it is reached.
            self.info.end_with(error.reason());
            self.end(error.reason(), true);
            if let Some(ending) = &mut self.ending {
                (ending.last, ending.error) = (last, Some(error));
            }
        }
    }

    fn end(&mut self, reason: CloseReason, lingers: bool) {
        self.waiting = None;
        self.ending = Some(Box::new(Ending {
            reason,
            last: None,
            error: None,
            lingers,
        }));
    }

    /// The last reply, behind all others.
    fn say_last(&mut self) {
        if !self.flight.is_empty() {
            return;
        }
        let last = self
            .ending
            .as_mut()
            .and_then(|ending| ending.last.take());
        if let Some(last) = last {
            let before = self.output.len();
            if self
                .codec
                .encode(last, self.output.buffer())
                .is_err()
            {
                self.output.bytes.truncate(before);
            }
        }
    }

    fn wants_input(&self) -> bool {
        self.ending.is_none()
            && !self.ended
            && !self.congested
            && self.waiting.is_none()
            && self.turn < self.last_turn
            && !(self.sealed && self.last_turn == u64::MAX)
            && self.flight.len() < self.shared.framing.depth
    }

    /// About to park, told to leave: what has arrived by now is the last of it. `true` if that leaves
    /// something to do at once.
    fn seal(&mut self) -> bool {
        let Some(reason) = self.leaving.filter(|_| !self.sealed) else {
            return false;
        };
        let dry = self.wants_input();
        self.sealed = true;
        if !dry {
            // Whole requests may be here that there is no room for yet.
            return false;
        }
        self.take_last();
        if self.last_turn > self.turn {
            return false;
        }
        if self.flight.is_empty() && self.output.is_clear() {
            // Idle: nothing of the peer's is here that a close would turn into a reset.
            self.end(reason, false);
        }
        true
    }

    /// No whole request is here any more: one that has begun to arrive is the last.
    fn take_last(&mut self) {
        if self.sealed && self.last_turn == u64::MAX {
            self.last_turn = self.turn + u64::from(!self.input.is_empty());
        }
    }

    /// Notes what is waited for, and gives back what is not needed meanwhile.
    fn park(&mut self) {
        let mut clock = None;
        let mut now = || *clock.get_or_insert_with(now);
        let (info, waits) = (&self.info, &self.info.waits);
        let framing = &self.shared.framing;
        let handling = !self.flight.is_empty() || self.waiting.is_some();
        waits
            .busy
            .set(handling || self.ending.is_some());

        let receiving = !self.input.is_empty() && self.wants_input();
        waits.receiving.set(receiving);
        if !receiving {
            self.timed_turn = 0;
            waits.request_by.clear();
        } else if self.timed_turn != self.turn + 1 {
            self.timed_turn = self.turn + 1;
            waits
                .turn
                .store(self.timed_turn, Relaxed);
            let by = plus(info.stamp(now()), framing.request);
            waits.request_by.set(by);
        }

        match self.flight.stamp(&mut now) {
            // While the peer does not take its replies, its handlers are not to blame.
            Some(by) if !self.congested => waits.handler_by.set(info.stamp(by)),
            _ => waits.handler_by.clear(),
        }

        if self.output.is_clear() {
            self.timed_reply = None;
            waits.reply_by.clear();
        } else if self
            .timed_reply
            .is_none_or(|mark| self.output.written() >= mark)
        {
            self.timed_reply = Some(self.output.queued());
            waits
                .reply_by
                .set(plus(info.stamp(now()), framing.reply));
        }

        self.input.park();
        self.output.park();
        self.flight.shrink();
        self.report();
    }

    fn report(&mut self) {
        if self.at_once > 0 {
            self.shared
                .metrics
                .at_once(self.at_once);
            self.at_once = 0;
        }
        let queued = self.output.len();
        if queued != self.reported {
            let change = queued as f64 - self.reported as f64;
            self.shared
                .metrics
                .queued
                .increment(change);
            self.reported = queued;
        }
    }

    /// Everything is said: closes, in order.
    fn close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.report();
        let mut conn = self.conn.take().expect("closed once");
        let lingers = self
            .ending
            .as_ref()
            .is_some_and(|ending| {
                self.info.end_with(ending.reason);
                ending.lingers
            });
        if (!lingers || self.ended)
            && Pin::new(&mut conn)
                .poll_shutdown(cx)
                .is_ready()
        {
            return Poll::Ready(self.result());
        }
        self.info.waits.busy.set(true);
        self.closing = Some(Box::pin(async move {
            // A peer that has gone meanwhile has nothing more to lose.
            let _gone = linger(conn, Linger::default()).await;
        }));
        self.poll_closing(cx)
    }

    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let closing = self.closing.as_mut();
        match closing.map_or(Poll::Ready(()), |closing| closing.as_mut().poll(cx)) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                self.closing = None;
                Poll::Ready(self.result())
            }
        }
    }

    fn result(&mut self) -> Result<(), BoxError> {
        let error = self
            .ending
            .take()
            .and_then(|ending| ending.error);
        error.map_or(Ok(()), |error| Err(error.into()))
    }

    /// The stream failed: nobody is left to answer.
    fn broken(&mut self, error: io::Error) -> BoxError {
        if find::<Elapsed>(&error).is_none() {
            self.info.end_with(CloseReason::Reset);
        }
        self.abandon();
        FrameError::Io(error).into()
    }

    /// Drops the stream and everything in flight.
    pub(super) fn abandon(&mut self) {
        let unsent = self.info.must_reset() || !self.output.is_clear();
        if let Some(conn) = self.conn.as_ref().filter(|_| unsent) {
            reset_on_drop(conn, &self.info);
        }
        self.flight.clear();
        self.conn = None;
        self.closing = None;
    }

    /// The stream, what was read and not decoded, and what was encoded and not written.
    pub(super) fn into_parts(mut self) -> Option<(Conn<I>, bytes::Bytes, bytes::Bytes)> {
        let conn = self.conn.take()?;
        let read = std::mem::take(&mut self.input.bytes).freeze();
        let unwritten = std::mem::take(&mut self.output.bytes).freeze();
        Some((conn, read, unwritten))
    }
}

impl<I, S, C, L> Drop for Driver<I, S, C, L>
where
    S: Service<Request<C::Item>>,
    C: Decoder,
{
    fn drop(&mut self) {
        self.shared
            .metrics
            .at_once(self.at_once);
        self.shared
            .metrics
            .queued
            .decrement(self.reported as f64);
    }
}

/// After so many reads the connection lets others have the thread.
const READS_A_POLL: u32 = 16;
