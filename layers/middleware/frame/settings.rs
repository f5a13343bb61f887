use std::time::Duration;

use crate::{
    base::{error::ConfigError, time::FOREVER},
    conn::{Ambient, Safeguard},
};

/// How a [`FrameLayer`](crate::frame::FrameLayer) treats requests; each setter says what it bounds.
#[derive(Debug, Clone)]
pub struct Framing {
    pub(super) depth: usize,
    pub(super) multiplexed: bool,
    pub(super) request: Duration,
    pub(super) handler: Duration,
    pub(super) reply: Duration,
    pub(super) high_water: usize,
    pub(super) max_buffered: usize,
    pub(super) refusal_cost: u32,
    pub(super) refusal_window: Duration,
    pub(super) service: String,
    pub(super) dry_run: bool,
}

impl Default for Framing {
    fn default() -> Self {
        Self {
            depth: 1,
            multiplexed: false,
            request: REQUEST,
            handler: HANDLER,
            reply: REPLY,
            high_water: HIGH_WATER,
            max_buffered: MAX_BUFFERED,
            refusal_cost: REFUSAL_COST,
            refusal_window: REFUSAL_WINDOW,
            service: String::new(),
            dry_run: false,
        }
    }
}

impl Framing {
    /// One request at a time: the next is not decoded before the reply to the last is made. The default.
    #[must_use]
    pub fn serial(self) -> Self {
        self.pipelined(1)
    }

    /// Up to `depth` requests of a connection are worked on at once; replies go out in the order of their
    /// requests. Further requests stay undecoded, and in the end unread, so that TCP holds the peer back.
    #[must_use]
    pub fn pipelined(mut self, depth: usize) -> Self {
        self.depth = depth;
        self.multiplexed = false;
        self
    }

    /// Up to `depth` requests of a connection are worked on at once; a reply goes out as soon as it is there, whatever
    /// is before it. Requires a codec whose requests have ids: see [`RpcLayer`](crate::frame::RpcLayer).
    ///
    /// With `depth` in flight one more request is taken in and waits, so that a cancel behind those in flight is seen;
    /// then nothing more is read, and TCP holds the peer back. A peer that keeps to `depth` thus never waits for it.
    #[must_use]
    pub fn multiplexed(mut self, depth: usize) -> Self {
        self.depth = depth;
        self.multiplexed = true;
        self
    }

    /// A request must be complete this long after its first byte, however slowly it drips. Begins when the
    /// connection first waits for the rest of it; nothing resets it. Default: 30 s.
    #[must_use]
    pub fn request_deadline(mut self, limit: Duration) -> Self {
        self.request = limit;
        self
    }

    /// A handler must answer this long after it was called. Begins when it first waits; the handler itself
    /// can [extend](crate::ConnInfo::extend) it. Default: 30 s.
    #[must_use]
    pub fn handler_deadline(mut self, limit: Duration) -> Self {
        self.handler = limit;
        self
    }

    /// Replies must be written this long after they began to wait for the peer. Begins when a write first
    /// leaves something over, and again for what was queued since once that much is written. Default: 30 s.
    #[must_use]
    pub fn reply_deadline(mut self, limit: Duration) -> Self {
        self.reply = limit;
        self
    }

    /// While more than this many bytes of replies are queued, nothing is decoded, called or read; it goes on
    /// at half of it. A connection thus queues this much and one reply at the most. Default: 64 KiB.
    #[must_use]
    pub fn high_water(mut self, bytes: usize) -> Self {
        self.high_water = bytes;
        self
    }

    /// The most bytes a frame may take up before it is decoded, whatever the codec allows. A codec with a
    /// larger limit of its own needs a larger one here. Default: 8 MiB and its header.
    #[must_use]
    pub fn max_buffered(mut self, bytes: usize) -> Self {
        self.max_buffered = bytes;
        self
    }

