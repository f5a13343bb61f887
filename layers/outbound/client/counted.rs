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
    /// What is called on this thread has been counted in one budget, or in all that there are.
    pub(super) fn mark(budget: Option<usize>) -> Self {
        Self {
            outer: COUNTED.replace(budget.map_or(In::All, In::One)),
        }
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
