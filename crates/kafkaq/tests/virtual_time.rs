//! A queue in memory under tokio's paused clock: delays, leases and retries take virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::PATIENCE;
use kafkaq::{JobStatus, Queue, Task, TaskId};
use std::{sync::mpsc, thread, time::Duration};
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);

/// Runs a test on a paused clock, for as long as the patience of these tests in real time.
fn paused(test: impl Future<Output = ()> + Send + 'static) {
    let (done, outcome) = mpsc::channel();
    thread::spawn(move || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap().block_on(test);
        done.send(())
    });
    outcome.recv_timeout(PATIENCE).expect("it takes real time, hangs or has panicked");
}

/// Asserts that `time` has passed since then, and little more.
fn is_after(since: Instant, time: Duration) {
    let elapsed = since.elapsed();
    assert!((time..time + Duration::from_secs(2)).contains(&elapsed), "{elapsed:?}");
}

#[test]
fn a_delay_of_an_hour_takes_no_time() {
    paused(async {
        let queue = Queue::builder("emails").build().await.unwrap();
        let published = Instant::now();
        queue.publish(Task::new("in an hour").with_delay(HOUR)).await.unwrap();
        let job = queue.get_job().await.unwrap();
        is_after(published, HOUR);
        job.done().await.unwrap();
    });
}

#[test]
fn a_lease_ends_and_a_retry_comes_back_in_virtual_time() {
    paused(async {
        let queue = Queue::builder("emails").lease_duration(HOUR).build().await.unwrap();
        queue.publish(Task::new("x")).await.unwrap();
        let taken = Instant::now();
        drop(queue.get_job().await.unwrap());
        let again = queue.get_job().await.unwrap();
        is_after(taken, HOUR);
        let retried = Instant::now();
        again.retry(24 * HOUR, "tomorrow").await.unwrap();
        let job = queue.get_job().await.unwrap();
        is_after(retried, 24 * HOUR);
        assert_eq!(job.attempt(), 3);
        job.done().await.unwrap();
    });
}

#[test]
fn controller_uses_the_same_clock() {
    paused(async {
        let queue = Queue::builder("emails").lease_duration(HOUR).build().await.unwrap();
        let id = TaskId::new("one").unwrap();
        queue.publish(Task::new("x").with_id(id.clone())).await.unwrap();
        let job = queue.get_job().await.unwrap();
        let status = async || queue.jobs().get(&id).await.unwrap().status;
        assert_eq!(status().await, JobStatus::Processing);
        tokio::time::sleep(HOUR / 2).await;
        assert_eq!(status().await, JobStatus::Processing);
        tokio::time::sleep(HOUR).await;
        assert_eq!(status().await, JobStatus::Waiting, "its lease has expired");
        drop(job);
    });
}
