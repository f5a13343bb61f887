//! What the pool's own task does: what is due, and all that concerns every target.

use std::{hash::Hash, mem::take, time::Duration};

use tokio::time::Instant;

use super::{
    books::{Books, Given, Idle, Member},
    fates::{Gone, Refusal},
    warmth::Warming,
};

/// When the pool's own task is to look next.
#[derive(Debug)]
pub(super) enum Next {
    /// As soon as others have had their turn: there is more to do than is done in one go.
    Soon,
    /// Then, or when it is called.
    At(Option<Instant>),
}

/// How far the pool's own task has come on its way round the targets, of which it does some in each go: nobody can get
/// a connection meanwhile.
#[derive(Debug)]
pub(super) struct Walk {
    next: usize,
    steps: usize,
    /// It says since when what is idle has been so.
    stamps: bool,
    has_stamped: bool,
    /// It does what is due.
    looks: bool,
}

impl<K: Hash + Eq + Clone, C: Member, A, W: Clone> Books<K, C, A, W> {
    /// What is to be done now, or some of it; returns the dials to begin, and when to look next.
    pub(super) fn tend(&mut self, now: Instant) -> (Vec<Warming<W>>, Next) {
        if self.late_at.is_some_and(|at| at <= now) {
            self.late_at = None;
            self.refuse_the_late(now);
        }
        let walk = self.walk.take();
        if let Some(walk) = walk.or_else(|| self.set_out(now)) {
            self.walk = self.go_on(walk, now);
        }
        let warming = self.warm_up(now);
        // It looks now, and needs no call.
        self.after.rouse = false;
        if self.walk.is_some() {
            return (warming, Next::Soon);
        }
        let due = [self.next_round(), self.late_at, self.stamp_at].into_iter();
        (warming, Next::At(due.flatten().min()))
    }

    /// When it goes round next to do what is due: not at once after it has been round a great many.
    fn next_round(&self) -> Option<Instant> {
        let due = self.armed?;
        Some(
            self.rests_until
                .map_or(due, |rests| rests.max(due)),
        )
    }

    /// Begins a walk, if there is something to do.
    fn set_out(&mut self, now: Instant) -> Option<Walk> {
        let stamps = self.is_stamping && self.stamp_at.is_none_or(|at| at <= now);
        let looks = self
            .next_round()
            .is_some_and(|due| due <= now);
        if stamps {
            // What comes to be idle on the way says so.
            self.is_stamping = false;
        }
        if looks {
            self.armed = None;
        }
        (stamps || looks).then_some(Walk {
            next: 0,
            steps: 0,
            stamps,
            has_stamped: false,
            looks,
        })
    }

    /// Goes some of the way; returns what is left of it.
    fn go_on(&mut self, mut walk: Walk, now: Instant) -> Option<Walk> {
        let most = walk.steps + STEPS;
        while walk.next < self.targets.capacity() {
            if walk.steps >= most {
                return Some(walk);
            }
            let at = walk.next;
            walk.next += 1;
            let idle = self
                .targets
                .get(at)
                .map_or(0, |target| target.idle.len());
            walk.steps += 1 + idle;
            if walk.stamps {
                walk.has_stamped |= self.stamp(at, now);
            }
            if walk.looks {
                self.look_after(at, now);
            }
        }
        if walk.stamps {
            self.is_stamping |= walk.has_stamped;
            let pause = self
                .limits
                .idle_for
                .map_or(SELDOM, |idle_for| idle_for / STAMPS);
            self.stamp_at = now
                .checked_add(pause)
                .filter(|_| self.is_stamping);
        }
        let steps = u32::try_from(walk.steps).unwrap_or(u32::MAX);
        self.rests_until = (walk.steps > STEPS)
            .then(|| now.checked_add(REST * steps))
            .flatten();
        None
    }

