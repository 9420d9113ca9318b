//! One task at a time per key, across several workers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use bytes::Bytes;
use common::{forward, stop, until};
use kafkaq::{
    Error, ErrorKind, JobStatus, Queue, QueueBuilder, Result, TaskId,
    backend::{Swap, Swapped},
    memory::{MemoryLog, MemoryStore},
    worker::{Backoff, Ctx, Options, Outcome, StopReason, TaskType, Worker, WorkerHandle},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const LEASE: Duration = Duration::from_secs(30);

#[derive(Clone, Serialize, Deserialize)]
struct Recalculate {
    customer: u32,
}

impl TaskType for Recalculate {
    const KIND: &'static str = "recalculate";
}

#[derive(Serialize, Deserialize)]
struct Bill {
    customer: u32,
}

impl TaskType for Bill {
    const KIND: &'static str = "bill";
}

/// Counts the swaps of leases and of locks. Swaps of locks fail on demand.
#[derive(Clone, Debug, Default)]
struct Store {
    inner: MemoryStore,
    leases: Arc<AtomicUsize>,
    locks: Arc<AtomicUsize>,
    locks_fail: Arc<AtomicBool>,
    locks_refused: Arc<AtomicBool>,
}

forward!(impl LeaseStore for Store by inner {
    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        let locks = swaps.iter().filter(|swap| swap.key.as_str().starts_with("x/")).count();
        self.locks.fetch_add(locks, SeqCst);
        self.leases.fetch_add(swaps.len() - locks, SeqCst);
        if locks > 0 && self.locks_fail.load(SeqCst) {
            return vec![Err(Error::unknown(ErrorKind::Timeout, "swap")); swaps.len()];
        }
        if locks > 0 && self.locks_refused.load(SeqCst) {
            return vec![Err(Error::not_applied(ErrorKind::Denied, "swap")); swaps.len()];
        }
        self.inner.swap(swaps).await
    }
});

/// A log and a store that processes share.
#[derive(Default)]
struct Servers {
    log: MemoryLog,
    store: Store,
}

impl Servers {
    fn builder(&self) -> QueueBuilder {
        Queue::builder("q").broker(self.log.clone()).store(self.store.clone()).lease_duration(LEASE)
    }

    async fn queue(&self) -> Queue {
        self.builder().build().await.unwrap()
    }
}

/// Which keys are being worked on, and what was observed.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    running: HashMap<u32, u32>,
    /// The most keys that were worked on at once.
    most: usize,
    executed: Vec<u32>,
    failures: u32,
}

impl Seen {
    async fn work<S>(&self, ctx: &Ctx<S>, customer: u32, time: Duration) {
        {
            let inside = &mut *self.0.lock().unwrap();
            let running = inside.running.entry(customer).or_default();
            *running += 1;
            assert_eq!(*running, 1, "two of customer {customer} at once");
            inside.failures += ctx.failures();
            inside.most = inside.most.max(inside.running.values().sum::<u32>() as usize);
        }
        sleep(time).await;
        let inside = &mut *self.0.lock().unwrap();
        *inside.running.entry(customer).or_default() -= 1;
        inside.executed.push(customer);
    }

    fn executed(&self) -> usize {
        self.0.lock().unwrap().executed.len()
    }
}

/// A worker whose handler takes this long.
fn worker(queue: Queue, seen: &Seen, time: Duration, options: Options) -> WorkerHandle {
    Worker::builder(queue)
        .state(seen.clone())
        .concurrency(16)
        .retry(Backoff::fixed(SECOND).max_failures(1))
        .on_with(
            move |ctx: Ctx<Seen>, task: Recalculate| async move {
                ctx.state().work(&ctx, task.customer, time).await;
            },
            options,
        )
        .start()
        .unwrap()
}

