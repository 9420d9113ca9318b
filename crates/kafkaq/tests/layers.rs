//! Tower layers around the handlers of a worker.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{stop, until};
use kafkaq::{
    Queue,
    worker::{
        Backoff, BoxContext, BoxHandler, Ctx, Options, Outcome, TaskType, Worker, WorkerBuilder,
        WorkerHandle, WorkerReport,
    },
};
use serde::{Deserialize, Serialize};
use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, limit::ConcurrencyLimitLayer};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
struct Act(u32);

impl TaskType for Act {
    const KIND: &'static str = "act";
}

#[derive(Serialize, Deserialize)]
struct Other(u32);

impl TaskType for Other {
    const KIND: &'static str = "other";
}

/// What was seen, in order.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

type Handling = Pin<Box<dyn Future<Output = Result<Outcome, Infallible>> + Send>>;
type Around = dyn Fn(BoxHandler, BoxContext) -> Handling + Send + Sync;

/// A layer by a closure, which gets a service that is ready.
#[derive(Clone)]
struct Wrap(Arc<Around>);

fn wrap(around: impl Fn(BoxHandler, BoxContext) -> Handling + Send + Sync + 'static) -> Wrap {
    Wrap(Arc::new(around))
}

#[derive(Clone)]
struct Wrapped(Arc<Around>, BoxHandler);

impl Layer<BoxHandler> for Wrap {
    type Service = Wrapped;

    fn layer(&self, inner: BoxHandler) -> Wrapped {
        Wrapped(self.0.clone(), inner)
    }
}

impl Service<BoxContext> for Wrapped {
    type Response = Outcome;
    type Error = Infallible;
    type Future = Handling;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.1.poll_ready(cx)
    }

    fn call(&mut self, ctx: BoxContext) -> Handling {
        let fresh = self.1.clone();
        (self.0)(std::mem::replace(&mut self.1, fresh), ctx)
    }
}

/// A layer that records its start and its outcome.
fn noting(name: &'static str, seen: &Seen) -> Wrap {
    let seen = seen.clone();
    wrap(move |mut inner, ctx| {
        let seen = seen.clone();
        Box::pin(async move {
            seen.note(format!("{name} begins {} {}", ctx.kind().unwrap_or_default(), ctx.attempt()));
            let outcome = inner.call(ctx).await?;
            seen.note(format!("{name} ends {outcome:?}"));
            Ok(outcome)
        })
    })
}

async fn queue() -> Queue {
    Queue::builder("acts").lease_duration(30 * SECOND).build().await.unwrap()
}

fn worker(queue: &Queue) -> WorkerBuilder {
    Worker::builder(queue.clone()).retry(Backoff::fixed(SECOND).jitter(false).max_failures(3))
}

/// Stops the worker when so many tasks are done.
async fn finish(running: WorkerHandle, done: u64) -> WorkerReport {
    until("tasks to be done", || running.report().done >= done).await;
    stop(running).await
}

#[tokio::test(start_paused = true)]
async fn first_layer_is_the_outermost() {
    let (queue, seen) = (queue().await, Seen::default());
    let running = worker(&queue)
        .layer(noting("outer", &seen))
        .state(seen.clone())
        .layer(noting("inner", &seen))
        .on(async |ctx: Ctx<Seen>, _: Act| ctx.state().note("handler"))
        .start()
        .unwrap();
    queue.enqueue(Act(1)).await.unwrap();
    finish(running, 1).await;
    let order = ["outer begins act 1", "inner begins act 1", "handler", "inner ends Done", "outer ends Done"];
    assert_eq!(seen.all(), order);
}

