//! The one timer of a connection.
//!
//! A connection that answers at once never reads the clock and never touches a timer: its waits are stores
//! into [`Waits`](crate::conn::waits::Waits), and the watch looks at them only when the connection parks.
//!
//! Deadlines that were set are absolute, so the watch compares numbers. Timeouts that progress resets (idle,
//! write stall) it finds out by looking twice: if nothing has moved between two looks, it has not moved
//! since the first. While things move it looks once a *tick*, a sixteenth of the shortest such timeout; once
//! a tick has passed in silence, the timer is set to the very end. So a timeout passes at the earliest on
//! time and at the latest one tick after, an idle connection wakes twice in all, and a busy one sixteen
//! times in a whole timeout, however many requests it serves.

use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;

use crate::{
    base::time::{Timer, now},
    conn::{
        CloseReason, ConnInfo,
        waits::{NEVER, Stamp, plus},
    },
};

/// How long each wait may take; [`Duration::MAX`] is for ever.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) first_byte: Duration,
    pub(crate) idle: Duration,
    pub(crate) write_stall: Duration,
    pub(crate) max_age: Duration,
    pub(crate) age_jitter: f64,
    pub(crate) age_grace: Duration,
    /// Bytes a second; zero is off.
    pub(crate) min_rate_in: u64,
    pub(crate) min_rate_out: u64,
    pub(crate) rate_window: Duration,
}

impl Limits {
    /// For ever, all of them.
    pub(crate) const NONE: Self = Self {
        first_byte: Duration::MAX,
        idle: Duration::MAX,
        write_stall: Duration::MAX,
        max_age: Duration::MAX,
        age_jitter: 0.0,
        age_grace: Duration::MAX,
        min_rate_in: 0,
        min_rate_out: 0,
        rate_window: Duration::MAX,
    };

    fn tick(&self) -> Duration {
        (self.idle.min(self.write_stall) / 16).max(Duration::from_millis(1))
    }

    fn of(&self, which: CloseReason) -> Option<Duration> {
        match which {
            CloseReason::FirstByte => Some(self.first_byte),
            CloseReason::Idle => Some(self.idle),
            CloseReason::WriteStall => Some(self.write_stall),
            CloseReason::Age => Some(self.max_age),
            _ => None,
        }
    }
}

/// What the watch has found.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Something was told to the connection: poll it again.
    Told,
    /// It is over: drop it.
    Over(Elapsed),
}

pin_project! {
    /// Looks after the waits of one connection; polled whenever the connection has nothing else to do.
    #[derive(Debug)]
    pub(crate) struct Watch {
        #[pin]
        timer: Timer,
        limits: Arc<Limits>,
        armed: Stamp,
        // Armed for a tick, and not for an end.
        ticking: bool,
        started: bool,
        first_byte_by: Stamp,
        age_by: Stamp,
        // By when a connection that was told to leave must be gone.
        gone_by: Stamp,
        idle: Mark,
        stall: Mark,
        rate_in: Window,
        rate_out: Window,
    }
}

/// What was seen at the last look, and when it was first seen so.
#[derive(Debug, Clone, Copy)]
struct Mark {
    seen: u64,
    at: Stamp,
}

impl Mark {
    const NONE: Self = Self { seen: NEVER, at: 0 };

    /// When it is over if what is seen now never changes; `fresh` if it is seen for the first time.
    fn over_by(&mut self, seen: u64, now: Stamp, limit: Duration, fresh: &mut bool) -> Stamp {
        if self.seen != seen {
            *self = Self { seen, at: now };
            *fresh = true;
        }
        plus(self.at, limit)
    }
}

/// A stretch of time over which a rate is taken.
#[derive(Debug, Clone, Copy)]
struct Window {
    /// The request it belongs to.
    turn: u64,
    moved: u64,
    begun: Stamp,
}

impl Window {
    const NONE: Self = Self {
        turn: NEVER,
        moved: 0,
        begun: 0,
    };

    fn is_none(&self) -> bool {
        self.turn == NEVER
    }

