//! How fast tasks are published, by one caller in bulk and by many callers that wait for one task at a time, compared
//! with the bare client library in bulk.
//!
//! 100-byte tasks without keys, 6 partitions, default settings; no worker runs. The bare client appends records of 100
//! bytes in batches of 500, one in flight to each partition, as in the part `logs`; in memory it is the log itself. The
//! sides take turns; each figure, including the ratios, is the median of the rounds.

use crate::{
    Outcome, all, asked_for, attempt,
    drain::task,
    logs::{self, Appends, Ours},
    raw::kafka as raw,
    table::{Table, median, significant, thousands},
};
use kafkaq::{
    Queue,
    backend::{Log, Partition},
    memory::MemoryLog,
    rdkafka::RdKafka,
    rskafka::RsKafka,
};
use kafkaq_tests::{BrokerKind, Pair, StoreKind};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

const ROUNDS: usize = 7;
/// How many tasks one bulk call publishes.
const AT_ONCE: usize = 10_000;
const CALLERS: usize = 64;
/// How many calls each of them makes.
const CALLS: usize = 1_000;
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) async fn measure() {
    let callers = format!("{CALLERS} callers, K/s");
    let columns = [
        "broker",
        "client alone, K/s",
        "publish_many, K/s",
        ": client",
        &callers,
        ": client",
        "tasks per request",
    ];
    let mut table = Table::begin("Publishing", &columns);
    for &broker in BrokerKind::ALL.iter().filter(|&&broker| asked_for(broker)) {
        let measured = match broker {
            BrokerKind::Memory => attempt(LIMIT, in_memory()).await,
            BrokerKind::RdKafka => attempt(LIMIT, by_rdkafka()).await,
            BrokerKind::RsKafka => attempt(LIMIT, by_rskafka()).await,
        };
        let figures = measured.unwrap_or_else(|why| vec![table.failed(broker.name(), &why)]);
        table.row([vec![broker.name().to_owned()], figures].concat());
    }
    table.end();
}

async fn in_memory() -> Outcome<Vec<String>> {
    let log = MemoryLog::new();
    beside(BrokerKind::Memory, log.clone(), Ours(log)).await
}

async fn by_rdkafka() -> Outcome<Vec<String>> {
    let address = kafkaq_tests::kafka();
    let log = RdKafka::builder(&*address).build()?;
    beside(BrokerKind::RdKafka, log, raw::RdKafka::connect(&address)?).await
}

async fn by_rskafka() -> Outcome<Vec<String>> {
    let address = kafkaq_tests::kafka();
    let log = RsKafka::builder(&*address).build()?;
    beside(BrokerKind::RsKafka, log, raw::RsKafka::connect(&address).await?).await
}

/// `log` creates the topics of the bare client.
async fn beside(broker: BrokerKind, log: impl Log, alone: impl Appends) -> Outcome<Vec<String>> {
    let alone = Arc::new(alone);
    let queue = Pair::new(broker, StoreKind::Memory, "publish").usual_queue().build().await?;
    // Connects to each partition.
    bulk(&queue).await?;
    let (mut client, mut many, mut single, mut sizes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let partitions: Vec<Partition> = logs::topic(&log).await?;
        client.push(logs::append_all(&alone, &partitions).await?);
        many.push(bulk(&queue).await?);
        let before = queue.stats().await.publishes;
        single.push(calls(&queue).await?);
        let after = queue.stats().await.publishes;
        sizes.push((after.items - before.items) as f64 / (after.calls - before.calls) as f64);
    }
    queue.shutdown(Duration::from_secs(10)).await?;
    let share = |ours: &[f64]| {
        let shares = ours.iter().zip(&client).map(|(ours, client)| ours / client * 100.0).collect();
        format!("{:.0} %", median(shares))
    };
    let (by_many, by_single) = (share(&many), share(&single));
    Ok(vec![
        thousands(median(client)),
        thousands(median(many)),
        by_many,
        thousands(median(single)),
        by_single,
        significant(median(sizes)),
    ])
}

/// Returns the tasks per second of `publish_many`.
async fn bulk(queue: &Queue) -> Outcome<f64> {
    let start = Instant::now();
    for _ in 0..logs::RECORDS / AT_ONCE {
        all(queue.publish_many((0..AT_ONCE).map(|_| task())).await)?;
    }
    Ok(logs::RECORDS as f64 / start.elapsed().as_secs_f64())
}

/// Returns the tasks per second of callers of `publish`.
async fn calls(queue: &Queue) -> Outcome<f64> {
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let publisher = queue.publisher().clone();
        callers.spawn(async move {
            for _ in 0..CALLS {
                publisher.publish(task()).await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok((CALLERS * CALLS) as f64 / start.elapsed().as_secs_f64())
}
