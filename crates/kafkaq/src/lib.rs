//! A task queue on Kafka: clients publish tasks, workers take them as jobs, and a job that is not confirmed in time
//! is handed out again.
//!
//! > Once `publish` has returned, the task is executed at least once, whatever the key-value store does: if it is
//! > slow, dies, is wiped, evicts keys, or comes back with old data. The log is the only source of truth. The store
//! > keeps executions exclusive and remembers what is done; losing it can cost a second execution, never a task.
//!
//! ```
//! use kafkaq::{Queue, Task};
//! use std::time::Duration;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Without a broker and a store, everything is kept in memory, which suits tests.
//! let queue = Queue::builder("emails").lease_duration(Duration::from_secs(30)).build().await?;
//!
//! let id = queue.publish(Task::new("to: ada@example.org").with_key("customer-17")).await?; // durable by now
//!
//! let job = queue.get_job().await?;
//! assert_eq!(job.id(), &id);
//! match send(job.payload()) {
//!     Ok(()) => job.done().await?,
//!     Err(e) => drop(job.retry(Duration::from_secs(60), e.to_string()).await?),
//! }
//! queue.shutdown(Duration::from_secs(10)).await?;
//! # Ok(())
//! # }
//! # fn send(_: &[u8]) -> Result<(), std::fmt::Error> { Ok(()) }
//! ```
//!
//! With the features `rdkafka` and `redis` the same runs on servers:
//!
#![cfg_attr(all(feature = "rdkafka", feature = "redis"), doc = "```no_run")]
#![cfg_attr(not(all(feature = "rdkafka", feature = "redis")), doc = "```ignore")]
//! # async fn build() -> kafkaq::Result<kafkaq::Queue> {
//! use kafkaq::{Queue, rdkafka::RdKafka, redis::RedisStore};
//!
//! Queue::builder("emails")
//!     .broker(RdKafka::builder("localhost:9092").build()?)
//!     .store(RedisStore::builder("redis://localhost").build()?)
//!     .build()
//!     .await
//! # }
//! ```
//!
//! # What to know
//! - **An id names one task.** [`Task::with_id`] makes publishing idempotent: the same id again adds nothing, for at
//!   least [`done_retention`](QueueBuilder::done_retention) after the task ended.
//! - **Executions can overlap** if a lease expires while its holder is still working. The holder learns of it:
//!   [`JobError::LeaseLost`] from [`Job::done`], or at once by [`JobView::lost`]. [`JobView::token`] lets the systems
//!   that they write to tell holders apart.
//! - **A dropped [`Job`]** is handed out again when its lease ends, one that was [retried](Job::retry) after its
//!   delay. After [`max_failures`](QueueBuilder::max_failures) a task goes to the dead-letter topic, which
//!   [`DeadLetters`] browses, redrives and discards.
//! - **Publishing** works from any number of runtimes, and outside of any. A queue that is used only to publish and to
//!   query jobs takes no share of the work: it joins its group when a job is first requested.
//! - **In tests**, a queue in memory follows tokio's paused clock: a delay of an hour takes no time. `kafkaq::testing`
//!   has helpers for tests of handlers.
//! - **Every error says** what failed, on what, whether it [took effect](Error::effect) and whether a
//!   [retry](Error::retry) helps.
//! - Warnings and errors for operators are [`tracing`](https://docs.rs/tracing) events with the target `kafkaq`.
//!
//! Most people want [`worker`](crate::worker): handlers for typed tasks, without a loop of their own.
//!
//! # Features
//! Only `worker` is on by default: it, the in-memory pair and the traits of [`backend`] need nothing but Rust. A queue
//! on servers needs one broker and one store; any broker works with any store.
//!
//! | feature | adds | requires |
//! |---|---|---|
//! | `rdkafka` | `kafkaq::rdkafka::RdKafka`: Kafka and Redpanda through librdkafka, with Kafka's own consumer groups; for [`broker`](QueueBuilder::broker) | a C compiler and make |
//! | `rskafka` | `kafkaq::rskafka::RsKafka`: Kafka and Redpanda in pure Rust; the consumer group is kept in the store ([`LeasedGroup`]); for [`log`](QueueBuilder::log) | |
//! | `redis` | `kafkaq::redis::RedisStore`: Redis or Valkey, one server or a cluster; for [`store`](QueueBuilder::store) | |
//! | `etcd` | `kafkaq::etcd::EtcdStore`, for [`store`](QueueBuilder::store) | `protoc` |
//! | `zookeeper` | `kafkaq::zookeeper::ZooKeeperStore`, for [`store`](QueueBuilder::store) | |
//! | `worker` (on by default) | `kafkaq::worker`: typed tasks, and a worker that runs their handlers | |
//! | `cron` | `kafkaq::periodic`: tasks by cron expressions, with time zones, and by intervals | |
//! | `testing` | `kafkaq::testing`: helpers for tests of handlers, and `torture`, which finds duplicated effects | |
//! | `metrics` | `guide::metrics`: counters, gauges and histograms for whatever recorder of the `metrics` crate is installed | |
//! | `spans` | spans of `tracing` around publishing and executing; with a `Propagator`, such as the one in the crate `kafkaq-opentelemetry`, they form one trace | |
//! | `tower` | `WorkerBuilder::layer`: tower layers around the handlers | |
//! | `msgpack` | `worker::Format::MessagePack`: payloads of typed tasks in MessagePack | |
//! | `full` | all backends | what they require |
//! | `tls` | encrypted connections in the enabled backends: `rediss://` and `https://` URLs, Kafka over TLS. ZooKeeper has none | with `rdkafka`: OpenSSL's headers |
//!
//! Each backend is a crate of its own too (`kafkaq-redis`, …), whose further features, such as librdkafka's build
//! options or Kafka's compression codecs, are enabled there.
//!
//! # Guides
//! [`guide`] has a tutorial, and pages on delivery, sizing, operations, upgrades and coming from other queues.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod appender;
mod builder;
mod clock;
mod config;
pub mod dead_letters;
mod driver;
mod job;
mod jobs;
mod key_lock;
mod leased_group;
pub mod memory;
mod numbers;
mod once_per;
#[cfg(feature = "cron")]
pub mod periodic;
mod publisher;
mod queue;
mod runtime;
mod stats;
mod sync;
mod task_headers;
mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
mod timed_id;
mod topics;
#[cfg(feature = "worker")]
pub mod worker;

