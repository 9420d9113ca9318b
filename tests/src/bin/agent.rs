//! A process that publishes, or works until its input ends. It prints each action on a line before executing it.
//!
//! `agent publish PAIR FROM COUNT`, `agent work PAIR WORKERS HOLD_MS`, and `agent handle PAIR CONCURRENCY LIMIT_MS` with
//! a worker that obeys signals; a PAIR is the words of `Pair::words`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the lines are its purpose")]

use kafkaq::{
    Queue, Task, TaskId,
    worker::{Ctx, Worker},
};
use kafkaq_tests::{Built, HANDLE_FAILURES, Hold, Pair};
use std::{error::Error, io::Read, time::Duration};
use tokio::task::JoinSet;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["publish", ref pair @ .., from, count] => {
            publish(pair_of(pair)?, from.parse()?, count.parse()?).await
        }
        ["work", ref pair @ .., workers, hold] => work(pair_of(pair)?, workers.parse()?, hold.parse()?).await,
        ["handle", ref pair @ .., concurrency, limit] => {
            handle(pair_of(pair)?, concurrency.parse()?, Duration::from_millis(limit.parse()?)).await
        }
        _ => {
            Err("publish PAIR FROM COUNT | work PAIR WORKERS HOLD_MS | handle PAIR CONCURRENCY LIMIT_MS"
                .into())
        }
    }
}

fn pair_of(words: &[&str]) -> Result<Pair, Box<dyn Error>> {
    Pair::of_words(words).ok_or_else(|| format!("not a pair: {words:?}").into())
}

async fn publish(pair: Pair, from: usize, count: usize) -> Result<(), Box<dyn Error>> {
    let publisher = pair.queue().built_publisher().await;
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

async fn work(pair: Pair, workers: usize, hold: u64) -> Result<(), Box<dyn Error>> {
    let queue = pair.queue().built().await;
    let mut running = JoinSet::new();
    for _ in 0..workers {
        running.spawn(run(queue.clone(), Duration::from_millis(hold)));
    }
    // A line means that the queue is to be dropped.
    let said = tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await?;
    if said.transpose()?.is_none() {
        let ended = queue.shutdown(Duration::from_secs(5)).await;
        // Each has one more line to print.
        running.join_all().await;
        return Ok(ended?);
    }
    drop((running, queue));
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}

async fn run(queue: Queue, hold: Duration) {
    while let Ok(job) = queue.get_job().await {
        let (id, token) = (job.id().clone(), job.token());
        println!("run {id} {token} {}", job.attempt());
        if !hold.is_zero() {
            tokio::time::sleep(hold).await;
        }
        match job.done().await {
            Ok(()) => println!("done {id} {token}"),
            Err(e) => println!("failed {id} {token} {e:?}"),
        }
    }
}

async fn handle(pair: Pair, concurrency: usize, limit: Duration) -> Result<(), Box<dyn Error>> {
    let queue = pair.queue().max_failures(HANDLE_FAILURES).built().await;
    let worker = Worker::builder(queue).concurrency(concurrency).shutdown_limit(limit);
    let report = worker.on(hold).run().await?;
    eprintln!("{report}");
    Ok(())
}

async fn hold(ctx: Ctx, task: Hold) {
    println!("run {} {} {}", ctx.id(), ctx.token(), ctx.attempt());
    if ctx.failures() > 0 {
        println!("failed {} {} before", ctx.id(), ctx.token());
    }
    if task.ms == Hold::POISON.ms {
        std::process::abort();
    }
    tokio::time::sleep(Duration::from_millis(task.ms)).await;
    println!("done {} {}", ctx.id(), ctx.token());
}
