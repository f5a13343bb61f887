//! Places: who may dial, who makes room, and whom it is no use waiting for.

use std::{hash::Hash, time::Duration};

use tokio::time::Instant;

use super::{
    books::{Books, Given, Member, Ticket},
    fates::{Gone, Refusal},
};

impl<K: Hash + Eq + Clone, C: Member, A, W: Clone> Books<K, C, A, W> {
    // === Dialling

    /// Takes a place to dial in, if there is one or can be made by closing an idle connection to somewhere else.
    pub(super) fn claim(&mut self, at: usize, now: Instant) -> Option<u64> {
        let is_full = self.targets[at].open >= self.limits.open_per_target;
        if is_full || !self.may_dial(at, now) {
            return None;
        }
        while self.counts.open >= self.limits.open {
            if !self.evict(at, now) {
                return None;
            }
        }
        Some(self.open_dial(at))
    }

    pub(super) fn open_dial(&mut self, at: usize) -> u64 {
        let dial = self.number();
        let target = &mut self.targets[at];
        target.open += 1;
        target.dials.insert(dial, None);
        self.counts.open += 1;
        self.counts.dials += 1;
        dial
    }

    /// A dial has begun, and can be called off by this.
    pub(super) fn begun(&mut self, at: usize, dial: u64, by: A) {
        let dials = self
            .targets
            .get_mut(at)
            .map(|target| &mut target.dials);
        // It may be over already.
        if let Some(held) = dials.and_then(|dials| dials.get_mut(&dial)) {
            if self.closed {
                // Whoever closed the pool could not do so yet.
                self.after.called_off.push(by);
            } else {
                *held = Some(by);
            }
        }
    }

    /// A dial has ended without an answer.
    pub(super) fn dial_gone(&mut self, at: usize, dial: u64, now: Instant) {
        self.end_dial(at, dial);
        self.free(at, now);
    }

    /// A dial has failed: who asked for it is told, if it still waits.
    pub(super) fn dial_failed(
        &mut self,
        at: usize,
        dial: u64,
        owner: Option<Ticket>,
        refusal: Refusal,
        now: Instant,
    ) {
        self.end_dial(at, dial);
        let health = &mut self.targets[at].health;
        health.failed(dial, self.next, now, &self.limits.backoff);
        let waits = |owner: &Ticket| {
            let waiter = self.waiters.get(owner.key);
            waiter.is_some_and(|waiter| waiter.number == owner.number && waiter.not_its_own < dial)
        };
        match owner.filter(waits) {
            Some(owner) => self.refuse(owner.key, refusal, now),
            None => self.after.refused.push(refusal),
        }
        self.free(at, now);
    }

    /// A dial has succeeded: its connection is the first waiter's, or is returned. Its place is the connection's.
    pub(super) fn dialled(&mut self, at: usize, dial: u64, member: C, now: Instant) -> Option<C> {
        self.end_dial(at, dial);
        let was_down = !self.targets[at].health.is_clean();
        self.targets[at].health.succeeded();
        let left = if self.closed || member.round() != self.round {
            Some(member)
        } else {
            self.hand_over(at, member, now, true)
                .err()
        };
        if left.is_none() && self.targets[at].warm > 0 {
            // It is used at once, and there may be more to dial for later.
            self.after.rouse = true;
        }
        if was_down {
            self.settle(at, now);
        }
        left
    }

    fn end_dial(&mut self, at: usize, dial: u64) {
        let ended = self.targets[at].dials.remove(&dial);
        debug_assert!(ended.is_some(), "a dial ends once");
        self.counts.dials -= 1;
    }

    /// Ends somebody's waiting.
    pub(super) fn refuse(&mut self, key: usize, refusal: Refusal, now: Instant) {
        let waiter = &mut self.waiters[key];
        let unused = match &waiter.given {
            Given::Nothing => None,
            Given::Place(dial) => Some(*dial),
            Given::Member { .. } | Given::Refused(..) => {
                return self.after.refused.push(refusal);
            }
        };
        waiter.given = Given::Refused(Box::new((refusal, now)));
        let waker = waiter.waker.take();
        let (target, number, has_dialled) = (waiter.target, waiter.number, waiter.has_dialled);
        self.wake(waker);
        self.strike(target, number, has_dialled, now);
        if let Some(dial) = unused {
            self.dial_gone(target, dial, now);
        }
    }

