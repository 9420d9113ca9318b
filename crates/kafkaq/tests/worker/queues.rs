//! A worker of several queues, in virtual time.

use crate::{SECOND, common::soon, stop, until};
use kafkaq::{
    ErrorKind, JobStatus, Queue, Task,
    worker::{Ctx, Options, Share, TaskType, Worker, WorkerBuilder},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep};

#[derive(Serialize, Deserialize)]
struct Work(u32);

impl TaskType for Work {
    const KIND: &'static str = "work";
}

/// Which queues' tasks have begun, and when.
#[derive(Clone, Default)]
struct Begun(Arc<Mutex<Vec<(String, Instant)>>>);

impl Begun {
    fn note<S>(&self, ctx: &Ctx<S>) {
        self.0.lock().unwrap().push((ctx.queue().to_owned(), Instant::now()));
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    async fn until(&self, n: usize) {
        until("tasks to begin", || self.len() >= n).await;
    }

    /// How many of each queue there are among some of them.
    fn counts(&self, range: std::ops::Range<usize>) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for (queue, _) in &self.0.lock().unwrap()[range] {
            *counts.entry(queue.clone()).or_default() += 1;
        }
        counts
    }

    fn times(&self, of: &str) -> Vec<Instant> {
        self.0.lock().unwrap().iter().filter(|(queue, _)| queue == of).map(|(_, at)| *at).collect()
    }
}

async fn queue(name: &str) -> Queue {
    Queue::builder(name).lease_duration(30 * SECOND).build().await.unwrap()
}

async fn fill(queue: &Queue, n: u32) {
    for outcome in queue.enqueue_many((0..n).map(Work)).await {
        outcome.unwrap();
    }
}

/// A worker that takes this long for each task.
fn worker(queue: &Queue, begun: &Begun, takes: Duration) -> WorkerBuilder<Begun> {
    Worker::builder(queue.clone()).state(begun.clone()).on(move |ctx: Ctx<Begun>, _: Work| async move {
        ctx.state().note(&ctx);
        sleep(takes).await;
    })
}

