//! Handlers of several tasks at once.

use crate::{Count, LEASE, SECOND, Seen, queue, stop, until, until_status, worker};
use kafkaq::{
    JobStatus,
    worker::{Backoff, Ctx, Options, Outcome},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn a_batch_is_full_or_waits_for_its_time_and_each_task_has_its_outcome() {
    let queue = queue().await;
    let batches = Arc::new(Mutex::new(Vec::new()));
    let told = batches.clone();
    let running = worker(&queue)
        .retry(Backoff::fixed(SECOND))
        .on_batch(
            4,
            5 * SECOND,
            move |tasks: Vec<(Ctx, Count)>| {
                told.lock().unwrap().push((tasks.len(), Instant::now()));
                assert!(!tasks.iter().any(|(ctx, count)| count.0 == 99 && ctx.attempt() == 1), "99");
                async move {
                    let reject =
                        |n: u32| if n == 7 { Outcome::Reject("seven".into()) } else { Outcome::Done };
                    tasks.iter().map(|(_, count)| reject(count.0)).collect()
                }
            },
            Options::new(),
        )
        .start()
        .unwrap();
    let begun = Instant::now();
    let ids: Vec<_> = queue.enqueue_many((0..10).map(Count)).await.into_iter().map(Result::unwrap).collect();
    for (n, id) in ids.iter().enumerate() {
        until_status(&queue, id, if n == 7 { JobStatus::Dead } else { JobStatus::Done }).await;
    }
    let sizes: Vec<_> = batches.lock().unwrap().iter().map(|(n, _)| *n).collect();
    assert_eq!(sizes, [4, 4, 2]);
    assert!(batches.lock().unwrap()[2].1 - begun >= 5 * SECOND);
    let panics = queue.enqueue(Count(99)).await.unwrap();
    until_status(&queue, &panics, JobStatus::Done).await;
    let report = stop(running).await;
    assert_eq!((report.done, report.panicked, report.dead_lettered), (10, 1, 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn batch_skips_abandoned_tasks_and_is_dropped_with_its_last_execution() {
    let queue = queue().await;
    let seen = Seen::default();
    let told = seen.clone();
    let running = worker(&queue)
        .grace(Duration::ZERO)
        .retry(Backoff::fixed(3600 * SECOND).jitter(false))
        .on_batch(
            100,
            // The cancellation is noticed when the lease is renewed, before the batch starts.
            LEASE / 2,
            move |tasks: Vec<(Ctx, Count)>| {
                let told = told.clone();
                async move {
                    for (ctx, count) in &tasks {
                        told.note(format!("{} {}", count.0, ctx.attempt()));
                    }
                    if tasks.iter().any(|(_, count)| count.0 == 2) {
                        sleep(3600 * SECOND).await;
                        told.note("never");
                    }
                    // Too few.
                    let n = tasks.iter().filter(|(_, count)| count.0 != 3).count();
                    vec![Outcome::Done; n]
                }
            },
            Options::new().timeout(2 * LEASE),
        )
        .start()
        .unwrap();
    let cancelled = queue.enqueue(Count(1)).await.unwrap();
    let hangs = queue.enqueue(Count(2)).await.unwrap();
    sleep(SECOND).await;
    queue.jobs().cancel(&cancelled).await.unwrap();
    until("the failure", || running.report().retried == 1).await;
    assert_eq!(seen.all(), ["2 1"]);
    assert_eq!(running.report().timed_out, 1);
    let (done, missing) = (queue.enqueue(Count(4)).await.unwrap(), queue.enqueue(Count(3)).await.unwrap());
    until("both to be retried", || running.report().retried == 3).await;
    assert_eq!(seen.all().len(), 3);
    for id in [&done, &missing, &hangs] {
        let info = queue.jobs().get(id).await.unwrap();
        assert_ne!(info.status, JobStatus::Done, "{info:?}");
    }
    assert!(!seen.all().contains(&"never".to_owned()));
    stop(running).await;
}

/// A task that waits for others has not started, so its time limit doesn't count yet.
#[tokio::test(start_paused = true)]
async fn a_timeout_counts_from_when_the_batch_is_complete() {
    let queue = queue().await;
    let running = worker(&queue)
        .grace(Duration::ZERO)
        .retry(Backoff::fixed(SECOND).max_failures(1))
        .on_batch(
            100,
            5 * SECOND,
            async |tasks: Vec<(Ctx, Count)>| {
                if tasks.iter().any(|(_, count)| count.0 == 99) {
                    sleep(3600 * SECOND).await;
                }
                vec![Outcome::Done; tasks.len()]
            },
            Options::new().timeout(2 * SECOND),
        )
        .start()
        .unwrap();
    for n in 0..3 {
        queue.enqueue(Count(n)).await.unwrap();
        sleep(SECOND).await;
    }
    until("the batch", || running.report().done + running.report().dead_lettered == 3).await;
    assert_eq!((running.report().done, running.report().timed_out), (3, 0));
    let begun = Instant::now();
    let hangs = queue.enqueue(Count(99)).await.unwrap();
    until("its end", || running.report().done + running.report().dead_lettered == 4).await;
    assert_eq!(queue.jobs().get(&hangs).await.unwrap().status, JobStatus::Dead);
    assert!((7 * SECOND..9 * SECOND).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(stop(running).await.timed_out, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_a_batch_to_be_full() {
    let queue = queue().await;
    let seen = Seen::default();
    let told = seen.clone();
    let running = worker(&queue)
        .on_batch(
            100,
            3600 * SECOND,
            move |tasks: Vec<(Ctx, Count)>| {
                told.note(format!("{} tasks", tasks.len()));
                async move { vec![Outcome::Done; tasks.len()] }
            },
            Options::new(),
        )
        .start()
        .unwrap();
    for n in 0..3 {
        queue.enqueue(Count(n)).await.unwrap();
    }
    sleep(10 * SECOND).await;
    let stopped = Instant::now();
    assert_eq!(stop(running).await.done, 3);
    assert!(stopped.elapsed() < 5 * SECOND, "{:?}", stopped.elapsed());
    assert_eq!(seen.all(), ["3 tasks"]);
}
