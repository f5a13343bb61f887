//! What becomes of requests: the reply is encoded, or why there is none.

use tower_service::Service;

use crate::{
    base::{error::BoxError, io::Io},
    middleware::frame::{
        FrameError, Request,
        driver::Driver,
        protocol::{Replies, Requests},
        seats::Outcome,
    },
};

impl<I, S, P> Driver<I, S, P>
where
    I: Io,
    S: Service<Request<<P as Requests>::Message>>,
    S::Error: Into<BoxError>,
    P: Requests + Replies<S::Response>,
{
    /// Puts an outcome that is in the metrics already behind what is in flight, if it has to be in its place.
    pub(super) fn place(&mut self, id: P::Id, outcome: Outcome<S::Response>) {
        if self.flight.holds_back() {
            self.flight.push_counted(id, outcome);
        } else {
            self.settle(id, outcome);
        }
    }

    /// What became of a request: the one that is next in order, or with ids any.
    pub(super) fn settle(&mut self, id: P::Id, outcome: Outcome<S::Response>) {
        match outcome {
            Ok(Some(reply)) => self.encode(id, reply),
            Ok(None) => {}
            Err(error) if P::BY_ID => self.tell(id, &error),
            Err(error) => self.fail(error),
        }
    }

    #[inline]
    pub(super) fn encode(&mut self, id: P::Id, reply: S::Response) {
        let buffer = self.output.begin();
        match self.protocol.reply(id, reply, buffer) {
            Ok(()) => self.output.finish(),
            Err(error) => self.not_encoded(id, error.into()),
        }
        if self.output.len() >= self.shared.framing.high_water {
            self.congested = true;
        }
    }

    #[cold]
    #[inline(never)]
    fn not_encoded(&mut self, id: P::Id, error: BoxError) {
        self.output.take_back_unfinished();
        let error = FrameError::Encode(error);
        if P::BY_ID {
            self.tell(id, &error);
        } else {
            self.fail(error);
        }
    }

    /// Tells by id why there is no reply.
    pub(super) fn tell(&mut self, id: P::Id, error: &FrameError) {
        let buffer = self.output.begin();
        match self.protocol.fail(id, error, buffer) {
            Ok(()) => self.output.finish(),
            Err(error) => {
                self.output.take_back_unfinished();
                // Nobody is told of this one.
                self.fail_behind(FrameError::Encode(error.into()));
            }
        }
        self.congested |= self.output.len() >= self.shared.framing.high_water;
    }
}
