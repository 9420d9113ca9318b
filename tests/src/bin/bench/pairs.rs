//! Every broker with every store: how fast tasks are published and drained, and how soon one is picked up.
//!
//! 100-byte tasks, 6 partitions, a handler that does nothing, default settings. Each figure has its own queue and
//! backends.

use crate::{
    Outcome, all, attempt, drain,
    table::{Table, percentiles, thousands},
};
use kafkaq::Queue;
use kafkaq_tests::{BrokerKind, Pair, StoreKind, not_asked_for};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const WORKERS: [usize; 2] = [50, 500];
/// Tasks of the first round, which only warms up, and of the largest.
const WARM_UP: usize = 2_000;
const MOST: usize = 500_000;
/// How long a round of draining must take to count.
const AIM: Duration = Duration::from_secs(4);
const ENOUGH: Duration = Duration::from_secs(2);
/// What is published at once.
const PUBLISHED_AT_ONCE: usize = 10_000;

/// Tasks per second whose pick-up is measured, tasks that warm up, and tasks that count.
const RATE: u32 = 200;
const UNCOUNTED: usize = 2 * RATE as usize;
const COUNTED: usize = 10 * RATE as usize;

/// The time limit of one figure, for all of its rounds.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn measure() {
    let columns = [
        "broker",
        "store",
        "publish, K/s",
        "drain with 50 workers, K/s",
        "with 500, K/s",
        "pick-up at 200 tasks/s: p50, ms",
        "p95",
        "p99",
    ];
    let mut table = Table::begin("Pairs", &columns);
    for &broker in BrokerKind::ALL {
        for &store in StoreKind::ALL {
            if not_asked_for(broker, store).is_none() {
                one(&mut table, broker, store).await;
            }
        }
    }
    table.end();
}

async fn one(table: &mut Table, broker: BrokerKind, store: StoreKind) {
    let name = format!("{} with {}", broker.name(), store.name());
    let mut drained = Vec::new();
    for workers in WORKERS {
        drained.push(attempt(LIMIT, drain_rounds(Pair::new(broker, store, "bench"), workers)).await);
    }
    let picked_up = attempt(LIMIT, pick_up(Pair::new(broker, store, "bench"))).await;

    let published = drained.iter().rev().find_map(|d| d.as_ref().ok()).map(|d| thousands(d.published));
    let mut row = vec![broker.name().into(), store.name().into(), published.unwrap_or_default()];
    for drained in drained {
        row.push(match drained {
            Ok(rates) => thousands(rates.drained),
            Err(why) => table.failed(&name, &why),
        });
    }
    match picked_up {
        Ok(percentiles) => row.extend(percentiles),
        Err(why) => row.push(table.failed(&name, &why)),
    }
    table.row(row);
}

/// Tasks per second.
struct Rates {
    published: f64,
    drained: f64,
}

/// Drains in rounds, each with more tasks, until one takes long enough to count. In a round everything is published
/// before the workers start.
async fn drain_rounds(pair: Pair, workers: usize) -> Outcome<Rates> {
    let queue = pair.usual_queue().build().await?;
    let mut tasks = WARM_UP;
    loop {
        let start = Instant::now();
        publish(&queue, tasks).await?;
        let publishing = start.elapsed();
        let draining = drain::drain(&queue, workers, tasks).await;
        if tasks > WARM_UP && (draining >= ENOUGH || tasks == MOST) {
            queue.shutdown(Duration::from_secs(10)).await?;
            let a_second = |took: Duration| tasks as f64 / took.as_secs_f64();
            return Ok(Rates { published: a_second(publishing), drained: a_second(draining) });
        }
        let growth = (AIM.as_secs_f64() / draining.as_secs_f64()).clamp(2.0, 10.0);
        tasks = ((tasks as f64 * growth) as usize).min(MOST);
    }
}

async fn publish(queue: &Queue, tasks: usize) -> Outcome<()> {
    let mut left = tasks;
    while left > 0 {
        let batch = left.min(PUBLISHED_AT_ONCE);
        all(queue.publish_many((0..batch).map(|_| drain::task())).await)?;
        left -= batch;
    }
    Ok(())
}

/// Measures from just before `publish` until one of 50 workers has the job: the 50th, 95th and 99th percentile.
async fn pick_up(pair: Pair) -> Outcome<[String; 3]> {
    let queue = pair.usual_queue().build().await?;
    let epoch = Instant::now();
    let (to, mut from) = tokio::sync::mpsc::channel(1024);
    let mut running = JoinSet::new();
    for _ in 0..50 {
        let (queue, to) = (queue.clone(), to.clone());
        running.spawn(async move {
            while let Ok(job) = queue.get_job().await {
                let now = epoch.elapsed();
                let sent = drain::stamp(job.payload());
                if job.done().await.is_err() || to.send(now - sent).await.is_err() {
                    return;
                }
            }
        });
    }
    let publisher = queue.publisher();
    running.spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
        for _ in 0..UNCOUNTED + COUNTED {
            tick.tick().await;
            let (publisher, task) = (publisher.clone(), drain::stamped(epoch.elapsed()));
            tokio::spawn(async move { publisher.publish(task).await });
        }
    });
    let mut took = Vec::new();
    for i in 0..UNCOUNTED + COUNTED {
        let one = from.recv().await.ok_or("the workers ended")?;
        if i >= UNCOUNTED {
            took.push(one);
        }
    }
    running.shutdown().await;
    queue.shutdown(Duration::from_secs(10)).await?;
    Ok(percentiles(took, [50, 95, 99]))
}
