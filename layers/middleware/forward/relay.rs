//! One tunnel, from the dial to its end.

use std::{
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::{
    base::{
        error::BoxError,
        io::{Io, Linger, Lingered, broken, has_unread, linger},
        time::{FOREVER, Timer},
    },
    conn::{CloseReason, Conn, Elapsed, reset_on_drop, turn::Turn},
    middleware::forward::{
        Shared, Side, Tunnel, TunnelError,
        dial::Dial,
        direction::{Broken, Direction},
        silence::{ASK, ASK_AFTER, Silence, WAITS, Wait},
    },
};

/// What a connection is at. The dial and the last goodbye are boxed: most of its life it is neither.
#[expect(
    clippy::large_enum_variant,
    reason = "it is the large one for nearly all of its life"
)]
pub(super) enum Stage<F, I: Io, O: Io> {
    Connecting(Dial<F, I>),
    Relaying(Relay<I, O>),
    Lingering(Pin<Box<dyn Future<Output = std::io::Result<Lingered>> + Send>>),
    Over,
}

impl<F, I: Io, O: Io> Stage<F, I, O> {
    pub(super) fn connecting(
        client: Conn<I>,
        shared: &Shared,
        connect: impl FnOnce() -> F,
    ) -> Self {
        Self::Connecting(Dial::begin(client, shared, connect))
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Connecting(_) => "Connecting",
            Self::Relaying(_) => "Relaying",
            Self::Lingering(_) => "Lingering",
            Self::Over => "Over",
        }
    }
}

impl<F, I, O, E> Stage<F, I, O>
where
    F: Future<Output = Result<Conn<O>, E>>,
    E: Into<BoxError>,
    I: Io,
    O: Io,
{
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Timer>,
        shared: &Arc<Shared>,
    ) -> Poll<Result<(), BoxError>> {
        loop {
            match self {
                Self::Connecting(dial) => {
                    let dialled = ready!(dial.poll(cx, timer.as_mut(), shared));
                    let Self::Connecting(dial) = mem::replace(self, Self::Over) else {
                        unreachable!("looked at a moment ago");
                    };
                    *self = Self::Relaying(dial.end(dialled, shared)?);
                }
                Self::Relaying(relay) => {
                    let end = ready!(relay.poll(cx, timer.as_mut()));
                    let Self::Relaying(relay) = mem::replace(self, Self::Over) else {
                        unreachable!("looked at a moment ago");
                    };
                    if let End::Answered = end {
                        let client = relay.end(end)?;
                        // A close with unread input would be a reset, and take the answer with it.
                        *self = Self::Lingering(Box::pin(linger(client, Linger::default())));
                    } else {
                        return Poll::Ready(relay.end(end).map(drop));
                    }
                }
                Self::Lingering(lingering) => {
                    // The answer is sent; who does not wait for the end of it has nothing to lose.
                    let _lingered = ready!(lingering.as_mut().poll(cx));
                    *self = Self::Over;
                    return Poll::Ready(Ok(()));
                }
                Self::Over => panic!("polled again after it was ready"),
            }
        }
    }
}

/// Two streams and the two ways between them.
pub(super) struct Relay<I: Io, O: Io> {
    /// `None` once it goes on without the tunnel.
    client: Option<Conn<I>>,
    upstream: Conn<O>,
    up: Direction,
    down: Direction,
    silence: Silence,
    /// How often sides that nobody hears from were asked.
    asked: u64,
    tunnel: Tunnel,
    shared: Arc<Shared>,
    /// Who can be written to no more, while there may be something to read from it.
    broken: Option<TunnelError>,
    /// What the metrics have been told.
    told: (u64, u64),
    /// There is nothing left that a close could lose.
    in_order: bool,
}

/// How a tunnel ends.
pub(super) enum End {
    /// Both sides have, in order.
    InOrder,
    /// The upstream has answered in order and takes no more, of what the client may still be sending.
    Answered,
    Broken(TunnelError),
    Silent(CloseReason, Duration),
    /// It was silent, and makes room.
    Reclaimed,
}