    /// When the window ends; a window that has ended is judged, and the next one begun.
    fn look(
        &mut self,
        turn: u64,
        moved: u64,
        now: Stamp,
        span: Duration,
        rate: u64,
    ) -> Result<Stamp, Verdict> {
        let whole = !self.is_none() && plus(self.begun, span) <= now;
        if whole {
            let due = u128::from(rate) * u128::from(now - self.begun) / 1_000_000_000;
            if u128::from(moved - self.moved) < due {
                return Err(Verdict::Over(Elapsed {
                    which: CloseReason::MinRate,
                    limit: Some(span),
                }));
            }
        }
        if whole || self.is_none() {
            *self = Self {
                turn,
                moved,
                begun: now,
            };
        }
        Ok(plus(self.begun, span))
    }
}

impl Watch {
    pub(crate) fn new(limits: Arc<Limits>) -> Self {
        Self {
            timer: Timer::default(),
            limits,
            armed: NEVER,
            ticking: false,
            started: false,
            first_byte_by: NEVER,
            age_by: NEVER,
            gone_by: NEVER,
            idle: Mark::NONE,
            stall: Mark::NONE,
            rate_in: Window::NONE,
            rate_out: Window::NONE,
        }
    }

    /// Pending while all is well.
    pub(crate) fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        info: &ConnInfo,
    ) -> Poll<Verdict> {
        self.as_mut().forget_what_ended(info);
        if !self.must_look(info) {
            if self.armed == NEVER {
                return Poll::Pending;
            }
            ready!(self.as_mut().project().timer.poll(cx));
        }
        loop {
            let now = info.stamp(now());
            let next = match self.as_mut().look(now, info) {
                Ok(next) => next,
                Err(verdict) => return Poll::Ready(verdict),
            };
            let this = self.as_mut().project();
            let Some(at) = info.instant(next) else {
                *this.armed = NEVER;
                return Poll::Pending;
            };
            // A timer that goes off too early costs one look; moving it costs every time.
            if next < *this.armed || *this.armed <= now {
                *this.armed = next;
                this.timer.arm(at);
            }
            ready!(self.as_mut().project().timer.poll(cx));
        }
    }

    /// Marks of waits that are over. What was blocked once and is blocked again has begun anew.
    fn forget_what_ended(self: Pin<&mut Self>, info: &ConnInfo) {
        let this = self.project();
        let waits = &info.waits;
        if !waits.is_idle() {
            *this.idle = Mark::NONE;
        }
        if !waits.blocked.get() {
            *this.stall = Mark::NONE;
            *this.rate_out = Window::NONE;
        }
        if !waits.receiving.get() || this.rate_in.turn != waits.turn.load(Relaxed) {
            *this.rate_in = Window::NONE;
        }
    }

    /// Whether something began that the timer, as it is set, would miss. Reads no clock.
    fn must_look(&self, info: &ConnInfo) -> bool {
        let (waits, limits) = (&info.waits, &self.limits);
        if !self.started {
            return true;
        }
        if waits.is_suspended() {
            return false;
        }
        let set = waits
            .request_by
            .get()
            .min(waits.handler_by.get());
        let set = set
            .min(waits.reply_by.get())
            .min(waits.read_by.get());
        if set.min(waits.write_by.get()) < self.armed {
            return true;
        }
        if !self.ticking {
            if self.times_idle(info) && self.idle.seen != progress(info) {
                return true;
            }
            if self.times_stall(info) && self.stall.seen != waits.moved_out() {
                return true;
            }
        }
        (limits.min_rate_in > 0 && waits.receiving.get() && self.rate_in.is_none())
            || (limits.min_rate_out > 0 && waits.blocked.get() && self.rate_out.is_none())
    }

    fn times_idle(&self, info: &ConnInfo) -> bool {
        // Before the first byte the first-byte deadline has the word, if there is one.
        let spoke = info.waits.moved_in() > 0 || self.first_byte_by == NEVER;
        self.limits.idle != Duration::MAX && spoke && info.waits.is_idle()
    }

    fn times_stall(&self, info: &ConnInfo) -> bool {
        self.limits.write_stall != Duration::MAX && info.waits.blocked.get()
    }

    /// Looks at every wait: what is over, or when to look next.
    fn look(mut self: Pin<&mut Self>, now: Stamp, info: &ConnInfo) -> Result<Stamp, Verdict> {
        self.as_mut().start(now, info);
        let waits = &info.waits;
        let mut next = self.as_mut().look_at_age(now, info)?;
        if waits.moved_in() == 0 {
            let by = self.first_byte_by;
            next = next.min(self.due(by, now, CloseReason::FirstByte)?);
        }
        if waits.is_suspended() {
            let this = self.project();
            (*this.idle, *this.stall) = (Mark::NONE, Mark::NONE);
            (*this.rate_in, *this.rate_out) = (Window::NONE, Window::NONE);
            return Ok(next);
        }
        next = next.min(look_at_io_deadlines(now, info)?);
        for (by, which) in [
            (&waits.request_by, CloseReason::Request),
            (&waits.handler_by, CloseReason::Handler),
        ] {
            next = next.min(by.get());
            if by.get() <= now {
                by.clear();
                return Err(self.late(now, info, which));
            }
        }
        next = next.min(self.due(waits.reply_by.get(), now, CloseReason::Reply)?);

        let mut fresh = false;
        if self.times_idle(info) {
            let (mut mark, limit) = (self.idle, self.limits.idle);
            let by = mark.over_by(progress(info), now, limit, &mut fresh);
            *self.as_mut().project().idle = mark;
            next = next.min(self.due(by, now, CloseReason::Idle)?);
        }
        if self.times_stall(info) {
            let (mut mark, limit) = (self.stall, self.limits.write_stall);
            let by = mark.over_by(waits.moved_out(), now, limit, &mut fresh);
            *self.as_mut().project().stall = mark;
            next = next.min(self.due(by, now, CloseReason::WriteStall)?);
        }
        *self.as_mut().project().ticking = fresh;
        if fresh {
            next = next.min(plus(now, self.limits.tick()));
        }
        Ok(next.min(self.look_at_rates(now, info)?))
    }

    fn start(self: Pin<&mut Self>, now: Stamp, info: &ConnInfo) {
        let this = self.project();
        if !*this.started {
            *this.started = true;
            *this.first_byte_by = plus(now, this.limits.first_byte);
            *this.age_by = match this.limits.max_age {
                Duration::MAX => NEVER,
                age => plus(0, jittered(age, this.limits.age_jitter, info.id().get())),
            };
        }
    }

    fn look_at_age(self: Pin<&mut Self>, now: Stamp, info: &ConnInfo) -> Result<Stamp, Verdict> {
        if self.gone_by <= now {
            let reason = info
                .close_reason()
                .unwrap_or(CloseReason::Age);
            return Err(Verdict::Over(self.elapsed(reason)));
        }
        if self.age_by <= now {
            let this = self.project();
            *this.age_by = NEVER;
            *this.gone_by = plus(now, this.limits.age_grace);
            info.ending
                .tell_to_leave(CloseReason::Age);
            return Err(Verdict::Told);
        }
        Ok(self.age_by.min(self.gone_by))
    }

    /// A request or its handler is late: a crossing may still send a last reply, for a moment.
    fn late(self: Pin<&mut Self>, now: Stamp, info: &ConnInfo, which: CloseReason) -> Verdict {
        if !info.waits.driven.get() {
            return Verdict::Over(self.elapsed(which));
        }
        info.end_with(which);
        let this = self.project();
        *this.gone_by = (*this.gone_by).min(plus(now, LAST_WORDS));
        Verdict::Told
    }

    fn look_at_rates(self: Pin<&mut Self>, now: Stamp, info: &ConnInfo) -> Result<Stamp, Verdict> {
        let waits = &info.waits;
        let this = self.project();
        let span = this.limits.rate_window;
        let (rate_in, rate_out) = (this.limits.min_rate_in, this.limits.min_rate_out);
        let mut next = NEVER;
        if rate_in > 0 && waits.receiving.get() {
            let turn = waits.turn.load(Relaxed);
            next = this
                .rate_in
                .look(turn, waits.moved_in(), now, span, rate_in)?;
        }
        if rate_out > 0 && waits.blocked.get() {
            let by = this
                .rate_out
                .look(0, waits.moved_out(), now, span, rate_out)?;
            next = next.min(by);
        }
        Ok(next)
    }

    fn due(&self, by: Stamp, now: Stamp, which: CloseReason) -> Result<Stamp, Verdict> {
        if by <= now {
            return Err(Verdict::Over(self.elapsed(which)));
        }
        Ok(by)
    }

    fn elapsed(&self, which: CloseReason) -> Elapsed {
        Elapsed {
            which,
            limit: self.limits.of(which),
        }
    }
}

