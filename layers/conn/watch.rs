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
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::task::coop::has_budget_remaining;

use crate::{
    base::time::{FOREVER, Timer, now},
    conn::{
        CloseReason, ConnInfo, Elapsed,
        progress::{Mark, Rates, TooSlow, progress},
        refusals::Spared,
        strain::Strain,
        turn::Turn,
        waits::{Late, NEVER, Stamp, Way, plus},
    },
};

/// How long each wait may take; [`Duration::MAX`] is for ever.
#[derive(Debug, Clone)]
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
    /// In a dry run, what counts the limits that pass.
    pub(crate) spared: Option<Spared>,
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
        spared: None,
    };

    /// What [`spared`](Self::spared) has to count.
    pub(crate) const REASONS: [CloseReason; 5] = [
        CloseReason::FirstByte,
        CloseReason::Idle,
        CloseReason::WriteStall,
        CloseReason::Age,
        CloseReason::MinRate,
    ];

    /// A limit has passed: whether that is only counted, which this does.
    pub(crate) fn spares(&self, which: CloseReason) -> bool {
        if let Some(spared) = &self.spared {
            spared.count(which, 1);
        }
        self.spared.is_some()
    }

    fn tick(&self, strain: Strain) -> Duration {
        let shortest = strain
            .of(self.idle)
            .min(self.write_stall);
        (shortest / 16).max(Duration::from_millis(1))
    }

    fn of(&self, which: CloseReason, strain: Strain) -> Option<Duration> {
        match which {
            CloseReason::FirstByte => Some(strain.of(self.first_byte)),
            CloseReason::Idle => Some(strain.of(self.idle)),
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
        // Something was told at the last look, so that there was no time to see to the rest.
        told: bool,
        // As it was seen at the last look.
        strain: Strain,
        suspended_at: Stamp,
        first_byte_by: Stamp,
        age_by: Stamp,
        // By when a connection that was told to leave must be gone.
        gone_by: Stamp,
        idle: Mark,
        stall: Mark,
        rates: Option<Box<Rates>>,
        // The task that the timer wakes, by its number.
        wakes: Option<u32>,
    }
}

impl Watch {
    pub(crate) fn new(limits: Arc<Limits>) -> Self {
        let rates = Rates::of(&limits);
        Self {
            timer: Timer::default(),
            limits,
            armed: NEVER,
            ticking: false,
            started: false,
            told: false,
            strain: Strain::NONE,
            suspended_at: NEVER,
            first_byte_by: NEVER,
            age_by: NEVER,
            gone_by: NEVER,
            idle: Mark::NONE,
            stall: Mark::NONE,
            rates,
            wakes: None,
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
            ready!(self.as_mut().poll_timer(cx, info));
        }
        loop {
            info.waits.begin_look();
            let now = info.stamp(now());
            *self.as_mut().project().told = false;
            let next = match self.as_mut().look(now, info) {
                Ok(next) => next,
                Err(verdict) => {
                    *self.project().told = true;
                    return Poll::Ready(verdict);
                }
            };
            let this = self.as_mut().project();
            let Some(at) = info.instant(next) else {
                *this.armed = NEVER;
                return Poll::Pending;
            };
            // A timer that goes off too early costs one look; moving it costs every time.
            if next < *this.armed || *this.armed <= now {
                *this.armed = next;
                *this.wakes = None;
                this.timer.arm(at);
            }
            // A rate has windows that begin with the wait itself.
            let ticking = *this.ticking && this.rates.is_none();
            info.waits
                .end_look(*this.armed, ticking);
            ready!(self.as_mut().poll_timer(cx, info));
        }
    }

    /// Marks of waits that are over. What was blocked once and is blocked again has begun anew.
    fn forget_what_ended(self: Pin<&mut Self>, info: &ConnInfo) {
        let this = self.project();
        let waits = &info.waits;
        if !waits.is_idle() {
            *this.idle = Mark::NONE;
        }
        if !waits.is_stalled() {
            *this.stall = Mark::NONE;
        }
        if let Some(rates) = this.rates {
            rates.forget_what_ended(waits);
        }
    }

