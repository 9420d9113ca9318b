//! Tasks that expire.

use crate::{Greet, SECOND, Seen, common::wall_now, greet, handler, queue, stop, until_status, worker};
use kafkaq::{
    JobStatus,
    worker::{Backoff, Ctx, Failure},
};
use std::time::{Duration, SystemTime};

#[tokio::test(start_paused = true)]
async fn an_expired_task_is_not_started() {
    let queue = queue().await;
    let seen = Seen::default();
    let past = SystemTime::UNIX_EPOCH + SECOND;
    let dropped = queue.enqueue(greet("dropped")).expires(past).await.unwrap();
    let dead = queue.enqueue(greet("dead")).expires_to_dead_letter(past).await.unwrap();
    let later = SystemTime::now() + Duration::from_secs(24 * 3600);
    let started = queue.enqueue(greet("started")).expires(later).await.unwrap();
    let running = worker(&queue).on(handler(&seen)).start().unwrap();
    until_status(&queue, &dropped, JobStatus::Done).await;
    until_status(&queue, &dead, JobStatus::Dead).await;
    until_status(&queue, &started, JobStatus::Done).await;
    assert_eq!(seen.all(), ["started"]);
    let report = stop(running).await;
    assert_eq!((report.done, report.expired, report.dead_lettered), (1, 1, 1), "{report}");
}

/// Once it was handed out it may have been started.
#[tokio::test(start_paused = true)]
async fn a_task_that_expires_after_its_first_attempt_is_executed_again() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .retry(Backoff::fixed(60 * SECOND).jitter(false))
        .on(async |ctx: Ctx<Seen>, task: Greet| -> Result<(), Failure> {
            ctx.state().note(format!("{} {}", task.name, ctx.attempt()));
            if ctx.attempt() < 3 { Err(Failure::retry("not now")) } else { Ok(()) }
        })
        .start()
        .unwrap();
    let soon = wall_now() + 30 * SECOND;
    let ids = [
        queue.enqueue(greet("one")).expires(soon).await.unwrap(),
        queue.enqueue(greet("two")).expires_to_dead_letter(soon).await.unwrap(),
    ];
    for id in &ids {
        until_status(&queue, id, JobStatus::Done).await;
    }
    assert!(wall_now() > soon + 60 * SECOND);
    let mut seen = seen.all();
    seen.sort();
    assert_eq!(seen, ["one 1", "one 2", "one 3", "two 1", "two 2", "two 3"]);
    let report = stop(running).await;
    assert_eq!((report.done, report.retried, report.expired), (2, 4, 0), "{report}");
}