    // === Places

    /// Gives free places to those who have waited longest for one.
    pub(super) fn settle(&mut self, at: usize, now: Instant) {
        self.refuse_the_hopeless(at, now);
        self.await_pause(at, now);
        while let Some(key) = self.next_to_dial(at, now) {
            let target = self.waiters[key].target;
            let Some(dial) = self.claim(target, now) else {
                return;
            };
            let waiter = &mut self.waiters[key];
            self.queued -= usize::from(!waiter.has_dialled);
            waiter.has_dialled = true;
            waiter.given = Given::Place(dial);
            let waker = waiter.waker.take();
            self.wake(waker);
        }
    }

    /// Who is to have the next place: of this target, or of any if all places were taken.
    fn next_to_dial(&self, at: usize, now: Instant) -> Option<usize> {
        let first = if self.counts.open + 1 < self.limits.open {
            self.lacks_a_dial(at, now)
        } else {
            // The bound of this walk is that of those who wait.
            let all = self.lines.iter();
            all.filter_map(|at| self.lacks_a_dial(*at, now))
                .min()
        };
        first.map(|(_, key)| key)
    }

    /// The first who waits for this target without having had a place; or, if there are fewer dials than waiters, the
    /// first whose dial served somebody else.
    fn lacks_a_dial(&self, at: usize, now: Instant) -> Option<(u64, usize)> {
        let target = self.targets.get(at)?;
        if target.waiting.is_empty()
            || target.open >= self.limits.open_per_target
            || !self.may_dial(at, now)
        {
            return None;
        }
        let has_none = |(_, key): &&(u64, usize)| !self.waiters[*key].has_dialled;
        let lost = |(_, key): &&(u64, usize)| {
            target.waiting.len() > target.dials.len()
                && matches!(self.waiters[*key].given, Given::Nothing)
        };
        let mut waiting = target.waiting.iter();
        waiting
            .find(has_none)
            .or_else(|| target.waiting.iter().find(lost))
            .copied()
    }

    /// Whether somebody waits for another target who would dial if there were a place more in all.
    pub(super) fn is_wanted_elsewhere(&self, at: usize, now: Instant) -> bool {
        let mut others = self.lines.iter();
        self.counts.open >= self.limits.open
            && others.any(|other| *other != at && self.lacks_a_dial(*other, now).is_some())
    }

    /// Whether what comes back to those who wait for this target is to make room for somebody who waits for another.
    ///
    /// That costs a dial, so it is not simply who came first: only one whose target has nothing that could come back to
    /// it; or one behind whom as much has happened as there are places, so that targets with too few places for those
    /// who wait there get more, and no two of them take from each other in turn.
    pub(super) fn is_owed_elsewhere(&self, at: usize, now: Instant) -> bool {
        let Some((own, _)) = self.targets[at].waiting.front() else {
            return false;
        };
        let mut others = self.lines.iter();
        self.counts.open >= self.limits.open
            && others.any(|other| {
                let is_first = self.targets[*other].open == 0;
                let behind = if is_first { 1 } else { self.limits.open as u64 };
                let first = self.lacks_a_dial(*other, now);
                first.is_some_and(|(first, _)| first.saturating_add(behind) <= *own)
            })
    }

    /// Somebody has come to wait for this target.
    pub(super) fn enter_lines(&mut self, at: usize) {
        let line = &mut self.targets[at].line;
        if line.is_none() {
            *line = Some(self.lines.len());
            self.lines.push(at);
        }
    }

    /// Somebody waits for this target no longer, who may have been the last.
    pub(super) fn leave_lines(&mut self, at: usize) {
        let target = &mut self.targets[at];
        if !target.waiting.is_empty() {
            return;
        }
        if let Some(line) = target.line.take() {
            self.lines.swap_remove(line);
            if let Some(moved) = self.lines.get(line) {
                self.targets[*moved].line = Some(line);
            }
        }
    }

    /// Closes the connection to another target that has been idle longest.
    pub(super) fn evict(&mut self, but: usize, now: Instant) -> bool {
        if self.counts.idle == 0 {
            return false;
        }
        let others = self
            .targets
            .iter()
            .filter(|(at, _)| *at != but);
        let oldest = others.filter_map(|(at, target)| Some((target.idle.front()?.order, at)));
        let Some((_, at)) = oldest.min() else {
            return false;
        };
        self.evict_from(at, now)
    }

