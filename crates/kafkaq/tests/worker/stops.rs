//! How executions are told to stop, and what happens to those that don't.

use crate::{
    Greet, LEASE, SECOND, Seen, common::quick, greet, handler, queue, stop, until, until_status, worker,
};
use kafkaq::{
    JobStatus,
    memory::{MemoryLog, MemoryStore},
    worker::{Backoff, Ctx, Failure, Options, StopReason, Worker},
};
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

#[tokio::test(start_paused = true)]
async fn handler_is_told_that_its_time_is_up_and_dropped_if_it_continues() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .grace(2 * SECOND)
        .retry(Backoff::fixed(SECOND).max_failures(1))
        .on_with(
            async |ctx: Ctx<Seen>, task: Greet| -> Result<(), Failure> {
                let begun = Instant::now();
                let reason = ctx.stop().requested().await;
                ctx.state().note(format!("{} {reason:?} {:?}", task.name, begun.elapsed().as_secs()));
                if task.name == "goes on" {
                    sleep(Duration::from_secs(3600)).await;
                    ctx.state().note("never");
                }
                Ok(())
            },
            Options::new().timeout(10 * SECOND),
        )
        .start()
        .unwrap();
    let ends = queue.enqueue(greet("ends")).await.unwrap();
    until_status(&queue, &ends, JobStatus::Done).await;
    let goes_on = queue.enqueue(greet("goes on")).await.unwrap();
    until_status(&queue, &goes_on, JobStatus::Dead).await;
    assert_eq!(seen.all(), ["ends TimedOut 10", "goes on TimedOut 10"]);
    let report = stop(running).await;
    assert_eq!((report.timed_out, report.done, report.dead_lettered), (2, 1, 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn interrupted_task_is_given_back_at_shutdown_without_a_failure() {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let seen = Seen::default();
    let start = async |name: &'static str| {
        let queue = quick(&log, &store).lease_duration(LEASE).build().await.unwrap();
        let running = Worker::builder(queue.clone())
            .state(seen.clone())
            .shutdown_limit(5 * SECOND)
            .on(move |ctx: Ctx<Seen>, task: Greet| async move {
                ctx.state().note(format!("{name}: {} {} {}", task.name, ctx.attempt(), ctx.failures()));
                if name == "second" {
                    return Ok(());
                }
                let reason = ctx.stop().requested().await;
                assert_eq!(reason, StopReason::ShuttingDown);
                match task.name.as_str() {
                    "ends" => Ok(()),
                    "fails" => Err(Failure::retry("interrupted")),
                    _ => std::future::pending().await,
                }
            })
            .start()
            .unwrap();
        (queue, running)
    };
    let (queue, running) = start("first").await;
    let mut ids = Vec::new();
    for name in ["ends", "fails", "ignores it"] {
        ids.push(queue.enqueue(greet(name)).await.unwrap());
    }
    seen.until(3).await;
    let stopped = Instant::now();
    let report = stop(running).await;
    assert!(stopped.elapsed() < 7 * SECOND, "{:?}", stopped.elapsed());
    assert_eq!((report.done, report.released), (1, 2), "{report}");
    assert_eq!(report.timed_out, 0, "{report}");

    let (queue, running) = start("second").await;
    for id in &ids {
        until_status(&queue, id, JobStatus::Done).await;
    }
    let mut seen = seen.all().split_off(3);
    seen.sort();
    assert_eq!(seen, ["second: fails 2 0", "second: ignores it 2 0"]);
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn a_second_stop_waits_for_nobody() {
    let queue = queue().await;
    let seen = Seen::default();
    let mut running = worker(&queue)
        .state(seen.clone())
        .shutdown_limit(Duration::from_secs(3600))
        .on(async |ctx: Ctx<Seen>, task: Greet| {
            ctx.state().note(task.name);
            std::future::pending::<()>().await;
        })
        .start()
        .unwrap();
    queue.enqueue(greet("Ada")).await.unwrap();
    seen.until(1).await;
    let stopped = Instant::now();
    running.stop();
    sleep(SECOND).await;
    running.stop_now();
    let report = running.stopped().await.unwrap();
    assert!(stopped.elapsed() < 5 * SECOND, "{:?}", stopped.elapsed());
    assert_eq!(report.released, 1, "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_task_stops_its_handler() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .on(async |ctx: Ctx<Seen>, _: Greet| {
            ctx.state().note("begun");
            let reason = ctx.stop().requested().await;
            ctx.state().note(format!("{reason:?}"));
        })
        .start()
        .unwrap();
    let id = queue.enqueue(greet("Ada")).await.unwrap();
    seen.until(1).await;
    queue.jobs().cancel(&id).await.unwrap();
    assert_eq!(seen.until(2).await, ["begun", "Cancelled"]);
    let report = stop(running).await;
    assert_eq!((report.lost, report.done), (1, 0), "{report}");
}

#[tokio::test(start_paused = true)]
async fn an_explicit_delay_holds_also_when_the_worker_stops() {
    let queue = queue().await;
    let running = worker(&queue)
        .grace(Duration::ZERO)
        .on(async |ctx: Ctx, task: Greet| -> Result<(), Failure> {
            let _ = ctx.stop().requested().await;
            match task.name.as_str() {
                "later" => Err(Failure::retry_in(60 * SECOND, "too many requests")),
                _ => std::future::pending().await,
            }
        })
        .start()
        .unwrap();
    queue.enqueue(greet("later")).await.unwrap();
    queue.enqueue(greet("goes on")).await.unwrap();
    sleep(5 * SECOND).await;
    let report = stop(running).await;
    assert_eq!((report.retried, report.released), (1, 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn the_worker_ends_with_its_queue() {
    let queue = queue().await;
    let mut running = worker(&queue).on(handler(&Seen::default())).start().unwrap();
    queue.enqueue(greet("Ada")).await.unwrap();
    queue.shutdown(SECOND).await.unwrap();
    let e = running.stopped().await.unwrap_err();
    assert_eq!(e.kind(), kafkaq::ErrorKind::Closed, "{e}");
}

/// Sends when it is dropped.
struct Dropped(mpsc::UnboundedSender<Instant>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(Instant::now());
    }
}

#[tokio::test(start_paused = true)]
async fn without_grace_a_handler_is_dropped_when_its_time_is_up() {
    let queue = queue().await;
    let seen = Seen::default();
    let (dropped, mut drops) = mpsc::unbounded_channel();
    let running = worker(&queue)
        .state(seen.clone())
        .grace(Duration::ZERO)
        .retry(Backoff::fixed(SECOND).max_failures(1))
        .on_with(
            move |ctx: Ctx<Seen>, task: Greet| {
                let dropped = Dropped(dropped.clone());
                async move {
                    let begun = Instant::now();
                    ctx.stop().requested().await;
                    // It is told nevertheless, and may end before its next await.
                    ctx.state().note(format!("{} {:?}", task.name, begun.elapsed().as_secs()));
                    if task.name == "goes on" {
                        sleep(SECOND).await;
                        ctx.state().note("never");
                    }
                    drop(dropped);
                }
            },
            Options::new().timeout(10 * SECOND),
        )
        .start()
        .unwrap();
    let ends = queue.enqueue(greet("ends")).await.unwrap();
    until_status(&queue, &ends, JobStatus::Done).await;
    drops.recv().await.unwrap();
    let begun = Instant::now();
    let goes_on = queue.enqueue(greet("goes on")).await.unwrap();
    let dropped = drops.recv().await.unwrap() - begun;
    assert!((10 * SECOND..11 * SECOND).contains(&dropped), "dropped after {dropped:?}");
    until_status(&queue, &goes_on, JobStatus::Dead).await;
    assert_eq!(seen.all(), ["ends 10", "goes on 10"]);
    let report = stop(running).await;
    assert_eq!((report.timed_out, report.done, report.dead_lettered), (2, 1, 1), "{report}");
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("it goes off");
    }
}

#[tokio::test(start_paused = true)]
async fn handler_that_panics_when_dropped_fails_and_frees_its_slot() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .concurrency(1)
        .grace(Duration::ZERO)
        .retry(Backoff::fixed(60 * SECOND).jitter(false))
        .on_with(
            async |ctx: Ctx<Seen>, task: Greet| {
                if task.name == "bomb" && ctx.attempt() == 1 {
                    let _bomb = Bomb;
                    std::future::pending::<()>().await;
                }
                let reasons = ctx.history().into_iter().map(|failure| failure.reason);
                ctx.state().note(format!("{} {:?}", task.name, reasons.collect::<Vec<_>>()));
            },
            Options::new().timeout(10 * SECOND),
        )
        .start()
        .unwrap();
    let bomb = queue.enqueue(greet("bomb")).await.unwrap();
    until("the failure", || running.report().retried == 1).await;
    let next = queue.enqueue(greet("next")).await.unwrap();
    until_status(&queue, &next, JobStatus::Done).await;
    until_status(&queue, &bomb, JobStatus::Done).await;
    assert_eq!(seen.all(), ["next []", "bomb [\"the handler panicked when it was dropped\"]"]);
    let report = stop(running).await;
    assert_eq!((report.done, report.retried, report.panicked), (2, 1, 1), "{report}");
}
