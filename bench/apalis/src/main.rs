//! apalis with Redis as one side of the comparison. bench/README.md describes the commands.

use std::{
    error::Error,
    io::Read,
    process::exit,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use apalis::prelude::*;
use apalis_redis::{Config, RedisStorage};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{interval, sleep},
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;
type Storage = RedisStorage<String>;

const AT_ONCE: usize = 1000;
/// The maximum number of concurrent calls of a paced publisher.
const UNDER_WAY: usize = 1024;
/// How many tasks a worker fetches at once: 10 by default.
const BATCH: usize = 100;
/// By default it polls for tasks only at each heartbeat, every 30 s.
const POLL: Duration = Duration::from_millis(10);

#[tokio::main]
async fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [command, queue, numbers @ ..] = &words[..] else { return Err("COMMAND QUEUE NUMBERS".into()) };
    let numbers: Vec<usize> = numbers.iter().map(|number| number.parse()).collect::<Result<_, _>>()?;
    let connection = apalis_redis::connect(std::env::var("KAFKAQ_TEST_REDIS")?).await?;
    let storage = Storage::new(connection).with_config(Config::default().queue(queue).batch_size(BATCH));
    match (command.as_str(), &numbers[..]) {
        ("fill", &[tasks]) => fill(storage, tasks).await?,
        ("call", &[tasks, callers]) => call(storage, tasks, callers).await?,
        ("drain", &[tasks, jobs, hold]) => drain(storage, tasks, jobs, hold).await?,
        ("pace", &[rate, uncounted, counted, jobs]) => pace(storage, rate, uncounted, counted, jobs).await?,
        _ => return Err(format!("no command {command}").into()),
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    exit(0)
}

/// 100 characters that begin with the task's number.
fn task(number: usize) -> String {
    format!("{number:010}{}", "x".repeat(90))
}

async fn fill(mut storage: Storage, tasks: usize) -> Outcome<()> {
    say_begin();
    let start = Instant::now();
    for first in (0..tasks).step_by(AT_ONCE) {
        storage.push_bulk((first..tasks.min(first + AT_ONCE)).map(task).collect()).await?;
    }
    say_end(tasks, start.elapsed(), "");
    Ok(())
}

async fn call(storage: Storage, tasks: usize, callers: usize) -> Outcome<()> {
    say_begin();
    let start = Instant::now();
    let mut calling = JoinSet::new();
    for caller in 0..callers {
        let mut storage = storage.clone();
        calling.spawn(async move {
            for number in (caller..tasks).step_by(callers) {
                storage.push(task(number)).await?;
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

async fn drain(storage: Storage, tasks: usize, jobs: usize, hold_ms: usize) -> Outcome<()> {
    let executions = work(storage, tasks, jobs, Duration::from_millis(hold_ms as u64));
    let took = executions.all().await;
    say_end(tasks, took, &format!(r#","executions":{}"#, executions.count.load(Relaxed)));
    Ok(())
}

async fn pace(storage: Storage, rate: usize, uncounted: usize, counted: usize, jobs: usize) -> Outcome<()> {
    let tasks = uncounted + counted;
    let executions = work(storage.clone(), tasks, jobs, Duration::ZERO);
    let calls = Arc::new(Semaphore::new(UNDER_WAY));
    let mut sent = Vec::with_capacity(tasks);
    let (start, mut tick) = (Instant::now(), interval(Duration::from_millis(1)));
    while sent.len() < tasks {
        tick.tick().await;
        let due = (start.elapsed().as_secs_f64() * rate as f64) as usize;
        while sent.len() < due.min(tasks) {
            let (call, mut storage, task) =
                (calls.clone().acquire_owned().await?, storage.clone(), task(sent.len()));
            sent.push(executions.epoch.elapsed());
            tokio::spawn(async move {
                if let Err(error) = storage.push(task).await {
                    eprintln!("{error}");
                    exit(1);
                }
                drop(call);
            });
        }
    }
    let took = executions.all().await;
    let late = executions.begun.iter().zip(&sent).skip(uncounted);
    let late: Vec<_> = late
        .map(|(begun, sent)| {
            begun.get().copied().unwrap_or_default().saturating_sub(*sent).as_micros().to_string()
        })
        .collect();
    let count = executions.count.load(Relaxed);
    say_end(tasks, took, &format!(r#","executions":{count},"late_us":[{}]"#, late.join(",")));
    Ok(())
}

/// Which tasks have been executed.
struct Executions {
    epoch: Instant,
    /// When the first execution of each task began, and which of the tasks have ended.
    begun: Vec<OnceLock<Duration>>,
    ended: Vec<OnceLock<()>>,
    first: OnceLock<Duration>,
    count: AtomicUsize,
    left: AtomicUsize,
    all: Notify,
}

impl Executions {
    async fn execute(&self, payload: &str, hold: Duration) {
        let now = self.epoch.elapsed();
        self.count.fetch_add(1, Relaxed);
        if self.first.set(now).is_ok() {
            say_begin();
        }
        let Some(number) = payload.get(..10).and_then(|digits| digits.parse::<usize>().ok()) else { return };
        let _ = self.begun[number].set(now);
        if !hold.is_zero() {
            sleep(hold).await;
        }
        if self.ended[number].set(()).is_ok() && self.left.fetch_sub(1, Relaxed) == 1 {
            self.all.notify_one();
        }
    }

    /// From the first execution to the last.
    async fn all(&self) -> Duration {
        self.all.notified().await;
        self.epoch.elapsed() - self.first.get().copied().unwrap_or_default()
    }
}

fn work(storage: Storage, tasks: usize, jobs: usize, hold: Duration) -> Arc<Executions> {
    let executions = Arc::new(Executions {
        epoch: Instant::now(),
        begun: (0..tasks).map(|_| OnceLock::new()).collect(),
        ended: (0..tasks).map(|_| OnceLock::new()).collect(),
        first: OnceLock::new(),
        count: AtomicUsize::new(0),
        left: AtomicUsize::new(tasks),
        all: Notify::new(),
    });
    let worker = WorkerBuilder::new("driver")
        .backend(storage.poll_with_interval(POLL))
        .concurrency(jobs)
        .parallelize(tokio::spawn)
        .data((executions.clone(), hold))
        .build(execute);
    let runtime = tokio::runtime::Handle::current();
    // Its future can't be spawned: the compiler doesn't see that it is `Send`.
    std::thread::spawn(move || {
        let ended = runtime.block_on(worker.run());
        eprintln!("the worker stopped: {ended:?}");
        exit(1);
    });
    executions
}

async fn execute(payload: String, data: Data<(Arc<Executions>, Duration)>) -> Result<(), BoxDynError> {
    data.0.0.execute(&payload, data.1).await;
    Ok(())
}

fn say_begin() {
    println!(r#"{{"event":"begin"}}"#);
}

fn say_end(tasks: usize, took: Duration, more: &str) {
    println!(r#"{{"event":"end","tasks":{tasks},"seconds":{}{more}}}"#, took.as_secs_f64());
}