#[tokio::test(start_paused = true)]
async fn weights_divide_the_slots_and_without_contention_one_queue_gets_all() {
    let (a, b, begun) = (queue("a").await, queue("b").await, Begun::default());
    fill(&a, 600).await;
    fill(&b, 600).await;
    let running = worker(&a, &begun, SECOND)
        .share(Share::weight(3))
        .queue(b.clone(), Share::weight(1))
        .concurrency(4)
        .start()
        .unwrap();
    begun.until(404).await;
    let counts = begun.counts(4..404);
    assert!(counts["a"].abs_diff(300) <= 8, "{counts:?}");

    begun.until(1000).await;
    let from = begun.len();
    let now = Instant::now();
    begun.until(1200).await;
    assert_eq!(begun.counts(from..1200).keys().collect::<Vec<_>>(), ["b"]);
    assert!(now.elapsed() < 53 * SECOND, "four at a time: {:?}", now.elapsed());
    until("all", || running.report().done == 1200).await;
    let report = stop(running).await;
    assert_eq!(report.lost + report.retried + report.released, 0, "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_lower_priority_gets_what_is_left_and_one_place_per_wait() {
    let (high, low, begun) = (queue("high").await, queue("low").await, Begun::default());
    fill(&high, 2000).await;
    fill(&low, 100).await;
    let running = worker(&low, &begun, SECOND / 5)
        .share(Share::weight(1).max_wait(5 * SECOND))
        .queue(high.clone(), Share::priority(1))
        .concurrency(2)
        .start()
        .unwrap();
    begun.until(1000).await;
    let times = begun.times("low");
    // A hundred seconds at ten per second.
    assert!((17..=23).contains(&times.len()), "{} of the lower one", times.len());
    let waits = times.windows(2).skip(1).map(|pair| pair[1] - pair[0]);
    let (least, most) = (waits.clone().min().unwrap(), waits.max().unwrap());
    assert!(least >= 4 * SECOND && most <= 6 * SECOND, "{least:?} to {most:?}");
    begun.until(2100).await;
    let last = begun.counts(2050..2100);
    assert_eq!(last.keys().collect::<Vec<_>>(), ["low"], "when there is nothing else: {last:?}");
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn queue_that_was_empty_accumulates_no_credit() {
    let (a, b, begun) = (queue("a").await, queue("b").await, Begun::default());
    fill(&a, 800).await;
    let running =
        worker(&a, &begun, SECOND).queue(b.clone(), Share::weight(1)).concurrency(4).start().unwrap();
    begun.until(400).await;
    fill(&b, 300).await;
    let from = begun.len() + 20;
    begun.until(from + 200).await;
    let counts = begun.counts(from..from + 200);
    assert!(counts["a"].abs_diff(100) <= 5, "{counts:?}");
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn enqueued_task_goes_to_the_handlers_queue_with_its_settings() {
    let (a, b) = (queue("a").await, Queue::builder("b").lease_duration(3 * SECOND).build().await.unwrap());
    let begun = Begun::default();
    let running = Worker::builder(a.clone())
        .state(begun.clone())
        .queue(b.clone(), Share::weight(1))
        .on(async |ctx: Ctx<Begun>, Work(left): Work| -> Result<(), kafkaq::worker::Failure> {
            ctx.state().note(&ctx);
            // Much longer than the lease of `b`.
            sleep(20 * SECOND).await;
            if left > 0 {
                ctx.enqueue(Work(left - 1)).await?;
            }
            Ok(())
        })
        .start()
        .unwrap();
    a.enqueue(Work(1)).await.unwrap();
    b.enqueue(Work(3)).await.unwrap();
    until("all", || running.report().done == 6).await;
    assert_eq!(begun.counts(0..6), HashMap::from([("a".to_owned(), 2), ("b".to_owned(), 4)]));
    let report = stop(running).await;
    assert_eq!(report.lost + report.unconfirmed, 0, "{report}");
}

#[tokio::test(start_paused = true)]
async fn a_key_is_locked_in_the_queue_of_its_task() {
    let (a, b, begun) = (queue("a").await, queue("b").await, Begun::default());
    let running = Worker::builder(a.clone())
        .state(begun.clone())
        .queue(b.clone(), Share::weight(1))
        .on_with(async |ctx: Ctx<Begun>, _: Work| ctx.state().note(&ctx), Options::new().one_at_a_time())
        .start()
        .unwrap();
    let guard = b.key_locks().acquire("key").await.unwrap();
    b.enqueue(Work(1)).key("key").await.unwrap();
    a.enqueue(Work(2)).key("key").await.unwrap();
    begun.until(1).await;
    sleep(20 * SECOND).await;
    assert_eq!(begun.counts(0..begun.len()), HashMap::from([("a".to_owned(), 1)]));
    drop(guard);
    begun.until(2).await;
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn all_queues_are_shut_down_and_what_has_not_begun_is_given_back() {
    let (a, b, begun) = (queue("a").await, queue("b").await, Begun::default());
    let mut ids = Vec::new();
    for (queue, n) in [(&a, 1), (&b, 2), (&a, 3), (&b, 4), (&a, 5), (&b, 6)] {
        ids.push((queue, queue.enqueue(Work(n)).await.unwrap()));
    }
    let one = Options::new().concurrency(1);
    let running = Worker::builder(a.clone())
        .state(begun.clone())
        .queue(b.clone(), Share::weight(1))
        .on_with(
            async |ctx: Ctx<Begun>, _: Work| {
                ctx.state().note(&ctx);
                sleep(10 * SECOND).await;
            },
            one,
        )
        .start()
        .unwrap();
    begun.until(1).await;
    until("others to wait in line", || running.report().done == 0 && begun.len() == 1).await;
    sleep(SECOND).await;
    let told = Instant::now();
    let report = stop(running).await;
    assert!((8 * SECOND..15 * SECOND).contains(&told.elapsed()), "{:?}", told.elapsed());
    assert_eq!((report.done, report.released, report.lost), (1, 5, 0), "{report}");
    let mut waiting = 0;
    for (queue, id) in ids {
        assert_eq!(queue.get_job().await.unwrap_err().kind(), ErrorKind::Closed);
        waiting += usize::from(queue.jobs().get(&id).await.unwrap().status == JobStatus::Waiting);
    }
    assert_eq!(waiting, 5);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_ends_stops_the_worker_with_its_error() {
    let (a, b, begun) = (queue("a").await, queue("b").await, Begun::default());
    fill(&a, 200).await;
    let mut running =
        worker(&a, &begun, SECOND).queue(b.clone(), Share::weight(1)).concurrency(2).start().unwrap();
    begun.until(10).await;
    b.shutdown(SECOND).await.unwrap();
    let error = soon(running.stopped()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(a.get_job().await.unwrap_err().kind(), ErrorKind::Closed, "the other is shut down, too");
    let report = running.report();
    assert!(begun.len() < 100 && report.done as usize == begun.len(), "those that ran have ended: {report}");
}

#[tokio::test(start_paused = true)]
async fn invalid_queues_are_refused() {
    let begun = Begun::default();
    let (a, b) = (queue("a").await, queue("b").await);
    let worker = || worker(&a, &begun, SECOND);
    let refused = |builder: WorkerBuilder<Begun>, what: &str| {
        let error = builder.start().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(what), "{error}");
    };
    refused(worker().queue(a.clone(), Share::weight(1)), "two queues named `a`");
    refused(worker().queue(b.clone(), Share::weight(0)), "a weight of 0 of the queue `b`");
    refused(worker().share(Share::priority(1).max_wait(Duration::MAX)), "a max_wait");
    let many = (0..64).fold(worker(), |worker, _| worker.queue(b.clone(), Share::weight(1)));
    refused(many, "65 queues");
    a.publish(Task::new("the queue is still there")).await.unwrap();
    soon(a.get_job()).await.unwrap().done().await.unwrap();
}
