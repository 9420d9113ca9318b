//! The tree of nodes, and reads and swaps of single keys in it.
//!
//! ```text
//!  /<prefix>/<shard: 00 to ff>/<key, its slashes written as colons>
//! ```
//! ZooKeeper compares versions, the contract compares values: a swap reads, compares, and writes if the version is
//! still the one it has read. A version starts over when a node is deleted and created, so only the sweeper deletes
//! nodes, and only long after their last change: see `sweeper.rs`.
//!
//! Servers answer reads from what they have seen so far. A session sees everything up to its own latest write, even one
//! that failed; so what was read before any write is only a guess, and is not returned.

use crate::{client::Client, failure, frame, session::Requests};
use bytes::Bytes;
use kafkaq_core::{Fnv, Key, Operation, Result, Swap, Swapped};
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};
use zookeeper_async::{Acl, CreateMode, ZkError, ZkResult};

pub(crate) const SHARDS: usize = 256;

/// Each failed round means that somebody else's write has succeeded.
const ROUNDS: usize = 32;

/// ZooKeeper's `jute.maxbuffer`, less what a request contains besides path and data.
const MAX_REQUEST: usize = 0xf_ffff - 256;

/// The location of the nodes, and their access rights.
#[derive(Clone, Debug)]
pub(crate) struct Nodes {
    /// With a leading slash and no trailing one.
    pub(crate) root: String,
    pub(crate) acl: Vec<Acl>,
    /// How much the clocks of writers and readers may differ.
    pub(crate) clock_skew: Duration,
}

/// A key's node, as it was read.
#[derive(Default)]
struct Seen {
    value: Option<Bytes>,
    /// `None`: there is no node.
    version: Option<i32>,
}

impl Nodes {
    pub(crate) fn shard(&self, shard: usize) -> String {
        format!("{}/{shard:02x}", self.root)
    }

    fn path(&self, key: &Key) -> String {
        let key = key.as_str();
        let mut path = String::with_capacity(self.root.len() + 4 + key.len());
        path.push_str(&self.shard(shard_of(key)));
        path.push('/');
        // A key has no colons.
        path.extend(key.chars().map(|c| if c == '/' { ':' } else { c }));
        path
    }

    /// The value, as it is now or later.
    pub(crate) async fn get(&self, requests: &Requests, key: &Key) -> Result<Option<Bytes>> {
        requests.bring_up_to_date(failure::READ).await?;
        Ok(look(&requests.zk, &self.path(key), failure::READ).await?.value)
    }

    /// Brings the session up to date with everything that was acknowledged to any client before.
    ///
    /// The client library has no `sync`. A write does more; deleting a node that never exists is a write that changes
    /// nothing.
    pub(crate) async fn barrier(&self, zk: &Client, operation: Operation) -> Result<()> {
        match zk.request().delete(&format!("{}/never", self.root), None).await {
            Ok(()) | Err(ZkError::NoNode | ZkError::NoAuth) => Ok(()),
            Err(e) => Err(failure::of(operation, e, false)),
        }
    }

    /// `sent` is true while a write is in flight whose outcome isn't known.
    pub(crate) async fn swap(&self, requests: &Requests, swap: &Swap, sent: &AtomicBool) -> Result<Swapped> {
        let zk = &*requests.zk;
        let path = self.path(&swap.key);
        if path.len() + swap.new.as_ref().map_or(0, Bytes::len) > MAX_REQUEST {
            return Err(failure::too_large());
        }
        // A node that is expected to be missing usually is.
        let creates = swap.expect.is_none() && swap.new.is_some();
        let mut guess = creates.then(Seen::default);
        let mut up_to_date = false;
        for _ in 0..ROUNDS {
            let seen = match guess.take() {
                Some(seen) => seen,
                None => look(zk, &path, failure::SWAP).await?,
            };
            let matches = seen.value == swap.expect;
            let nothing_to_write = matches && seen.value.is_none() && swap.new.is_none();
            if !matches || nothing_to_write {
                if up_to_date {
                    return Ok(if matches { Swapped::Done } else { Swapped::Conflict(seen.value) });
                }
                requests.bring_up_to_date(failure::SWAP).await?;
                up_to_date = true;
                continue;
            }
            sent.store(true, Relaxed);
            let answer = self.write(zk, &path, seen.version, swap).await;
            match answer {
                Ok(()) => return Ok(Swapped::Done),
                Err(ZkError::BadVersion | ZkError::NodeExists) => sent.store(false, Relaxed),
                Err(ZkError::NoNode) => {
                    sent.store(false, Relaxed);
                    if seen.version.is_none() {
                        self.make_parents(zk, &path)
                            .await
                            .map_err(|e| failure::of(failure::SWAP, e, false))?;
                        guess = creates.then(Seen::default);
                    }
                }
                Err(e) => return Err(failure::of(failure::SWAP, e, true)),
            }
            up_to_date = true;
        }
        Err(failure::contended())
    }

    async fn write(&self, zk: &Client, path: &str, version: Option<i32>, swap: &Swap) -> ZkResult<()> {
        let data = match &swap.new {
            Some(new) => {
                let expires_at = swap.ttl.map(|ttl| frame::after(frame::now(), ttl, self.clock_skew));
                frame::value(new, expires_at)
            }
            None => frame::gone(),
        };
        match version {
            Some(version) => zk.request().set_data(path, data, Some(version)).await.map(drop),
            None => zk.request().create(path, data, self.acl.clone(), CreateMode::Persistent).await.map(drop),
        }
    }

    /// Creates all nodes above this one.
    pub(crate) async fn make_parents(&self, zk: &Client, path: &str) -> ZkResult<()> {
        for (end, _) in path.match_indices('/').skip(1) {
            let parent = &path[..end];
            // Checked first: a user who may not create nodes in the root may still use existing ones.
            if zk.request().exists(parent, false).await?.is_none() {
                match zk.request().create(parent, Vec::new(), self.acl.clone(), CreateMode::Persistent).await
                {
                    Ok(_) | Err(ZkError::NodeExists) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}

async fn look(zk: &Client, path: &str, operation: Operation) -> Result<Seen> {
    match zk.request().get_data(path, false).await {
        Ok((data, stat)) => {
            let value = frame::read(data, frame::now()).map_err(|()| failure::corrupt(operation))?;
            Ok(Seen { value, version: Some(stat.version) })
        }
        Err(ZkError::NoNode) => Ok(Seen::default()),
        Err(e) => Err(failure::of(operation, e, false)),
    }
}

/// FNV-1a, folded to a byte. It must never change: every process must find the same node.
fn shard_of(key: &str) -> usize {
    let mut hash = Fnv::new();
    hash.add(key.as_bytes());
    hash.0.to_le_bytes().into_iter().fold(0, |shard, b| shard ^ usize::from(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafkaq_core::Partition;

    #[test]
    fn paths_never_change() {
        let nodes = Nodes { root: "/k/q".into(), acl: Vec::new(), clock_skew: Duration::ZERO };
        let path = nodes.path(&Key::partition("g", &Partition::new("t", 7)));
        assert_eq!(path, "/k/q/4b/p:g:t:7");
    }

    #[test]
    fn keys_spread_over_all_shards() {
        let mut counts = [0; SHARDS];
        for n in 0..25_600 {
            counts[shard_of(&format!("t/q/g/task-{n}"))] += 1;
        }
        assert!(counts.iter().all(|n| (50..200).contains(n)), "{counts:?}");
    }
}
