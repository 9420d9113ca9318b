//! A worker in memory that runs until it is idle.

use crate::{Charge, HOUR, Receipt, SECOND, charge, id};
use kafkaq::{
    ErrorKind, Queue, TaskId,
    testing::{Event, Harness},
    worker::{Backoff, Ctx, Failure, Options, ResultExt, Worker},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};
use tokio::time::{Instant, sleep};

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
async fn harness_continues_with_tasks_published_later() {
    let mut harness = harness().await;
    publish(&harness, "one").await;
    harness.run_until_idle().await.unwrap().assert_all_done();
    // For longer than the end of the first task is remembered.
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
async fn harness_reports_dead_letters_without_an_execution() {
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
        (failure(&|| report.assert_dead(&id("done"), "x")), "the task done was not dead-lettered"),
        (
            failure(&|| report.assert_dead(&id("reject"), "busy")),
            "the task reject was dead-lettered because of `unknown`, not `busy`",
        ),
        (failure(&|| report.assert_published::<Receipt>(1)), "0 tasks of `receipt` were published, not 1"),
    ] {
        assert_eq!(told, format!("{expected}{lines}"));
    }
}
