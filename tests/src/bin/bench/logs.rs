//! Records per second that each log appends and reads, compared with its bare client library.
//!
//! 100-byte records in batches of 500, one in flight to each of 6 partitions; then everything is read. The sides take
//! turns, each with its own topic; each figure, including the ratio, is the median of the rounds.

use crate::{
    Outcome, all, asked_for, attempt,
    raw::kafka as raw,
    table::{Table, side_by_side},
};
use futures_util::StreamExt;
use kafkaq::{
    Headers,
    backend::{
        Broker, Event, FetchLimit, JoinRequest, Log, NewRecord, Partition, PartitionLog, Position, TopicSpec,
    },
    rdkafka::RdKafka,
    rskafka::RsKafka,
};
use kafkaq_tests::{BrokerKind, unique};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

const ROUNDS: usize = 7;
const PARTITIONS: i32 = 6;
const BATCH: usize = 500;
/// The number of batches per partition.
const BATCHES: usize = 40;
pub(crate) const RECORDS: usize = PARTITIONS as usize * BATCH * BATCHES;
const LIMIT: Duration = Duration::from_secs(90);

/// The appending half of one side of the comparison.
pub(crate) trait Appends: Send + Sync + 'static {
    /// Fails if one of them fails.
    fn append(&self, to: &Partition, records: &[NewRecord]) -> impl Future<Output = Outcome<()>> + Send;
}

/// One side of the comparison.
pub(crate) trait Records: Appends {
    /// Reads this many records, equally many from each partition, from the first one on. Returns how long it took.
    fn read(&self, of: &[Partition], count: usize) -> impl Future<Output = Outcome<Duration>> + Send;
}

pub(crate) async fn measure() {
    let columns = ["log", "what", "client alone, K/s", "log, K/s", "log : client"];
    let mut table = Table::begin("Logs", &columns);
    for &kind in BrokerKind::ALL.iter().filter(|&&broker| asked_for(broker)) {
        let measured = match kind {
            // There is no client to compare it with, and its own figures are among those of the pairs.
            BrokerKind::Memory => continue,
            BrokerKind::RdKafka => attempt(LIMIT, by_rdkafka()).await,
            BrokerKind::RsKafka => attempt(LIMIT, by_rskafka()).await,
        };
        let row =
            |what: &str, figures: Vec<String>| [vec![kind.name().into(), what.into()], figures].concat();
        match measured {
            Ok([append, read]) => {
                table.row(row("append", append));
                table.row(row("read", read));
            }
            Err(why) => {
                let failed = table.failed(kind.name(), &why);
                table.row(row("", vec![failed]));
            }
        }
    }
    table.end();
}

async fn by_rdkafka() -> Outcome<[Vec<String>; 2]> {
    let ours = RdKafka::builder(kafkaq_tests::kafka()).build()?;
    beside(Ours(ours), raw::RdKafka::connect(&kafkaq_tests::kafka())?).await
}

async fn by_rskafka() -> Outcome<[Vec<String>; 2]> {
    let ours = RsKafka::builder(kafkaq_tests::kafka()).build()?;
    beside(Ours(ours), raw::RsKafka::connect(&kafkaq_tests::kafka()).await?).await
}

/// kafkaq's side.
pub(crate) struct Ours<L>(pub(crate) L);

impl<L: Log> Appends for Ours<L> {
    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Outcome<()> {
        all(self.0.append(to, records).await)
    }
}

impl Records for Ours<RsKafka> {
    async fn read(&self, of: &[Partition], count: usize) -> Outcome<Duration> {
        let start = Instant::now();
        let reads = of.iter().map(|partition| async move {
            let mut from = Position { partition: partition.clone(), offset: 0 };
            while from.offset < (count / of.len()) as i64 {
                from.offset =
                    self.0.fetch(&from, FetchLimit::new(Duration::from_secs(1), 1 << 20)).await?.next;
            }
            Outcome::Ok(())
        });
        futures_util::future::try_join_all(reads).await?;
        Ok(start.elapsed())
    }
}

impl Records for Ours<RdKafka> {
    /// Measures from the first record on, since joining takes a while.
    async fn read(&self, of: &[Partition], count: usize) -> Outcome<Duration> {
        let topics = of.first().map(|partition| partition.topic.clone()).into_iter().collect();
        let request = JoinRequest::new(unique("bench"), topics, *uuid::Uuid::new_v4().as_bytes());
        let mut consumer = self.0.join(request).await?;
        let (mut read, mut start) = (0, None);
        while read < count {
            if let Event::Records(_, batch) = consumer.events.next().await.ok_or("the events ended")?? {
                start.get_or_insert_with(Instant::now);
                read += batch.records.len();
            }
        }
        let took = start.ok_or("nothing to read")?.elapsed();
        consumer.member.leave().await?;
        Ok(took)
    }
}

async fn beside<L: Log, R: Records>(ours: Ours<L>, raw: R) -> Outcome<[Vec<String>; 2]>
where
    Ours<L>: Records,
{
    let (ours, raw) = (Arc::new(ours), Arc::new(raw));
    let (mut by_log, mut by_client) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        by_client.push(turn(&raw, topic(&ours.0).await?).await?);
        by_log.push(turn(&ours, topic(&ours.0).await?).await?);
    }
    let figures = |kind: usize| {
        let rates = |of: &[[f64; 2]]| of.iter().map(|rates| rates[kind]).collect::<Vec<_>>();
        side_by_side(rates(&by_client), rates(&by_log))
    };
    Ok([figures(0), figures(1)])
}

/// A topic of its own, with [`PARTITIONS`].
pub(crate) async fn topic(log: &impl Log) -> Outcome<Vec<Partition>> {
    let mut spec = TopicSpec::new(unique("bench"));
    spec.partitions = Some(PARTITIONS);
    log.ensure_topics(std::slice::from_ref(&spec)).await?;
    Ok((0..PARTITIONS).map(|index| Partition::new(spec.name.clone(), index)).collect())
}

/// Records per second that were appended and read.
async fn turn<S: Records>(side: &Arc<S>, partitions: Vec<Partition>) -> Outcome<[f64; 2]> {
    let appended = append_all(side, &partitions).await?;
    let read = RECORDS as f64 / side.read(&partitions, RECORDS).await?.as_secs_f64();
    Ok([appended, read])
}

/// Appends [`RECORDS`]. Returns how many per second.
pub(crate) async fn append_all<S: Appends>(side: &Arc<S>, partitions: &[Partition]) -> Outcome<f64> {
    let batch: Arc<Vec<NewRecord>> = Arc::new(
        (0..BATCH).map(|_| NewRecord::new(None, Some(vec![b'x'; 100].into()), Headers::new())).collect(),
    );
    for partition in partitions {
        // Connects.
        side.append(partition, &batch[..1]).await?;
    }
    let start = Instant::now();
    let mut appending = JoinSet::new();
    for partition in partitions {
        let (side, batch, partition) = (side.clone(), batch.clone(), partition.clone());
        appending.spawn(async move {
            for _ in 0..BATCHES {
                side.append(&partition, &batch).await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(ended) = appending.join_next().await {
        ended??;
    }
    Ok(RECORDS as f64 / start.elapsed().as_secs_f64())
}
