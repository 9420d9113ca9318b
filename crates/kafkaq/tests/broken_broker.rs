//! What users see when a broker fails: an error that says so, and no caller that waits forever.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use async_trait::async_trait;
use common::{
    forward,
    log_lines::{lines, listen},
    ms, next, quick, soon,
};
use futures_util::StreamExt;
use kafkaq::{
    Effect, Error, ErrorKind, JobError, Queue, Result, Task,
    backend::{Assignment, Broker, Commit, Consumer, Event, JoinRequest, Member, NewRecord, Partition},
    memory::{MemoryLog, MemoryStore},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, Semaphore};

/// A log whose events end, fail or panic when it is told to, and whose appends can panic.
#[derive(Clone, Debug, Default)]
struct Breaking {
    log: MemoryLog,
    now: Arc<Notify>,
    how: How,
    appends_to_panic: Arc<AtomicUsize>,
    joins: Arc<AtomicUsize>,
    joins_to_fail: Arc<AtomicUsize>,
    join_error: Option<Error>,
    /// If set, joining waits for it.
    gate: Option<Arc<Semaphore>>,
    /// Leaving never ends.
    stays: bool,
}

/// A member whose `leave` never returns.
struct Staying(Arc<dyn Member>);

#[async_trait]
impl Member for Staying {
    async fn commit(&self, offsets: &[Commit]) -> Vec<Result<()>> {
        self.0.commit(offsets).await
    }
    fn pause(&self, assignments: &[Assignment]) {
        self.0.pause(assignments);
    }
    fn resume(&self, assignments: &[Assignment]) {
        self.0.resume(assignments);
    }
    fn release(&self, assignments: &[Assignment]) {
        self.0.release(assignments);
    }
    fn reassign(&self, assignments: &[Assignment]) {
        self.0.reassign(assignments);
    }
    async fn leave(&self) -> Result<()> {
        std::future::pending().await
    }
}

#[derive(Clone, Copy, Debug, Default)]
enum How {
    #[default]
    Ends,
    Fails,
    Panics,
}

forward!(impl Log for Breaking by log {
    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        let left =
            self.appends_to_panic.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        assert!(left.is_err(), "the adapter has a bug");
        self.log.append(to, records).await
    }
});

#[async_trait]
impl Broker for Breaking {
    async fn join(&self, request: JoinRequest) -> Result<Consumer> {
        self.joins.fetch_add(1, Ordering::Relaxed);
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        if self.joins_to_fail.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
        {
            return Err(self.join_error.clone().unwrap());
        }
        let inner = self.log.join(request).await?;
        let (now, how) = (self.now.clone(), self.how);
        let end = futures_util::stream::once(async move {
            now.notified().await;
            match how {
                How::Ends => None,
                How::Fails => Some(Err(Error::not_applied(ErrorKind::Denied, "fetch"))),
                How::Panics => panic!("the stream has a bug"),
            }
        });
        let good = inner.events.map(Some);
        let events = futures_util::stream::select(good, end).take_while(|e| std::future::ready(e.is_some()));
        let events: std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Event>> + Send>> =
            Box::pin(events.filter_map(std::future::ready));
        let member = if self.stays { Arc::new(Staying(inner.member)) } else { inner.member };
        Ok(Consumer { events, member })
    }
}

async fn queue(how: How) -> (Queue, Breaking) {
    queue_over(Breaking { how, ..Breaking::default() }).await
}

async fn queue_over(broker: Breaking) -> (Queue, Breaking) {
    let queue = quick(&broker.log, &MemoryStore::new()).broker(broker.clone()).build().await.unwrap();
    (queue, broker)
}

#[tokio::test(start_paused = true)]
async fn a_fatal_error_reaches_everyone_who_asks_and_running_jobs_can_end() {
    let (queue, broker) = queue(How::Fails).await;
    queue.publish(Task::new("x")).await.unwrap();
    let job = next(&queue).await;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.get_job().await }
    });
    tokio::time::sleep(ms(20)).await;
    broker.now.notify_one();
    for e in [soon(waiting).await.unwrap().unwrap_err(), soon(queue.get_job()).await.unwrap_err()] {
        assert!(e.kind() == ErrorKind::Denied && e.op() == "fetch", "{e}");
    }
    soon(job.done()).await.unwrap();
    assert_eq!(soon(queue.shutdown(ms(500))).await.unwrap_err().kind(), ErrorKind::Denied);
}

