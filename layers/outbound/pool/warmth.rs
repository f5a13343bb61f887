//! Targets that are kept warm: what is missing of their idle connections, and whether it is any use to open it.

use std::{hash::Hash, time::Duration};

use tokio::time::Instant;

use super::{
    books::{Books, Member},
    health::Health,
};

/// A dial that keeps a target warm.
#[derive(Debug)]
pub(super) struct Warming<W> {
    pub(super) target: usize,
    pub(super) dial: u64,
    pub(super) recipe: W,
}

impl<K: Hash + Eq + Clone, C: Member, A, W: Clone> Books<K, C, A, W> {
    /// Sets how many connections to a target are to be idle, and how they are dialled.
    pub(super) fn keep_warm(&mut self, key: K, idle: usize, recipe: W, now: Instant) {
        if self.closed || idle == 0 && !self.index.contains_key(&key) {
            self.after.recipes.push(recipe);
            self.after.keys.push(key);
            return;
        }
        let at = self.enter(key);
        let target = &mut self.targets[at];
        self.after
            .recipes
            .extend(target.recipe.take());
        target.warm = idle;
        self.warmed
            .retain(|warmed| *warmed != at);
        if idle > 0 {
            target.recipe = Some(recipe);
            self.warmed.push(at);
        } else {
            self.after.recipes.push(recipe);
            target.warming = Health::default();
        }
        self.tidy(at, now);
        self.after.rouse = true;
    }

    /// Keeps nothing warm any more.
    pub(super) fn cool_down(&mut self) {
        for at in self.warmed.drain(..) {
            let target = &mut self.targets[at];
            target.warm = 0;
            self.after
                .recipes
                .extend(target.recipe.take());
        }
    }

    /// Takes places for what is missing.
    pub(super) fn warm_up(&mut self, now: Instant) -> Vec<Warming<W>> {
        let mut warming = Vec::new();
        for place in 0..self.warmed.len() {
            let target = self.warmed[place];
            while self.lacks_warmth(target, now) {
                let Some(recipe) = self.targets[target].recipe.clone() else {
                    break;
                };
                let dial = self.open_dial(target);
                warming.push(Warming {
                    target,
                    dial,
                    recipe,
                });
            }
        }
        warming
    }

    /// Whether one more is to be dialled now. Nobody is deprived of the place: whoever waits and could use it would
    /// have it already. After trouble it is one at a time, until that one has stayed.
    fn lacks_warmth(&mut self, at: usize, now: Instant) -> bool {
        let target = &self.targets[at];
        if target.idle.len() + target.orphans() >= target.warm
            || target.open >= self.limits.open_per_target
            || self.counts.open >= self.limits.open
        {
            return false;
        }
        if !target.warming.is_clean() {
            match self.trial(at) {
                Some(stays) if stays > now => {
                    self.arm(Some(stays));
                    return false;
                }
                Some(_) => self.targets[at].warming.succeeded(),
                None if self.is_long_ago(at, now) => self.targets[at].warming.succeeded(),
                None => {}
            }
        }
        let target = &self.targets[at];
        let is_well = target.health.is_clean() && target.warming.is_clean();
        if !is_well && !target.dials.is_empty() {
            return false;
        }
        let until = target
            .health
            .until()
            .max(target.warming.until());
        let rests = until.filter(|until| *until > now);
        self.arm(rests);
        rests.is_none()
    }

    /// When the one that was dialled after the last trouble, and has not been used, has stayed.
    fn trial(&self, at: usize) -> Option<Instant> {
        let target = &self.targets[at];
        let idle = target.idle.iter();
        let tried = idle.filter(|idle| {
            target
                .warming
                .is_news(idle.member.number())
        });
        let dialled = tried
            .filter_map(|idle| idle.dialled)
            .min();
        dialled?.checked_add(MOMENT)
    }

    fn is_long_ago(&self, at: usize, now: Instant) -> bool {
        let forget_at = self.targets[at]
            .warming
            .forget_at(&self.limits.backoff);
        forget_at.is_some_and(|at| at <= now)
    }

    /// Its peer has ended a connection that nobody has used.
    pub(super) fn ended_unused(&mut self, at: usize, dial: u64, dialled: Instant, now: Instant) {
        let target = &mut self.targets[at];
        if target.warm > 0 && now.saturating_duration_since(dialled) < MOMENT {
            let backoff = self.limits.backoff.after(1);
            target
                .warming
                .failed(dial, self.next, now, &backoff);
        }
    }
}

/// A peer that ends a connection so soon did not want it. Whoever ends it for being idle waits longer.
const MOMENT: Duration = Duration::from_secs(1);
