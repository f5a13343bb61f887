//! When connections have lived long enough: each is told when its time comes, so that whoever gives it back need not
//! ask what time it is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

use super::watch::Watch;

/// Those that have an end, in its order.
#[derive(Debug, Default)]
pub(super) struct Ages {
    by_end: Mutex<BTreeMap<(Instant, u64), Arc<Watch>>>,
}

impl Ages {
    fn by_end(&self) -> MutexGuard<'_, BTreeMap<(Instant, u64), Arc<Watch>>> {
        self.by_end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// One has been opened; `true` if it is the first to be told.
    pub(super) fn enter(&self, end: Instant, watch: &Arc<Watch>) -> bool {
        let mut by_end = self.by_end();
        let key = (end, watch.number);
        by_end.insert(key, Arc::clone(watch));
        by_end
            .first_key_value()
            .is_some_and(|(first, _)| *first == key)
    }

    /// One is closed.
    pub(super) fn leave(&self, end: Instant, number: u64) {
        self.by_end().remove(&(end, number));
    }

    /// Tells those whose time has come; returns when the next one's does.
    pub(super) fn tell(&self, now: Instant) -> Option<Instant> {
        let mut by_end = self.by_end();
        while let Some(first) = by_end.first_entry() {
            let (end, _) = *first.key();
            if end > now {
                return Some(end);
            }
            first.remove().retire();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_is_told_at_its_time_and_what_is_closed_is_forgotten() {
        let (ages, calls, start) = (Ages::default(), Arc::default(), Instant::now());
        let watches = [1, 2, 3].map(|number| Watch::new(0, number, &calls));
        let end = |watch: &Watch| start + Duration::from_secs(10 - watch.number);
        let are_first = watches
            .each_ref()
            .map(|watch| ages.enter(end(watch), watch));
        ages.leave(end(&watches[1]), 2);

        let next = ages.tell(end(&watches[2]));
        let are_old = watches
            .each_ref()
            .map(|watch| watch.is_old());

        assert_eq!((are_first, are_old), ([true; 3], [false, false, true]));
        assert_eq!(next, Some(end(&watches[0])));
        assert_eq!(ages.tell(end(&watches[0])), None);
        assert!(watches[0].is_old() && !watches[1].is_old());
    }
}