    /// Does what is due for one target, and says when something will be.
    fn look_after(&mut self, at: usize, now: Instant) {
        self.close_the_old(at, now);
        let Some(target) = self.targets.get(at) else {
            return;
        };
        if target.line.is_some() {
            self.settle(at, now);
        }
        self.tidy(at, now);
        let Some(target) = self.targets.get(at) else {
            return;
        };
        let spare = target.idle.len() > target.warm;
        let oldest = target.idle.front().filter(|_| spare);
        let over = oldest.and_then(|idle| {
            idle.since?
                .checked_add(self.limits.idle_for?)
        });
        let idle = target.idle.iter();
        let retires = idle.filter_map(|idle| idle.member.retires());
        let due = retires.chain(over).min();
        self.arm(due);
    }

    /// All targets at once: only for what is seldom asked for.
    fn all(&self) -> Vec<usize> {
        self.targets
            .iter()
            .map(|(at, _)| at)
            .collect()
    }

    /// Ends the waiting of those whose time is up, and looks out for the next of these.
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
        let waiters = self.waiters.iter();
        let waiting =
            waiters.filter(|(_, waiter)| matches!(waiter.given, Given::Nothing | Given::Place(_)));
        let next = waiting.filter_map(|(_, waiter)| waiter.terms.by);
        let next = next.min();
        self.arm_wait(next);
    }

    /// Closes what has lived long enough, and what has been idle for long enough, but for those that are to be kept
    /// warm.
    fn close_the_old(&mut self, at: usize, now: Instant) {
        let Some(target) = self.targets.get_mut(at) else {
            return;
        };
        let idle_for = self.limits.idle_for;
        let retires = |idle: &Idle<C>| idle.member.retires();
        let is_old = |idle: &Idle<C>| retires(idle).is_some_and(|retires| retires <= now);
        let is_over = |idle: &Idle<C>| {
            let over = idle_for.and_then(|idle_for| idle.since?.checked_add(idle_for));
            over.is_some_and(|over| over <= now)
        };
        let mut gone = Vec::new();
        if target.idle.iter().any(is_old) {
            for idle in take(&mut target.idle) {
                if is_old(&idle) {
                    gone.push((idle.member, Gone::Age));
                } else {
                    target.idle.push_back(idle);
                }
            }
        }
        while target.idle.len() > target.warm && target.idle.front().is_some_and(is_over) {
            let idle = target.idle.pop_front();
            gone.extend(idle.map(|idle| (idle.member, Gone::Idle)));
        }
        self.counts.idle -= gone.len();
        for (member, gone) in gone {
            self.let_go(at, member, gone);
        }
    }

    /// Closes what is idle; what is in use goes when it comes back. Nothing that has failed is held against its target.
    pub(super) fn renew(&mut self, now: Instant) {
        self.round += 1;
        self.close_all_idle(Gone::Renewed);
        let last = self.next;
        for at in self.all() {
            if let Some(target) = self.targets.get_mut(at) {
                target.health.forget(last);
                target.warming.forget(last);
                self.settle(at, now);
                self.tidy(at, now);
            }
        }
        self.after.rouse |= !self.warmed.is_empty();
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
        self.cool_down();
        for (_, target) in &mut self.targets {
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
        self.evict_surplus(now);
        for at in self.all() {
            self.settle(at, now);
        }
        self.after.rouse |= !self.warmed.is_empty();
    }
}

/// Targets, and idle connections, that are looked after in one go, while nobody else has the lock.
const STEPS: usize = 512;

/// What is waited for each of them, if they are more than that: or else, where each of many has its own time to go, the
/// pool's own task would do nothing but go round.
const REST: Duration = Duration::from_micros(1);

/// A connection may stay idle longer than it should by one part in so many.
const STAMPS: u32 = 64;

