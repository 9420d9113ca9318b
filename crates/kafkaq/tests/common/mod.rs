//! What the tests of the facade share: quick settings, and a look into the log.

#![allow(dead_code, clippy::expect_used, clippy::panic)]

use futures_util::StreamExt;
use kafkaq::{
    Job, Queue, QueueBuilder,
    backend::{Broker, Event, JoinRequest, Record},
    memory::{MemoryLog, MemoryStore},
};
use std::{future::Future, time::Duration};

pub(crate) const LEASE: Duration = Duration::from_millis(400);
/// Nothing in these tests takes as long, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A queue whose leases end soon.
pub(crate) fn quick(log: &MemoryLog, store: &MemoryStore) -> QueueBuilder {
    Queue::builder("emails")
        .broker(log.clone())
        .store(store.clone())
        .partitions(3)
        .lease_duration(LEASE)
        .park_after(ms(100))
        .clock_skew(ms(20))
        .max_delay(Duration::from_secs(60))
}

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it hangs")
}

pub(crate) async fn next(queue: &Queue) -> Job {
    soon(queue.get_job()).await.expect("a job")
}

/// Fails if there is a job within `time`.
pub(crate) async fn none_within(queue: &Queue, time: Duration) {
    if let Ok(job) = tokio::time::timeout(time, queue.get_job()).await {
        panic!("there is a job: {job:?}");
    }
}

/// The first `n` records of a topic.
pub(crate) async fn records(log: &MemoryLog, topic: &str, n: usize) -> Vec<Record> {
    let request = JoinRequest::new("an-observer", vec![topic.into()], uuid::Uuid::new_v4().into_bytes());
    let mut consumer = log.join(request).await.expect("to join");
    let mut all = Vec::new();
    while all.len() < n {
        if let Event::Records(_, batch) =
            soon(consumer.events.next()).await.expect("an event").expect("a good one")
        {
            all.extend(batch.records);
        }
    }
    consumer.member.leave().await.expect("to leave");
    all
}
