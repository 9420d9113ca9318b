//! Metrics: what is recorded, and that it is what `docs/metrics.md` says.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod recorder;

use common::{forward, next, until};
use kafkaq::{
    LostReason, Queue, QueueBuilder, Result, Task,
    backend::{Swap, Swapped},
    memory::{MemoryLog, MemoryStore},
    worker::{Backoff, Ctx, Options, Outcome, Share, TaskType, Worker},
};
use recorder::TestRecorder;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};
use tokio::time::{sleep, timeout};

const LEASE: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

fn builder() -> QueueBuilder {
    Queue::builder("emails").lease_duration(LEASE).max_failures(2).max_handouts(5)
}

async fn queue() -> Queue {
    builder().build().await.unwrap()
}

/// An execution's outcome is in its payload.
#[derive(Serialize, Deserialize)]
struct Act(String);

impl TaskType for Act {
    const KIND: &'static str = "act";
}

async fn act(ctx: Ctx, Act(how): Act) -> Outcome {
    let reason = || "no".to_owned();
    match (how.as_str(), ctx.attempt()) {
        ("retry", 1) => Outcome::Retry { delay: Some(SECOND), reason: reason() },
        ("snooze", 1) => Outcome::Snooze(SECOND),
        ("reject", _) => Outcome::Reject(reason()),
        ("fail", _) => Outcome::Retry { delay: None, reason: reason() },
        ("panic", 1) => panic!("of the handler"),
        ("hang", 1) => std::future::pending().await,
        ("sleep", _) => {
            sleep(7 * SECOND).await;
            Outcome::Done
        }
        _ => Outcome::Done,
    }
}

/// A row of the table: type, unit, labels, meaning.
type Row = (String, String, BTreeSet<String>, String);

fn documented() -> BTreeMap<String, Row> {
    let rows = include_str!("../docs/metrics.md").lines().filter(|line| line.starts_with("| `kafkaq_"));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, unit, labels, meaning] = cells[..] else { panic!("{row}") };
        let bare = |text: &str| text.trim_matches('`').to_owned();
        let labels = labels.split(", ").map(bare).collect();
        (bare(name), (kind.to_owned(), unit.to_owned(), labels, meaning.to_owned()))
    })
    .collect()
}

