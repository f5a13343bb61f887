//! One connection of a client, as a state machine: calls out, answers in, no task and no channel a call.
//!
//! Here is how it goes on; [`lost`](super::lost) is how it ends.
//!
//! # Invariants
//!
//! - Before it parks, every call that there was room for has been encoded and offered to the stream, in one write.
//! - What the peer has said is read before anything is written: an end that is here already costs no call.
//! - It looks into the table with its waker left there, so that whatever is put in afterwards wakes it.
//! - Where writing has failed it takes no more calls, and reads on: what the peer answered before it went may still be
//!   on its way. The read side ends soon after, or is given up after [`HEAR_OUT`], or once nobody waits.
//! - Memory: what one read brings, one partial frame, `high_water` bytes and one call, a cancel for each call in flight.

use std::{
    io::{Error, ErrorKind},
    sync::Arc,
    task::{Context, Poll, ready},
};

use crate::{
    base::{
        error::BoxError,
        io::{Io, peek},
        time::now,
    },
    conn::{CloseReason, Conn, reset_on_drop},
    middleware::frame::{
        RpcFailure,
        buffers::{Input, Output},
    },
    outbound::{
        budget::Phase,
        client::{
            CallCause, CallError, Disconnected, SharedError, Unasked,
            flight::{Flight, Found, Sent},
            protocol::{Heard, Protocol},
            shared::Shared,
            table::{Answer, End, Fate, lock},
            timers::{HEAR_OUT, Silence, Stall},
        },
    },
};

pub(super) struct Driver<I: Io, P, Q, R> {
    pub(super) conn: Conn<I>,
    protocol: P,
    pub(super) shared: Arc<Shared<Q, R>>,
    pub(super) link: usize,
    input: Input,
    pub(super) output: Output,
    pub(super) flight: Flight,
    heard: Vec<Answer<R>>,
    /// A reply has come.
    pub(super) used: bool,
    /// A call was sent, and nothing was heard since.
    owed: bool,
    /// It takes no more calls.
    leaving: bool,
    /// A write has begun and not come back well.
    pub(super) writing: bool,
    /// Why the peer ends the connection, if it said so.
    pub(super) told: Option<RpcFailure>,
    /// Why nothing can be written any more.
    pub(super) broken: Option<Error>,
    stall: Stall,
    silence: Silence,
}

