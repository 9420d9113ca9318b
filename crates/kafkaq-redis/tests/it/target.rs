//! The target of a case: a server, or a cluster of three.

use crate::{AMPLE, ask, try_ask};
use kafkaq_redis::{RedisStore, RedisStoreBuilder};
use redis::Value;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use xtask::services::{Server, Service};

pub(crate) struct Target {
    /// A single server, or all nodes of a cluster.
    pub(crate) nodes: Vec<Server>,
}

impl Target {
    pub(crate) fn single() -> Target {
        Target { nodes: vec![Service::Redis.own().unwrap()] }
    }

    /// Three primaries. If one is down, only its own slots are unavailable.
    pub(crate) fn cluster() -> Target {
        Target { nodes: Service::RedisCluster.own().unwrap().into_nodes() }
    }

    /// A cluster shared by all cases that don't disturb it, each under its own prefix. Starting one takes seconds.
    pub(crate) fn shared_cluster() -> Arc<Target> {
        static SHARED: Mutex<Weak<Target>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let target = Arc::new(Target::cluster());
            *shared = Arc::downgrade(&target);
            target
        })
    }

    pub(crate) fn builder(&self) -> RedisStoreBuilder {
        let builder = match &self.nodes[..] {
            [server] => RedisStore::builder(server.url()),
            nodes => RedisStore::cluster(nodes.iter().map(Server::url)),
        };
        builder.request_timeout(AMPLE)
    }

    pub(crate) fn store(&self) -> RedisStore {
        self.builder().build().unwrap()
    }

    /// Sends a command to whichever node accepts it.
    pub(crate) fn ask(&self, words: &[&str]) -> Value {
        self.nodes.iter().find_map(|node| try_ask(node, words).ok()).unwrap()
    }

    pub(crate) fn ask_all(&self, words: &[&str]) {
        self.nodes.iter().for_each(|node| drop(ask(node, words)));
    }

    /// The node that has the slot of this full name.
    pub(crate) fn owner(&self, name: &str) -> usize {
        self.nodes.iter().position(|node| try_ask(node, &["EXISTS", name]).is_ok()).unwrap()
    }
}

/// Each case twice: on a server and on a cluster.
macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod single {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(&crate::target::Target::single()).await;
            })*
        }
        mod cluster {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(&crate::target::Target::shared_cluster()).await;
            })*
        }
    };
}

pub(crate) use on_both;
