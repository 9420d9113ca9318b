//! The store against a real ZooKeeper: Debian's, or what the variable `KAFKAQ_ZOOKEEPER_CLASSPATH` names.

// Clippy's exception for tests does not reach their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod failures;
mod server;
mod swaps;
mod sweeping;

use bytes::Bytes;
use kafkaq_core::{Error, Key, Keyspace, LeaseStore, Swap, Swapped, TaskId};
use kafkaq_zookeeper::{ZooKeeperStore, ZooKeeperStoreBuilder};
use server::Server;
use std::time::Duration;
use zookeeper_async::{WatchedEvent, Watcher, ZooKeeper};

/// For a machine that has other things to do. Clocks don't differ here.
fn builder(server: &Server, prefix: &str) -> ZooKeeperStoreBuilder {
    ZooKeeperStore::builder(server.address())
        .prefix(prefix)
        .request_timeout(Duration::from_secs(10))
        .clock_skew(Duration::ZERO)
}

fn key(id: &str) -> Key {
    Key::task(&Keyspace::new("emails", "kafkaq").unwrap(), &TaskId::new(id).unwrap())
}

fn keys(n: usize) -> Vec<Key> {
    (0..n).map(|i| key(&format!("task-{i}"))).collect()
}

fn create(key: &Key, value: &'static str) -> Swap {
    Swap::new(key.clone(), None, Some(value.into()), None)
}

fn replace(key: &Key, expect: &'static str, value: &'static str) -> Swap {
    Swap::new(key.clone(), Some(expect.into()), Some(value.into()), None)
}

fn remove(key: &Key, expect: &'static str) -> Swap {
    Swap::new(key.clone(), Some(expect.into()), None, None)
}

fn value(text: &'static str) -> Option<Bytes> {
    Some(Bytes::from_static(text.as_bytes()))
}

async fn one(store: &ZooKeeperStore, swap: Swap) -> Result<Swapped, Error> {
    store.swap(&[swap]).await.pop().unwrap()
}

async fn read(store: &ZooKeeperStore, key: &Key) -> Option<Bytes> {
    store.get(std::slice::from_ref(key)).await.pop().unwrap().unwrap()
}

async fn sleep(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

struct NoWatch;
impl Watcher for NoWatch {
    fn handle(&self, _: WatchedEvent) {}
}

/// The plain client, to look behind the store's back.
async fn client(server: &Server) -> ZooKeeper {
    let wait = Duration::from_millis(100);
    ZooKeeper::connect_with_retry_time(&server.address(), Duration::from_secs(5), NoWatch, wait)
        .await
        .unwrap()
}

/// The nodes of all values below a prefix.
async fn nodes(zk: &ZooKeeper, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for shard in zk.get_children(&format!("/{prefix}"), false).await.unwrap() {
        let shard = format!("/{prefix}/{shard}");
        for name in zk.get_children(&shard, false).await.unwrap() {
            found.push(format!("{shard}/{name}"));
        }
    }
    found
}