/// Where nothing is closed for being idle.
const SELDOM: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::{
        super::{
            books::{Limits, Terms},
            health::ConnectBackoff,
        },
        *,
    };

    struct Silent(u64);

    impl Member for Silent {
        fn number(&self) -> u64 {
            self.0
        }

        fn round(&self) -> u64 {
            0
        }

        fn retires(&self) -> Option<Instant> {
            None
        }

        fn is_old(&self) -> bool {
            false
        }
    }

    type All = Books<usize, Silent, (), ()>;

    /// So many targets, with an idle connection to each.
    fn idle(targets: usize, now: Instant) -> All {
        let mut books = Books::new(Limits {
            open: targets,
            open_per_target: 1,
            idle_per_target: 1,
            waiting: 1,
            idle_for: Some(Duration::from_secs(64)),
            backoff: ConnectBackoff::off(),
        });
        for key in 0..targets {
            let at = books.enter(key);
            let dial = books.claim(at, now).expect("a place");
            let left = books.dialled(at, dial, Silent(dial), now);
            assert!(books.give_back(at, left.expect("for nobody"), || now, true));
        }
        books
    }

    fn seen(books: &All) -> usize {
        let idle = books
            .targets
            .iter()
            .flat_map(|(_, target)| &target.idle);
        idle.filter(|idle| idle.since.is_some())
            .count()
    }

    #[test]
    fn so_many_are_looked_after_in_one_go_and_all_in_several() {
        let (now, many) = (Instant::now(), STEPS * 2);
        let mut books = idle(many, now);

        let mut goes = vec![seen(&books)];
        while let (_, Next::Soon) = books.tend(now) {
            goes.push(seen(&books));
        }

        let most = goes
            .windows(2)
            .map(|goes| goes[1] - goes[0]);
        assert!(most.max() <= Some(STEPS), "{goes:?}");
        assert_eq!(seen(&books), many);
        let later = now + Duration::from_secs(64);
        while let (_, Next::Soon) = books.tend(later) {}
        assert_eq!(books.counts.idle, 0);
        // The next thing that is due has to wait a little.
        books.arm(Some(later));
        let (_, next) = books.tend(later);
        assert!(matches!(next, Next::At(Some(at)) if at > later));
    }

    #[test]
    fn who_gives_up_costs_no_way_round() {
        let now = Instant::now();
        let mut books = idle(STEPS * 2, now);
        while let (_, Next::Soon) = books.tend(now) {}
        let by = now + Duration::from_millis(1);
        books.arm_wait(Some(by));

        let (_, next) = books.tend(by);

        assert!(matches!(next, Next::At(Some(at)) if at > by));
        books.arm(Some(by));
        assert!(matches!(
            books.tend(now + Duration::from_millis(900)),
            (_, Next::Soon)
        ));
    }

    #[test]
    fn to_take_one_that_is_kept_warm_calls_nobody_while_there_is_no_place_for_another() {
        let now = Instant::now();
        let mut books = idle(1, now);
        books.keep_warm(0, 1, (), now);
        books.tend(now);

        let taken = books.take_idle(&0, 0);

        assert!(taken.is_ok() && !books.after.rouse);
    }

    #[test]
    fn who_waits_behind_the_dial_after_a_pause_looks_out_for_no_pause() {
        let now = Instant::now();
        let mut books = All::new(Limits {
            open: 8,
            open_per_target: 8,
            idle_per_target: 8,
            waiting: 8,
            idle_for: None,
            backoff: ConnectBackoff::default().even_alone(true),
        });
        let at = books.enter(0);
        let dial = books.claim(at, now).expect("a place");
        let _in_use = books.dialled(at, dial, Silent(dial), now);
        while let Some(dial) = books.claim(at, now) {
            books.dial_failed(at, dial, None, Refusal::Closed, now);
        }
        let later = now + Duration::from_secs(10);
        assert!(books.claim(at, later).is_some());

        let waits = books.line_up(
            at,
            Terms {
                since: later,
                by: None,
                is_callers: false,
            },
            None,
        );

        assert!(waits.is_ok() && books.armed.is_none());
    }
}
