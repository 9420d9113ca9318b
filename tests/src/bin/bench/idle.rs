//! The cost of many idle queues: CPU, file descriptors and memory of the process.

use crate::{
    Outcome, all, attempt,
    table::{Table, significant},
    typical_pairs,
};
use kafkaq_tests::{BrokerKind, Pair, StoreKind};
use std::{fs, time::Duration};

const QUEUES: usize = 60;
/// How long it takes until all have joined and settled.
const SETTLE: Duration = Duration::from_secs(20);
const WATCHED: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(300);
/// The kernel's unit of processor time.
const TICKS_PER_SECOND: f64 = 100.0;

pub(crate) async fn measure() {
    let columns = ["broker", "store", "of a core, %", "descriptors", "memory, MiB"];
    let mut table = Table::begin(&format!("{QUEUES} idle queues, each with its own clients"), &columns);
    for (broker, store) in typical_pairs() {
        table.pair(broker, store, attempt(LIMIT, idle(broker, store)).await);
    }
    table.end();
}

async fn idle(broker: BrokerKind, store: StoreKind) -> Outcome<Vec<String>> {
    let before = (descriptors()?, resident()?);
    let mut queues = Vec::new();
    for _ in 0..QUEUES {
        let queue = Pair::new(broker, store, "idle").usual_queue().build().await?;
        // Requesting a job makes the queue a member of its group.
        let waiting = queue.clone();
        queues.push((queue, tokio::spawn(async move { waiting.get_job().await.map(drop) })));
    }
    tokio::time::sleep(SETTLE).await;
    let begin = ticks()?;
    tokio::time::sleep(WATCHED).await;
    let busy = (ticks()? - begin) / TICKS_PER_SECOND / WATCHED.as_secs_f64();
    let (descriptors, resident) = (descriptors()? - before.0, resident()? - before.1);
    let leaving = queues.iter().map(|(queue, _)| queue.shutdown(Duration::from_secs(30)));
    all(futures_util::future::join_all(leaving).await)?;
    Ok(vec![significant(busy * 100.0), descriptors.to_string(), resident.to_string()])
}

/// Returns the CPU time of this process, over all its threads.
fn ticks() -> Outcome<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name before it may have spaces.
    let fields: Vec<&str> = stat.rsplit_once(") ").ok_or("no such line")?.1.split(' ').collect();
    Ok(fields[11].parse::<f64>()? + fields[12].parse::<f64>()?)
}

fn descriptors() -> Outcome<i64> {
    Ok(fs::read_dir("/proc/self/fd")?.count() as i64)
}

/// Returns the resident memory in MiB.
fn resident() -> Outcome<i64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages: i64 = statm.split(' ').nth(1).ok_or("no such field")?.parse()?;
    Ok(pages * 4096 / (1 << 20))
}