/// The absolute deadlines that a handler set for its own reads and writes.
fn look_at_io_deadlines(now: Stamp, info: &ConnInfo) -> Result<Stamp, Verdict> {
    let waits = &info.waits;
    let mut told = false;
    for (by, late, waker) in [
        (&waits.read_by, &waits.read_late, &waits.reader),
        (&waits.write_by, &waits.write_late, &waits.writer),
    ] {
        if by.get() <= now {
            by.clear();
            late.set(true);
            waker.wake();
            told = true;
        }
    }
    if told {
        return Err(Verdict::Told);
    }
    Ok(waits
        .read_by
        .get()
        .min(waits.write_by.get()))
}

/// All that moved, in either direction: a reader that takes a byte now and then is not idle.
fn progress(info: &ConnInfo) -> u64 {
    info.waits
        .moved_in()
        .wrapping_add(info.waits.moved_out())
        // Never the mark of nothing seen.
        & (u64::MAX >> 1)
}

/// `age`, up to `share` of it sooner or later, so that connections opened together do not all end together.
fn jittered(age: Duration, share: f64, id: u64) -> Duration {
    // The splitmix64 finaliser: neighbouring numbers, unrelated results. Nothing here must be secret.
    let mut mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let unit = (mixed >> 11) as f64 / (1_u64 << 53) as f64;
    age.mul_f64(1.0 + share * (2.0 * unit - 1.0))
}

