//! The good clients: they know what every reply must be, and check it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use tokio::time::Instant;
use tower_net::error::BoxError;

use crate::{
    client::Client,
    latency::Histogram,
    protocol::{Call, Reply},
    store::Store,
};

/// What all workers and whoever watches them share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) answered: AtomicU64,
    /// Set before the server is told: from then on a connection may end.
    pub(crate) draining: AtomicBool,
}

/// What one worker has seen, or many.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) answered: u64,
    pub(crate) latency: Histogram,
    /// Replies that were not what they had to be.
    pub(crate) wrong: u64,
    /// Calls that were lost while the server served.
    pub(crate) lost: u64,
    /// Calls that the drain left unanswered.
    pub(crate) turned_away: u64,
    /// Keys whose value in the store is not what the replies made of it: a call took effect unanswered, or
    /// an answered one did not.
    pub(crate) astray: u64,
    pub(crate) complaints: Vec<String>,
}

impl Seen {
    pub(crate) fn new() -> Self {
        Self {
            answered: 0,
            latency: Histogram::new(),
            wrong: 0,
            lost: 0,
            turned_away: 0,
            astray: 0,
            complaints: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.latency.add(&other.latency);
        self.wrong += other.wrong;
        self.lost += other.lost;
        self.turned_away += other.turned_away;
        self.astray += other.astray;
        self.complaints.extend(other.complaints);
    }

    /// A call had no reply: right if the server drains, since then it was never begun.
    pub(crate) fn lost_to(&mut self, error: BoxError, draining: bool) {
        if draining {
            self.turned_away += 1;
        } else {
            self.lost += 1;
            self.complaints.push(error.to_string());
        }
    }
}

/// One of several callers on one connection, with keys of its own: nobody else changes them, so it knows
/// what they hold.
pub(crate) struct Worker {
    client: Client,
    shared: Arc<Shared>,
    prefix: String,
    model: BTreeMap<String, String>,
    seen: Seen,
    random: u64,
}

/// The connection is over.
struct Over;

impl Worker {
    pub(crate) fn new(client: Client, number: u64, shared: Arc<Shared>) -> Self {
        Self {
            client,
            shared,
            prefix: format!("worker {number}/"),
            model: BTreeMap::new(),
            seen: Seen::new(),
            // Any odd start will do; each run makes the same calls.
            random: number * 2 + 1,
        }
    }

    /// Calls until the connection is over, then compares what it knows with what is in the store.
    pub(crate) async fn run(mut self, store: Store) -> Seen {
        while self.step().await.is_ok() {}
        let held = KEYS.map(|key| {
            let key = format!("{}{key}", self.prefix);
            self.model.get(&key) == store.get(&key).as_ref()
        });
        self.seen.astray = held
            .iter()
            .filter(|held| !**held)
            .count() as u64;
        self.seen
    }

    async fn step(&mut self) -> Result<(), Over> {
        let random = self.next_random();
        let key = KEYS[random as usize % (KEYS.len() - 1)];
        let key = format!("{}{key}", self.prefix);
        match random >> 32 & 15 {
            0..=6 => {
                let expected = Reply::Value(self.model.get(&key).cloned());
                self.ask(Call::Get { key }, expected)
                    .await
            }
            7..=11 => {
                let value = self.next_value();
                let replaced = self.model.contains_key(&key);
                let call = Call::Put {
                    key: key.clone(),
                    value: value.clone(),
                };
                self.ask(call, Reply::Stored { replaced })
                    .await?;
                self.model.insert(key, value);
                Ok(())
            }
            12 => {
                let existed = self.model.contains_key(&key);
                let call = Call::Delete { key: key.clone() };
                self.ask(call, Reply::Deleted { existed })
                    .await?;
                self.model.remove(&key);
                Ok(())
            }
            13 | 14 => {
                let entries = self.model.iter().take(SCAN);
                let expected = Reply::Entries {
                    entries: entries
                        .map(|(k, v)| (k.clone(), v.clone()))
                        .collect(),
                    more: self.model.len() > SCAN,
                };
                let prefix = self.prefix.clone();
                let limit = SCAN as u32;
                self.ask(Call::Scan { prefix, limit }, expected)
                    .await
            }
            _ => self.wait().await,
        }
    }

    /// Waits for a key, and changes it by a second call behind the first on the same connection.
    async fn wait(&mut self) -> Result<(), Over> {
        let key = format!("{}{AWAITED}", self.prefix);
        let value = self.next_value();
        let seen = self.model.get(&key).cloned();
        let replaced = seen.is_some();
        let wait = Call::Wait {
            key: key.clone(),
            seen,
        };
        let put = Call::Put {
            key: key.clone(),
            value: value.clone(),
        };
        let begun = Instant::now();
        let (change, stored) = tokio::join!(self.client.call(wait), self.client.call(put));
        let unchanged = matches!(change, Ok(Reply::Unchanged)) && self.is_draining();
        let change = if unchanged {
            // The drain ended the wait: as right as any answer.
            self.count(begun);
            Ok(())
        } else {
            self.check(begun, change, &Reply::Value(Some(value.clone())))
        };
        self.check(begun, stored, &Reply::Stored { replaced })?;
        self.model.insert(key, value);
        change
    }

    async fn ask(&mut self, call: Call, expected: Reply) -> Result<(), Over> {
        let begun = Instant::now();
        let reply = self.client.call(call).await;
        self.check(begun, reply, &expected)
    }

    fn check(
        &mut self,
        begun: Instant,
        reply: Result<Reply, BoxError>,
        expected: &Reply,
    ) -> Result<(), Over> {
        match reply {
            Ok(reply) => {
                self.count(begun);
                if reply != *expected {
                    self.seen.wrong += 1;
                    let complaint = format!("{} got {reply}, not {expected}", self.prefix);
                    self.seen.complaints.push(complaint);
                    // What it knows is worth nothing any more.
                    return Err(Over);
                }
                Ok(())
            }
            Err(error) => {
                let draining = self.is_draining();
                self.seen.lost_to(error, draining);
                Err(Over)
            }
        }
    }

    fn count(&mut self, begun: Instant) {
        self.seen
            .latency
            .record(begun.elapsed());
        self.seen.answered += 1;
        self.shared
            .answered
            .fetch_add(1, Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.shared.draining.load(Relaxed)
    }

    fn next_value(&mut self) -> String {
        let random = self.next_random();
        format!("{random:016x}").repeat(1 + random as usize % 8)
    }

    /// Marsaglia's xorshift: all that is wanted is a mix.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// A worker's keys; the last is only ever changed by a wait.
const KEYS: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", "h", AWAITED];
const AWAITED: &str = "z";

/// Entries a scan asks for.
const SCAN: usize = 4;
