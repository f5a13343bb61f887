//! Standing in line: who comes, what is said to whoever asks, who leaves.

use std::{hash::Hash, mem::take, task::Waker};

use tokio::time::Instant;

use super::{
    books::{Books, Counts, Given, Got, Member, Terms, Ticket},
    fates::Refusal,
};

/// What is to be said to somebody who asks what it has got.
#[derive(Debug)]
pub(super) enum Asked<C> {
    /// Nothing so far: it waits until then. Whom it had woken before is to be dropped without the lock.
    Waits(Option<Instant>, Option<Waker>),
    /// A place: dial, under this number.
    Place(Ticket, u64),
    Member {
        member: C,
        is_fresh: bool,
        /// The number under which it has waited.
        number: u64,
        terms: Terms,
        /// What the clock said after that, if somebody has read it.
        at: Option<Instant>,
    },
    Refused(Box<(Refusal, Instant)>, Terms),
}

impl Terms {
    fn are_over(&self) -> bool {
        self.by
            .is_some_and(|by| by <= self.since)
    }
}

impl<K: Hash + Eq + Clone, C: Member, A, W: Clone> Books<K, C, A, W> {
    /// Stands in line where nothing is idle, with a dial if there is a place for it.
    pub(super) fn line_up(
        &mut self,
        at: usize,
        terms: Terms,
        waker: Option<Waker>,
    ) -> Result<(Ticket, Option<u64>), Refusal> {
        let refusal = if self.closed {
            Some(Refusal::Closed)
        } else if terms.are_over() {
            Some(Refusal::Elapsed { connecting: false })
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.after.outdated = waker;
            self.tidy(at, terms.since);
            return Err(refusal);
        }
        let now = self.hear(terms.since);
        self.stand_in_line(at, None, terms, now, waker)
    }

    /// The same where [nothing is to be found out](Self::can_but_wait).
    #[inline(always)]
    pub(super) fn join(&mut self, at: usize, terms: Terms, waker: Option<Waker>) -> Ticket {
        self.hear(terms.since);
        self.queued += 1;
        self.join_line(at, None, terms, false, waker)
    }

    /// Whether all places are in use, so that there is none for one more who waits for this target, nor any to be made,
    /// and nothing else is the matter.
    #[inline(always)]
    pub(super) fn can_but_wait(&self, at: usize, terms: &Terms) -> bool {
        if self.closed || terms.are_over() {
            return false;
        }
        let Counts {
            open, idle, dials, ..
        } = self.counts;
        let target = &self.targets[at];
        let is_full = target.open >= self.limits.open_per_target;
        (is_full || open >= self.limits.open && idle == 0)
            && dials == 0
            && self.queued < self.limits.waiting
            && target.health.is_clean()
    }

    /// Once more, for one whose connection was dead, and has its place still: it stands where it stood. A dial that it
    /// has asked for before is nobody's, as is that of anybody else who was served: it is not told if that one fails.
    pub(super) fn get_again(
        &mut self,
        at: usize,
        number: u64,
        terms: Terms,
        now: Instant,
    ) -> Result<Got<C>, Refusal> {
        if self.closed {
            return Err(Refusal::Closed);
        }
        if let Some(idle) = self.targets[at].idle.pop_back() {
            self.counts.idle -= 1;
            return Ok(Got::Idle(idle.member));
        }
        let before = self.next;
        let (ticket, dial) = self.stand_in_line(at, Some(number), terms, now, None)?;
        self.waiters[ticket.key].not_its_own = before;
        Ok(Got::Wait(ticket, dial))
    }

    fn stand_in_line(
        &mut self,
        at: usize,
        number: Option<u64>,
        terms: Terms,
        now: Instant,
        waker: Option<Waker>,
    ) -> Result<(Ticket, Option<u64>), Refusal> {
        let dial = self.claim(at, now);
        if dial.is_none() {
            let bound = self.limits.waiting;
            let refusal = if self.is_hopeless(at, now) {
                Some(self.backing_off(at, now))
            } else if self.queued >= bound && number.is_none() {
                Some(Refusal::QueueFull { bound })
            } else {
                None
            };
            if let Some(refusal) = refusal {
                self.after.outdated = waker;
                self.tidy(at, now);
                return Err(refusal);
            }
            self.queued += 1;
            self.look_for_room(at, now);
        }
        let ticket = self.join_line(at, number, terms, dial.is_some(), waker);
        Ok((ticket, dial))
    }

