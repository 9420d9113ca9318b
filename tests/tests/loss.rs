//! Failures lose no task.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use kafkaq::{
    Job, Queue, Task, TaskId,
    backend::{Swap, Swapped},
};
use kafkaq_tests::{
    Agent, BrokerKind, Built, Line, PATIENCE, Pair, StoreKind, admin, delete_topic, flush_redis, own_server,
    queue, unique, until, until_done,
};
use rdkafka::admin::AdminOptions;
use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;
use xtask::services::Service;

fn ids(count: usize) -> Vec<TaskId> {
    (0..count).map(|i| TaskId::new(format!("t{i}")).unwrap()).collect()
}

async fn publish(queue: &Queue, count: usize) {
    for outcome in queue.publish_many(ids(count).into_iter().map(|id| Task::new("x").with_id(id))).await {
        outcome.unwrap();
    }
}

/// Runs `workers`, for which `keep` decides whether to finish a job; the set has the tasks whose `done` was confirmed.
/// Each job takes one of the `allowed` permits.
fn workers(
    queue: &Queue,
    workers: usize,
    allowed: &Arc<Semaphore>,
    keep: impl Fn(&Job) -> bool + Send + Sync + 'static,
) -> Arc<Mutex<HashSet<TaskId>>> {
    let ended = Arc::new(Mutex::new(HashSet::new()));
    let keep = Arc::new(keep);
    for _ in 0..workers {
        let (queue, ended, keep, allowed) = (queue.clone(), ended.clone(), keep.clone(), allowed.clone());
        tokio::spawn(async move {
            while let Ok(job) = queue.get_job().await {
                allowed.acquire().await.unwrap().forget();
                if !keep(&job) {
                    continue;
                }
                let id = job.id().clone();
                if job.done().await.is_ok() {
                    ended.lock().unwrap().insert(id);
                }
            }
        });
    }
    ended
}

fn any_number() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(Semaphore::MAX_PERMITS))
}

