//! What must hold on every pair of a broker and a store: one list of cases for all backends.

use crate::{Built, PATIENCE, Pair, until_done};
use kafkaq::{CancelOutcome, Job, JobError, JobStatus, LostReason, Queue, QueueBuilder, Task, TaskId};
use std::{
    collections::HashSet,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

type Running<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A case: its name, and what it does with a pair.
pub type Case = (&'static str, for<'a> fn(&'a Pair) -> Running<'a>);

/// All of them.
pub const CASES: &[Case] = &[
    ("tasks_arrive_as_they_were_published", |p| Box::pin(tasks_arrive_as_they_were_published(p))),
    ("zombie_gets_lease_lost", |p| Box::pin(zombie_gets_lease_lost(p))),
    ("retry_comes_back_after_its_delay", |p| Box::pin(retry_comes_back_after_its_delay(p))),
    ("delayed_task_waits_its_time", |p| Box::pin(delayed_task_waits_its_time(p))),
    ("used_up_attempts_are_dead", |p| Box::pin(used_up_attempts_are_dead(p))),
    ("cancelled_task_is_not_run", |p| Box::pin(cancelled_task_is_not_run(p))),
    ("an_id_is_one_task", |p| Box::pin(an_id_is_one_task(p))),
    ("members_come_and_go_and_nothing_is_lost", |p| Box::pin(members_come_and_go_and_nothing_is_lost(p))),
    ("the_next_process_goes_on", |p| Box::pin(the_next_process_goes_on(p))),
];

async fn build(pair: &Pair) -> Queue {
    pair.queue().built().await
}

/// Returns a queue for cases in which no lease may expire, however busy the machine is.
fn unhurried(pair: &Pair) -> QueueBuilder {
    pair.queue().lease_duration(Duration::from_secs(60))
}

async fn build_unhurried(pair: &Pair) -> Queue {
    unhurried(pair).built().await
}

async fn next(queue: &Queue) -> Job {
    let job = tokio::time::timeout(PATIENCE, queue.get_job()).await;
    job.expect("a job within the test's patience").unwrap_or_else(|e| panic!("{e}"))
}

async fn nothing_more(queue: &Queue, within: Duration) {
    if let Ok(job) = tokio::time::timeout(within, queue.get_job()).await {
        panic!("{job:?} was handed out");
    }
}

async fn end(queue: Queue) {
    queue.shutdown(PATIENCE).await.unwrap_or_else(|e| panic!("{e}"));
}

async fn publish(queue: &Queue, task: Task) -> TaskId {
    queue.publish(task).await.unwrap_or_else(|e| panic!("{e}"))
}

async fn tasks_arrive_as_they_were_published(pair: &Pair) {
    let queue = build_unhurried(pair).await;
    let id = publish(&queue, Task::new("payload").with_key("key").with_header("name", "value")).await;
    let job = next(&queue).await;
    assert_eq!((job.id(), job.attempt()), (&id, 1));
    assert_eq!((&job.payload()[..], job.key().map(|k| &k[..])), (&b"payload"[..], Some(&b"key"[..])));
    assert_eq!(job.headers().get("name").map(|v| &v[..]), Some(&b"value"[..]));
    job.done().await.expect("done");
    let info = queue.jobs().get(&id).await.expect("the store answers");
    assert_eq!((info.status, info.attempts), (JobStatus::Done, 1));
    end(queue).await;
}

async fn zombie_gets_lease_lost(pair: &Pair) {
    let queue = build(pair).await;
    publish(&queue, Task::new("x")).await;
    let zombie = next(&queue).await;
    let again = next(&queue).await;
    assert_eq!((again.id(), again.attempt()), (zombie.id(), 2));
    assert!(matches!(zombie.done().await, Err(JobError::LeaseLost(LostReason::TakenOver))));
    again.done().await.expect("done");
    end(queue).await;
}

async fn retry_comes_back_after_its_delay(pair: &Pair) {
    let queue = build_unhurried(pair).await;
    publish(&queue, Task::new("x")).await;
    next(&queue).await.retry(Duration::ZERO, "not now").await.expect("retried");
    let job = next(&queue).await;
    assert_eq!(job.attempt(), 2);
    let start = Instant::now();
    job.retry(Duration::from_secs(2), "not now").await.expect("retried");
    let job = next(&queue).await;
    assert_eq!(job.attempt(), 3);
    assert!(start.elapsed() >= Duration::from_millis(1900), "{:?}", start.elapsed());
    job.done().await.expect("done");
    end(queue).await;
}

async fn delayed_task_waits_its_time(pair: &Pair) {
    let queue = build_unhurried(pair).await;
    let start = Instant::now();
    publish(&queue, Task::new("x").with_delay(Duration::from_secs(2))).await;
    let job = next(&queue).await;
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    job.done().await.expect("done");
    end(queue).await;
}

async fn used_up_attempts_are_dead(pair: &Pair) {
    let queue = unhurried(pair).max_failures(2).built().await;
    let id = publish(&queue, Task::new("x")).await;
    for attempt in 1..=2 {
        let job = next(&queue).await;
        assert_eq!(job.attempt(), attempt);
        job.retry(Duration::ZERO, "not now").await.expect("retried");
    }
    assert_eq!(queue.jobs().get(&id).await.expect("the store answers").status, JobStatus::Dead);
    nothing_more(&queue, Duration::from_secs(1)).await;
    end(queue).await;
}

async fn cancelled_task_is_not_run(pair: &Pair) {
    let queue = build(pair).await;
    let delayed = publish(&queue, Task::new("x").with_delay(Duration::from_secs(1))).await;
    queue.jobs().cancel(&delayed).await.expect("the store answers");
    publish(&queue, Task::new("y")).await;
    let running = next(&queue).await;
    let cancelled = queue.jobs().cancel(running.id()).await.expect("the store answers");
    assert!(matches!(cancelled, CancelOutcome::Known(_)));
    assert!(matches!(running.done().await, Err(JobError::LeaseLost(LostReason::Cancelled))));
    nothing_more(&queue, Duration::from_secs(4)).await;
    end(queue).await;
}

async fn an_id_is_one_task(pair: &Pair) {
    let queue = build(pair).await;
    let task = || Task::new("x").with_id(TaskId::new("one").expect("an id"));
    publish(&queue, task()).await;
    let job = next(&queue).await;
    publish(&queue, task()).await;
    job.done().await.expect("done");
    publish(&queue, task()).await;
    nothing_more(&queue, Duration::from_secs(4)).await;
    end(queue).await;
}

async fn members_come_and_go_and_nothing_is_lost(pair: &Pair) {
    const TASKS: usize = 2_000;
    let done = Arc::new(Mutex::new(HashSet::new()));
    let first = build(pair).await;
    work(&first, &done);
    let mut ids = Vec::with_capacity(TASKS);
    for i in 0..TASKS {
        ids.push(publish(&first, Task::new(i.to_string())).await);
        if i == TASKS / 2 {
            work(&build(pair).await, &done);
        }
    }
    // A process that ends hands over what it has not done.
    end(first).await;
    let last = build(pair).await;
    work(&last, &done);
    // If the store takes longer than a lease, `done` may take effect although its caller got an error.
    until_done(&last, ids, &done).await;
    end(last).await;
}

/// Some workers, every tenth of which drops every tenth task the first time.
fn work(queue: &Queue, done: &Arc<Mutex<HashSet<TaskId>>>) {
    for _ in 0..8 {
        let (queue, done) = (queue.clone(), done.clone());
        tokio::spawn(async move {
            while let Ok(job) = queue.get_job().await {
                let id = job.id().clone();
                if job.attempt() == 1 && job.payload().ends_with(b"77") {
                    continue;
                }
                if job.done().await.is_ok() {
                    done.lock().expect("lock").insert(id);
                }
            }
        });
    }
}

async fn the_next_process_goes_on(pair: &Pair) {
    // Only tasks that are given back are redelivered in time.
    let first = build_unhurried(pair).await;
    for i in 0..20 {
        publish(&first, Task::new(i.to_string())).await;
    }
    for _ in 0..10 {
        next(&first).await.done().await.expect("done");
    }
    end(first).await;
    let second = build_unhurried(pair).await;
    for _ in 0..10 {
        let job = next(&second).await;
        assert_eq!(job.attempt(), 1, "what was given back has used up no attempt");
        job.done().await.expect("done");
    }
    nothing_more(&second, Duration::from_secs(2)).await;
    end(second).await;
}