pub use builder::QueueBuilder;
pub use config::Tracking;
pub use dead_letters::{DeadLetter, DeadLetters};
pub use job::{Job, JobError, JobView, RetryOutcome};
pub use jobs::{CancelOutcome, JobController, JobInfo, JobStatus};
pub use kafkaq_core::{
    Effect, Error, ErrorKind, FailureRecord, Headers, LeaseToken, LostReason, Result, Retry, Task, TaskId,
};
pub use key_lock::{KeyGuard, KeyLocks};
pub use leased_group::LeasedGroup;
pub use publisher::Publisher;
pub use queue::Queue;
pub use stats::{CallStats, PartitionStats, QueueStats};
#[cfg(feature = "spans")]
pub use telemetry::Propagator;

#[cfg(feature = "etcd")]
pub use kafkaq_etcd as etcd;
#[cfg(feature = "rdkafka")]
pub use kafkaq_rdkafka as rdkafka;
#[cfg(feature = "redis")]
pub use kafkaq_redis as redis;
#[cfg(feature = "rskafka")]
pub use kafkaq_rskafka as rskafka;
#[cfg(feature = "zookeeper")]
pub use kafkaq_zookeeper as zookeeper;

/// What you need to write a backend: the traits of `kafkaq-core`, and the types in their signatures. The guides of
/// [`kafkaq-conformance`](https://docs.rs/kafkaq-conformance), for stores and for logs, lead from an empty crate to one
/// that passes.
pub mod backend {
    pub use kafkaq_core::{
        Assignment, Batch, Broker, Commit, Consumer, Event, EventStream, FetchLimit, HEADER, ID_HEADER,
        JoinRequest, Key, LeaseStore, Log, Member, NewRecord, Offsets, Partition, PartitionLog, Position,
        Record, Swap, Swapped, TopicInfo, TopicSpec,
    };
}

/// Guides for users and operators of a queue.
///
/// - [`tutorial`](guide::tutorial): from an empty crate to production
/// - [`delivery`](guide::delivery): what is guaranteed, when a task runs twice, and how a handler copes with that
/// - [`sizing`](guide::sizing): memory, partitions, timeouts and retention, with formulas
/// - [`operations`](guide::operations): monitoring, log messages, deploys, outages, permissions
/// - [`metrics`](guide::metrics): their names, labels and meaning
/// - [`dead_letters`](guide::dead_letters): what to do about tasks that failed for good
/// - [`upgrading`](guide::upgrading): a new version of kafkaq, a new version of a task, changing a setting of a running
///   queue
/// - [`migrating`](guide::migrating): from asynq, Celery and Sidekiq
/// - [`coming_from_go`](guide::coming_from_go): from the Go library
///
/// A guide whose examples need a feature is included only with that feature; docs.rs has them all.
pub mod guide {
    #[doc = include_str!("../docs/coming-from-go.md")]
    pub mod coming_from_go {}
    #[doc = include_str!("../docs/dead-letters.md")]
    pub mod dead_letters {}
    #[cfg_attr(feature = "testing", doc = include_str!("../docs/delivery.md"))]
    #[cfg_attr(not(feature = "testing"), doc = "Requires the feature `testing`.")]
    pub mod delivery {}
    #[cfg_attr(feature = "metrics", doc = include_str!("../docs/metrics.md"))]
    #[cfg_attr(not(feature = "metrics"), doc = "Requires the feature `metrics`.")]
    pub mod metrics {}
    #[cfg_attr(feature = "worker", doc = include_str!("../docs/migrating.md"))]
    #[cfg_attr(not(feature = "worker"), doc = "Requires the feature `worker`.")]
    pub mod migrating {}
    #[cfg_attr(feature = "worker", doc = include_str!("../docs/operations.md"))]
    #[cfg_attr(not(feature = "worker"), doc = "Requires the feature `worker`.")]
    pub mod operations {}
    #[doc = include_str!("../docs/sizing.md")]
    pub mod sizing {}
    #[cfg_attr(all(feature = "cron", feature = "testing"), doc = include_str!("../docs/tutorial.md"))]
    #[cfg_attr(
        not(all(feature = "cron", feature = "testing")),
        doc = "Requires the features `cron` and `testing`."
    )]
    pub mod tutorial {}
    #[cfg_attr(feature = "testing", doc = include_str!("../docs/upgrading.md"))]
    #[cfg_attr(not(feature = "testing"), doc = "Requires the feature `testing`.")]
    pub mod upgrading {}
}

/// The code blocks of the README, as doctests.
#[cfg(all(doctest, feature = "rdkafka", feature = "redis", feature = "worker"))]
#[doc = include_str!("../README.md")]
mod readme {}
