//! Which jobs are written to the store.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{LEASE, ms, next, quick, soon};
use kafkaq::{
    JobStatus, Queue, Task, TaskId, Tracking,
    memory::{MemoryLog, MemoryStore},
};

/// In each partition this many records have a lease from the start in any case.
const FIRST: usize = 8192;

/// Returns a queue of one partition, and the last of this many tasks, all done.
async fn after(tasks: usize) -> (Queue, TaskId) {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let builder = quick(&log, &store).partitions(1).tracking(Tracking::Slow).track_after(LEASE / 4);
    let queue = builder.build().await.unwrap();
    let published = queue.publish_many((0..tasks).map(|_| Task::new("quick")).collect::<Vec<_>>()).await;
    let last = published.last().unwrap().as_ref().unwrap().clone();
    for _ in 0..tasks {
        soon(next(&queue).await.done()).await.unwrap();
    }
    // What is done is committed within a few looks.
    tokio::time::sleep(ms(1000)).await;
    (queue, last)
}

#[tokio::test(start_paused = true)]
async fn every_job_that_an_earlier_owner_may_have_started_is_written_to_the_store() {
    let (queue, last) = after(FIRST).await;
    assert_eq!(queue.jobs().get(&last).await.unwrap().status, JobStatus::Done);
}

#[tokio::test(start_paused = true)]
async fn only_long_jobs_are_written_to_the_store() {
    let (queue, last) = after(FIRST + 100).await;
    assert_eq!(queue.jobs().get(&last).await.unwrap().status, JobStatus::Unknown);

    let slow = queue.publish(Task::new("slow")).await.unwrap();
    let job = next(&queue).await;
    assert_eq!(queue.jobs().get(&slow).await.unwrap().status, JobStatus::Unknown);
    tokio::time::sleep(LEASE / 2).await;
    assert_eq!(queue.jobs().get(&slow).await.unwrap().status, JobStatus::Processing);
    soon(job.done()).await.unwrap();
    assert_eq!(queue.jobs().get(&slow).await.unwrap().status, JobStatus::Done);
}

#[tokio::test(start_paused = true)]
async fn quick_task_that_fails_is_retried() {
    let (queue, _) = after(FIRST + 100).await;
    let id = queue.publish(Task::new("again")).await.unwrap();
    soon(next(&queue).await.retry(ms(10), "not yet")).await.unwrap();
    let again = next(&queue).await;
    assert_eq!((again.id(), again.attempt(), again.failures()), (&id, 2, 1));
    soon(again.done()).await.unwrap();
}

/// Otherwise a crash during its execution would make it expire although it was started.
#[tokio::test(start_paused = true)]
async fn task_that_can_expire_has_a_lease_from_its_first_attempt() {
    let (queue, _) = after(FIRST + 100).await;
    let id = queue.publish(Task::new("x").with_header("task-expires-ms", "9999999999999")).await.unwrap();
    let job = next(&queue).await;
    assert_eq!(queue.jobs().get(&id).await.unwrap().status, JobStatus::Processing);
    soon(job.done()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn cancelled_task_is_not_executed() {
    let (queue, _) = after(FIRST + 100).await;
    let delayed = Task::new("never").with_id(TaskId::new("chosen").unwrap());
    queue.jobs().cancel(delayed.id().unwrap()).await.unwrap();
    queue.publish(delayed).await.unwrap();
    let id = queue.publish(Task::new("next")).await.unwrap();
    assert_eq!(next(&queue).await.id(), &id);
}
