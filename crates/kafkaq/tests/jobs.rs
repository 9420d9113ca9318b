//! From `publish` to the end of a job, on the in-memory pair.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{LEASE, ms, next, none_within, quick, records, soon};
use kafkaq::{
    CancelOutcome, ErrorKind, Headers, JobError, JobStatus, LostReason, Queue, Result, Task, TaskId,
    memory::{MemoryLog, MemoryStore},
};
use std::time::{Duration, Instant, SystemTime};

async fn queue() -> (Queue, MemoryLog) {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    (quick(&log, &store).build().await.unwrap(), log)
}

fn id(text: &str) -> TaskId {
    TaskId::new(text).unwrap()
}

#[tokio::test]
async fn a_task_arrives_as_it_was_published_and_is_done_once() -> Result<()> {
    let (queue, _) = queue().await;
    let task = Task::new("hello").with_key("customer-17").with_header("trace", "abc").with_id(id("one"));
    assert_eq!(queue.publish(task.clone()).await?, id("one"));
    let job = next(&queue).await;
    assert_eq!((job.id(), job.attempt(), &job.task()), (&id("one"), 1, &task));
    assert_eq!((&job.payload()[..], job.key().map(|k| &k[..])), (&b"hello"[..], Some(&b"customer-17"[..])));
    assert_eq!(job.headers().get("trace").map(|v| &v[..]), Some(&b"abc"[..]));
    let left = job.deadline().duration_since(SystemTime::now()).unwrap();
    assert!(left <= LEASE + ms(5), "{left:?}");
    assert_eq!(queue.jobs().get(&id("one")).await?.status, JobStatus::Processing);
    soon(job.done()).await.unwrap();
    let info = queue.jobs().get(&id("one")).await?;
    assert_eq!((info.status, info.attempts, info.next_execution), (JobStatus::Done, 1, None));
    none_within(&queue, 2 * LEASE).await;
    Ok(())
}

#[tokio::test]
async fn the_default_backend_needs_nothing() -> Result<()> {
    let queue = Queue::builder("emails").build().await?;
    let id = queue.publish(Task::new("hello")).await?;
    let job = next(&queue).await;
    assert_eq!(job.id(), &id);
    soon(job.done()).await.unwrap();
    queue.shutdown(Duration::from_secs(5)).await
}

#[tokio::test]
async fn publish_many_answers_each_task_in_order() -> Result<()> {
    let (queue, _) = queue().await;
    let wrong = Task::new("x").with_header("kafkaq-mine", "1");
    let tasks = (0..500).map(|n| Task::new(format!("{n}")).with_id(id(&format!("t{n}")))).chain([wrong]);
    let out = queue.publish_many(tasks).await;
    assert_eq!(out.len(), 501);
    for (n, outcome) in out[..500].iter().enumerate() {
        assert_eq!(outcome.as_ref().unwrap(), &id(&format!("t{n}")));
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

#[tokio::test]
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

#[tokio::test]
async fn a_retry_comes_back_after_its_delay_with_the_next_attempt() -> Result<()> {
    let (queue, _) = queue().await;
    queue.publish(Task::new("x").with_id(id("r"))).await?;
    let job = next(&queue).await;
    let first = job.token();
    let asked = Instant::now();
    soon(job.retry(ms(1200), "not now")).await.unwrap();
    let info = queue.jobs().get(&id("r")).await?;
    assert_eq!((info.status, info.attempts), (JobStatus::Waiting, 1));
    assert!(info.next_execution.unwrap() > SystemTime::now());
    let again = next(&queue).await;
    assert!(asked.elapsed() >= ms(1200), "{:?}", asked.elapsed());
    assert!(asked.elapsed() < ms(4000), "{:?}", asked.elapsed());
    assert_eq!((again.id(), again.attempt()), (&id("r"), 2));
    assert_ne!(again.token(), first);
    soon(again.done()).await.unwrap();
    Ok(())
}

#[tokio::test]
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

#[tokio::test]
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

#[tokio::test]
async fn a_rejected_task_lies_in_the_dead_letters_whole() -> Result<()> {
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

#[tokio::test]
async fn a_task_whose_attempts_are_used_up_goes_to_the_dead_letters() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let queue = quick(&log, &store).max_failures(3).build().await?;
    queue.publish(Task::new("poison").with_id(id("p"))).await?;
    for attempt in 1..=3 {
        let job = next(&queue).await;
        assert_eq!(job.attempt(), attempt);
        soon(job.retry(Duration::ZERO, "not now")).await.unwrap();
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

#[tokio::test]
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

#[tokio::test]
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

#[tokio::test]
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

#[tokio::test]
async fn a_cancelled_task_is_not_handed_out() -> Result<()> {
    let (queue, _) = queue().await;
    assert_eq!(queue.jobs().cancel(&id("c")).await?, CancelOutcome::Unknown);
    queue.publish(Task::new("x").with_id(id("c"))).await?;
    none_within(&queue, LEASE).await;
    assert_eq!(queue.jobs().get(&id("c")).await?.status, JobStatus::Cancelled);
    Ok(())
}

#[tokio::test]
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

#[tokio::test]
async fn an_ask_takes_effect_once_it_was_polled() -> Result<()> {
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

#[tokio::test]
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

#[tokio::test]
async fn a_lease_that_has_waited_is_renewed_before_it_is_handed_out() -> Result<()> {
    let (queue, _) = queue().await;
    queue.publish(Task::new("x")).await?;
    // Leased ahead of any caller; more than half of the lease passes.
    tokio::time::sleep(LEASE * 3 / 4).await;
    let job = next(&queue).await;
    let left = job.deadline().duration_since(SystemTime::now()).unwrap();
    assert!(left > LEASE / 2 - ms(20), "{left:?}");
    assert_eq!(job.attempt(), 1);
    soon(job.done()).await.unwrap();
    Ok(())
}

#[tokio::test]
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
