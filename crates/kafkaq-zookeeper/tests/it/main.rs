//! The store against real servers, which the tests start for themselves; what every store has to do is in
//! `tests/conformance.rs`.

// Clippy's exception for tests does not reach their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod failures;
mod sweeping;
mod values;

use kafkaq_adapter_tests::Adapter;
use kafkaq_zookeeper::{ZooKeeperStore, ZooKeeperStoreBuilder};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use xtask::services::{Server, Service};
use zookeeper_async::{WatchedEvent, Watcher, ZooKeeper};

struct Zk;

impl Adapter for Zk {
    type Store = ZooKeeperStore;
    const SERVICE: Service = Service::ZooKeeper;
    const MAX_CONNECT_ATTEMPTS: usize = 2;

    fn at(addr: SocketAddr, limit: Duration) -> ZooKeeperStore {
        ZooKeeperStore::builder(addr.to_string()).request_timeout(limit).sessions(1).build().unwrap()
    }
}

/// The server shared by all tests that don't disturb it, each under its own prefix.
fn shared() -> Arc<Server> {
    Service::ZooKeeper.shared().unwrap()
}

/// Settings for a busy machine. Clocks don't differ here.
fn builder(server: &Server, prefix: &str) -> ZooKeeperStoreBuilder {
    ZooKeeperStore::builder(server.url())
        .prefix(prefix)
        .request_timeout(Duration::from_secs(10))
        .clock_skew(Duration::ZERO)
}

struct NoWatch;
impl Watcher for NoWatch {
    fn handle(&self, _: WatchedEvent) {}
}

/// A plain client, to inspect the server.
async fn client(server: &Server) -> ZooKeeper {
    let wait = Duration::from_millis(100);
    ZooKeeper::connect_with_retry_time(&server.url(), Duration::from_secs(5), NoWatch, wait).await.unwrap()
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
