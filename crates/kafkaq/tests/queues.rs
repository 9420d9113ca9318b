//! Building, publishing, several queues, shutting down.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::{LEASE, ms, next, none_within, patience, quick, soon};
use kafkaq::{
    Effect, ErrorKind, JobError, JobStatus, Queue, QueueStats, Result, Task, TaskId,
    backend::{Broker, HEADER, LeaseStore, Log, NewRecord, Partition, TopicSpec},
    memory::{MemoryLog, MemoryStore},
};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn invalid_settings_are_refused() {
    let build = |change: fn(kafkaq::QueueBuilder) -> kafkaq::QueueBuilder| async move {
        change(quick(&MemoryLog::new(), &MemoryStore::new())).build().await.unwrap_err()
    };
    let e = build(|b| b.park_after(LEASE)).await;
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("park_after"), "{e}");
    let e = build(|b| b.group("a.b")).await;
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("a.b"), "{e}");
    let e = build(|b| b.lease_duration(ms(1))).await;
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("lease_duration 1ms"), "{e}");
    let e = build(|b| b.publish_timeout(Duration::MAX)).await;
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("publish_timeout"), "{e}");
    let e = build(|b| b.prefetch(usize::MAX)).await;
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("prefetch"), "{e}");
    let e = Queue::builder("q").store(MemoryStore::new()).build().await.unwrap_err();
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("no broker"), "{e}");
    let e = Queue::builder("q").build_publisher().await.unwrap_err();
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("no broker"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_group_whose_cursors_have_no_topic_name_is_refused_where_it_needs_one() {
    let builder = || {
        let names =
            Queue::builder("emails").task_topic("t".repeat(230)).wait_topic("wait").dead_topic("dead");
        names.store(MemoryStore::new())
    };
    builder().broker(MemoryLog::new()).build().await.unwrap();
    let e = builder().log(MemoryLog::new()).build().await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
    assert!(e.to_string().contains("kafkaq.cursors") && e.to_string().contains("shorter task_topic"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_wait_topic_that_would_lose_tasks_is_refused() -> Result<()> {
    let log = MemoryLog::new();
    let mut spec = TopicSpec::new("emails.kafkaq.wait");
    spec.partitions = Some(1);
    spec.max_record_bytes = Some(2 << 20);
    log.ensure_topics(&[spec]).await?;
    let e = quick(&log, &MemoryStore::new()).build().await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Misconfigured);
    assert!(e.to_string().contains("emails.kafkaq.wait") && e.to_string().contains("partitions"), "{e}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn publish_refuses_what_cannot_be_executed() -> Result<()> {
    let queue = quick(&MemoryLog::new(), &MemoryStore::new()).max_task_bytes(1000).build().await?;
    let refused = |task| async { queue.publish(task).await.unwrap_err() };
    for (e, kind, says) in [
        (refused(Task::new("x").with_header("kafkaq", "1")).await, ErrorKind::Invalid, "`kafkaq`"),
        (refused(Task::new("x").with_header("kafkaq-id", "1")).await, ErrorKind::Invalid, "kafkaq-id"),
        (refused(Task::new("x").with_delay(61 * SECOND)).await, ErrorKind::Invalid, "max_delay"),
        (refused(Task::new(vec![0; 1001])).await, ErrorKind::TooLarge, "max_task_bytes"),
        (refused(Task::new(vec![0; 500]).with_key(vec![0; 501])).await, ErrorKind::TooLarge, "1000 bytes"),
        (refused(Task::new("").with_header("h", vec![0; 1000])).await, ErrorKind::TooLarge, "1001 bytes"),
    ] {
        assert_eq!((e.kind(), e.effect()), (kind, Effect::NotApplied), "{e}");
        assert!(e.to_string().contains(says), "{says}: {e}");
    }
    queue.publish(Task::new(vec![0; 1000])).await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_fails_says_which_task_and_that_it_can_be_repeated() -> Result<()> {
    let log = Arc::new(MemoryLog::new());
    let publisher = Queue::builder("emails").broker(log.clone()).build_publisher().await?;
    publisher.publish(Task::new("x")).await?;
    log.close().await?;
    let e = publisher.publish(Task::new("x").with_id(TaskId::new("mine")?)).await.unwrap_err();
    assert!(e.to_string().contains("task mine") && e.to_string().contains("emails/"), "{e}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_publisher_feeds_a_queue_in_another_process() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let publisher = quick(&log, &store).build_publisher().await?;
    let id = publisher.publish(Task::new("before anybody reads")).await?;
    let queue = quick(&log, &store).build().await?;
    let job = next(&queue).await;
    assert_eq!(job.id(), &id);
    soon(job.done()).await.unwrap();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_record_of_any_producer_is_a_task() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let queue = quick(&log, &store).build().await?;
    let record = NewRecord::new(None, Some(Bytes::from_static(b"plain")), Default::default());
    log.append(&Partition::new("emails", 1), &[record]).await.remove(0)?;
    let job = next(&queue).await;
    assert_eq!(&job.payload()[..], b"plain");
    assert!(job.id().as_str().starts_with("emails/1/0@"), "{}", job.id());
    assert!(job.headers().get(HEADER).is_none());
    soon(job.done()).await.unwrap();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn tasks_of_a_key_share_a_partition_and_others_are_spread() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let publisher = quick(&log, &store).build_publisher().await?;
    for outcome in publisher.publish_many((0..30).map(|_| Task::new("x").with_key("k"))).await {
        outcome?;
    }
    let filled = |n: i64| {
        let log = log.clone();
        async move {
            let all: Vec<_> = (0..3).map(|p| Partition::new("emails", p)).collect();
            let mut ends: Vec<_> = kafkaq::backend::PartitionLog::offsets(&log, &all)
                .await
                .into_iter()
                .map(|o| o.unwrap().next)
                .collect();
            ends.sort_unstable();
            assert_eq!(ends.iter().sum::<i64>(), n);
            ends
        }
    };
    assert_eq!(filled(30).await, [0, 0, 30]);
    for outcome in publisher.publish_many((0..30).map(|_| Task::new("x"))).await {
        outcome?;
    }
    assert_eq!(filled(60).await, [10, 10, 40]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn two_members_share_the_tasks_and_two_groups_get_each_all() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let members = [quick(&log, &store).build().await?, quick(&log, &store).build().await?];
    let other = quick(&log, &store).group("audit").build().await?;
    for outcome in members[0].publish_many((0..200).map(|n| Task::new(format!("{n}")))).await {
        outcome?;
    }
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    for (who, queue) in members.iter().chain([&other]).enumerate() {
        let (queue, sender) = (queue.clone(), sender.clone());
        tokio::spawn(async move {
            while let Ok(job) = queue.get_job().await {
                let id = job.id().clone();
                if job.done().await.is_ok() {
                    let _ = sender.send((who / 2, id));
                }
            }
        });
    }
    let mut counts: HashMap<(usize, TaskId), usize> = HashMap::new();
    while counts.len() < 400 {
        *counts.entry(soon(receiver.recv()).await.unwrap()).or_default() += 1;
    }
    assert!(counts.values().all(|n| *n == 1), "nothing is done twice");
    for queue in members.iter().chain([&other]) {
        soon(queue.shutdown(5 * SECOND)).await?;
    }
    Ok(())
}

/// Leases are long here, so tasks read by a process that requests no job would be missing.
#[tokio::test(start_paused = true)]
async fn queue_without_job_requests_takes_no_share() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let long = || quick(&log, &store).lease_duration(Duration::from_secs(600)).park_after(SECOND);
    let front_end = long().build().await?;
    let worker = long().build().await?;
    for outcome in front_end.publish_many((0..300).map(|n| Task::new(format!("{n}")))).await {
        outcome?;
    }
    for _ in 0..300 {
        let job = next(&worker).await;
        assert_eq!(front_end.jobs().get(job.id()).await?.status, JobStatus::Processing);
        soon(job.done()).await.unwrap();
    }
    soon(front_end.shutdown(SECOND)).await?;
    assert_eq!(front_end.get_job().await.unwrap_err().kind(), ErrorKind::Closed);
    soon(worker.shutdown(5 * SECOND)).await
}

#[tokio::test(start_paused = true)]
async fn queue_reports_statistics() -> Result<()> {
    // Nothing is parked while the test looks.
    let long =
        quick(&MemoryLog::new(), &MemoryStore::new()).lease_duration(60 * SECOND).park_after(20 * SECOND);
    let queue = long.build().await?;
    let fresh = queue.stats().await;
    assert_eq!((fresh.waiting, fresh.ready, fresh.held, fresh.publishes.calls), (0, 0, 0, 0));
    assert!(fresh.partitions.is_empty(), "it has not joined its group");
    let mut waiting = Box::pin(queue.get_jobs(7));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(queue.stats().await.waiting, 7);
    drop(waiting);
    for outcome in queue.publish_many((0..20).map(|_| Task::new("x"))).await {
        outcome?;
    }
    let publishes = queue.stats().await.publishes;
    assert_eq!((publishes.items, publishes.failed, publishes.under_way), (20, 0, 0));
    assert!((1..=20).contains(&publishes.calls));

    let job = next(&queue).await;
    let again = next(&queue).await;
    let lag = |stats: &QueueStats, topic: &str| -> u64 {
        stats.partitions.iter().filter(|p| &*p.topic == topic).filter_map(|p| p.lag).sum()
    };
    let until = async |what: &dyn Fn(&QueueStats) -> bool| {
        soon(async {
            loop {
                let stats = queue.stats().await;
                if what(&stats) {
                    return stats;
                }
                tokio::time::sleep(ms(1)).await;
            }
        })
        .await
    };
    let stats = until(&|s| (s.held, s.ready, lag(s, "emails")) == (2, 18, 20)).await;
    let tasks = || stats.partitions.iter().filter(|p| &*p.topic == "emails");
    assert_eq!((tasks().count(), tasks().map(|p| p.in_flight).sum::<usize>()), (3, 20));
    assert!(tasks().all(|p| p.oldest.is_some_and(|age| age < 60 * SECOND) && !p.paused), "{stats:?}");

    soon(job.done()).await.unwrap();
    soon(again.retry(30 * SECOND, "not now")).await.unwrap();
    let stats = until(&|s| (s.held, lag(s, "emails"), lag(s, "emails.kafkaq.wait")) == (0, 18, 1)).await;
    assert!(stats.store_swaps.items >= 22 && stats.store_swaps.calls >= 2, "{stats:?}");
    assert!(stats.store_swaps.time > Duration::ZERO);
    assert_eq!((stats.copies.items, stats.copies.failed), (1, 0));
    soon(queue.shutdown(5 * SECOND)).await?;
    assert!(queue.stats().await.partitions.is_empty());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn queues_share_a_broker_and_a_store() -> Result<()> {
    let broker: Arc<dyn Broker> = Arc::new(MemoryLog::new());
    let store: Arc<dyn LeaseStore> = Arc::new(MemoryStore::new());
    let build = |name: &'static str| Queue::builder(name).broker(broker.clone()).store(store.clone()).build();
    let (a, b) = (build("a").await?, build("b").await?);
    let id = TaskId::new("same-id")?;
    for queue in [&a, &b] {
        queue.publish(Task::new(queue.name().to_owned()).with_id(id.clone())).await?;
    }
    for queue in [&a, &b] {
        let job = next(queue).await;
        assert_eq!(&job.payload()[..], queue.name().as_bytes());
        soon(job.done()).await.unwrap();
        soon(queue.shutdown(SECOND)).await?;
    }
    Ok(())
}

/// A copy of one queue's task would be a dead letter to the other.
#[tokio::test(start_paused = true)]
async fn queues_with_similar_names_and_topics_share_no_wait_topic() -> Result<()> {
    let broker: Arc<dyn Broker> = Arc::new(MemoryLog::new());
    let store: Arc<dyn LeaseStore> = Arc::new(MemoryStore::new());
    let build = |name, topic| {
        Queue::builder(name).broker(broker.clone()).store(store.clone()).task_topic(topic).build()
    };
    let (one, other) = (build("emails", "test").await?, build("emails.test", "emails.test").await?);
    assert!(other.try_get_job()?.is_none(), "which makes it join");
    for n in 0..8 {
        one.publish(Task::new(format!("{n}")).with_delay(SECOND)).await?;
    }
    for _ in 0..8 {
        soon(next(&one).await.done()).await.unwrap();
    }
    none_within(&other, SECOND).await;
    soon(one.shutdown(SECOND)).await?;
    soon(other.shutdown(SECOND)).await
}

/// The driver was never polled.
#[test]
fn no_caller_hangs_if_the_runtime_ends_at_once() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let queue = runtime().block_on(Queue::builder("emails").build()).unwrap();
    let limit = Duration::from_secs(60);
    let got = runtime().block_on(async { tokio::time::timeout(limit, queue.get_job()).await });
    assert_eq!(got.expect("it doesn't wait").unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(queue.try_get_job().unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn shutdown_gives_back_jobs_that_were_not_handed_out() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    // With leases this long, only tasks that are given back are redelivered in time.
    let long = || quick(&log, &store).lease_duration(Duration::from_secs(600)).park_after(SECOND);
    let one = long().build().await?;
    for outcome in one.publish_many((0..50).map(|n| Task::new(format!("{n}")))).await {
        outcome?;
    }
    let job = next(&one).await;
    let (waiting, more) = (one.clone(), one.clone());
    let running = tokio::spawn(async move {
        tokio::time::sleep(ms(100)).await;
        job.done().await
    });
    soon(one.shutdown(10 * SECOND)).await?;
    running.await.unwrap().unwrap();
    assert_eq!(waiting.get_job().await.unwrap_err().kind(), ErrorKind::Closed);
    soon(more.shutdown(SECOND)).await?;

    let two = long().build().await?;
    for _ in 0..49 {
        let job = next(&two).await;
        assert_eq!(job.attempt(), 1, "what was given back was not charged");
        soon(job.done()).await.unwrap();
    }
    none_within(&two, ms(100)).await;
    soon(two.shutdown(SECOND)).await
}

/// Like a deploy: the new process must not wait for the longest job of the old one.
#[tokio::test(start_paused = true)]
async fn shutdown_leaves_the_group_before_the_last_job_has_ended() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let long = || quick(&log, &store).lease_duration(Duration::from_secs(600)).park_after(SECOND);
    let one = long().build().await?;
    let held = one.publish(Task::new("held")).await?;
    let job = next(&one).await;
    let began = Instant::now();
    let leaving = tokio::spawn(async move { one.shutdown(120 * SECOND).await });
    let two = long().build().await?;
    for outcome in two.publish_many((0..30).map(|n| Task::new(format!("{n}")))).await {
        outcome?;
    }
    for _ in 0..30 {
        let job = next(&two).await;
        assert_ne!(job.id(), &held, "it is executed elsewhere");
        soon(job.done()).await.unwrap();
    }
    assert!(began.elapsed() < 20 * SECOND, "{:?}", began.elapsed());
    tokio::time::sleep(60 * SECOND).await;
    assert!(!leaving.is_finished());
    soon(job.done()).await.unwrap();
    soon(leaving).await.unwrap()?;
    none_within(&two, 1200 * SECOND).await;
    assert_eq!(two.jobs().get(&held).await?.status, JobStatus::Done);
    soon(two.shutdown(SECOND)).await
}

#[tokio::test(start_paused = true)]
async fn shutdown_wakes_waiting_callers_and_ends_at_its_limit() -> Result<()> {
    let queue = quick(&MemoryLog::new(), &MemoryStore::new()).lease_duration(60 * SECOND).build().await?;
    queue.publish(Task::new("x")).await?;
    let job = next(&queue).await;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.get_job().await }
    });
    tokio::time::sleep(ms(20)).await;
    let started = Instant::now();
    let e = soon(queue.shutdown(ms(200))).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Timeout);
    assert!(e.to_string().contains("1 running job"), "{e}");
    assert!(started.elapsed() < 5 * SECOND);
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    let late = soon(job.done()).await;
    assert!(matches!(&late, Err(JobError::Unconfirmed(e)) if e.kind() == ErrorKind::Closed), "{late:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_queue_whose_last_clone_is_dropped_leaves_the_group() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let one = quick(&log, &store).build().await?;
    one.publish(Task::new("x")).await?;
    soon(next(&one).await.done()).await.unwrap();
    drop(one);
    let two = quick(&log, &store).build().await?;
    for outcome in two.publish_many((0..30).map(|_| Task::new("x"))).await {
        outcome?;
    }
    for _ in 0..30 {
        soon(next(&two).await.done()).await.unwrap();
    }
    Ok(())
}

/// Ten thousand callers give up at random moments: no job is lost in a dropped future, and no wake-up.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn get_job_is_cancel_safe() -> Result<()> {
    const TASKS: usize = 3000;
    let queue = Queue::builder("storm").lease_duration(Duration::from_secs(600)).build().await?;
    let done = Arc::new(AtomicUsize::new(0));
    let publishing = tokio::spawn({
        let queue = queue.clone();
        async move {
            for n in 0..TASKS / 100 {
                for outcome in queue.publish_many((0..100).map(|_| Task::new("x"))).await {
                    outcome.unwrap();
                }
                tokio::time::sleep(Duration::from_micros(n as u64 * 37 % 500)).await;
            }
        }
    });
    let callers: Vec<_> = (0..10_000_u64)
        .map(|n| {
            let (queue, done) = (queue.clone(), done.clone());
            tokio::spawn(async move {
                tokio::select! {
                    job = queue.get_job() => {
                        job.unwrap().done().await.unwrap();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    () = patience(n) => {}
                }
            })
        })
        .collect();
    for caller in callers {
        soon(caller).await.unwrap();
    }
    publishing.await.unwrap();
    // No lease ends in this test: a job that a dropped future had taken would be missing here.
    while done.load(Ordering::Relaxed) < TASKS {
        let job = next(&queue).await;
        assert_eq!(job.attempt(), 1);
        soon(job.done()).await.unwrap();
        done.fetch_add(1, Ordering::Relaxed);
    }
    soon(queue.shutdown(5 * SECOND)).await
}
