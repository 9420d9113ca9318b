//! One process of a comparison: `bench drive BROKER,STORE[,SETTING…] COMMAND QUEUE NUMBERS…`.
//!
//! It drives kafkaq, as other programs drive other queues. The commands and what they print are common to all of them:
//! `bench/README.md` describes both.

mod executions;
mod growth;

use crate::{Outcome, all};
use executions::{Executions, Work, work};
use kafkaq::{Publisher, QueueBuilder, Task, Tracking};
use kafkaq_tests::{BrokerKind, Pair, StoreKind};
use std::{
    io::Read,
    process::exit,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, task::JoinSet, time::interval};

/// Tasks per call when publishing in bulk.
const AT_ONCE: usize = 10_000;
/// The maximum number of concurrent calls of a paced publisher. A queue that is too slow then reduces the pace.
const UNDER_WAY: usize = 1024;

/// Runs the command, and ends the process once its input has ended: until then its resource usage is measured.
pub(crate) async fn run(words: &[String]) -> Outcome<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [side, command, queue, numbers @ ..] = &words[..] else {
        return Err("drive BROKER,STORE[,SETTING…] COMMAND QUEUE NUMBERS…".into());
    };
    let side = Side::parse(side, queue)?;
    let numbers: Vec<usize> = numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
    match (*command, &numbers[..]) {
        ("fill", &[tasks]) => fill(side, tasks).await?,
        ("call", &[tasks, callers]) => call(side, tasks, callers).await?,
        ("drain", &[tasks, jobs, hold]) => drain(side, tasks, jobs, hold).await?,
        ("pace", &[rate, uncounted, counted, jobs]) => pace(side, rate, uncounted, counted, jobs).await?,
        ("work", &[jobs]) => growth::work_on(side, jobs).await?,
        ("delay", &[tasks, seconds]) => growth::delay(side, tasks, seconds).await?,
        ("park", &[tasks]) => growth::park(side, tasks).await?,
        ("snooze", &[tasks, jobs, seconds]) => growth::snooze(side, tasks, jobs, seconds).await?,
        _ => return Err(format!("no command `{command}` with {} numbers", numbers.len()).into()),
    }
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    exit(0)
}

/// A queue on a pair of backends.
struct Side {
    builder: QueueBuilder,
    in_memory: bool,
    /// Jobs that a loop takes at once.
    batch: usize,
}

impl Side {
    fn parse(side: &str, queue: &str) -> Outcome<Side> {
        let mut words = side.split(',');
        let (broker, store) = (words.next(), words.next());
        let broker = BrokerKind::ALL.iter().copied().find(|kind| Some(kind.name()) == broker);
        let store = StoreKind::ALL.iter().copied().find(|kind| Some(kind.name()) == store);
        let (Some(broker), Some(store)) = (broker, store) else {
            return Err(format!("no pair of backends: {side}").into());
        };
        let builder = Pair::named(broker, store, queue).usual_queue();
        let side = Side { builder, in_memory: broker == BrokerKind::Memory, batch: 1 };
        words.try_fold(side, Side::set)
    }

    /// Applies a setting of a side.
    fn set(self, setting: &str) -> Outcome<Side> {
        match setting.split_once('=').unwrap_or((setting, "")) {
            ("batch", number) => Ok(Side { batch: number.parse::<usize>()?.max(1), ..self }),
            ("partitions", number) => Ok(Side { builder: self.builder.partitions(number.parse()?), ..self }),
            ("slow", "") => Ok(Side { builder: self.builder.tracking(Tracking::Slow), ..self }),
            _ => Err(format!("no setting of a queue: {setting}").into()),
        }
    }

    fn work(&self, jobs: usize) -> Work {
        Work { jobs, batch: self.batch, hold: Duration::ZERO }
    }
}

