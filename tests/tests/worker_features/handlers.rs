//! Kinds of handlers, and how many of them run.

use crate::shared::{Number, Other, Runs, SECOND, build, stop, until_status, worker};
use kafkaq::{
    JobStatus,
    worker::{Ctx, Options, Outcome},
};
use kafkaq_tests::{Built, Case, Pair, until};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::time::sleep;

pub(crate) const CASES: &[Case] = &[
    ("batch", |pair| Box::pin(batch(pair))),
    ("blocking", |pair| Box::pin(blocking(pair))),
    ("concurrency_of_a_kind", |pair| Box::pin(concurrency_of_a_kind(pair))),
    ("rate_of_a_kind", |pair| Box::pin(rate_of_a_kind(pair))),
];

async fn batch(pair: &Pair) {
    let queue = build(pair).await;
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let told = sizes.clone();
    let handler = move |tasks: Vec<(Ctx, Number)>| {
        told.lock().unwrap().push(tasks.len());
        async move {
            let outcome = |(ctx, task): &(Ctx, Number)| match (task.0, ctx.attempt()) {
                (0, _) => Outcome::Reject("zero".into()),
                (1..=4, 1) => Outcome::Retry { delay: None, reason: "once more".into() },
                _ => Outcome::Done,
            };
            tasks.iter().map(outcome).collect()
        }
    };
    // Longer than the case takes, so that each batch waits until it is full.
    let running = worker(&queue).on_batch(4, 600 * SECOND, handler, Options::new()).start().unwrap();
    let mut ids = Vec::new();
    for outcome in queue.enqueue_many((0..12).map(Number)).await {
        ids.push(outcome.unwrap());
    }
    for (n, id) in ids.iter().enumerate() {
        until_status(&queue, id, if n == 0 { JobStatus::Dead } else { JobStatus::Done }).await;
    }
    let report = stop(running).await;
    assert_eq!(*sizes.lock().unwrap(), [4; 4], "12 tasks, and four of them again");
    assert_eq!((report.done, report.retried, report.dead_lettered), (11, 4, 1), "{report}");
}

/// For longer than a lease. Handlers that block all threads for those that don't are in `watchdog`.
async fn blocking(pair: &Pair) {
    const LEASE: Duration = Duration::from_secs(10);
    let queue = pair.queue().lease_duration(LEASE).built().await;
    let runs = Runs::default();
    let noted = runs.clone();
    let running = worker(&queue)
        .on_blocking(
            move |ctx: Ctx, task: Number| {
                noted.note(&ctx, task.0);
                std::thread::sleep(2 * LEASE);
            },
            Options::new(),
        )
        .start()
        .unwrap();
    let ids = [queue.enqueue(Number(0)).await.unwrap(), queue.enqueue(Number(1)).await.unwrap()];
    for id in &ids {
        until_status(&queue, id, JobStatus::Done).await;
    }
    let report = stop(running).await;
    assert_eq!(runs.numbers(), [0, 1]);
    assert_eq!((report.done, report.lost), (2, 0), "{report}");
}

/// How many handlers are running, and how many have run at once.
#[derive(Default)]
pub(crate) struct Load {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Load {
    /// Runs until `is_enough`.
    pub(crate) async fn bear(&self, is_enough: impl Fn() -> bool) {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
        while !is_enough() {
            sleep(Duration::from_millis(20)).await;
        }
        // Time for an execution beyond the limit to start, if there is one.
        sleep(Duration::from_millis(200)).await;
        self.now.fetch_sub(1, SeqCst);
    }

    pub(crate) fn most(&self) -> usize {
        self.most.load(SeqCst)
    }
}

async fn concurrency_of_a_kind(pair: &Pair) {
    const LIMIT: usize = 2;
    const OTHERS: usize = 6;
    let queue = build(pair).await;
    let loads = Arc::new((Load::default(), Load::default()));
    let (few, many) = (loads.clone(), loads.clone());
    let is_enough = |(few, many): &(Load, Load)| few.most() >= LIMIT && many.most() >= OTHERS;
    let running = worker(&queue)
        .concurrency(64)
        .on_with(
            move |_: Ctx, _: Number| {
                let loads = few.clone();
                async move { loads.0.bear(|| is_enough(&loads)).await }
            },
            Options::new().concurrency(LIMIT),
        )
        .on(move |_: Ctx, _: Other| {
            let loads = many.clone();
            async move { loads.1.bear(|| is_enough(&loads)).await }
        })
        .start()
        .unwrap();
    let mut outcomes = queue.enqueue_many((0..12).map(Number)).await;
    outcomes.extend(queue.enqueue_many((0..12).map(Other)).await);
    for id in outcomes {
        until_status(&queue, &id.unwrap(), JobStatus::Done).await;
    }
    assert_eq!(loads.0.most(), LIMIT);
    assert_eq!(stop(running).await.done, 24);
}

async fn rate_of_a_kind(pair: &Pair) {
    let queue = build(pair).await;
    let (limited, free) = (Runs::default(), Runs::default());
    let running = worker(&queue)
        .on_with(limited.handler::<Number>(), Options::new().rate(4.0))
        // One every 500 s.
        .on_with(free.handler::<Other>(), Options::new().rate(0.002))
        .start()
        .unwrap();
    for outcome in queue.enqueue_many((0..3).map(Other)).await {
        outcome.unwrap();
    }
    // From now on only the rate limits the starts.
    let first = queue.enqueue(Number(9)).await.unwrap();
    until_status(&queue, &first, JobStatus::Done).await;
    let begun = Instant::now();
    for id in queue.enqueue_many((0..9).map(Number)).await {
        until_status(&queue, &id.unwrap(), JobStatus::Done).await;
    }
    let ninth = limited.all().iter().map(|run| run.at - begun).max().unwrap();
    // A late timer is compensated for, by at most a tenth of a second.
    assert!(ninth >= 2 * SECOND - Duration::from_millis(100), "nine of four per second after {ninth:?}");
    until("the first of the other kind", || free.len() == 1).await;
    let report = stop(running).await;
    assert_eq!(free.len(), 1, "{:?}", free.all());
    assert_eq!(report.done, 11, "{report}");
}
