//! Periodic tasks across several processes, in virtual time.

#![cfg(feature = "cron")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Random, forward, none_within, quick, soon};
use kafkaq::{
    Error, ErrorKind, Job, JobStatus, Publisher, Queue, QueueBuilder, Result, Retry, Task, TaskId,
    backend::{Log, NewRecord, Partition},
    memory::{MemoryLog, MemoryStore},
    periodic::{Missed, PeriodicTask, Schedule, Scheduler, Tick},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep},
};

const SECOND: Duration = Duration::from_secs(1);

fn every(seconds: u64) -> Schedule {
    Schedule::every(Duration::from_secs(seconds)).unwrap()
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// The payload is the time of the tick.
fn payload(tick: &Tick) -> Task {
    Task::new(unix_seconds(tick.time()).to_string())
}

/// Waits for a job through some ticks of virtual time.
async fn next(queue: &Queue) -> Job {
    tokio::time::timeout(3_600 * SECOND, queue.get_job()).await.expect("a tick").unwrap()
}

trait PayloadSeconds {
    fn payload_seconds(&self) -> u64;
}

impl PayloadSeconds for Job {
    fn payload_seconds(&self) -> u64 {
        str::from_utf8(self.payload()).unwrap().parse().unwrap()
    }
}

fn start(publisher: Publisher, task: PeriodicTask) -> AbortHandle {
    tokio::spawn(Scheduler::new(publisher).add(task).unwrap().run()).abort_handle()
}

/// Ids are forgotten 70 seconds after their tasks have ended, so that what is published too late is executed twice.
fn forgetful(log: &MemoryLog, store: &MemoryStore) -> QueueBuilder {
    quick(log, store).done_retention(60 * SECOND).max_overdue(10 * SECOND).publish_timeout(SECOND)
}

type Executed = Arc<Mutex<BTreeMap<u64, usize>>>;

/// One process: it publishes ticks and executes tasks. Its worker ends between two jobs; its scheduler anywhere.
async fn process(builder: QueueBuilder, task: PeriodicTask, life: Duration, executed: Executed) {
    let queue = builder.build().await.unwrap();
    let scheduler = start(queue.publisher(), task);
    let end = Instant::now() + life;
    while let Ok(job) = tokio::time::timeout_at(end, queue.get_job()).await {
        let job = job.unwrap();
        let time = job.payload_seconds();
        *executed.lock().unwrap().entry(time).or_default() += 1;
        job.done().await.unwrap();
    }
    scheduler.abort();
}

#[tokio::test(start_paused = true)]
async fn a_thousand_ticks_over_three_crashing_processes_run_once_each() {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let executed = Executed::default();
    let all = Missed::RunAll { within: 58 * SECOND };
    let began = Instant::now();
    let first = unix_seconds(common::wall_now()) + 1;
    let mut processes = JoinSet::new();
    for seed in 0..3 {
        let (log, store, executed) = (log.clone(), store.clone(), executed.clone());
        processes.spawn(async move {
            let mut random = Random(seed);
            while began.elapsed() < 1_010 * SECOND {
                let task = PeriodicTask::new("tick", every(1), payload).missed(all);
                let life = Duration::from_millis(random.below(20_000));
                process(forgetful(&log, &store), task, life, executed.clone()).await;
                sleep(Duration::from_millis(random.below(30_000))).await;
            }
        });
    }
    while processes.join_next().await.transpose().unwrap().is_some() {}
    // Publish and execute what was left.
    let task = PeriodicTask::new("tick", every(1), payload).missed(all);
    process(forgetful(&log, &store), task, 30 * SECOND, executed.clone()).await;

    let executed = executed.lock().unwrap();
    for tick in first..first + 1_000 {
        assert_eq!(executed.get(&tick), Some(&1), "tick {} of 1000", tick - first);
    }
    let twice: Vec<_> = executed.iter().filter(|(_, times)| **times != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tick_is_published_at_its_time_under_its_id() -> Result<()> {
    let queue = quick(&MemoryLog::new(), &MemoryStore::new()).build().await?;
    let keyed = PeriodicTask::new("keyed", every(600), |tick| payload(tick).with_key("k")).version(7);
    let scheduler = Scheduler::new(queue.publisher())
        .add(PeriodicTask::new("plain", every(600), |tick| {
            assert_eq!(tick.name(), "plain");
            payload(tick).with_id(TaskId::new("replaced").unwrap())
        }))?
        .add(keyed)?;
    tokio::spawn(scheduler.run());
    let mut found = BTreeMap::new();
    // The first ones may be less than a minute old.
    for _ in 0..4 {
        let job = next(&queue).await;
        let time = job.payload_seconds();
        // A thread that is held up reads a paused clock's time too late.
        let apart = unix_seconds(common::wall_now()).abs_diff(time);
        assert!(time % 600 == 0 && apart < 65, "{apart} s off its time");
        let version = if job.id().as_str().starts_with("plain") { "plain@1" } else { "keyed@7" };
        assert_eq!(job.id().as_str(), format!("{version}.{time}000"));
        let key = if version == "plain@1" { job.id().as_str() } else { "k" };
        assert_eq!(job.key().unwrap(), key);
        found.entry(time).or_insert_with(Vec::new).push(version);
        soon(job.done()).await.unwrap();
    }
    assert!(found.values().all(|names| names.len() == 2), "{found:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_removed_schedule_leaves_nothing_behind_and_a_changed_one_only_its_own_ticks() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let queue = quick(&log, &store).build().await?;
    let old = start(queue.publisher(), PeriodicTask::new("t", every(100), payload));
    soon(next(&queue).await.done()).await.unwrap();
    soon(next(&queue).await.done()).await.unwrap();
    old.abort();
    none_within(&queue, 1_000 * SECOND).await;

    let changed = start(queue.publisher(), PeriodicTask::new("t", every(70), payload));
    for _ in 0..20 {
        let job = next(&queue).await;
        let time = job.payload_seconds();
        assert_eq!(time % 70, 0);
        soon(job.done()).await.unwrap();
    }
    changed.abort();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn two_definitions_share_the_ticks_of_one_version() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let queue = quick(&log, &store).build().await?;
    let runs = async |old: PeriodicTask, new: PeriodicTask| {
        let running = [start(queue.publisher(), old), start(queue.publisher(), new)];
        let mut runs = BTreeMap::<u64, usize>::new();
        for _ in 0..20 {
            let job = next(&queue).await;
            *runs.entry(job.payload_seconds()).or_default() += 1;
            soon(job.done()).await.unwrap();
        }
        running.into_iter().for_each(|running| running.abort());
        // The last one may have come only once so far.
        runs.pop_last();
        runs
    };
    let task = |name: &str, seconds| PeriodicTask::new(name, every(seconds), payload);
    let shared = runs(task("a", 100), task("a", 200)).await;
    assert!(shared.values().all(|n| *n == 1), "{shared:?}");
    while let Ok(job) = tokio::time::timeout(SECOND, queue.get_job()).await {
        soon(job?.done()).await.unwrap();
    }
    let apart = runs(task("b", 100), task("b", 200).version(2)).await;
    assert!(apart.iter().all(|(time, n)| *n == if time % 200 == 0 { 2 } else { 1 }), "{apart:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn missed_ticks_follow_the_policy() -> Result<()> {
    for (missed, least, most) in
        [(Missed::Skip, 0, 1), (Missed::RunLast, 1, 1), (Missed::RunAll { within: 1_000 * SECOND }, 10, 10)]
    {
        let queue = quick(&MemoryLog::new(), &MemoryStore::new()).build().await?;
        // The next tick is far enough away.
        while unix_seconds(common::wall_now()) % 100 != 70 {
            sleep(SECOND / 2).await;
        }
        let now = unix_seconds(common::wall_now());
        start(queue.publisher(), PeriodicTask::new("t", every(100), payload).missed(missed));
        let mut times = Vec::new();
        while let Ok(job) = tokio::time::timeout(10 * SECOND, queue.get_job()).await {
            let job = job?;
            times.push(job.payload_seconds());
            soon(job.done()).await.unwrap();
        }
        assert!((least..=most).contains(&times.len()), "{missed:?}: {times:?}");
        assert_eq!(times.contains(&(now - 70)), missed != Missed::Skip, "{missed:?}: {times:?}");
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn invalid_task_is_refused_when_it_is_added() -> Result<()> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let publisher = quick(&log, &store).build_publisher().await?;
    let task = |name: &str| PeriodicTask::new(name, every(60), payload);
    let refused = |scheduler: Scheduler, task, says: &str| {
        let e = scheduler.add(task).unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(says), "{says}: {e}");
    };
    let scheduler = || Scheduler::new(publisher.clone());
    refused(scheduler(), task(""), "1 to 100");
    refused(scheduler(), task("a b"), "`a b`");
    refused(scheduler(), task(&"n".repeat(101)), "1 to 100");
    refused(scheduler().add(task("twice"))?, task("twice"), "`twice`");
    let within = |seconds| Missed::RunAll { within: Duration::from_secs(seconds) };
    refused(scheduler(), task("t").missed(within(3_600)), "done_retention");
    drop(scheduler().add(task("t").missed(within(3_569)))?);
    let short = quick(&log, &store).done_retention(30 * SECOND).build_publisher().await?;
    refused(Scheduler::new(short), task("t"), "done_retention");

    // The longest id there can be.
    let longest = task(&"n".repeat(100)).version(u32::MAX);
    start(publisher, longest.missed(Missed::RunLast));
    let queue = quick(&log, &store).build().await?;
    assert!(next(&queue).await.id().as_str().len() <= TaskId::MAX_LEN);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_refused_stops_neither_the_next_tick_nor_another_schedule() -> Result<()> {
    let queue = quick(&MemoryLog::new(), &MemoryStore::new()).build().await?;
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let large = move |tick: &Tick| {
        counted.fetch_add(1, Ordering::Relaxed);
        match unix_seconds(tick.time()) % 120 {
            0 => Task::new(vec![0; 2_000_000]),
            _ => payload(tick),
        }
    };
    let large =
        PeriodicTask::new("large", every(60), large).missed(Missed::RunAll { within: 1_000 * SECOND });
    let scheduler =
        Scheduler::new(queue.publisher()).add(large)?.add(PeriodicTask::new("other", every(60), payload))?;
    tokio::spawn(scheduler.run());
    let mut counts = BTreeMap::<String, usize>::new();
    for _ in 0..30 {
        let job = next(&queue).await;
        *counts.entry(job.id().as_str()[..5].to_owned()).or_default() += 1;
        soon(job.done()).await.unwrap();
    }
    assert!(counts["other"] >= 5 && counts["large"] >= 10, "{counts:?}");
    // One of two is refused, and none is tried again.
    let made = made.load(Ordering::Relaxed);
    assert!(made <= 2 * counts["large"] + 2, "{made}: {counts:?}");
    Ok(())
}

/// A typed task of which some ticks can't be encoded.
#[cfg(feature = "worker")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Uneven(u64);

#[cfg(feature = "worker")]
impl kafkaq::worker::TaskType for Uneven {
    const KIND: &'static str = "uneven";

    fn encode(&self) -> std::result::Result<bytes::Bytes, kafkaq::worker::BoxError> {
        if self.0.is_multiple_of(2) { Err("it is even".into()) } else { Ok(self.0.to_string().into()) }
    }
}

#[cfg(feature = "worker")]
#[tokio::test(start_paused = true)]
async fn a_tick_whose_task_can_not_be_encoded_does_not_stop_the_next() -> Result<()> {
    let queue = Queue::builder("q").build().await?;
    let uneven = |tick: &Tick| Uneven(unix_seconds(tick.time()) / 60);
    start(queue.publisher(), PeriodicTask::typed("uneven", every(60), uneven));
    let mut minutes = Vec::new();
    for _ in 0..3 {
        let job = next(&queue).await;
        assert_eq!(job.headers().get("task-kind").unwrap(), "uneven");
        minutes.push(String::from_utf8_lossy(job.payload()).parse::<u64>().unwrap());
        job.done().await.unwrap();
    }
    assert!(minutes.windows(2).all(|two| two[1] == two[0] + 2), "{minutes:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_tick_can_be_cancelled_ahead_by_its_id() -> Result<()> {
    let queue = quick(&MemoryLog::new(), &MemoryStore::new()).build().await?;
    let schedule = every(600);
    let now = common::wall_now();
    let first = schedule.next_after(now).unwrap();
    let id = TaskId::new(format!("t@1.{}000", unix_seconds(first)))?;
    queue.jobs().cancel(&id).await?;
    start(queue.publisher(), PeriodicTask::new("t", schedule.clone(), payload));
    let mut job = next(&queue).await;
    if unix_seconds(first) > job.payload_seconds() {
        // One that was less than a minute old.
        soon(job.done()).await.unwrap();
        job = next(&queue).await;
    }
    assert_eq!(job.payload_seconds(), unix_seconds(schedule.next_after(first).unwrap()));
    assert_eq!(queue.jobs().get(&id).await?.status, JobStatus::Cancelled);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_closed_log_ends_the_run_with_an_error() -> Result<()> {
    let log = Arc::new(MemoryLog::new());
    let publisher = Queue::builder("emails").broker(log.clone()).build_publisher().await?;
    log.close().await?;
    let scheduler = Scheduler::new(publisher).add(PeriodicTask::new("t", every(60), payload))?;
    let e = soon(scheduler.run()).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Closed, "{e}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_closure_ends_the_run_with_it() -> Result<()> {
    let publisher = quick(&MemoryLog::new(), &MemoryStore::new()).build_publisher().await?;
    let scheduler =
        Scheduler::new(publisher).add(PeriodicTask::new("t", every(60), |_| panic!("no task")))?;
    let ended = soon(tokio::spawn(scheduler.run())).await;
    assert!(ended.unwrap_err().is_panic());
    Ok(())
}

/// A log that refuses all records on demand.
#[derive(Clone, Debug, Default)]
struct Refusing {
    log: MemoryLog,
    refuses: Arc<AtomicBool>,
}

forward!(impl Log for Refusing by log {
    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        if self.refuses.load(Ordering::Relaxed) {
            // Permanent, so that the publisher doesn't retry: its timeout would run in real time.
            let e = Error::not_applied(ErrorKind::Denied, "append").with_retry(Retry::No);
            return records.iter().map(|_| Err(e.clone())).collect();
        }
        self.log.append(to, records).await
    }
});
forward!(impl Broker for Refusing by log);

#[tokio::test(start_paused = true)]
async fn refused_ticks_are_retried_for_as_long_as_the_policy_allows() -> Result<()> {
    let (log, store) = (Refusing::default(), MemoryStore::new());
    let queue = quick(&log.log, &store).build().await?;
    let publisher = Queue::builder("emails").broker(log.clone()).build_publisher().await?;
    let scheduler = Scheduler::new(publisher)
        .add(PeriodicTask::new("all", every(100), payload).missed(Missed::RunAll { within: 3_000 * SECOND }))?
        .add(PeriodicTask::new("last", every(100), payload).missed(Missed::RunLast))?
        .add(PeriodicTask::new("skip", every(100), payload))?;
    log.refuses.store(true, Ordering::Relaxed);
    tokio::spawn(scheduler.run());
    none_within(&queue, 1_000 * SECOND).await;
    // All that is due is a minute late.
    while unix_seconds(common::wall_now()) % 100 != 62 {
        sleep(SECOND / 2).await;
    }
    log.refuses.store(false, Ordering::Relaxed);
    let mut times = BTreeMap::<String, Vec<u64>>::new();
    while let Ok(job) = tokio::time::timeout(16 * SECOND, queue.get_job()).await {
        let job = job?;
        times.entry(job.id().as_str()[..3].to_owned()).or_default().push(job.payload_seconds());
        soon(job.done()).await.unwrap();
    }
    let all = &mut times["all"].clone();
    all.sort_unstable();
    let expected: Vec<_> = (0..30).map(|n| all[0] + 100 * n).collect();
    assert_eq!(*all, expected);
    assert_eq!(times["las"], [all[29]]);
    assert!(!times.contains_key("ski"), "{times:?}");
    Ok(())
}