    /// Whether something began that the timer, as it is set, would miss. Reads no clock.
    fn must_look(&self, info: &ConnInfo) -> bool {
        let waits = &info.waits;
        if !self.started {
            return true;
        }
        if self.told || waits.is_suspended() != (self.suspended_at != NEVER) {
            return true;
        }
        if self.strain != waits.strain.told() {
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
            .min(waits.absolute_by(Way::Read));
        if set.min(waits.absolute_by(Way::Write)) < self.armed {
            return true;
        }
        if !self.ticking {
            if self.times_idle(info) && self.idle.seen != progress(info) {
                return true;
            }
            if self.times_stall(info) && self.stall.seen != waits.taken() {
                return true;
            }
        }
        let rates = self.rates.as_ref();
        rates.is_some_and(|rates| rates.must_look(waits, &self.limits))
    }

    fn times_idle(&self, info: &ConnInfo) -> bool {
        // Before the first byte the first-byte deadline has the word, if there is one.
        let spoke = info.waits.moved_in() > 0 || self.limits.first_byte >= FOREVER;
        self.limits.idle != Duration::MAX && spoke && info.waits.is_idle()
    }

    fn times_stall(&self, info: &ConnInfo) -> bool {
        self.limits.write_stall != Duration::MAX && info.waits.is_stalled()
    }

    /// Looks at every wait: what is over, or when to look next.
    fn look(mut self: Pin<&mut Self>, now: Stamp, info: &ConnInfo) -> Result<Stamp, Verdict> {
        self.as_mut().start(now, info);
        let waits = &info.waits;
        let strain = waits.strain.see();
        *self.as_mut().project().strain = strain;
        let mut next = self.as_mut().look_at_age(now, info)?;
        if self
            .as_mut()
            .look_at_suspension(now, info)?
        {
            return Ok(next);
        }
        if waits.moved_in() == 0 {
            if waits.unclaimed.get() && self.first_byte_by() <= now {
                // It may well have spoken: nobody has read it yet.
                let limit = self.limits.first_byte;
                *self.as_mut().project().first_byte_by = plus(now, limit);
            }
            let by = self.due(self.first_byte_by(), now, CloseReason::FirstByte)?;
            if by == NEVER {
                *self.as_mut().project().first_byte_by = NEVER;
            }
            next = next.min(by);
        }
        next = next.min(look_at_io_deadlines(now, info)?);
        for (by, which) in [
            (&waits.request_by, Late::Request),
            (&waits.handler_by, Late::Handler),
            (&waits.reply_by, Late::Reply),
        ] {
            next = next.min(by.get());
            if by.get() <= now {
                by.clear();
                return Err(self.late(info, which));
            }
        }

        let mut fresh = false;
        if self.times_idle(info) {
            let (mut mark, limit) = (self.idle, strain.of(self.limits.idle));
            let mut by = mark.over_by(progress(info), now, limit, &mut fresh);
            if waits.asked.get() {
                by = by.max(plus(now, self.limits.tick(strain)));
            }
            next = next.min(self.due_of(&mut mark, by, now, CloseReason::Idle)?);
            *self.as_mut().project().idle = mark;
        }
        if self.times_stall(info) {
            let (mut mark, limit) = (self.stall, self.limits.write_stall);
            let by = mark.over_by(waits.taken(), now, limit, &mut fresh);
            next = next.min(self.due_of(&mut mark, by, now, CloseReason::WriteStall)?);
            *self.as_mut().project().stall = mark;
        }
        *self.as_mut().project().ticking = fresh;
        if fresh {
            next = next.min(plus(now, self.limits.tick(strain)));
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
            if this.limits.spares(CloseReason::Age) {
                return Ok(NEVER);
            }
            *this.gone_by = plus(now, this.limits.age_grace);
            info.ending
                .tell_to_leave(CloseReason::Age);
            return Err(Verdict::Told);
        }
        Ok(self.age_by.min(self.gone_by))
    }

    /// A request or its handler is late: a crossing ends such a connection itself, with a last reply. One that
    /// does not take its replies is not told, unless they are only counted.
    fn late(&self, info: &ConnInfo, which: Late) -> Verdict {
        let waits = &info.waits;
        let (reason, tells) = match which {
            Late::Request => (CloseReason::Request, true),
            Late::Handler => (CloseReason::Handler, true),
            Late::Reply => (CloseReason::Reply, waits.spares_replies.get()),
        };
        if tells && waits.driven.get() {
            waits.set_late(which);
            return Verdict::Told;
        }
        Verdict::Over(self.elapsed(reason))
    }

    /// Keeps the time during which deadlines are stopped, and gives it back when they run again.
    fn look_at_suspension(
        self: Pin<&mut Self>,
        now: Stamp,
        info: &ConnInfo,
    ) -> Result<bool, Verdict> {
        let this = self.project();
        if info.waits.is_suspended() {
            *this.suspended_at = (*this.suspended_at).min(now);
            *this.ticking = false;
            (*this.idle, *this.stall) = (Mark::NONE, Mark::NONE);
            if let Some(rates) = this.rates {
                rates.clear();
            }
            return Ok(true);
        }
        let since = std::mem::replace(this.suspended_at, NEVER);
        if since == NEVER {
            return Ok(false);
        }
        let stopped = Duration::from_nanos(now - since);
        *this.first_byte_by = plus(*this.first_byte_by, stopped);
        info.waits.give_extra(stopped);
        Err(Verdict::Told)
    }

    fn look_at_rates(self: Pin<&mut Self>, now: Stamp, info: &ConnInfo) -> Result<Stamp, Verdict> {
        let this = self.project();
        let Some(rates) = this.rates else {
            return Ok(NEVER);
        };
        let looked = rates.look(now, &info.waits, this.limits);
        looked.map_err(|TooSlow| {
            let window = Some(this.limits.rate_window);
            Verdict::Over(Elapsed::new(CloseReason::MinRate, window))
        })
    }

    /// Polls the timer, but only if it has gone off or would wake another task than this one.
    fn poll_timer(self: Pin<&mut Self>, cx: &mut Context<'_>, info: &ConnInfo) -> Poll<()> {
        let this = self.project();
        let epoch = Turn::is_kept(cx, info).then(|| info.ending.task_epoch());
        if epoch.is_some() && *this.wakes == epoch && !this.timer.has_gone_off() {
            return Poll::Pending;
        }
        // Without budget the timer pretends to wait, and remembers nobody.
        *this.wakes = epoch.filter(|_| has_budget_remaining());
        this.timer.poll(cx)
    }

    /// By when the first byte is due, which is sooner under strain.
    fn first_byte_by(&self) -> Stamp {
        let limit = self.limits.first_byte;
        let sooner = limit - self.strain.of(limit);
        match self.first_byte_by {
            NEVER => NEVER,
            by => by.saturating_sub(plus(0, sooner)),
        }
    }

    /// When it is over, unless it is. In a dry run what is over is counted, and then never.
    fn due(&self, by: Stamp, now: Stamp, which: CloseReason) -> Result<Stamp, Verdict> {
        if by > now {
            return Ok(by);
        }
        if self.limits.spares(which) {
            return Ok(NEVER);
        }
        Err(Verdict::Over(self.elapsed(which)))
    }

    /// The same, for as long as nothing moves.
    fn due_of(
        &self,
        mark: &mut Mark,
        by: Stamp,
        now: Stamp,
        which: CloseReason,
    ) -> Result<Stamp, Verdict> {
        let by = self.due(by, now, which)?;
        if by == NEVER {
            mark.spare();
        }
        Ok(by)
    }

    fn elapsed(&self, which: CloseReason) -> Elapsed {
        Elapsed::new(which, self.limits.of(which, self.strain))
    }
}

/// The absolute deadlines that a handler set for its own reads and writes.
fn look_at_io_deadlines(now: Stamp, info: &ConnInfo) -> Result<Stamp, Verdict> {
    let waits = &info.waits;
    let (mut next, mut told) = (NEVER, false);
    for way in [Way::Read, Way::Write] {
        let by = waits.absolute_by(way);
        if by <= now {
            waits.set_absolute(way, NEVER, true);
            told = true;
        }
        next = next.min(by);
    }
    if told {
        waits.wake_strangers();
        return Err(Verdict::Told);
    }
    Ok(next)
}

/// `age`, up to `share` of it sooner or later, so that connections opened together do not all end together.
fn jittered(age: Duration, share: f64, id: u64) -> Duration {
    // The splitmix64 finaliser: neighbouring numbers, unrelated results. Nothing here must be secret.
    let mut mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let unit = (mixed >> 11) as f64 / (1_u64 << 53) as f64;
    let seconds = age.as_secs_f64() * (1.0 + share * (2.0 * unit - 1.0));
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}
