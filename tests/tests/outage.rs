//! A server that stands still for ten seconds in mid-run: nothing is lost, and nobody has to restart anything.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "these are tests")]

use kafkaq::{Queue, Task, TaskId, rdkafka::RdKafka, redis::RedisStore};
use kafkaq_tests::{own_server, unique, until, until_done};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use xtask::services::{Server, Service};

const OUTAGE: Duration = Duration::from_secs(10);
const TASKS: usize = 5_000;

#[tokio::test(flavor = "multi_thread")]
async fn kafka_stands_still() {
    let (kafka, redis) = (own_server(Service::Kafka), own_server(Service::Redis));
    stands_still(&kafka, &redis, &kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_stands_still() {
    let (kafka, redis) = (own_server(Service::Kafka), own_server(Service::Redis));
    stands_still(&kafka, &redis, &redis).await;
}

async fn stands_still(kafka: &Server, redis: &Server, victim: &Server) {
    let broker = RdKafka::builder(kafka.url()).build().unwrap();
    let store = RedisStore::builder(redis.url()).build().unwrap();
    let queue = Queue::builder(unique("outage"))
        .broker(broker)
        .store(store)
        .lease_duration(Duration::from_secs(5))
        .park_after(Duration::from_secs(1))
        .build()
        .await
        .unwrap();
    let done = Arc::new(Mutex::new(HashSet::new()));
    for _ in 0..20 {
        let (queue, done) = (queue.clone(), done.clone());
        tokio::spawn(async move {
            while let Ok(job) = queue.get_job().await {
                let id = job.id().clone();
                tokio::time::sleep(Duration::from_millis(2)).await;
                if job.done().await.is_ok() {
                    done.lock().unwrap().insert(id);
                }
            }
        });
    }
    let count = || done.lock().unwrap().len();
    // Published all the time, also while the server stands still.
    let publisher = queue.publisher();
    let publishing = tokio::spawn(async move {
        for i in 0..TASKS {
            let task = Task::new("x").with_id(TaskId::new(format!("t{i}")).unwrap());
            publisher.publish(task).await.unwrap();
        }
    });
    until("some are done", || count() > 200).await;
    victim.pause().unwrap();
    tokio::time::sleep(OUTAGE).await;
    let before = count();
    assert!(before < TASKS, "it stood still in mid-run");
    victim.resume().unwrap();
    let start = Instant::now();
    until("work goes on", || count() > before + 20).await;
    println!("work went on {:?} after the server did", start.elapsed());
    publishing.await.unwrap();
    let ids = (0..TASKS).map(|i| TaskId::new(format!("t{i}")).unwrap());
    until_done(&queue, ids, &done).await;
    queue.shutdown(Duration::from_secs(5)).await.unwrap();
}
