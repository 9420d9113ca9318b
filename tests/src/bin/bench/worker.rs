//! The overhead of the worker over a loop around `get_job`: the same tasks, drained by both in turn.

use crate::{
    Outcome, all, attempt,
    drain::{self, Countdown},
    table::{Table, median, significant, thousands},
    typical_pairs,
};
use kafkaq::worker::{Ctx, Worker};
use kafkaq_tests::{BrokerKind, Hold, Pair, StoreKind};
use std::time::{Duration, Instant};

const TASKS: usize = 100_000;
const PUBLISHED_AT_ONCE: usize = 10_000;
const ROUNDS: usize = 5;
const AT_ONCE: usize = 64;
/// The time limit of one round.
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) async fn measure() {
    let columns = ["broker", "store", "loops, K/s", "worker, K/s", "worker to loops, %"];
    let title =
        format!("The worker, and {AT_ONCE} loops around `get_job`; medians of {ROUNDS} rounds in turn");
    let mut table = Table::begin(&title, &columns);
    for (broker, store) in typical_pairs() {
        table.pair(broker, store, rounds(broker, store).await);
    }
    table.end();
}

/// Tasks per second of the loops and of the worker, and how they compare.
async fn rounds(broker: BrokerKind, store: StoreKind) -> Result<Vec<String>, String> {
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (by_worker, rates) in [false, true].into_iter().zip(&mut rates) {
            let took = attempt(LIMIT, drain(Pair::new(broker, store, "worker"), by_worker)).await?;
            rates.push(TASKS as f64 / took.as_secs_f64());
        }
    }
    let [loops, worker] = rates.map(median);
    Ok(vec![thousands(loops), thousands(worker), significant(worker / loops * 100.0)])
}

async fn drain(pair: Pair, by_worker: bool) -> Outcome<Duration> {
    let queue = pair.usual_queue().build().await?;
    for _ in 0..TASKS / PUBLISHED_AT_ONCE {
        all(queue.enqueue_many((0..PUBLISHED_AT_ONCE).map(|_| Hold { ms: 0 })).await)?;
    }
    if !by_worker {
        let took = drain::drain(&queue, AT_ONCE, TASKS).await;
        queue.shutdown(Duration::from_secs(10)).await?;
        return Ok(took);
    }
    let countdown = Countdown::from(TASKS);
    let start = Instant::now();
    let done = countdown.clone();
    let handler = move |_: Ctx, _: Hold| {
        done.one();
        std::future::ready(())
    };
    let mut running = Worker::builder(queue).concurrency(AT_ONCE).on(handler).start()?;
    countdown.over().await;
    let took = start.elapsed();
    running.stop();
    running.stopped().await?;
    Ok(took)
}
