//! The cost of the whole client, with a log and a store in memory.

use crate::{Outcome, counted};
use kafkaq::{Queue, Task};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::runtime::{Builder, Runtime};

/// Tasks that are published by one call.
const AT_ONCE: u64 = 500;

pub(crate) fn publish(tasks: u64) -> Outcome {
    let (runtime, queue) = begin(false)?;
    counted_on(&runtime, async {
        for _ in 0..tasks {
            queue.publish(task()).await?;
        }
        Ok(())
    })
}

pub(crate) fn publish_many(tasks: u64) -> Outcome {
    let (runtime, queue) = begin(false)?;
    counted_on(&runtime, publish_all(&queue, tasks))
}

/// Takes tasks from records to done jobs, with this many callers of `get_job`.
pub(crate) fn drain(tasks: u64, workers: usize) -> Outcome {
    // With a running clock, periodic work would make a task more expensive on a slower machine.
    let (runtime, queue) = begin(true)?;
    runtime.block_on(publish_all(&queue, tasks))?;
    counted_on(&runtime, async {
        let left = Arc::new(AtomicU64::new(tasks));
        let workers: Vec<_> = (0..workers).map(|_| tokio::spawn(work(queue.clone(), left.clone()))).collect();
        for worker in workers {
            worker.await??;
        }
        Ok(())
    })
}

/// Takes jobs for as long as there are some.
async fn work(queue: Queue, left: Arc<AtomicU64>) -> Outcome {
    let take = |n: u64| n.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
        queue.get_job().await?.done().await?;
    }
    Ok(())
}

async fn publish_all(queue: &Queue, tasks: u64) -> Outcome {
    let mut left = tasks;
    while left > 0 {
        let batch = left.min(AT_ONCE);
        for outcome in queue.publish_many((0..batch).map(|_| task())).await {
            outcome?;
        }
        left -= batch;
    }
    Ok(())
}

fn task() -> Task {
    Task::new(vec![b'x'; 100])
}

fn begin(paused: bool) -> Outcome<(Runtime, Queue)> {
    let runtime = Builder::new_current_thread().enable_time().start_paused(paused).build()?;
    let queue = runtime.block_on(Queue::builder("cost").build())?;
    Ok((runtime, queue))
}

fn counted_on(runtime: &Runtime, work: impl Future<Output = Outcome>) -> Outcome {
    counted(Box::new(|| runtime.block_on(work)))
}
