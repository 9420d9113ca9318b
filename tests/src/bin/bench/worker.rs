//! What the worker costs over a loop around `get_job`: the same tasks, drained by both in turn.

use crate::{
    Outcome, attempt,
    table::{Table, significant, thousands},
    typical_pairs,
};
use kafkaq::{
    Queue,
    worker::{Ctx, Worker},
};
use kafkaq_tests::{BrokerKind, Hold, Pair, StoreKind};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::JoinSet};

const TASKS: usize = 100_000;
const PUBLISHED_AT_ONCE: usize = 10_000;
const ROUNDS: usize = 5;
const AT_ONCE: usize = 64;
/// For one round.
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) async fn measure() {
    let columns = ["broker", "store", "loops, K/s", "worker, K/s", "worker to loops, %"];
    let title =
        format!("The worker, and {AT_ONCE} loops around `get_job`; medians of {ROUNDS} rounds in turn");
    let mut table = Table::begin(&title, &columns);
    for (broker, store) in typical_pairs() {
        let name = format!("{} with {}", broker.name(), store.name());
        let mut row = vec![broker.name().to_owned(), store.name().to_owned()];
        match rounds(broker, store).await {
            Ok([loops, worker]) => {
                row.extend([thousands(loops), thousands(worker), significant(worker / loops * 100.0)]);
            }
            Err(why) => row.push(table.failed(&name, &why)),
        }
        table.row(row);
    }
    table.end();
}

/// Tasks per second: of the loops, and of the worker.
async fn rounds(broker: BrokerKind, store: StoreKind) -> Result<[f64; 2], String> {
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (by_worker, rates) in [false, true].into_iter().zip(&mut rates) {
            let took = attempt(LIMIT, drain(Pair::new(broker, store, "worker"), by_worker)).await?;
            rates.push(TASKS as f64 / took.as_secs_f64());
        }
    }
    Ok(rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    }))
}

async fn drain(pair: Pair, by_worker: bool) -> Outcome<Duration> {
    let queue = pair.usual_queue().build().await?;
    for _ in 0..TASKS / PUBLISHED_AT_ONCE {
        for outcome in queue.enqueue_many((0..PUBLISHED_AT_ONCE).map(|_| Hold { ms: 0 })).await {
            outcome?;
        }
    }
    let all = Arc::new(Countdown::default());
    let start = Instant::now();
    let took = if by_worker {
        let count = all.clone();
        let handler = move |_: Ctx, _: Hold| {
            count.one();
            std::future::ready(())
        };
        let mut running = Worker::builder(queue).concurrency(AT_ONCE).on(handler).start()?;
        all.done.notified().await;
        let took = start.elapsed();
        running.stop();
        running.stopped().await?;
        took
    } else {
        let mut loops: JoinSet<()> = (0..AT_ONCE).map(|_| work(queue.clone(), all.clone())).collect();
        all.done.notified().await;
        let took = start.elapsed();
        loops.shutdown().await;
        queue.shutdown(Duration::from_secs(10)).await?;
        took
    };
    Ok(took)
}

#[derive(Default)]
struct Countdown {
    count: AtomicUsize,
    done: Notify,
}

impl Countdown {
    fn one(&self) {
        if self.count.fetch_add(1, Relaxed) + 1 == TASKS {
            self.done.notify_one();
        }
    }
}

async fn work(queue: Queue, all: Arc<Countdown>) {
    while let Ok(job) = queue.get_job().await {
        if job.done().await.is_ok() {
            all.one();
        }
    }
}
