//! Every broker with every store: which pairs exist, which were requested, and how a queue on a pair is built.

use crate::committed_offsets;
use kafkaq::{
    DeadLetters, Queue, QueueBuilder, Tracking,
    backend::{Key, LeaseStore, Partition, PartitionLog},
    etcd::EtcdStore,
    memory::{MemoryLog, MemoryStore},
    rdkafka::RdKafka,
    redis::RedisStore,
    rskafka::RsKafka,
    zookeeper::ZooKeeperStore,
};
use kafkaq_core::group::Value;
use std::{sync::Arc, time::Duration};
use xtask::services::Service;

/// A kind of log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerKind {
    /// In this process.
    Memory,
    /// Kafka's own groups, through librdkafka.
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

/// Returns why a pair isn't tested: `KAFKAQ_TEST_BACKENDS` names others. If it names no broker, all brokers are
/// requested, and if it names no store, all stores; `memory` is both. Without the variable, every pair is.
#[must_use]
pub fn not_asked_for(broker: BrokerKind, store: StoreKind) -> Option<String> {
    let asked = std::env::var("KAFKAQ_TEST_BACKENDS").ok()?;
    let named = |name: &str| asked.split(',').any(|a| a.trim() == name);
    let no_broker = !BrokerKind::ALL.iter().any(|b| named(b.name()));
    let no_store = !StoreKind::ALL.iter().any(|s| named(s.name()));
    let is_asked = (no_broker || named(broker.name())) && (no_store || named(store.name()));
    (!is_asked).then(|| format!("KAFKAQ_TEST_BACKENDS is {asked}"))
}

/// The word for [`Tracking::Slow`].
const SLOW: &str = "slow";

/// A broker and a store for one case: all its queues share them.
#[derive(Clone, Debug)]
pub struct Pair {
    broker: BrokerKind,
    store: StoreKind,
    log: MemoryLog,
    leases: MemoryStore,
    name: String,
    member_timeout: Option<Duration>,
    tracking: Tracking,
    kafka_at: Option<String>,
    store_at: Option<String>,
}

impl Pair {
    /// A pair on the shared servers, with a queue name that nobody else has.
    #[must_use]
    pub fn new(broker: BrokerKind, store: StoreKind, case: &str) -> Pair {
        Pair::named(broker, store, crate::unique(&case.replace('_', "-")))
    }

    /// A pair with this name for its queue.
    #[must_use]
    pub fn named(broker: BrokerKind, store: StoreKind, name: impl Into<String>) -> Pair {
        let (log, leases) = (MemoryLog::new(), MemoryStore::new());
        Pair {
            broker,
            store,
            log,
            leases,
            name: name.into(),
            member_timeout: None,
            tracking: Tracking::Every,
            kafka_at: None,
            store_at: None,
        }
    }

    /// Sets the member timeout of a group that is kept in the store. Default: the users' default.
    #[must_use]
    pub fn with_member_timeout(mut self, timeout: Duration) -> Pair {
        self.member_timeout = Some(timeout);
        self
    }

    /// The same pair with `Tracking::Slow`.
    #[must_use]
    pub fn with_slow_tracking(self) -> Pair {
        Pair { tracking: Tracking::Slow, ..self }
    }

    /// A queue of another name on the same servers.
    #[must_use]
    pub fn sibling(&self) -> Pair {
        Pair { name: format!("{}-sibling", self.name), ..self.clone() }
    }