impl<I, P, Q, R> Driver<I, P, Q, R>
where
    I: Io,
    P: Protocol<Q, Reply = R>,
    Q: Clone,
{
    pub(super) fn new(conn: Conn<I>, protocol: P, shared: Arc<Shared<Q, R>>, link: usize) -> Self {
        shared
            .metrics
            .connections
            .increment(1.0);
        Self {
            conn,
            protocol,
            shared,
            link,
            input: Input::new(),
            output: Output::new(),
            flight: Flight::new(P::HAS_IDS),
            heard: Vec::new(),
            used: false,
            owed: false,
            leaving: false,
            writing: false,
            told: None,
            broken: None,
            stall: Stall::new(),
            silence: Silence::new(),
        }
    }

    /// Goes on until the connection is over; the calls on it are over then as well.
    pub(super) async fn run(mut self) {
        let result = std::future::poll_fn(|cx| self.poll(cx)).await;
        match result {
            Ok(()) => {
                self.retire(&End::Idle);
                self.conn
                    .info()
                    .end_with(CloseReason::Served);
                self.close().await;
            }
            Err(disconnected) => self.lose(disconnected),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Disconnected>> {
        let (mut reads, mut is_sure) = (0, false);
        loop {
            let has_read = match self.input.poll_read(cx, &mut self.conn) {
                Poll::Ready(Ok(0)) => return Poll::Ready(self.ended()),
                Poll::Ready(Ok(_)) => {
                    self.owed = false;
                    self.silence.break_off();
                    self.hear(false)?;
                    is_sure = false;
                    true
                }
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Poll::Ready(self.ended());
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Disconnected::Io(error))),
                Poll::Pending => false,
            };
            let next = match self.broken {
                Some(_) => Next::Park,
                None => self.take(cx, is_sure),
            };
            let was_full = self.is_full();
            self.write(cx);
            if next == Next::End && self.output.is_clear() || self.is_done() {
                return Poll::Ready(Ok(()));
            }
            if has_read {
                reads += 1;
                if reads == READS_A_POLL {
                    cx.waker().wake_by_ref();
                    break;
                }
            } else if next == Next::Look {
                // A socket knows of an end a moment before the runtime does.
                match peek(&self.conn) {
                    Some(Ok(0)) => return Poll::Ready(self.ended()),
                    // What it is, the runtime is about to tell.
                    Some(Ok(_)) => break,
                    Some(Err(error)) if !is_nothing(error.kind()) => {
                        return Poll::Ready(Err(Disconnected::Io(error)));
                    }
                    Some(Err(_)) | None => is_sure = true,
                }
            } else if !was_full || self.is_full() {
                break;
            }
        }
        if self.broken.is_some() {
            let fruitless = !self.used;
            self.leave(&End::Leaving { fruitless });
            // Those of which nothing was sent do not wait for what may come of the others.
            self.give_up_unsent();
            if self.flight.is_idle() {
                return Poll::Ready(Err(self.end()));
            }
        }
        self.input.park();
        self.output.park();
        let stalled = ready!(self.poll_timers(cx));
        reset_on_drop(&self.conn, self.conn.info());
        Poll::Ready(Err(stalled))
    }

    fn write(&mut self, cx: &mut Context<'_>) {
        if self.broken.is_some() {
            return;
        }
        self.writing = true;
        let written = self
            .output
            .poll_write(cx, &mut self.conn);
        if let Poll::Ready(Err(error)) = written {
            self.broken = Some(error);
            self.stall.clear();
        } else {
            self.writing = false;
        }
    }

    fn is_full(&self) -> bool {
        self.output.len() >= self.shared.settings.high_water
    }

    /// It has left, and nobody waits for anything on it.
    fn is_done(&self) -> bool {
        self.leaving && self.flight.is_idle() && (!P::HAS_IDS || self.output.is_clear())
    }

    /// It has served, and nothing is under way: since when the peer may have gone, nobody knows.
    fn is_quiet(&self) -> bool {
        self.used && self.flight.is_idle() && self.output.is_clear()
    }

    /// Encodes what there is room for; where it was quiet, only once somebody `is_sure` that the peer is there.
    fn take(&mut self, cx: &mut Context<'_>, is_sure: bool) -> Next {
        let mut clock = None;
        loop {
            let is_unsure = !is_sure && self.is_quiet();
            let may = !self.leaving && !self.is_full() && !is_unsure;
            let id = may.then(|| self.flight.next_id());
            let (told, todo) = lock(&self.shared.table).hear(self.link, id, &mut clock, cx);
            self.shared.settle(todo);
            let (Some(id), Some(taken)) = (id, told.taken) else {
                if told.given_up.is_empty() {
                    return match (told.alone, is_unsure && told.has_more) {
                        (true, _) => Next::End,
                        (_, true) => Next::Look,
                        _ => Next::Park,
                    };
                }
                for id in told.given_up {
                    self.give_up(id);
                }
                continue;
            };
            let (key, at) = (taken.key, self.output.queued());
            let out = self.output.begin();
            match self
                .protocol
                .ask(id, taken.left, taken.call, out)
            {
                Ok(()) => {
                    self.output.finish();
                    let reused = self.used;
                    self.owed = true;
                    self.flight.insert(Sent {
                        key,
                        id,
                        at,
                        reused,
                    });
                }
                Err(error) => {
                    self.output.take_back_unfinished();
                    let error = CallError::new(CallCause::Encode(error), Phase::Waiting);
                    let todo = lock(&self.shared.table).refuse(self.link, key, id, error);
                    self.shared.settle(todo);
                }
            }
        }
    }

    /// Nobody waits for the answer to `id` any more.
    fn give_up(&mut self, id: u64) {
        if !self.flight.give_up(id) {
            return;
        }
        if P::HAS_IDS {
            match self
                .protocol
                .cancel(id, self.output.begin())
            {
                Ok(()) => self.output.finish(),
                Err(_) => self.output.take_back_unfinished(),
            }
        } else {
            // Nobody shall wait behind an answer that nobody waits for.
            self.leave(&End::Idle);
        }
    }

    fn leave(&mut self, end: &End) {
        if !self.leaving {
            self.leaving = true;
            self.retire(end);
        }
    }

    pub(super) fn retire(&self, end: &End) {
        let settings = &self.shared.settings;
        let todo = lock(&self.shared.table).retire(self.link, end, now(), settings);
        self.shared.settle(todo);
    }

    /// Hands out what has come.
    fn hear(&mut self, ended: bool) -> Result<(), Disconnected> {
        let result = loop {
            match self
                .protocol
                .hear(&mut self.input.bytes, ended)
            {
                Ok(None) => break Ok(()),
                Ok(Some(Heard::Answer { id, answer })) => match self.flight.answered(id) {
                    Found::One(sent) => self.heard.push(Answer {
                        key: sent.key,
                        id: sent.id,
                        answer,
                    }),
                    Found::Late => self.shared.metrics.late.increment(1),
                    Found::Never => break Err(Unasked::new(id).into()),
                },
                Ok(Some(Heard::Leaving { last })) => {
                    self.hand_out();
                    let not_taken = self.flight.take_above(last);
                    // A peer that has begun with something is one that can be called again.
                    let in_vain = !self.used && self.flight.is_idle();
                    self.leave(&End::Leaving { fruitless: in_vain });
                    let error: SharedError = Arc::new(Disconnected::Ended);
                    self.give_back(not_taken, &error, |_| (true, Fate::Moves { in_vain }));
                }
                Ok(Some(Heard::Ending(failure))) => {
                    self.hand_out();
                    let fruitless = !self.used;
                    self.leave(&End::Leaving { fruitless });
                    self.told = Some(failure);
                }
                Err(error) => break Err(error),
            }
            if self.heard.len() >= AT_ONCE {
                self.hand_out();
            }
        };
        self.hand_out();
        result.map_err(|error: BoxError| Disconnected::Protocol(error))
    }

    fn hand_out(&mut self) {
        if self.heard.is_empty() {
            return;
        }
        self.used = true;
        let shared = &self.shared;
        let answers = self.heard.drain(..);
        let (late, todo) = lock(&shared.table).answer(self.link, answers);
        shared.metrics.late.increment(late);
        shared.settle(todo);
    }

    /// The stream has ended.
    fn ended(&mut self) -> Result<(), Disconnected> {
        self.hear(true)?;
        // An end that nobody waits behind is one in order.
        if self.flight.is_idle() && self.told.is_none() {
            return Ok(());
        }
        Err(self.end())
    }

    /// Why it is over, where reading says nothing else.
    fn end(&mut self) -> Disconnected {
        let broken = self.broken.take();
        broken.map_or(Disconnected::Ended, Disconnected::Io)
    }

    /// Ready when the peer has taken nothing for too long. One that says nothing gets no more calls.
    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Poll<Disconnected> {
        if self.broken.is_some() {
            ready!(
                self.stall
                    .poll(self.output.written(), HEAR_OUT, cx)
            );
            return Poll::Ready(self.end());
        }
        let settings = &self.shared.settings;
        let (silence, write_stall) = (settings.silence, settings.write_stall);
        // Also of a call that nobody waits for any more an answer was due: else short deadlines would hide a dead peer.
        if !self.owed || self.leaving {
            self.silence.break_off();
        } else if self
            .silence
            .poll(silence, cx)
            .is_ready()
        {
            tracing::debug!(conn = %self.conn.info().id(), "peer says nothing, client goes elsewhere");
            self.leave(&End::Leaving { fruitless: false });
        }
        if self.output.is_clear() {
            self.stall.clear();
            return Poll::Pending;
        }
        self.stall
            .poll(self.output.written(), write_stall, cx)
            .map(|()| Disconnected::Stalled(write_stall))
    }
}

/// What there is to do for a connection once it has taken what it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// To wait.
    Park,
    /// To make sure that the peer is there: a call waits for that.
    Look,
    /// To end: nobody calls, and nobody will.
    End,
}

/// Nothing has arrived; or that could not be found out.
fn is_nothing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// After so many reads the connection lets others have the thread.
const READS_A_POLL: u32 = 16;

/// Answers that are handed out in one go.
const AT_ONCE: usize = 64;
