//! Real servers for tests and experiments.
//!
//! ```no_run
//! use xtask::services::Service;
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut redis = Service::Redis.start("/tmp/my-test/redis", None)?;
//! redis.pause()?; // it hangs: connections stay open without responses
//! redis.resume()?;
//! redis.kill()?; // it is gone, without cleaning up
//! redis.start_again_empty()?; // and back on the same port, without data
//! # Ok(())
//! # } // dropped: ended, and its data removed
//! ```
//!
//! A server is a container if a Docker engine responds, and a plain process otherwise (Linux only). The environment
//! variable `KAFKAQ_SERVICES`, set to `docker` or `native`, overrides this. Containers need the feature `containers`,
//! which `cargo xtask` turns on by itself. A Redis Cluster is three of them, which live and die together.
//!
//! All of it listens on 127.0.0.1 only.

#[cfg(test)]
mod compose;
#[cfg(feature = "containers")]
mod container;
#[cfg(not(feature = "containers"))]
#[path = "no_container.rs"]
mod container;
mod docker;
mod etcd;
mod instance;
mod kafka;
mod node;
mod own;
mod ports;
mod redis;
mod redis_cluster;
mod redpanda;
mod server;
mod set;
mod zookeeper;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::prerequisites::Tool;
pub use docker::is_used as are_containers;
pub use kafka::{VERSION as KAFKA_VERSION, program as kafka_program};
use ports::Ports;
pub use ports::free_port;
pub use redis::answer as redis_answer;
pub use server::Server;
pub use set::Services;

#[cfg(test)]
pub(crate) use instance::is_running;

/// How long a server may take until it responds.
const START_LIMIT: Duration = Duration::from_secs(240);
/// How long a server may take to shut down.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long one request to a server may take.
const ASK_LIMIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Apache Kafka: one node, broker and controller in one.
    Kafka,
    /// Redis, without persistence.
    Redis,
    /// Three nodes of Redis that share the slots, without replicas and without persistence.
    RedisCluster,
    /// etcd: one node.
    Etcd,
    /// Apache ZooKeeper: one node.
    ZooKeeper,
    /// Redpanda: one node, in Kafka's place. As a container only.
    Redpanda,
}

/// The differences between kinds of servers; each has its own module.
#[derive(Debug)]
struct Kind {
    name: &'static str,
    env_var: &'static str,
    /// The URL scheme.
    scheme: &'static str,
    /// How many nodes are one server.
    nodes: usize,
    /// The programs that run it without a container.
    tools: fn() -> Vec<Tool>,
    /// The process of a node in its folder. Existing data is kept.
    native: fn(&Path, Ports) -> Result<Command>,
    container: fn(Ports) -> docker::Recipe,
    /// Whether the node on this port serves clients.
    answers: fn(u16) -> Result<bool>,
    /// Joins running nodes to one server, unless they already are.
    join: fn(&[Ports]) -> Result<()>,
}

impl Service {
    /// Everything that the tests need, with one implementation each.
    pub const ALL: &[Self] = &[Self::Kafka, Self::Redis, Self::RedisCluster, Self::Etcd, Self::ZooKeeper];

    /// Every kind, including those that replace another.
    pub const KINDS: &[Self] =
        &[Self::Kafka, Self::Redis, Self::RedisCluster, Self::Etcd, Self::ZooKeeper, Self::Redpanda];

    /// What the quickstart needs.
    pub const QUICKSTART: &[Self] = &[Self::Kafka, Self::Redis];

    fn kind(self) -> &'static Kind {
        match self {
            Self::Kafka => &kafka::KIND,
            Self::Redis => &redis::KIND,
            Self::RedisCluster => &redis_cluster::KIND,
            Self::Etcd => &etcd::KIND,
            Self::ZooKeeper => &zookeeper::KIND,
            Self::Redpanda => &redpanda::KIND,
        }
    }

    /// The name on the command line and of the folder.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.kind().name
    }

    /// The environment variable that tells tests the server's address.
    #[must_use]
    pub fn env_var(self) -> &'static str {
        self.kind().env_var
    }

    /// The programs that the server needs on this machine.
    #[must_use]
    pub fn tools(self) -> Vec<Tool> {
        if docker::is_used() { Vec::new() } else { (self.kind().tools)() }
    }

    /// Starts a server that keeps its data under `dir`, and waits until it responds. Without a `port` it takes a
    /// free one; the further nodes of a cluster always do.
    ///
    /// A folder is for one server at a time: one left by an earlier run is ended first, and its data removed. What the
    /// server needs must be installed already (see [`ensure`](crate::prerequisites::ensure) and [`Service::tools`]);
    /// Kafka itself is fetched once.
    ///
    /// # Errors
    /// When the server cannot be started or does not answer in time; the error has the end of its log.
    pub fn start(self, dir: impl Into<PathBuf>, port: Option<u16>) -> Result<Server> {
        let port = port.map(|port| (port, port));
        Server::start(self, &dir.into(), port, Group::Ours, None)
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Which process group a server is in, and so whether Ctrl-C at the terminal ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    /// That of the process that starts it: a test that is interrupted leaves no server behind.
    Ours,
    /// One of its own: it outlives the command that starts it. `for_tests`: it is only for tests.
    Own { for_tests: bool },
}
