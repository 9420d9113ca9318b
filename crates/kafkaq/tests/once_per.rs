//! One execution per key and window, in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Random, next, none_within, quick, soon, wall_now};
use kafkaq::{
    Error, ErrorKind, Queue, QueueBuilder, Task, TaskId,
    memory::{MemoryLog, MemoryStore},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, SystemTime},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const SECOND: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(10);
/// The clock skew that `quick` sets.
const SKEW: Duration = Duration::from_millis(20);

fn recalculate(key: &str) -> Task {
    Task::new(key.to_owned()).with_once_per(key.to_owned(), WINDOW)
}

fn pair() -> QueueBuilder {
    quick(&MemoryLog::new(), &MemoryStore::new())
}

#[tokio::test(start_paused = true)]
async fn calls_of_many_publishers_are_one_execution_per_window_and_none_is_missed() {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    // Ids are forgotten as soon as the settings allow, long before a window is over.
    let builder =
        || quick(&log, &store).done_retention(2 * SECOND).max_overdue(SECOND).publish_timeout(SECOND);
    let changes = Arc::new(AtomicU64::new(0));
    let mut publishers = JoinSet::new();
    let began = Instant::now();
    for seed in 0..5 {
        let (publisher, changes) = (builder().build().await.unwrap().publisher(), changes.clone());
        publishers.spawn(async move {
            let mut random = Random(seed);
            while began.elapsed() < 30 * WINDOW {
                changes.fetch_add(1, SeqCst);
                publisher.publish(recalculate("customer-17")).await.unwrap();
                sleep(Duration::from_millis(random.below(1000))).await;
            }
        });
    }
    let worker = builder().build().await.unwrap();
    let (mut executed, mut seen) = (Vec::new(), 0);
    while let Ok(job) = timeout(2 * WINDOW, worker.get_job()).await {
        seen = changes.load(SeqCst);
        executed.push(began.elapsed());
        job.unwrap().done().await.unwrap();
    }
    assert_eq!(seen, changes.load(SeqCst), "an execution must begin after the last change");
    assert!(seen > 2_000, "{seen} calls");
    assert!((30..=32).contains(&executed.len()), "{} executions", executed.len());
    for pair in executed.windows(2) {
        let apart = pair[1] - pair[0];
        assert!((WINDOW - SECOND..=WINDOW + SECOND).contains(&apart), "{apart:?} between two");
    }
}

#[tokio::test(start_paused = true)]
async fn change_after_the_begin_of_an_execution_is_followed_by_another() {
    let queue = pair().lease_duration(60 * SECOND).build().await.unwrap();
    let first = queue.publish(recalculate("k")).await.unwrap();
    let running = next(&queue).await;
    assert_eq!(running.id(), &first);
    let second = queue.publish(recalculate("k")).await.unwrap();
    assert_ne!(first, second);
    running.done().await.unwrap();
    let job = next(&queue).await;
    assert_eq!(job.id(), &second);
    job.done().await.unwrap();
    none_within(&queue, 2 * WINDOW).await;
}

/// Publishes on another thread, whose clock shows that time.
fn publish_at(queue: &Queue, clock: SystemTime) -> TaskId {
    let publisher = queue.publisher();
    let published = thread::spawn(move || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap().block_on(async move {
            let ahead = clock.duration_since(wall_now()).expect("a paused clock can't be set back");
            tokio::time::advance(ahead).await;
            publisher.publish(recalculate("k")).await
        })
    });
    published.join().unwrap().unwrap()
}

fn micros(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros()
}

#[tokio::test(start_paused = true)]
async fn publishers_whose_clocks_differ_by_the_skew_miss_no_execution() {
    const SKEW: Duration = Duration::from_secs(3);
    let queue = pair().clock_skew(SKEW).lease_duration(60 * SECOND).build().await.unwrap();
    // Far enough from the system's time for clocks that are behind this one.
    sleep(3600 * SECOND).await;
    let mut published: BTreeMap<TaskId, SystemTime> = BTreeMap::new();
    let mut executed: BTreeSet<TaskId> = BTreeSet::new();
    for step in 0_u64..60 {
        // The true time is this clock's. Some are ahead of it, some behind, by half of the skew.
        let clock = if step % 2 == 0 { wall_now() + SKEW / 2 } else { wall_now() - SKEW / 2 };
        let id = publish_at(&queue, clock);
        assert!(!executed.contains(&id), "{id} was published after its execution had begun");
        published.insert(id, wall_now());
        if let Ok(job) = timeout(SECOND / 2, queue.get_job()).await {
            let job = job.unwrap();
            assert!(micros(wall_now()) >= micros(published[job.id()]));
            assert!(executed.insert(job.id().clone()), "twice");
            job.done().await.unwrap();
        }
    }
    while executed.len() < published.len() {
        let job = next(&queue).await;
        assert!(executed.insert(job.id().clone()), "twice");
        job.done().await.unwrap();
    }
    assert!((3..=6).contains(&executed.len()), "{executed:?}");
}

