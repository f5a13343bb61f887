//! A rate check for each peer: the table behind tower-net's limits beside keyed `governor`, in time and in memory.
//!
//! The table is no part of tower-net's API, so its two files are compiled here once more.

#[path = "../../../../layers/middleware/limit/gcra.rs"]
#[allow(dead_code, reason = "the library uses more of it")]
mod gcra;
mod measure;
#[path = "../../../../layers/middleware/limit/table.rs"]
#[allow(dead_code, reason = "the library uses more of it")]
mod table;

use std::hash::Hash;
use std::hint::black_box;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::time::Instant;

use anyhow::{Context, Result};
use governor::clock::{Clock, DefaultClock, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use gcra::Gcra;
use table::Table;

pub(crate) use measure::{memory, run};

/// One that checks: built for so many keys, then asked for one at a time.
struct Contestant {
    name: &'static str,
    build: fn(usize) -> Box<dyn Checks>,
}

trait Checks {
    /// Checks the keys of these numbers; all pass.
    fn check(&self, numbers: &[u32]);
}

const BASELINE: &str = "governor";

const CONTESTANTS: &[Contestant] = &[
    Contestant {
        name: BASELINE,
        build: |_| Box::new(Governor::new(DefaultClock::default(), ip)),
    },
    // With a key that is smaller than an address of either kind.
    Contestant {
        name: "governor_u64",
        build: |_| Box::new(Governor::new(DefaultClock::default(), network)),
    },
    // And no clock to read.
    Contestant {
        name: "governor_u64_no_clock",
        build: |_| Box::new(Governor::new(FakeRelativeClock::default(), network)),
    },
    // The library passes the moment of the accept, which it has.
    Contestant {
        name: OURS,
        build: |keys| Box::new(Ours::new(keys, None)),
    },
    Contestant {
        name: "ours_with_clock",
        build: |keys| Box::new(Ours::new(keys, Some(Instant::now()))),
    },
];

const OURS: &str = "ours";

fn find(name: &str) -> Result<&'static Contestant> {
    let mut all = CONTESTANTS.iter();
    all.find(|contestant| contestant.name == name)
        .with_context(|| format!("nobody here is called {name}"))
}

/// One a second, and so large a burst that all pass and nothing expires.
fn quota() -> Quota {
    Quota::per_second(NonZeroU32::MIN).allow_burst(NonZeroU32::MAX)
}

/// The network of a number: a /64 somewhere, as the 64 bits that it is.
fn network(number: u32) -> u64 {
    0x2000_0000_0000_0000 | u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 4
}

fn ip(number: u32) -> IpAddr {
    Ipv6Addr::from_bits(u128::from(network(number)) << 64).into()
}

struct Governor<K: Clone + Eq + Hash, C: Clock> {
    limiter: RateLimiter<K, DashMapStateStore<K>, C, NoOpMiddleware<C::Instant>>,
    key: fn(u32) -> K,
}

impl<K: Clone + Eq + Hash, C: Clock> Governor<K, C> {
    fn new(clock: C, key: fn(u32) -> K) -> Self {
        let limiter = RateLimiter::dashmap_with_clock(quota(), clock);
        Self { limiter, key }
    }
}

impl<K: Clone + Eq + Hash, C: Clock> Checks for Governor<K, C> {
    fn check(&self, numbers: &[u32]) {
        for number in numbers {
            let key = (self.key)(*number);
            assert!(self.limiter.check_key(&key).is_ok());
        }
    }
}

struct Ours {
    table: Table,
    gcra: Gcra,
    clock: Option<Instant>,
}

impl Ours {
    fn new(keys: usize, clock: Option<Instant>) -> Self {
        Self {
            table: Table::new(keys, || {}),
            gcra: Gcra::new(1_000_000_000, u32::MAX),
            clock,
        }
    }
}

impl Checks for Ours {
    fn check(&self, numbers: &[u32]) {
        for number in numbers {
            let now = match self.clock {
                Some(beginning) => beginning.elapsed().as_nanos() as u64 + 1,
                None => black_box(1),
            };
            let key = u128::from(network(*number)) << 64;
            assert!(
                self.gcra
                    .take(&self.table, key, now, 0)
                    .is_ok()
            );
        }
    }
}
