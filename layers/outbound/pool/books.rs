//! Who has which connection, who waits, and how many there may be: without sockets, tasks or clocks.
//!
//! # Invariants
//!
//! - A *place* is a connection that is open or being opened: idle, in use, or a dial. It is freed exactly once, by
//!   whoever has it.
//! - Where somebody waits for a target, nothing idle of that target is left.
//! - Those who wait for a target are served in the order of their coming, by whatever comes first: a connection that
//!   is given back, or one that was dialled, for whom ever.
//! - A target is among the [lines](Books::lines) as long as somebody waits for it.
//! - A target is known as long as it has a place, somebody who waits, a number to keep warm, or a failure that is
//!   worth remembering.
//! - Nobody is woken and nothing is dropped here: both are left in [`After`], for whoever holds the lock to let go.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::Hash,
    mem::take,
    task::Waker,
    time::Duration,
};

use slab::Slab;
use tokio::time::Instant;

use super::{
    fates::{Gone, Refusal},
    health::{ConnectBackoff, Health},
    rounds::Walk,
    waiters::Waiters,
};

/// What is kept here: a connection, of which only this matters.
pub(super) trait Member {
    /// Its number, unlike any other of the pool.
    fn number(&self) -> u64;
    /// Which round of the pool it belongs to.
    fn round(&self) -> u64;
    /// When it has lived long enough.
    fn retires(&self) -> Option<Instant>;
    /// Whether it has, as it was told.
    fn is_old(&self) -> bool;
}

/// The bounds of everything.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) open: usize,
    pub(super) open_per_target: usize,
    pub(super) idle_per_target: usize,
    pub(super) waiting: usize,
    pub(super) idle_for: Option<Duration>,
    pub(super) backoff: ConnectBackoff,
}

/// How many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Places in all.
    pub(super) open: usize,
    pub(super) idle: usize,
    pub(super) dials: usize,
    pub(super) waiting: usize,
}

impl Counts {
    pub(super) fn in_use(&self) -> usize {
        self.open - self.idle - self.dials
    }
}

/// The books of one pool: targets `K`, connections `C`, `A` by which a dial is called off, and `W` by which one is
/// begun for a target that is kept warm.
#[derive(Debug)]
pub(super) struct Books<K, C, A, W> {
    pub(super) limits: Limits,
    pub(super) counts: Counts,
    /// Whoever is to be woken without the lock, of whom there is mostly one at the most.
    pub(super) wake: Option<Waker>,
    pub(super) after: After<K, C, A, W>,
    pub(super) targets: Slab<Target<K, C, A, W>>,
    pub(super) waiters: Waiters<C>,
    pub(super) index: HashMap<K, usize>,
    /// Of those who wait, so many have not had a place to dial in yet.
    pub(super) queued: usize,
    /// So many targets are known for their failures alone.
    pub(super) remembered: usize,
    /// Targets that somebody waits for, in no order: what is looked for among those who wait is looked for in these.
    pub(super) lines: Vec<usize>,
    /// Targets to keep warm, in no order.
    pub(super) warmed: Vec<usize>,
    /// More than one target has been known at a time.
    pub(super) several: bool,
    /// The number that was given last: whatever happens later has a higher one.
    pub(super) next: u64,
    pub(super) round: u64,
    pub(super) closed: bool,
    /// When the pool's own task goes round the targets next.
    pub(super) armed: Option<Instant>,
    /// When the next of those who wait gives up, or one who has what it waited for would have.
    pub(super) late_at: Option<Instant>,
    /// The pool's own task has been, or is to be, told that something has come to be idle.
    pub(super) is_stamping: bool,
    /// When it next says since when that has been so; none for as soon as it can.
    pub(super) stamp_at: Option<Instant>,
    /// It is on its way round the targets.
    pub(super) walk: Option<Walk>,
    /// It does not set out again before.
    pub(super) rests_until: Option<Instant>,
    /// How often the clock was read for one who waits or a place that is free, and the latest that it said.
    pub(super) readings: u64,
    pub(super) latest: Option<Instant>,
}

/// What is to be done without the lock.
#[derive(Debug)]
pub(super) struct After<K, C, A, W> {
    pub(super) wakes: Vec<Waker>,
    /// To be dropped, which may do anything.
    pub(super) outdated: Option<Waker>,
    /// The same.
    pub(super) refused: Vec<Refusal>,
    /// To be closed, and then to be freed where the place is; none where somebody has it already.
    pub(super) closed: Vec<(C, Gone, Option<usize>)>,
    pub(super) called_off: Vec<A>,
    /// To be dropped as well.
    pub(super) recipes: Vec<W>,
    /// And these: of targets that are forgotten, or made once more than was needed.
    pub(super) keys: Vec<K>,
    /// The pool's own task has something to do sooner than it thinks.
    pub(super) rouse: bool,
}

impl<K, C, A, W> Default for After<K, C, A, W> {
    fn default() -> Self {
        Self {
            wakes: Vec::new(),
            outdated: None,
            refused: Vec::new(),
            closed: Vec::new(),
            called_off: Vec::new(),
            recipes: Vec::new(),
            keys: Vec::new(),
            rouse: false,
        }
    }
}

impl<K, C, A, W> After<K, C, A, W> {
    fn is_empty(&self) -> bool {
        !self.rouse
            && self.wakes.is_empty()
            && self.outdated.is_none()
            && self.refused.is_empty()
            && self.closed.is_empty()
            && self.called_off.is_empty()
            && self.recipes.is_empty()
            && self.keys.is_empty()
    }
}

