//! A graceful deploy under load: two workers are replaced with two others, one after the other. Nothing is lost, no
//! task is executed twice, and no failure is counted. In memory, with nothing installed:
//! ```text
//! cargo run --example deploy
//! ```
#![allow(clippy::print_stdout)]

use kafkaq::{
    Publisher, Queue,
    memory::{MemoryLog, MemoryStore},
    worker::{Ctx, TaskType, Worker, WorkerHandle},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::sleep;

const TASKS: u32 = 400;

#[derive(Serialize, Deserialize)]
struct Work {
    number: u32,
}

impl TaskType for Work {
    const KIND: &'static str = "work";
}

/// How many times each task was executed, and by which processes.
type Executed = Arc<Mutex<BTreeMap<u32, Vec<&'static str>>>>;

async fn work(ctx: Ctx<(&'static str, Executed)>, work: Work) {
    sleep(Duration::from_millis(20)).await;
    let (process, executed) = ctx.state();
    executed.lock().unwrap_or_else(PoisonError::into_inner).entry(work.number).or_default().push(*process);
}

/// Stands for a separate process: a queue over the same log and store, and a worker.
async fn start(
    process: &'static str,
    log: &MemoryLog,
    store: &MemoryStore,
    executed: &Executed,
) -> kafkaq::Result<WorkerHandle> {
    let queue = Queue::builder("work").broker(log.clone()).store(store.clone()).build().await?;
    Worker::builder(queue).state((process, executed.clone())).concurrency(8).on(work).start()
}

/// The effect of SIGTERM on `Worker::run`.
async fn stop(process: &'static str, mut worker: WorkerHandle) -> kafkaq::Result<()> {
    worker.stop();
    let report = worker.stopped().await?;
    println!("{process}: {report}");
    assert_eq!((report.retried, report.lost, report.unconfirmed), (0, 0, 0), "{process}: {report}");
    Ok(())
}

async fn publish(clients: Publisher) -> kafkaq::Result<()> {
    for number in 0..TASKS {
        clients.enqueue(Work { number }).await?;
        sleep(Duration::from_millis(4)).await;
    }
    Ok(())
}

/// Publishes 400 tasks, and replaces the workers meanwhile.
///
/// # Errors
/// If the queue fails.
pub(crate) async fn replace_both() -> Result<(), Box<dyn Error>> {
    let (log, store, executed) = (MemoryLog::new(), MemoryStore::new(), Executed::default());
    let (first, second) =
        (start("old-1", &log, &store, &executed).await?, start("old-2", &log, &store, &executed).await?);

    let clients = Queue::builder("work").broker(log.clone()).build_publisher().await?;
    let load = tokio::spawn(publish(clients));
    let seen = |n| {
        let executed = executed.clone();
        async move {
            while executed.lock().unwrap_or_else(PoisonError::into_inner).len() < n {
                sleep(Duration::from_millis(10)).await;
            }
        }
    };
    seen(50).await;
    let third = start("new-1", &log, &store, &executed).await?;
    stop("old-1", first).await?;
    let fourth = start("new-2", &log, &store, &executed).await?;
    stop("old-2", second).await?;
    load.await??;
    seen(TASKS as usize).await;
    stop("new-1", third).await?;
    stop("new-2", fourth).await?;

    let executed = executed.lock().unwrap_or_else(PoisonError::into_inner);
    let twice = executed.iter().filter(|(_, by)| by.len() > 1).collect::<Vec<_>>();
    assert!(twice.is_empty(), "executed twice: {twice:?}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    replace_both().await
}
