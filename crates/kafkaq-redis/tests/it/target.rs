//! What a case runs on: a server, or a cluster of three.

use crate::{server::Server, server::free_port, sleep_now};
use kafkaq_redis::{RedisStore, RedisStoreBuilder};
use redis::Value;
use std::time::{Duration, Instant};

const SLOTS: usize = 16_384;

pub(crate) struct Target {
    /// One alone, or all of a cluster.
    pub(crate) nodes: Vec<Server>,
}

impl Target {
    pub(crate) fn single() -> Target {
        Target { nodes: vec![Server::start()] }
    }

    /// Three primaries. One that is away takes only its own slots along.
    pub(crate) fn cluster() -> Target {
        Target::cluster_with(&[])
    }

    pub(crate) fn cluster_with(options: &[&str]) -> Target {
        let start = |_| {
            let bus = free_port().to_string();
            let cluster = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"];
            (Server::with(&[&cluster[..], &["--cluster-port", &bus], options].concat()), bus)
        };
        let nodes: Vec<_> = (0..3).map(start).collect();
        for (n, (node, _)) in nodes.iter().enumerate() {
            let [first, last] = [n * SLOTS / 3, (n + 1) * SLOTS / 3 - 1].map(|slot| slot.to_string());
            node.ask(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            for (other, bus) in &nodes[..n] {
                node.ask(&["CLUSTER", "MEET", "127.0.0.1", &other.port().to_string(), bus]);
            }
        }
        let target = Target { nodes: nodes.into_iter().map(|(node, _)| node).collect() };
        target.await_whole();
        target
    }

    fn await_whole(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let whole = |node: &Server| match node.ask(&["CLUSTER", "INFO"]) {
            Value::BulkString(info) => {
                let info = String::from_utf8(info).unwrap();
                info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384")
            }
            other => panic!("{other:?}"),
        };
        while !self.nodes.iter().all(whole) {
            assert!(Instant::now() < deadline, "the nodes do not find each other");
            sleep_now(20);
        }
    }

    pub(crate) fn builder(&self) -> RedisStoreBuilder {
        match &self.nodes[..] {
            [server] => RedisStore::builder(server.url()),
            nodes => RedisStore::cluster(nodes.iter().map(Server::url)),
        }
    }

    pub(crate) fn store(&self) -> RedisStore {
        self.builder().build().unwrap()
    }

    /// One command, by whichever node takes it.
    pub(crate) fn ask(&self, words: &[&str]) -> Value {
        self.nodes.iter().find_map(|node| node.try_ask(words).ok()).unwrap()
    }

    pub(crate) fn ask_all(&self, words: &[&str]) {
        self.nodes.iter().for_each(|node| drop(node.ask(words)));
    }

    /// The node that has the slot of this full name.
    pub(crate) fn owner(&self, name: &str) -> usize {
        self.nodes.iter().position(|node| node.try_ask(&["EXISTS", name]).is_ok()).unwrap()
    }
}
