//! One framed connection, as a state machine: no task and no channel a request.
//!
//! Here is how it goes on; [`park`](super::park) is how it waits, [`close`](super::close) how it ends.
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
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;
use tokio_util::codec::{Decoder, Encoder};
use tower_service::Service;

use crate::{
    base::{error::BoxError, io::Io, time::now},
    conn::{
        Ambient, CloseReason, Conn, ConnInfo, Deadline, reset_on_drop,
        waits::{NEVER, Stamp},
    },
    middleware::frame::{
        CodecError, FrameError, LastReply, Request,
        buffers::{Input, Output},
        flight::{Flight, Outcome},
        request::Burst,
        serve::Shared,
    },
};

pub(super) struct Driver<I, S, C, L>
where
    I: Io,
    S: Service<Request<C::Item>>,
    C: Decoder,
{
    /// Until it is closed.
    pub(super) conn: Option<Conn<I>>,
    pub(super) info: Arc<ConnInfo>,
    pub(super) service: S,
    pub(super) codec: C,
    pub(super) last: L,
    pub(super) shared: Arc<Shared>,
    pub(super) input: Input,
    pub(super) output: Output,
    pub(super) flight: Flight<S::Future, S::Response>,
    /// Decoded, while the service is not ready for it.
    pub(super) waiting: Option<Box<Waiting<C::Item>>>,
    /// The number of the last request taken.
    pub(super) turn: u64,
    /// The number of the last request that will be taken, once it must leave.
    pub(super) last_turn: u64,
    /// The number of the request whose deadline is running; zero for none.
    pub(super) timed_turn: u64,
    /// The place in the replies whose deadline is running; zero for none.
    pub(super) timed_reply: u64,
    /// Since when handlers are not polled, because the peer does not take replies.
    pub(super) held_since: Stamp,
    pub(super) ending: Option<Box<Ending<S::Response>>>,
    pub(super) closing: Option<Box<Closing>>,
    pub(super) leaving: Option<CloseReason>,
    /// The decoder has nothing more to give before more is read.
    pub(super) dry: bool,
    /// The peer has ended its side.
    pub(super) ended: bool,
    /// Replies are above the high-water mark, and not yet below the low one.
    pub(super) congested: bool,
    /// Told to leave, and past the last read: only what has begun to arrive is still taken.
    pub(super) sealed: bool,
    // Counted and not yet reported.
    pub(super) at_once: u32,
    pub(super) reported: u32,
}

/// A request that the service is not ready for.
pub(super) struct Waiting<M> {
    pub(super) message: M,
    /// When its handler is due; known once it has waited.
    pub(super) by: Option<Deadline>,
}

impl<M> Waiting<M> {
    /// Whether it is late, which it is only once.
    pub(super) fn spare(&mut self, now: Instant) -> bool {
        let by = self.by.and_then(Deadline::instant);
        let late = by.is_some_and(|by| by <= now);
        if late {
            self.by = Some(Deadline::NEVER);
        }
        late
    }
}

