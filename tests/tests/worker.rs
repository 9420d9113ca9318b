//! Workers on real servers: every outcome, and processes replaced under load.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use kafkaq::{
    JobStatus, Task, TaskId,
    worker::{Backoff, Ctx, Failure, Options, ResultExt, TaskType, Worker},
};
use kafkaq_tests::{Agent, BrokerKind, Built, Hold, Line, PATIENCE, Pair, Rng, StoreKind, until, until_done};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{task::JoinHandle, time::sleep};

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const PAIRS: [(BrokerKind, StoreKind); 2] =
    [(BrokerKind::RdKafka, StoreKind::Redis), (BrokerKind::RsKafka, StoreKind::Etcd)];
/// More than are published while the longest task runs.
const CONCURRENCY: usize = 64;
const LONGEST_MS: u64 = 3000;
const SECOND: Duration = Duration::from_secs(1);
/// What the handler of [`each_outcome_reaches_log_and_store`] has enqueued.
static CHILDREN: Mutex<Vec<TaskId>> = Mutex::new(Vec::new());

/// A task whose first attempt never ends.
#[derive(Serialize, Deserialize)]
struct Hang;

impl TaskType for Hang {
    const KIND: &'static str = "hang";
}

#[tokio::test(flavor = "multi_thread")]
async fn each_outcome_reaches_log_and_store() {
    for (broker, store) in PAIRS {
        let pair = Pair::new(broker, store, "outcomes");
        let queue = pair.queue().built().await;
        // The number of milliseconds decides what a task does.
        let handler = async |ctx: Ctx, task: Hold| -> Result<(), Failure> {
            match (task.ms, ctx.attempt()) {
                (1, _) => "x".parse::<u32>().map(drop).reject(),
                (2, 1) => Ok("x".parse::<u32>().map(drop)?),
                (3, 1) => Err(Failure::snooze(SECOND)),
                (4, 1) => panic!("on purpose"),
                (5, _) => Err(Failure::retry("as ever")),
                (6, _) => {
                    let child = ctx.enqueue(Hold { ms: 0 }).await?;
                    CHILDREN.lock().unwrap().push(child);
                    Ok(())
                }
                _ => Ok(()),
            }
        };
        let hangs = async |ctx: Ctx, _: Hang| {
            if ctx.attempt() == 1 {
                sleep(PATIENCE).await;
            }
        };
        // On a busy machine any handler may take that long, so only one kind has a timeout.
        let brief = Options::new().timeout(2 * SECOND).retry(Backoff::fixed(SECOND));
        let mut running = Worker::builder(queue.clone())
            .retry(Backoff::fixed(SECOND).max_failures(3))
            .grace(SECOND)
            .on(handler)
            .on_with(hangs, brief)
            .start()
            .unwrap();
        let mut ids = Vec::new();
        for ms in 0..=6 {
            ids.push((queue.enqueue(Hold { ms }).await.unwrap(), ms));
        }
        ids.push((queue.enqueue(Hang).await.unwrap(), 0));
        until("a child", || !CHILDREN.lock().unwrap().is_empty()).await;
        ids.extend(CHILDREN.lock().unwrap().drain(..).map(|child| (child, 0)));
        ids.push((queue.publish(Task::new("of nobody")).await.unwrap(), 1));
        let begun = Instant::now();
        for (id, ms) in ids {
            let wanted = if [1, 5].contains(&ms) { JobStatus::Dead } else { JobStatus::Done };
            while !queue.jobs().get(&id).await.is_ok_and(|info| info.status == wanted) {
                assert!(
                    begun.elapsed() < PATIENCE,
                    "{ms} is not {wanted:?}: {:?}",
                    queue.jobs().get(&id).await
                );
                sleep(Duration::from_millis(50)).await;
            }
        }
        running.stop();
        let report = running.stopped().await.unwrap();
        println!("{} with {}: {report}", broker.name(), store.name());
        assert_eq!((report.done, report.dead_lettered, report.snoozed), (7, 3, 1), "{report}");
        assert!(report.panicked == 1 && report.timed_out >= 1, "{report}");
    }
}

/// Publishes until it is told to end. Returns when each task was published.
fn publish(pair: &Pair, until: &Arc<AtomicBool>) -> JoinHandle<HashMap<String, Instant>> {
    let (builder, until) = (pair.queue(), until.clone());
    tokio::spawn(async move {
        let publisher = builder.built_publisher().await;
        let (mut published, mut rng) = (HashMap::new(), Rng::seeded());
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        while !until.load(Relaxed) {
            tick.tick().await;
            let begun = Instant::now();
            // Most are short.
            let ms = if rng.below(8) == 0 { LONGEST_MS } else { 50 + rng.below(200) };
            let id = publisher.enqueue(Hold { ms }).await.unwrap();
            published.insert(id.to_string(), begun);
        }
        published
    })
}

