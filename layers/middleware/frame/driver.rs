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
//! - Memory: what one read brings, one partial frame, `depth` requests and one that waits, `high_water` bytes and one
//!   reply.
//! - The clock is read only to park with something outstanding, once, and where a caller says that its time is up.

use std::{
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    base::{error::BoxError, io::Io, time::now},
    conn::{
        Ambient, CloseReason, Conn, ConnInfo,
        waits::{NEVER, Stamp},
    },
    middleware::frame::{
        CodecError, FrameError, Request,
        asked::Asked,
        buffers::{Input, Output},
        flight::{Flight, Start},
        protocol::{Inbound, Replies, Requests},
        request::Burst,
        serve::Shared,
    },
};

pub(super) struct Driver<I, S, P>
where
    I: Io,
    S: Service<Request<<P as Requests>::Message>>,
    P: Requests,
{
    /// Until it is closed.
    pub(super) conn: Option<Conn<I>>,
    pub(super) info: Arc<ConnInfo>,
    pub(super) service: S,
    /// Makes it anew: a clone is not ready, and waits for nothing.
    pub(super) renew: fn(&S) -> S,
    pub(super) protocol: P,
    pub(super) shared: Arc<Shared>,
    pub(super) input: Input,
    pub(super) output: Output,
    pub(super) flight: Flight<S::Future, S::Response, P::Id>,
    /// Decoded, while the service is not ready for it, or there is no room for it.
    pub(super) waiting: Option<Box<Asked<P::Id, P::Message>>>,
    /// The highest id of the requests taken.
    pub(super) taken: P::Id,
    /// The request that is being handed to the service.
    calling: Option<P::Id>,
    /// Since when requests may have been here that there was no room for.
    pub(super) here_since: Stamp,
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

pub(super) type Closing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Nothing more is taken; what is in flight is finished.
pub(super) struct Ending<R> {
    pub(super) reason: CloseReason,
    pub(super) last: Option<R>,
    pub(super) error: Option<FrameError>,
    /// The error is told by id once all others have been answered.
    pub(super) untold: bool,
    pub(super) lingers: bool,
}

impl<I, S, P> Driver<I, S, P>
where
    I: Io,
    S: Service<Request<<P as Requests>::Message>>,
    S::Error: Into<BoxError>,
    P: Requests + Replies<S::Response>,
{
    pub(super) fn new(conn: Conn<I>, service: S, protocol: P, shared: Arc<Shared>) -> Self
    where
        S: Clone,
    {
        let info = Arc::clone(conn.info());
        info.waits.driven.set(true);
        info.waits
            .spares_replies
            .set(shared.framing.dry_run);
        Self {
            conn: Some(conn),
            info,
            service,
            renew: S::clone,
            protocol,
            input: Input::new(),
            output: Output::new(),
            flight: Flight::new(!shared.framing.multiplexed),
            shared,
            waiting: None,
            taken: P::Id::default(),
            calling: None,
            here_since: NEVER,
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
            // Before a reply goes out, which tells its peer how far we are.
            self.info.waits.busy.set(self.is_busy());
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
                    self.here_since = NEVER;
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

    /// Encodes the replies that are there. A panic ends the one it belongs to.
    fn collect(&mut self, cx: &mut Context<'_>) {
        if self.flight.is_empty() {
            return;
        }
        // Unwind safety: what panicked is dropped here and now.
        if catch_unwind(AssertUnwindSafe(|| self.collect_all(cx))).is_err() {
            let alone = self.flight.clear_alone();
            self.output.take_back_unfinished();
            match alone {
                Some(id) => {
                    self.shared.metrics.failed_at_once();
                    self.settle(id, Err(FrameError::Panicked));
                }
                // One that panicked as it was dropped is counted with all in flight; a reply that did as it was
                // written is counted already.
                None => self.fail(FrameError::Panicked),
            }
        }
    }

    fn collect_all(&mut self, cx: &mut Context<'_>) {
        let ambient = Ambient::enter();
        self.flight.listen(cx);
        while !self.congested {
            let Poll::Ready(Some(done)) = self.flight.poll_next(&ambient, cx) else {
                break;
            };
            let metrics = &self.shared.metrics;
            match (&done.outcome, done.since) {
                _ if done.counted => {}
                (Ok(None), _) => metrics.cancelled(),
                (outcome, Some(since)) => {
                    let took = now().saturating_duration_since(since);
                    metrics.waited(outcome.is_ok(), took);
                }
                (Ok(Some(_)), None) => self.at_once += 1,
                (Err(_), None) => metrics.failed_at_once(),
            }
            self.settle(done.id, done.outcome);
        }
    }

    /// Takes the requests that are here, while there is room for them; `true` if that changed what is in flight.
    fn take(&mut self, cx: &mut Context<'_>) -> bool {
        if self.dry && self.waiting.is_none() {
            self.take_last();
            return false;
        }
        // Unwind safety: a handler that panics is dropped here and now; a codec that does says no more than why.
        let taken = catch_unwind(AssertUnwindSafe(|| self.take_all(cx)));
        if taken.is_ok() {
            return self.flight.has_changed();
        }
        self.output.take_back_unfinished();
        match self.calling.take() {
            Some(id) => {
                self.flight.clear_begun();
                self.shared.metrics.failed_at_once();
                self.place(id, Err(FrameError::Panicked));
                // There may be more to take.
                P::BY_ID || self.flight.has_changed()
            }
            // It was the codec. What it was at is counted by what its handler did, if it was a request at all.
            None if P::BY_ID => {
                self.fail(FrameError::Panicked);
                false
            }
            None => {
                self.place(P::Id::default(), Err(FrameError::Panicked));
                self.flight.has_changed()
            }
        }
    }

    fn take_all(&mut self, cx: &mut Context<'_>) {
        let (ambient, _burst) = (Ambient::enter(), Burst::begin());
        let fresh = Start {
            id: P::Id::default(),
            due: self.shared.framing.handler_due(),
            hasty: false,
        };
        while self.ending.is_none() && self.has_room() {
            let mut start = fresh;
            let Some(message) = self.next(&mut start) else {
                break;
            };
            if P::BY_ID && self.flight.len() >= self.shared.framing.depth {
                self.waiting = Some(Box::new(Asked { message, start }));
                break;
            }
            // Which is nothing to do with the time that the request before this one had.
            ambient.set(Ambient::Outside);
            self.calling = Some(start.id);
            match self.service.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.calling = None;
                    self.fail_unready(start.id, error.into());
                    break;
                }
                Poll::Pending => {
                    self.calling = None;
                    self.waiting = Some(Box::new(Asked { message, start }));
                    break;
                }
            }
            let (service, info) = (&mut self.service, &self.info);
            let call = || service.call(Request::new(message, info));
            let started = self
                .flight
                .start(call, start, &ambient, cx);
            self.calling = None;
            match started {
                Poll::Ready(Ok(reply)) => {
                    self.at_once += 1;
                    self.encode(start.id, reply);
                }
                Poll::Ready(Err(error)) => {
                    self.shared.metrics.failed_at_once();
                    self.settle(start.id, Err(FrameError::Service(error.into())));
                }
                Poll::Pending => {}
            }
        }
    }

    /// The next request: the one that waits, or the next that is here. It is to be begun as `start` has it, unless
    /// that is changed.
    #[inline]
    fn next(&mut self, start: &mut Start<P::Id>) -> Option<P::Message> {
        match self.waiting.take() {
            Some(waiting) => {
                *start = waiting.start;
                Some(waiting.message)
            }
            None => self.decode(start),
        }
    }

    /// Room for what comes next. Multiplexed that is also what only is to be seen, since it may be that a request in
    /// flight is cancelled: with no room for one more in flight, one request is taken in and waits.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        let framing = &self.shared.framing;
        !self.congested
            && (self.flight.len() < framing.depth
                || P::BY_ID && framing.multiplexed && self.waiting.is_none())
    }

    /// The next request, if all of it is here.
    fn decode(&mut self, start: &mut Start<P::Id>) -> Option<P::Message> {
        while self.ending.is_none() && !self.dry && self.turn < self.last_turn {
            let (input, ended) = (&mut self.input.bytes, self.ended);
            match self.protocol.decode(input, ended) {
                Ok(Some(frame)) => {
                    self.turn += 1;
                    match P::sort(frame) {
                        Inbound::Request { id, left, message } => {
                            if !P::BY_ID || self.is_to_begin(id, left, start) {
                                return Some(message);
                            }
                        }
                        other => self.heed(other),
                    }
                }
                Ok(None) => {
                    self.dry = true;
                    self.check_buffered();
                }
                Err(error) => self.refuse(FrameError::Decode(error.into())),
            }
            // What was no request may have been answered.
            if !self.dry && !self.has_room() {
                return None;
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
        let reply = self.protocol.in_order(&error);
        self.place(P::Id::default(), Ok(reply));
    }
}

/// The stream, apart from the rest of the driver.
pub(super) fn conn_of<I>(conn: &mut Option<Conn<I>>) -> &mut Conn<I> {
    conn.as_mut()
        .expect("not polled again once ready")
}

impl<I, S, P> Drop for Driver<I, S, P>
where
    I: Io,
    S: Service<Request<<P as Requests>::Message>>,
    P: Requests,
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
        self.flight.clear();
    }
}

/// After so many reads the connection lets others have the thread.
const READS_A_POLL: u32 = 16;