#[tokio::test(start_paused = true)]
async fn table_names_what_is_recorded_and_nothing_else() {
    let recorder = TestRecorder::default();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let queue = queue().await;
    let running = Worker::builder(queue.clone()).on(act).start().unwrap();
    let described = recorder.described();
    let recorded: BTreeMap<_, Row> = recorder
        .labels()
        .into_iter()
        .map(|(name, labels)| {
            let (kind, unit, meaning) =
                described.get(&name).unwrap_or_else(|| panic!("{name} has no meaning"));
            (name, (kind.clone(), unit.clone(), labels, meaning.clone()))
        })
        .collect();
    assert_eq!(described.keys().collect::<Vec<_>>(), recorded.keys().collect::<Vec<_>>());
    assert_eq!(documented(), recorded);
    for (name, (kind, unit, ..)) in &recorded {
        assert!(name.starts_with("kafkaq_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        assert_eq!(name.ends_with("_seconds"), unit == "seconds", "{name}");
    }
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn each_end_of_a_job_is_counted_with_its_cause() {
    let recorder = TestRecorder::default();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let queue = queue().await;
    let count = |name: &str, labels: &[(&str, &str)]| {
        recorder.counter(name, &[&[("queue", "emails")], labels].concat())
    };
    let ended = |ending| count("kafkaq_jobs_ended_total", &[("ending", ending)]);
    let redelivered = |cause| count("kafkaq_redelivered_total", &[("cause", cause)]);
    let dead = |reason| count("kafkaq_dead_letters_total", &[("reason", reason)]);

    queue.publish(Task::new("a")).await.unwrap();
    queue.publish(Task::new("b").with_header("kafkaq-x", "refused")).await.unwrap_err();
    assert_eq!(count("kafkaq_published_total", &[]), 1);
    assert_eq!(count("kafkaq_publish_errors_total", &[("effect", "not_applied")]), 1);

    next(&queue).await.snooze(SECOND).await.unwrap();
    next(&queue).await.release().await.unwrap();
    assert_eq!(redelivered("given_back"), 1, "after the snooze");
    drop(next(&queue).await);
    assert_eq!(redelivered("given_back"), 2, "and the release");
    let job = next(&queue).await;
    assert_eq!((job.attempt(), redelivered("lease_expired"), ended("dropped")), (4, 1, 1));
    job.retry(SECOND, "no").await.unwrap();
    assert_eq!((ended("snoozed"), ended("released"), ended("dead_lettered")), (1, 1, 1));
    assert_eq!(dead("failures"), 1, "that was its second failure");

    queue.publish(Task::new("c")).await.unwrap();
    next(&queue).await.retry(SECOND, "no").await.unwrap();
    let job = next(&queue).await;
    assert_eq!((redelivered("failed"), ended("retried")), (1, 1));
    job.reject("never").await.unwrap();
    assert_eq!((ended("dead_lettered"), dead("rejected")), (2, 1));

    queue.publish(Task::new("d")).await.unwrap();
    for _ in 0..5 {
        next(&queue).await.snooze(SECOND).await.unwrap();
    }
    // Somebody asks, so it is taken once more: to the dead letters.
    let waits = tokio::spawn({
        let queue = queue.clone();
        async move { queue.get_job().await }
    });
    until("the last dead letter", || dead("handouts") == 1).await;
    waits.abort();

    let id = queue.publish(Task::new("e")).await.unwrap();
    let mut job = next(&queue).await;
    queue.jobs().cancel(&id).await.unwrap();
    job.extend(LEASE).await.unwrap_err();
    assert_eq!(count("kafkaq_leases_lost_total", &[("reason", "cancelled")]), 1);
    drop(job);
    assert_eq!((ended("lost"), ended("dropped")), (1, 1));

    queue.publish(Task::new("f")).await.unwrap();
    next(&queue).await.done().await.unwrap();
    assert_eq!((ended("done"), ended("unconfirmed")), (1, 0));
    assert_eq!(count("kafkaq_handed_out_total", &[]), 4 + 2 + 5 + 1 + 1);
    for call in ["store_swap", "publish", "copy", "commit"] {
        let labels = [("queue", "emails"), ("call", call)];
        until(call, || !recorder.histogram("kafkaq_call_seconds", &labels).is_empty()).await;
        let calls = recorder.histogram("kafkaq_call_seconds", &labels).len() as u64;
        assert!(count("kafkaq_call_items_total", &[("call", call)]) >= calls, "{call}");
        assert_eq!(count("kafkaq_call_errors_total", &[("call", call)]), 0, "{call}");
    }
}

/// A store whose swaps take a second to arrive.
#[derive(Clone, Debug, Default)]
struct Slow(MemoryStore);

forward!(impl LeaseStore for Slow by 0 {
    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        sleep(SECOND).await;
        self.0.swap(swaps).await
    }
});

#[tokio::test(start_paused = true)]
async fn loss_of_a_lease_is_counted_once_although_it_answers_two_commands() {
    let recorder = TestRecorder::default();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let queue = builder().broker(log.clone()).store(Slow(store.clone())).build().await.unwrap();
    let other = builder().broker(log).store(store).build().await.unwrap();
    let id = queue.publish(Task::new("a")).await.unwrap();
    let mut job = next(&queue).await;
    let watch = job.view();
    assert!(timeout(SECOND / 2, job.extend(LEASE)).await.is_err(), "it is under way");
    other.jobs().cancel(&id).await.unwrap();
    job.done().await.unwrap_err();
    assert_eq!(watch.loss(), Some(LostReason::Cancelled));
    let labels = [("queue", "emails"), ("reason", "cancelled")];
    assert_eq!(recorder.counter("kafkaq_leases_lost_total", &labels), 1);
}

#[tokio::test(start_paused = true)]
async fn executions_are_counted_and_timed_by_kind() {
    let recorder = TestRecorder::default();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let queue = queue().await;
    let act_labels = [("queue", "emails"), ("kind", "act")];
    let ended = |outcome| {
        recorder.counter("kafkaq_executions_total", &[&act_labels[..], &[("outcome", outcome)]].concat())
    };
    let running = Worker::builder(queue.clone())
        .retry(Backoff::fixed(SECOND).jitter(false))
        .grace(Duration::ZERO)
        .on_with(act, Options::new().timeout(10 * SECOND))
        .start()
        .unwrap();
    for how in ["done", "retry", "snooze", "reject", "fail", "panic", "hang", "sleep"] {
        queue.enqueue(Act(how.into())).await.unwrap();
    }
    // By the test's clock, which stands still, the system's past may still be in the future.
    let past = SystemTime::UNIX_EPOCH;
    queue.enqueue(Act("late".into())).expires(past).await.unwrap();
    queue.enqueue(Act("late".into())).expires_to_dead_letter(past).await.unwrap();
    queue.enqueue(Act("delayed".into())).delay(60 * SECOND).await.unwrap();
    // `done`, the second time of four others, `sleep`, and `delayed`.
    until("all to be done", || ended("done") == 7).await;
    // `retry`, `fail` once, `panic` and `hang`; `reject`, `fail` and `late`.
    let expected = [("retried", 4), ("snoozed", 1), ("dead_lettered", 3), ("expired", 1)];
    let unexpected = ["lost", "unconfirmed", "released"].map(|outcome| (outcome, 0));
    let all = expected.iter().chain(&unexpected).copied();
    assert_eq!(
        all.clone().map(|(outcome, _)| (outcome, ended(outcome))).collect::<Vec<_>>(),
        all.collect::<Vec<_>>()
    );
    assert_eq!(recorder.counter("kafkaq_panics_total", &act_labels), 1);
    assert_eq!(recorder.counter("kafkaq_timeouts_total", &act_labels), 1);
    for then in ["dropped", "dead_lettered"] {
        let labels = [&act_labels[..], &[("then", then)]].concat();
        assert_eq!(recorder.counter("kafkaq_expired_total", &labels), 1, "{then}");
    }
    let seconds = recorder.histogram("kafkaq_execution_seconds", &act_labels);
    assert_eq!(seconds.len(), 7 + 4 + 1 + 2, "each that was started: {seconds:?}");
    assert!(
        seconds.iter().any(|s| (7.0..8.0).contains(s)) && seconds.iter().any(|s| (10.0..11.0).contains(s))
    );
    let waiting = recorder.histogram("kafkaq_waiting_seconds", &act_labels);
    assert_eq!(waiting.len(), 9, "each task once, and none that had expired: {waiting:?}");
    assert_eq!(waiting.iter().filter(|s| (59.0..70.0).contains(*s)).count(), 1, "{waiting:?}");
    assert_eq!(recorder.gauge("kafkaq_executions_running", &act_labels), 0.0);
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn slow_executions_are_counted_while_they_run_by_the_queue_of_their_task() {
    let recorder = TestRecorder::default();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let (queue, other) = (queue().await, Queue::builder("other").build().await.unwrap());
    let running = Worker::builder(queue.clone())
        .queue(other.clone(), Share::priority(1))
        .warn_after(3 * SECOND)
        .on(act)
        .start()
        .unwrap();
    let slow = |queue| recorder.gauge("kafkaq_executions_slow", &[("queue", queue), ("kind", "act")]);
    other.enqueue(Act("sleep".into())).await.unwrap();
    queue.enqueue(Act("done".into())).await.unwrap();
    until("one to be slow", || slow("other") == 1.0).await;
    assert_eq!(slow("emails"), 0.0);
    until("both", || running.report().done == 2).await;
    assert_eq!((slow("other"), slow("emails")), (0.0, 0.0));
    for of in ["other", "emails"] {
        let labels = [("queue", of), ("kind", "act"), ("outcome", "done")];
        assert_eq!(recorder.counter("kafkaq_executions_total", &labels), 1, "of {of}");
    }
}

#[tokio::test(start_paused = true)]
async fn task_that_waits_for_its_key_does_not_count_as_running() {
    let recorder = TestRecorder::default();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let queue = queue().await;
    let labels = [("queue", "emails"), ("kind", "act")];
    let lock = queue.key_locks().acquire("k").await.unwrap();
    let options = Options::new().exclusive_by(|Act(how): &Act| {
        assert!(how != "panic", "of the key");
        "k"
    });
    let running = Worker::builder(queue.clone())
        .retry(Backoff::fixed(SECOND).jitter(false).max_failures(1))
        .on_with(act, options)
        .start()
        .unwrap();
    queue.enqueue(Act("done".into())).await.unwrap();
    let panics = || recorder.counter("kafkaq_panics_total", &labels);
    queue.enqueue(Act("panic".into())).await.unwrap();
    until("a panic", || panics() == 1).await;
    for _ in 0..20 {
        assert_eq!(recorder.gauge("kafkaq_executions_running", &labels), 0.0);
        sleep(SECOND).await;
    }
    assert!(running.report().snoozed > 0);
    drop(lock);
    until("it to be done", || running.report().done == 1).await;
    assert_eq!(recorder.histogram("kafkaq_execution_seconds", &labels).len(), 1);
    let swaps = || recorder.counter("kafkaq_call_items_total", &[("queue", "emails"), ("call", "lock_swap")]);
    until("the key to be given back twice", || swaps() == 4).await;
    assert_eq!(queue.stats().await.lock_swaps.calls, 4);
    let waiting = recorder.histogram("kafkaq_waiting_seconds", &labels);
    assert!(waiting.is_empty(), "its first execution was not its first hand-out: {waiting:?}");
}

#[tokio::test(start_paused = true)]
async fn gauges_report_the_queues_state_and_end_at_zero() {
    let recorder = TestRecorder::default();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let queue = builder().metrics_interval(SECOND).build().await.unwrap();
    let gauge = |name: &str| recorder.gauge(name, &[("queue", "emails"), ("group", "kafkaq")]);
    queue.publish_many(["a", "b", "c"].map(Task::new)).await;
    queue.publish(Task::new("later").with_delay(3600 * SECOND)).await.unwrap();
    let job = next(&queue).await;
    until("the others to be leased", || gauge("kafkaq_jobs_ready") == 2.0).await;
    until("one to be parked", || gauge("kafkaq_parked_records") >= 1.0).await;
    assert_eq!((gauge("kafkaq_jobs_in_flight"), gauge("kafkaq_callers_waiting")), (1.0, 0.0));
    assert!(gauge("kafkaq_lag_records") > 0.0);
    // Sooner than its record is parked.
    until("a gauge to be five seconds old", || gauge("kafkaq_oldest_unfinished_seconds") >= 4.0).await;
    assert!(gauge("kafkaq_oldest_unfinished_seconds") < 11.0);
    job.done().await.unwrap();
    // Without a shutdown, while jobs are ready.
    drop(queue);
    for name in ["jobs_in_flight", "jobs_ready", "lag_records", "parked_records", "oldest_unfinished_seconds"]
    {
        let name = format!("kafkaq_{name}");
        until(&name, || gauge(&name) == 0.0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn groups_of_one_queue_have_separate_gauges() {
    let recorder = TestRecorder::default();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let log = MemoryLog::new();
    let of = |group: &'static str| {
        builder().broker(log.clone()).store(MemoryStore::new()).group(group).metrics_interval(SECOND).build()
    };
    let (mails, audit) = (of("mails").await.unwrap(), of("audit").await.unwrap());
    mails.publish(Task::new("a")).await.unwrap();
    let _job = next(&mails).await;
    let gauge = |group| recorder.gauge("kafkaq_jobs_in_flight", &[("queue", "emails"), ("group", group)]);
    until("the gauge of one", || gauge("mails") == 1.0).await;
    sleep(3 * SECOND).await;
    assert_eq!((gauge("mails"), gauge("audit")), (1.0, 0.0));
    drop(audit);
}

#[tokio::test(start_paused = true)]
async fn recorder_that_comes_late_gets_the_gauges() {
    let queue = queue().await;
    let recorder = TestRecorder::default();
    let _guard = metrics::set_default_local_recorder(&recorder);
    queue.publish(Task::new("a")).await.unwrap();
    let _job = next(&queue).await;
    let labels = [("queue", "emails"), ("group", "kafkaq")];
    until("a gauge", || recorder.gauge("kafkaq_jobs_in_flight", &labels) == 1.0).await;
    assert_eq!(recorder.counter("kafkaq_published_total", &labels[..1]), 0, "as the document says");
}

#[tokio::test]
async fn interval_has_limits() {
    for interval in [Duration::ZERO, 3601 * SECOND] {
        let e = Queue::builder("emails").metrics_interval(interval).build().await.unwrap_err();
        assert!(e.to_string().contains("metrics_interval"), "{e}");
    }
}