/// The original Go library loses 500 of 5,000 tasks here.
#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_store_and_every_tenth_attempt_abandoned_lose_nothing() {
    let server = own_server(Service::Redis);
    let queue = queue(&unique("flushed"), &server.url()).built().await;
    publish(&queue, 5_000).await;
    let tenth = |job: &Job| job.attempt() > 1 || !job.id().as_str().ends_with('7');
    let ended = workers(&queue, 50, &any_number(), tenth);
    until("half are done", || ended.lock().unwrap().len() >= 2_000).await;
    flush_redis(&server.url());
    until_done(&queue, ids(5_000), &ended).await;
    queue.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_gone_for_ten_seconds_and_back_empty_loses_nothing() {
    let mut server = own_server(Service::Redis);
    let queue = queue(&unique("gone"), &server.url()).built().await;
    publish(&queue, 5_000).await;
    // So that the run is interrupted halfway.
    let allowed = Arc::new(Semaphore::new(2_000));
    let tenth = |job: &Job| job.attempt() > 1 || !job.id().as_str().ends_with('7');
    let ended = workers(&queue, 50, &allowed, tenth);
    until("some are done", || ended.lock().unwrap().len() >= 500).await;
    server.kill().unwrap();
    allowed.add_permits(1_000_000);
    tokio::time::sleep(Duration::from_secs(10)).await;
    server.start_again_empty().unwrap();
    until_done(&queue, ids(5_000), &ended).await;
    queue.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_loses_nothing() {
    let agent = env!("CARGO_BIN_EXE_agent");
    let pair = Pair::new(BrokerKind::RdKafka, StoreKind::Redis, "killed");
    let victim = Agent::work(agent, &pair, 20, Duration::from_millis(5));
    let survivor = pair.queue().built().await;
    publish(&survivor, 3_000).await;
    until("the victim runs", || victim.runs() >= 200).await;
    victim.signal("KILL");
    let ended = workers(&survivor, 20, &any_number(), |_| true);
    until_done(&survivor, ids(3_000), &ended).await;
    survivor.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_resumed_after_its_lease_learns_that_it_is_lost() {
    let agent = env!("CARGO_BIN_EXE_agent");
    let pair = Pair::new(BrokerKind::RdKafka, StoreKind::Redis, "zombie");
    let zombie = Agent::work(agent, &pair, 1, Duration::from_secs(2));
    let publisher = pair.queue().built_publisher().await;
    let stolen = publisher.publish(Task::new("x")).await.unwrap();
    until("the zombie holds it", || zombie.runs() > 0).await;
    zombie.signal("STOP");
    let queue = pair.queue().built().await;
    let again = tokio::time::timeout(PATIENCE, queue.get_job()).await.expect("taken over").unwrap();
    assert_eq!(*again.id(), stolen);
    assert_eq!(again.attempt(), 2);
    again.done().await.unwrap();
    zombie.signal("CONT");
    let lost = |line: &Line| matches!(line, Line::Failed { id, why, .. } if id == stolen.as_str() && why == "LeaseLost(TakenOver)");
    until("the zombie learns it", || zombie.said().iter().any(lost)).await;
    queue.shutdown(PATIENCE).await.unwrap();
}

/// An operator deletes a group's commits while no process runs: all tasks are read again, but none is executed again,
/// because the store remembers them.
async fn done_tasks_are_not_executed_again_without_offsets(broker: BrokerKind) {
    const TASKS: usize = 200;
    let pair = Pair::new(broker, StoreKind::Redis, "forgotten");
    let queue = pair.queue().built().await;
    publish(&queue, TASKS).await;
    let ended = workers(&queue, 20, &any_number(), |_| true);
    until_done(&queue, ids(TASKS), &ended).await;
    until_committed(&pair, TASKS).await;
    queue.shutdown(PATIENCE).await.unwrap();

    forget_offsets(&pair, broker).await;
    assert_eq!(pair.committed(PARTITIONS).await, 0);
    let queue = pair.queue().built().await;
    let last = queue.publish(Task::new("x")).await.unwrap();
    let executed = Arc::new(Mutex::new(Vec::new()));
    let seen = executed.clone();
    let ended = workers(&queue, 20, &any_number(), move |job| {
        seen.lock().unwrap().push(job.id().clone());
        true
    });
    until_done(&queue, [last.clone()], &ended).await;
    // Then nothing is left that could still be executed.
    until_committed(&pair, TASKS + 1).await;
    queue.shutdown(PATIENCE).await.unwrap();
    assert_eq!(*executed.lock().unwrap(), [last]);
}

const PARTITIONS: i32 = 6;

async fn until_committed(pair: &Pair, count: usize) {
    let begun = Instant::now();
    loop {
        match pair.committed(PARTITIONS).await {
            committed if committed == count as i64 => return,
            committed => assert!(begun.elapsed() < PATIENCE, "{committed} of {count} are committed"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Deletes everything that records how far the group has read.
async fn forget_offsets(pair: &Pair, broker: BrokerKind) {
    let (kafka, group, begun) = (pair.kafka(), pair.group(), Instant::now());
    if broker == BrokerKind::RdKafka {
        let admin = admin(&kafka).unwrap();
        // Until the last member has left.
        while let Err(e) = admin.delete_groups(&[&group], &AdminOptions::new()).await.unwrap().remove(0) {
            assert!(begun.elapsed() < PATIENCE, "{e:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        return;
    }
    delete_topic(&kafka, &format!("{group}.cursors")).await.unwrap();
    let (store, keys) = (pair.store(), pair.group_keys(PARTITIONS));
    let held = store.get(&keys).await.into_iter().map(Result::unwrap);
    let forget = |(key, held)| Swap::new(key, held, None, None);
    let swaps: Vec<_> = keys.into_iter().zip(held).map(forget).collect();
    for swapped in store.swap(&swaps).await {
        assert_eq!(swapped.unwrap(), Swapped::Done);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn done_tasks_are_not_executed_again_when_kafka_forgets_the_offsets() {
    done_tasks_are_not_executed_again_without_offsets(BrokerKind::RdKafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn done_tasks_are_not_executed_again_when_the_store_and_the_log_forget_the_offsets() {
    done_tasks_are_not_executed_again_without_offsets(BrokerKind::RsKafka).await;
}
