//! What the worker logs about handlers that make no progress.

use crate::{
    SECOND,
    common::log_lines::{lines, listen},
    leased::Store,
    stop, until,
};
use kafkaq::{
    ErrorKind, Queue,
    memory::MemoryLog,
    worker::{Ctx, Options, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::sleep;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct Crawl(u32);

impl TaskType for Crawl {
    const KIND: &'static str = "crawl";
}

#[derive(Serialize, Deserialize)]
struct Spin(u32);

impl TaskType for Spin {
    const KIND: &'static str = "spin";
}

#[tokio::test(start_paused = true)]
async fn long_running_handler_is_logged_with_growing_intervals() {
    listen();
    let queue = Queue::builder("slow").lease_duration(30 * SECOND).build().await.unwrap();
    let running = Worker::builder(queue.clone())
        .warn_after(10 * SECOND)
        .on(async |_: Ctx, Crawl(seconds): Crawl| sleep(seconds * SECOND).await)
        .on_with(async |_: Ctx, _: Spin| sleep(9 * SECOND).await, Options::new().timeout(MINUTE))
        .start()
        .unwrap();
    queue.enqueue(Spin(1)).await.unwrap();
    let id = queue.enqueue(Crawl(1000)).await.unwrap();
    until("the long one", || running.report().done == 2).await;
    stop(running).await;
    let told = lines(&["a handler has been running for a long time", "queue=\"slow\""]);
    // After 10, 20, 40, 80, 160, 320 and 640 s.
    assert_eq!(told.len(), 7, "{told:?}");
    let parts = ["kind=\"crawl\"", "attempt=1", &format!("task={id}")];
    assert!(told.iter().all(|line| parts.iter().all(|part| line.contains(part))), "{told:?}");
    assert!(told[0].contains("ran=10") && told[1].contains("ran=20"), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_setting_it_is_ten_leases() {
    listen();
    let queue = Queue::builder("default").lease_duration(30 * SECOND).build().await.unwrap();
    let running = Worker::builder(queue.clone());
    let running = running.on(async |_: Ctx, Crawl(s): Crawl| sleep(s * SECOND).await).start().unwrap();
    let fast = queue.enqueue(Crawl(295)).await.unwrap();
    let slow = queue.enqueue(Crawl(305)).await.unwrap();
    until("both", || running.report().done == 2).await;
    stop(running).await;
    assert!(lines(&["running for a long time", &format!("task={fast}")]).is_empty());
    assert_eq!(lines(&["running for a long time", &format!("task={slow}")]).len(), 1);

    let queue = Queue::builder("default").build().await.unwrap();
    let worker = Worker::builder(queue).warn_after(Duration::ZERO).on(async |_: Ctx, _: Crawl| {});
    assert_eq!(worker.start().unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn handlers_that_block_all_threads_are_named() {
    listen();
    let queue = Queue::builder("blocked").build().await.unwrap();
    let released = Arc::new(AtomicBool::new(false));
    let running = Worker::builder(queue.clone())
        .state(released.clone())
        .threads(2)
        .on(async |ctx: Ctx<Arc<AtomicBool>>, _: Spin| {
            while !ctx.state().load(SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
            }
        })
        .on_blocking(
            |ctx: Ctx<Arc<AtomicBool>>, _: Crawl| {
                while !ctx.state().load(SeqCst) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            },
            Options::new(),
        )
        .start()
        .unwrap();
    queue.enqueue(Crawl(1)).await.unwrap();
    queue.enqueue_many((0..2).map(Spin)).await;
    until("the first line", || !lines(&["block all threads", "2 of `spin`"]).is_empty()).await;
    let told = lines(&["block all threads"]);
    assert!(
        told.iter().all(|line| !line.contains("crawl")),
        "it runs on a thread for blocking work: \
        {told:?}"
    );
    released.store(true, SeqCst);
    until("the threads", || !lines(&["are free again"]).is_empty()).await;
    until("the handlers", || running.report().done == 3).await;
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn stalled_partition_is_logged_and_so_is_its_recovery() {
    listen();
    let store = Store::default();
    let builder = Queue::builder("standing")
        .broker(MemoryLog::new())
        .store(store.clone())
        .partitions(1)
        .lease_duration(10 * SECOND);
    let queue = builder.build().await.unwrap();
    let running = Worker::builder(queue.clone()).on(async |_: Ctx, _: Crawl| ()).start().unwrap();
    queue.enqueue(Crawl(0)).await.unwrap();
    until("the first to be done", || running.report().done == 1).await;
    sleep(5 * MINUTE).await;
    assert!(lines(&["standing", "a partition"]).is_empty(), "nothing is left in it");
    store.set_away(true);
    queue.enqueue(Crawl(0)).await.unwrap();
    sleep(MINUTE).await;
    let told = lines(&["standing", "a partition makes no progress"]);
    let [line] = &told[..] else { panic!("{told:?}") };
    assert!(line.contains("partition=0 position=1 lag=1 "), "{line}");
    store.set_away(false);
    until("the other to be done", || running.report().done == 2).await;
    queue.enqueue(Crawl(0)).await.unwrap();
    until("it to be told", || lines(&["standing", "the partition makes progress again"]).len() == 1).await;
    stop(running).await;
}
