//! The bare Kafka clients: `rdkafka` with the settings of kafkaq's log, and `rskafka` with one connection per
//! partition.

use crate::{
    Outcome,
    logs::{Appends, Records},
};
use kafkaq::backend::{NewRecord, Partition};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    producer::{FutureProducer, FutureRecord},
};
use rskafka::{
    chrono::DateTime,
    client::{
        Client, ClientBuilder,
        partition::{Compression, PartitionClient, UnknownTopicHandling},
    },
    record::Record,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub(crate) struct RdKafka {
    address: String,
    producer: FutureProducer,
}

impl RdKafka {
    pub(crate) fn connect(address: &str) -> Outcome<RdKafka> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", address)
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            .create()?;
        Ok(RdKafka { address: address.to_owned(), producer })
    }
}

impl Appends for RdKafka {
    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Outcome<()> {
        let mut sent = Vec::with_capacity(records.len());
        for record in records {
            let value = record.value.as_deref().unwrap_or_default();
            let new = FutureRecord::<(), _>::to(&to.topic).partition(to.index).payload(value);
            sent.push(self.producer.send_result(new).map_err(|(e, _)| e)?);
        }
        for one in sent {
            one.await?.map_err(|(e, _)| e)?;
        }
        Ok(())
    }
}

impl Records for RdKafka {
    /// Measures from the first record on, since a consumer takes a while to start.
    async fn read(&self, partitions: &[Partition], count: usize) -> Outcome<Duration> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.address)
            .set("group.id", "raw")
            .set("enable.auto.commit", "false")
            // As kafkaq's: how much is fetched ahead decides more than anything else.
            .set("queued.min.messages", "10000")
            .set("queued.max.messages.kbytes", "16384")
            .set("fetch.queue.backoff.ms", "10")
            .create()?;
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition_offset(&partition.topic, partition.index, Offset::Beginning)?;
        }
        consumer.assign(&list)?;
        let reading = move || {
            let (mut read, mut start) = (0, None);
            while read < count {
                if let Some(record) = consumer.poll(Duration::from_millis(100)) {
                    record?;
                    start.get_or_insert_with(Instant::now);
                    read += 1;
                }
            }
            Outcome::Ok(start.ok_or("nothing to read")?.elapsed())
        };
        tokio::task::spawn_blocking(reading).await?
    }
}

pub(crate) struct RsKafka {
    client: Client,
    partitions: Mutex<HashMap<Partition, Arc<PartitionClient>>>,
}

impl RsKafka {
    pub(crate) async fn connect(address: &str) -> Outcome<RsKafka> {
        let client = ClientBuilder::new(vec![address.to_owned()]).build().await?;
        Ok(RsKafka { client, partitions: Mutex::default() })
    }

    async fn leader(&self, of: &Partition) -> Outcome<Arc<PartitionClient>> {
        let known = || self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leader) = known().get(of) {
            return Ok(leader.clone());
        }
        let connecting = self.client.partition_client(&*of.topic, of.index, UnknownTopicHandling::Retry);
        let leader = Arc::new(connecting.await?);
        known().insert(of.clone(), leader.clone());
        Ok(leader)
    }
}

impl Appends for RsKafka {
    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Outcome<()> {
        // The current time: otherwise the server soon deletes it as too old.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let timestamp = DateTime::from_timestamp_millis(now as i64).ok_or("a time that is too late")?;
        let record = |new: &NewRecord| Record {
            key: None,
            value: new.value.as_ref().map(|value| value.to_vec()),
            headers: BTreeMap::new(),
            timestamp,
        };
        let records = records.iter().map(record).collect();
        self.leader(to).await?.produce(records, Compression::NoCompression).await?;
        Ok(())
    }
}

impl Records for RsKafka {
    async fn read(&self, partitions: &[Partition], count: usize) -> Outcome<Duration> {
        let start = Instant::now();
        let reads = partitions.iter().map(|partition| async move {
            let (leader, mut next) = (self.leader(partition).await?, 0);
            while next < (count / partitions.len()) as i64 {
                let (records, _end) = leader.fetch_records(next, 1..1 << 20, 1000).await?;
                next = records.last().map_or(next, |last| last.offset + 1);
            }
            Outcome::Ok(())
        });
        futures_util::future::try_join_all(reads).await?;
        Ok(start.elapsed())
    }
}