#[derive(Debug)]
pub(super) struct Target<K, C, A, W> {
    pub(super) key: K,
    /// The longest idle first.
    pub(super) idle: VecDeque<Idle<C>>,
    /// Places.
    pub(super) open: usize,
    /// Of these, the dials by their numbers, each with how to call it off once it has begun.
    pub(super) dials: BTreeMap<u64, Option<A>>,
    /// Those who wait by their numbers, in order, and where they are.
    pub(super) waiting: VecDeque<(u64, usize)>,
    /// Where it is among the targets that somebody waits for.
    pub(super) line: Option<usize>,
    pub(super) health: Health,
    pub(super) is_remembered: bool,
    /// So many are to be idle at least.
    pub(super) warm: usize,
    /// How these are dialled, if there are to be any.
    pub(super) recipe: Option<W>,
    /// Whether they stay.
    pub(super) warming: Health,
}

impl<K, C, A, W> Target<K, C, A, W> {
    pub(super) fn in_use(&self) -> usize {
        self.open - self.idle.len() - self.dials.len()
    }

    /// Dials that nobody waits for any more.
    pub(super) fn orphans(&self) -> usize {
        self.dials
            .len()
            .saturating_sub(self.waiting.len())
    }

    /// How to call off a dial that nobody waits for any more, if there is one. Those that have been called off and have
    /// not ended yet do not count: whoever waits, waits for the others.
    pub(super) fn spare_dial(&mut self) -> Option<A> {
        let begun = self.dials.values().flatten().count();
        if begun <= self.waiting.len() {
            return None;
        }
        self.dials
            .values_mut()
            .find_map(Option::take)
    }
}

#[derive(Debug)]
pub(super) struct Idle<C> {
    /// What came to be idle later has a higher number.
    pub(super) order: u64,
    /// None until the pool's own task has seen it: giving back reads no clock.
    pub(super) since: Option<Instant>,
    /// When it was dialled, if nobody has had it yet.
    pub(super) dialled: Option<Instant>,
    pub(super) member: C,
}

/// Since when somebody waits, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) since: Instant,
    /// When it gives up.
    pub(super) by: Option<Instant>,
    /// That is the caller's deadline, and not the pool's limit.
    pub(super) is_callers: bool,
}

/// What somebody who waited has got.
#[derive(Debug, Default)]
pub(super) enum Given<C> {
    #[default]
    Nothing,
    /// A place: dial, under this number.
    Place(u64),
    Member {
        member: C,
        is_fresh: bool,
        /// How often the clock had been read by then.
        seen: u64,
    },
    /// Boxed: it is rare, and all that wait have room for what they may be given.
    Refused(Box<(Refusal, Instant)>),
}

/// Somebody's place among those who wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub(super) number: u64,
    pub(super) target: usize,
    pub(super) key: usize,
}

#[derive(Debug)]
pub(super) enum Got<C> {
    Idle(C),
    /// Wait; and dial under this number, if there is one.
    Wait(Ticket, Option<u64>),
}

impl<K: Hash + Eq + Clone, C: Member, A, W: Clone> Books<K, C, A, W> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            counts: Counts::default(),
            wake: None,
            after: After::default(),
            targets: Slab::new(),
            waiters: Waiters::new(),
            index: HashMap::new(),
            queued: 0,
            remembered: 0,
            lines: Vec::new(),
            warmed: Vec::new(),
            several: false,
            next: 0,
            round: 0,
            closed: false,
            armed: None,
            late_at: None,
            is_stamping: false,
            stamp_at: None,
            walk: None,
            rests_until: None,
            readings: 0,
            latest: None,
        }
    }

    /// What is to be done without the lock, if there is anything but somebody to wake.
    pub(super) fn take_after(&mut self) -> Option<After<K, C, A, W>> {
        (!self.after.is_empty()).then(|| take(&mut self.after))
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Where a target is, which is mostly where it was the last time.
    #[inline]
    fn find(&self, key: &K, hint: usize) -> Option<usize> {
        match self.targets.get(hint) {
            Some(target) if target.key == *key => Some(hint),
            _ => self.index.get(key).copied(),
        }
    }

    pub(super) fn enter(&mut self, key: K) -> usize {
        if let Some(at) = self.index.get(&key) {
            let at = *at;
            self.after.keys.push(key);
            return at;
        }
        // In the index first, where the code of others runs, which may panic.
        let at = self.targets.vacant_key();
        self.index.insert(key.clone(), at);
        self.targets.insert(Target {
            key,
            idle: VecDeque::new(),
            open: 0,
            dials: BTreeMap::new(),
            waiting: VecDeque::new(),
            line: None,
            health: Health::default(),
            is_remembered: false,
            warm: 0,
            recipe: None,
            warming: Health::default(),
        });
        self.several |= self.targets.len() > 1;
        at
    }

    /// Somebody has read the clock, which says this, but may have done so before somebody else did; returns the latest
    /// that it is known to have said.
    #[inline(always)]
    pub(super) fn hear(&mut self, now: Instant) -> Instant {
        self.readings += 1;
        let latest = self
            .latest
            .map_or(now, |latest| latest.max(now));
        self.latest = Some(latest);
        latest
    }

    // === Getting

    /// The connection that was given back last, and where its target is; or where that is, if it is known at all.
    #[inline(always)]
    pub(super) fn take_idle(&mut self, key: &K, hint: usize) -> Result<(usize, C), Option<usize>> {
        let Some(at) = self.find(key, hint) else {
            return Err(None);
        };
        let target = &mut self.targets[at];
        let Some(idle) = target.idle.pop_back() else {
            return Err(Some(at));
        };
        self.counts.idle -= 1;
        let has_place =
            target.open < self.limits.open_per_target && self.counts.open < self.limits.open;
        if target.idle.len() < target.warm && has_place {
            self.after.rouse = true;
        }
        Ok((at, idle.member))
    }
}
