//! The client libraries alone: what a program would write that knows that nothing ever fails.
//!
//! Each does the same work on the server as kafkaq's store, in the best way that its client has, and looks at every
//! answer; but it takes every connection for granted, and knows that a batch is all creations or all replacements,
//! with one time to live.

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
    /// A batch as this side wants it.
    type Batch: Send + Sync + 'static;

    /// Isn't measured.
    fn prepare(&self, swaps: Vec<Swap>) -> impl Future<Output = Outcome<Self::Batch>> + Send;

    /// Fails if one of them isn't done. `caller` tells those that call at the same time apart.
    fn swap(&self, caller: usize, batch: &Self::Batch) -> impl Future<Output = Outcome<()>> + Send;

    /// What the server has used so far, if it tells.
    fn used(&self) -> impl Future<Output = Outcome<Option<Used>>> + Send {
        std::future::ready(Ok(None))
    }
}

/// What a server has used since it started.
#[derive(Clone, Copy)]
pub(crate) struct Used {
    /// Of its processor.
    pub(crate) cpu: Duration,
    /// Of its memory, now.
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