    /// The queue's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the words that describe it to another process.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let timeout = self.member_timeout.map(|t| t.as_millis().to_string());
        let words = [self.broker.name(), self.store.name(), &self.name].map(str::to_owned);
        let slow = (self.tracking == Tracking::Slow).then(|| SLOW.to_owned());
        words.into_iter().chain(slow).chain(timeout).collect()
    }

    /// Returns the pair that another process has described.
    #[must_use]
    pub fn of_words(words: &[&str]) -> Option<Pair> {
        let [broker, store, name, more @ ..] = words else { return None };
        let broker = BrokerKind::ALL.iter().find(|b| b.name() == *broker)?;
        let store = StoreKind::ALL.iter().find(|s| s.name() == *store)?;
        more.iter().try_fold(Pair::named(*broker, *store, *name), |pair, word| match *word {
            SLOW => Some(pair.with_slow_tracking()),
            timeout => Some(pair.with_member_timeout(Duration::from_millis(timeout.parse().ok()?))),
        })
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

    /// Another process of the case's queue. Its times are short, except with `Tracking::Slow`: on a busy machine even
    /// quick jobs would then count as slow. A missing server fails the test.
    pub fn queue(&self) -> QueueBuilder {
        if self.tracking == Tracking::Slow {
            return self.usual_queue().track_after(Duration::from_secs(10));
        }
        self.usual_queue()
            .lease_duration(Duration::from_secs(3))
            .park_after(Duration::from_millis(500))
            .clock_skew(Duration::from_millis(200))
    }

    /// Another process of the case's queue, with the default times.
    pub fn usual_queue(&self) -> QueueBuilder {
        let builder =
            Queue::builder(self.name.as_str()).partitions(6).store(self.store()).tracking(self.tracking);
        match self.broker {
            BrokerKind::Memory => builder.broker(self.log.clone()),
            BrokerKind::RdKafka => builder.broker(RdKafka::builder(self.kafka()).build().expect("settings")),
            BrokerKind::RsKafka => {
                let builder = builder.log(RsKafka::builder(self.kafka()).build().expect("settings"));
                match self.member_timeout {
                    Some(timeout) => builder.member_timeout(timeout),
                    None => builder,
                }
            }
        }
    }

    /// The dead letters of the case's queue, as another process opens them. The queue must have been built.
    pub async fn dead_letters(&self) -> DeadLetters {
        let log: Arc<dyn PartitionLog> = match self.broker {
            BrokerKind::Memory => Arc::new(self.log.clone()),
            BrokerKind::RdKafka => Arc::new(RdKafka::builder(self.kafka()).build().expect("settings")),
            BrokerKind::RsKafka => Arc::new(RsKafka::builder(self.kafka()).build().expect("settings")),
        };
        self.queue().build_dead_letters(log).await.expect("the queue exists")
    }

    /// The address of its Kafka.
    #[must_use]
    pub fn kafka(&self) -> String {
        self.kafka_at.clone().unwrap_or_else(crate::kafka)
    }

    /// The group of the queue's processes.
    #[must_use]
    pub fn group(&self) -> String {
        format!("{}.kafkaq", self.name)
    }

    /// The keys under which a group that is kept in the store has the partitions of the task topic.
    #[must_use]
    pub fn group_keys(&self, partitions: i32) -> Vec<Key> {
        (0..partitions).map(|n| Key::partition(&self.group(), &Partition::new(&*self.name, n))).collect()
    }

    /// Returns the sum of what the group has committed in this many partitions of the task topic.
    pub async fn committed(&self, partitions: i32) -> i64 {
        if self.broker == BrokerKind::RdKafka {
            let (kafka, queue) = (self.kafka(), self.name.clone());
            let committed = tokio::task::spawn_blocking(move || committed_offsets(&kafka, &queue));
            return committed.await.expect("offsets");
        }
        let found = self.store().get(&self.group_keys(partitions)).await;
        let found = found.into_iter().filter_map(|value| value.expect("the store answers"));
        let cursors = found.filter_map(|value| Value::decode(&value).expect("of a group").cursor);
        cursors.map(|cursor| cursor.offset).sum()
    }

    /// Another handle on its store.
    #[must_use]
    pub fn store(&self) -> Arc<dyn LeaseStore> {
        let at = |service: Service| self.store_at.clone().unwrap_or_else(|| crate::told(service.env_var()));
        match self.store {
            StoreKind::Memory => Arc::new(self.leases.clone()),
            StoreKind::Redis => Arc::new(RedisStore::builder(at(Service::Redis)).build().expect("a URL")),
            StoreKind::RedisCluster => {
                let nodes = at(Service::RedisCluster);
                Arc::new(RedisStore::cluster(nodes.split(',')).build().expect("URLs"))
            }
            StoreKind::Etcd => Arc::new(EtcdStore::builder([at(Service::Etcd)]).build().expect("endpoints")),
            StoreKind::ZooKeeper => {
                Arc::new(ZooKeeperStore::builder(at(Service::ZooKeeper)).build().expect("addresses"))
            }
        }
    }
}