/// The result of [`replaced`].
struct Replaced {
    /// Since when all three work.
    since: Instant,
    /// When each task was published.
    published: HashMap<String, Instant>,
    heard: Vec<(Instant, Line)>,
}

/// Three processes work, and are replaced one by one, each by a signal when its successor works.
async fn replaced(pair: &Pair, signal: &str) -> Replaced {
    let queue = pair.queue().built().await;
    let ended = Arc::new(AtomicBool::new(false));
    let publishing = publish(pair, &ended);
    let start = || Agent::handle(AGENT, pair, CONCURRENCY, Duration::from_millis(10 * LONGEST_MS));
    let mut agents: VecDeque<_> = [start(), start(), start()].into();
    until("each process to execute something", || agents.iter().all(|agent| agent.runs() > 0)).await;
    let (since, mut heard) = (Instant::now(), Vec::new());
    for _ in 0..3 {
        let new = start();
        until("the new process to execute something", || new.runs() > 0).await;
        agents.push_back(new);
        let old = agents.pop_front().unwrap();
        old.signal(signal);
        heard.extend(tokio::task::spawn_blocking(|| old.all_heard()).await.unwrap());
    }
    sleep(2 * SECOND).await;
    ended.store(true, Relaxed);
    let published = publishing.await.unwrap();
    let ids = published.keys().map(|id| TaskId::new(id.as_str()).unwrap());
    until_done(&queue, ids, &Mutex::default()).await;
    for agent in agents {
        agent.signal("TERM");
        heard.extend(tokio::task::spawn_blocking(|| agent.all_heard()).await.unwrap());
    }
    queue.shutdown(SECOND).await.unwrap();
    Replaced { since, published, heard }
}

impl Replaced {
    /// Returns how long the tasks of the deploy waited for their first execution, sorted.
    fn waits(&self) -> Vec<Duration> {
        let mut first = HashMap::new();
        for (at, line) in &self.heard {
            if let Line::Run { id, .. } = line {
                let earliest = first.entry(id.clone()).or_insert(*at);
                *earliest = (*earliest).min(*at);
            }
        }
        let published = self.published.iter().filter(|(_, at)| **at >= self.since);
        let mut waits: Vec<_> = published.map(|(id, at)| first[id].duration_since(*at)).collect();
        waits.sort_unstable();
        waits
    }
}

fn told(pair: &Pair, what: &str, waits: &[Duration], more: &str) {
    let [p50, p99] = [waits.len() / 2, waits.len() * 99 / 100].map(|at| waits[at]);
    println!(
        "{what}, {}: {} tasks; begun after {p50:.1?} at the median, {p99:.1?} at p99, {:.1?} at most{more}",
        pair.words()[..2].join(" with "),
        waits.len(),
        waits[waits.len() - 1],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_under_load_executes_each_task_once_and_charges_nothing() {
    for (broker, store) in PAIRS {
        let pair = Pair::new(broker, store, "deploy");
        let deploy = replaced(&pair, "TERM").await;
        let Replaced { published, heard, .. } = &deploy;
        let runs: Vec<_> = heard.iter().filter(|(_, line)| matches!(line, Line::Run { .. })).collect();
        let again: Vec<_> = runs.iter().filter(|(_, l)| !matches!(l, Line::Run { attempt: 1, .. })).collect();
        assert!(again.is_empty(), "executed again: {again:?}");
        assert_eq!(runs.len(), published.len(), "executions of so many tasks");
        let charged: Vec<_> = heard.iter().filter(|(_, line)| matches!(line, Line::Failed { .. })).collect();
        assert!(charged.is_empty(), "{charged:?}");
        told(&pair, "deploy", &deploy.waits(), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_processes_lose_no_task() {
    for (broker, store) in PAIRS {
        let pair = Pair::new(broker, store, "killed");
        let killed = replaced(&pair, "KILL").await;
        let Replaced { published, heard, .. } = &killed;
        let (mut begun, mut ended) = (BTreeMap::<_, Vec<Instant>>::new(), HashSet::new());
        for (at, line) in heard {
            match line {
                Line::Run { id, .. } => begun.entry(id.clone()).or_default().push(*at),
                Line::Done { id, .. } => drop(ended.insert(id.clone())),
                _ => {}
            }
        }
        assert_eq!(ended.len(), published.len(), "of so many tasks");
        let again: Vec<_> = begun.values().filter(|runs| runs.len() > 1).collect();
        let gap = |runs: &&Vec<Instant>| runs.windows(2).map(|two| two[1].duration_since(two[0])).max();
        let longest = again.iter().filter_map(gap).max().unwrap_or_default();
        let more = format!("; {} executed again, {longest:.1?} later at most", again.len());
        told(&pair, "killed", &killed.waits(), &more);
    }
}
