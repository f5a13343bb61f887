//! In which budgets for retries a call has been counted, by whoever is around the one that counts it now.

use std::cell::Cell;

/// Restores on drop what was known before.
#[derive(Debug)]
#[must_use = "it lasts only as long as the guard"]
pub(crate) struct Counted {
    outer: In,
}

/// Budgets are told apart by where they are.
#[derive(Debug, Clone, Copy)]
enum In {
    None,
    One(usize),
    All,
}

impl Counted {
    /// What is called on this thread has been counted in one budget, or in all that there are: that, nobody further in
    /// undoes.
    pub(super) fn mark(budget: Option<usize>) -> Self {
        let outer = COUNTED.get();
        COUNTED.set(match (outer, budget) {
            (In::All, _) | (_, None) => In::All,
            (_, Some(one)) => In::One(one),
        });
        Self { outer }
    }

    /// Whether the call that is being made on this thread has been counted in a budget.
    pub(super) fn is_in(budget: usize) -> bool {
        match COUNTED.get() {
            In::None => false,
            In::One(counted) => counted == budget,
            In::All => true,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        COUNTED.set(self.outer);
    }
}

thread_local! {
    static COUNTED: Cell<In> = const { Cell::new(In::None) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_in_all_budgets_nobody_further_in_counts_again() {
        let all = Counted::mark(None);
        let one = Counted::mark(Some(1));
        assert!(Counted::is_in(1) && Counted::is_in(2));
        drop(one);
        assert!(Counted::is_in(2));
        drop(all);
        assert!(!Counted::is_in(1));
    }
}
