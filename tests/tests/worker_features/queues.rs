//! Which tasks a worker takes: those of several queues by their shares, and none of a paused kind.

use crate::shared::{Number, Other, Runs, build, stop, until_all_finished, until_status, worker};
use kafkaq::{
    JobStatus,
    worker::{Ctx, Share, TaskType},
};
use kafkaq_tests::{Case, Pair, until};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::time::sleep;

pub(crate) const CASES: &[Case] = &[
    ("several_queues", |pair| Box::pin(several_queues(pair))),
    ("pause_and_resume", |pair| Box::pin(pause_and_resume(pair))),
];

async fn several_queues(pair: &Pair) {
    /// The backlog of each queue.
    const BACKLOG: u32 = 240;
    const PLACES: usize = 4;
    const LOOKED_AT: usize = 160;
    let other_pair = pair.sibling();
    let (heavy, light) = (build(pair).await, build(&other_pair).await);
    let (runs, is_open) = (Runs::default(), Arc::new(AtomicBool::new(false)));
    let (noted, gate) = (runs.clone(), is_open.clone());
    let running = worker(&heavy)
        .share(Share::weight(3))
        .queue(light.clone(), Share::weight(1))
        .concurrency(PLACES)
        .on(async |_: Ctx, _: Other| {})
        .on(move |ctx: Ctx, task: Number| {
            let (runs, gate) = (noted.clone(), gate.clone());
            async move {
                until("both backlogs", || gate.load(SeqCst)).await;
                runs.note(&ctx, task.0);
                // Meanwhile the store leases the next ones.
                sleep(Duration::from_millis(20)).await;
            }
        })
        .start()
        .unwrap();
    // Both have joined their groups.
    for queue in [&heavy, &light] {
        let id = queue.enqueue(Other(0)).await.unwrap();
        until_status(queue, &id, JobStatus::Done).await;
    }
    for (queue, numbers) in [(&heavy, 0..BACKLOG), (&light, BACKLOG..2 * BACKLOG)] {
        for outcome in queue.enqueue_many(numbers.map(Number)).await {
            outcome.unwrap();
        }
    }
    is_open.store(true, SeqCst);
    let all = 2 * u64::from(BACKLOG) + 2;
    until("all to be done", || running.report().done >= all).await;
    until_all_finished(pair, &[&heavy]).await;
    until_all_finished(&other_pair, &[&light]).await;

    assert_eq!(runs.numbers(), (0..2 * BACKLOG).collect::<Vec<_>>(), "each once");
    // Those that waited at the gate were taken before there were two backlogs.
    let of_heavy = runs.all()[PLACES..][..LOOKED_AT].iter().filter(|run| run.number < BACKLOG).count();
    // Even shares would be 80, and a strict priority all of them.
    assert!((100..=145).contains(&of_heavy), "{of_heavy} of {LOOKED_AT}, and 120 are due");
    let report = stop(running).await;
    assert_eq!((report.done, report.retried, report.lost), (all, 0, 0), "{report}");
}

async fn pause_and_resume(pair: &Pair) {
    let queue = build(pair).await;
    let (paused, free) = (Runs::default(), Runs::default());
    let running = worker(&queue).on(paused.handler::<Number>()).on(free.handler::<Other>()).start().unwrap();
    let control = running.control();
    control.pause(Number::KIND).unwrap();
    let (mut waiting, mut others) = (Vec::new(), Vec::new());
    for n in 0..10 {
        waiting.push(queue.enqueue(Number(n)).await.unwrap());
        others.push(queue.enqueue(Other(n)).await.unwrap());
    }
    for id in &others {
        until_status(&queue, id, JobStatus::Done).await;
    }
    // A task that was handed out waits only if it was snoozed.
    for id in &waiting {
        until_status(&queue, id, JobStatus::Waiting).await;
    }
    assert_eq!((free.len(), paused.len()), (10, 0));

    control.resume(Number::KIND).unwrap();
    for id in &waiting {
        until_status(&queue, id, JobStatus::Done).await;
        assert_eq!(queue.jobs().get(id).await.unwrap().failures, 0);
    }
    until_all_finished(pair, &[&queue]).await;
    assert_eq!((free.numbers(), paused.numbers()), ((0..10).collect(), (0..10).collect()));
    let report = stop(running).await;
    assert_eq!((report.done, report.retried, report.dead_lettered), (20, 0, 0), "{report}");
    assert!(report.snoozed >= 10, "{report}");
}
