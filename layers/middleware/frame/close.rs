//! How a framed connection ends: in order with a last word, or at once.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, find},
        io::{Io, Linger, linger},
    },
    conn::{CloseReason, Conn, Elapsed, reset_on_drop},
    middleware::frame::{
        FrameError, Request, RpcFailure,
        buffers::Output,
        driver::{Driver, Ending},
        protocol::{Replies, Requests},
    },
};

impl<I, S, P> Driver<I, S, P>
where
    I: Io,
    S: Service<Request<<P as Requests>::Message>>,
    S::Error: Into<BoxError>,
    P: Requests + Replies<S::Response>,
{
    /// The request that is next in order has failed: nothing behind it is answered any more.
    pub(super) fn fail(&mut self, error: FrameError) {
        self.drop_flight();
        // Nor is what went wrong behind it what the connection ends for.
        self.ending = None;
        self.fail_behind(error);
    }

    /// Something behind all that is in flight has failed: what is before it is finished first.
    pub(super) fn fail_behind(&mut self, error: FrameError) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Box::new(Ending {
            reason: error.reason(),
            last: self.protocol.in_order(&error),
            error: Some(error),
            untold: P::BY_ID,
            lingers: true,
        }));
        if P::BY_ID {
            self.turn_waiting_away(|_| RpcFailure::leaving());
        }
        self.waiting = None;
        self.say_leaving();
    }

    /// Nothing more will be taken, and nothing is wrong.
    pub(super) fn end(&mut self, reason: CloseReason, lingers: bool) {
        self.ending = Some(Box::new(Ending {
            reason,
            last: None,
            error: None,
            untold: false,
            // What was said by then must arrive.
            lingers: lingers || P::BY_ID && !self.ended,
        }));
        self.say_leaving();
    }

    /// With ids, a peer is told at once what is the last request that was taken, so that it knows which were not.
    fn say_leaving(&mut self) {
        if !P::BY_ID || self.ended {
            return;
        }
        let buffer = self.output.begin();
        match self.protocol.leave(self.taken, buffer) {
            Ok(()) => self.output.finish(),
            Err(_) => self.output.take_back_unfinished(),
        }
    }

    /// The last reply, behind all others.
    pub(super) fn say_last(&mut self) {
        if !self.flight.is_empty() {
            return;
        }
        let Some(ending) = &mut self.ending else {
            return;
        };
        let (last, untold) = (ending.last.take(), std::mem::take(&mut ending.untold));
        let none = P::Id::default();
        let said = match (last, &ending.error) {
            (Some(last), _) => self
                .protocol
                .reply(none, last, self.output.begin()),
            (None, Some(error)) if untold => self
                .protocol
                .fail(none, error, self.output.begin()),
            _ => return,
        };
        match said {
            Ok(()) => self.output.finish(),
            Err(_) => self.output.take_back_unfinished(),
        }
    }

    /// Everything is said: closes, in order. Only now is the reason certain; until here a peer that takes
    /// nothing could still have been the end of it.
    pub(super) fn close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.report();
        let mut conn = self.conn.take().expect("closed once");
        let lingers = self
            .ending
            .as_ref()
            .is_some_and(|ending| {
                self.info.end_with(ending.reason);
                ending.lingers && !self.ended
            });
        if !lingers
            && Pin::new(&mut conn)
                .poll_shutdown(cx)
                .is_ready()
        {
            return Poll::Ready(self.result());
        }
        self.info.waits.clear_deadlines();
        self.info.waits.busy.set(true);
        let reason = self.info.close_reason();
        let limits = if reason == Some(CloseReason::Request) {
            // A peer that drips is not given its whole time again.
            Linger::default().total(FOR_THE_SLOW)
        } else if self.leaving.is_some() {
            // A drain waits for this one: enough for a reply to arrive, not for a peer to think.
            Linger::default().quiet(WHILE_LEAVING)
        } else {
            Linger::default()
        };
        self.closing = Some(Box::new(Box::pin(async move {
            // A peer that has gone meanwhile has nothing more to lose.
            let _gone = linger(conn, limits).await;
        })));
        self.poll_closing(cx)
    }

    pub(super) fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if let Some(closing) = &mut self.closing {
            ready!(closing.as_mut().as_mut().poll(cx));
        }
        self.closing = None;
        Poll::Ready(self.result())
    }

    fn result(&mut self) -> Result<(), BoxError> {
        let error = self
            .ending
            .take()
            .and_then(|ending| ending.error);
        error.map_or(Ok(()), |error| Err(error.into()))
    }

    /// The stream failed: nobody is left to answer.
    pub(super) fn broken(&mut self, error: io::Error) -> BoxError {
        if find::<Elapsed>(&error).is_none() {
            self.info.end_with(CloseReason::Reset);
        }
        self.abandon();
        FrameError::Io(error).into()
    }

    /// Drops the stream and everything in flight.
    pub(super) fn abandon(&mut self) {
        if let Some(conn) = self.conn.take() {
            self.close_hard(conn);
        }
        self.drop_flight();
        self.closing = None;
    }

    /// Drops every handler where it stands.
    fn drop_flight(&mut self) {
        self.shared
            .metrics
            .dropped(self.flight.len());
        self.flight.clear();
    }

    /// The stream, what was read and not decoded, and what was encoded and not written.
    pub(super) fn into_parts(mut self) -> Option<(Conn<I>, Bytes, Bytes)> {
        let conn = self.conn.take()?;
        let waits = &self.info.waits;
        waits.driven.set(false);
        waits.busy.set(false);
        waits.clear_deadlines();
        let read = std::mem::take(&mut self.input.bytes).freeze();
        let unwritten = std::mem::replace(&mut self.output, Output::new()).into_unwritten();
        Some((conn, read, unwritten))
    }
}

impl<I, S, P> Driver<I, S, P>
where
    I: Io,
    S: Service<Request<<P as Requests>::Message>>,
    P: Requests,
{
    /// Drops the stream; what is unsent is not left to the kernel.
    pub(super) fn close_hard(&self, conn: Conn<I>) {
        if self.info.must_reset() || !self.output.is_clear() {
            reset_on_drop(&conn, &self.info);
        }
    }
}

/// For the last reply to arrive.
const FOR_THE_SLOW: Duration = Duration::from_secs(5);

/// A round trip to the other side of the world, several times over.
const WHILE_LEAVING: Duration = Duration::from_secs(1);