async fn enqueue(queue: &Queue, customer: u32) -> TaskId {
    let task = queue.enqueue(Recalculate { customer });
    task.key(format!("customer-{customer}")).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn tasks_of_one_key_never_run_at_once_and_those_of_others_do() {
    let (servers, seen) = (Servers::default(), Seen::default());
    let publisher = servers.queue().await.publisher();
    for n in 0..300 {
        let task = publisher.enqueue(Recalculate { customer: n % 5 });
        // Not the key of the lock, so that tasks of one customer come to all workers.
        task.key(format!("{n}")).await.unwrap();
    }
    let by = || Options::new().exclusive_by(|task: &Recalculate| task.customer.to_string());
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(worker(servers.queue().await, &seen, Duration::from_millis(200), by()));
    }
    until("all tasks", || seen.executed() == 300).await;
    assert!(seen.0.lock().unwrap().most > 1);
    assert_eq!(seen.0.lock().unwrap().failures, 0);
    let mut done = 0;
    for worker in workers {
        let report = stop(worker).await;
        assert_eq!((report.retried, report.dead_lettered, report.lost), (0, 0, 0), "{report}");
        done += report.done;
    }
    assert_eq!(done, 300);
}

#[tokio::test(start_paused = true)]
async fn kinds_with_equal_keys_exclude_each_other() {
    let (servers, seen) = (Servers::default(), Seen::default());
    let queue = servers.queue().await;
    let running = Worker::builder(queue.clone())
        .state(seen.clone())
        .on_with(
            async |ctx: Ctx<Seen>, task: Recalculate| ctx.state().work(&ctx, task.customer, SECOND).await,
            Options::new().one_at_a_time(),
        )
        .on_with(
            async |ctx: Ctx<Seen>, task: Bill| ctx.state().work(&ctx, task.customer, SECOND).await,
            Options::new().exclusive_by(|task: &Bill| format!("customer-{}", task.customer)),
        )
        .start()
        .unwrap();
    for _ in 0..3 {
        enqueue(&queue, 17).await;
        queue.enqueue(Bill { customer: 17 }).await.unwrap();
    }
    until("all tasks", || seen.executed() == 6).await;
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn task_without_a_key_is_unaffected() {
    let (servers, running) = (Servers::default(), Arc::new(AtomicUsize::new(0)));
    let queue = servers.queue().await;
    let inside = running.clone();
    let worker = Worker::builder(queue.clone())
        .on_with(
            move |_, _: Recalculate| {
                let inside = inside.clone();
                async move {
                    inside.fetch_add(1, SeqCst);
                    sleep(HOUR).await;
                }
            },
            Options::new().one_at_a_time(),
        )
        .start()
        .unwrap();
    for _ in 0..5 {
        queue.enqueue(Recalculate { customer: 17 }).await.unwrap();
    }
    until("all to run at once", || running.load(SeqCst) == 5).await;
    drop(worker);
}

/// However long a key is busy, its tasks aren't charged a failure and, even with so few hand-outs, aren't
/// dead-lettered; and tasks with other keys are executed meanwhile.
#[tokio::test(start_paused = true)]
async fn key_that_is_busy_for_a_day_kills_no_task_and_stops_no_other() {
    busy_for_a_day(|builder| builder, Options::new().one_at_a_time()).await;
}

#[tokio::test(start_paused = true)]
async fn key_that_is_busy_for_a_day_kills_no_task_with_a_timeout() {
    busy_for_a_day(|builder| builder, Options::new().one_at_a_time().timeout(2 * SECOND)).await;
}

#[tokio::test(start_paused = true)]
async fn key_that_is_busy_for_a_day_kills_no_task_whatever_the_longest_delay() {
    busy_for_a_day(|builder| builder.max_delay(Duration::ZERO), Options::new().one_at_a_time()).await;
}

/// More than may wait in the worker, so that the others are snoozed at once.
#[tokio::test(start_paused = true)]
async fn tasks_of_a_busy_key_are_not_snoozed_more_often_with_a_short_longest_delay() {
    let (servers, seen) = (Servers::default(), Seen::default());
    let queue = servers.builder().max_delay(Duration::ZERO).build().await.unwrap();
    let guard = queue.key_locks().acquire("customer-1").await.unwrap();
    let running = worker(queue.clone(), &seen, SECOND, Options::new().one_at_a_time());
    for _ in 0..20 {
        enqueue(&queue, 1).await;
    }
    sleep(600 * SECOND).await;
    let report = stop(running).await;
    // For up to half a minute each time.
    assert!((20 * 15..20 * 60).contains(&report.snoozed), "{report}");
    drop(guard);
}

async fn busy_for_a_day(with: fn(QueueBuilder) -> QueueBuilder, options: Options) {
    let (servers, seen) = (Servers::default(), Seen::default());
    let queue = with(servers.builder()).max_failures(25).max_handouts(25).build().await.unwrap();
    let locks = with(servers.builder()).build().await.unwrap().key_locks();
    let guard = locks.acquire("customer-1").await.unwrap();
    let running = worker(queue.clone(), &seen, SECOND, options);
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(enqueue(&queue, 1).await);
    }
    for day in 0..24 {
        let begun = Instant::now();
        enqueue(&queue, 100 + day).await;
        until("another key's task", || seen.executed() == day as usize + 1).await;
        assert!(begun.elapsed() < 60 * SECOND, "{:?}", begun.elapsed());
        sleep(HOUR).await;
    }
    assert!(!guard.is_lost());
    for id in &waiting {
        let info = queue.jobs().get(id).await.unwrap();
        assert!(info.status != JobStatus::Dead, "{info:?}");
    }
    drop(guard);
    until("those that waited", || seen.executed() == 28).await;
    for id in waiting {
        while queue.jobs().get(&id).await.unwrap().status != JobStatus::Done {
            sleep(SECOND).await;
        }
        let info = queue.jobs().get(&id).await.unwrap();
        assert!(info.attempts > 5 && info.attempts <= 25, "{info:?}");
        assert_eq!(info.failures, 0);
    }
    assert_eq!(seen.0.lock().unwrap().failures, 0);
    let report = stop(running).await;
    assert_eq!((report.retried, report.dead_lettered, report.lost), (0, 0, 0), "{report}");
    assert_eq!(report.timed_out, 0, "{report}");
}

