//! A periodic task. Two schedulers represent two processes: both publish every tick, and each tick is one task. Ticks
//! follow the wall clock, so this takes a few seconds. In memory, with nothing installed:
//! ```text
//! cargo run --example cron_report --features cron
//! ```
#![allow(clippy::print_stdout)]

use kafkaq::{
    Queue,
    periodic::{PeriodicTask, Schedule, Scheduler, Tick},
    worker::{Ctx, Failure, TaskType, Worker},
};
use serde::{Deserialize, Serialize};
use std::{
    error::Error,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Report {
    /// The period that it is about: from the tick, not from the clock of the process that executes it.
    second: u64,
}

impl TaskType for Report {
    const KIND: &'static str = "report";
}

fn report_of(tick: &Tick) -> Report {
    Report { second: tick.time().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() }
}

async fn report(ctx: Ctx<mpsc::Sender<u64>>, report: Report) -> Result<(), Failure> {
    println!("{}", ctx.id());
    Ok(ctx.state().send(report.second).await?)
}

/// Runs a report every second, three times.
///
/// # Errors
/// If the queue fails.
pub(crate) async fn run_three() -> Result<(), Box<dyn Error>> {
    let weekdays = Schedule::cron("30 6 * * MON-FRI")?.time_zone("Europe/Berlin")?;
    let next = weekdays.next_after(SystemTime::now()).ok_or("no such time")?;
    println!("{weekdays}: next in {:?}", next.duration_since(SystemTime::now())?);

    let queue = Queue::builder("reports").build().await?;
    let (sender, mut reports) = mpsc::channel(16);
    let mut worker = Worker::builder(queue.clone()).state(sender).on(report).start()?;
    let mut schedulers = tokio::task::JoinSet::new();
    for _process in 0..2 {
        let each_second = Schedule::every(Duration::from_secs(1))?;
        let scheduler = Scheduler::new(queue.publisher());
        schedulers.spawn(scheduler.add(PeriodicTask::typed("report", each_second, report_of))?.run());
    }

    let mut seconds = Vec::new();
    while seconds.len() < 3 {
        seconds.push(reports.recv().await.ok_or("the worker has stopped")?);
    }
    schedulers.abort_all();
    worker.stop();
    println!("{}", worker.stopped().await?);
    // Executions while the worker was stopping.
    while let Ok(second) = reports.try_recv() {
        seconds.push(second);
    }
    let executed = seconds.len();
    seconds.sort_unstable();
    seconds.dedup();
    assert_eq!(seconds.len(), executed, "a tick was executed twice: {seconds:?}");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    run_three().await
}
