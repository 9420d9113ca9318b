//! Workers over a long time and under many tasks, on the in-memory pair in virtual time.

use crate::{SECOND, common::PATIENCE};
use kafkaq::{
    JobStatus, Queue,
    memory::{MemoryLog, MemoryStore},
    worker::{Backoff, Ctx, Failure, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

#[derive(Serialize, Deserialize)]
struct Failing(u32);

impl TaskType for Failing {
    const KIND: &'static str = "failing";
}

#[derive(Serialize, Deserialize)]
struct Fresh(u32);

impl TaskType for Fresh {
    const KIND: &'static str = "fresh";
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "waited for {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Each deploy interrupts the task, and none counts as a failure.
#[tokio::test(start_paused = true)]
async fn a_long_task_outlives_thirty_deploys() {
    const DEPLOYS: u32 = 30;
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let (begun, mut begins) = mpsc::unbounded_channel();
    let mut id = None;
    for deploy in 1..=DEPLOYS + 1 {
        let queue = Queue::builder("deploys").broker(log.clone()).store(store.clone()).build().await.unwrap();
        if id.is_none() {
            id = Some(queue.enqueue(Fresh(0)).await.unwrap());
        }
        let tell = begun.clone();
        let handler = move |ctx: Ctx, _: Fresh| {
            let _ = tell.send((ctx.attempt(), ctx.failures()));
            async move { sleep(if ctx.attempt() > DEPLOYS { SECOND } else { 3600 * SECOND }).await }
        };
        let worker = Worker::builder(queue.clone()).shutdown_limit(5 * SECOND).on(handler);
        let mut running = worker.start().unwrap();
        assert_eq!(begins.recv().await, Some((deploy, 0)), "attempt and failures");
        if deploy > DEPLOYS {
            let id = id.clone().unwrap();
            let is_done = async || queue.jobs().get(&id).await.unwrap().status == JobStatus::Done;
            until("the task to be done", is_done).await;
        }
        running.stop();
        let report = running.stopped().await.unwrap();
        assert_eq!(
            (report.released, report.done),
            if deploy > DEPLOYS { (0, 1) } else { (1, 0) },
            "{report}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn new_tasks_start_within_a_second_despite_ten_thousand_failing_ones() {
    const CROWD: u32 = 10_000;
    const FRESH: u32 = 100;
    let queue = Queue::builder("crowd").build().await.unwrap();
    let failed = Arc::new(AtomicUsize::new(0));
    let begun = Arc::new(Mutex::new(Vec::new()));
    let (failing, fresh) = (failed.clone(), begun.clone());
    let mut running = Worker::builder(queue.clone())
        .concurrency(64)
        .retry(Backoff::fixed(5 * SECOND).max_failures(10))
        .on(move |_: Ctx, _: Failing| {
            failing.fetch_add(1, SeqCst);
            async { Err::<(), _>(Failure::retry("as ever")) }
        })
        .on(move |_: Ctx, task: Fresh| {
            fresh.lock().unwrap().push((task.0, Instant::now()));
            async {}
        })
        .start()
        .unwrap();
    for outcome in queue.enqueue_many((0..CROWD).map(Failing)).await {
        outcome.unwrap();
    }
    until("each to have failed", async || failed.load(SeqCst) >= CROWD as usize).await;
    let mut published = Vec::new();
    for n in 0..FRESH {
        published.push(Instant::now());
        queue.enqueue(Fresh(n)).await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    until("the fresh ones to be begun", async || begun.lock().unwrap().len() == FRESH as usize).await;
    let late = begun.lock().unwrap().iter().map(|(n, at)| at.duration_since(published[*n as usize])).max();
    assert!(late.unwrap() < SECOND, "begun {late:?} later");
    assert!(failed.load(SeqCst) > 2 * CROWD as usize, "the crowd went on failing meanwhile");
    running.stop();
    running.stopped().await.unwrap();
}