/// A deadline or timeout has passed.
///
/// It is the error of the stack, and inside the [`io::Error`] of whoever still touches the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed {
    which: CloseReason,
    limit: Option<Duration>,
}

impl Elapsed {
    pub(crate) fn new(which: CloseReason, limit: Option<Duration>) -> Self {
        Self { which, limit }
    }

    /// Which one.
    #[must_use]
    pub fn which(&self) -> CloseReason {
        self.which
    }

    /// How long it was, if it is a fixed one.
    #[must_use]
    pub fn limit(&self) -> Option<Duration> {
        self.limit
    }
}

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.which {
            CloseReason::FirstByte => f.write_str("no first byte")?,
            CloseReason::Idle => f.write_str("nothing moved")?,
            CloseReason::WriteStall => f.write_str("no byte could be written")?,
            CloseReason::MinRate => f.write_str("bytes moved too slowly")?,
            CloseReason::Age => f.write_str("maximum age reached")?,
            CloseReason::Request => f.write_str("request not complete in time")?,
            CloseReason::Handler => f.write_str("handler not done in time")?,
            CloseReason::Reply => f.write_str("reply not written in time")?,
            _ => f.write_str("deadline passed")?,
        }
        match self.limit {
            Some(limit) => write!(f, " within {limit:?}"),
            None => Ok(()),
        }
    }
}

impl Error for Elapsed {}

impl From<Elapsed> for io::Error {
    fn from(error: Elapsed) -> Self {
        Self::new(io::ErrorKind::TimedOut, error)
    }
}

/// For a last reply to a request that was late, before the connection is dropped whatever it is doing.
const LAST_WORDS: Duration = Duration::from_secs(5);