pub(super) type Closing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Nothing more is taken; what is in flight is finished.
pub(super) struct Ending<R> {
    pub(super) reason: CloseReason,
    pub(super) last: Option<R>,
    pub(super) error: Option<FrameError>,
    pub(super) lingers: bool,
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
        info.waits
            .spares_replies
            .set(shared.framing.dry_run);
        Self {
            conn: Some(conn),
            info,
            service,
            codec,
            last,
            shared,
            input: Input::new(),
            output: Output::new(),
            flight: Flight::new(),
            waiting: None,
            turn: 0,
            last_turn: u64::MAX,
            timed_turn: 0,
            timed_reply: 0,
            held_since: NEVER,
            ending: None,
            closing: None,
            leaving: None,
            dry: true,
            ended: false,
            congested: false,
            sealed: false,
            at_once: 0,
            reported: 0,
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
                self.give_back_held_time();
                collect = true;
                continue;
            }
            if self.ending.is_some() && self.flight.is_empty() && self.output.is_clear() {
                return self.close(cx);
            }
            if !self.wants_input() {
                break;
            }
            if reads == READS_A_POLL {
                cx.waker().wake_by_ref();
                break;
            }
            match self
                .input
                .poll_read(cx, conn_of(&mut self.conn))
            {
                Poll::Ready(Ok(read)) => {
                    self.ended = read == 0;
                    self.dry = false;
                    reads += 1;
                }
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::UnexpectedEof => {
                    self.ended_without_a_word();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.broken(error))),
                Poll::Pending => {
                    if !self.seal() {
                        break;
                    }
                }
            }
        }
        // Also where there was no room to read.
        self.seal();
        self.park();
        Poll::Pending
    }

    /// Encodes the replies that are there, in order. A panic ends the one it belongs to.
    fn collect(&mut self, cx: &mut Context<'_>) {
        if self.flight.is_empty() {
            return;
        }
        // Unwind safety: what panicked is dropped here and now.
        if catch_unwind(AssertUnwindSafe(|| self.collect_all(cx))).is_err() {
            self.shared.metrics.failed_at_once();
            self.flight.clear_alone();
            self.output.take_back_unfinished();
            self.settle(Err(FrameError::Panicked));
        }
    }

    fn collect_all(&mut self, cx: &mut Context<'_>) {
        let ambient = Ambient::enter();
        while !self.congested {
            let Poll::Ready(Some(done)) = self.flight.poll_next(&ambient, cx) else {
                break;
            };
            let metrics = &self.shared.metrics;
            match done.since {
                Some(since) => {
                    let took = now().saturating_duration_since(since);
                    metrics.waited(done.outcome.is_ok(), took);
                }
                None if done.counted => {}
                None if done.outcome.is_ok() => self.at_once += 1,
                None => metrics.failed_at_once(),
            }
            self.settle(done.outcome);
        }
    }

    /// Takes the requests that are here, while there is room for them; `true` if any was queued.
    fn take(&mut self, cx: &mut Context<'_>) -> bool {
        if self.dry && self.waiting.is_none() {
            self.take_last();
            return false;
        }
        // Unwind safety: a handler that panics takes its seat along; a codec that does is not used again.
        let taken = catch_unwind(AssertUnwindSafe(|| self.take_all(cx)));
        match taken {
            Ok(queued) => queued,
            Err(_) => {
                self.shared.metrics.failed_at_once();
                self.output.take_back_unfinished();
                if self.flight.is_empty() {
                    self.settle(Err(FrameError::Panicked));
                    return false;
                }
                self.flight
                    .push_counted(Err(FrameError::Panicked));
                true
            }
        }
    }

    fn take_all(&mut self, cx: &mut Context<'_>) -> bool {
        let (ambient, _burst) = (Ambient::enter(), Burst::begin());
        let fresh = self.shared.framing.handler_due();
        let mut queued = false;
        while self.ending.is_none() && self.has_room() {
            let Some((message, due)) = self.next(fresh) else {
                break;
            };
            match self.service.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.fail_behind(FrameError::Service(error.into()));
                    break;
                }
                Poll::Pending => {
                    let by = due.deadline();
                    self.waiting = Some(Box::new(Waiting { message, by }));
                    break;
                }
            }
            let (service, info) = (&mut self.service, &self.info);
            let call = || service.call(Request::new(message, info));
            match self
                .flight
                .start(call, due, &ambient, cx)
            {
                Poll::Ready(Ok(reply)) => {
                    self.at_once += 1;
                    self.encode(reply);
                }
                Poll::Ready(Err(error)) => {
                    self.shared.metrics.failed_at_once();
                    self.settle(Err(FrameError::Service(error.into())));
                }
                Poll::Pending => queued |= self.flight.is_queued(),
            }
        }
        queued
    }

    /// The next request, and when its handler is due.
    #[inline]
    fn next(&mut self, fresh: Ambient) -> Option<(C::Item, Ambient)> {
        let Some(waiting) = self.waiting.take() else {
            return Some((self.decode()?, fresh));
        };
        let due = waiting
            .by
            .map_or(fresh, |by| fresh.at(by));
        Some((waiting.message, due))
    }

    /// Room for one more request in flight, and for its reply.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        !self.congested && self.flight.len() < self.shared.framing.depth
    }

    /// The next request, if all of it is here.
    fn decode(&mut self) -> Option<C::Item> {
        while self.ending.is_none() && !self.dry && self.turn < self.last_turn {
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
                Ok(None) => {
                    self.dry = true;
                    self.check_buffered();
                }
                Err(error) => {
                    self.refuse(FrameError::Decode(error.into()));
                    if !self.has_room() {
                        return None;
                    }
                }
            }
        }
        self.take_last();
        None
    }

    /// The stream has ended, and below it nobody said that it would (TLS without `close_notify`): between requests
    /// that is an end like any other. Inside one it is not for the codec to say that it was the last: somebody
    /// else may have cut it short.
    fn ended_without_a_word(&mut self) {
        self.ended = true;
        if self.input.is_empty() {
            self.dry = false;
        } else {
            let truncated = CodecError::Truncated { missing: 1 };
            self.fail_behind(FrameError::Decode(truncated.into()));
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
            self.fail_behind(FrameError::Decode(too_long.into()));
        }
    }

    /// Bytes that are no request: answered in their place and skipped, or the end.
    fn refuse(&mut self, error: FrameError) {
        if !error.resumes() {
            self.fail_behind(error);
            return;
        }
        self.turn += 1;
        let reply = self.last.last_reply(&error);
        if self.flight.is_empty() {
            self.settle(Ok(reply));
        } else {
            self.flight.push_counted(Ok(reply));
        }
    }

    /// What became of the request that is next in order.
    fn settle(&mut self, outcome: Outcome<S::Response>) {
        match outcome {
            Ok(Some(reply)) => self.encode(reply),
            Ok(None) => {}
            Err(error) => self.fail(error),
        }
    }

    fn encode(&mut self, reply: S::Response) {
        let buffer = self.output.begin();
        match self.codec.encode(reply, buffer) {
            Ok(()) => self.output.finish(),
            Err(error) => {
                self.output.take_back_unfinished();
                self.fail(FrameError::Encode(error.into()));
            }
        }
        self.congested |= self.output.len() >= self.shared.framing.high_water;
    }
}

impl<I, S, C, L> Driver<I, S, C, L>
where
    I: Io,
    S: Service<Request<C::Item>>,
    C: Decoder,
{
    /// Drops the stream; what is unsent is not left to the kernel.
    pub(super) fn close_hard(&self, conn: Conn<I>) {
        if self.info.must_reset() || !self.output.is_clear() {
            reset_on_drop(&conn, &self.info);
        }
    }
}

/// The stream, apart from the rest of the driver.
pub(super) fn conn_of<I>(conn: &mut Option<Conn<I>>) -> &mut Conn<I> {
    conn.as_mut()
        .expect("not polled again once ready")
}

impl<I, S, C, L> Drop for Driver<I, S, C, L>
where
    I: Io,
    S: Service<Request<C::Item>>,
    C: Decoder,
{
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            self.close_hard(conn);
        }
        let metrics = &self.shared.metrics;
        metrics.at_once(self.at_once);
        metrics.dropped(self.flight.len());
        metrics
            .queued
            .decrement(f64::from(self.reported));
    }
}

/// After so many reads the connection lets others have the thread.
const READS_A_POLL: u32 = 16;
