//! Features of a queue, on real servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use kafkaq::{
    CancelOutcome, Job, JobError, JobStatus, LostReason, Queue, Task, TaskId,
    rdkafka::{GroupProtocol, RdKafka},
};
use kafkaq_tests::{Built, Kafka, PATIENCE, committed_offsets, kafka, kcat, queue, redis, unique, until};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

async fn build(name: &str) -> Queue {
    queue(name, &redis()).built().await
}

async fn nothing_more(queue: &Queue, within: Duration) {
    if let Ok(job) = timeout(within, queue.get_job()).await {
        panic!("{:?} was handed out", job.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_kcat_is_a_task() {
    let name = unique("kcat");
    let queue = build(&name).await;
    kcat(&name, &[], "hello\nworld\n");
    let mut payloads = vec![];
    for _ in 0..2 {
        let job = queue.get_job().await.unwrap();
        assert!(job.id().as_str().starts_with(&format!("{name}/")), "{}", job.id());
        payloads.push(job.payload().clone());
        job.done().await.unwrap();
    }
    payloads.sort();
    assert_eq!(payloads, ["hello", "world"]);
    queue.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_task_is_not_run_and_a_running_job_learns_of_it() {
    let queue = build(&unique("cancel")).await;
    let delayed = queue.publish(Task::new("never").with_delay(Duration::from_secs(2))).await.unwrap();
    assert!(matches!(
        queue.jobs().cancel(&delayed).await.unwrap(),
        CancelOutcome::Unknown | CancelOutcome::Known(_)
    ));
    let running = queue.publish(Task::new("now")).await.unwrap();
    let job = queue.get_job().await.unwrap();
    assert_eq!(*job.id(), running);
    assert_eq!(queue.jobs().get(&running).await.unwrap().status, JobStatus::Processing);
    assert!(matches!(queue.jobs().cancel(&running).await.unwrap(), CancelOutcome::Known(_)));
    assert!(matches!(job.done().await, Err(JobError::LeaseLost(LostReason::Cancelled))));
    nothing_more(&queue, Duration::from_secs(5)).await;
    for id in [delayed, running] {
        assert_eq!(queue.jobs().get(&id).await.unwrap().status, JobStatus::Cancelled);
    }
    queue.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_published_twice_is_run_once() {
    let queue = build(&unique("dedup")).await;
    let id = TaskId::new("report-2026-11-24").unwrap();
    queue.publish(Task::new("one").with_id(id.clone())).await.unwrap();
    let job = queue.get_job().await.unwrap();
    queue.publish(Task::new("one").with_id(id.clone())).await.unwrap();
    job.done().await.unwrap();
    queue.publish(Task::new("one").with_id(id.clone())).await.unwrap();
    nothing_more(&queue, Duration::from_secs(4)).await;
    let info = queue.jobs().get(&id).await.unwrap();
    assert_eq!((info.status, info.attempts), (JobStatus::Done, 1));
    queue.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn last_failure_is_dead_lettered_with_all_data_of_the_task() {
    let name = unique("dead");
    let queue = queue(&name, &redis()).max_failures(3).built().await;
    let task = Task::new("poison").with_key("k").with_header("trace", "abc").with_header("utf8", "ä");
    let id = queue.publish(task).await.unwrap();
    for attempt in 1..=3 {
        let job = queue.get_job().await.unwrap();
        assert_eq!(job.attempt(), attempt);
        assert_eq!(job.headers().get("trace").unwrap(), "abc");
        job.retry(Duration::ZERO, "not now").await.unwrap();
    }
    let dead = &Kafka::read(&format!("{name}.kafkaq.dead"), 1)[0];
    assert_eq!(dead.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(dead.value.as_deref(), Some(&b"poison"[..]));
    assert_eq!(dead.headers["trace"], b"abc");
    assert_eq!(dead.headers["utf8"], "ä".as_bytes());
    assert_eq!(dead.headers["kafkaq-task-id"], id.as_str().as_bytes());
    assert_eq!(dead.headers["kafkaq-attempts"], b"3");
    let info = queue.jobs().get(&id).await.unwrap();
    assert_eq!((info.status, info.attempts), (JobStatus::Dead, 3));
    queue.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_of_three_seconds_is_three_seconds() {
    const DELAY: Duration = Duration::from_secs(3);
    let queue = build(&unique("delay")).await;
    let mut begun = HashMap::new();
    for _ in 0..10 {
        let start = Instant::now();
        begun.insert(queue.publish(Task::new("later").with_delay(DELAY)).await.unwrap(), start);
        sleep(Duration::from_millis(200)).await;
    }
    let mut waited = Vec::new();
    while !begun.is_empty() {
        let job = queue.get_job().await.unwrap();
        waited.push(begun.remove(job.id()).expect("each once").elapsed());
        assert_eq!(job.attempt(), 1);
        job.done().await.unwrap();
    }
    waited.sort();
    println!("handed out after {waited:?}");
    assert!(waited[0] >= DELAY, "{waited:?}");
    // Their exact lateness is tested in virtual time; here, that none waits in a longer lane.
    assert!(waited[0] < 10 * DELAY, "{waited:?}");
    queue.shutdown(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_task_is_extended_runs_once_and_does_not_hold_back_commits() {
    let name = unique("slow");
    let queue = queue(&name, &redis()).partitions(1).built().await;
    let slow = queue.publish(Task::new("slow")).await.unwrap();
    let job = queue.get_job().await.unwrap();
    assert_eq!(*job.id(), slow);
    for _ in 0..100 {
        queue.publish(Task::new("quick")).await.unwrap();
    }
    let start = Instant::now();
    let (stop, stopped) = oneshot::channel();
    let extending = tokio::spawn(extended(job, stopped));
    for _ in 0..100 {
        let job = queue.get_job().await.unwrap();
        assert_ne!(*job.id(), slow, "it was handed out beside its holder");
        job.done().await.unwrap();
    }
    // The slow task still runs, so it is its copy in the wait topic that lets them through.
    until_committed(&name, 101).await;
    println!("everything was committed {:?} after the slow task began", start.elapsed());
    // Twice the lease of three seconds.
    sleep(Duration::from_secs(7).saturating_sub(start.elapsed())).await;
    stop.send(()).unwrap();
    extending.await.unwrap().done().await.unwrap();
    nothing_more(&queue, Duration::from_secs(5)).await;
    queue.shutdown(PATIENCE).await.unwrap();
}

/// Keeps a job until it is told to stop.
async fn extended(mut job: Job, mut stop: oneshot::Receiver<()>) -> Job {
    while timeout(Duration::from_millis(500), &mut stop).await.is_err() {
        job.extend(Duration::from_secs(5)).await.unwrap();
    }
    job
}

/// Waits until the group has committed this many records of its task topic.
async fn until_committed(queue: &str, count: i64) {
    let start = Instant::now();
    loop {
        let name = queue.to_owned();
        // It makes a client each time, which takes a while.
        let committed =
            tokio::task::spawn_blocking(move || committed_offsets(&kafka(), &name)).await.unwrap();
        if committed == count {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{committed} of {count} are committed");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_tasks_are_handed_out_elsewhere_after_a_shutdown() {
    let name = unique("restart");
    let first = build(&name).await;
    for i in 0..20 {
        first.publish(Task::new(format!("{i}"))).await.unwrap();
    }
    let held = first.get_job().await.unwrap();
    let id = held.id().clone();
    drop(held);
    first.shutdown(PATIENCE).await.unwrap();
    let start = Instant::now();
    let second = build(&name).await;
    let mut attempts = 0;
    for _ in 0..20 {
        let job = second.get_job().await.unwrap();
        attempts = attempts.max(job.attempt());
        if *job.id() == id {
            assert_eq!(job.attempt(), 2);
        }
        job.done().await.unwrap();
    }
    println!("all 20 ran {:?} after the second queue began", start.elapsed());
    assert_eq!(attempts, 2);
    until_committed(&name, 20).await;
    second.shutdown(PATIENCE).await.unwrap();
}

/// Kafka's `uniform` assignor and the clients' `cooperative-sticky` balance the number of partitions over all topics:
/// either may give one member all of the task topic and the other all of the wait topic.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_the_tasks() {
    for protocol in [GroupProtocol::Consumer, GroupProtocol::Classic] {
        let name = unique("share");
        let member = || {
            let broker = RdKafka::builder(kafka()).group_protocol(protocol).build().unwrap();
            queue(&name, &redis()).broker(broker).build()
        };
        let (one, two) = tokio::join!(member(), member());
        let (one, two) = (one.unwrap(), two.unwrap());
        let all = Arc::new(AtomicUsize::new(0));
        let work = |queue: &Queue| {
            let mine = Arc::new(AtomicUsize::new(0));
            let (queue, own, all) = (queue.clone(), mine.clone(), all.clone());
            tokio::spawn(async move {
                while let Ok(job) = queue.get_job().await {
                    job.done().await.unwrap();
                    own.fetch_add(1, Ordering::Relaxed);
                    all.fetch_add(1, Ordering::Relaxed);
                }
            });
            mine
        };
        let (by_one, by_two) = (work(&one), work(&two));
        let done = || [&by_one, &by_two].map(|own| own.load(Ordering::Relaxed));
        let start = Instant::now();
        // It takes a while until both have their assignments.
        loop {
            let (before, target) = (done(), all.load(Ordering::Relaxed) + 600);
            for outcome in one.publish_many((0..600).map(|_| Task::new("x"))).await {
                outcome.unwrap();
            }
            until("all are done", || all.load(Ordering::Relaxed) >= target).await;
            let [one_did, two_did] = [0, 1].map(|member| done()[member] - before[member]);
            if one_did > 100 && two_did > 100 {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{protocol:?}: {one_did} and {two_did} of the last 600");
            sleep(Duration::from_millis(500)).await;
        }
        one.shutdown(PATIENCE).await.unwrap();
        two.shutdown(PATIENCE).await.unwrap();
    }
}
