//! The test helpers, on themselves.

#![allow(clippy::unwrap_used, clippy::panic)]

use kafkaq::{
    ErrorKind, Headers, Queue, TaskId,
    testing::{
        Difference, Disturbance, Event, Harness, TortureError, TortureReport, await_point, perform, torture,
    },
    worker::{Backoff, Ctx, Failure, Options, Outcome, ResultExt, StopReason, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Charge {
    to: String,
}

impl TaskType for Charge {
    const KIND: &'static str = "charge";
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Receipt(u32);

impl TaskType for Receipt {
    const KIND: &'static str = "receipt";
}

fn charge(to: &str) -> Charge {
    Charge { to: to.to_owned() }
}

fn id(text: &str) -> TaskId {
    TaskId::new(text).unwrap()
}

/// The outside world: what was charged, and for which tasks.
#[derive(Default)]
struct World {
    charges: Mutex<Vec<String>>,
    known: Mutex<BTreeMap<TaskId, u32>>,
    flag: AtomicBool,
    mutex: tokio::sync::Mutex<()>,
}

impl World {
    fn charge(&self, what: impl Into<String>) {
        self.charges.lock().unwrap().push(what.into());
    }

    fn is_known(&self, id: &TaskId) -> bool {
        self.known.lock().unwrap().contains_key(id)
    }

    /// Whether it is news.
    fn note(&self, id: &TaskId) -> bool {
        self.known.lock().unwrap().insert(id.clone(), 1).is_none()
    }

    fn charges(&self) -> Vec<String> {
        self.charges.lock().unwrap().clone()
    }
}

// --- perform ---

#[tokio::test]
async fn a_performed_task_has_what_was_made_up_for_it() {
    let handler = async |ctx: Ctx<World>, task: Charge| -> Result<(), Failure> {
        let key = ctx.key().map(|key| String::from_utf8_lossy(key).into_owned()).unwrap_or_default();
        let header: &Headers = ctx.headers();
        let header = header.get("tenant").map(|value| String::from_utf8_lossy(value).into_owned());
        ctx.state().charge(format!(
            "{} {} {} {} {key} {:?} {:?}",
            task.to,
            ctx.id(),
            ctx.attempt(),
            ctx.failures(),
            header.as_deref(),
            ctx.stop().reason()
        ));
        assert!(ctx.deadline() > ctx.published());
        Ok(())
    };
    let plain = perform(charge("ada")).state(World::default()).run(handler).await;
    assert_eq!(plain.outcome, Outcome::Done);
    assert_eq!(plain.state.charges(), ["ada task 1 0  None None"]);
    let all = perform(charge("ada"))
        .state(World::default())
        .id(id("order-17"))
        .attempt(4)
        .failures(2)
        .key("k")
        .header("tenant", "t")
        .stop(StopReason::ShuttingDown)
        .run(handler)
        .await;
    assert_eq!(all.state.charges(), [r#"ada order-17 4 2 k Some("t") Some(ShuttingDown)"#]);
    let third = perform(charge("ada")).state(World::default()).attempt(3).run(handler).await;
    assert_eq!(third.state.charges(), ["ada task 3 2  None None"]);
}

#[tokio::test]
async fn a_performed_task_returns_its_outcome_and_what_it_enqueued() {
    let handler = async |ctx: Ctx, task: Charge| -> Result<(), Failure> {
        ctx.enqueue(Receipt(1)).await?;
        ctx.enqueue(charge("grace")).await?;
        let receipt = ctx.enqueue(Receipt(2)).id(TaskId::new("mine")?).delay(HOUR).await?;
        assert_eq!(receipt.as_str(), "mine");
        match task.to.as_str() {
            "reject" => Err("unknown").reject(),
            "retry" => Err("busy")?,
            "snooze" => Err(Failure::snooze(HOUR)),
            "panic" => panic!("no stock"),
            _ => Ok(()),
        }
    };
    let outcome = async |to: &str| perform(charge(to)).run(handler).await;
    let done = outcome("ada").await;
    assert_eq!(done.outcome, Outcome::Done);
    assert_eq!(done.enqueued_of::<Receipt>(), [Receipt(1), Receipt(2)]);
    let ids: Vec<_> = done.enqueued.iter().map(|task| task.id().unwrap().as_str()).collect();
    assert!(ids[0].starts_with("task/") && ids[1].starts_with("task/") && ids[0] != ids[1], "{ids:?}");
    assert_eq!(ids[2], "mine");
    assert_eq!(done.enqueued[2].delay(), Some(HOUR));
    assert_eq!(outcome("reject").await.outcome, Outcome::Reject("unknown".into()));
    assert_eq!(outcome("retry").await.outcome, Outcome::Retry { delay: None, reason: "busy".into() });
    assert_eq!(outcome("snooze").await.outcome, Outcome::Snooze(HOUR));
    let Outcome::Retry { reason, .. } = outcome("panic").await.outcome else { panic!("it is a failure") };
    assert!(reason.contains("testing.rs:") && reason.ends_with("no stock"), "{reason}");
}

// --- harness ---

async fn harness() -> Harness {
    let handler = async |ctx: Ctx, task: Charge| -> Result<(), Failure> {
        match (task.to.as_str(), ctx.attempt()) {
            ("reject", _) => Err("unknown").reject(),
            ("fail", _) => Err("as ever")?,
            ("retry", 1..=2) => Err("busy")?,
            ("snooze", 1..=3) => Err(Failure::snooze(5 * HOUR)),
            ("parent", _) => {
                ctx.enqueue(Receipt(7)).delay(2 * HOUR).await?;
                Ok(())
            }
            ("stuck", _) => std::future::pending().await,
            _ => Ok(()),
        }
    };
    let builder = Queue::builder("charges").max_failures(4);
    Harness::start(builder, |queue| {
        Worker::builder(queue)
            .retry(Backoff::fixed(HOUR).jitter(false))
            .on_with(handler, Options::new())
            .on(async |_: Ctx, _: Receipt| {})
    })
    .await
    .unwrap()
}

async fn publish(harness: &Harness, to: &str) -> TaskId {
    harness.queue().enqueue(charge(to)).id(id(to)).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn harness_runs_until_idle_and_reports_every_outcome() {
    let mut harness = harness().await;
    let begun = Instant::now();
    let nothing = harness.run_until_idle().await.unwrap();
    assert!(nothing.tasks().is_empty() && begun.elapsed() < SECOND);
    for to in ["done", "reject", "fail", "retry", "snooze", "parent"] {
        publish(&harness, to).await;
    }
    harness.queue().enqueue(charge("late")).id(id("late")).delay(20 * HOUR).await.unwrap();
    let report = harness.run_until_idle().await.unwrap();
    assert!((20 * HOUR..30 * HOUR).contains(&begun.elapsed()), "{:?}", begun.elapsed());

    let child = report.published_of::<Receipt>()[0].clone();
    assert!(child.as_str().starts_with("parent/"), "{child}");
    let all = ["done", "reject", "fail", "retry", "snooze", "parent", "late"].map(id);
    assert_eq!(report.published(), all.iter().chain([&child]).collect::<Vec<_>>());
    assert_eq!(report.published_of::<Receipt>(), [&child]);
    let done = ["done", "retry", "snooze", "parent", "late"].map(id);
    assert_eq!(report.done(), done.iter().chain([&child]).collect::<Vec<_>>());
    assert_eq!(report.retried(), [&id("fail"), &id("retry")]);
    assert_eq!(report.snoozed(), [&id("snooze")]);
    assert_eq!(report.dead(), [(&id("reject"), "unknown"), (&id("fail"), "as ever")]);
    report.assert_done(&child);
    report.assert_retried(&id("retry"), 2);
    report.assert_retried(&id("fail"), 3);
    report.assert_retried(&id("done"), 0);
    report.assert_snoozed(&id("snooze"), 3);
    report.assert_dead(&id("fail"), "ever");
    report.assert_published::<Receipt>(1);
    assert_eq!(
        report.task(&id("retry")).unwrap().to_string(),
        "charge retry: published, retried (busy), retried (busy), done"
    );
    let stopped = harness.stop().await.unwrap();
    assert_eq!((stopped.done, stopped.dead_lettered, stopped.snoozed, stopped.retried), (6, 2, 3, 5));
}

#[tokio::test(start_paused = true)]
async fn harness_goes_on_with_what_is_published_later() {
    let mut harness = harness().await;
    publish(&harness, "one").await;
    harness.run_until_idle().await.unwrap().assert_all_done();
    // Longer than the end of the first is remembered.
    sleep(100 * 24 * HOUR).await;
    publish(&harness, "two").await;
    publish(&harness, "two").await;
    let report = harness.run_until_idle().await.unwrap();
    report.assert_all_done();
    assert_eq!(report.tasks().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn harness_reports_tasks_that_end_without_an_execution() {
    let mut harness = harness().await;
    let cancelled = harness.queue().enqueue(charge("x")).delay(HOUR).await.unwrap();
    harness.queue().jobs().cancel(&cancelled).await.unwrap();
    let soon = std::time::SystemTime::now() + HOUR;
    let expired = harness.queue().enqueue(charge("y")).delay(3 * HOUR).expires(soon).await.unwrap();
    let dead =
        harness.queue().enqueue(charge("z")).delay(3 * HOUR).expires_to_dead_letter(soon).await.unwrap();
    let report = harness.run_until_idle().await.unwrap();
    assert_eq!(report.task(&cancelled).unwrap().events, [Event::Cancelled]);
    assert_eq!(report.task(&expired).unwrap().events, [Event::Expired], "by virtual time");
    report.assert_dead(&dead, "expired before it was started");
    assert!(report.done().is_empty());
}

#[tokio::test(start_paused = true)]
async fn harness_reports_deaths_without_a_handler_and_by_the_queue() {
    let builder = Queue::builder("charges").max_failures(2).max_handouts(3);
    let snooze = async |_: Ctx, _: Receipt| -> Result<(), Failure> { Err(Failure::snooze(HOUR)) };
    let mut harness = Harness::start(builder, |queue| Worker::builder(queue).on(snooze)).await.unwrap();
    let unknown = publish(&harness, "x").await;
    let snoozed = harness.queue().enqueue(Receipt(1)).await.unwrap();
    let report = harness.run_until_idle().await.unwrap();
    report.assert_dead(&unknown, "no handler for `charge`");
    let dead = |event: &&Event| matches!(event, Event::Dead { .. });
    let events = &report.task(&snoozed).unwrap().events;
    assert_eq!(events.iter().filter(dead).count(), 1, "{report}");
    report.assert_dead(&snoozed, "handed out");
}

#[tokio::test(start_paused = true)]
async fn harness_waits_for_executions_of_tasks_that_were_cancelled() {
    let ran_on = Arc::new(AtomicBool::new(false));
    let told = ran_on.clone();
    let handler = move |ctx: Ctx, _: Charge| {
        let told = told.clone();
        async move {
            ctx.stop().requested().await;
            sleep(3 * SECOND).await;
            told.store(true, SeqCst);
        }
    };
    let builder = Queue::builder("charges");
    let mut harness = Harness::start(builder, |queue| Worker::builder(queue).on(handler)).await.unwrap();
    let cancelled = publish(&harness, "x").await;
    while harness.queue().stats().await.held == 0 {
        sleep(SECOND).await;
    }
    harness.queue().jobs().cancel(&cancelled).await.unwrap();
    let report = harness.run_until_idle().await.unwrap();
    assert!(ran_on.load(SeqCst));
    assert_eq!(report.task(&cancelled).unwrap().events, [Event::Cancelled, Event::Lost]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn harness_works_on_threads_and_a_clock_that_runs() {
    let mut harness = harness().await;
    for to in ["one", "reject", "two"] {
        publish(&harness, to).await;
    }
    let report = harness.run_until_idle().await.unwrap();
    assert_eq!(report.done(), [&id("one"), &id("two")]);
    report.assert_dead(&id("reject"), "unknown");
}

#[tokio::test(start_paused = true)]
async fn harness_names_the_tasks_that_do_not_end() {
    let mut harness = harness().await.limit(HOUR);
    publish(&harness, "done").await;
    publish(&harness, "stuck").await;
    let error = harness.run_until_idle().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("1 tasks: stuck"), "{error}");
    assert_eq!(harness.report().await.unwrap().done(), [&id("done")]);
}

#[tokio::test(start_paused = true)]
async fn asserts_fail_with_the_whole_report() {
    let mut harness = harness().await;
    for to in ["done", "reject"] {
        publish(&harness, to).await;
    }
    let report = harness.run_until_idle().await.unwrap();
    let failure = |assert: &dyn Fn()| {
        let panicked = catch_unwind(AssertUnwindSafe(assert)).unwrap_err();
        panicked.downcast_ref::<String>().unwrap().clone()
    };
    let lines = "\n  charge done: published, done\n  charge reject: published, dead (unknown)";
    for (told, expected) in [
        (failure(&|| report.assert_all_done()), "not all tasks are done: [\"reject\"]"),
        (failure(&|| report.assert_done(&id("reject"))), "the task reject is not done"),
        (failure(&|| report.assert_retried(&id("done"), 1)), "the task done was retried 0 times, not 1"),
        (failure(&|| report.assert_snoozed(&id("done"), 1)), "the task done was snoozed 0 times, not 1"),
        (failure(&|| report.assert_dead(&id("done"), "x")), "the task done is not dead"),
        (
            failure(&|| report.assert_dead(&id("reject"), "busy")),
            "the task reject is dead because of `unknown`, not of `busy`",
        ),
        (failure(&|| report.assert_published::<Receipt>(1)), "0 tasks of `receipt` were published, not 1"),
    ] {
        assert_eq!(told, format!("{expected}{lines}"));
    }
}

// --- torture ---

async fn found<F, Fut>(handler: F) -> Result<TortureReport, TortureError>
where
    F: Fn(Ctx<World>, Charge) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send + 'static,
{
    torture(handler, charge("ada")).run(World::default, World::charges).await
}

fn crashes(differences: &[Difference]) -> Vec<usize> {
    let at = |difference: &Difference| match difference.disturbance {
        Disturbance::Crash { at } => Some(at),
        _ => None,
    };
    differences.iter().filter_map(at).collect()
}

/// Charges, and notes it then.
async fn two_steps(ctx: Ctx<World>, task: Charge) -> Result<(), Failure> {
    await_point().await;
    if !ctx.state().is_known(ctx.id()) {
        await_point().await;
        ctx.state().charge(task.to);
        await_point().await; // here
        ctx.state().note(ctx.id());
        await_point().await;
    }
    Ok(())
}

/// Its mended twin.
async fn one_step(ctx: Ctx<World>, task: Charge) -> Result<(), Failure> {
    await_point().await;
    if ctx.state().note(ctx.id()) {
        ctx.state().charge(task.to);
    }
    await_point().await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn torture_finds_a_double_charge_and_passes_its_mended_twin() {
    let error = found(two_steps).await.unwrap_err();
    assert_eq!(crashes(error.differences()), [3], "between the charge and the note");
    let overlaps = |difference: &&Difference| matches!(difference.disturbance, Disturbance::Overlap { .. });
    assert!(error.differences().iter().any(|d| overlaps(&d)));
    for difference in error.differences() {
        assert_eq!(difference.expected, r#"["ada"]"#);
        assert_eq!(difference.found, r#"["ada", "ada"]"#);
    }
    let text = error.to_string();
    assert!(text.contains("(4 await points)"), "{text}");
    let line = include_str!("testing.rs").lines().position(|line| line.ends_with("// here")).unwrap() + 1;
    let first = error.differences()[0].to_string();
    let (disturbance, rest) = first.split_once("\n    place:    ").unwrap();
    assert_eq!(disturbance, "a crash at await point 3");
    let place = format!("tests/testing.rs:{line}");
    let (told, rest) = rest.split_once('\n').unwrap();
    assert!(told.replace("\\", "/").ends_with(&place), "{told}");
    assert_eq!(rest, "    expected: [\"ada\"]\n    found:    [\"ada\", \"ada\"]");
    assert!(text.contains(&format!("\n- {first}\n")), "{text}");
    assert_eq!(format!("{error:?}"), text, "for unwrap");
    assert_eq!(found(two_steps).await.unwrap_err(), error, "the same each time");

    let report = found(one_step).await.unwrap();
    // Three at each point, all overlaps, a crash after the end, and in turns.
    assert_eq!((report.await_points, report.disturbances), (2, 3 * 2 + 3 * 3 + 2));
}

#[tokio::test(start_paused = true)]
async fn torture_crashes_a_handler_without_an_await_after_its_end() {
    let error = found(async |ctx: Ctx<World>, task: Charge| {
        ctx.state().charge(task.to);
        Ok(())
    })
    .await
    .unwrap_err();
    assert!(error.differences().iter().any(|d| d.disturbance == Disturbance::CrashAfterReturn));
    let noted = async |ctx: Ctx<World>, task: Charge| {
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        Ok(())
    };
    assert_eq!(found(noted).await.unwrap().await_points, 0);
}

#[tokio::test(start_paused = true)]
async fn torture_finds_what_only_two_at_once_do() {
    // A crash harms nothing: the charge and its note are one step. But it was looked for the note before.
    let error = found(async |ctx: Ctx<World>, task: Charge| {
        if ctx.state().is_known(ctx.id()) {
            return Ok(());
        }
        await_point().await;
        ctx.state().note(ctx.id());
        ctx.state().charge(task.to);
        Ok(())
    })
    .await
    .unwrap_err();
    let at_once =
        |d: &Difference| matches!(d.disturbance, Disturbance::Overlap { .. } | Disturbance::InTurns);
    assert!(error.differences().iter().all(at_once), "{error}");
    let found: Vec<_> = error.differences().iter().map(|d| d.disturbance).collect();
    assert_eq!(
        found,
        [
            Disturbance::Overlap { first: 0, second: 1 },
            Disturbance::Overlap { first: 1, second: 1 },
            Disturbance::Overlap { first: 1, second: usize::MAX },
            Disturbance::InTurns
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn torture_tells_executions_to_end() {
    // Takes back, when it is told to end, what may be another's by then.
    let on_stop = async |ctx: Ctx<World>, task: Charge, is_it: fn(StopReason) -> bool| {
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        tokio::select! {
            biased;
            reason = ctx.stop().requested() => if is_it(reason) {
                ctx.state().charge("taken back");
            },
            () = await_point() => {}
        }
        Ok::<(), Failure>(())
    };
    let error = found(move |ctx, task| on_stop(ctx, task, |reason| reason == StopReason::LeaseLost)).await;
    let error = error.unwrap_err();
    let all: Vec<_> = error.differences().iter().map(|d| d.disturbance).collect();
    assert_eq!(all, [Disturbance::LeaseLost { at: 1 }]);

    // Ends as done although it is not, when the worker stops.
    let error = found(async |ctx: Ctx<World>, task: Charge| {
        tokio::select! {
            biased;
            _ = ctx.stop().requested() => return Ok(()),
            () = await_point() => {}
        }
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        Ok(())
    })
    .await
    .unwrap_err();
    let all: Vec<_> = error.differences().iter().map(|d| (d.disturbance, &*d.found)).collect();
    assert_eq!(all, [(Disturbance::ShuttingDown { at: 1 }, "[]")]);

    // The same, but it gives the task back.
    let given_back = async |ctx: Ctx<World>, task: Charge| {
        tokio::select! {
            biased;
            _ = ctx.stop().requested() => return Err(Failure::retry("interrupted")),
            () = await_point() => {}
        }
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        Ok(())
    };
    found(given_back).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn tasks_that_are_enqueued_are_effects() {
    let report = found(async |ctx: Ctx<World>, _: Charge| {
        ctx.enqueue(Receipt(1)).await?;
        ctx.enqueue(Receipt(2)).await?;
        Ok(())
    });
    assert_eq!(report.await.unwrap().await_points, 4, "before and after each is durable");

    let error = found(async |ctx: Ctx<World>, _: Charge| {
        ctx.enqueue(Receipt(1)).id(TaskId::new(uuid::Uuid::new_v4().to_string())?).await?;
        Ok(())
    });
    let error = error.await.unwrap_err();
    assert_eq!(crashes(error.differences()), [2]);
    assert_eq!(error.differences()[0].found, "[], enqueued: receipt 1, receipt 1");
    assert_eq!(error.differences()[0].place.as_deref(), Some("after a task was enqueued"));
}

#[tokio::test(start_paused = true)]
async fn executions_have_attempts_and_tokens_of_their_own() {
    let seen: Arc<Mutex<Vec<_>>> = Arc::default();
    let told = seen.clone();
    let handler = move |ctx: Ctx<World>, _: Charge| {
        told.lock().unwrap().push((ctx.id().clone(), ctx.attempt(), ctx.failures(), ctx.token()));
        await_point()
    };
    let torture = torture(handler, charge("ada")).id(id("order-17"));
    let report = torture.run(World::default, World::charges).await.unwrap();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2 * report.disturbances, "one undisturbed, one that was done in its shutdown");
    let (first, second) = (&seen[1], &seen[2]);
    assert_eq!((first.0.as_str(), first.1, first.2), ("order-17", 1, 0));
    assert_eq!((second.0.as_str(), second.1, second.2), ("order-17", 2, 1));
    assert_ne!(first.3, second.3);
}

#[tokio::test(start_paused = true)]
async fn a_task_is_retried_until_it_ends() {
    // Each execution but the last fails, after a charge that is noted.
    let handler = async |ctx: Ctx<World>, task: Charge| {
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        await_point().await;
        match ctx.attempt() {
            1 => Err("busy")?,
            2 => Err(Failure::snooze(5 * HOUR)),
            _ => Ok(()),
        }
    };
    let begun = Instant::now();
    found(handler).await.unwrap();
    assert!(begun.elapsed() > 5 * HOUR);

    // One whose end depends on what a crash leaves behind.
    let error = found(async |ctx: Ctx<World>, task: Charge| {
        if ctx.state().flag.swap(true, SeqCst) {
            return Err(Failure::snooze(SECOND));
        }
        await_point().await;
        ctx.state().charge(task.to);
        ctx.state().flag.store(false, SeqCst);
        Ok(())
    });
    let error = error.await.unwrap_err();
    assert_eq!(crashes(error.differences()), [1]);
    assert_eq!(error.differences()[0].found, "[]; the task has not ended: snoozed, 20 times");
}

#[tokio::test(start_paused = true)]
async fn sleeps_are_await_points_and_take_no_time() {
    let handler = async |ctx: Ctx<World>, task: Charge| {
        sleep(30 * SECOND).await;
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        sleep(30 * SECOND).await;
        Ok(())
    };
    assert_eq!(found(handler).await.unwrap().await_points, 2);
}

#[tokio::test(start_paused = true)]
async fn executions_that_wait_for_each_other_go_on() {
    let locked = async |ctx: Ctx<World>, task: Charge| {
        let _guard = ctx.state().mutex.lock().await;
        await_point().await;
        if ctx.state().note(ctx.id()) {
            await_point().await;
            ctx.state().charge(task.to);
        }
        Ok(())
    };
    // A crash between the note and the charge loses the charge; two at once do no harm.
    let error = found(locked).await.unwrap_err();
    assert_eq!(crashes(error.differences()), [2]);
    let at_once =
        |d: &&Difference| matches!(d.disturbance, Disturbance::Overlap { .. } | Disturbance::InTurns);
    assert_eq!(error.differences().iter().filter(at_once).count(), 0, "{error}");

    // It looks again and again whether the other is done, which it never is after a crash.
    let spinning = async |ctx: Ctx<World>, task: Charge| {
        while ctx.state().flag.swap(true, SeqCst) {
            await_point().await;
        }
        await_point().await;
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        ctx.state().flag.store(false, SeqCst);
        Ok(())
    };
    let error = found(spinning).await.unwrap_err();
    assert_eq!(crashes(error.differences()), [1]);
    assert!(error.differences()[0].found.starts_with("[]; the task has not ended: it waits at"), "{error}");
    assert_eq!(error.differences().iter().filter(at_once).count(), 0, "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_fails_by_itself_is_not_tortured() {
    let failing = found(async |_: Ctx<World>, _: Charge| Err("as ever")?).await.unwrap_err();
    assert_eq!(failing.to_string(), "the handler fails without a disturbance: as ever, 20 times");
    assert!(failing.differences().is_empty());
    let hanging = found(async |_: Ctx<World>, _: Charge| std::future::pending().await).await.unwrap_err();
    assert_eq!(hanging.to_string(), "the handler fails without a disturbance: it waits at await point 1");
    // A rejection is an end.
    let rejecting = async |ctx: Ctx<World>, _: Charge| {
        await_point().await;
        if ctx.attempt() > 1 { Err(Failure::reject("again")) } else { Err(Failure::reject("unknown")) }
    };
    let error = found(rejecting).await.unwrap_err();
    assert_eq!(error.differences()[0].expected, "[]; the task was rejected: unknown");
    assert_eq!(error.differences()[0].found, "[]; the task was rejected: again");
}

#[tokio::test(start_paused = true)]
async fn the_number_of_disturbances_is_bounded() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let handler = move |_: Ctx<World>, _: Charge| {
        counted.fetch_add(1, SeqCst);
        async {
            for _ in 0..200 {
                await_point().await;
            }
        }
    };
    let torture = torture(handler, charge("ada")).limit(10);
    let report = torture.run(World::default, World::charges).await.unwrap();
    assert_eq!((report.await_points, report.disturbances), (200, 4 * 10 + 2));
    assert!(runs.load(SeqCst) <= 2 * 42 + 1);
    assert_eq!(report.to_string(), "200 await points, 42 disturbances, the same effects each time");
}

#[tokio::test]
async fn torture_needs_no_paused_clock() {
    let handler = async |ctx: Ctx<World>, task: Charge| {
        sleep(Duration::from_millis(1)).await;
        if ctx.state().note(ctx.id()) {
            ctx.state().charge(task.to);
        }
        tokio::task::yield_now().await;
        Ok(())
    };
    assert_eq!(found(handler).await.unwrap().await_points, 2);
}
