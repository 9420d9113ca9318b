//! What happens to tasks after outcomes, errors and panics.

use crate::{
    Count, Greet, SECOND, Seen, common::quick, common::records, greet, handler, queue, stop, until_status,
    worker,
};
use kafkaq::{
    JobStatus, Task,
    backend::Record,
    memory::{MemoryLog, MemoryStore},
    worker::{Backoff, BoxError, Ctx, Failure, Options, Outcome, ResultExt, TaskType},
};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, time::Duration};

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
async fn otherwise_gets_tasks_without_another_handler() {
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
async fn panic_is_a_failure_with_its_location_and_the_worker_continues() {
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
    assert!(told.starts_with("panicked at") && told.contains("outcomes.rs:"), "{told}");
    assert!(told.ends_with(": Ada is not at home"), "{told}");
    assert_eq!(stop(running).await.panicked, 1);
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
async fn invalid_settings_are_refused() {
    let queue = queue().await;
    let seen = Seen::default();
    let with = || worker(&queue).on(handler(&seen));
    for (builder, wanted) in [
        (worker(&queue), "no handler"),
        (with().on(handler(&seen)), "two handlers for `greet`"),
        (with().concurrency(0), "concurrency of 0"),
        (with().concurrency(usize::MAX), "concurrency of 1844"),
        (with().threads(0), "0 threads"),
        (with().rate(0.0), "the worker"),
        (worker(&queue).on_with(handler(&seen), Options::new().rate(1e-20)), "`greet`"),
        (worker(&queue).on_with(handler(&seen), Options::new().concurrency(0)), "`greet`"),
        (worker(&queue).on_with(handler(&seen), Options::new().rate(0.0)), "`greet`"),
    ] {
        let e = builder.start().unwrap_err();
        assert!(e.to_string().contains(wanted) && e.advice().is_some(), "{e}");
    }
}
