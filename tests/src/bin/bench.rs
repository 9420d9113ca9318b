//! Figures of one run on one machine: publish rate, drain rate, pick-up latency. `cargo xtask bench` runs it.
//!
//! 100-byte tasks, 6 partitions, a handler that does nothing. It judges nothing and fails on no figure: compare
//! only within one run.

#![allow(clippy::print_stdout, reason = "the figures are its purpose")]

use kafkaq::{Queue, QueueBuilder, Task, rdkafka::RdKafka, redis::RedisStore};
use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    println!(
        "{}, {} cores; all servers and clients on it\n",
        processor(),
        std::thread::available_parallelism()?
    );
    println!("| backend | workers | publish, K/s | drain, K/s |");
    println!("|---|---|---|---|");
    for (workers, tasks) in [(50, 500_000), (500, 500_000)] {
        drain("memory", in_memory(), workers, tasks).await?;
    }
    for (workers, tasks) in [(50, 300_000), (500, 300_000)] {
        drain("rdkafka + redis", on_servers()?, workers, tasks).await?;
    }
    println!("\n| backend | tasks/s | pick-up p50, ms | p95 | p99 |");
    println!("|---|---|---|---|---|");
    latency("memory", in_memory(), 200).await?;
    latency("rdkafka + redis", on_servers()?, 200).await
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|(_, m)| m.to_owned()));
    model.unwrap_or_else(|| "unknown processor".to_owned())
}

fn in_memory() -> QueueBuilder {
    Queue::builder(kafkaq_tests::unique("bench")).partitions(6)
}

fn on_servers() -> Outcome<QueueBuilder> {
    let broker = RdKafka::builder(kafkaq_tests::kafka()).build()?;
    let store = RedisStore::builder(kafkaq_tests::redis()).build()?;
    Ok(in_memory().broker(broker).store(store))
}

/// Everything is published first, then the workers begin.
async fn drain(backend: &str, builder: QueueBuilder, workers: usize, tasks: usize) -> Outcome<()> {
    let queue = builder.build().await?;
    let start = Instant::now();
    for _ in 0..tasks / 10_000 {
        let batch = (0..10_000).map(|_| Task::new(vec![b'x'; 100]));
        for outcome in queue.publish_many(batch).await {
            outcome?;
        }
    }
    let published = tasks as f64 / start.elapsed().as_secs_f64();

    let (done, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let start = Instant::now();
    for _ in 0..workers {
        let (queue, done, all) = (queue.clone(), done.clone(), all.clone());
        tokio::spawn(async move {
            while let Ok(job) = queue.get_job().await {
                if job.done().await.is_ok() && done.fetch_add(1, Ordering::Relaxed) + 1 == tasks {
                    all.notify_one();
                }
            }
        });
    }
    all.notified().await;
    let drained = tasks as f64 / start.elapsed().as_secs_f64();
    println!("| {backend} | {workers} | {:.0} | {:.0} |", published / 1000.0, drained / 1000.0);
    queue.shutdown(Duration::from_secs(10)).await?;
    Ok(())
}

/// From just before `publish` to the moment when a worker has the job.
async fn latency(backend: &str, builder: QueueBuilder, rate: u32) -> Outcome<()> {
    const WARM_UP: u32 = 400;
    const COUNTED: u32 = 4_000;
    let queue = builder.build().await?;
    let epoch = Instant::now();
    let (to, mut from) = tokio::sync::mpsc::channel(1024);
    for _ in 0..50 {
        let (queue, to) = (queue.clone(), to.clone());
        tokio::spawn(async move {
            while let Ok(job) = queue.get_job().await {
                let now = epoch.elapsed();
                let sent = job.payload().first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
                if job.done().await.is_err() || to.send(now - Duration::from_nanos(sent)).await.is_err() {
                    return;
                }
            }
        });
    }
    let publisher = queue.publisher();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
        for _ in 0..WARM_UP + COUNTED {
            tick.tick().await;
            let publisher = publisher.clone();
            let mut payload = vec![b'x'; 100];
            payload[..8].copy_from_slice(&(epoch.elapsed().as_nanos() as u64).to_le_bytes());
            tokio::spawn(async move { publisher.publish(Task::new(payload)).await });
        }
    });
    let mut took = Vec::new();
    for i in 0..WARM_UP + COUNTED {
        let one = from.recv().await.ok_or("the workers ended")?;
        if i >= WARM_UP {
            took.push(one);
        }
    }
    took.sort_unstable();
    let at = |percent: usize| took[took.len() * percent / 100].as_secs_f64() * 1000.0;
    println!("| {backend} | {rate} | {:.2} | {:.2} | {:.2} |", at(50), at(95), at(99));
    queue.shutdown(Duration::from_secs(10)).await?;
    Ok(())
}
