//! Tasks that share a key: one at a time, and once per window of time.

use crate::shared::{Number, Runs, build, stop, until_all_finished, until_status, worker};
use kafkaq::{
    JobStatus, Queue,
    worker::{Ctx, Options, WorkerHandle},
};
use kafkaq_tests::{Built, Case, PATIENCE, Pair};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::time::sleep;

pub(crate) const CASES: &[Case] = &[
    ("one_at_a_time", |pair| Box::pin(one_at_a_time(pair))),
    ("key_locks", |pair| Box::pin(key_locks(pair))),
    ("once_per", |pair| Box::pin(once_per(pair))),
];

const KEYS: u32 = 3;

/// What runs in both processes.
#[derive(Default)]
struct Inside {
    running: HashMap<u32, u32>,
    most_of_a_key: u32,
    most_in_all: u32,
    /// How many each process has executed.
    executed: [usize; 2],
}

type Shared = Arc<Mutex<Inside>>;

/// Runs until two tasks with different keys have run at once.
async fn work(inside: &Shared, process: usize, key: u32) {
    {
        let inside = &mut *inside.lock().unwrap();
        let of_key = inside.running.entry(key).or_default();
        *of_key += 1;
        inside.most_of_a_key = inside.most_of_a_key.max(*of_key);
        inside.most_in_all = inside.most_in_all.max(inside.running.values().sum());
    }
    while inside.lock().unwrap().most_in_all < 2 {
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_millis(50)).await;
    let inside = &mut *inside.lock().unwrap();
    *inside.running.entry(key).or_default() -= 1;
    inside.executed[process] += 1;
}

async fn process(pair: &Pair, inside: &Shared, process: usize) -> (Queue, WorkerHandle) {
    let queue = build(pair).await;
    let inside = inside.clone();
    let handler = move |_: Ctx, task: Number| {
        let inside = inside.clone();
        async move { work(&inside, process, task.0 % KEYS).await }
    };
    // The tasks themselves have no key, so that those of one customer reach both processes.
    let options = Options::new().exclusive_by(|task: &Number| format!("customer-{}", task.0 % KEYS));
    let running = worker(&queue).on_with(handler, options).start().unwrap();
    (queue, running)
}

async fn one_at_a_time(pair: &Pair) {
    let inside = Shared::default();
    let (one, two) = tokio::join!(process(pair, &inside, 0), process(pair, &inside, 1));
    let (mut ids, begun) = (Vec::new(), Instant::now());
    // It takes a while until both have their assignments.
    while inside.lock().unwrap().executed.iter().any(|executed| *executed < 10) {
        let executed = inside.lock().unwrap().executed;
        assert!(begun.elapsed() < PATIENCE, "executed by each: {executed:?}");
        // No more than one process alone would take in the meantime.
        for outcome in one.0.enqueue_many((0..12).map(Number)).await {
            ids.push(outcome.unwrap());
        }
        let wanted = executed.iter().sum::<usize>() + 8;
        while inside.lock().unwrap().executed.iter().sum::<usize>() < wanted {
            assert!(begun.elapsed() < PATIENCE, "executed by each: {executed:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
    for id in &ids {
        until_status(&one.0, id, JobStatus::Done).await;
    }
    let failed: u64 = [stop(one.1).await, stop(two.1).await].iter().map(|report| report.retried).sum();
    assert_eq!((inside.lock().unwrap().most_of_a_key, failed), (1, 0));
}

/// A key that is locked elsewhere blocks its own tasks, and no others.
async fn key_locks(pair: &Pair) {
    let (queue, elsewhere) = (build(pair).await, build(pair).await);
    let runs = Runs::default();
    let options = Options::new().one_at_a_time();
    let running = worker(&queue).on_with(runs.handler::<Number>(), options).start().unwrap();
    let guard = elsewhere.key_locks().acquire("held").await.unwrap();
    let held = queue.enqueue(Number(0)).key("held").await.unwrap();
    let free = queue.enqueue(Number(1)).key("free").await.unwrap();
    until_status(&queue, &free, JobStatus::Done).await;
    // It has waited for its key in the worker, and was snoozed.
    until_status(&queue, &held, JobStatus::Waiting).await;
    assert_eq!((runs.numbers(), guard.is_lost()), (vec![1], false));
    guard.release().await;
    until_status(&queue, &held, JobStatus::Done).await;
    until_all_finished(pair, &[&queue]).await;
    assert_eq!(runs.numbers(), [0, 1]);
    let report = stop(running).await;
    assert_eq!((report.done, report.retried, report.lost), (2, 0, 0), "{report}");
}

async fn once_per(pair: &Pair) {
    const WINDOW: Duration = Duration::from_secs(4);
    let queue = build(pair).await;
    let elsewhere = pair.queue().built_publisher().await;
    let runs = Runs::default();
    let running = worker(&queue).on(runs.handler::<Number>()).start().unwrap();
    let begun = Instant::now();
    // When each was last published.
    let mut asked = HashMap::new();
    for n in 0..60 {
        let publisher = if n % 2 == 0 { queue.publisher() } else { elsewhere.clone() };
        let key = format!("customer-{}", n % 3);
        let at = Instant::now();
        let id = publisher.enqueue(Number(n)).once_per(key, WINDOW).await.unwrap();
        asked.insert(id, at);
        sleep(Duration::from_millis(100)).await;
    }
    let windows = begun.elapsed().as_secs() / WINDOW.as_secs() + 2;
    assert!((3..=3 * windows).contains(&(asked.len() as u64)), "{} of {windows} windows", asked.len());
    for id in asked.keys() {
        until_status(&queue, id, JobStatus::Done).await;
    }
    until_all_finished(pair, &[&queue]).await;
    let runs = runs.all();
    assert_eq!(runs.len(), asked.len(), "one execution per key and window: {runs:?}");
    for run in &runs {
        assert!(run.at >= asked[&run.id], "{run:?} started before it was last published");
    }
    let report = stop(running).await;
    assert_eq!((report.done, report.retried), (asked.len() as u64, 0), "{report}");
}
