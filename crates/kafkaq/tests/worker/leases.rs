//! Leases of handlers that take long, or never end.

use crate::{Count, Greet, LEASE, SECOND, Seen, greet, queue, stop, until_status, worker};
use kafkaq::{
    JobStatus, Queue,
    worker::{Backoff, Ctx, Options, WorkerHandle},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_three_leases_runs_once() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .on(async |ctx: Ctx<Seen>, task: Greet| {
            let first = ctx.deadline();
            sleep(3 * LEASE).await;
            assert!(ctx.deadline() >= first + 2 * LEASE, "it was renewed");
            ctx.state().note(task.name);
        })
        .start()
        .unwrap();
    let id = queue.enqueue(greet("Ada")).await.unwrap();
    until_status(&queue, &id, JobStatus::Done).await;
    let report = stop(running).await;
    assert_eq!((report.done, seen.all().len()), (1, 1), "{report}");
}

/// In real time, since the threads are real.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn handlers_that_block_all_their_threads_keep_their_leases() {
    let lease = Duration::from_secs(2);
    let queue = Queue::builder("greetings").lease_duration(lease).build().await.unwrap();
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .threads(2)
        .on(move |ctx: Ctx<Seen>, task: Greet| async move {
            ctx.state().note(task.name);
            std::thread::sleep(3 * lease);
        })
        .on_blocking(
            move |ctx: Ctx<Seen>, task: Count| {
                ctx.state().note(format!("blocking {}", task.0));
                std::thread::sleep(3 * lease);
            },
            Options::new(),
        )
        .start()
        .unwrap();
    let mut ids = Vec::new();
    for n in 0..2 {
        ids.push(queue.enqueue(greet(&n.to_string())).await.unwrap());
        ids.push(queue.enqueue(Count(n)).await.unwrap());
    }
    for id in &ids {
        until_status(&queue, id, JobStatus::Done).await;
    }
    let report = stop(running).await;
    let mut seen = seen.all();
    seen.sort();
    assert_eq!(seen, ["0", "1", "blocking 0", "blocking 1"]);
    assert_eq!((report.done, report.lost), (4, 0), "{report}");
}

/// The time limit and the attempts of a task that gets stuck.
fn brief() -> Options {
    Options::new().timeout(SECOND).retry(Backoff::fixed(Duration::ZERO).max_failures(1))
}

/// A worker with one slot, whose handler of [`Greet`] blocks until it is released.
async fn keeps_its_slot(
    queue: &Queue,
    running: WorkerHandle,
    seen: &Seen,
    release: &std::sync::mpsc::Sender<()>,
) {
    let stuck = queue.enqueue(greet("stuck")).await.unwrap();
    until_status(queue, &stuck, JobStatus::Dead).await;
    let next = queue.enqueue(Count(1)).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(seen.all(), ["stuck"], "its slot is taken");
    release.send(()).unwrap();
    until_status(queue, &next, JobStatus::Done).await;
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn unstoppable_handler_loses_its_lease_and_keeps_its_slot() {
    let queue = queue().await;
    let seen = Seen::default();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let running = worker(&queue)
        .state(seen.clone())
        .threads(2)
        .concurrency(1)
        .grace(Duration::from_millis(100))
        .on_with(
            move |ctx: Ctx<Seen>, task: Greet| {
                let blocked = blocked.clone();
                async move {
                    ctx.state().note(task.name);
                    let _ = blocked.lock().unwrap().recv();
                }
            },
            brief(),
        )
        .on(async |ctx: Ctx<Seen>, _: Count| ctx.state().note("next"))
        .start()
        .unwrap();
    keeps_its_slot(&queue, running, &seen, &release).await;
}

/// It can't be dropped, so its slot stays taken, and it isn't executed twice at once here.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn blocking_handler_that_does_not_stop_keeps_its_slot() {
    let queue = queue().await;
    let seen = Seen::default();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Mutex::new(blocked);
    let running = worker(&queue)
        .state(seen.clone())
        .concurrency(1)
        .grace(Duration::ZERO)
        .on_blocking(
            move |ctx: Ctx<Seen>, task: Greet| {
                ctx.state().note(task.name);
                let _ = blocked.lock().unwrap().recv();
            },
            brief(),
        )
        .on(async |ctx: Ctx<Seen>, _: Count| ctx.state().note("next"))
        .start()
        .unwrap();
    keeps_its_slot(&queue, running, &seen, &release).await;
}
