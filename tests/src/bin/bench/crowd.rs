//! How soon new tasks start next to ten thousand that keep failing.

use crate::{
    Outcome, all, attempt,
    table::{Table, percentiles, significant},
    typical_pairs,
};
use kafkaq::worker::{Backoff, Ctx, Failure, TaskType, Worker};
use kafkaq_tests::{Hold, Pair};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::time::{interval, sleep};

const CROWD: usize = 10_000;
const BACKOFF: Duration = Duration::from_secs(10);
const FRESH: usize = 200;
const EVERY: Duration = Duration::from_millis(100);
const AT_ONCE: usize = 64;
const LIMIT: Duration = Duration::from_secs(180);

#[derive(Serialize, Deserialize)]
struct Failing;

impl TaskType for Failing {
    const KIND: &'static str = "failing";
}

pub(crate) async fn measure() {
    let title = format!(
        "New tasks next to {CROWD} that fail and are retried every {BACKOFF:?}, with a worker of concurrency \
        {AT_ONCE}"
    );
    let columns = ["broker", "store", "failures per second", "started after: p50, ms", "p99", "at most"];
    let mut table = Table::begin(&title, &columns);
    for (broker, store) in typical_pairs() {
        table.pair(broker, store, attempt(LIMIT, run(Pair::new(broker, store, "crowd"))).await);
    }
    table.end();
}

/// How many fail per second, and how late fresh tasks were begun.
async fn run(pair: Pair) -> Outcome<Vec<String>> {
    let queue = pair.usual_queue().build().await?;
    let failed = Arc::new(AtomicUsize::new(0));
    let late = Arc::new(Mutex::new(Vec::with_capacity(FRESH)));
    let (count, told, epoch) = (failed.clone(), late.clone(), Instant::now());
    let mut running = Worker::builder(queue.clone())
        .concurrency(AT_ONCE)
        .retry(Backoff::fixed(BACKOFF).max_failures(1000))
        .on(move |_: Ctx, _: Failing| {
            count.fetch_add(1, Relaxed);
            async { Err::<(), _>(Failure::retry("as ever")) }
        })
        // Its number is when it was published, in milliseconds.
        .on(move |_: Ctx, task: Hold| {
            let late = epoch.elapsed().saturating_sub(Duration::from_millis(task.ms));
            told.lock().unwrap_or_else(PoisonError::into_inner).push(late);
            async {}
        })
        .start()?;
    all(queue.enqueue_many((0..CROWD).map(|_| Failing)).await)?;
    while failed.load(Relaxed) < CROWD {
        sleep(EVERY).await;
    }
    let (before, began) = (failed.load(Relaxed), Instant::now());
    let mut pace = interval(EVERY);
    for _ in 0..FRESH {
        pace.tick().await;
        queue.enqueue(Hold { ms: epoch.elapsed().as_millis() as u64 }).await?;
    }
    let failures = (failed.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    while late.lock().unwrap_or_else(PoisonError::into_inner).len() < FRESH {
        sleep(EVERY).await;
    }
    running.stop();
    running.stopped().await?;
    let late = std::mem::take(&mut *late.lock().unwrap_or_else(PoisonError::into_inner));
    let mut figures = vec![significant(failures)];
    figures.extend(percentiles(late, [50, 99, 100]));
    Ok(figures)
}
