//! `zookeeper-async`: one session per caller, and many requests of a batch in flight, since the client has no `multi`.
//!
//! A creation is a `create`. A replacement is a `get_data`, a comparison, and a `set_data` with the version that was
//! read: ZooKeeper itself compares versions, which start over when a node is recreated, so replacing a value requires
//! reading it.

use super::{Swaps, all_done};
use crate::{Outcome, stores::UNDER_WAY};
use futures_util::{StreamExt, TryStreamExt, stream};
use kafkaq::backend::{Key, Swap};
use std::time::Duration;
use zookeeper_async::{Acl, CreateMode, WatchedEvent, Watcher, ZkError, ZooKeeper as Client};

/// The same as in kafkaq's store.
const IN_FLIGHT: usize = 256;

pub(crate) struct ZooKeeper {
    /// One per caller.
    sessions: Vec<Client>,
}

struct NoWatch;

impl Watcher for NoWatch {
    fn handle(&self, _event: WatchedEvent) {}
}

impl ZooKeeper {
    pub(crate) async fn connect(address: &str) -> Outcome<ZooKeeper> {
        let mut sessions = Vec::new();
        for _ in 0..UNDER_WAY {
            sessions.push(Client::connect(address, Duration::from_secs(10), NoWatch).await?);
        }
        match sessions[0].create("/raw", Vec::new(), Acl::open_unsafe().clone(), CreateMode::Persistent).await
        {
            Ok(_) | Err(ZkError::NodeExists) => Ok(ZooKeeper { sessions }),
            Err(e) => Err(e.into()),
        }
    }
}

fn path(key: &Key) -> String {
    format!("/raw/{}", key.as_str().replace('/', ":"))
}

impl Swaps for ZooKeeper {
    type Batch = Vec<Swap>;

    async fn prepare(&self, swaps: Vec<Swap>) -> Outcome<Vec<Swap>> {
        Ok(swaps)
    }

    async fn swap(&self, caller: usize, batch: &Vec<Swap>) -> Outcome<()> {
        let session = &self.sessions[caller];
        let requests = batch.iter().map(|swap| one(session, swap));
        let done = stream::iter(requests.collect::<Vec<_>>()).buffer_unordered(IN_FLIGHT);
        all_done(done.try_collect::<Vec<_>>().await?)
    }
}

async fn one(session: &Client, swap: &Swap) -> Result<bool, ZkError> {
    let (path, new) = (path(&swap.key), swap.new.as_deref().unwrap_or_default().to_vec());
    let Some(expect) = &swap.expect else {
        session.create(&path, new, Acl::open_unsafe().clone(), CreateMode::Persistent).await?;
        return Ok(true);
    };
    let (is, stat) = session.get_data(&path, false).await?;
    if is != *expect {
        return Ok(false);
    }
    session.set_data(&path, new, Some(stat.version)).await?;
    Ok(true)
}
