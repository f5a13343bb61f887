//! Giving back: to whoever waits, to be idle, or for good.

use std::{hash::Hash, mem::replace, task::Waker};

use tokio::time::Instant;

use super::{
    books::{Books, Given, Idle, Member},
    fates::Gone,
};

/// What became of a connection that came back.
#[derive(Debug)]
pub(super) enum Kept<C> {
    /// It is idle.
    Idle,
    /// It is whose turn it was, who is to be woken.
    Handed(Option<Waker>),
    /// There is more to think of.
    Not(C),
}

impl<K: Hash + Eq + Clone, C: Member, A, W: Clone> Books<K, C, A, W> {
    /// A connection comes back where there is nothing to think of: nothing is over or too many, and nobody waits for
    /// another target.
    pub(super) fn keep(&mut self, at: usize, member: C, is_fresh: bool) -> Kept<C> {
        let over = self.is_over(at);
        let target = &mut self.targets[at];
        let is_alone = self.lines.len() <= usize::from(target.line.is_some());
        let lasts = member.round() == self.round && !member.is_old();
        if over || !lasts || !is_alone || self.closed {
            return Kept::Not(member);
        }
        let Some((_, key)) = target.waiting.front() else {
            if is_fresh || target.idle.len() >= self.limits.idle_per_target {
                return Kept::Not(member);
            }
            self.next += 1;
            let retires = member.retires();
            target.idle.push_back(Idle {
                order: self.next,
                since: None,
                dialled: None,
                member,
            });
            self.counts.idle += 1;
            if !self.is_stamping {
                self.is_stamping = true;
                self.after.rouse = true;
            }
            self.arm(retires);
            return Kept::Idle;
        };
        let waiter = &mut self.waiters[*key];
        if !matches!(waiter.given, Given::Nothing) {
            return Kept::Not(member);
        }
        target.waiting.pop_front();
        self.counts.waiting -= 1;
        self.queued -= usize::from(!waiter.has_dialled);
        waiter.given = Given::Member {
            member,
            is_fresh,
            seen: self.readings,
        };
        let waker = waiter.waker.take();
        self.leave_lines(at);
        Kept::Handed(waker)
    }

    /// A connection comes back, or one that was dialled for nobody who still waits; `false` if it is not kept. The time
    /// is asked for only if it matters.
    pub(super) fn give_back(
        &mut self,
        at: usize,
        member: C,
        now: impl Fn() -> Instant,
        is_fresh: bool,
    ) -> bool {
        let over = self.is_over(at);
        let target = &self.targets[at];
        let gone = if self.closed {
            Gone::Closed
        } else if member.round() != self.round {
            Gone::Renewed
        } else if member.is_old() {
            Gone::Age
        } else if over {
            Gone::Surplus
        } else if self.lines.len() > 1 && self.is_owed_elsewhere(at, now()) {
            Gone::Evicted
        } else if !target.waiting.is_empty() {
            let handed = self.hand_over(at, member, now(), is_fresh);
            debug_assert!(handed.is_ok(), "somebody waits");
            return true;
        } else if target.idle.len() >= self.limits.idle_per_target {
            Gone::Surplus
        } else if !self.lines.is_empty() && self.is_wanted_elsewhere(at, now()) {
            Gone::Evicted
        } else {
            let order = self.number();
            self.keep_idle(
                at,
                Idle {
                    order,
                    since: None,
                    dialled: is_fresh.then(now),
                    member,
                },
            );
            return true;
        };
        self.let_go(at, member, gone);
        false
    }

    /// Gives a connection to the first who waits.
    pub(super) fn hand_over(
        &mut self,
        at: usize,
        member: C,
        now: Instant,
        is_fresh: bool,
    ) -> Result<(), C> {
        let Some((_, key)) = self.targets[at].waiting.pop_front() else {
            return Err(member);
        };
        self.leave_lines(at);
        let waiter = &mut self.waiters[key];
        self.counts.waiting -= 1;
        self.queued -= usize::from(!waiter.has_dialled);
        let given = Given::Member {
            member,
            is_fresh,
            seen: self.readings,
        };
        let unused = replace(&mut waiter.given, given);
        let waker = waiter.waker.take();
        let now = self.hear(now);
        self.wake(waker);
        if let Given::Place(dial) = unused {
            self.dial_gone(at, dial, now);
        }
        self.make_room(at, now);
        Ok(())
    }

