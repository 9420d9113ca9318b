//! When tasks are executed, and until when: delays, expiry, and periodic tasks.

use crate::shared::{Number, Runs, SECOND, build, stop, until_all_finished, until_status, worker};
use kafkaq::{
    JobStatus, Queue, TaskId,
    dead_letters::Filter,
    periodic::{Missed, PeriodicTask, Schedule, Scheduler, Tick},
    worker::{Ctx, TaskType, WorkerHandle},
};
use kafkaq_tests::{Case, Pair, until};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};
use tokio::task::JoinHandle;

pub(crate) const CASES: &[Case] = &[
    ("delay_and_at", |pair| Box::pin(delay_and_at(pair))),
    ("expires", |pair| Box::pin(expires(pair))),
    ("periodic", |pair| Box::pin(periodic(pair))),
];

async fn delay_and_at(pair: &Pair) {
    const DELAY: Duration = Duration::from_secs(3);
    let queue = build(pair).await;
    let runs = Runs::default();
    let running = worker(&queue).on(runs.handler::<Number>()).start().unwrap();
    let begun = Instant::now();
    let at = SystemTime::now() + DELAY;
    let ids: [TaskId; 3] = [
        queue.enqueue(Number(0)).delay(DELAY).await.unwrap(),
        queue.enqueue(Number(1)).at(at).await.unwrap(),
        queue.enqueue(Number(2)).at(at - 3600 * SECOND).await.unwrap(),
    ];
    for id in &ids {
        until_status(&queue, id, JobStatus::Done).await;
    }
    assert_eq!(runs.numbers(), [0, 1, 2]);
    for run in runs.all().iter().filter(|run| run.number < 2) {
        let waited = run.at - begun;
        // The wall clock has a resolution of 1 ms.
        assert!(waited + Duration::from_millis(5) >= DELAY, "{} after {waited:?}", run.number);
        assert_eq!(run.attempt, 1);
    }
    assert_eq!(stop(running).await.done, 3);
}

async fn expires(pair: &Pair) {
    let queue = build(pair).await;
    let past = SystemTime::now() - SECOND;
    // Its first execution is over.
    let late = queue.enqueue(Number(0)).expires(past).await.unwrap();
    queue.get_job().await.unwrap().retry(Duration::ZERO, "not now").await.unwrap();
    let runs = Runs::default();
    let running = worker(&queue).on(runs.handler::<Number>()).start().unwrap();
    let in_time = queue.enqueue(Number(1)).expires(past + 24 * 3600 * SECOND).await.unwrap();
    let dropped = queue.enqueue(Number(2)).expires(past).await.unwrap();
    let dead = queue.enqueue(Number(3)).expires_to_dead_letter(past).await.unwrap();
    for (id, status) in [
        (&late, JobStatus::Done),
        (&in_time, JobStatus::Done),
        (&dropped, JobStatus::Done),
        (&dead, JobStatus::Dead),
    ] {
        until_status(&queue, id, status).await;
    }
    assert_eq!(runs.numbers(), [0, 1]);
    let report = stop(running).await;
    assert_eq!((report.done, report.expired, report.dead_lettered), (2, 1, 1), "{report}");
    let letters = pair.dead_letters().await.letters(Filter::new()).await.unwrap().next_page(9).await.unwrap();
    assert_eq!(letters.iter().map(|letter| letter.id.clone()).collect::<Vec<_>>(), [Some(dead)]);
    assert!(letters[0].reason.as_ref().unwrap().contains("expired"), "{letters:?}");
}

/// A tick of a schedule, in seconds.
#[derive(Debug, Serialize, Deserialize)]
struct Ticked {
    schedule: String,
    time: u64,
}

impl TaskType for Ticked {
    const KIND: &'static str = "ticked";
}

fn ticked(tick: &Tick) -> Ticked {
    let time = tick.time().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    Ticked { schedule: tick.name().to_owned(), time }
}

/// How often each tick was executed, for each schedule.
type Executed = Arc<Mutex<BTreeMap<String, BTreeMap<u64, u32>>>>;

/// A process that publishes the ticks and executes them.
async fn process(pair: &Pair, executed: &Executed) -> (Queue, WorkerHandle, JoinHandle<()>) {
    let queue = build(pair).await;
    let executed = executed.clone();
    let running = worker(&queue)
        .on(move |_: Ctx, Ticked { schedule, time }: Ticked| {
            *executed.lock().unwrap().entry(schedule).or_default().entry(time).or_default() += 1;
            async {}
        })
        .start()
        .unwrap();
    let all = Missed::RunAll { within: 20 * SECOND };
    let mut scheduler = Scheduler::new(queue.publisher());
    for (name, schedule) in [("every", Schedule::every(SECOND)), ("cron", Schedule::cron("*/2 * * * * *"))] {
        let task = PeriodicTask::typed(name, schedule.unwrap(), ticked).missed(all);
        scheduler = scheduler.add(task).unwrap();
    }
    let publishing = tokio::spawn(async move { drop(scheduler.run().await) });
    (queue, running, publishing)
}

async fn periodic(pair: &Pair) {
    let executed = Executed::default();
    let (one, two) = tokio::join!(process(pair, &executed), process(pair, &executed));
    // Those of the last twenty seconds are published first.
    until("ticks to be executed", || {
        let executed = executed.lock().unwrap();
        executed.get("every").is_some_and(|ticks| ticks.len() >= 30)
            && executed.get("cron").is_some_and(|ticks| ticks.len() >= 15)
    })
    .await;
    for (_, _, publishing) in [&one, &two] {
        publishing.abort();
    }
    until_all_finished(pair, &[&one.0, &two.0]).await;
    for (name, period) in [("every", 1), ("cron", 2)] {
        let ticks = executed.lock().unwrap().remove(name).unwrap();
        assert!(ticks.values().all(|runs| *runs == 1), "{name}: {ticks:?}");
        let times: Vec<_> = ticks.keys().copied().collect();
        assert!(times.windows(2).all(|two| two[1] - two[0] == period), "{name}: {times:?}");
        assert!(times.iter().all(|time| time.is_multiple_of(period)), "{name}: {times:?}");
    }
    for (_, running, _) in [one, two] {
        stop(running).await;
    }
}
