//! What the pool's own task does: what is due, and all that concerns every target.

use std::{hash::Hash, time::Duration};

use tokio::time::Instant;

use super::{
    books::{Books, Given, Member},
    fates::{Gone, Refusal},
};

/// A dial that keeps a target warm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Warming {
    pub(super) target: usize,
    pub(super) dial: u64,
}

impl<K: Hash + Eq + Clone, C: Member, A> Books<K, C, A> {
    /// Whether there is something to do.
    fn is_due(&self, now: Instant) -> bool {
        self.keeps_warm || self.armed.is_some_and(|due| due <= now)
    }

    /// Everything that is to be done now; returns the dials to begin, and when to look next.
    pub(super) fn tend(&mut self, now: Instant) -> (Vec<Warming>, Option<Instant>) {
        if self.is_stamping && self.stamp_at.is_none_or(|at| at <= now) {
            self.is_stamping = self.stamp(now);
            let pause = self
                .limits
                .idle_for
                .map_or(SELDOM, |idle_for| idle_for / STAMPS);
            self.stamp_at = now
                .checked_add(pause)
                .filter(|_| self.is_stamping);
        }
        let warming = if self.is_due(now) {
            self.go_round(now)
        } else {
            Vec::new()
        };
        // It looks now, and needs no call.
        self.after.rouse = false;
        let due = [self.armed, self.stamp_at].into_iter();
        (warming, due.flatten().min())
    }

    /// Does what is due, returns the dials to begin, and sets when to look next.
    fn go_round(&mut self, now: Instant) -> Vec<Warming> {
        self.armed = None;
        self.refuse_the_late(now);
        let mut warming = Vec::new();
        for at in self.all() {
            self.close_the_old(at, now);
            self.settle(at, now);
            self.warm(at, now, &mut warming);
            self.tidy(at, now);
        }
        let mut due: Option<Instant> = None;
        let mut sooner = |at: Option<Instant>| due = [due, at].into_iter().flatten().min();
        for (_, target) in &self.targets {
            let spare = target.idle.len() > target.warm;
            let oldest = target.idle.front().filter(|_| spare);
            let over = oldest.and_then(|idle| {
                idle.since?
                    .checked_add(self.limits.idle_for?)
            });
            sooner(over);
            for idle in &target.idle {
                sooner(idle.member.retires());
            }
            let lacks = target.idle.len() < target.warm || !target.waiting.is_empty();
            sooner(
                target
                    .health
                    .until()
                    .filter(|until| lacks && *until > now),
            );
            if target.is_remembered {
                sooner(
                    target
                        .health
                        .forget_at(&self.limits.backoff),
                );
            }
        }
        for (_, waiter) in &self.waiters {
            if matches!(waiter.given, Given::Nothing | Given::Place(_)) {
                sooner(waiter.terms.by);
            }
        }
        self.armed = due;
        warming
    }

    fn all(&self) -> Vec<usize> {
        self.targets
            .iter()
            .map(|(at, _)| at)
            .collect()
    }

    fn refuse_the_late(&mut self, now: Instant) {
        let waiters = self.waiters.iter();
        let late = waiters.filter(|(_, waiter)| {
            waiter
                .terms
                .by
                .is_some_and(|by| by <= now)
        });
        let late: Vec<_> = late
            .map(|(key, waiter)| (key, waiter.has_dialled))
            .collect();
        for (key, connecting) in late {
            self.refuse(key, Refusal::Elapsed { connecting }, now);
        }
    }

    /// Closes what has been idle for long enough, but for those that are to be kept warm, and what has lived long
    /// enough.
    fn close_the_old(&mut self, at: usize, now: Instant) {
        loop {
            let Some(target) = self.targets.get_mut(at) else {
                return;
            };
            let idle_for = self.limits.idle_for;
            let is_over = |since: Option<Instant>| {
                let over = idle_for.and_then(|idle_for| since?.checked_add(idle_for));
                over.is_some_and(|over| over <= now)
            };
            let spare = target.idle.len() > target.warm;
            let (place, gone) = match target.idle.front() {
                Some(oldest) if spare && is_over(oldest.since) => (0, Gone::Idle),
                _ => {
                    let old = |member: &C| {
                        member
                            .retires()
                            .is_some_and(|retires| retires <= now)
                    };
                    let mut idle = target.idle.iter();
                    match idle.position(|idle| old(&idle.member)) {
                        Some(place) => (place, Gone::Age),
                        None => return,
                    }
                }
            };
            let Some(idle) = target.idle.remove(place) else {
                return;
            };
            self.counts.idle -= 1;
            self.let_go(at, idle.member, gone);
        }
    }

    /// Takes places for what is missing, if nobody else needs them.
    fn warm(&mut self, at: usize, now: Instant, warming: &mut Vec<Warming>) {
        while let Some(target) = self.targets.get(at) {
            let enough = target.idle.len() + target.orphans() >= target.warm;
            let may = target.open < self.limits.open_per_target
                && self.counts.open < self.limits.open
                && target.health.has_rested(now)
                && (target.health.is_clean() || target.dials.is_empty());
            if enough || !may || self.queued > 0 || self.closed {
                return;
            }
            let dial = self.open_dial(at);
            warming.push(Warming { target: at, dial });
        }
    }

    /// Closes what is idle; what is in use goes when it comes back.
    pub(super) fn renew(&mut self) {
        self.round += 1;
        self.close_all_idle(Gone::Renewed);
    }

    /// Closes everything for good.
    pub(super) fn close(&mut self, now: Instant) {
        self.closed = true;
        let waiting: Vec<_> = self
            .waiters
            .iter()
            .map(|(key, _)| key)
            .collect();
        for key in waiting {
            self.refuse(key, Refusal::Closed, now);
        }
        self.close_all_idle(Gone::Closed);
        for (_, target) in &mut self.targets {
            target.warm = 0;
            let off = target
                .dials
                .values_mut()
                .filter_map(Option::take);
            self.after.called_off.extend(off);
        }
        for at in self.all() {
            self.tidy(at, now);
        }
    }

    fn close_all_idle(&mut self, gone: Gone) {
        for at in self.all() {
            while let Some(idle) = self
                .targets
                .get_mut(at)
                .and_then(|target| target.idle.pop_front())
            {
                self.counts.idle -= 1;
                self.let_go(at, idle.member, gone);
            }
        }
    }

    /// Changes the number of places. Idle ones beyond it are closed, those in use when they come back.
    pub(super) fn set_open(&mut self, open: usize, now: Instant) {
        self.limits.open = open;
        while self.counts.open > open && self.evict(usize::MAX, now) {}
        for at in self.all() {
            self.settle(at, now);
        }
    }
}

/// A connection may stay idle longer than it should by one part in so many.
const STAMPS: u32 = 64;

/// Where nothing is closed for being idle.
const SELDOM: Duration = Duration::from_secs(60);
