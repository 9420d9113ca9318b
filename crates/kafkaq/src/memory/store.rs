//! The in-memory store: sharded maps, whose entries expire when they are accessed.

use super::lock;
use async_trait::async_trait;
use bytes::Bytes;
use foldhash::quality::RandomState;
use kafkaq_core::{Error, ErrorKind, Key, LeaseStore, Result, Swap, Swapped};
use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::time::Instant;

/// Many, so that growing or sweeping a shard blocks nobody for long.
const SHARDS: usize = 64;
/// A smaller shard is not worth sweeping.
const SWEEP_FROM: usize = 64;

/// A [`LeaseStore`] in memory.
///
/// A clone is another client of the same entries; [`LeaseStore::close`] closes one client only. Times to live follow
/// tokio's clock, so `tokio::time::pause` works. Expired entries are swept as new ones are added: at most a few
/// thousand of them remain, or about as many as were alive at the last sweep.
pub struct MemoryStore {
    shards: Arc<Shards>,
    closed: AtomicBool,
}

struct Shards {
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
}

struct Shard {
    values: HashMap<Hashed, Value, BuildHasherDefault<Same>>,
    /// The number of values at which the next sweep happens.
    sweep_at: usize,
}

struct Value {
    bytes: Bytes,
    /// `None`: never.
    expires: Option<Instant>,
}

/// A key with its hash, so that a growing map need not fetch every key from memory. Measured with a million leases,
/// this halves the cost of adding one.
#[derive(PartialEq, Eq)]
struct Hashed {
    hash: u64,
    key: Key,
}

impl Hash for Hashed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Passes the hash of [`Hashed`] through.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        debug_assert!(false, "a hash is written as a whole, not as {} bytes", bytes.len());
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        MemoryStore { shards: Arc::new(Shards::new()), closed: AtomicBool::new(false) }
    }

    /// Forgets everything, like a store that lost its disk. For tests.
    pub fn clear(&self) {
        for shard in &self.shards.shards {
            lock(shard).values.clear();
        }
    }

    /// Forgets one key, like an evicting store, and returns its value. For tests.
    pub fn remove(&self, key: &Key) -> Option<Bytes> {
        let (shard, key) = self.shards.find(key);
        let value = lock(shard).values.remove(&key)?;
        value.is_alive(Instant::now()).then_some(value.bytes)
    }

    /// Returns how many keys have a value. It visits all of them.
    #[must_use]
    pub fn len(&self) -> usize {
        let now = Instant::now();
        let alive = |s: &Mutex<Shard>| lock(s).values.values().filter(|v| v.is_alive(now)).count();
        self.shards.shards.iter().map(alive).sum()
    }

    /// Whether no key has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn closed(&self, op: &'static str) -> Option<Error> {
        let closed = self.closed.load(Ordering::Acquire);
        closed.then(|| Error::not_applied(ErrorKind::Closed, op).on("the store in memory"))
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for MemoryStore {
    /// Another client of the same entries, open even if this one was closed.
    fn clone(&self) -> Self {
        MemoryStore { shards: self.shards.clone(), closed: AtomicBool::new(false) }
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl Shards {
    fn new() -> Self {
        // Each is swept at a different size, so that they aren't all swept at once.
        let sizes = (0..SHARDS).map(|n| SWEEP_FROM + n * SWEEP_FROM / SHARDS);
        let shard = |sweep_at| Mutex::new(Shard { values: HashMap::default(), sweep_at });
        Shards { hasher: RandomState::default(), shards: sizes.map(shard).collect() }
    }

    fn find(&self, key: &Key) -> (&Mutex<Shard>, Hashed) {
        let hash = self.hasher.hash_one(key);
        // The map uses the lowest and the highest bits.
        (&self.shards[(hash >> 32) as usize % SHARDS], Hashed { hash, key: key.clone() })
    }
}

impl Value {
    fn is_alive(&self, now: Instant) -> bool {
        self.expires.is_none_or(|at| now < at)
    }
}

impl Shard {
    fn swap(&mut self, key: Hashed, swap: &Swap, now: Instant) -> Swapped {
        let entry = self.values.entry(key);
        let current = match &entry {
            Entry::Occupied(e) if e.get().is_alive(now) => Some(&e.get().bytes),
            _ => None,
        };
        if current != swap.expect.as_ref() {
            return Swapped::Conflict(current.cloned());
        }
        match (&swap.new, entry) {
            (Some(bytes), entry) => {
                // A limit that overflows counts as none.
                let expires = swap.ttl.and_then(|ttl| now.checked_add(ttl));
                entry.insert_entry(Value { bytes: bytes.clone(), expires });
                self.sweep(now);
            }
            (None, Entry::Occupied(entry)) => drop(entry.remove()),
            (None, Entry::Vacant(_)) => {}
        }
        Swapped::Done
    }

    /// Drops expired entries each time the number of values has doubled: an amortized constant cost per swap.
    fn sweep(&mut self, now: Instant) {
        if self.values.len() > self.sweep_at {
            self.values.retain(|_, value| value.is_alive(now));
            self.sweep_at = SWEEP_FROM.max(2 * self.values.len());
        }
    }
}

#[async_trait]
impl LeaseStore for MemoryStore {
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        if let Some(error) = self.closed("get") {
            return vec![Err(error); keys.len()];
        }
        let now = Instant::now();
        let get = |key| {
            let (shard, key) = self.shards.find(key);
            lock(shard).values.get(&key).filter(|v| v.is_alive(now)).map(|v| v.bytes.clone())
        };
        keys.iter().map(|key| Ok(get(key))).collect()
    }

    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        if let Some(error) = self.closed("swap") {
            return vec![Err(error); swaps.len()];
        }
        let now = Instant::now();
        let swap = |swap: &Swap| {
            let (shard, key) = self.shards.find(&swap.key);
            lock(shard).swap(key, swap, now)
        };
        swaps.iter().map(|s| Ok(swap(s))).collect()
    }

    async fn check(&self) -> Result<Vec<String>> {
        self.closed("check").map_or(Ok(Vec::new()), Err)
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}