#[tokio::test(start_paused = true)]
async fn task_is_due_at_the_end_of_its_window_and_the_skew() {
    let queue = pair().build().await.unwrap();
    let id = queue.publish(recalculate("k")).await.unwrap();
    let end: u64 = id.as_str().rsplit('.').next().unwrap().parse().unwrap();
    let job = next(&queue).await;
    let due = SystemTime::UNIX_EPOCH + Duration::from_millis(end) + SKEW;
    // Its clock has whole milliseconds, rounded up.
    assert!(wall_now() + Duration::from_millis(1) >= due, "{:?} before", due.duration_since(wall_now()));
    assert!(wall_now() < due + SECOND);
    assert_eq!(job.key().unwrap(), "k");
    job.done().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn settings_that_could_duplicate_or_miss_an_execution_are_refused() {
    let refused = async |builder: QueueBuilder, task: Task| -> Error {
        let queue = builder.build().await.unwrap();
        let e = soon(queue.publish(task)).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid);
        e
    };
    let says = |e: &Error, what: &str| assert!(e.to_string().contains(what), "{e}");
    says(&refused(pair().done_retention(30 * SECOND), recalculate("k")).await, "done_retention");
    let longest = 60 * SECOND - SKEW;
    let window = |window| Task::new("x").with_once_per("k", window);
    says(&refused(pair(), window(longest + Duration::from_millis(1))).await, "max_delay");
    says(&refused(pair(), window(Duration::ZERO)).await, "whole milliseconds");
    says(&refused(pair(), recalculate("k").with_delay(SECOND)).await, "can't have a delay");
    pair().build().await.unwrap().publish(window(longest)).await.unwrap();
    let far = format!("once/{}@1.{}", "0".repeat(32), u64::MAX);
    let chosen = Task::new("x").with_id(TaskId::new(far).unwrap());
    says(&refused(pair(), chosen).await, "max_delay");
}

/// A task that is published later in the window would find the id done, and its change would be missed.
#[tokio::test(start_paused = true)]
async fn id_of_a_window_that_is_chosen_keeps_its_window() {
    let queue = pair().lease_duration(60 * SECOND).build().await.unwrap();
    let first = recalculate("k");
    let id = queue.publish(first.clone()).await.unwrap();
    for task in [first.with_id(id.clone()), Task::new("k").with_id(id.clone()).with_delay(SECOND / 1000)] {
        assert_eq!(queue.publish(task).await.unwrap(), id);
    }
    let job = next(&queue).await;
    assert_eq!(job.id(), &id);
    let end: u64 = id.as_str().rsplit('.').next().unwrap().parse().unwrap();
    assert!(
        wall_now() + SKEW >= SystemTime::UNIX_EPOCH + Duration::from_millis(end),
        "its window is not over"
    );
    let again = job.task();
    job.done().await.unwrap();
    // Its window is over, so it is an id like another: done here, and new elsewhere.
    assert_eq!(queue.publish(again.clone()).await.unwrap(), id);
    none_within(&queue, 2 * WINDOW).await;
    let other = pair().build().await.unwrap();
    other.publish(again).await.unwrap();
    let began = Instant::now();
    next(&other).await.done().await.unwrap();
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
}

#[cfg(feature = "worker")]
mod typed {
    use super::*;
    use kafkaq::worker::{Ctx, TaskType, Worker};

    macro_rules! kind {
        ($name:ident, $kind:literal) => {
            #[derive(serde::Serialize, serde::Deserialize)]
            struct $name;
            impl TaskType for $name {
                const KIND: &'static str = $kind;
            }
        };
    }
    kind!(Recalculate, "recalculate");
    kind!(Reconstruct, "reconstruct");

    #[tokio::test(start_paused = true)]
    async fn kinds_and_keys_are_executed_once_each() {
        let queue = Queue::builder("q").build().await.unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let note = |kind: &'static str| {
            let seen = seen.clone();
            move |ctx: &Ctx| {
                let key = String::from_utf8(ctx.key().unwrap().to_vec()).unwrap();
                seen.lock().unwrap().push(format!("{kind} {key}"));
            }
        };
        let (recalculated, reconstructed) = (note("recalculate"), note("reconstruct"));
        let mut running = Worker::builder(queue.clone())
            .on(move |ctx, _: Recalculate| {
                recalculated(&ctx);
                std::future::ready(())
            })
            .on(move |ctx, _: Reconstruct| {
                reconstructed(&ctx);
                std::future::ready(())
            })
            .start()
            .unwrap();
        for _ in 0..10 {
            for key in ["a", "b"] {
                queue.enqueue(Recalculate).once_per(key, 3600 * SECOND).await.unwrap();
            }
            queue.enqueue(Reconstruct).key("of its own").once_per("a", 3600 * SECOND).await.unwrap();
        }
        sleep(2 * 3600 * SECOND).await;
        running.stop();
        running.stopped().await.unwrap();
        let mut seen = seen.lock().unwrap().clone();
        seen.sort();
        // The calls may lie on both sides of a window's end.
        assert!(seen.len() <= 6, "{seen:?}");
        seen.dedup();
        assert_eq!(seen, ["recalculate a", "recalculate b", "reconstruct of its own"]);
    }
}
