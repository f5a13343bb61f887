//! The service itself: a key-value store in memory, the same for every connection.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, time::sleep};
use tower_net::{ConnInfo, Deadline, frame::Request};

use crate::protocol::{Call, MAX_FRAME, Refusal, Reply};

/// A handle to the store; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    shelf: Arc<Mutex<Shelf>>,
}

/// Bounds: `MAX_KEYS` entries of `MAX_ENTRY` bytes, and one sender for each key that a request in flight
/// waits for.
#[derive(Debug, Default)]
struct Shelf {
    entries: BTreeMap<String, String>,
    /// Everybody who waits here has seen what is in `entries`, so any change is news to all of them.
    awaited: HashMap<String, watch::Sender<Option<String>>>,
}

impl Store {
    /// Answers one call. All but a wait are answered at once.
    pub(crate) async fn answer(self, request: Request<Call>) -> Result<Reply, Infallible> {
        let conn = Arc::clone(request.conn());
        Ok(match request.into_message() {
            Call::Get { key } => Reply::Value(self.get(&key)),
            Call::Put { key, value } => self.shelf().put(key, value),
            Call::Delete { key } => self.shelf().delete(&key),
            Call::Scan { prefix, limit } => self.shelf().scan(prefix, limit),
            Call::Wait { key, seen } => self.wait(&key, seen, &conn).await,
        })
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<String> {
        self.shelf().entries.get(key).cloned()
    }

    /// Waits for a change, but never so long that it would be cut off: by its deadline, or by a drain.
    async fn wait(&self, key: &str, seen: Option<String>, conn: &ConnInfo) -> Reply {
        // Declared before the receiver, and so dropped after it.
        let _tidy = Tidy { store: self, key };
        let mut change = {
            let mut shelf = self.shelf();
            let now = shelf.entries.get(key);
            if now != seen.as_ref() {
                return Reply::Value(now.cloned());
            }
            let sender = shelf
                .awaited
                .entry(key.to_owned())
                .or_insert_with(|| watch::Sender::new(seen));
            sender.subscribe()
        };
        let left = Deadline::current().remaining();
        tokio::select! {
            biased;
            _ = change.changed() => Reply::Value(change.borrow().clone()),
            () = sleep(left - left / 8) => Reply::Unchanged,
            _ = conn.told_to_leave() => Reply::Unchanged,
        }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn put(&mut self, key: String, value: String) -> Reply {
        if key.len() + value.len() > MAX_ENTRY {
            return Reply::Refused(Refusal::TooLarge);
        }
        if self.entries.len() >= MAX_KEYS && !self.entries.contains_key(&key) {
            return Reply::Refused(Refusal::Full);
        }
        if self.entries.get(&key) != Some(&value) {
            self.tell(&key, Some(&value));
        }
        let replaced = self
            .entries
            .insert(key, value)
            .is_some();
        Reply::Stored { replaced }
    }

    fn delete(&mut self, key: &str) -> Reply {
        let existed = self.entries.remove(key).is_some();
        if existed {
            self.tell(key, None);
        }
        Reply::Deleted { existed }
    }

    /// Ends at the first entry that might not fit the reply, whatever `limit` says.
    fn scan(&self, prefix: String, limit: u32) -> Reply {
        let mut entries = Vec::new();
        let (mut bytes, mut more) = (0, false);
        let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        for (key, value) in self.entries.range::<str, _>(from) {
            if !key.starts_with(&prefix) {
                break;
            }
            bytes += key.len() + value.len() + ENTRY_OVERHEAD;
            more = entries.len() >= limit as usize || bytes > MAX_FRAME / 2;
            if more {
                break;
            }
            entries.push((key.clone(), value.clone()));
        }
        Reply::Entries { entries, more }
    }

    /// Tells all who wait for `key`. Who waits again after this change gets a sender of its own.
    fn tell(&mut self, key: &str, value: Option<&String>) {
        if let Some(awaited) = self.awaited.remove(key) {
            awaited.send_replace(value.cloned());
        }
    }
}

/// Whichever way a wait ends (a change, its time, a peer that went away), the last one leaves nothing behind.
struct Tidy<'a> {
    store: &'a Store,
    key: &'a str,
}

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        let mut shelf = self.store.shelf();
        let awaited = shelf.awaited.get(self.key);
        if awaited.is_some_and(|sender| sender.receiver_count() == 0) {
            shelf.awaited.remove(self.key);
        }
    }
}

/// With the largest entries, 640 MiB.
const MAX_KEYS: usize = 10_000;

/// Key and value together. A scan that ends at half a frame can still give any one of them.
const MAX_ENTRY: usize = MAX_FRAME / 4;

/// The two lengths of an entry on the wire, at most.
const ENTRY_OVERHEAD: usize = 10;
