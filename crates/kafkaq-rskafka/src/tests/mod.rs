//! What no server does when it is asked to: a broker over loopback TCP that answers as each test tells it.

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

/// Longer than anything takes that does not wait for it, also on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// What ends before this has not waited for the end of its patience.
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

/// The levels and texts of what is logged in this crate's name on this thread while it lives.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(tracing::Level, String)>>>);

impl Lines {
    fn all(&self) -> Vec<(tracing::Level, String)> {
        crate::locked(&self.0).clone()
    }
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("kafkaq") || metadata.target().starts_with("rskafka")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        crate::locked(&self.0).push((*event.metadata().level(), text.0));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