    #[inline(always)]
    fn join_line(
        &mut self,
        at: usize,
        number: Option<u64>,
        terms: Terms,
        has_dialled: bool,
        waker: Option<Waker>,
    ) -> Ticket {
        let key = self.waiters.next();
        let waiting = &mut self.targets[at].waiting;
        let number = match number {
            None => {
                self.next += 1;
                waiting.push_back((self.next, key));
                self.next
            }
            Some(number) => {
                let behind = waiting.partition_point(|(other, _)| *other < number);
                waiting.insert(behind, (number, key));
                number
            }
        };
        self.waiters
            .enter(number, at, terms, has_dialled, waker);
        self.counts.waiting += 1;
        self.enter_lines(at);
        self.arm_wait(terms.by);
        Ticket {
            number,
            target: at,
            key,
        }
    }

    /// What somebody who waits has got; a connection or a refusal ends the waiting.
    #[inline]
    pub(super) fn ask(&mut self, key: usize, waker: &Waker) -> Asked<C> {
        let waiter = &mut self.waiters[key];
        let (number, terms) = (waiter.number, waiter.terms);
        match take(&mut waiter.given) {
            Given::Nothing => {
                let known = waiter.waker.as_ref();
                let outdated = if known.is_some_and(|known| known.will_wake(waker)) {
                    None
                } else {
                    waiter.waker.replace(waker.clone())
                };
                Asked::Waits(terms.by, outdated)
            }
            Given::Place(dial) => {
                let ticket = Ticket {
                    number,
                    target: waiter.target,
                    key,
                };
                Asked::Place(ticket, dial)
            }
            Given::Member {
                member,
                is_fresh,
                seen,
            } => {
                self.waiters.free(key);
                Asked::Member {
                    member,
                    is_fresh,
                    number,
                    terms,
                    at: self
                        .latest
                        .filter(|_| self.readings > seen),
                }
            }
            Given::Refused(refused) => {
                self.waiters.free(key);
                Asked::Refused(refused, terms)
            }
        }
    }

    /// Somebody's time is up, unless it was given something before that.
    pub(super) fn give_up(&mut self, key: usize, now: Instant) {
        let connecting = self.waiters[key].has_dialled;
        self.refuse(key, Refusal::Elapsed { connecting }, now);
    }

    /// Somebody waits no longer; returns the connection that it was given and has not seen.
    pub(super) fn leave(&mut self, key: usize, now: Instant) -> (Terms, Option<(C, bool)>) {
        let waiter = &mut self.waiters[key];
        let (target, number, has_dialled) = (waiter.target, waiter.number, waiter.has_dialled);
        let (terms, given) = (waiter.terms, take(&mut waiter.given));
        self.after.outdated = waiter.waker.take();
        self.waiters.free(key);
        let unused = match given {
            Given::Member {
                member, is_fresh, ..
            } => return (terms, Some((member, is_fresh))),
            Given::Refused(refused) => {
                self.after.refused.push(refused.0);
                return (terms, None);
            }
            Given::Nothing => None,
            Given::Place(dial) => Some(dial),
        };
        self.strike(target, number, has_dialled, now);
        match unused {
            Some(dial) => self.dial_gone(target, dial, now),
            None => self.tidy(target, now),
        }
        (terms, None)
    }

    /// Takes somebody off the list of those who wait.
    pub(super) fn strike(&mut self, target: usize, number: u64, has_dialled: bool, now: Instant) {
        let waiting = &mut self.targets[target].waiting;
        if let Ok(at) = waiting.binary_search_by_key(&number, |(number, _)| *number) {
            waiting.remove(at);
        }
        self.leave_lines(target);
        self.counts.waiting -= 1;
        self.queued -= usize::from(!has_dialled);
        self.make_room(target, now);
    }
}