    /// Closes the connections that have been idle longest, until there are no more than there may be.
    pub(super) fn evict_surplus(&mut self, now: Instant) {
        let surplus = self
            .counts
            .open
            .saturating_sub(self.limits.open);
        let targets = self.targets.iter();
        let mut idle: Vec<_> = targets
            .flat_map(|(at, target)| {
                target
                    .idle
                    .iter()
                    .map(move |idle| (idle.order, at))
            })
            .collect();
        idle.sort_unstable();
        for (_, at) in idle.into_iter().take(surplus) {
            self.evict_from(at, now);
        }
    }

    fn evict_from(&mut self, at: usize, now: Instant) -> bool {
        let target = &mut self.targets[at];
        let Some(idle) = target.idle.pop_front() else {
            return false;
        };
        target.open -= 1;
        self.counts.open -= 1;
        self.counts.idle -= 1;
        self.after
            .closed
            .push((idle.member, Gone::Evicted, None));
        self.tidy(at, now);
        true
    }

    /// Somebody waits for a place: if all are taken, a dial to another target that nobody waits for is called off. If
    /// it is a pause that is waited for, its end is looked out for.
    pub(super) fn look_for_room(&mut self, at: usize, now: Instant) {
        if !self.may_dial(at, now) {
            let until = self.targets[at].health.until();
            // Without a pause it is a dial that is waited for.
            self.arm(until.filter(|until| *until > now));
        } else if self.counts.dials > 0 && self.counts.open >= self.limits.open {
            let targets = self.targets.iter_mut();
            let mut others = targets.filter(|(other, _)| *other != at);
            let off = others.find_map(|(_, target)| target.spare_dial());
            self.after.called_off.extend(off);
        }
    }

    /// Somebody waits for this target no longer: a dial to it that is nobody's now is called off, if somebody waits for
    /// its place.
    pub(super) fn make_room(&mut self, at: usize, now: Instant) {
        if self.counts.dials == 0 || self.closed || !self.is_wanted_elsewhere(at, now) {
            return;
        }
        let target = self.targets.get_mut(at);
        let off = target.and_then(|target| target.spare_dial());
        self.after.called_off.extend(off);
    }

    // === Health

    /// Looks out for the end of the pause, if there is one and somebody waits for it.
    fn await_pause(&mut self, at: usize, now: Instant) {
        if let Some(target) = self.targets.get(at) {
            if target.line.is_some() && !self.may_dial(at, now) {
                let until = target.health.until();
                self.arm(until.filter(|until| *until > now));
            }
        }
    }

    fn backs_off(&self) -> bool {
        self.several || self.limits.backoff.alone
    }

    /// Whether one more dial to this target may begin: any, unless it is down; then one, after a pause.
    fn may_dial(&self, at: usize, now: Instant) -> bool {
        let target = &self.targets[at];
        !self.backs_off()
            || !target
                .health
                .is_down(&self.limits.backoff)
            || target.health.has_rested(now) && target.dials.is_empty()
    }

    /// Whether one more who waits for this target would wait for nothing.
    pub(super) fn is_hopeless(&self, at: usize, now: Instant) -> bool {
        let target = &self.targets[at];
        target.in_use() == 0
            && target.waiting.len() >= target.dials.len()
            && !self.may_dial(at, now)
    }

    pub(super) fn backing_off(&self, at: usize, now: Instant) -> Refusal {
        let health = &self.targets[at].health;
        Refusal::Backoff {
            failures: health.failures(),
            left: health
                .until()
                .map_or(Duration::ZERO, |until| until.saturating_duration_since(now)),
        }
    }

    fn refuse_the_hopeless(&mut self, at: usize, now: Instant) {
        loop {
            let Some(target) = self.targets.get(at) else {
                return;
            };
            if target.waiting.len() <= target.dials.len() || !self.is_hopeless(at, now) {
                return;
            }
            let waiting = target.waiting.iter().rev();
            let mut last = waiting.map(|(_, key)| *key);
            let Some(key) = last
                .clone()
                .find(|key| !self.waiters[*key].has_dialled)
                .or_else(|| last.next())
            else {
                return;
            };
            let refusal = self.backing_off(at, now);
            self.refuse(key, refusal, now);
        }
    }
}
