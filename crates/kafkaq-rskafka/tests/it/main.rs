//! The log against a real Kafka, which the tests start for themselves.

// Clippy's exception for tests does not reach their helpers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod failures;
mod fetches;
mod records;
mod topics;
mod wire;

use bytes::Bytes;
use kafkaq_core::*;
use kafkaq_rskafka::RsKafka;
use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use xtask::services::{Server, Service};

/// The server of all tests that leave it alone. It ends with the last of them.
fn shared_server() -> Arc<Server> {
    static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap();
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(own_server());
        *shared = Arc::downgrade(&server);
        server
    })
}

/// A server for one test, which may do to it what it likes.
fn own_server() -> Server {
    let dir = std::env::temp_dir().join(unique("kafkaq-rskafka"));
    std::fs::create_dir_all(&dir).unwrap();
    Service::Kafka.start(dir, None).unwrap()
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
        let kafka = kafka(&server);
        let mut spec = TopicSpec::new(unique("t"));
        spec.partitions = Some(partitions);
        let made = kafka.ensure_topics(&[spec.clone()]).await.unwrap().remove(0);
        assert_eq!((made.partitions, made.created), (partitions, true));
        Site { server, kafka, topic: spec.name }
    }

    fn partition(&self, index: i32) -> Partition {
        Partition::new(self.topic.clone(), index)
    }

    async fn fetch(&self, offset: i64, max_wait_ms: u64, max_bytes: usize) -> Result<Batch> {
        let from = Position { partition: self.partition(0), offset };
        self.kafka.fetch(&from, FetchLimit::new(Duration::from_millis(max_wait_ms), max_bytes)).await
    }

    async fn append(&self, records: &[NewRecord]) -> Result<Vec<i64>> {
        self.kafka.append(&self.partition(0), records).await.into_iter().collect()
    }

    /// Everything from an offset up to another.
    async fn read(&self, mut offset: i64, end: i64) -> Vec<Record> {
        let mut all = Vec::new();
        while offset < end {
            let batch = self.fetch(offset, 1000, 1 << 20).await.unwrap();
            assert!(batch.next > offset, "{batch:?}");
            offset = batch.next;
            all.extend(batch.records);
        }
        all
    }
}

fn kafka(server: &Server) -> RsKafka {
    RsKafka::builder(server.url()).request_timeout(Duration::from_secs(5)).build().unwrap()
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