    /// A request whose caller has no time left is refused before it is begun, but only as often as requests of the
    /// same connection are served: a refusal costs `served` of them, which expire after `window`. When that is used up
    /// such a request is served as if it had no limit of its own, so that a peer whose clock is wrong, or its sums, does
    /// not have everything refused. Only for codecs that tell the time left. Default: 5, and 10 s, as Finagle has it.
    ///
    /// What was served since the last refusal is taken to have come evenly, so that nobody reads a clock for it.
    #[must_use]
    pub fn refusal_budget(mut self, served: u32, window: Duration) -> Self {
        self.refusal_cost = served;
        self.refusal_window = window;
        self
    }

    /// The `service` label of the metrics. Default: empty.
    #[must_use]
    pub fn service(mut self, name: impl Into<String>) -> Self {
        self.service = name.into();
        self
    }

    /// Only counts requests, handlers and replies that are late, once each and by the same reasons, in
    /// `tower_net_dry_run_total`; a handler then sees no [`Deadline`](crate::Deadline) of ours. Default: off.
    ///
    /// What bounds memory stays as it is, whatever the dry run says: the codec's longest frame,
    /// [`max_buffered`](Self::max_buffered), [`high_water`](Self::high_water) and the
    /// [depth](Self::pipelined). Without them there would be no longest, and one peer could take it all.
    #[must_use]
    pub fn dry_run(mut self, on: bool) -> Self {
        self.dry_run = on;
        self
    }

    /// The same, with room for a frame of that payload.
    pub(super) fn room_for(mut self, max_payload: usize) -> Self {
        self.max_buffered = self
            .max_buffered
            .max(max_payload.saturating_add(1024));
        self
    }

    /// When a handler that is called now is due.
    #[inline]
    pub(super) fn handler_due(&self) -> Ambient {
        if self.dry_run {
            Ambient::Spared(self.handler)
        } else {
            Ambient::Fresh(self.handler)
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let depth = if self.multiplexed {
            "multiplexed"
        } else {
            "pipelined"
        };
        for (setting, size) in [
            (depth, self.depth),
            ("high_water", self.high_water),
            ("max_buffered", self.max_buffered),
            ("refusal_budget", self.refusal_cost as usize),
        ] {
            if size == 0 {
                return Err(ConfigError::zero(setting));
            }
        }
        if u32::try_from(self.high_water).is_err() {
            return Err(ConfigError::new("high_water", "must be below 4 GiB"));
        }
        for (setting, limit) in [
            ("request_deadline", self.request),
            ("handler_deadline", self.handler),
            ("reply_deadline", self.reply),
            ("refusal_budget", self.refusal_window),
        ] {
            if limit.is_zero() {
                return Err(ConfigError::zero(setting));
            }
        }
        Ok(())
    }

    /// What it keeps a connection from, for the checklist.
    pub(super) fn safeguards(&self) -> impl Iterator<Item = Safeguard> {
        // In a dry run they keep nobody from anything.
        let timed = |limit| if self.dry_run { FOREVER } else { limit };
        [
            // Whatever the codec allows, no more than `max_buffered` is taken.
            (Duration::ZERO, Safeguard::FrameCap),
            (timed(self.handler), Safeguard::Handler),
            (timed(self.reply), Safeguard::Reply),
            (timed(self.request), Safeguard::Request),
        ]
        .into_iter()
        .filter(|(limit, _)| *limit < FOREVER)
        .map(|(_, safeguard)| safeguard)
    }

    /// Where reading resumes: far enough below the high-water mark to not flap at each write.
    pub(super) fn low_water(&self) -> usize {
        self.high_water / 2
    }
}

/// A megabyte over a bad mobile line, with room.
const REQUEST: Duration = Duration::from_secs(30);

/// What callers commonly wait before they give up themselves.
const HANDLER: Duration = Duration::from_secs(30);

/// As the write stall of `deadline`, from which it differs in that a trickle does not reset it.
const REPLY: Duration = Duration::from_secs(30);

/// One large write: more would only move bytes from the kernel's account to ours.
const HIGH_WATER: usize = 64 * 1024;

/// As tokio-util's own default, and a header.
const MAX_BUFFERED: usize = (8 << 20) + 1024;

/// A fifth of what is served, as Finagle has it.
const REFUSAL_COST: u32 = 5;

/// As Finagle has it.
const REFUSAL_WINDOW: Duration = Duration::from_secs(10);
