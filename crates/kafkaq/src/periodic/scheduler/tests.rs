use super::*;
use crate::{
    Queue, Task,
    memory::{MemoryLog, MemoryStore},
    periodic::Schedule,
};
use std::{collections::BTreeMap, sync::Mutex, time::SystemTime};
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);

/// A wall clock that starts at `start` and goes with tokio's.
fn clock(start: &str) -> impl Fn() -> Wall + Clone + Send + Sync + 'static {
    let start: jiff::Timestamp = start.parse().unwrap();
    let (start, began) = (Wall(start.as_millisecond().unsigned_abs()), Instant::now());
    move || start.plus(began.elapsed())
}

/// Runs two schedulers and a worker over `span`; returns the local times of the ticks and how often each was executed.
async fn executed(expression: &str, start: &str, span: Duration) -> BTreeMap<String, usize> {
    let (log, store) = (MemoryLog::new(), MemoryStore::new());
    let queue = Queue::builder("q").broker(log.clone()).store(store.clone()).build().await.unwrap();
    let clock = clock(start);
    let mut running = JoinSet::new();
    for _ in 0..2 {
        let schedule = Schedule::cron(expression).unwrap().time_zone("Europe/Berlin").unwrap();
        let publisher = Queue::builder("q").broker(log.clone()).build_publisher().await.unwrap();
        let task = PeriodicTask::new("report", schedule, |tick| {
            let ms = tick.time().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
            let at = jiff::Timestamp::from_millisecond(ms.try_into().unwrap()).unwrap();
            let zone = jiff::tz::TimeZoneDatabase::bundled().get("Europe/Berlin").unwrap();
            Task::new(at.to_zoned_datetime(zone).strftime("%m-%d %H:%M %:z").to_string())
        });
        running.spawn(Scheduler::new(publisher).with_clock(clock.clone()).add(task).unwrap().run());
    }
    let times = Arc::new(Mutex::new(BTreeMap::new()));
    let counted = times.clone();
    running.spawn(async move {
        loop {
            let job = queue.get_job().await?;
            let time = String::from_utf8(job.payload().to_vec()).unwrap();
            *counted.lock().unwrap().entry(time).or_default() += 1;
            job.done().await.unwrap();
        }
    });
    sleep(span).await;
    drop(running);
    let times = times.lock().unwrap();
    times.clone()
}

fn once(times: &[&str]) -> BTreeMap<String, usize> {
    times.iter().map(|time| ((*time).to_owned(), 1)).collect()
}

#[tokio::test(start_paused = true)]
async fn ticks_run_once_over_both_clock_changes_of_a_time_zone() {
    let spring = executed("30 2 * * *", "2026-03-28T01:00:00Z", 50 * HOUR).await;
    assert_eq!(spring, once(&["03-28 02:30 +01:00", "03-29 03:00 +02:00", "03-30 02:30 +02:00"]));
    let autumn = executed("30 2 * * *", "2026-10-24T00:00:00Z", 50 * HOUR).await;
    assert_eq!(autumn, once(&["10-24 02:30 +02:00", "10-25 02:30 +02:00", "10-26 02:30 +01:00"]));
    let spring = executed("15 * * * *", "2026-03-29T00:00:00Z", 2 * HOUR).await;
    assert_eq!(spring, once(&["03-29 01:15 +01:00", "03-29 03:15 +02:00"]));
    let autumn = executed("15 * * * *", "2026-10-25T00:00:00Z", 3 * HOUR).await;
    assert_eq!(autumn, once(&["10-25 02:15 +02:00", "10-25 02:15 +01:00", "10-25 03:15 +01:00"]));
}

/// Without a check every few seconds it would sleep for a day.
#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_is_set_is_noticed_within_seconds() {
    let log = MemoryLog::new();
    let queue = Queue::builder("q").broker(log.clone()).store(MemoryStore::new()).build().await.unwrap();
    let shift = Arc::new(Mutex::new(Duration::ZERO));
    let (clock, ahead) = (clock("2026-06-01T00:00:10Z"), shift.clone());
    let task = PeriodicTask::new("daily", Schedule::cron("@daily").unwrap(), |_| Task::new("x"));
    let scheduler = Scheduler::new(queue.publisher())
        .with_clock(move || clock().plus(*ahead.lock().unwrap()))
        .add(task)
        .unwrap();
    let mut running = JoinSet::new();
    running.spawn(scheduler.run());
    let first = queue.get_job().await.unwrap();
    assert_eq!(first.id().as_str(), "daily@1.1780272000000", "it was ten seconds old");
    first.done().await.unwrap();
    *shift.lock().unwrap() = 24 * HOUR;
    let set = Instant::now();
    let second = queue.get_job().await.unwrap();
    assert_eq!(second.id().as_str(), "daily@1.1780358400000");
    assert!(set.elapsed() < 3 * LOOK, "{:?}", set.elapsed());
    second.done().await.unwrap();
}
