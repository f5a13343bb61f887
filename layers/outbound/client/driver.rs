//! One connection of a client, as a state machine: calls out, answers in, no task and no channel a call.
//!
//! # Invariants
//!
//! - Before it parks, every call that there was room for has been encoded and offered to the stream, in one write.
//! - It looks into the table with its waker left there, so that whatever is put in afterwards wakes it.
//! - Where writing has failed it takes no more calls, and reads on: what the peer answered before it went may still be
//!   on its way. The read side ends soon after, or is given up after [`HEAR_OUT`].
//! - Memory: what one read brings, one partial frame, `high_water` bytes and one call, a cancel for each call in flight.

use std::{
    io::{Error, ErrorKind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{io::AsyncWrite, time::Instant};

use crate::{
    base::{error::BoxError, io::Io, time::now},
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
            table::{Answer, End, Fate, Lost, lock},
            timers::{HEAR_OUT, Silence, Stall},
        },
    },
};

pub(super) struct Driver<I, P, Q, R> {
    conn: Conn<I>,
    protocol: P,
    shared: Arc<Shared<Q, R>>,
    link: usize,
    input: Input,
    output: Output,
    flight: Flight,
    heard: Vec<Answer<R>>,
    /// A reply has come.
    used: bool,
    /// A call was sent, and nothing was heard since.
    owed: bool,
    /// It takes no more calls.
    leaving: bool,
    /// Why the peer ends the connection, if it said so.
    told: Option<RpcFailure>,
    /// Why nothing can be written any more.
    broken: Option<Error>,
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
        let (mut clock, mut reads) = (None, 0);
        loop {
            let alone = self.broken.is_none() && self.take(cx, &mut clock);
            let was_full = self.is_full();
            self.write(cx);
            if was_full && !self.is_full() {
                continue;
            }
            if alone && self.output.is_clear() || self.is_done() {
                return Poll::Ready(Ok(()));
            }
            if reads == READS_A_POLL {
                cx.waker().wake_by_ref();
                break;
            }
            match self.input.poll_read(cx, &mut self.conn) {
                Poll::Ready(Ok(0)) => return Poll::Ready(self.ended()),
                Poll::Ready(Ok(_)) => {
                    self.owed = false;
                    self.silence.break_off();
                    self.hear(false)?;
                }
                Poll::Ready(Err(error)) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Poll::Ready(self.ended());
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Disconnected::Io(error))),
                Poll::Pending => break,
            }
            reads += 1;
        }
        if self.broken.is_some() {
            let fruitless = !self.used;
            self.leave(&End::Leaving { fruitless });
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
        let written = self
            .output
            .poll_write(cx, &mut self.conn);
        if let Poll::Ready(Err(error)) = written {
            self.broken = Some(error);
            self.stall.clear();
        }
    }

    fn is_full(&self) -> bool {
        self.output.len() >= self.shared.settings.high_water
    }

    /// It has left, and nobody waits for anything on it.
    fn is_done(&self) -> bool {
        self.leaving && self.flight.is_idle() && (!P::HAS_IDS || self.output.is_clear())
    }

    /// Encodes what there is room for. Whether nobody calls, and nobody will.
    fn take(&mut self, cx: &mut Context<'_>, clock: &mut Option<Instant>) -> bool {
        loop {
            let may = !self.leaving && !self.is_full();
            let id = may.then(|| self.flight.next_id());
            let (told, todo) = lock(&self.shared.table).hear(self.link, id, clock, cx);
            self.shared.settle(todo);
            let (Some(id), Some(taken)) = (id, told.taken) else {
                if told.given_up.is_empty() {
                    return told.alone;
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

    fn retire(&self, end: &End) {
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
                        reused: sent.reused,
                    }),
                    Found::Late => self.shared.metrics.late.increment(1),
                    Found::Never => break Err(Unasked::new(id).into()),
                },
                Ok(Some(Heard::Leaving { last })) => {
                    self.hand_out();
                    let fruitless = !self.used;
                    self.leave(&End::Leaving { fruitless });
                    let not_taken = self.flight.take_above(last);
                    let error: SharedError = Arc::new(Disconnected::Ended);
                    self.give_back(not_taken, &error, |_| (true, Fate::Moves));
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
        let (late, todo) = lock(&shared.table).answer(self.link, answers, || shared.may_retry());
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

    /// The connection is lost, and with it what is in flight: it fails, or is sent once more.
    fn lose(mut self, disconnected: Disconnected) {
        let disconnected = match (self.told.take(), disconnected) {
            (Some(failure), Disconnected::Ended | Disconnected::Io(_)) => {
                Disconnected::Told(failure)
            }
            (_, disconnected) => disconnected,
        };
        tracing::debug!(conn = %self.conn.info().id(), error = %disconnected, "client connection lost");
        let reason = match disconnected {
            Disconnected::Ended | Disconnected::Told(_) => CloseReason::Peer,
            Disconnected::Protocol(_) => CloseReason::Protocol,
            Disconnected::Stalled(_) => CloseReason::WriteStall,
            Disconnected::Io(_) | Disconnected::Aborted => CloseReason::Reset,
        };
        self.conn.info().end_with(reason);
        let error: SharedError = Arc::new(disconnected);
        self.retire(&End::Lost {
            error: SharedError::clone(&error),
            fruitless: !self.used,
        });
        let (lost, written) = (self.flight.take_above(0), self.output.written());
        self.give_back(lost, &error, |sent| {
            let unsent = sent.at >= written;
            let fate = match unsent && sent.reused {
                true => Fate::Again,
                false => Fate::Over,
            };
            (unsent, fate)
        });
    }

    /// Calls that this connection will not answer; `fate` says whether nobody has begun with one, and what may become of
    /// it.
    fn give_back(
        &self,
        calls: Vec<Sent>,
        error: &SharedError,
        fate: impl Fn(&Sent) -> (bool, Fate),
    ) {
        let lost = |sent: &Sent| {
            let (unsent, fate) = fate(sent);
            Lost {
                key: sent.key,
                id: sent.id,
                unsent,
                fate,
            }
        };
        let lost: Vec<_> = calls.iter().map(lost).collect();
        let shared = &self.shared;
        let error = || SharedError::clone(error);
        let may_retry = || shared.may_retry();
        let todo = lock(&shared.table).lose(self.link, &lost, error, may_retry);
        shared.settle(todo);
    }

    /// Ends the connection in order, which a peer has only so long to let happen.
    async fn close(&mut self) {
        let conn = &mut self.conn;
        let shutdown = std::future::poll_fn(|cx| Pin::new(&mut *conn).poll_shutdown(cx));
        // Whatever becomes of it, it is dropped now.
        let _ended = tokio::time::timeout(CLOSE, shutdown).await;
    }
}

impl<I, P, Q, R> Drop for Driver<I, P, Q, R> {
    fn drop(&mut self) {
        self.shared
            .metrics
            .connections
            .decrement(1.0);
        // In order nothing is left by now; else the task was dropped where it stood.
        let lost = self.flight.take_above(0);
        if lost.is_empty() {
            return;
        }
        let lost: Vec<_> = lost
            .iter()
            .map(|sent| Lost {
                key: sent.key,
                id: sent.id,
                unsent: sent.at >= self.output.written(),
                fate: Fate::Over,
            })
            .collect();
        let error: SharedError = Arc::new(Disconnected::Aborted);
        let error = || SharedError::clone(&error);
        let todo = lock(&self.shared.table).lose(self.link, &lost, error, || false);
        self.shared.settle(todo);
    }
}

/// After so many reads the connection lets others have the thread.
const READS_A_POLL: u32 = 16;

/// Answers that are handed out in one go.
const AT_ONCE: usize = 64;

/// For a goodbye to be taken.
const CLOSE: Duration = Duration::from_secs(1);
