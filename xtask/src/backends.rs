//! Selects the pairs of the matrix to run, and the servers they need.

use std::str::FromStr;

use anyhow::{Result, ensure};
use xtask::services::Service;

/// The brokers' names, with what each needs.
const BROKERS: [(&str, Option<Service>); 3] =
    [("memory", None), ("rdkafka", Some(Service::Kafka)), ("rskafka", Some(Service::Kafka))];

/// The stores' names, with what each needs.
const STORES: [(&str, Option<Service>); 5] = [
    ("memory", None),
    ("redis", Some(Service::Redis)),
    ("redis-cluster", Some(Service::RedisCluster)),
    ("etcd", Some(Service::Etcd)),
    ("zookeeper", Some(Service::ZooKeeper)),
];

/// A comma-separated list of backends. `memory` is a broker and a store, and stands for both.
#[derive(Debug)]
pub(crate) struct Backends(String);

impl Backends {
    /// The environment variable that configures the matrix.
    pub(crate) const ENV_VAR: &str = "KAFKAQ_TEST_BACKENDS";

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The servers to start. If the list names no broker, or no store, all of them are meant.
    pub(crate) fn services(&self) -> Vec<Service> {
        let needed = [self.side(&BROKERS), self.side(&STORES)].concat();
        Service::ALL.iter().copied().filter(|service| needed.contains(service)).collect()
    }

    fn side(&self, known: &[(&str, Option<Service>)]) -> Vec<Service> {
        let named = |name: &str| self.0.split(',').any(|word| word == name);
        let any = known.iter().any(|(name, _)| named(name));
        known.iter().filter(|(name, _)| !any || named(name)).filter_map(|(_, service)| *service).collect()
    }
}

impl FromStr for Backends {
    type Err = anyhow::Error;

    fn from_str(list: &str) -> Result<Self> {
        for word in list.split(',') {
            let known = BROKERS.iter().chain(&STORES).any(|(name, _)| *name == word);
            ensure!(known, "there is no backend `{word}`; `cargo xtask help` lists them");
        }
        Ok(Self(list.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(list: &str) -> Vec<Service> {
        list.parse::<Backends>().unwrap().services()
    }

    #[test]
    fn a_pair_starts_its_own_servers_only() {
        assert_eq!(services("rskafka,etcd"), [Service::Kafka, Service::Etcd]);
        assert_eq!(services("memory,zookeeper"), [Service::ZooKeeper]);
        assert!(services("memory").is_empty());
    }

    #[test]
    fn unnamed_side_means_all_its_backends() {
        assert_eq!(services("rdkafka"), Service::ALL);
        assert_eq!(services("redis,etcd"), [Service::Kafka, Service::Redis, Service::Etcd]);
    }

    #[test]
    fn an_unknown_backend_is_refused_by_name() {
        assert!("etcd,mongo".parse::<Backends>().unwrap_err().to_string().contains("mongo"));
    }
}