/// Its tasks are retried until the store accepts the lock, and tasks without a lock are executed meanwhile.
#[tokio::test(start_paused = true)]
async fn store_that_refuses_locks_for_hours_kills_no_task_and_stops_no_other() {
    let (servers, seen) = (Servers::default(), Seen::default());
    let queue = servers.builder().max_failures(25).max_handouts(25).build().await.unwrap();
    servers.store.locks_refused.store(true, SeqCst);
    let running = worker(queue.clone(), &seen, SECOND, Options::new().one_at_a_time());
    // More than the worker executes at once.
    for customer in 0..40 {
        enqueue(&queue, customer).await;
    }
    sleep(12 * HOUR).await;
    let begun = Instant::now();
    queue.enqueue(Recalculate { customer: 100 }).await.unwrap();
    until("the one without a key", || seen.executed() == 1).await;
    assert!(begun.elapsed() < 60 * SECOND, "{:?}", begun.elapsed());
    servers.store.locks_refused.store(false, SeqCst);
    while running.report().done < 41 && begun.elapsed() < 7 * HOUR {
        sleep(SECOND).await;
    }
    let report = stop(running).await;
    assert_eq!((report.done, report.retried, report.dead_lettered), (41, 0, 0), "{report}");
}

#[tokio::test(start_paused = true)]
async fn handler_whose_lock_is_lost_is_told_although_its_lease_is_kept() {
    let servers = Servers::default();
    let queue = servers.queue().await;
    let reason = Arc::new(Mutex::new(None));
    let told = reason.clone();
    let running = Worker::builder(queue.clone())
        .on_with(
            move |ctx: Ctx, _: Recalculate| {
                let told = told.clone();
                async move {
                    let why = ctx.stop().requested().await;
                    *told.lock().unwrap() = Some(why);
                }
            },
            Options::new().one_at_a_time(),
        )
        .start()
        .unwrap();
    enqueue(&queue, 1).await;
    until("the lock to be taken", || servers.store.locks.load(SeqCst) > 0).await;
    let begun = Instant::now();
    servers.store.locks_fail.store(true, SeqCst);
    until("the handler to be told", || reason.lock().unwrap().is_some()).await;
    assert_eq!(*reason.lock().unwrap(), Some(StopReason::LeaseLost));
    assert!(begun.elapsed() < LEASE + SECOND, "{:?}", begun.elapsed());
    stop(running).await;
}