    fn keep_idle(&mut self, at: usize, kept: Idle<C>) {
        if kept.since.is_none() && !self.is_stamping {
            self.is_stamping = true;
            self.after.rouse = true;
        }
        self.arm(kept.member.retires());
        let target = &mut self.targets[at];
        // There may be more to dial, now that this one has come.
        self.after.rouse |= kept.dialled.is_some() && target.warm > 0;
        let idle = &mut target.idle;
        match idle.back() {
            // It was only looked at.
            Some(last) if last.order > kept.order => {
                let behind = idle.partition_point(|other| other.order < kept.order);
                idle.insert(behind, kept);
            }
            _ => idle.push_back(kept),
        }
        self.counts.idle += 1;
    }

    /// Says since when what has come to be idle has been so, which is now, or a moment before; `false` if there is
    /// none.
    pub(super) fn stamp(&mut self, at: usize, now: Instant) -> bool {
        let mut stamped = false;
        let idle = self
            .targets
            .get_mut(at)
            .into_iter()
            .flat_map(|target| target.idle.iter_mut().rev());
        for idle in idle.take_while(|idle| idle.since.is_none()) {
            idle.since = Some(now);
            stamped = true;
        }
        if stamped {
            let idle_for = self.limits.idle_for;
            self.arm(idle_for.and_then(|idle_for| now.checked_add(idle_for)));
        }
        stamped
    }

    /// One that was only looked at goes back to where it was.
    pub(super) fn put_back(&mut self, at: usize, idle: Idle<C>, now: Instant) {
        let is_as_it_was = !self.closed
            && idle.member.round() == self.round
            && !self.is_over(at)
            && self.targets[at].idle.len() < self.limits.idle_per_target
            && self.lines.is_empty();
        if is_as_it_was {
            self.keep_idle(at, idle);
        } else {
            self.give_back(at, idle.member, || now, false);
        }
    }

    /// Whether there are more connections than there may be, in all or to this target.
    fn is_over(&self, at: usize) -> bool {
        self.counts.open > self.limits.open || self.targets[at].open > self.limits.open_per_target
    }

    /// Takes an idle connection out, to look at it.
    pub(super) fn take_out(&mut self, at: usize, number: u64) -> Option<Idle<C>> {
        let idle = &mut self.targets.get_mut(at)?.idle;
        let place = idle
            .iter()
            .position(|idle| idle.member.number() == number)?;
        self.counts.idle -= 1;
        idle.remove(place)
    }

    /// Closes a connection that is not idle. Its place is free once it is closed.
    pub(super) fn let_go(&mut self, at: usize, member: C, gone: Gone) {
        self.after
            .closed
            .push((member, gone, Some(at)));
    }

    /// A place is free.
    pub(super) fn free(&mut self, at: usize, now: Instant) {
        // Whoever has let go of what was dead may go on with what the clock said before that.
        let now = self.hear(now);
        self.targets[at].open -= 1;
        self.counts.open -= 1;
        self.settle(at, now);
        self.tidy(at, now);
        // There may be room for one more of those that are kept warm.
        self.after.rouse |= !self.warmed.is_empty();
    }

    /// To be woken without the lock.
    pub(super) fn wake(&mut self, waker: Option<Waker>) {
        if self.wake.is_none() {
            self.wake = waker;
        } else {
            self.after.wakes.extend(waker);
        }
    }

    /// Has the pool's own task go round the targets no later than this.
    pub(super) fn arm(&mut self, due: Option<Instant>) {
        self.after.rouse |= advance(&mut self.armed, due);
    }

    /// Has it look who gives up no later than this.
    pub(super) fn arm_wait(&mut self, by: Option<Instant>) {
        self.after.rouse |= advance(&mut self.late_at, by);
    }

    /// Forgets a target of which nothing is left.
    pub(super) fn tidy(&mut self, at: usize, now: Instant) {
        let Some(target) = self.targets.get_mut(at) else {
            return;
        };
        let is_empty = target.open == 0 && target.waiting.is_empty() && target.warm == 0;
        let forget_at = target
            .health
            .forget_at(&self.limits.backoff);
        let worth = forget_at.is_some_and(|at| at > now)
            && self.limits.backoff.after.is_some()
            && !self.closed;
        let was_remembered = replace(&mut target.is_remembered, false);
        self.remembered -= usize::from(was_remembered);
        if !is_empty {
            return;
        }
        if worth && self.remembered < self.limits.open {
            target.is_remembered = true;
            self.remembered += 1;
            self.arm(forget_at);
            return;
        }
        // From the index first, where the code of others runs, which may panic.
        let known = self.index.remove_entry(&target.key);
        let target = self.targets.remove(at);
        self.after.keys.push(target.key);
        self.after
            .keys
            .extend(known.map(|(key, _)| key));
    }
}

/// Whether something has to be done sooner.
fn advance(at: &mut Option<Instant>, due: Option<Instant>) -> bool {
    let is_sooner = due.is_some_and(|due| at.is_none_or(|at| due < at));
    if is_sooner {
        *at = due;
    }
    is_sooner
}
