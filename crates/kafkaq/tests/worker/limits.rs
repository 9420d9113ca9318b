//! How many tasks are executed at once, and how often.

use crate::{
    Count, Greet, LEASE, SECOND, Seen, common::forward, greet, handler, queue, stop, until, until_status,
    worker,
};
use kafkaq::{
    JobStatus, Queue,
    backend::{NewRecord, Partition},
    memory::{MemoryLog, MemoryStore},
    worker::{Ctx, Options},
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

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
    // Without the limit of their kind, about three of them would run at once.
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
    // The test clock has a resolution of 1 ms.
    assert!(gaps.iter().all(|gap| *gap >= Duration::from_millis(245)), "{gaps:?}");
    assert!(starts[8] - starts[0] < 3 * SECOND, "{gaps:?}");
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn queued_execution_that_ends_makes_room_for_others() {
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

/// A log that refuses dead letters until it is opened.
#[derive(Clone, Debug)]
struct Gated {
    log: MemoryLog,
    is_open: watch::Sender<bool>,
}

forward!(impl Log for Gated by log {
    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<kafkaq::Result<i64>> {
        if to.topic.ends_with(".dead") {
            self.is_open.subscribe().wait_for(|is_open| *is_open).await.unwrap();
        }
        self.log.append(to, records).await
    }
});
forward!(impl Broker for Gated by log);

/// No handler runs for them, so nothing else would keep a worker from taking them all.
#[tokio::test(start_paused = true)]
async fn number_of_rejected_jobs_awaiting_confirmation_is_bounded() {
    const CONCURRENCY: usize = 8;
    // Those that run, and those whose end is being confirmed.
    const MOST: usize = CONCURRENCY + 64;
    let log = Gated { log: MemoryLog::new(), is_open: watch::Sender::new(false) };
    let builder = Queue::builder("greetings").broker(log.clone()).store(MemoryStore::new());
    let queue = builder.lease_duration(LEASE).build().await.unwrap();
    let running = worker(&queue).concurrency(CONCURRENCY).on(handler(&Seen::default())).start().unwrap();
    let mut ids = Vec::new();
    for outcome in queue.enqueue_many((0..300).map(Count)).await {
        ids.push(outcome.unwrap());
    }
    let mut most = 0;
    let begun = Instant::now();
    while begun.elapsed() < 5 * SECOND {
        most = most.max(queue.stats().await.held);
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(most, MOST);
    log.is_open.send_replace(true);
    for id in &ids {
        until_status(&queue, id, JobStatus::Dead).await;
    }
    let report = stop(running).await;
    assert_eq!((report.dead_lettered, report.lost, report.unconfirmed), (300, 0, 0), "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_rate_of_the_worker_spaces_the_starts_of_all_kinds() {
    let queue = queue().await;
    let starts = Arc::new(Mutex::new(Vec::new()));
    let note = |starts: &Arc<Mutex<Vec<Instant>>>| {
        let starts = starts.clone();
        move || starts.lock().unwrap().push(Instant::now())
    };
    let (greets, counts) = (note(&starts), note(&starts));
    let running = worker(&queue)
        .rate(4.0)
        .on(move |_: Ctx, _: Greet| {
            greets();
            async {}
        })
        .on(move |_: Ctx, _: Count| {
            counts();
            async {}
        })
        .start()
        .unwrap();
    for outcome in queue.enqueue_many((0..6).map(|n| greet(&n.to_string()))).await {
        outcome.unwrap();
    }
    for outcome in queue.enqueue_many((0..6).map(Count)).await {
        outcome.unwrap();
    }
    until("all to be started", || starts.lock().unwrap().len() == 12).await;
    let starts = starts.lock().unwrap().clone();
    let gaps: Vec<_> = starts.windows(2).map(|two| two[1] - two[0]).collect();
    // The test clock has a resolution of 1 ms.
    assert!(gaps.iter().all(|gap| *gap >= Duration::from_millis(245)), "{gaps:?}");
    assert!(starts[11] - starts[0] < 4 * SECOND, "{gaps:?}");
    stop(running).await;
}
