//! The contract of stores.

use crate::{Key, Result};
use async_trait::async_trait;
use bytes::Bytes;
use std::{fmt, time::Duration};

/// Replaces a value if it is still what the caller saw.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Swap {
    /// The key.
    pub key: Key,
    /// The expected value, byte for byte; `None`: no value.
    pub expect: Option<Bytes>,
    /// The new value; `None`: no value.
    pub new: Option<Bytes>,
    /// How long the new value lives, replacing any earlier limit; `None`: forever. It may live longer, since
    /// it only keeps the store small, but never shorter.
    pub ttl: Option<Duration>,
}

impl Swap {
    /// Creates a swap.
    #[must_use]
    pub fn new(key: Key, expect: Option<Bytes>, new: Option<Bytes>, ttl: Option<Duration>) -> Self {
        Swap { key, expect, new, ttl }
    }
}

/// The outcome of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The value was replaced.
    Done,
    /// Nothing was changed, because this value was there instead of `expect`. It was read at or after the comparison,
    /// so it may even equal `expect` again: the caller retries.
    Conflict(Option<Bytes>),
}

/// A key-value store with compare-and-swap and times to live.
///
/// kafkaq uses it to keep executions exclusive and to remember what is done. It is not a source of truth: a store that
/// loses data costs a second execution, never a task. But it must never let two swaps of one key with the same `expect`
/// both succeed.
///
/// *Atomicity:* each swap is atomic for its key; a batch is not. Compare values, not versions: a ZooKeeper version
/// starts over after delete and create and protects nothing. *Ordering:* a swap that has returned is seen by every
/// later `get` and `swap` of the key, by any client. *Cancel-safety:* a dropped future may or may not have taken
/// effect. *Bounds:* every call returns within the adapter's own request timeout, even without a server, and the
/// adapter reconnects by itself. *Retries:* an adapter may retry a read, or a swap that certainly had no effect; never
/// one of unknown effect. *Errors:* `NotApplied` only if the swap certainly had no effect and won't have one later; a
/// timeout or a broken connection after sending is `Unknown`. If outcomes are missing, they count as `Unknown`.
#[async_trait]
pub trait LeaseStore: Send + Sync + fmt::Debug + 'static {
    /// Returns the values of the keys: one outcome per key, in the same order. Up to 1,000 keys per call.
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>>;

    /// Returns one outcome per swap, in the same order. Up to 1,000 swaps per call, whose keys are distinct.
    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>>;

    /// Returns what an operator must know at startup: an eviction policy that drops leases, no persistence, an old
    /// version. One sentence each.
    ///
    /// # Errors
    /// If the store can't be reached or refuses the credentials.
    async fn check(&self) -> Result<Vec<String>>;

    /// Refuses further calls with `Closed`, waits for those in flight, and releases all resources of this handle.
    /// Idempotent.
    async fn close(&self) -> Result<()>;
}

#[async_trait]
impl<T: LeaseStore + ?Sized> LeaseStore for std::sync::Arc<T> {
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        (**self).get(keys).await
    }

    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        (**self).swap(swaps).await
    }

    async fn check(&self) -> Result<Vec<String>> {
        (**self).check().await
    }

    async fn close(&self) -> Result<()> {
        (**self).close().await
    }
}
