//! The worker, on the in-memory pair.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{PATIENCE, quick, records};
use kafkaq::{
    JobStatus, Queue, Task, TaskId,
    backend::Record,
    memory::{MemoryLog, MemoryStore},
    worker::{
        Backoff, BoxError, Ctx, Failure, Options, Outcome, ResultExt, StopReason, TaskType, Worker,
        WorkerBuilder, WorkerHandle, WorkerReport,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, sleep};

const LEASE: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Greet {
    name: String,
}

impl TaskType for Greet {
    const KIND: &'static str = "greet";
    const VERSION: u16 = 3;

    fn upgrade(from: u16, payload: &[u8]) -> Result<Self, BoxError> {
        match from {
            2 => Ok(Greet { name: String::from_utf8(payload.to_vec())? }),
            _ => Err("too old".into()),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Count(u32);

impl TaskType for Count {
    const KIND: &'static str = "count";
}

fn greet(name: &str) -> Greet {
    Greet { name: name.to_owned() }
}

/// What handlers have seen.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    async fn until(&self, n: usize) -> Vec<String> {
        until("handlers to be called", || self.0.lock().unwrap().len() >= n).await;
        self.all()
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited for {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn queue() -> Queue {
    Queue::builder("greetings").lease_duration(LEASE).build().await.unwrap()
}

async fn status(queue: &Queue, id: &TaskId) -> JobStatus {
    queue.jobs().get(id).await.unwrap().status
}

async fn until_status(queue: &Queue, id: &TaskId, wanted: JobStatus) {
    let begun = std::time::Instant::now();
    while status(queue, id).await != wanted {
        assert!(begun.elapsed() < PATIENCE, "{id} is {:?}", status(queue, id).await);
        sleep(Duration::from_millis(50)).await;
    }
}

async fn stop(mut running: WorkerHandle) -> WorkerReport {
    running.stop();
    running.stopped().await.unwrap()
}

fn worker(queue: &Queue) -> WorkerBuilder {
    Worker::builder(queue.clone())
}

fn handler<S>(seen: &Seen) -> impl Fn(Ctx<S>, Greet) -> std::future::Ready<()> + use<S> {
    let seen = seen.clone();
    move |_, task| {
        seen.note(task.name);
        std::future::ready(())
    }
}

#[tokio::test(start_paused = true)]
async fn each_outcome_reaches_the_queue() {
    let queue = queue().await;
    let seen = Seen::default();
    let told = seen.clone();
    let running = worker(&queue)
        .state(told)
        .retry(Backoff::fixed(10 * SECOND).jitter(false).max_failures(3))
        .on(async |ctx: Ctx<Seen>, task: Greet| -> Result<(), Failure> {
            ctx.state().note(format!("{} {} {}", task.name, ctx.attempt(), ctx.failures()));
            match (task.name.as_str(), ctx.attempt()) {
                ("reject", _) => "x".parse::<u32>().map(drop).reject(),
                ("retry", 1..=2) => Ok("x".parse::<u32>().map(drop)?),
                ("retry in", 1) => Err("not yet").retry_in(60 * SECOND),
                ("snooze", 1) => Err(Failure::snooze(60 * SECOND)),
                ("fail", _) => Err(Failure::retry("as ever")),
                _ => Ok(()),
            }
        })
        .start()
        .unwrap();
    let mut ids = HashMap::new();
    for name in ["done", "reject", "retry", "retry in", "snooze", "fail"] {
        ids.insert(name, queue.enqueue(greet(name)).await.unwrap());
    }
    for (name, wanted) in [
        ("done", JobStatus::Done),
        ("reject", JobStatus::Dead),
        ("retry", JobStatus::Done),
        ("retry in", JobStatus::Done),
        ("snooze", JobStatus::Done),
        ("fail", JobStatus::Dead),
    ] {
        until_status(&queue, &ids[name], wanted).await;
    }
    let report = stop(running).await;
    let mut seen = seen.all();
    seen.sort();
    let wanted = [
        "done 1 0",
        "fail 1 0",
        "fail 2 1",
        "fail 3 2",
        "reject 1 0",
        "retry 1 0",
        "retry 2 1",
        "retry 3 2",
        "retry in 1 0",
        "retry in 2 1",
        "snooze 1 0",
        "snooze 2 0",
    ];
    assert_eq!(seen, wanted);
    assert_eq!((report.done, report.retried, report.snoozed, report.dead_lettered), (4, 5, 1, 2), "{report}");
    assert_eq!(report.unconfirmed + report.lost + report.released + report.panicked + report.timed_out, 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_no_handler_can_read_is_a_dead_letter_with_the_reason() {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let queue = quick(&log, &store).partitions(1).build().await.unwrap();
    let seen = Seen::default();
    let running = worker(&queue).on(handler(&seen)).start().unwrap();
    let mut reasons = Vec::new();
    let of = |kind: Option<&'static str>, version: Option<&'static str>, payload: &'static str| {
        let task = Task::new(payload);
        let task = kind.into_iter().fold(task, |task, kind| task.with_header("task-kind", kind));
        version.into_iter().fold(task, |task, version| task.with_header("task-version", version))
    };
    for (task, wanted) in [
        (of(None, None, "{}"), "no kind"),
        (of(Some("wave"), None, "{}"), "`wave`"),
        (of(Some("greet"), Some("4"), "{}"), "newer than 3"),
        (of(Some("greet"), Some("x"), "{}"), "`x` is not the version"),
        (of(Some("greet"), Some("1"), "{}"), "too old"),
        (of(Some("greet"), Some("3"), "{\"nom\": 1}"), "missing field `name`"),
    ] {
        let id = queue.publish(task).await.unwrap();
        until_status(&queue, &id, JobStatus::Dead).await;
        reasons.push(wanted);
    }
    let letters = records(&log, "emails.kafkaq.dead", reasons.len()).await;
    let said = |wanted: &&str| {
        let reason = |letter: &Record| letter.headers.get("kafkaq-reason").map(|r| r.to_vec()).unwrap();
        letters.iter().any(|letter| String::from_utf8(reason(letter)).unwrap().contains(*wanted))
    };
    assert!(reasons.iter().all(said), "{letters:?}");
    let old = queue.publish(of(Some("greet"), Some("2"), "Ada")).await.unwrap();
    until_status(&queue, &old, JobStatus::Done).await;
    assert_eq!(seen.all(), ["Ada"]);
    assert_eq!(stop(running).await.dead_lettered, 6);
}

#[tokio::test(start_paused = true)]
async fn otherwise_gets_what_no_other_handler_is_for() {
    let queue = queue().await;
    let seen = Seen::default();
    let told = seen.clone();
    let running = worker(&queue)
        .on(handler(&seen))
        .otherwise(move |ctx: Ctx| {
            told.note(format!("otherwise {}", String::from_utf8_lossy(ctx.payload())));
            async {}
        })
        .start()
        .unwrap();
    queue.publish(Task::new("of another program")).await.unwrap();
    queue.enqueue(Count(1)).await.unwrap();
    queue.enqueue(greet("Ada")).await.unwrap();
    let mut seen = seen.until(3).await;
    seen.sort();
    assert_eq!(seen, ["Ada", "otherwise 1", "otherwise of another program"]);
    assert_eq!(stop(running).await.done, 3);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_three_leases_runs_once() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .on(async |ctx: Ctx<Seen>, task: Greet| {
            let first = ctx.deadline();
            sleep(3 * LEASE).await;
            assert!(ctx.deadline() >= first + 2 * LEASE, "it was renewed");
            ctx.state().note(task.name);
        })
        .start()
        .unwrap();
    let id = queue.enqueue(greet("Ada")).await.unwrap();
    until_status(&queue, &id, JobStatus::Done).await;
    let report = stop(running).await;
    assert_eq!((report.done, seen.all().len()), (1, 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_told_that_its_time_is_up_and_dropped_if_it_goes_on() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .grace(2 * SECOND)
        .retry(Backoff::fixed(SECOND).max_failures(1))
        .on_with(
            async |ctx: Ctx<Seen>, task: Greet| -> Result<(), Failure> {
                let begun = Instant::now();
                let reason = ctx.stop().requested().await;
                ctx.state().note(format!("{} {reason:?} {:?}", task.name, begun.elapsed().as_secs()));
                if task.name == "goes on" {
                    sleep(Duration::from_secs(3600)).await;
                    ctx.state().note("never");
                }
                Ok(())
            },
            Options::new().timeout(10 * SECOND),
        )
        .start()
        .unwrap();
    let ends = queue.enqueue(greet("ends")).await.unwrap();
    until_status(&queue, &ends, JobStatus::Done).await;
    let goes_on = queue.enqueue(greet("goes on")).await.unwrap();
    until_status(&queue, &goes_on, JobStatus::Dead).await;
    assert_eq!(seen.all(), ["ends TimedOut 10", "goes on TimedOut 10"]);
    let report = stop(running).await;
    assert_eq!((report.timed_out, report.done, report.dead_lettered), (2, 1, 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_with_its_place_and_the_worker_goes_on() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .retry(Backoff::fixed(SECOND))
        .on(async |ctx: Ctx<Seen>, task: Greet| {
            if ctx.attempt() == 1 {
                panic!("{} is not at home", task.name);
            }
            ctx.state().note(ctx.history()[0].reason.clone());
        })
        .start()
        .unwrap();
    queue.enqueue(greet("Ada")).await.unwrap();
    let told = seen.until(1).await.remove(0);
    assert!(told.starts_with("panicked at") && told.contains("worker.rs:"), "{told}");
    assert!(told.ends_with(": Ada is not at home"), "{told}");
    assert_eq!(stop(running).await.panicked, 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_interrupted_by_a_shutdown_is_given_back_and_counts_as_no_failure() {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let seen = Seen::default();
    let start = async |name: &'static str| {
        let queue = quick(&log, &store).lease_duration(LEASE).build().await.unwrap();
        let running = Worker::builder(queue.clone())
            .state(seen.clone())
            .shutdown_limit(5 * SECOND)
            .on(move |ctx: Ctx<Seen>, task: Greet| async move {
                ctx.state().note(format!("{name}: {} {} {}", task.name, ctx.attempt(), ctx.failures()));
                if name == "second" {
                    return Ok(());
                }
                let reason = ctx.stop().requested().await;
                assert_eq!(reason, StopReason::ShuttingDown);
                match task.name.as_str() {
                    "ends" => Ok(()),
                    "fails" => Err(Failure::retry("interrupted")),
                    _ => std::future::pending().await,
                }
            })
            .start()
            .unwrap();
        (queue, running)
    };
    let (queue, running) = start("first").await;
    let mut ids = Vec::new();
    for name in ["ends", "fails", "ignores it"] {
        ids.push(queue.enqueue(greet(name)).await.unwrap());
    }
    seen.until(3).await;
    let stopped = Instant::now();
    let report = stop(running).await;
    assert!(stopped.elapsed() < 7 * SECOND, "{:?}", stopped.elapsed());
    assert_eq!((report.done, report.released), (1, 2), "{report}");
    assert_eq!(report.timed_out, 0, "{report}");

    let (queue, running) = start("second").await;
    for id in &ids {
        until_status(&queue, id, JobStatus::Done).await;
    }
    let mut seen = seen.all().split_off(3);
    seen.sort();
    assert_eq!(seen, ["second: fails 2 0", "second: ignores it 2 0"]);
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn a_second_stop_waits_for_nobody() {
    let queue = queue().await;
    let seen = Seen::default();
    let mut running = worker(&queue)
        .state(seen.clone())
        .shutdown_limit(Duration::from_secs(3600))
        .on(async |ctx: Ctx<Seen>, task: Greet| {
            ctx.state().note(task.name);
            std::future::pending::<()>().await;
        })
        .start()
        .unwrap();
    queue.enqueue(greet("Ada")).await.unwrap();
    seen.until(1).await;
    let stopped = Instant::now();
    running.stop();
    sleep(SECOND).await;
    running.stop_now();
    let report = running.stopped().await.unwrap();
    assert!(stopped.elapsed() < 5 * SECOND, "{:?}", stopped.elapsed());
    assert_eq!(report.released, 1, "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_task_stops_its_handler() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .on(async |ctx: Ctx<Seen>, _: Greet| {
            ctx.state().note("begun");
            let reason = ctx.stop().requested().await;
            ctx.state().note(format!("{reason:?}"));
        })
        .start()
        .unwrap();
    let id = queue.enqueue(greet("Ada")).await.unwrap();
    seen.until(1).await;
    queue.jobs().cancel(&id).await.unwrap();
    assert_eq!(seen.until(2).await, ["begun", "Cancelled"]);
    let report = stop(running).await;
    assert_eq!((report.lost, report.done), (1, 0), "{report}");
}

/// Counts how many handlers run at once.
#[derive(Clone, Default)]
struct Load {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    all: Arc<AtomicUsize>,
}

impl Load {
    async fn bear(&self) {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
        sleep(SECOND).await;
        self.now.fetch_sub(1, SeqCst);
        self.all.fetch_add(1, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn concurrency_holds_for_the_worker_and_for_a_kind() {
    let queue = queue().await;
    let (greeting, counting) = (Load::default(), Load::default());
    let (g, c) = (greeting.clone(), counting.clone());
    let running = worker(&queue)
        .concurrency(8)
        .on_with(
            move |_: Ctx, _: Greet| {
                let load = g.clone();
                async move { load.bear().await }
            },
            Options::new().concurrency(2),
        )
        .on(move |_: Ctx, _: Count| {
            let load = c.clone();
            async move { load.bear().await }
        })
        .start()
        .unwrap();
    let begun = Instant::now();
    // Without the limit of their kind some three of them would run at once.
    for outcome in queue.enqueue_many((0..18).map(|n| greet(&n.to_string()))).await {
        outcome.unwrap();
    }
    for outcome in queue.enqueue_many((0..40).map(Count)).await {
        outcome.unwrap();
    }
    until("all to be done", || counting.all.load(SeqCst) == 40 && greeting.all.load(SeqCst) == 18).await;
    assert!(begun.elapsed() < 20 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(greeting.most.load(SeqCst), 2);
    assert!((6..=8).contains(&counting.most.load(SeqCst)), "{}", counting.most.load(SeqCst));
    assert_eq!(stop(running).await.done, 58);
}

#[tokio::test(start_paused = true)]
async fn a_rate_spaces_the_starts_of_a_kind() {
    let queue = queue().await;
    let starts = Arc::new(Mutex::new(Vec::new()));
    let told = starts.clone();
    let running = worker(&queue)
        .on_with(
            move |_: Ctx, _: Greet| {
                told.lock().unwrap().push(Instant::now());
                async {}
            },
            Options::new().rate(4.0),
        )
        .start()
        .unwrap();
    for outcome in queue.enqueue_many((0..9).map(|n| greet(&n.to_string()))).await {
        outcome.unwrap();
    }
    until("all to be started", || starts.lock().unwrap().len() == 9).await;
    let starts = starts.lock().unwrap().clone();
    let gaps: Vec<_> = starts.windows(2).map(|two| two[1] - two[0]).collect();
    // The clock of the tests has milliseconds.
    assert!(gaps.iter().all(|gap| *gap >= Duration::from_millis(245)), "{gaps:?}");
    assert!(starts[8] - starts[0] < 3 * SECOND, "{gaps:?}");
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_enqueues_is_there_once_though_it_runs_twice() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .retry(Backoff::fixed(SECOND))
        .on(async |ctx: Ctx<Seen>, task: Greet| -> Result<(), Failure> {
            for n in 0..3 {
                ctx.enqueue(Count(n)).await?;
            }
            ctx.state().note(task.name);
            if ctx.attempt() == 1 { Err(Failure::retry("once more")) } else { Ok(()) }
        })
        .on(async |ctx: Ctx<Seen>, task: Count| ctx.state().note(format!("count {}", task.0)))
        .start()
        .unwrap();
    let id = queue.enqueue(greet("Ada")).await.unwrap();
    until_status(&queue, &id, JobStatus::Done).await;
    sleep(10 * SECOND).await;
    let mut seen = seen.all();
    seen.sort();
    assert_eq!(seen, ["Ada", "Ada", "count 0", "count 1", "count 2"]);
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_task_is_not_started() {
    let queue = queue().await;
    let seen = Seen::default();
    let past = SystemTime::UNIX_EPOCH + SECOND;
    let dropped = queue.enqueue(greet("dropped")).expires(past).await.unwrap();
    let dead = queue.enqueue(greet("dead")).expires_to_dead_letter(past).await.unwrap();
    let later = SystemTime::now() + Duration::from_secs(24 * 3600);
    let started = queue.enqueue(greet("started")).expires(later).await.unwrap();
    let running = worker(&queue).on(handler(&seen)).start().unwrap();
    until_status(&queue, &dropped, JobStatus::Done).await;
    until_status(&queue, &dead, JobStatus::Dead).await;
    until_status(&queue, &started, JobStatus::Done).await;
    assert_eq!(seen.all(), ["started"]);
    let report = stop(running).await;
    assert_eq!((report.done, report.expired, report.dead_lettered), (1, 1, 1), "{report}");
}

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

/// In real time: the threads are.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn handlers_that_block_all_their_threads_keep_their_leases() {
    let lease = Duration::from_secs(2);
    let queue = Queue::builder("greetings").lease_duration(lease).build().await.unwrap();
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .threads(2)
        .on(move |ctx: Ctx<Seen>, task: Greet| async move {
            ctx.state().note(task.name);
            std::thread::sleep(3 * lease);
        })
        .on_blocking(
            move |ctx: Ctx<Seen>, task: Count| {
                ctx.state().note(format!("blocking {}", task.0));
                std::thread::sleep(3 * lease);
            },
            Options::new(),
        )
        .start()
        .unwrap();
    let mut ids = Vec::new();
    for n in 0..2 {
        ids.push(queue.enqueue(greet(&n.to_string())).await.unwrap());
        ids.push(queue.enqueue(Count(n)).await.unwrap());
    }
    for id in &ids {
        until_status(&queue, id, JobStatus::Done).await;
    }
    let report = stop(running).await;
    let mut seen = seen.all();
    seen.sort();
    assert_eq!(seen, ["0", "1", "blocking 0", "blocking 1"]);
    assert_eq!((report.done, report.lost), (4, 0), "{report}");
}

/// A worker with one slot, whose handler blocks on the task `stuck` until it is released.
async fn keeps_its_slot(
    queue: &Queue,
    running: WorkerHandle,
    seen: &Seen,
    release: &std::sync::mpsc::Sender<()>,
) {
    let stuck = queue.enqueue(greet("stuck")).await.unwrap();
    until_status(queue, &stuck, JobStatus::Dead).await;
    let next = queue.enqueue(greet("next")).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(seen.all(), ["stuck"], "its slot is taken");
    release.send(()).unwrap();
    until_status(queue, &next, JobStatus::Done).await;
    stop(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_handler_that_can_not_be_stopped_lets_its_lease_go_and_keeps_its_place() {
    let queue = queue().await;
    let seen = Seen::default();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let running = worker(&queue)
        .state(seen.clone())
        .threads(2)
        .concurrency(1)
        .timeout(Duration::from_millis(100))
        .grace(Duration::from_millis(100))
        .retry(Backoff::fixed(Duration::ZERO).max_failures(1))
        .on(move |ctx: Ctx<Seen>, task: Greet| {
            let blocked = blocked.clone();
            async move {
                ctx.state().note(task.name.clone());
                if task.name == "stuck" {
                    let _ = blocked.lock().unwrap().recv();
                }
            }
        })
        .start()
        .unwrap();
    keeps_its_slot(&queue, running, &seen, &release).await;
}

/// It can't be dropped, so its slot stays taken, and it isn't executed twice at once here.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_blocking_handler_that_goes_on_keeps_its_slot() {
    let queue = queue().await;
    let seen = Seen::default();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Mutex::new(blocked);
    let running = worker(&queue)
        .state(seen.clone())
        .concurrency(1)
        .timeout(Duration::from_millis(100))
        .grace(Duration::ZERO)
        .retry(Backoff::fixed(Duration::ZERO).max_failures(1))
        .on_blocking(
            move |ctx: Ctx<Seen>, task: Greet| {
                ctx.state().note(task.name.clone());
                if task.name == "stuck" {
                    let _ = blocked.lock().unwrap().recv();
                }
            },
            Options::new(),
        )
        .start()
        .unwrap();
    keeps_its_slot(&queue, running, &seen, &release).await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_goes_on_by_snoozing_enqueues_what_is_new() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .on(async |ctx: Ctx<Seen>, _: Greet| -> Result<(), Failure> {
            // In another order, twice the same, and one that is new each time.
            let last = ctx.attempt();
            let all = if last == 1 { vec![1, 7, 7] } else { vec![7, 7, last] };
            for n in all {
                ctx.enqueue(Count(n)).await?;
            }
            if last < 3 { Err(Failure::snooze(60 * SECOND)) } else { Ok(()) }
        })
        .on(async |ctx: Ctx<Seen>, task: Count| ctx.state().note(task.0.to_string()))
        .start()
        .unwrap();
    let id = queue.enqueue(greet("Ada")).await.unwrap();
    until_status(&queue, &id, JobStatus::Done).await;
    sleep(10 * SECOND).await;
    let mut seen = seen.all();
    seen.sort();
    assert_eq!(seen, ["1", "2", "3", "7", "7"]);
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_leaves_out_what_was_given_up_and_is_dropped_with_its_last_execution() {
    let queue = queue().await;
    let seen = Seen::default();
    let told = seen.clone();
    let running = worker(&queue)
        .grace(Duration::ZERO)
        .retry(Backoff::fixed(3600 * SECOND).jitter(false))
        .on_batch(
            100,
            // The cancelling is noticed when the lease is renewed, before the batch begins.
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

#[derive(Serialize, Deserialize)]
struct Bomb;

impl TaskType for Bomb {
    const KIND: &'static str = "bomb";

    fn decode(_: &[u8]) -> Result<Self, BoxError> {
        panic!("it goes off")
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_anywhere_is_a_failure() {
    let queue = queue().await;
    let outcomes = |tasks: Vec<(Ctx, Bomb)>| async move { vec![Outcome::Done; tasks.len()] };
    let running = worker(&queue)
        .retry(Backoff::custom(|_, _| panic!("this one too")).max_failures(3))
        .on_batch(10, SECOND, outcomes, Options::new().timeout(Duration::MAX))
        .start()
        .unwrap();
    let id = queue.enqueue(Bomb).await.unwrap();
    until_status(&queue, &id, JobStatus::Dead).await;
    let report = stop(running).await;
    assert!((2..=20).contains(&report.panicked), "{report}");
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_turn_and_goes_leaves_room_for_others() {
    let queue = queue().await;
    let seen = Seen::default();
    let running = worker(&queue)
        .state(seen.clone())
        .concurrency(4)
        .on_with(
            async |ctx: Ctx<Seen>, task: Greet| {
                ctx.state().note(task.name);
                let _ = ctx.stop().requested().await;
            },
            Options::new().concurrency(1),
        )
        .on(async |ctx: Ctx<Seen>, task: Count| ctx.state().note(format!("count {}", task.0)))
        .start()
        .unwrap();
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(queue.enqueue(greet(&n.to_string())).await.unwrap());
    }
    seen.until(1).await;
    let count = queue.enqueue(Count(7)).await.unwrap();
    for id in &ids[1..] {
        queue.jobs().cancel(id).await.unwrap();
    }
    until_status(&queue, &count, JobStatus::Done).await;
    assert_eq!(seen.all().len(), 2, "one of the first kind runs on: {:?}", seen.all());
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn an_explicit_delay_holds_also_when_the_worker_stops() {
    let queue = queue().await;
    let running = worker(&queue)
        .grace(Duration::ZERO)
        .on(async |ctx: Ctx, task: Greet| -> Result<(), Failure> {
            let _ = ctx.stop().requested().await;
            match task.name.as_str() {
                "later" => Err(Failure::retry_in(60 * SECOND, "too many requests")),
                _ => std::future::pending().await,
            }
        })
        .start()
        .unwrap();
    queue.enqueue(greet("later")).await.unwrap();
    queue.enqueue(greet("goes on")).await.unwrap();
    sleep(5 * SECOND).await;
    let report = stop(running).await;
    assert_eq!((report.retried, report.released), (1, 1), "{report}");
}

#[tokio::test(start_paused = true)]
async fn settings_that_make_no_sense_are_refused() {
    let queue = queue().await;
    let seen = Seen::default();
    let with = || worker(&queue).on(handler(&seen));
    for (builder, wanted) in [
        (worker(&queue), "no handler"),
        (with().on(handler(&seen)), "two handlers for `greet`"),
        (with().concurrency(0), "concurrency of 0"),
        (with().concurrency(usize::MAX), "concurrency of 1844"),
        (with().threads(0), "0 threads"),
        (worker(&queue).on_with(handler(&seen), Options::new().rate(1e-20)), "`greet`"),
        (worker(&queue).on_with(handler(&seen), Options::new().concurrency(0)), "`greet`"),
        (worker(&queue).on_with(handler(&seen), Options::new().rate(0.0)), "`greet`"),
    ] {
        let e = builder.start().unwrap_err();
        assert!(e.to_string().contains(wanted) && e.advice().is_some(), "{e}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_worker_ends_with_its_queue() {
    let queue = queue().await;
    let mut running = worker(&queue).on(handler(&Seen::default())).start().unwrap();
    queue.enqueue(greet("Ada")).await.unwrap();
    queue.shutdown(SECOND).await.unwrap();
    let e = running.stopped().await.unwrap_err();
    assert_eq!(e.kind(), kafkaq::ErrorKind::Closed, "{e}");
}
