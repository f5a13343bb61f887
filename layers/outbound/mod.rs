//! What keeps connections to others: budgets, pools, clients, and the choice among several of them.

#[cfg(feature = "balance")]
pub mod balance;
pub mod budget;
pub mod client;
pub mod pool;
