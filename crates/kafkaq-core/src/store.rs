//! The store's side of the contract.

use crate::{Key, Result};
use async_trait::async_trait;
use bytes::Bytes;
use std::{fmt, time::Duration};

/// Replace one value by another, if it is still what the caller saw.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Swap {
    /// Whose value.
    pub key: Key,
    /// What must be there, byte for byte; `None`: nothing.
    pub expect: Option<Bytes>,
    /// What is there afterwards; `None`: nothing.
    pub new: Option<Bytes>,
    /// How long the new value lives, replacing any earlier limit; `None`: for ever. It may live longer, since
    /// it only keeps the store small, but never shorter.
    pub ttl: Option<Duration>,
}

impl Swap {
    /// A swap.
    #[must_use]
    pub fn new(key: Key, expect: Option<Bytes>, new: Option<Bytes>, ttl: Option<Duration>) -> Self {
        Swap { key, expect, new, ttl }
    }
}

/// What became of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The new value is there.
    Done,
    /// Nothing was changed, because this was there instead of `expect`. It was read at or after the comparison,
    /// so it may even equal `expect` again: the caller tries once more.
    Conflict(Option<Bytes>),
}

/// A key-value store with compare-and-swap and times to live.
///
/// kafkaq keeps work exclusive with it and remembers what is done. It is no source of truth: a store that loses
/// data costs a second execution, never a task. What it must never do is let two swaps of one key with the same
/// `expect` both succeed.
///
/// *Atomicity:* each swap is atomic for its key; a batch is not. Compare values, not versions: a ZooKeeper
/// version starts anew after delete and create and fences nobody.
/// *Ordering:* a swap that has been answered is seen by every later `get` and `swap` of the key, by any client.
/// *Cancel-safety:* a dropped future may or may not have taken effect.
/// *Bounds:* every call answers within the adapter's own request timeout, also when no server is there, and the
/// adapter reconnects by itself.
/// *Repeats:* an adapter may repeat a read, or a swap that certainly had no effect; never one of unknown effect.
/// *Errors:* `NotApplied` only if the swap certainly had no effect and won't have one later; a timeout or a
/// broken connection after sending is `Unknown`. Too few answers count as `Unknown` for the rest.
#[async_trait]
pub trait LeaseStore: Send + Sync + fmt::Debug + 'static {
    /// The values of the keys: one outcome per key, in the same order. Up to 1,000 keys per call.
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>>;

    /// Returns one outcome per swap, in the same order. Up to 1,000 swaps per call, whose keys are distinct.
    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>>;

    /// What an operator must know at start: an eviction policy that drops leases, no persistence, an old version.
    /// One sentence each, empty when there is nothing to say.
    ///
    /// # Errors
    /// When the store can't be reached or refuses the credentials.
    async fn check(&self) -> Result<Vec<String>>;

    /// Refuses further calls with `Closed`, waits for those that are under way, and ends everything of this handle.
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
