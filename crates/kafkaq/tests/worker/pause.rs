//! Pausing kinds of task in a running worker, in virtual time.

use crate::{SECOND, status, stop, until};
use kafkaq::{
    JobStatus, Queue, QueueBuilder,
    worker::{Ctx, Options, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct Mail(u32);

impl TaskType for Mail {
    const KIND: &'static str = "mail";
}

#[derive(Serialize, Deserialize)]
struct Bill(u32);

impl TaskType for Bill {
    const KIND: &'static str = "bill";
}

/// How often handlers were called.
#[derive(Clone, Default)]
struct Called {
    mails: Arc<AtomicUsize>,
    bills: Arc<AtomicUsize>,
}

async fn mail(ctx: Ctx<Called>, _: Mail) {
    assert_eq!((ctx.failures(), ctx.history().len()), (0, 0), "a pause doesn't count as a failure");
    ctx.state().mails.fetch_add(1, SeqCst);
}

async fn bill(ctx: Ctx<Called>, _: Bill) {
    ctx.state().bills.fetch_add(1, SeqCst);
}

async fn queue() -> Queue {
    Queue::builder("post").lease_duration(30 * SECOND).build().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn tasks_of_a_paused_kind_wait_and_others_are_executed() {
    let (queue, called) = (queue().await, Called::default());
    let running = Worker::builder(queue.clone())
        .state(called.clone())
        .concurrency(2)
        .on(mail)
        .on(bill)
        .start()
        .unwrap();
    let control = running.control();
    let paused = Instant::now();
    control.pause(Mail::KIND).unwrap();
    control.pause(Mail::KIND).unwrap();
    assert_eq!(control.paused(), ["mail"]);
    queue.enqueue_many((0..100).map(Mail)).await;
    queue.enqueue_many((0..10).map(Bill)).await;
    let begun = Instant::now();
    until("the other kind", || called.bills.load(SeqCst) == 10).await;
    assert!(
        begun.elapsed() < 20 * SECOND,
        "a hundred paused tasks keep others waiting for {:?}",
        begun.elapsed()
    );
    sleep(4 * MINUTE).await;
    assert_eq!(called.mails.load(SeqCst), 0);
    let stats = queue.stats().await;
    assert_eq!(stats.held, 0, "nobody holds them");

    control.resume(Mail::KIND).unwrap();
    let (paused, resumed) = (paused.elapsed(), Instant::now());
    until("the kind that was paused", || called.mails.load(SeqCst) == 100).await;
    let after = resumed.elapsed();
    assert!(after < paused / 2 + MINUTE, "after a pause of {paused:?}: {after:?}");
    let report = stop(running).await;
    assert_eq!((report.done, report.retried, report.dead_lettered), (110, 0, 0), "{report}");
    assert!((100..100 * 20).contains(&report.snoozed), "{report}");
}

#[tokio::test(start_paused = true)]
async fn queued_tasks_are_snoozed_and_running_ones_continue() {
    let (queue, called, go_on) = (queue().await, Called::default(), Arc::new(Notify::new()));
    let (begun, wait) = (called.mails.clone(), go_on.clone());
    let handler = move |_: Ctx<Called>, _: Mail| {
        let (begun, wait) = (begun.clone(), wait.clone());
        async move {
            begun.fetch_add(1, SeqCst);
            wait.notified().await;
        }
    };
    let one = Options::new().concurrency(1);
    let running =
        Worker::builder(queue.clone()).state(called.clone()).concurrency(4).on_with(handler, one).on(bill);
    let running = running.start().unwrap();
    queue.enqueue_many((0..8).map(Mail)).await;
    until("the first", || called.mails.load(SeqCst) == 1).await;
    sleep(SECOND).await;
    queue.enqueue(Bill(1)).await.unwrap();
    sleep(MINUTE).await;
    assert_eq!(called.bills.load(SeqCst), 0, "as many wait as may run");

    running.control().pause(Mail::KIND).unwrap();
    until("the other kind", || called.bills.load(SeqCst) == 1).await;
    go_on.notify_one();
    until("the one that runs", || running.report().done == 2).await;
    sleep(MINUTE).await;
    assert_eq!(called.mails.load(SeqCst), 1, "none begins");
    running.control().resume(Mail::KIND).unwrap();
    until("all", || {
        go_on.notify_one();
        running.report().done == 9
    })
    .await;
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn long_pause_dead_letters_nothing() {
    sends_nothing_to_the_dead_letters(Queue::builder("post")).await;
}

#[tokio::test(start_paused = true)]
async fn long_pause_dead_letters_nothing_whatever_max_delay() {
    for max_delay in [Duration::ZERO, MINUTE] {
        sends_nothing_to_the_dead_letters(Queue::builder("post").max_delay(max_delay)).await;
    }
}

async fn sends_nothing_to_the_dead_letters(builder: QueueBuilder) {
    let queue = builder.max_handouts(40).build().await.unwrap();
    let called = Called::default();
    let worker = Worker::builder(queue.clone()).state(called.clone()).on(mail);
    let control = worker.control();
    control.pause(Mail::KIND).unwrap();
    let running = worker.start().unwrap();
    let id = queue.enqueue(Mail(1)).await.unwrap();
    sleep(150 * MINUTE).await;
    assert_eq!((status(&queue, &id).await, called.mails.load(SeqCst)), (JobStatus::Waiting, 0));
    control.resume(Mail::KIND).unwrap();
    let resumed = Instant::now();
    while called.mails.load(SeqCst) == 0 {
        assert!(resumed.elapsed() < 370 * MINUTE, "{}", running.report());
        sleep(SECOND).await;
    }
    let report = stop(running).await;
    assert!(
        (20..25).contains(&report.snoozed),
        "half of the hand-outs in minutes, the others later: {report}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_kind_without_a_handler_can_not_be_paused() {
    let worker = Worker::builder(queue().await).state(Called::default()).on(mail);
    worker.control().pause("letter").unwrap();
    let error = worker.start().unwrap_err().to_string();
    assert!(error.contains("`letter`") && error.contains("no handler"), "{error}");

    let worker = Worker::builder(queue().await).state(Called::default()).on(mail);
    let control = worker.control();
    let running = worker.start().unwrap();
    for error in [control.pause("otherwise"), control.resume("letter")] {
        assert!(error.unwrap_err().to_string().contains("no handler"));
    }
    control.resume("mail").unwrap();
    assert!(control.paused().is_empty());
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn tasks_without_a_kind_are_paused_as_otherwise() {
    let (queue, called) = (queue().await, Called::default());
    let others = async |ctx: Ctx<Called>| {
        ctx.state().bills.fetch_add(1, SeqCst);
    };
    let running =
        Worker::builder(queue.clone()).state(called.clone()).on(mail).otherwise(others).start().unwrap();
    running.control().pause("otherwise").unwrap();
    queue.publish(kafkaq::Task::new("of another program")).await.unwrap();
    queue.enqueue(Mail(1)).await.unwrap();
    until("the kind with a handler", || called.mails.load(SeqCst) == 1).await;
    sleep(MINUTE).await;
    assert_eq!(called.bills.load(SeqCst), 0);
    running.control().resume("otherwise").unwrap();
    until("the other", || called.bills.load(SeqCst) == 1).await;
    stop(running).await;
}
