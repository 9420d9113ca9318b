//! A million tasks with delays of every length up to two minutes, and how late each comes.

use crate::{
    Outcome, attempt,
    table::{Table, significant, thousands},
    typical_pairs,
};
use kafkaq::{Queue, Task};
use kafkaq_tests::Pair;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::JoinSet, time::interval};

const TASKS: usize = 1_000_000;
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(120);
const WORKERS: usize = 500;
/// Published at a steady pace: how many at once, and how often. Who publishes more than workers take in makes every task
/// late, and `cargo xtask bench pairs` tells how many that is.
const AT_ONCE: usize = 500;
const EVERY: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(600);

pub(crate) async fn measure() {
    let columns = ["broker", "store", "published, K/s", "late by: p50, ms", "p99", "at most"];
    let mut table = Table::begin("A million delays of 1 to 120 s, published at 10,000 a second", &columns);
    for (broker, store) in typical_pairs() {
        let mut row = vec![broker.name().to_owned(), store.name().to_owned()];
        match attempt(LIMIT, run(Pair::new(broker, store, "delays"))).await {
            Ok(Late { published, percentiles }) => {
                row.push(thousands(published));
                row.extend(percentiles.map(|late| significant(late.as_secs_f64() * 1000.0)));
            }
            Err(why) => row.push(table.failed(&format!("{} with {}", broker.name(), store.name()), &why)),
        }
        table.row(row);
    }
    table.end();
}

struct Late {
    /// A second.
    published: f64,
    percentiles: [Duration; 3],
}

async fn run(pair: Pair) -> Outcome<Late> {
    let queue = pair.usual_queue().build().await?;
    let epoch = Instant::now();
    let (count, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work(queue.clone(), epoch, count.clone(), all.clone()));
    }
    publish(&queue, epoch).await?;
    let published = TASKS as f64 / epoch.elapsed().as_secs_f64();
    all.notified().await;
    queue.shutdown(Duration::from_secs(10)).await?;
    let mut late = Vec::with_capacity(TASKS);
    while let Some(of_one) = workers.join_next().await {
        late.extend(of_one?);
    }
    late.sort_unstable();
    let at = |percent: usize| late[(late.len() * percent / 100).min(late.len() - 1)];
    Ok(Late { published, percentiles: [at(50), at(99), at(100)] })
}

/// The delays come in no order: each is drawn from a sequence that fills the range evenly.
async fn publish(queue: &Queue, epoch: Instant) -> Outcome<()> {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    let mut pace = interval(EVERY);
    for first in (0..TASKS).step_by(AT_ONCE) {
        pace.tick().await;
        let now = epoch.elapsed();
        let tasks = (first..first + AT_ONCE).map(|n| {
            let delay = SHORTEST + (LONGEST - SHORTEST).mul_f64((n as f64 * GOLDEN).fract());
            let due = (now + delay).as_nanos() as u64;
            let mut payload = vec![b'x'; 100];
            payload[..8].copy_from_slice(&due.to_le_bytes());
            Task::new(payload).with_delay(delay)
        });
        for outcome in queue.publish_many(tasks).await {
            outcome?;
        }
    }
    Ok(())
}

/// By how much each of its jobs was late.
async fn work(queue: Queue, epoch: Instant, count: Arc<AtomicUsize>, all: Arc<Notify>) -> Vec<Duration> {
    let mut late = Vec::with_capacity(TASKS / WORKERS);
    while let Ok(job) = queue.get_job().await {
        let due = job.payload().first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        let by = epoch.elapsed().saturating_sub(Duration::from_nanos(due));
        if job.done().await.is_ok() {
            late.push(by);
            if count.fetch_add(1, Ordering::Relaxed) + 1 == TASKS {
                all.notify_one();
            }
        }
    }
    late
}
