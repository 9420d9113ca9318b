//! Every broker with every store: what there is, what was asked for, and how a queue on a pair is built.

use kafkaq::{
    Queue, QueueBuilder,
    etcd::EtcdStore,
    memory::{MemoryLog, MemoryStore},
    rdkafka::RdKafka,
    redis::RedisStore,
    rskafka::RsKafka,
    zookeeper::ZooKeeperStore,
};
use std::time::Duration;
use xtask::services::Service;

/// A kind of log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerKind {
    /// In this process.
    Memory,
    /// Kafka's own groups, by librdkafka.
    RdKafka,
    /// Kafka without groups of its own: the group is kept in the store.
    RsKafka,
}

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// In this process.
    Memory,
    /// One Redis.
    Redis,
    /// Three Redis servers that share the keys.
    RedisCluster,
    /// etcd.
    Etcd,
    /// ZooKeeper.
    ZooKeeper,
}

impl BrokerKind {
    /// All of them.
    pub const ALL: &[BrokerKind] = &[BrokerKind::Memory, BrokerKind::RdKafka, BrokerKind::RsKafka];

    /// The word for it in a test's name and in `KAFKAQ_TEST_BACKENDS`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            BrokerKind::Memory => "memory",
            BrokerKind::RdKafka => "rdkafka",
            BrokerKind::RsKafka => "rskafka",
        }
    }
}

impl StoreKind {
    /// All of them.
    pub const ALL: &[StoreKind] = &[
        StoreKind::Memory,
        StoreKind::Redis,
        StoreKind::RedisCluster,
        StoreKind::Etcd,
        StoreKind::ZooKeeper,
    ];

    /// The word for it in a test's name and in `KAFKAQ_TEST_BACKENDS`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            StoreKind::Memory => "memory",
            StoreKind::Redis => "redis",
            StoreKind::RedisCluster => "redis-cluster",
            StoreKind::Etcd => "etcd",
            StoreKind::ZooKeeper => "zookeeper",
        }
    }
}

/// Why a pair isn't tested: `KAFKAQ_TEST_BACKENDS` names others. Where it names no broker all brokers are asked for,
/// and where it names no store all stores; `memory` is both. Without it every pair is.
#[must_use]
pub fn not_asked_for(broker: BrokerKind, store: StoreKind) -> Option<String> {
    let asked = std::env::var("KAFKAQ_TEST_BACKENDS").ok()?;
    let named = |name: &str| asked.split(',').any(|a| a.trim() == name);
    let no_broker = !BrokerKind::ALL.iter().any(|b| named(b.name()));
    let no_store = !StoreKind::ALL.iter().any(|s| named(s.name()));
    let is_asked = (no_broker || named(broker.name())) && (no_store || named(store.name()));
    (!is_asked).then(|| format!("KAFKAQ_TEST_BACKENDS is {asked}"))
}

/// A broker and a store for one case: all its queues share them.
#[derive(Debug)]
pub struct Pair {
    broker: BrokerKind,
    store: StoreKind,
    log: MemoryLog,
    leases: MemoryStore,
    name: String,
    kafka_at: Option<String>,
    store_at: Option<String>,
}

impl Pair {
    /// A pair on the shared servers, with a queue name that nobody else has.
    #[must_use]
    pub fn new(broker: BrokerKind, store: StoreKind, case: &str) -> Pair {
        Pair {
            broker,
            store,
            log: MemoryLog::new(),
            leases: MemoryStore::new(),
            name: crate::unique(&case.replace('_', "-")),
            kafka_at: None,
            store_at: None,
        }
    }

    /// The same pair with another Kafka than the shared one.
    #[must_use]
    pub fn with_kafka(self, url: String) -> Pair {
        Pair { kafka_at: Some(url), ..self }
    }

    /// The same pair with another store than the shared one.
    #[must_use]
    pub fn with_store(self, url: String) -> Pair {
        Pair { store_at: Some(url), ..self }
    }

    /// One more process of the case's queue, with short times. A server that isn't there fails the test.
    pub fn queue(&self) -> QueueBuilder {
        let builder = Queue::builder(self.name.as_str())
            .partitions(6)
            .lease_duration(Duration::from_secs(3))
            .park_after(Duration::from_millis(500))
            .clock_skew(Duration::from_millis(200));
        let kafka = || self.kafka_at.clone().unwrap_or_else(crate::kafka);
        let store = |which: Service| self.store_at.clone().unwrap_or_else(|| crate::told(which.env_var()));
        let builder = match self.broker {
            BrokerKind::RsKafka => builder.log(RsKafka::builder(kafka()).build().expect("settings")),
            BrokerKind::Memory => builder.broker(self.log.clone()),
            BrokerKind::RdKafka => builder.broker(RdKafka::builder(kafka()).build().expect("settings")),
        };
        match self.store {
            StoreKind::Memory => builder.store(self.leases.clone()),
            StoreKind::Redis => {
                builder.store(RedisStore::builder(store(Service::Redis)).build().expect("a URL"))
            }
            StoreKind::RedisCluster => {
                let nodes = store(Service::RedisCluster);
                builder.store(RedisStore::cluster(nodes.split(',')).build().expect("URLs"))
            }
            StoreKind::Etcd => {
                builder.store(EtcdStore::builder([store(Service::Etcd)]).build().expect("endpoints"))
            }
            StoreKind::ZooKeeper => {
                builder.store(ZooKeeperStore::builder(store(Service::ZooKeeper)).build().expect("addresses"))
            }
        }
    }
}
