//! What a real server can't be made to do: tests against a scripted broker over loopback TCP.

mod fake;
mod fetches;
mod identity;
mod outages;
mod sharing;
mod topics;

use crate::RsKafka;
use bytes::Bytes;
use fake::{Broker, FetchAsked, Part, Reply};
use kafkaq_core::*;
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// Longer than anything takes that doesn't wait for it, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// Whatever ends before this has not waited for `PATIENCE` to run out.
const SOON: Duration = Duration::from_secs(20);

fn kafka(broker: &Broker) -> RsKafka {
    RsKafka::builder(&broker.address).request_timeout(PATIENCE).build().unwrap()
}

async fn fetch(kafka: &RsKafka, index: i32, offset: i64, wait: Duration) -> Result<Batch> {
    let from = Position { partition: Partition::new("t", index), offset };
    kafka.fetch(&from, FetchLimit::new(wait, 1 << 20)).await
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A batch of that many records from an offset on.
fn batch(base_offset: i64, count: usize) -> Vec<u8> {
    let record = |n| NewRecord::new(None, Some(Bytes::from(format!("{n}"))), Headers::new());
    let records: Vec<_> = (0..count).map(record).collect();
    let mut batch = crate::batch::encode(&records).unwrap();
    // The checksum does not cover it.
    batch[..8].copy_from_slice(&base_offset.to_be_bytes());
    batch
}

/// Changes what the checksum covers, and the checksum with it.
fn edited(mut batch: Vec<u8>, edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    edit(&mut batch[21..]);
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
    batch
}