/// The lease of the task is still held, so the task is given back: no failure is counted, and nobody waits for the
/// lease to expire.
#[tokio::test(start_paused = true)]
async fn task_whose_lock_was_lost_is_executed_again_soon_and_has_not_failed() {
    let servers = Servers::default();
    let queue = servers.queue().await;
    let running = Worker::builder(queue.clone())
        .on_with(
            async |ctx: Ctx, _: Recalculate| {
                if ctx.attempt() == 1 {
                    let reason = ctx.stop().requested().await;
                    return Outcome::Retry { delay: None, reason: format!("told to stop: {reason:?}") };
                }
                assert_eq!(ctx.failures(), 0);
                Outcome::Done
            },
            Options::new().one_at_a_time(),
        )
        .start()
        .unwrap();
    let id = enqueue(&queue, 1).await;
    until("the lock to be taken", || servers.store.locks.load(SeqCst) > 0).await;
    let begun = Instant::now();
    servers.store.locks_fail.store(true, SeqCst);
    until("it to be given back", || running.report().released == 1).await;
    assert!(begun.elapsed() < LEASE + SECOND, "{:?}", begun.elapsed());
    servers.store.locks_fail.store(false, SeqCst);
    let begun = Instant::now();
    until("it to be done", || running.report().done == 1).await;
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(queue.jobs().get(&id).await.unwrap().failures, 0);
    let report = stop(running).await;
    assert_eq!((report.lost, report.retried), (0, 0), "{report}");
}

