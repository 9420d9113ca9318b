//! 50 workers, 10 rounds: each publishes 10 tasks and waits until they are done.
//!
//! In memory, with nothing installed:
//! ```text
//! cargo run --example quickstart
//! ```
//! On real servers, with any number of these processes:
//! ```text
//! cargo run --example quickstart --features rdkafka,redis -- --kafka localhost:9092 --redis redis://localhost
//! ```
#![allow(clippy::print_stdout)]

use kafkaq::{Queue, QueueBuilder, Task, TaskId};
use std::{
    collections::HashSet,
    error::Error,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

const WORKERS: usize = 50;
const ROUNDS: u32 = 10;
const TASKS: u32 = 10;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let queue = with_servers(Queue::builder("quickstart"))?.build().await?;
    let (done, mut finished) = mpsc::channel(WORKERS);
    for _ in 0..WORKERS {
        tokio::spawn(work(queue.clone(), done.clone()));
    }
    for round in 1..=ROUNDS {
        let started = Instant::now();
        let tasks = (1..=TASKS).map(|n| Task::new(format!("request {n} of round {round}")));
        let published = queue.publish_many(tasks).await;
        let mut waiting: HashSet<TaskId> = published.into_iter().collect::<Result<_, _>>()?;
        while !waiting.is_empty() {
            let id = finished.recv().await.ok_or("all workers have stopped")?;
            waiting.remove(&id);
        }
        println!("round {round:2}: {:?} per request", started.elapsed() / TASKS);
    }
    queue.shutdown(Duration::from_secs(10)).await?;
    Ok(())
}

/// Takes jobs until the queue is shut down.
async fn work(queue: Queue, done: mpsc::Sender<TaskId>) {
    while let Ok(job) = queue.get_job().await {
        let id = job.id().clone();
        // ... here the work would be done ...
        match job.done().await {
            Ok(()) => drop(done.send(id).await),
            Err(e) => println!("task {id}: {e}"),
        }
    }
}

/// `--kafka` and `--redis`, or the in-memory pair if neither is given.
fn with_servers(queue: QueueBuilder) -> Result<QueueBuilder, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    args.chunks(2).try_fold(queue, |queue, arg| match (arg, queue) {
        #[cfg(feature = "rdkafka")]
        ([flag, address], queue) if flag == "--kafka" => {
            Ok(queue.broker(kafkaq::rdkafka::RdKafka::builder(address).build()?))
        }
        #[cfg(feature = "redis")]
        ([flag, url], queue) if flag == "--redis" => {
            Ok(queue.store(kafkaq::redis::RedisStore::builder(url).build()?))
        }
        (other, _) => {
            Err(format!("{other:?}: use --features rdkafka,redis and --kafka host:port --redis url").into())
        }
    })
}
