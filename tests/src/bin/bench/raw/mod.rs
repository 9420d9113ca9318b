//! The bare client libraries: as a program would use them that assumes that nothing ever fails.
//!
//! Each does the same work on the server as kafkaq's store, in the best way that its client offers, and checks every
//! response; but it assumes that connections don't fail, and that a batch is all creations or all replacements with one
//! time to live.

mod etcd;
pub(crate) mod kafka;
mod redis;
mod zookeeper;

pub(crate) use self::{
    etcd::Etcd,
    redis::{Cluster, Redis},
    zookeeper::ZooKeeper,
};

use crate::Outcome;
use kafkaq::backend::{Key, Swap};
use std::time::Duration;

/// One side of the comparison.
pub(crate) trait Swaps: Send + Sync + 'static {
    /// A batch in this side's form.
    type Batch: Send + Sync + 'static;

    /// Prepares a batch. Not measured.
    fn prepare(&self, swaps: Vec<Swap>) -> impl Future<Output = Outcome<Self::Batch>> + Send;

    /// Fails if a swap isn't done. `caller` identifies concurrent callers.
    fn swap(&self, caller: usize, batch: &Self::Batch) -> impl Future<Output = Outcome<()>> + Send;

    /// Returns what the server has used so far, if it reports it.
    fn used(&self) -> impl Future<Output = Outcome<Option<Used>>> + Send {
        std::future::ready(Ok(None))
    }
}

/// What a server has used since it started.
#[derive(Clone, Copy)]
pub(crate) struct Used {
    /// CPU time.
    pub(crate) cpu: Duration,
    /// Current memory.
    pub(crate) bytes: f64,
}

/// For a store that has no client.
pub(crate) enum Nothing {}

impl Swaps for Nothing {
    type Batch = ();

    async fn prepare(&self, _: Vec<Swap>) -> Outcome<()> {
        match *self {}
    }

    async fn swap(&self, _: usize, _: &()) -> Outcome<()> {
        match *self {}
    }
}

fn full(key: &Key) -> String {
    format!("raw/{key}")
}

fn all_done(done: impl IntoIterator<Item = bool>) -> Outcome<()> {
    if done.into_iter().all(|done| done) { Ok(()) } else { Err("the client's swap met a conflict".into()) }
}
