//! Where those who wait are kept: each in a row that is used again and written where it lies, since all that have to
//! wait come by here.

use std::{
    ops::{Index, IndexMut},
    task::Waker,
};

use super::books::{Given, Terms};

#[derive(Debug)]
pub(super) struct Waiter<C> {
    /// Zero where the row is free.
    pub(super) number: u64,
    /// Or, where the row is free, the next free one.
    pub(super) target: usize,
    pub(super) waker: Option<Waker>,
    /// It has had a place to dial in.
    pub(super) has_dialled: bool,
    /// Dials up to this number are not its own: it was served since, by one that was dead.
    pub(super) not_its_own: u64,
    pub(super) given: Given<C>,
    pub(super) terms: Terms,
}

/// As many rows as have waited at a time.
#[derive(Debug)]
pub(super) struct Waiters<C> {
    rows: Vec<Waiter<C>>,
    /// The first free row, or where the next one is added.
    free: usize,
}

impl<C> Waiters<C> {
    pub(super) fn new() -> Self {
        Self {
            rows: Vec::new(),
            free: 0,
        }
    }

    /// Where the next one will be.
    pub(super) fn next(&self) -> usize {
        self.free
    }

    #[inline(always)]
    pub(super) fn enter(
        &mut self,
        number: u64,
        target: usize,
        terms: Terms,
        has_dialled: bool,
        waker: Option<Waker>,
    ) {
        let Some(row) = self.rows.get_mut(self.free) else {
            self.free += 1;
            return self.add(Waiter {
                number,
                target,
                waker,
                has_dialled,
                not_its_own: 0,
                given: Given::Nothing,
                terms,
            });
        };
        self.free = row.target;
        row.number = number;
        row.target = target;
        row.waker = waker;
        row.has_dialled = has_dialled;
        row.not_its_own = 0;
        row.terms = terms;
    }

    #[cold]
    fn add(&mut self, waiter: Waiter<C>) {
        self.rows.push(waiter);
    }

    /// Frees a row, of which all that has to be dropped was taken.
    #[inline(always)]
    pub(super) fn free(&mut self, key: usize) {
        let row = &mut self.rows[key];
        debug_assert!(row.number > 0, "it is left once");
        debug_assert!(
            row.waker.is_none() && matches!(row.given, Given::Nothing),
            "nothing is left in it"
        );
        row.number = 0;
        row.target = self.free;
        self.free = key;
    }

    pub(super) fn get(&self, key: usize) -> Option<&Waiter<C>> {
        self.rows
            .get(key)
            .filter(|row| row.number > 0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Waiter<C>)> {
        let rows = self.rows.iter().enumerate();
        rows.filter(|(_, row)| row.number > 0)
    }
}

impl<C> Index<usize> for Waiters<C> {
    type Output = Waiter<C>;

    #[inline(always)]
    fn index(&self, key: usize) -> &Waiter<C> {
        &self.rows[key]
    }
}

impl<C> IndexMut<usize> for Waiters<C> {
    #[inline(always)]
    fn index_mut(&mut self, key: usize) -> &mut Waiter<C> {
        &mut self.rows[key]
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn keys(waiters: &Waiters<()>) -> Vec<(usize, u64)> {
        let taken = waiters.iter();
        taken
            .map(|(key, waiter)| (key, waiter.number))
            .collect()
    }

    #[test]
    fn a_row_that_is_free_is_used_again_before_one_is_added() {
        let terms = Terms {
            since: Instant::now(),
            by: None,
            is_callers: false,
        };
        let mut waiters = Waiters::new();
        let enter = |waiters: &mut Waiters<()>, number| {
            let key = waiters.next();
            waiters.enter(number, 0, terms, false, None);
            key
        };
        for number in 1..=3 {
            enter(&mut waiters, number);
        }

        waiters.free(0);
        waiters.free(2);
        assert_eq!(keys(&waiters), [(1, 2)]);
        assert!(waiters.get(0).is_none() && waiters.get(3).is_none());
        let again = [4, 5, 6].map(|number| enter(&mut waiters, number));

        assert_eq!(again, [2, 0, 3]);
        assert_eq!(keys(&waiters), [(0, 5), (1, 2), (2, 4), (3, 6)]);
    }
}
