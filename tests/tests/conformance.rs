//! The conformance kit on every backend: `etcd::swap_is_atomic_under_concurrency`.
//!
//! So that the kit can cut them off, servers stand behind a proxy. Kafka tells its clients where to connect: for the
//! proxy it takes a Kafka of the kit's own. The nodes of a Redis Cluster do so too, and stand still instead.

use async_trait::async_trait;
use kafkaq::{
    LeasedGroup, etcd::EtcdStore, rdkafka::RdKafka, redis::RedisStore, rskafka::RsKafka,
    zookeeper::ZooKeeperStore,
};
use kafkaq_conformance::{BoxError, Capability, Kit, Outage, Proxy, Suite, broker, log, store};
use kafkaq_tests::{own_kafka_behind, own_server, redis, told};
use std::{
    future::ready,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};
use xtask::services::{Server, Service, free_port};

/// Two seconds are the stores' own limit.
const STORE: Duration = Duration::from_secs(5);
/// Of the logs, whose own ten seconds would make long tests.
const REQUEST: Duration = Duration::from_secs(5);
const LOG: Duration = Duration::from_secs(10);
/// A group settles in steps of a tenth of it.
const MEMBER: Duration = Duration::from_secs(5);

fn main() -> Result<ExitCode, BoxError> {
    let redis_proxy = Proxy::to(redis().trim_start_matches("redis://"))?;
    let url = format!("redis://{}", redis_proxy.addr());
    let one_redis = store("redis", move || ready(RedisStore::builder(&url).build().map_err(Into::into)));

    let own_cluster = OwnCluster::default();
    let nodes = own_cluster.clone();
    let cluster = store("redis_cluster", move || {
        ready(RedisStore::cluster(nodes.url().split(',')).build().map_err(Into::into))
    });

    let etcd_proxy = Proxy::to(told("KAFKAQ_TEST_ETCD").trim_start_matches("http://"))?;
    let endpoint = format!("http://{}", etcd_proxy.addr());
    let etcd = store("etcd", move || ready(EtcdStore::builder([&endpoint]).build().map_err(Into::into)));

    let zookeeper_proxy = Proxy::to(told("KAFKAQ_TEST_ZOOKEEPER").as_str())?;
    let address = zookeeper_proxy.addr().to_string();
    let zookeeper =
        store("zookeeper", move || ready(ZooKeeperStore::builder(&address).build().map_err(Into::into)));

    let kafka = OwnKafka::new()?;
    let proxy = kafka.proxy.clone();
    let rdkafka = broker("rdkafka", move || {
        let rdkafka = RdKafka::builder(kafka.address()).request_timeout(REQUEST);
        ready(rdkafka.build().map_err(Into::into))
    })
    .with_outage(proxy);

    let kafka = OwnKafka::new()?;
    let proxy = kafka.proxy.clone();
    let rskafka = log("rskafka", move || ready(kafka.rskafka())).with_outage(proxy);

    // Cut off from both, as by the network.
    let (kafka, store_proxy) = (OwnKafka::new()?, Proxy::to(redis().trim_start_matches("redis://"))?);
    let both = Both(kafka.proxy.clone(), store_proxy.clone());
    let url = format!("redis://{}", store_proxy.addr());
    let leased = broker("rskafka_redis", move || {
        let group = || {
            let group = LeasedGroup::new(kafka.rskafka()?, RedisStore::builder(&url).build()?);
            Ok(group.with_member_timeout(MEMBER))
        };
        ready(group())
    })
    .with_outage(both);

    Ok(Suite::from(one_redis.with_outage(redis_proxy).answers_within(STORE))
        .and(cluster.with_outage(own_cluster).answers_within(STORE))
        .and(etcd.with_outage(etcd_proxy).answers_within(STORE))
        .and(zookeeper.with_outage(zookeeper_proxy).answers_within(STORE))
        .and(rdkafka.answers_within(LOG))
        .and(what_rskafka_carries(rskafka).answers_within(LOG))
        .and(what_rskafka_carries(leased).answers_within(LOG))
        .run())
}

fn what_rskafka_carries<T: ?Sized + Send + Sync + 'static>(kit: Kit<T>) -> Kit<T> {
    kit.without(Capability::RepeatedHeaders, "rskafka has one value a name")
        .without(Capability::NullHeaders, "rskafka has no null")
        .without(Capability::RecordLimit, "rskafka makes topics with the server's settings")
}

/// A Kafka of a kit's own, which sends its clients to the proxy. It starts when it is first asked for.
struct OwnKafka {
    proxy: Proxy,
    port: u16,
    server: OnceLock<Server>,
}

impl OwnKafka {
    fn new() -> Result<OwnKafka, BoxError> {
        let port = free_port()?;
        Ok(OwnKafka { proxy: Proxy::to(("127.0.0.1", port))?, port, server: OnceLock::new() })
    }

    fn address(&self) -> String {
        let proxy = self.proxy.addr();
        self.server.get_or_init(|| own_kafka_behind(proxy.port(), self.port));
        proxy.to_string()
    }

    fn rskafka(&self) -> Result<RsKafka, BoxError> {
        Ok(RsKafka::builder(self.address()).request_timeout(REQUEST).build()?)
    }
}

/// A Redis Cluster of a kit's own, which stands still while it is cut off.
#[derive(Clone, Default)]
struct OwnCluster(Arc<OnceLock<Server>>);

impl OwnCluster {
    fn url(&self) -> String {
        self.0.get_or_init(|| own_server(Service::RedisCluster)).url()
    }
}

#[async_trait]
impl Outage for OwnCluster {
    async fn cut(&self) -> Result<(), BoxError> {
        Ok(self.0.get().map_or(Ok(()), Server::pause)?)
    }

    async fn restore(&self) -> Result<(), BoxError> {
        Ok(self.0.get().map_or(Ok(()), Server::resume)?)
    }
}

/// The log and the store.
struct Both(Proxy, Proxy);

#[async_trait]
impl Outage for Both {
    async fn cut(&self) -> Result<(), BoxError> {
        self.0.cut().await?;
        self.1.cut().await
    }

    async fn restore(&self) -> Result<(), BoxError> {
        self.0.restore().await?;
        self.1.restore().await
    }
}
