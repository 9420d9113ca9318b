//! The conformance kit on every backend: `etcd::swap_is_atomic_under_concurrency`.
//!
//! Servers that are one process stand behind a proxy, so that the kit can cut them off.

use kafkaq::{etcd::EtcdStore, rdkafka::RdKafka, redis::RedisStore, zookeeper::ZooKeeperStore};
use kafkaq_conformance::{BoxError, Proxy, Suite, broker, store};
use kafkaq_tests::{kafka, redis, told};
use std::{process::ExitCode, time::Duration};

/// Two seconds are the stores' own limit.
const STORE: Duration = Duration::from_secs(5);

fn main() -> Result<ExitCode, BoxError> {
    let proxied = Proxy::to(redis().trim_start_matches("redis://"))?;
    let url = format!("redis://{}", proxied.addr());
    let one_redis =
        store("redis", move || std::future::ready(RedisStore::builder(&url).build().map_err(Into::into)));

    let nodes = told("KAFKAQ_TEST_REDIS_CLUSTER");
    let cluster = store("redis_cluster", move || {
        std::future::ready(RedisStore::cluster(nodes.split(',')).build().map_err(Into::into))
    });

    let etcd_proxy = Proxy::to(told("KAFKAQ_TEST_ETCD").trim_start_matches("http://"))?;
    let endpoint = format!("http://{}", etcd_proxy.addr());
    let etcd = store("etcd", move || {
        std::future::ready(EtcdStore::builder([&endpoint]).build().map_err(Into::into))
    });

    let zookeeper_proxy = Proxy::to(told("KAFKAQ_TEST_ZOOKEEPER").as_str())?;
    let address = zookeeper_proxy.addr().to_string();
    let zookeeper = store("zookeeper", move || {
        std::future::ready(ZooKeeperStore::builder(&address).build().map_err(Into::into))
    });

    let rdkafka =
        broker("rdkafka", || std::future::ready(RdKafka::builder(kafka()).build().map_err(Into::into)));

    Ok(Suite::from(one_redis.with_outage(proxied).answers_within(STORE))
        .and(cluster.answers_within(STORE))
        .and(etcd.with_outage(etcd_proxy).answers_within(STORE))
        .and(zookeeper.with_outage(zookeeper_proxy).answers_within(STORE))
        .and(rdkafka.answers_within(Duration::from_secs(15)))
        .run())
}
