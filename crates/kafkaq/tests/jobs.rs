//! From `publish` to the end of a job, on the in-memory pair.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{LEASE, ms, next, none_within, patience, quick, records, soon, wall_now};
use kafkaq::{
    CancelOutcome, ErrorKind, Headers, Job, JobError, JobStatus, LostReason, Queue, Result, RetryOutcome,
    Task, TaskId,
    backend::{LeaseStore, Log},
    memory::{MemoryLog, MemoryStore},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

type TopicName = Arc<str>;

async fn queue() -> (Queue, MemoryLog) {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    (quick(&log, &store).build().await.unwrap(), log)
}

fn id(text: impl AsRef<str>) -> TaskId {
    TaskId::new(text.as_ref()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_task_arrives_as_it_was_published_and_is_done_once() -> Result<()> {
    let (queue, _) = queue().await;
    let task = Task::new("hello").with_key("customer-17").with_header("trace", "abc").with_id(id("one"));
    let published = queue.publish(task.clone()).await?;
    assert_eq!(id(published), id("one"), "an id can be used wherever text can");
    let job = next(&queue).await;
    assert_eq!((job.id(), job.attempt(), &job.task()), (&id("one"), 1, &task));
    assert_eq!((&job.payload()[..], job.key().map(|k| &k[..])), (&b"hello"[..], Some(&b"customer-17"[..])));
    assert_eq!(job.headers().get("trace").map(|v| &v[..]), Some(&b"abc"[..]));
    let left = job.deadline().duration_since(wall_now()).unwrap();
    assert!(left <= LEASE + ms(5), "{left:?}");
    assert_eq!(queue.jobs().get(&id("one")).await?.status, JobStatus::Processing);
    soon(job.done()).await.unwrap();
    let info = queue.jobs().get(&id("one")).await?;
    assert_eq!((info.status, info.attempts, info.next_execution), (JobStatus::Done, 1, None));
    none_within(&queue, 2 * LEASE).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn default_backends_need_no_setup() -> Result<()> {
    let queue = Queue::builder("emails").build().await?;
    let id = queue.publish(Task::new("hello")).await?;
    let job = next(&queue).await;
    assert_eq!(job.id(), &id);
    soon(job.done()).await.unwrap();
    queue.shutdown(Duration::from_secs(5)).await
}

#[tokio::test(start_paused = true)]
async fn publish_many_answers_each_task_in_order() -> Result<()> {
    let (queue, _) = queue().await;
    let wrong = Task::new("x").with_header("kafkaq-mine", "1");
    let tasks = (0..500).map(|n| Task::new(format!("{n}")).with_id(id(format!("t{n}")))).chain([wrong]);
    let out = queue.publish_many(tasks).await;
    assert_eq!(out.len(), 501);
    for (n, outcome) in out[..500].iter().enumerate() {
        assert_eq!(outcome.as_ref().unwrap(), &id(format!("t{n}")));
    }
    assert_eq!(out[500].as_ref().unwrap_err().kind(), ErrorKind::Invalid);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..500 {
        let job = next(&queue).await;
        assert!(seen.insert(job.id().clone()));
        soon(job.done()).await.unwrap();
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_id_is_one_task_while_it_is_remembered() -> Result<()> {
    let (queue, _) = queue().await;
    for _ in 0..3 {
        queue.publish(Task::new("once").with_id(id("report"))).await?;
    }
    soon(next(&queue).await.done()).await.unwrap();
    queue.publish(Task::new("once").with_id(id("report"))).await?;
    none_within(&queue, 2 * LEASE).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_retry_comes_back_after_its_delay_with_the_next_attempt() -> Result<()> {
    let (queue, _) = queue().await;
    queue.publish(Task::new("x").with_id(id("r"))).await?;
    let job = next(&queue).await;
    let first = job.token();
    let asked = Instant::now();
    soon(job.retry(ms(1200), "not now")).await.unwrap();
    let info = queue.jobs().get(&id("r")).await?;
    assert_eq!((info.status, info.attempts), (JobStatus::Waiting, 1));
    assert!(info.next_execution.unwrap() > wall_now());
    let again = next(&queue).await;
    assert!(asked.elapsed() >= ms(1200), "{:?}", asked.elapsed());
    assert!(asked.elapsed() < ms(4000), "{:?}", asked.elapsed());
    assert_eq!((again.id(), again.attempt()), (&id("r"), 2));
    assert_ne!(again.token(), first);
    soon(again.done()).await.unwrap();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_retry_without_delay_comes_back_at_once() -> Result<()> {
    let (queue, _) = queue().await;
    queue.publish(Task::new("x")).await?;
    let asked = Instant::now();
    soon(next(&queue).await.retry(Duration::ZERO, "not now")).await.unwrap();
    let again = next(&queue).await;
    assert!(asked.elapsed() < LEASE, "{:?}", asked.elapsed());
    soon(again.done()).await.unwrap();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_delayed_task_waits_its_time() -> Result<()> {
    let (queue, _) = queue().await;
    let published = Instant::now();
    queue.publish(Task::new("later").with_delay(ms(1500))).await?;
    let job = next(&queue).await;
    assert!(published.elapsed() >= ms(1500), "{:?}", published.elapsed());
    assert_eq!(job.attempt(), 1);
    soon(job.done()).await.unwrap();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn rejected_task_is_dead_lettered_with_all_its_data() -> Result<()> {
    let (queue, log) = queue().await;
    let headers = {
        let mut h = Headers::new();
        h.push("twice", Some("1".into()));
        h.push("twice", None);
        h
    };
    queue.publish(Task::new("bad").with_key("k").with_headers(headers).with_id(id("d"))).await?;
    soon(next(&queue).await.reject("the address is malformed")).await.unwrap();
    assert_eq!(queue.jobs().get(&id("d")).await?.status, JobStatus::Dead);
    let dead = records(&log, "emails.kafkaq.dead", 1).await.remove(0);
    assert_eq!((dead.value.as_deref(), dead.key.as_deref()), (Some(&b"bad"[..]), Some(&b"k"[..])));
    let twice: Vec<_> =
        dead.headers.iter().filter(|(n, _)| &n[..] == b"twice").map(|(_, v)| v.cloned()).collect();
    assert_eq!(twice, [Some("1".into()), None]);
    let said = dead.headers.iter().any(|(_, v)| v.is_some_and(|v| v.windows(9).any(|w| w == b"malformed")));
    assert!(said, "the reason is in a header: {:?}", dead.headers);
    none_within(&queue, 2 * LEASE).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn long_reason_is_truncated() -> Result<()> {
    let (queue, log) = queue().await;
    queue.publish(Task::new("bad")).await?;
    soon(next(&queue).await.reject("no! ".repeat(500_000))).await.unwrap();
    let dead = records(&log, "emails.kafkaq.dead", 1).await.remove(0);
    let reason = dead.headers.get("kafkaq-reason").unwrap();
    assert!(reason.starts_with(b"no! no! ") && reason.len() <= 512, "{} bytes", reason.len());
    Ok(())
}

/// They may share all servers and differ only in the task topic.
#[tokio::test(start_paused = true)]
async fn two_environments_on_one_log_and_store_keep_apart() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let live = quick(&log, &store).build().await?;
    let test = quick(&log, &store).task_topic("emails-test").build().await?;
    for queue in [&live, &test] {
        // Now both read.
        queue.publish(Task::new("first")).await?;
        soon(next(queue).await.done()).await.unwrap();
    }
    for (queue, payload) in [(&live, "live"), (&test, "test")] {
        let task = Task::new(payload).with_id(id("same")).with_delay(3 * LEASE);
        queue.publish(task).await?;
    }
    for (queue, payload) in [(&live, "live"), (&test, "test")] {
        let job = next(queue).await;
        assert_eq!(job.payload(), payload);
        soon(job.done()).await.unwrap();
        none_within(queue, 2 * LEASE).await;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_attempts_are_used_up_goes_to_the_dead_letters() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let queue = quick(&log, &store).max_failures(3).build().await?;
    queue.publish(Task::new("poison").with_id(id("p"))).await?;
    for attempt in 1..=3 {
        let job = next(&queue).await;
        assert_eq!(job.attempt(), attempt);
        let outcome = soon(job.retry(Duration::ZERO, "not now")).await.unwrap();
        let expected = if attempt < 3 { RetryOutcome::Scheduled } else { RetryOutcome::DeadLettered };
        assert_eq!(outcome, expected, "attempt {attempt}");
    }
    records(&log, "emails.kafkaq.dead", 1).await;
    soon(async {
        while queue.jobs().get(&id("p")).await.unwrap().status != JobStatus::Dead {
            tokio::time::sleep(ms(10)).await;
        }
    })
    .await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_extended_stays_with_its_holder() -> Result<()> {
    let (queue, _) = queue().await;
    queue.publish(Task::new("slow")).await?;
    let mut job = next(&queue).await;
    for _ in 0..4 {
        tokio::time::sleep(LEASE / 2).await;
        let before = job.deadline();
        soon(job.extend(LEASE)).await.unwrap();
        assert!(job.deadline() > before);
    }
    none_within(&queue, ms(50)).await;
    soon(job.done()).await.unwrap();
    none_within(&queue, 2 * LEASE).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_dropped_job_is_handed_out_again_when_its_lease_ends() -> Result<()> {
    let (queue, _) = queue().await;
    queue.publish(Task::new("x").with_id(id("dropped"))).await?;
    let taken = Instant::now();
    drop(next(&queue).await);
    let again = next(&queue).await;
    assert!(taken.elapsed() >= LEASE - ms(50), "{:?}", taken.elapsed());
    assert_eq!((again.id(), again.attempt()), (&id("dropped"), 2));
    soon(again.done()).await.unwrap();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_zombie_learns_that_its_lease_is_lost() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let queue = quick(&log, &store).build().await?;
    queue.publish(Task::new("x")).await?;
    let zombie = next(&queue).await;
    let holder = next(&queue).await;
    assert_eq!((holder.id(), holder.attempt()), (zombie.id(), 2));
    let lost = soon(zombie.done()).await;
    assert!(matches!(lost, Err(JobError::LeaseLost(LostReason::TakenOver))), "{lost:?}");
    soon(holder.done()).await.unwrap();
    none_within(&queue, 2 * LEASE).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_task_is_not_handed_out() -> Result<()> {
    let (queue, _) = queue().await;
    assert_eq!(queue.jobs().cancel(&id("c")).await?, CancelOutcome::Unknown);
    queue.publish(Task::new("x").with_id(id("c"))).await?;
    none_within(&queue, LEASE).await;
    assert_eq!(queue.jobs().get(&id("c")).await?.status, JobStatus::Cancelled);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_holder_of_a_cancelled_task_learns_of_it() -> Result<()> {
    let (queue, _) = queue().await;
    queue.publish(Task::new("x").with_id(id("c"))).await?;
    let mut job = next(&queue).await;
    let CancelOutcome::Known(before) = queue.jobs().cancel(&id("c")).await? else { panic!("it is known") };
    assert_eq!((before.status, before.attempts), (JobStatus::Processing, 1));
    let lost = soon(job.extend(LEASE)).await;
    assert!(matches!(lost, Err(JobError::LeaseLost(LostReason::Cancelled))), "{lost:?}");
    assert!(job.is_lost());
    let lost = soon(job.done()).await;
    assert!(matches!(lost, Err(JobError::LeaseLost(LostReason::Cancelled))), "{lost:?}");
    let CancelOutcome::TooLate(_) = queue.jobs().cancel(&id("c")).await? else { panic!("it has ended") };
    none_within(&queue, 2 * LEASE).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn command_takes_effect_once_it_was_polled() -> Result<()> {
    let (queue, _) = queue().await;
    queue.publish(Task::new("x").with_id(id("polled"))).await?;
    let job = next(&queue).await;
    {
        let mut done = Box::pin(job.done());
        assert!(futures_util::poll!(&mut done).is_pending());
    }
    soon(async {
        while queue.jobs().get(&id("polled")).await.unwrap().status != JobStatus::Done {
            tokio::time::sleep(ms(5)).await;
        }
    })
    .await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_task_that_runs_longer_than_park_after_does_not_come_twice() -> Result<()> {
    let (queue, _) = queue().await;
    queue.publish(Task::new("slow")).await?;
    let mut job = next(&queue).await;
    // The record is copied meanwhile; the copy finds the task done.
    tokio::time::sleep(ms(250)).await;
    soon(job.extend(LEASE)).await.unwrap();
    soon(job.done()).await.unwrap();
    none_within(&queue, 4 * LEASE).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_has_waited_is_renewed_before_it_is_handed_out() -> Result<()> {
    let (queue, _) = queue().await;
    queue.publish(Task::new("x")).await?;
    // Leased ahead of any caller; more than half of the lease passes.
    tokio::time::sleep(LEASE * 3 / 4).await;
    let job = next(&queue).await;
    let left = job.deadline().duration_since(wall_now()).unwrap();
    assert!(left > LEASE / 2 - ms(20), "{left:?}");
    assert_eq!(job.attempt(), 1);
    soon(job.done()).await.unwrap();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn too_long_a_retry_or_extension_is_refused() -> Result<()> {
    let (queue, _) = queue().await;
    queue.publish(Task::new("x")).await?;
    let mut job = next(&queue).await;
    assert!(matches!(job.extend(Duration::from_secs(61)).await, Err(JobError::Refused(_))));
    assert!(matches!(job.retry(Duration::from_secs(61), "not now").await, Err(JobError::Refused(_))));
    // It was not ended by that, so it comes back.
    soon(next(&queue).await.done()).await.unwrap();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_job_can_be_taken_without_waiting() -> Result<()> {
    let (queue, _) = queue().await;
    assert!(queue.try_get_job()?.is_none());
    let id = queue.publish(Task::new("x")).await?;
    let job = try_until_ready(&queue).await;
    assert_eq!((job.id(), job.attempt(), job.failures()), (&id, 1, 0));
    // A redelivery is leased only when a job is requested, and `try_get_job` is a request.
    soon(job.retry(Duration::ZERO, "not now")).await.unwrap();
    let again = try_until_ready(&queue).await;
    assert_eq!((again.id(), again.attempt()), (&id, 2));
    soon(again.done()).await.unwrap();
    soon(queue.shutdown(Duration::from_secs(5))).await?;
    assert_eq!(queue.try_get_job().unwrap_err().kind(), ErrorKind::Closed);
    Ok(())
}

/// The caller for whom the job was leased is gone.
#[tokio::test(start_paused = true)]
async fn a_job_that_waits_for_hours_is_charged_no_failure() -> Result<()> {
    let queue = quick(&MemoryLog::new(), &MemoryStore::new()).max_failures(1).build().await?;
    assert!(tokio::time::timeout(ms(100), queue.get_job()).await.is_err());
    assert!(queue.try_get_job()?.is_none());
    let id = queue.publish(Task::new("x")).await?;
    tokio::time::sleep(Duration::from_secs(7_200)).await;
    let job = soon(queue.get_job()).await?;
    assert_eq!((job.id(), job.attempt()), (&id, 1));
    soon(job.done()).await.unwrap();
    soon(queue.shutdown(Duration::from_secs(5))).await
}

#[tokio::test(start_paused = true)]
async fn caller_that_tries_once_per_minute_gets_a_job() -> Result<()> {
    let (queue, _) = queue().await;
    for attempt in 1..=3 {
        if attempt == 1 {
            queue.publish(Task::new("x")).await?;
        }
        assert!(queue.try_get_job()?.is_none(), "it has to be leased first");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let job = queue.try_get_job()?.expect("it is ready");
        assert_eq!(job.attempt(), attempt);
        soon(job.retry(Duration::ZERO, "not now")).await.unwrap();
    }
    soon(queue.shutdown(Duration::from_secs(5))).await
}

async fn try_until_ready(queue: &Queue) -> Job {
    soon(async {
        loop {
            if let Some(job) = queue.try_get_job().unwrap() {
                return job;
            }
            tokio::time::sleep(ms(5)).await;
        }
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn jobs_can_be_taken_by_the_batch() -> Result<()> {
    let (queue, _) = queue().await;
    assert!(queue.get_jobs(0).await?.is_empty());
    let mut waiting = Box::pin(queue.get_jobs(usize::MAX));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    for outcome in queue.publish_many((0..100).map(|n| Task::new(format!("{n}")))).await {
        outcome?;
    }
    let mut seen = std::collections::HashSet::new();
    let mut jobs = soon(waiting).await?;
    let mut batches = 1;
    loop {
        assert!(!jobs.is_empty());
        for job in jobs {
            assert!(seen.insert(job.id().clone()), "a job is in one batch");
            soon(job.done()).await.unwrap();
        }
        if seen.len() == 100 {
            break;
        }
        jobs = soon(queue.get_jobs(30)).await?;
        assert!(jobs.len() <= 30);
        batches += 1;
    }
    assert!(batches < 100, "there were batches of more than one");
    soon(queue.shutdown(Duration::from_secs(5))).await?;
    assert_eq!(queue.get_jobs(5).await.unwrap_err().kind(), ErrorKind::Closed);
    Ok(())
}

/// Callers of batches give up at random moments: no job is lost in a dropped future.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_jobs_is_cancel_safe() -> Result<()> {
    const TASKS: usize = 1000;
    let queue = Queue::builder("batches").lease_duration(Duration::from_secs(600)).build().await?;
    let done = Arc::new(AtomicUsize::new(0));
    for outcome in queue.publish_many((0..TASKS).map(|_| Task::new("x"))).await {
        outcome?;
    }
    let callers: Vec<_> = (0..2000_u64)
        .map(|n| {
            let (queue, done) = (queue.clone(), done.clone());
            tokio::spawn(async move {
                tokio::select! {
                    jobs = queue.get_jobs(3) => {
                        for job in jobs.unwrap() {
                            job.done().await.unwrap();
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    () = patience(n) => {}
                }
            })
        })
        .collect();
    for caller in callers {
        soon(caller).await.unwrap();
    }
    while done.load(Ordering::Relaxed) < TASKS {
        for job in soon(queue.get_jobs(100)).await? {
            assert_eq!(job.attempt(), 1);
            soon(job.done()).await.unwrap();
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn every_group_executes_a_delayed_task_whoever_has_published_it() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let groups = [quick(&log, &store).build().await?, quick(&log, &store).group("audit").build().await?];
    // Its group has no members.
    let publisher = quick(&log, &store).group("nobody").build_publisher().await?;
    let published = Instant::now();
    let id = publisher.publish(Task::new("later").with_delay(ms(700))).await?;
    for queue in &groups {
        let job = next(queue).await;
        assert!(published.elapsed() >= ms(700), "{:?}", published.elapsed());
        assert_eq!((job.id(), job.attempt()), (&id, 1));
        soon(job.done()).await.unwrap();
    }
    let topics = [TopicName::from("emails.nobody.wait"), "emails.nobody.dead".into()];
    assert_eq!(log.describe_topics(&topics).await?, [None, None], "a publisher creates no topic of a group");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn controller_needs_only_the_store() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let jobs = Queue::builder("emails").store(store.clone()).build_jobs().await?;
    assert_eq!(jobs.cancel(&id("c")).await?, CancelOutcome::Unknown);
    let queue = quick(&log, &store).build().await?;
    queue.publish(Task::new("x").with_id(id("c"))).await?;
    queue.publish(Task::new("y").with_id(id("d"))).await?;
    let job = next(&queue).await;
    assert_eq!(job.id(), &id("d"), "the other one was cancelled");
    assert_eq!(jobs.get(&id("d")).await?.status, JobStatus::Processing);
    let e = Queue::builder("emails").build_jobs().await.unwrap_err();
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("no store"), "{e}");
    store.close().await?;
    let closed = Queue::builder("emails").store(store).build_jobs().await.unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::Closed);
    Ok(())
}
