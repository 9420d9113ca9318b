//! Deletes removed and expired nodes, slowly, one shard at a time.
//!
//! Nothing else deletes nodes, since versions are meaningless across incarnations: if a process reads a node at version
//! 3, and somebody deletes the node, recreates it and changes it three times, the process would overwrite a value that
//! it has never compared. So a node stays until it was unchanged for `linger`, by the server's clock. That is longer
//! than a call lasts, and longer than a session survives while its process is suspended: a later write is from an
//! expired session, and has no effect.
//!
//! Nodes with a time to live of their own (TTL nodes) are not used: theirs is fixed when they are created, while a swap
//! replaces it or makes the value live forever, and without `multi` a node can't be exchanged in one step.
//!
//! A shard's own node records when it was last swept, so that the work doesn't grow with the number of processes.

use crate::{client::Client, frame, nodes::SHARDS};
use futures_util::{StreamExt, stream};
use std::{hash::BuildHasher, sync::Arc};
use zookeeper_async::{ZkError, ZkResult};

/// Few, so that it hardly affects the calls of the same session.
const IN_FLIGHT: usize = 16;

/// Runs until its session has sent too many requests, since the next one has a sweeper, too. It is dropped with its
/// session.
pub(crate) async fn run(zk: Arc<Client>) {
    let pause = zk.settings.sweep_every / SHARDS as u32;
    // Processes that start together start with different shards.
    let mut shard = std::hash::RandomState::new().hash_one(frame::now()) as usize % SHARDS;
    while !zk.is_used_up() {
        tokio::time::sleep(pause).await;
        match sweep(&zk, shard).await {
            Ok(0) | Err(ZkError::NoNode | ZkError::BadVersion) => {}
            Ok(removed) => tracing::debug!(target: "kafkaq", shard, removed, "swept"),
            Err(error) => tracing::debug!(target: "kafkaq", shard, %error, "could not sweep"),
        }
        shard = (shard + 1) % SHARDS;
    }
}

/// Returns how many nodes it has deleted.
///
/// # Errors
/// `NoNode` and `BadVersion` are harmless: there is nothing to sweep, or somebody else does it.
async fn sweep(zk: &Client, shard: usize) -> ZkResult<usize> {
    let settings = &zk.settings;
    let parent = settings.nodes.shard(shard);
    let (_, last) = zk.request().get_data(&parent, false).await?;
    // Clocks that differ make this earlier or later, which is harmless.
    if frame::now() < millis(last.mtime).saturating_add(frame::millis(settings.sweep_every) / 2) {
        return Ok(0);
    }
    let claimed = zk.request().set_data(&parent, Vec::new(), Some(last.version)).await?;
    let before = millis(claimed.mtime).saturating_sub(frame::millis(settings.linger));
    let names = zk.request().get_children(&parent, false).await?;
    let mut done = stream::iter(names)
        .map(|name| remove_if_old(zk, format!("{parent}/{name}"), before))
        .buffer_unordered(IN_FLIGHT);
    let mut removed = 0;
    while let Some(one) = done.next().await {
        match one {
            Ok(true) => removed += 1,
            Ok(false) | Err(ZkError::NoNode | ZkError::BadVersion) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(removed)
}

/// `before`: on the server's clock.
async fn remove_if_old(zk: &Client, path: String, before: u64) -> ZkResult<bool> {
    let (data, stat) = zk.request().get_data(&path, false).await?;
    let missing = frame::read(data, frame::now()) == Ok(None);
    if !missing || millis(stat.mtime) > before {
        return Ok(false);
    }
    zk.request().delete(&path, Some(stat.version)).await?;
    Ok(true)
}

fn millis(time: i64) -> u64 {
    u64::try_from(time).unwrap_or(0)
}
