//! The log against a real Kafka, which the tests start for themselves.

// Clippy's exception for tests does not reach their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod failures;
mod fetches;
mod records;
mod recreated;
mod secured;
mod topics;
mod wire;

use bytes::Bytes;
use kafkaq_core::*;
use kafkaq_rskafka::RsKafka;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use xtask::services::{Server, Service};

/// Longer than anything takes that doesn't wait for it, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// Whatever ends before this has not waited for `PATIENCE` to run out.
const SOON: Duration = Duration::from_secs(20);

/// The server shared by all tests that don't disturb it.
fn shared_server() -> Arc<Server> {
    Service::Kafka.shared().unwrap()
}

/// A server for one test, which may stop it or change its settings.
fn own_server() -> Server {
    Service::Kafka.own().unwrap()
}

fn unique(name: &str) -> String {
    static N: AtomicUsize = AtomicUsize::new(0);
    format!("{name}-{}-{}", std::process::id(), N.fetch_add(1, Relaxed))
}

/// A topic of its own for each test.
struct Site {
    server: Arc<Server>,
    kafka: RsKafka,
    topic: Arc<str>,
}

impl Site {
    async fn with(partitions: i32) -> Site {
        Site::on(shared_server(), partitions).await
    }

    async fn on(server: Arc<Server>, partitions: i32) -> Site {
        Site::made(server, partitions, |_| {}).await
    }

    async fn made(server: Arc<Server>, partitions: i32, setting: fn(&mut TopicSpec)) -> Site {
        let kafka = kafka(&server);
        let mut spec = TopicSpec::new(unique("t"));
        spec.partitions = Some(partitions);
        setting(&mut spec);
        let made = kafka.ensure_topics(&[spec.clone()]).await.unwrap().remove(0);
        assert_eq!((made.partitions, made.created), (partitions, true));
        Site { server, kafka, topic: spec.name }
    }

    fn partition(&self, index: i32) -> Partition {
        Partition::new(self.topic.clone(), index)
    }

    async fn fetch(&self, offset: i64, max_wait: Duration, max_bytes: usize) -> Result<Batch> {
        let from = Position { partition: self.partition(0), offset };
        self.kafka.fetch(&from, FetchLimit::new(max_wait, max_bytes)).await
    }

    async fn append(&self, records: &[NewRecord]) -> Result<Vec<i64>> {
        self.kafka.append(&self.partition(0), records).await.into_iter().collect()
    }

    /// Waits until the partition ends there: a transaction's marker is written some time after its commit.
    async fn until_end(&self, end: i64) {
        let at = Instant::now();
        loop {
            let offsets = self.kafka.offsets(&[self.partition(0)]).await.remove(0).unwrap();
            if offsets.next == end {
                return;
            }
            assert!(at.elapsed() < PATIENCE, "{offsets:?}");
            tokio::time::sleep(millis(50)).await;
        }
    }

    /// Everything from an offset up to another.
    async fn read(&self, mut offset: i64, end: i64) -> Vec<Record> {
        let mut all = Vec::new();
        while offset < end {
            let batch = self.fetch(offset, millis(1000), 1 << 20).await.unwrap();
            assert!(batch.next > offset, "{batch:?}");
            offset = batch.next;
            all.extend(batch.records);
        }
        all
    }
}

/// With a timeout that is long enough for a loaded machine. Tests of timeouts use handles of their own.
fn kafka(server: &Server) -> RsKafka {
    RsKafka::builder(server.url()).request_timeout(PATIENCE).build().unwrap()
}

fn record(value: impl Into<Bytes>) -> NewRecord {
    NewRecord::new(None, Some(value.into()), Headers::new())
}

fn numbered(range: std::ops::Range<usize>) -> Vec<NewRecord> {
    range.map(|n| record(n.to_string())).collect()
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}
