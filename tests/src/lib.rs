//! Shared by the tests on real servers: the servers' addresses, queues with unique names, processes that can be killed.
//!
//! `cargo xtask test` starts the servers and passes their addresses. A test whose server is missing fails.

#![allow(clippy::missing_panics_doc, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod agent;
mod built;
mod cases;
mod hold;
mod pairs;
mod raw;
mod rng;

pub use agent::{Agent, HANDLE_FAILURES, Line};
pub use built::Built;
pub use cases::{CASES, Case};
pub use hold::Hold;
pub use pairs::{BrokerKind, Pair, StoreKind, not_asked_for};
pub use raw::{Kafka, admin, committed_offsets, delete_topic, flush_redis, kcat};
pub use rng::Rng;

use kafkaq::{JobStatus, Queue, QueueBuilder, TaskId, rdkafka::RdKafka, redis::RedisStore};
use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    time::{Duration, Instant},
};
use xtask::services::{Server, Service};

/// Generous: a loaded machine is slow, and a test that passes never waits this long.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Returns the address of a server, from the variable that `cargo xtask` sets.
#[must_use]
pub fn told(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!(
            "{variable} is not set: run `cargo xtask test`, or start the servers with \
             `eval \"$(cargo xtask services up --env)\"`"
        )
    })
}

/// The shared Kafka's address.
#[must_use]
pub fn kafka() -> String {
    told("KAFKAQ_TEST_KAFKA")
}

/// The shared Redis's URL.
#[must_use]
pub fn redis() -> String {
    told("KAFKAQ_TEST_REDIS")
}

/// A name that no other test and no earlier run has.
#[must_use]
pub fn unique(test: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("{test}-{}", &id[..8])
}

/// A server for one test alone, which may stop, kill and empty it.
#[must_use]
pub fn own_server(service: Service) -> Server {
    service.own().unwrap_or_else(|e| panic!("{service} does not start: {e:#}"))
}

/// A Kafka for one test alone that sends its clients to a proxy. The proxy's server is at `port`.
#[must_use]
pub fn own_kafka_behind(proxy: u16, port: u16) -> Server {
    Service::Kafka.own_behind(proxy, port).unwrap_or_else(|e| panic!("Kafka does not start: {e:#}"))
}

/// A queue on the shared Kafka and some Redis, with short times.
pub fn queue(name: &str, redis_url: &str) -> QueueBuilder {
    let broker = RdKafka::builder(kafka()).build().expect("settings");
    let store = RedisStore::builder(redis_url).build().expect("url");
    Queue::builder(name)
        .broker(broker)
        .store(store)
        .partitions(6)
        .lease_duration(Duration::from_secs(3))
        .park_after(Duration::from_millis(500))
        .clock_skew(Duration::from_millis(200))
}

/// Runs a case in its own runtime, and returns its panic message.
pub fn run(case: impl Future<Output = ()>) -> Result<(), String> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().map_err(|e| e.to_string())?;
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(case)));
    runtime.shutdown_timeout(Duration::from_secs(10));
    outcome.map_err(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
    })
}

/// Waits until `check` returns `true`.
pub async fn until(what: &str, mut check: impl FnMut() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until each task has ended: a worker reported it, or the store says so. A response may be lost, and a process
/// may be killed between the store's response and its report. The patience restarts whenever a task ends, for busy
/// machines.
pub async fn until_done(queue: &Queue, ids: impl IntoIterator<Item = TaskId>, told: &Mutex<HashSet<TaskId>>) {
    let (mut since, mut ended) = (Instant::now(), 0);
    for id in ids {
        loop {
            let (is_told, now_ended) = {
                let told = told.lock().expect("lock");
                (told.contains(&id), told.len())
            };
            if is_told {
                break;
            }
            if now_ended > ended {
                (since, ended) = (Instant::now(), now_ended);
            }
            let known = queue.jobs().get(&id).await;
            match known.as_ref().map(|info| info.status) {
                Ok(JobStatus::Done) => break,
                Ok(JobStatus::Dead) => panic!("{id} is dead: {known:?}"),
                _ => {}
            }
            assert!(since.elapsed() < PATIENCE, "{id} is lost: nothing has ended for {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
