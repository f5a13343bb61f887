use std::{
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use metrics::Counter;
use tokio::time::Instant;

use super::{
    bucket::{Bucket, Pool},
    rates::Line,
};
use crate::base::time::{Timer, now};

/// One direction of one stream.
#[derive(Debug, Default)]
pub(super) struct Gate {
    bucket: Bucket,
    /// What this stream has of the shared bytes, and where the line is when they are there.
    booked: u64,
    from: u64,
    /// There was something to read when last looked.
    hungry: bool,
    /// The bytes that pass next have been made to wait.
    waited: bool,
    timer: Option<Pin<Box<Timer>>>,
    armed: Option<Instant>,
}

/// What a gate is held to: its stream's own rate, and the shared one with what is spent of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits<'a> {
    pub(super) own: &'a Line,
    pub(super) shared: &'a Line,
    pub(super) pool: &'a Pool,
    pub(super) held_back: &'a HeldBack,
}

/// How many bytes may pass now.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pass {
    UpTo(u64),
    /// One, and it is paid for afterwards: to find out whether there is anything to wait for.
    Probe,
}

impl Gate {
    /// Waits until some of `want` bytes may pass. With `probing`, nobody waits for shared bytes who may have
    /// nothing to do with them: an idle reader would hold up those who have.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        limits: Limits<'_>,
        want: u64,
        probing: bool,
    ) -> Poll<Pass> {
        loop {
            let now = now();
            match self.look(now, limits, want, probing) {
                Ok(pass) => return Poll::Ready(pass),
                Err(until) => {
                    self.waited = true;
                    ready!(self.poll_timer(cx, now, until));
                }
            }
        }
    }

    /// What may pass now, or when to look again.
    fn look(
        &mut self,
        now: Instant,
        limits: Limits<'_>,
        want: u64,
        probing: bool,
    ) -> Result<Pass, Option<Instant>> {
        let Limits {
            own, shared, pool, ..
        } = limits;
        let mut most = want;
        if shared.is_limit() {
            most = most.min(shared.share());
        }
        if own.is_limit() {
            let enough = most.min(own.portion());
            let there = self.bucket.fill(own, own.at(now));
            if there < enough {
                return Err(own.when(self.bucket.place_of(enough)));
            }
            most = most.min(there);
        }
        if shared.is_limit() {
            let at = shared.at(now);
            if at < self.from {
                return Err(shared.when(self.from));
            }
            if at - self.from > shared.burst {
                // Too long ago: by now it would be a burst of its own.
                self.booked = 0;
            }
            if self.booked == 0 {
                self.booked = pool.take(shared, at, most);
                self.from = at;
            }
            if self.booked == 0 {
                if probing && !self.hungry {
                    return Ok(Pass::Probe);
                }
                self.from = pool.book(shared, at, most);
                self.booked = most;
                return Err(shared.when(self.from));
            }
            most = most.min(self.booked);
        }
        Ok(Pass::UpTo(most))
    }

    fn poll_timer(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        until: Option<Instant>,
    ) -> Poll<()> {
        // The rate may be raised meanwhile, and nobody would say so.
        let latest = now + LOOK_AGAIN;
        let until = until.map_or(latest, |until| until.min(latest));
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(Timer::default()));
        if self
            .armed
            .is_none_or(|armed| armed <= now || armed > until)
        {
            timer.as_mut().arm(until);
            self.armed = Some(until);
        }
        ready!(timer.as_mut().poll(cx));
        self.armed = None;
        Poll::Ready(())
    }

    /// So many bytes have passed; `None` if the stream has to be waited for.
    pub(super) fn passed(&mut self, limits: Limits<'_>, pass: Pass, bytes: Option<u64>) {
        let passed = bytes.unwrap_or(0);
        self.bucket.take(passed);
        if limits.shared.is_limit() {
            match pass {
                Pass::UpTo(_) => limits
                    .pool
                    .give_back(self.booked.saturating_sub(passed)),
                Pass::Probe => {
                    limits
                        .pool
                        .book(limits.shared, self.from, passed);
                }
            }
        }
        self.booked = 0;
        self.hungry = bytes.is_some();
        if std::mem::take(&mut self.waited) {
            limits.held_back.add(passed);
        }
    }

    /// So many bytes have passed without being asked: counts those that would have had to wait.
    pub(super) fn count(&mut self, limits: Limits<'_>, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let now = now();
        let mut within = bytes;
        if limits.own.is_limit() {
            let there = self
                .bucket
                .fill(limits.own, limits.own.at(now));
            within = within.min(there);
            self.bucket.take(within);
        }
        if limits.shared.is_limit() {
            let at = limits.shared.at(now);
            within = limits
                .pool
                .take(limits.shared, at, within);
        }
        limits.held_back.add(bytes - within);
    }

    /// The stream is gone: what it had booked is for others, unless it is too old to be used.
    pub(super) fn close(&mut self, limits: Limits<'_>) {
        if self.booked > 0 && limits.shared.is_limit() {
            let at = limits.shared.at(now());
            if at.saturating_sub(self.from) <= limits.shared.burst {
                limits.pool.give_back(self.booked);
            }
            self.booked = 0;
        }
    }
}

/// How many bytes have been made to wait.
pub(super) struct HeldBack {
    bytes: AtomicU64,
    metric: Counter,
}

impl HeldBack {
    pub(super) fn new(metric: Counter) -> Self {
        Self {
            bytes: AtomicU64::new(0),
            metric,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    fn add(&self, bytes: u64) {
        if bytes > 0 {
            self.bytes.fetch_add(bytes, Relaxed);
            self.metric.increment(bytes);
        }
    }
}

impl std::fmt::Debug for HeldBack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bytes.fmt(f)
    }
}

/// How long a change of the rates may go unnoticed by a stream that waits.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
