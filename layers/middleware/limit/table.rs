//! What is remembered of peers: a table whose size is fixed when it is made, whoever comes.
//!
//! A key has one number, its *weight*: how many connections are open, or the time until which a rate is used up.
//! A slot whose weight is not above the floor (zero, or now) is free: nobody has to clear it.
//!
//! A key belongs to one shard and, in it, to two buckets; it is put into the emptier one, so that a table made for
//! so many peers holds them. When both are full, the key with the smallest weight makes room: the one that would
//! have been forgotten next anyway. So a newcomer always gets in, and the heaviest stay.
//!
//! # Invariants
//!
//! - A key is in at most one slot, and that in one of its two buckets.
//! - A slot that was never used has the key zero, which no peer has.
//! - One lock is held at a time, and nothing is called under it but what changes the weight, or looks at it.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fmt,
    hash::{BuildHasher, RandomState},
};

use crate::base::sync::{Mutex, MutexGuard, PoisonError};

/// The table. See the module.
pub(super) struct Table {
    shards: Box<[Shard]>,
    /// In each shard.
    buckets: u64,
    /// Keyed with a secret of this table: peers choose their addresses, and must not choose their buckets.
    hasher: RandomState,
    evicted: Box<dyn Fn() + Send + Sync>,
}

/// Aligned to two cache lines, which are what processors fetch at once: threads on different shards do not
/// disturb each other.
#[repr(align(128))]
struct Shard {
    /// None until the first key comes, then all that there will be.
    slots: Mutex<Vec<Slot>>,
}

/// The halves of the key, and the weight. An array of integers, since only of such does a large shard come as zeroed
/// memory that is not touched, and so not there, before it is used.
type Slot = [u64; 3];

impl Table {
    /// A table for so many peers. `evicted` is told of every key that made room, and must not block.
    pub(super) fn new(peers: usize, evicted: impl Fn() + Send + Sync + 'static) -> Self {
        let shards = (peers / SHARD_AT_LEAST)
            .next_power_of_two()
            .min(SHARDS);
        let slots = peers.saturating_add(peers / 2);
        let buckets = slots.div_ceil(BUCKET * shards).max(1);
        let shard = |_| Shard {
            slots: Mutex::default(),
        };
        Self {
            shards: (0..shards).map(shard).collect(),
            buckets: buckets as u64,
            hasher: RandomState::new(),
            evicted: Box::new(evicted),
        }
    }

    /// Changes the weight of `key`, which is `floor` if it is not known or not above it.
    ///
    /// A key that is left with a weight above the floor is remembered.
    pub(super) fn update<T>(&self, key: u128, floor: u64, change: impl FnOnce(&mut u64) -> T) -> T {
        let hash = self.hasher.hash_one(key);
        let shard = &self.shards[hash as usize % self.shards.len()];
        // Three numbers out of one: the lowest 6 bits, the next 29, the last 29.
        let bucket = |part: u64| (((part & PART) * self.buckets) >> PART_BITS) as usize * BUCKET;
        let buckets = [bucket(hash >> 6), bucket(hash >> 35)];

        let mut slots = shard.lock();
        if slots.is_empty() {
            *slots = vec![[0; 3]; self.buckets as usize * BUCKET];
        }
        if let Some(slot) = find(&mut slots, buckets, halves(key)) {
            slot[WEIGHT] = slot[WEIGHT].max(floor);
            return change(&mut slot[WEIGHT]);
        }
        let mut weight = floor;
        let done = change(&mut weight);
        if weight > floor {
            let slot = self.make_room(&mut slots, buckets, floor);
            let [high, low] = halves(key);
            *slot = [high, low, weight];
        }
        done
    }

    /// Shows every key with a weight above `floor`, which may be changed. Locks one shard after the other.
    pub(super) fn for_each(&self, floor: u64, mut see: impl FnMut(u128, &mut u64)) {
        for shard in &self.shards {
            for [high, low, weight] in &mut *shard.lock() {
                if *weight > floor {
                    see(u128::from(*high) << 64 | u128::from(*low), weight);
                }
            }
        }
    }

    /// How many keys have a weight above `floor`.
    pub(super) fn count(&self, floor: u64) -> usize {
        let mut count = 0;
        self.for_each(floor, |_, _| count += 1);
        count
    }

    /// The `most` heaviest keys above `floor`, the heaviest first.
    pub(super) fn heaviest(&self, floor: u64, most: usize) -> Vec<(u128, u64)> {
        let mut heaviest = BinaryHeap::new();
        self.for_each(floor, |key, weight| {
            heaviest.push(Reverse((*weight, key)));
            if heaviest.len() > most {
                heaviest.pop();
            }
        });
        let sorted = heaviest.into_sorted_vec();
        sorted
            .into_iter()
            .map(|Reverse((weight, key))| (key, weight))
            .collect()
    }

    /// The memory that it takes once every slot has been used.
    pub(super) fn bytes(&self) -> usize {
        let slots = self.buckets as usize * BUCKET * size_of::<Slot>();
        self.shards.len() * (size_of::<Shard>() + slots)
    }

    /// A slot for a key that has none: a free one of the emptier bucket, or else the lightest of both.
    fn make_room<'a>(
        &self,
        slots: &'a mut [Slot],
        buckets: [usize; 2],
        floor: u64,
    ) -> &'a mut Slot {
        let [one, other] = buckets.map(|bucket| {
            let (mut lightest, mut free) = (bucket, 0);
            for at in bucket..bucket + BUCKET {
                free += usize::from(slots[at][WEIGHT] <= floor);
                if slots[at][WEIGHT] < slots[lightest][WEIGHT] {
                    lightest = at;
                }
            }
            (free, lightest)
        });
        let (free, at) = match (one, other) {
            ((0, one), (0, other)) if slots[other][WEIGHT] < slots[one][WEIGHT] => (0, other),
            _ if other.0 > one.0 => other,
            _ => one,
        };
        if free == 0 {
            (self.evicted)();
        }
        &mut slots[at]
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("shards", &self.shards.len())
            .field("buckets", &self.buckets)
            .finish_non_exhaustive()
    }
}

fn find(slots: &mut [Slot], buckets: [usize; 2], [high, low]: [u64; 2]) -> Option<&mut Slot> {
    // One after the other: half of all keys are in their first bucket, and memory is what it costs.
    let find = |bucket: &usize| {
        let mut slots = slots[*bucket..bucket + BUCKET].iter();
        let at = slots.position(|slot| slot[0] == high && slot[1] == low)?;
        Some(bucket + at)
    };
    let at = buckets.iter().find_map(find)?;
    Some(&mut slots[at])
}

fn halves(key: u128) -> [u64; 2] {
    [(key >> 64) as u64, key as u64]
}

/// Enough that threads of a large machine seldom meet; each is locked for some ten nanoseconds.
const SHARDS: usize = 64;

/// Peers for a shard of its own: with fewer, chance would fill one well before the others.
const SHARD_AT_LEAST: usize = 1024;

/// Three cache lines of slots, which the processor fetches together.
const BUCKET: usize = 8;

/// Where the weight is in a slot.
const WEIGHT: usize = 2;

/// The bits of a hash that choose a bucket.
const PART_BITS: u32 = 29;
const PART: u64 = (1 << PART_BITS) - 1;
