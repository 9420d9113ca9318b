//! A million tasks with delays of every length up to two minutes, and how late each is executed.

use crate::{
    Outcome, all, attempt,
    drain::{Countdown, stamp, stamped},
    table::{Table, percentiles, thousands},
    typical_pairs,
};
use kafkaq::Queue;
use kafkaq_tests::Pair;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::interval};

const TASKS: usize = 1_000_000;
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(120);
const WORKERS: usize = 500;
/// Published at a steady rate: how many at once, and how often. Publishing faster than workers drain makes every task
/// late; `cargo xtask bench pairs` shows how fast that is.
const AT_ONCE: usize = 500;
const EVERY: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(600);

pub(crate) async fn measure() {
    let columns = ["broker", "store", "published, K/s", "late by: p50, ms", "p99", "at most"];
    let mut table = Table::begin("A million delays of 1 to 120 s, published at 10,000 per second", &columns);
    for (broker, store) in typical_pairs() {
        table.pair(broker, store, attempt(LIMIT, run(Pair::new(broker, store, "delays"))).await);
    }
    table.end();
}

async fn run(pair: Pair) -> Outcome<Vec<String>> {
    let queue = pair.usual_queue().build().await?;
    let epoch = Instant::now();
    let countdown = Countdown::from(TASKS);
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work(queue.clone(), epoch, countdown.clone()));
    }
    publish(&queue, epoch).await?;
    let published = TASKS as f64 / epoch.elapsed().as_secs_f64();
    countdown.over().await;
    queue.shutdown(Duration::from_secs(10)).await?;
    let mut late = Vec::with_capacity(TASKS);
    while let Some(of_one) = workers.join_next().await {
        late.extend(of_one?);
    }
    let mut figures = vec![thousands(published)];
    figures.extend(percentiles(late, [50, 99, 100]));
    Ok(figures)
}

/// The delays are in no order: they are drawn from a sequence that fills the range evenly.
async fn publish(queue: &Queue, epoch: Instant) -> Outcome<()> {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    let mut pace = interval(EVERY);
    for first in (0..TASKS).step_by(AT_ONCE) {
        pace.tick().await;
        let now = epoch.elapsed();
        let tasks = (first..first + AT_ONCE).map(|n| {
            let delay = SHORTEST + (LONGEST - SHORTEST).mul_f64((n as f64 * GOLDEN).fract());
            stamped(now + delay).with_delay(delay)
        });
        all(queue.publish_many(tasks).await)?;
    }
    Ok(())
}

/// Returns by how much each of its jobs was late.
async fn work(queue: Queue, epoch: Instant, countdown: Arc<Countdown>) -> Vec<Duration> {
    let mut late = Vec::with_capacity(TASKS / WORKERS);
    while let Ok(job) = queue.get_job().await {
        let by = epoch.elapsed().saturating_sub(stamp(job.payload()));
        if job.done().await.is_ok() {
            late.push(by);
            countdown.one();
        }
    }
    late
}