impl<I: Io, O: Io> Relay<I, O> {
    pub(super) fn new(
        client: Conn<I>,
        upstream: Conn<O>,
        connected_in: Duration,
        shared: Arc<Shared>,
    ) -> Self {
        let info = upstream.info();
        let tunnel = Tunnel::new(info.wire_peer().clone(), connected_in);
        client.info().facts.add(tunnel.clone());
        tracing::debug!(
            parent: client.info().span(),
            conn = %client.info().id(),
            upstream = %tunnel.upstream(),
            "tunnel opened",
        );
        Self {
            up: Direction::new(shared.splices, shared.wants_goodbye),
            down: Direction::new(shared.splices, shared.wants_goodbye),
            client: Some(client),
            upstream,
            silence: Silence::default(),
            asked: 0,
            tunnel,
            shared,
            broken: None,
            told: (0, 0),
            in_order: false,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Timer>) -> Poll<End> {
        let info = self.client.as_ref().map(Conn::info);
        let info = Arc::clone(info.expect("the tunnel has not ended"));
        let _turn = Turn::take(cx, &info);
        for _ in 0..ROUNDS {
            let client = self
                .client
                .as_mut()
                .expect("the tunnel has not ended");
            let up = self
                .up
                .poll_step(cx, client, &mut self.upstream);
            let down = self
                .down
                .poll_step(cx, &mut self.upstream, client);
            let waits = up.is_pending() && down.is_pending();
            self.note();
            for (source, sink, stepped) in [
                (Side::Client, Side::Upstream, up),
                (Side::Upstream, Side::Client, down),
            ] {
                let Poll::Ready(Err(broken)) = stepped else {
                    continue;
                };
                if let Some(end) = self.breaks(source, sink, broken) {
                    return Poll::Ready(end);
                }
            }
            if self.up.is_over() && self.down.is_over()
                || self.up.is_cut_short()
                || self.down.is_cut_short()
            {
                return Poll::Ready(self.all_over());
            }
            if waits {
                if self.makes_room() {
                    return Poll::Ready(End::Reclaimed);
                }
                self.tell();
                if let Some(end) = ready!(self.poll_silence(cx, timer.as_mut())) {
                    return Poll::Ready(end);
                }
            }
        }
        // There is more, after whoever else has something to do on this thread.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// A stream broke. The tunnel ends with it, unless there may be something to read from whom we cannot write to.
    fn breaks(&mut self, source: Side, sink: Side, broken: Broken) -> Option<End> {
        match broken {
            Broken::Source(error) => {
                self.tunnel.ends(source);
                let error = self
                    .broken
                    .take()
                    .unwrap_or_else(|| TunnelError::new(source, error));
                Some(End::Broken(error))
            }
            Broken::Sink(error) => {
                self.tunnel.ends(sink);
                let (to, from) = match sink {
                    Side::Client => (&mut self.down, &mut self.up),
                    Side::Upstream => (&mut self.up, &mut self.down),
                };
                if !to.is_over() {
                    to.fail();
                }
                // A pipe that is broken follows an end that was one; anything else the kernel says but once.
                if error.kind() != io::ErrorKind::BrokenPipe {
                    from.doubt(error.kind());
                }
                self.broken
                    .get_or_insert_with(|| TunnelError::new(sink, error));
                None
            }
        }
    }

    /// Nothing moves any more, either way, or what still might is cut short.
    fn all_over(&mut self) -> End {
        match self.broken.take() {
            None => End::InOrder,
            Some(error) if error.side() == Side::Upstream && self.down.has_ended() => End::Answered,
            Some(error) => End::Broken(error),
        }
    }

    fn note(&self) {
        self.tunnel.moved(
            self.up.written(),
            self.down.written(),
            self.up.spliced() + self.down.spliced(),
        );
        // A side that has not been asked meanwhile cannot have ended first.
        if self.up.has_seen_end() {
            self.tunnel.ends(Side::Client);
        }
        if self.down.has_seen_end() {
            self.tunnel.ends(Side::Upstream);
        }
    }

    /// Tells the metrics what has been moved since they were told last.
    fn tell(&mut self) {
        let spliced = self.up.spliced() + self.down.spliced();
        let copied = self.up.written() + self.down.written() - spliced;
        let metrics = &self.shared.metrics;
        let (told_spliced, told_copied) = mem::replace(&mut self.told, (spliced, copied));
        if spliced > told_spliced {
            metrics
                .spliced
                .increment(spliced - told_spliced);
        }
        if copied > told_copied {
            metrics
                .copied
                .increment(copied - told_copied);
        }
    }

    /// Ready once nothing has moved for too long, or without an end as soon as there is something else to see to.
    fn poll_silence(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Timer>,
    ) -> Poll<Option<End>> {
        loop {
            let waits = self.waits();
            let timeouts = &self.shared.timeouts;
            let over = ready!(
                self.silence
                    .poll(cx, timer.as_mut(), waits, timeouts)
            );
            let (reason, limit) = match over {
                ASK => {
                    self.asked += 1;
                    if self.ask() {
                        return Poll::Ready(None);
                    }
                    continue;
                }
                0 if self.is_half_closed() => (CloseReason::HalfClose, timeouts.half_close),
                0 => (CloseReason::Idle, timeouts.idle),
                _ => (CloseReason::WriteStall, timeouts.write_stall),
            };
            let Some(spared) = &self.shared.spared else {
                return Poll::Ready(Some(End::Silent(reason, limit)));
            };
            spared.count(reason, 1);
            self.silence.spare(over);
        }
    }

    fn waits(&self) -> [Wait; WAITS] {
        let timeouts = &self.shared.timeouts;
        let silent_for = if self.is_half_closed() {
            timeouts.half_close
        } else {
            timeouts.idle
        };
        let moved = self.up.progress() + self.down.progress();
        let unheard = Side::BOTH
            .iter()
            .any(|side| self.is_unheard(*side));
        let stall = |direction: &Direction| {
            let at = direction.blocked_at()?;
            Some((at, timeouts.write_stall))
        };
        [
            Some((moved, silent_for)),
            stall(&self.up),
            stall(&self.down),
            unheard.then_some((self.asked, ASK_AFTER)),
        ]
        .map(|wait| wait.filter(|(_, limit)| *limit < FOREVER))
    }

    /// Whether a side might break and nobody would hear of it: it is not read from, since what it says does not go on or it
    /// has said all, and nothing waits to be written to it.
    fn is_unheard(&self, side: Side) -> bool {
        let (from, to, has_socket) = match side {
            Side::Client => (
                &self.up,
                &self.down,
                self.client
                    .as_ref()
                    .is_some_and(|client| client.socket().is_some()),
            ),
            Side::Upstream => (&self.down, &self.up, self.upstream.socket().is_some()),
        };
        has_socket && !from.listens() && to.blocked_at().is_none()
    }

    /// Asks those that nobody hears from; whether one of them has broken.
    fn ask(&mut self) -> bool {
        let mut any = false;
        for side in Side::BOTH {
            if !self.is_unheard(side) {
                continue;
            }
            let (to, broken) = match side {
                Side::Client => (&self.down, self.client.as_ref().and_then(broken)),
                Side::Upstream => (&self.up, broken(&self.upstream)),
            };
            // Once we have ended too, it is gone in order.
            let expected =
                |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe && to.is_over();
            let Some(error) = broken.filter(|error| !expected(error)) else {
                continue;
            };
            // As it would have been told to a write.
            self.breaks(side.other(), side, Broken::Sink(error));
            any = true;
        }
        any
    }

    /// Whether the process is short of something, and it is one of those that are told to leave because they do nothing.
    fn makes_room(&self) -> bool {
        let client = self.client.as_ref();
        let leaving = client.and_then(|client| client.info().ending.leaving());
        leaving == Some(CloseReason::Reclaimed)
            && self.up.blocked_at().is_none()
            && self.down.blocked_at().is_none()
            // The runtime, which may be behind just then, need not have told yet.
            && !client.is_some_and(has_unread)
            && !has_unread(&self.upstream)
    }

    /// Whether one side has said all it had to say, or can hear no more.
    fn is_half_closed(&self) -> bool {
        self.broken.is_some() || self.up.has_seen_end() || self.down.has_seen_end()
    }

    /// Closes both sides as the end asks for, but for a client that is still to be said goodbye.
    fn end(mut self, end: End) -> Result<Conn<I>, BoxError> {
        let client = self.client.take().expect("ended once");
        let info = Arc::clone(client.info());
        tracing::debug!(
            parent: info.span(),
            conn = %info.id(),
            upstream = %self.tunnel.upstream(),
            to_upstream = self.tunnel.to_upstream(),
            to_client = self.tunnel.to_client(),
            spliced = self.tunnel.spliced(),
            ended_first = self.tunnel.ended_first().map(Side::label),
            "tunnel ended",
        );
        let error: BoxError = match end {
            End::InOrder | End::Answered | End::Reclaimed => {
                self.in_order = true;
                info.end_with(match (end, self.tunnel.ended_first()) {
                    (End::Reclaimed, _) => CloseReason::Reclaimed,
                    (End::InOrder, Some(Side::Client)) => CloseReason::Peer,
                    _ => CloseReason::Served,
                });
                return Ok(client);
            }
            End::Silent(reason, limit) => {
                info.end_with(reason);
                self.upstream.info().end_with(reason);
                self.in_order = reason == CloseReason::Idle;
                Elapsed::new(reason, Some(limit)).into()
            }
            End::Broken(error) => {
                info.end_with(match error.side() {
                    Side::Client => CloseReason::Reset,
                    Side::Upstream => {
                        self.upstream
                            .info()
                            .end_with(CloseReason::Reset);
                        CloseReason::Upstream
                    }
                });
                // What it had to say is said, and may still be on its way: a reset would take it back.
                self.in_order = error.side() == Side::Client && self.up.has_ended();
                error.into()
            }
        };
        if !self.in_order {
            reset_on_drop(client.io(), &info);
        }
        Err(error)
    }
}

/// A tunnel that does not end in order pretends no such end to anybody.
impl<I: Io, O: Io> Drop for Relay<I, O> {
    fn drop(&mut self) {
        self.tell();
        if self.in_order {
            return;
        }
        let info = self.upstream.info();
        info.end_with(CloseReason::Aborted);
        reset_on_drop(self.upstream.io(), info);
        if let Some(client) = &self.client {
            reset_on_drop(client.io(), client.info());
        }
    }
}

/// Turns of each direction before others have theirs. In one a direction moves what fits a buffer or a pipe.
const ROUNDS: usize = 8;
