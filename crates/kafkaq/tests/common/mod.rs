//! Shared by the tests of the facade: quick settings, and access to the log.
//!
//! Where a test's clock is paused, leases and delays take no time and end no sooner because the machine is busy.

#![allow(dead_code, unused_imports, unused_macros, clippy::expect_used, clippy::panic)]

pub(crate) mod log_lines;

use futures_util::StreamExt;
use kafkaq::{
    Job, Queue, QueueBuilder,
    backend::{Broker, Event, JoinRequest, Record},
    memory::{MemoryLog, MemoryStore},
};
use std::{
    future::Future,
    time::{Duration, Instant as SystemInstant, SystemTime},
};
use tokio::time::Instant;

/// Implements a trait of the backends by a field of the same trait. Only the method that differs is written out.
macro_rules! forward {
    (impl Log for $type:ident by $log:tt { $($append:tt)* }) => {
        #[async_trait::async_trait]
        impl kafkaq::backend::Log for $type {
            async fn ensure_topics(
                &self,
                topics: &[kafkaq::backend::TopicSpec],
            ) -> kafkaq::Result<Vec<kafkaq::backend::TopicInfo>> {
                self.$log.ensure_topics(topics).await
            }
            async fn describe_topics(
                &self,
                names: &[std::sync::Arc<str>],
            ) -> kafkaq::Result<Vec<Option<kafkaq::backend::TopicInfo>>> {
                self.$log.describe_topics(names).await
            }
            $($append)*
            async fn close(&self) -> kafkaq::Result<()> {
                self.$log.close().await
            }
        }
    };
    (impl Broker for $type:ident by $log:tt) => {
        #[async_trait::async_trait]
        impl kafkaq::backend::Broker for $type {
            async fn join(
                &self,
                request: kafkaq::backend::JoinRequest,
            ) -> kafkaq::Result<kafkaq::backend::Consumer> {
                self.$log.join(request).await
            }
        }
    };
    (impl LeaseStore for $type:ident by $store:tt { $($swap:tt)* }) => {
        #[async_trait::async_trait]
        impl kafkaq::backend::LeaseStore for $type {
            async fn get(&self, keys: &[kafkaq::backend::Key]) -> Vec<kafkaq::Result<Option<bytes::Bytes>>> {
                self.$store.get(keys).await
            }
            $($swap)*
            async fn check(&self) -> kafkaq::Result<Vec<String>> {
                self.$store.check().await
            }
            async fn close(&self) -> kafkaq::Result<()> {
                self.$store.close().await
            }
        }
    };
}
pub(crate) use forward;

pub(crate) const LEASE: Duration = Duration::from_millis(400);
/// Nothing in these tests takes this long, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The wall clock's time as the queue sees it: as far behind or ahead of the system's as tokio's paused clock is. A
/// thread that is delayed between its readings gets a time that is too late, so the earliest of many counts.
pub(crate) fn wall_now() -> SystemTime {
    let look = || {
        let before = SystemInstant::now();
        let tokio = Instant::now().into_std();
        SystemTime::now() - before.saturating_duration_since(tokio) + tokio.saturating_duration_since(before)
    };
    (0..100).map(|_| look()).min().expect("there were looks")
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

/// Waits until `is_so` says yes, by the test's clock, which may be paused.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = SystemInstant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited for {what}");
        tokio::time::sleep(ms(20)).await;
    }
}

#[cfg(feature = "worker")]
pub(crate) async fn stop(mut running: kafkaq::worker::WorkerHandle) -> kafkaq::worker::WorkerReport {
    running.stop();
    running.stopped().await.expect("the worker stops without an error")
}

/// Ends after a pseudorandom number of polls, up to 15, derived from this number.
pub(crate) async fn patience(of: u64) {
    for _ in 0..of.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60 {
        tokio::task::yield_now().await;
    }
}

/// A small pseudorandom generator, so that a failure can be repeated.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
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
            soon(consumer.events.next()).await.expect("an event").expect("no error")
        {
            all.extend(batch.records);
        }
    }
    consumer.member.leave().await.expect("to leave");
    all
}