fn say_begin() {
    println!(r#"{{"event":"begin"}}"#);
}

fn say_executed(tasks: usize) {
    println!(r#"{{"event":"executed","tasks":{tasks}}}"#);
}

fn say_end(tasks: usize, took: Duration, more: &str) {
    println!(r#"{{"event":"end","tasks":{tasks},"seconds":{}{more}}}"#, took.as_secs_f64());
}

/// 100 bytes that begin with the task's number.
fn task(number: usize) -> Task {
    Task::new(format!("{number:010}{}", "x".repeat(90)))
}

fn number_of(payload: &[u8]) -> Outcome<usize> {
    let digits = payload.get(..10).ok_or("a foreign task")?;
    Ok(std::str::from_utf8(digits)?.parse()?)
}

async fn fill(side: Side, tasks: usize) -> Outcome<()> {
    let publisher = side.builder.build_publisher().await?;
    // The first call connects, and is not counted.
    publish(&publisher, 0, 1).await?;
    say_begin();
    let start = Instant::now();
    publish(&publisher, 1, tasks).await?;
    say_end(tasks - 1, start.elapsed(), "");
    Ok(())
}

async fn publish(publisher: &Publisher, from: usize, to: usize) -> Outcome<()> {
    publish_each(publisher, from, to, task).await
}

async fn publish_each(
    publisher: &Publisher,
    from: usize,
    to: usize,
    task: impl Fn(usize) -> Task,
) -> Outcome<()> {
    for first in (from..to).step_by(AT_ONCE) {
        all(publisher.publish_many((first..to.min(first + AT_ONCE)).map(&task)).await)?;
    }
    Ok(())
}

async fn call(side: Side, tasks: usize, callers: usize) -> Outcome<()> {
    let publisher = side.builder.build_publisher().await?;
    publisher.publish(task(0)).await?;
    say_begin();
    let start = Instant::now();
    let mut calling = JoinSet::new();
    for caller in 0..callers {
        let publisher = publisher.clone();
        calling.spawn(async move {
            for number in (caller..tasks).step_by(callers) {
                publisher.publish(task(number)).await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(ended) = calling.join_next().await {
        ended??;
    }
    say_end(tasks, start.elapsed(), "");
    Ok(())
}

async fn drain(side: Side, tasks: usize, jobs: usize, hold_ms: usize) -> Outcome<()> {
    let work_as = Work { hold: Duration::from_millis(hold_ms as u64), ..side.work(jobs) };
    let queue = side.builder.build().await?;
    if side.in_memory {
        // Not even published by another process.
        publish(&queue.publisher(), 0, tasks).await?;
    }
    let executions = work(&queue, Executions::new(tasks, false), work_as);
    let executed = executions.all().await;
    say_end(tasks, executed.took, &format!(r#","executions":{}"#, executed.executions));
    Ok(())
}

async fn pace(side: Side, rate: usize, uncounted: usize, counted: usize, jobs: usize) -> Outcome<()> {
    let work_as = side.work(jobs);
    let queue = side.builder.build().await?;
    let tasks = uncounted + counted;
    let executions = work(&queue, Executions::new(tasks, true), work_as);
    let sent = publish_at(rate, tasks, &queue.publisher(), executions.epoch).await?;
    let executed = executions.all().await;
    let late = executions.begun.iter().zip(&sent).skip(uncounted);
    let late: Vec<_> = late
        .map(|(begun, sent)| {
            begun.get().copied().unwrap_or_default().saturating_sub(*sent).as_micros().to_string()
        })
        .collect();
    let more = format!(r#","executions":{},"late_us":[{}]"#, executed.executions, late.join(","));
    say_end(tasks, executed.took, &more);
    Ok(())
}

/// Publishes at a steady rate, and returns when each task was published.
async fn publish_at(
    rate: usize,
    tasks: usize,
    publisher: &Publisher,
    epoch: Instant,
) -> Outcome<Vec<Duration>> {
    let calls = Arc::new(Semaphore::new(UNDER_WAY));
    let mut sent = Vec::with_capacity(tasks);
    let (start, mut tick) = (Instant::now(), interval(Duration::from_millis(1)));
    while sent.len() < tasks {
        tick.tick().await;
        let due = (start.elapsed().as_secs_f64() * rate as f64) as usize;
        while sent.len() < due.min(tasks) {
            let (call, publisher, task) =
                (calls.clone().acquire_owned().await?, publisher.clone(), task(sent.len()));
            sent.push(epoch.elapsed());
            tokio::spawn(async move {
                if let Err(error) = publisher.publish(task).await {
                    // Nobody would ever execute it.
                    eprintln!("{error}");
                    exit(1);
                }
                drop(call);
            });
        }
    }
    Ok(sent)
}
