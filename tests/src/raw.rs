//! Kafka and Redis without kafkaq: what another program would see and do.

use crate::PATIENCE;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    message::Headers as _,
    types::RDKafkaErrorCode,
};
use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long a server may take for one answer.
const ANSWER: Duration = Duration::from_secs(30);

/// A record as any consumer reads it.
#[derive(Debug)]
pub struct Kafka {
    /// Its partition.
    pub partition: i32,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers; of a name that repeats, the last.
    pub headers: BTreeMap<String, Vec<u8>>,
}

impl Kafka {
    /// Reads the first `count` records of a topic, from its beginning.
    #[must_use]
    pub fn read(topic: &str, count: usize) -> Vec<Kafka> {
        Kafka::read_from(&consumer(&crate::kafka(), &crate::unique("reader")), topic, count)
    }

    /// Reads everything that a topic of this Kafka contains now.
    #[must_use]
    pub fn read_all(kafka: &str, topic: &str) -> Vec<Kafka> {
        let consumer = consumer(kafka, &crate::unique("reader"));
        let held = |p| consumer.fetch_watermarks(topic, p, ANSWER).map(|(first, next)| next - first);
        let count: i64 = (0..partitions(&consumer, topic)).map(|p| held(p).expect("ends")).sum();
        Kafka::read_from(&consumer, topic, count as usize)
    }

    fn read_from(consumer: &BaseConsumer, topic: &str, count: usize) -> Vec<Kafka> {
        let partitions = partitions(consumer, topic);
        let mut list = TopicPartitionList::new();
        for p in 0..partitions {
            list.add_partition_offset(topic, p, Offset::Beginning).expect("offset");
        }
        consumer.assign(&list).expect("assign");
        let (start, mut records) = (Instant::now(), Vec::new());
        while records.len() < count {
            assert!(start.elapsed() < PATIENCE, "{topic} has {} records, not {count}", records.len());
            let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
            let message = message.expect("a record");
            let headers = message.headers().map(|h| {
                h.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect()
            });
            records.push(Kafka {
                partition: message.partition(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                headers: headers.unwrap_or_default(),
            });
        }
        records
    }
}

fn consumer(kafka: &str, group: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", kafka)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer")
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> i32 {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER).expect("metadata");
    metadata.topics()[0].partitions().len() as i32
}

/// Returns the sum of what a queue's group has committed in all partitions of its task topic.
#[must_use]
pub fn committed_offsets(kafka: &str, queue: &str) -> i64 {
    let topic = queue;
    let consumer = consumer(kafka, &format!("{queue}.kafkaq"));
    let mut list = TopicPartitionList::new();
    for p in 0..partitions(&consumer, topic) {
        list.add_partition(topic, p);
    }
    let list = consumer.committed_offsets(list, ANSWER).expect("offsets");
    list.elements()
        .iter()
        .filter_map(|e| if let Offset::Offset(o) = e.offset() { Some(o) } else { None })
        .sum()
}

/// Returns an admin client, for what operators do with Kafka.
///
/// # Errors
/// If the client refuses the settings.
pub fn admin(kafka: &str) -> KafkaResult<AdminClient<DefaultClientContext>> {
    ClientConfig::new().set("bootstrap.servers", kafka).create()
}

/// Deletes a topic. When it returns, the server no longer knows it.
///
/// # Errors
/// If the server refuses, or keeps the topic.
pub async fn delete_topic(kafka: &str, topic: &str) -> KafkaResult<()> {
    let admin = admin(kafka)?;
    let deleted = admin.delete_topics(&[topic], &AdminOptions::new()).await?;
    if let Some(Err((_, code))) = deleted.into_iter().next() {
        return Err(KafkaError::AdminOp(code));
    }
    let (begun, name) = (Instant::now(), topic.to_owned());
    let forgotten = tokio::task::spawn_blocking(move || {
        while begun.elapsed() < PATIENCE {
            let known = admin.inner().fetch_metadata(Some(&name), ANSWER)?;
            if known.topics().iter().all(|topic| topic.error().is_some()) {
                return Ok(());
            }
        }
        Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut))
    });
    forgotten.await.unwrap_or_else(|e| panic!("{e}"))
}

/// Appends lines as records, with kcat and further options of it.
pub fn kcat(topic: &str, options: &[&str], lines: &str) {
    let mut child = Command::new("kcat")
        .args(["-P", "-b", &crate::kafka(), "-t", topic])
        .args(options)
        .stdin(Stdio::piped())
        .spawn()
        .expect("kcat is installed (Debian: apt-get install kcat)");
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("write");
    assert!(child.wait().expect("kcat ends").success());
}

/// Deletes everything in this Redis.
pub fn flush_redis(url: &str) {
    let mut connection = redis::Client::open(url).and_then(|c| c.get_connection()).expect("redis answers");
    redis::cmd("FLUSHALL").exec(&mut connection).expect("flushed");
}
