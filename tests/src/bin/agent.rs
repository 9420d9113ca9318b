//! A process that publishes or works until its input ends. It says what it does, a line each, before it does it.
//!
//! `agent publish QUEUE REDIS FROM COUNT` and `agent work QUEUE REDIS WORKERS HOLD_MS`

#![allow(clippy::print_stdout, reason = "the lines are its purpose")]

use kafkaq::{Queue, Task, TaskId};
use std::{error::Error, io::Read, time::Duration};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["publish", queue, redis, from, count] => publish(queue, redis, from.parse()?, count.parse()?).await,
        ["work", queue, redis, workers, hold] => work(queue, redis, workers.parse()?, hold.parse()?).await,
        _ => Err("publish QUEUE REDIS FROM COUNT | work QUEUE REDIS WORKERS HOLD_MS".into()),
    }
}

async fn publish(queue: &str, redis: &str, from: usize, count: usize) -> Result<(), Box<dyn Error>> {
    let publisher = kafkaq_tests::queue(queue, redis).build_publisher().await?;
    for start in (from..from + count).step_by(1000) {
        let ids = start..(start + 1000).min(from + count);
        let tasks = ids.map(|i| Ok(Task::new(vec![b'x'; 100]).with_id(TaskId::new(format!("t{i}"))?)));
        for outcome in publisher.publish_many(tasks.collect::<kafkaq::Result<Vec<_>>>()?).await {
            outcome?;
        }
    }
    println!("published {count}");
    Ok(())
}

async fn work(queue: &str, redis: &str, workers: usize, hold: u64) -> Result<(), Box<dyn Error>> {
    let queue = kafkaq_tests::queue(queue, redis).build().await?;
    for _ in 0..workers {
        tokio::spawn(run(queue.clone(), Duration::from_millis(hold)));
    }
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    queue.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}

async fn run(queue: Queue, hold: Duration) {
    while let Ok(job) = queue.get_job().await {
        let id = job.id().clone();
        println!("run {id} {}", job.attempt());
        if !hold.is_zero() {
            tokio::time::sleep(hold).await;
        }
        match job.done().await {
            Ok(()) => println!("done {id}"),
            Err(e) => println!("failed {id} {e:?}"),
        }
    }
}