#[tokio::test(start_paused = true)]
async fn end_of_the_event_stream_is_an_error() {
    let (queue, broker) = queue(How::Ends).await;
    broker.now.notify_one();
    let e = soon(queue.get_job()).await.unwrap_err();
    assert!(e.to_string().contains("event stream"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn no_caller_hangs_when_the_driver_panics() {
    let (queue, broker) = queue(How::Panics).await;
    queue.publish(Task::new("x")).await.unwrap();
    let job = next(&queue).await;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.get_job().await }
    });
    tokio::time::sleep(ms(20)).await;
    broker.now.notify_one();
    assert_eq!(soon(waiting).await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert!(matches!(soon(job.done()).await, Err(JobError::Unconfirmed(_))));
    assert!(soon(queue.shutdown(ms(500))).await.is_err());
}

/// In real time: another thread retries.
#[tokio::test]
async fn publish_whose_append_panics_is_retried() {
    let (queue, broker) = queue(How::Ends).await;
    broker.appends_to_panic.store(2, Ordering::Relaxed);
    let id = soon(queue.publish(Task::new("x"))).await.unwrap();
    assert_eq!(next(&queue).await.id(), &id);
}

/// With only its id, a task with a window would not cover changes made since then.
#[tokio::test]
async fn publish_of_unknown_effect_says_how_to_publish_again() {
    let broker = Breaking::default();
    let builder = quick(&MemoryLog::new(), &MemoryStore::new()).broker(broker.clone());
    let queue = builder.publish_timeout(ms(200)).build().await.unwrap();
    broker.appends_to_panic.store(usize::MAX, Ordering::Relaxed);
    let window = Task::new("x").with_once_per("k", Duration::from_secs(10));
    let plain = Task::new("x");
    for (task, says, never) in [(plain, "again with id", "as it is"), (window, "as it is", "with id")] {
        let e = soon(queue.publish(task)).await.unwrap_err();
        assert_eq!(e.effect(), Effect::Unknown);
        assert!(e.to_string().contains(says) && !e.to_string().contains(never), "{e}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_cannot_be_joined_yet_is_joined_later() {
    let unavailable = Error::not_applied(ErrorKind::Unavailable, "join");
    let broker =
        Breaking { joins_to_fail: Arc::new(2.into()), join_error: Some(unavailable), ..Breaking::default() };
    let (queue, broker) = queue_over(broker).await;
    assert_eq!(broker.joins.load(Ordering::Relaxed), 0, "no job was requested");
    let id = queue.publish(Task::new("x")).await.unwrap();
    assert_eq!(next(&queue).await.id(), &id);
    assert_eq!(broker.joins.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn permanent_join_error_is_reported_to_every_caller() {
    let denied = Error::not_applied(ErrorKind::Denied, "join");
    let broker =
        Breaking { joins_to_fail: Arc::new(9.into()), join_error: Some(denied), ..Breaking::default() };
    let (queue, broker) = queue_over(broker).await;
    for _ in 0..2 {
        assert_eq!(soon(queue.get_job()).await.unwrap_err().kind(), ErrorKind::Denied);
    }
    assert_eq!(soon(queue.shutdown(ms(500))).await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(broker.joins.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn group_is_joined_once_even_if_callers_give_up_meanwhile() {
    let gate = Arc::new(Semaphore::new(0));
    let (queue, broker) = queue_over(Breaking { gate: Some(gate.clone()), ..Breaking::default() }).await;
    let id = queue.publish(Task::new("x")).await.unwrap();
    for _ in 0..3 {
        assert!(futures_util::poll!(Box::pin(queue.get_job())).is_pending());
        assert!(queue.try_get_job().unwrap().is_none());
        tokio::task::yield_now().await;
    }
    gate.add_permits(9);
    assert_eq!(next(&queue).await.id(), &id);
    assert_eq!(broker.joins.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_a_group_that_cannot_be_joined() {
    let gate = Arc::new(Semaphore::new(0));
    let (queue, broker) = queue_over(Breaking { gate: Some(gate), ..Breaking::default() }).await;
    let mut waiting = Box::pin(queue.get_job());
    assert!(futures_util::poll!(&mut waiting).is_pending());
    while broker.joins.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    soon(queue.shutdown(Duration::MAX)).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn done_returns_while_the_queue_is_still_leaving_its_group() {
    let (queue, _broker) = queue_over(Breaking { stays: true, ..Breaking::default() }).await;
    queue.publish(Task::new("x")).await.unwrap();
    let job = next(&queue).await;
    let ending = tokio::spawn(async move { queue.shutdown(ms(500)).await });
    // The limit has passed, and the group isn't left.
    tokio::time::sleep(ms(1000)).await;
    assert!(!ending.is_finished());
    let e = soon(job.done()).await.unwrap_err();
    assert!(matches!(&e, JobError::Unconfirmed(e) if e.kind() == ErrorKind::Closed), "{e}");
}

#[tokio::test]
async fn records_that_are_gone_are_logged_as_an_error() {
    listen();
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let tasks = || (0..6).map(|_| Task::new("a"));
    let queue = quick(&log, &store).build().await.unwrap();
    queue.publisher().publish_many(tasks()).await.into_iter().for_each(|id| drop(id.unwrap()));
    for _ in 0..6 {
        next(&queue).await.done().await.unwrap();
    }
    queue.shutdown(ms(1_000)).await.unwrap();
    let publisher = quick(&log, &store).build_publisher().await.unwrap();
    publisher.publish_many(tasks()).await.into_iter().for_each(|id| drop(id.unwrap()));
    // Each partition has two that were done, and two new ones.
    log.delete_records(&Partition::new("emails", 0), 3).unwrap();
    let queue = quick(&log, &store).build().await.unwrap();
    for _ in 0..5 {
        next(&queue).await.done().await.unwrap();
    }
    let told =
        lines(&["level=ERROR", "the log has lost records", "emails/0", "1 records were deleted unread"]);
    assert_eq!(told.len(), 1, "{told:?}");
}