/// On real threads: while the handler runs, nobody else gets its task, whatever the handler was told.
#[tokio::test(flavor = "multi_thread")]
async fn task_whose_lock_was_lost_is_not_given_back_while_its_handler_runs() {
    let servers = Servers::default();
    let queue = servers.builder().lease_duration(SECOND).build().await.unwrap();
    let (attempts, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (seen, may_end) = (attempts.clone(), go_on.clone());
    let running = Worker::builder(queue.clone())
        .grace(Duration::ZERO)
        .on_blocking(
            move |_: Ctx, _: Recalculate| {
                if seen.fetch_add(1, SeqCst) == 0 {
                    while !may_end.load(SeqCst) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            },
            Options::new().one_at_a_time(),
        )
        .start()
        .unwrap();
    enqueue(&queue, 1).await;
    until("the lock to be taken", || servers.store.locks.load(SeqCst) > 0).await;
    servers.store.locks_fail.store(true, SeqCst);
    until("it to be let go", || running.report().lost == 1).await;
    assert_eq!(running.report().released, 0);
    go_on.store(true, SeqCst);
    servers.store.locks_fail.store(false, SeqCst);
    until("it to be done", || running.report().done == 1).await;
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn task_that_waits_is_given_back_when_the_worker_stops() {
    let (servers, seen) = (Servers::default(), Seen::default());
    let queue = servers.queue().await;
    let guard = servers.queue().await.key_locks().acquire("customer-1").await.unwrap();
    let running = worker(queue.clone(), &seen, SECOND, Options::new().one_at_a_time());
    let id = enqueue(&queue, 1).await;
    let locks = servers.store.locks.load(SeqCst);
    until("it to wait", || servers.store.locks.load(SeqCst) > locks).await;
    let report = stop(running).await;
    assert_eq!((report.released, report.retried, report.done), (1, 0, 0), "{report}");
    drop(guard);
    let other = servers.queue().await;
    let second = worker(other.clone(), &seen, SECOND, Options::new().one_at_a_time());
    until("it to be executed", || seen.executed() == 1).await;
    stop(second).await;
    assert_eq!(other.jobs().get(&id).await.unwrap().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn timeout_that_ends_while_a_task_waits_is_no_failure() {
    let (servers, seen) = (Servers::default(), Seen::default());
    let queue = servers.queue().await;
    let guard = servers.queue().await.key_locks().acquire("customer-1").await.unwrap();
    let options = Options::new().one_at_a_time().timeout(2 * SECOND);
    let running = worker(queue.clone(), &seen, SECOND, options);
    enqueue(&queue, 1).await;
    sleep(60 * SECOND).await;
    drop(guard);
    until("it to be executed", || seen.executed() == 1).await;
    assert_eq!(seen.0.lock().unwrap().failures, 0);
    let report = stop(running).await;
    assert!(report.snoozed > 1 && report.timed_out == 0, "{report}");
}

/// The time limit counts from when it has its key.
#[tokio::test(start_paused = true)]
async fn task_that_has_waited_for_its_key_has_its_time_and_no_more() {
    let (servers, seen) = (Servers::default(), Seen::default());
    let queue = servers.queue().await;
    for (time, timed_out) in [(Duration::from_millis(1900), 0), (HOUR, 1)] {
        let guard = servers.queue().await.key_locks().acquire("customer-1").await.unwrap();
        let options = Options::new().one_at_a_time().timeout(2 * SECOND);
        let running = worker(servers.queue().await, &seen, time, options);
        enqueue(&queue, 1).await;
        sleep(3 * SECOND).await;
        drop(guard);
        let begun = Instant::now();
        until("it to end", || running.report().done + running.report().dead_lettered == 1).await;
        let grace = if timed_out == 1 { 10 * SECOND } else { Duration::ZERO };
        assert!(begun.elapsed() < 4 * SECOND + grace, "{:?}", begun.elapsed());
        assert_eq!(stop(running).await.timed_out, timed_out);
    }
}

#[tokio::test(start_paused = true)]
async fn key_function_that_panics_is_a_failure() {
    let (servers, seen) = (Servers::default(), Seen::default());
    let queue = servers.queue().await;
    let options =
        Options::new().exclusive_by(|task: &Recalculate| -> Bytes { panic!("no key for {}", task.customer) });
    let running = worker(queue.clone(), &seen, SECOND, options);
    let id = enqueue(&queue, 7).await;
    while queue.jobs().get(&id).await.unwrap().status != JobStatus::Dead {
        sleep(SECOND).await;
    }
    let history = queue.jobs().get(&id).await.unwrap().history;
    assert!(history.iter().any(|failure| failure.reason.contains("no key for 7")), "{history:?}");
    assert_eq!(stop(running).await.panicked, 1);
}

#[tokio::test(start_paused = true)]
async fn invalid_settings_are_refused() {
    let queue = Servers::default().queue().await;
    let by_bill = Options::new().exclusive_by(|task: &Bill| task.customer.to_string());
    let refused = [
        Worker::builder(queue.clone()).on_with(async |_: Ctx, _: Recalculate| {}, by_bill),
        Worker::builder(queue.clone()).on_batch(
            9,
            SECOND,
            async |tasks: Vec<(Ctx, Recalculate)>| tasks.iter().map(|_| ()).collect::<Vec<_>>(),
            Options::new().one_at_a_time(),
        ),
    ];
    for (worker, says) in refused.into_iter().zip(["a key of `bill`", "batches"]) {
        let e = worker.start().unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(says), "{e}");
    }
}

/// The cost that the worker's documentation states.
#[tokio::test(start_paused = true)]
async fn task_without_contention_costs_two_swaps_more() {
    let mut swaps = Vec::new();
    for options in [Options::new(), Options::new().one_at_a_time()] {
        let (servers, seen) = (Servers::default(), Seen::default());
        let queue = servers.queue().await;
        let running = worker(queue.clone(), &seen, Duration::from_millis(10), options);
        for customer in 0..50 {
            enqueue(&queue, customer).await;
        }
        until("all tasks", || seen.executed() == 50).await;
        stop(running).await;
        sleep(SECOND).await;
        swaps.push((servers.store.leases.load(SeqCst), servers.store.locks.load(SeqCst)));
    }
    assert_eq!(swaps, [(100, 0), (100, 100)]);
}

/// Handlers that block have threads of their own, so this takes real time.
#[tokio::test(flavor = "multi_thread")]
async fn blocking_handlers_of_one_key_never_run_at_once() {
    let (servers, inside, done) =
        (Servers::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let queue = servers.queue().await;
    let mut workers = Vec::new();
    for _ in 0..2 {
        let (inside, done) = (inside.clone(), done.clone());
        let handler = move |_: Ctx, _: Recalculate| {
            assert_eq!(inside.fetch_add(1, SeqCst), 0, "two at once");
            std::thread::sleep(Duration::from_millis(2));
            inside.fetch_sub(1, SeqCst);
            done.fetch_add(1, SeqCst);
        };
        let by = Options::new().exclusive_by(|task: &Recalculate| task.customer.to_string());
        workers.push(Worker::builder(servers.queue().await).on_blocking(handler, by).start().unwrap());
    }
    for n in 0..60 {
        queue.enqueue(Recalculate { customer: 17 }).key(n.to_string()).await.unwrap();
    }
    until("all tasks", || done.load(SeqCst) == 60).await;
    for worker in workers {
        assert_eq!(stop(worker).await.panicked, 0);
    }
}