#[tokio::test(start_paused = true)]
async fn layer_is_made_once_for_all_kinds_and_forms_of_handlers() {
    let (queue, made, calls) = (queue().await, Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (in_layer, in_call) = (made.clone(), calls.clone());
    let counting = tower::layer::layer_fn(move |inner| {
        in_layer.fetch_add(1, SeqCst);
        let calls = in_call.clone();
        wrap(move |mut inner: BoxHandler, ctx| {
            calls.fetch_add(1, SeqCst);
            Box::pin(async move { inner.call(ctx).await })
        })
        .layer(inner)
    });
    let handled = Seen::default();
    let running = worker(&queue)
        .layer(counting)
        .state(handled.clone())
        .on_blocking(|ctx: Ctx<Seen>, _: Act| ctx.state().note("blocking"), Options::new())
        .on_batch(
            2,
            SECOND,
            |tasks: Vec<(Ctx<Seen>, Other)>| {
                tasks[0].0.state().note(format!("batch of {}", tasks.len()));
                std::future::ready(vec![(); tasks.len()])
            },
            Options::new(),
        )
        .otherwise(async |ctx: Ctx<Seen>| ctx.state().note("otherwise"))
        .start()
        .unwrap();
    queue.enqueue(Act(1)).await.unwrap();
    queue.enqueue_many([Other(1), Other(2)]).await;
    queue.publish(kafkaq::Task::new("raw")).await.unwrap();
    finish(running, 4).await;
    let mut handled = handled.all();
    handled.sort();
    assert_eq!(handled, ["batch of 2", "blocking", "otherwise"]);
    assert_eq!((made.load(SeqCst), calls.load(SeqCst)), (1, 4), "each task of a batch by itself");
}

#[tokio::test(start_paused = true)]
async fn layer_can_time_the_handler() {
    let (queue, seen) = (queue().await, Seen::default());
    let told = seen.clone();
    let timing = wrap(move |mut inner, ctx| {
        let seen = told.clone();
        Box::pin(async move {
            let begun = Instant::now();
            let outcome = inner.call(ctx).await;
            seen.note(format!("{} s", begun.elapsed().as_secs()));
            outcome
        })
    });
    let running = worker(&queue)
        .layer(timing)
        .on(async |_: Ctx, act: Act| sleep(SECOND * act.0).await)
        .start()
        .unwrap();
    queue.enqueue(Act(7)).await.unwrap();
    finish(running, 1).await;
    assert_eq!(seen.all(), ["7 s"]);
}

#[tokio::test(start_paused = true)]
async fn layer_that_does_not_call_the_handler_decides_the_outcome() {
    let (queue, seen) = (queue().await, Seen::default());
    let snoozing = wrap(|mut inner, ctx| {
        if ctx.attempt() == 1 {
            return Box::pin(async { Ok(Outcome::Snooze(60 * SECOND)) });
        }
        Box::pin(async move { inner.call(ctx).await })
    });
    let running = worker(&queue)
        .layer(snoozing)
        .state(seen.clone())
        .on(async |ctx: Ctx<Seen>, _: Act| ctx.state().note(format!("{} {}", ctx.attempt(), ctx.failures())))
        .start()
        .unwrap();
    queue.enqueue(Act(1)).await.unwrap();
    let report = finish(running, 1).await;
    assert_eq!((report.snoozed, seen.all()), (1, vec!["2 0".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn panics_of_layers_and_of_handlers_are_failures() {
    let (queue, seen) = (queue().await, Seen::default());
    let panicking = wrap(|mut inner, ctx| {
        // In `call` itself, then in its future.
        assert!(ctx.attempt() != 1, "no call");
        Box::pin(async move {
            assert!(ctx.attempt() != 2, "no future");
            inner.call(ctx).await
        })
    });
    let running = Worker::builder(queue.clone())
        .retry(Backoff::fixed(SECOND).jitter(false).max_failures(9))
        .layer(panicking)
        .layer(noting("inner", &seen))
        .state(seen.clone())
        .on(async |ctx: Ctx<Seen>, _: Act| {
            assert!(ctx.attempt() != 3, "no handler");
            ctx.history().iter().for_each(|failed| ctx.state().note(failed.reason.clone()));
        })
        .start()
        .unwrap();
    queue.enqueue(Act(1)).await.unwrap();
    let report = finish(running, 1).await;
    assert_eq!((report.panicked, report.retried), (3, 3));
    let seen = seen.all();
    assert!(seen[1].starts_with("inner ends Retry") && seen[1].contains("no handler"), "{seen:?}");
    let reasons: Vec<_> = seen.iter().filter(|s| s.starts_with("panicked at ")).collect();
    assert!(reasons[0].contains("layers.rs") && reasons[0].ends_with("no call"), "{reasons:?}");
    assert!(reasons[1].ends_with("no future") && reasons[2].ends_with("no handler"), "{reasons:?}");
}

#[tokio::test(start_paused = true)]
async fn concurrency_limit_of_tower_holds_for_the_worker() {
    let (queue, now_and_most) = (queue().await, Arc::new((AtomicUsize::new(0), AtomicUsize::new(0))));
    let running = worker(&queue)
        .layer(ConcurrencyLimitLayer::new(3))
        .state(now_and_most.clone())
        .on(async |ctx: Ctx<Arc<(AtomicUsize, AtomicUsize)>>, _: Act| {
            let (now, most) = &**ctx.state();
            most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            sleep(SECOND).await;
            now.fetch_sub(1, SeqCst);
        })
        .start()
        .unwrap();
    queue.enqueue_many((0..10).map(Act)).await;
    finish(running, 10).await;
    assert_eq!(now_and_most.1.load(SeqCst), 3);
}

/// On real threads: a paused clock would stand still while a thread is blocked.
#[tokio::test(flavor = "multi_thread")]
async fn blocking_execution_that_waits_in_a_layer_ends_when_it_is_told_to() {
    let (queue, seen) = (queue().await, Seen::default());
    let told = seen.clone();
    let waiting = wrap(move |mut inner, ctx| {
        let seen = told.clone();
        Box::pin(async move {
            if ctx.attempt() == 1 {
                seen.note("waits");
                std::future::pending::<()>().await;
            }
            inner.call(ctx).await
        })
    });
    let running = worker(&queue)
        // If it didn't end, it would keep the only slot.
        .concurrency(1)
        .layer(waiting)
        .on_blocking(|_: Ctx, _: Act| (), Options::new().timeout(Duration::from_millis(50)))
        .start()
        .unwrap();
    queue.enqueue(Act(1)).await.unwrap();
    let report = finish(running, 1).await;
    // On a busy machine a later attempt may time out, too.
    assert!(report.timed_out >= 1, "{report}");
    assert_eq!((report.retried, seen.all().len()), (report.timed_out, 1), "{report}");
}

/// Executes in batches, with a time limit of a second.
fn in_batches(worker: WorkerBuilder, max: usize, wait: Duration) -> WorkerHandle {
    let handler = |tasks: Vec<(Ctx, Act)>| std::future::ready(vec![(); tasks.len()]);
    worker.on_batch(max, wait, handler, Options::new().timeout(SECOND)).start().unwrap()
}

/// The time limit of a batch begins when it is complete, but layers have one before that.
#[tokio::test(start_paused = true)]
async fn task_of_a_batch_that_waits_in_a_layer_times_out() {
    let queue = queue().await;
    let waiting = wrap(|mut inner, ctx| {
        Box::pin(async move {
            if ctx.attempt() == 1 {
                std::future::pending::<()>().await;
            }
            inner.call(ctx).await
        })
    });
    let running = in_batches(worker(&queue).layer(waiting), 2, 60 * SECOND);
    queue.enqueue(Act(1)).await.unwrap();
    let report = finish(running, 1).await;
    assert_eq!((report.timed_out, report.retried), (1, 1), "{report}");
}

/// It came out of its layer too late, but before its grace period was over.
#[tokio::test(start_paused = true)]
async fn task_whose_time_was_up_before_its_batch_began_has_failed() {
    let queue = queue().await;
    let waiting = wrap(|mut inner, ctx| {
        Box::pin(async move {
            if ctx.attempt() == 1 {
                sleep(2 * SECOND).await;
            }
            inner.call(ctx).await
        })
    });
    let running = in_batches(worker(&queue).layer(waiting), 1, SECOND);
    queue.enqueue(Act(1)).await.unwrap();
    let report = finish(running, 1).await;
    assert_eq!((report.timed_out, report.retried, report.snoozed), (1, 1, 0), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn blocking_handlers_that_run_one_at_a_time_per_key_go_through_the_layers() {
    let (queue, seen) = (queue().await, Seen::default());
    let inside = Arc::new(AtomicUsize::new(0));
    let running = worker(&queue)
        .layer(noting("layer", &seen))
        .on_blocking(
            move |_: Ctx, _: Act| {
                assert_eq!(inside.fetch_add(1, SeqCst), 0, "two at once");
                std::thread::sleep(Duration::from_millis(2));
                inside.fetch_sub(1, SeqCst);
            },
            Options::new().one_at_a_time(),
        )
        .start()
        .unwrap();
    for n in 0..10 {
        queue.enqueue(Act(n)).key("k").await.unwrap();
    }
    let report = finish(running, 10).await;
    assert_eq!((report.panicked, report.retried, seen.all().len()), (0, 0, 20), "{report}");
}

/// A layer may limit or time what it is put around, and a task that waits for its key does nothing.
#[tokio::test(start_paused = true)]
async fn task_goes_through_the_layers_once_it_has_its_key() {
    let (queue, seen) = (queue().await, Seen::default());
    let guard = queue.key_locks().acquire("k").await.unwrap();
    let running = worker(&queue)
        .layer(noting("layer", &seen))
        .layer(ConcurrencyLimitLayer::new(1))
        .on_with(async |_: Ctx, _: Act| (), Options::new().one_at_a_time())
        .on(async |_: Ctx, _: Other| ())
        .start()
        .unwrap();
    queue.enqueue(Act(1)).key("k").await.unwrap();
    sleep(SECOND).await;
    let begun = Instant::now();
    queue.enqueue(Other(1)).await.unwrap();
    until("the task of another kind", || running.report().done == 1).await;
    assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
    until("the first to be snoozed", || running.report().snoozed > 0).await;
    assert_eq!(seen.all(), ["layer begins other 1", "layer ends Done"]);
    drop(guard);
    finish(running, 2).await;
    assert_eq!(seen.all().len(), 4);
}
