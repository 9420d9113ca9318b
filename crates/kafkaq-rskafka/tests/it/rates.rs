//! How fast it is beside the client library alone.

use crate::*;
use rskafka::{
    chrono::DateTime,
    client::{
        ClientBuilder,
        partition::{Compression, PartitionClient, UnknownTopicHandling},
    },
    record::Record as RawRecord,
};
use std::time::{SystemTime, UNIX_EPOCH};

const BATCHES: usize = 200;
const BATCH: usize = 500;

/// Prints records a second: `cargo test --release -p kafkaq-rskafka rates -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn records_a_second_beside_the_library_alone() {
    let site = Site::with(1).await;
    let to = site.partition(0);
    let raw_site = Site::with(1).await;
    let client = ClientBuilder::new(vec![raw_site.server.url()]).build().await.unwrap();
    let raw = client.partition_client(&*raw_site.topic, 0, UnknownTopicHandling::Error).await.unwrap();
    let records = vec![record(vec![7; 100]); BATCH];
    for round in 0..3 {
        let at = Instant::now();
        for _ in 0..BATCHES {
            raw_append(&raw).await;
        }
        let raw_append = rate(at);
        let at = Instant::now();
        for _ in 0..BATCHES {
            assert!(site.kafka.append(&to, &records).await.iter().all(Result::is_ok));
        }
        let append = rate(at);
        let (first, end) = (round * BATCHES * BATCH, (round + 1) * BATCHES * BATCH);
        let at = Instant::now();
        raw_read(&raw, first as i64, end as i64).await;
        let raw_read = rate(at);
        let at = Instant::now();
        site.read(first as i64, end as i64).await;
        let read = rate(at);
        println!("append: {append} of {raw_append} records/s; fetch: {read} of {raw_read}");
    }
}

fn rate(since: Instant) -> u64 {
    ((BATCHES * BATCH) as f64 / since.elapsed().as_secs_f64()) as u64
}

async fn raw_append(raw: &PartitionClient) {
    // Of now, or the server soon deletes it as too old.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let timestamp = DateTime::from_timestamp_millis(now.as_millis() as i64).unwrap();
    let record = RawRecord { key: None, value: Some(vec![7; 100]), headers: Default::default(), timestamp };
    raw.produce(vec![record; BATCH], Compression::NoCompression).await.unwrap();
}

async fn raw_read(raw: &PartitionClient, mut offset: i64, end: i64) {
    while offset < end {
        let (records, _) = raw.fetch_records(offset, 1..1 << 20, 1000).await.unwrap();
        offset = records.last().unwrap().offset + 1;
    }
}
