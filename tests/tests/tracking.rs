//! Queues with `Tracking::Slow`, on real servers.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "these are tests")]

use kafkaq::{JobController, JobStatus, Publisher, Task};
use kafkaq_tests::{Agent, BrokerKind, Built, Line, PATIENCE, Pair, StoreKind};
use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};
use tokio::time::sleep;

const PAIRS: [(BrokerKind, StoreKind); 2] =
    [(BrokerKind::RdKafka, StoreKind::Redis), (BrokerKind::RsKafka, StoreKind::Etcd)];
const AGENT: &str = env!("CARGO_BIN_EXE_agent");
/// How many tasks at the start of each assignment have a lease, and how many may be executed again after a crash.
const SPAN: usize = 8192;
const WORKERS: usize = 20;

/// Returns what these agents have executed, as reported at the start of each execution: a finished task may be
/// committed before a killed process has reported that, and then nobody else knows of it.
fn executed(agents: &[&Agent]) -> HashSet<String> {
    let said = agents.iter().flat_map(|agent| agent.said());
    said.filter_map(|line| if let Line::Run { id, .. } = line { Some(id) } else { None }).collect()
}

/// Waits until all of them are executed. The patience restarts with each progress, for busy machines.
async fn until_executed(agents: &[&Agent], ids: &HashSet<String>) {
    let (mut since, mut ended) = (Instant::now(), 0);
    loop {
        let executed = executed(agents);
        if executed.is_superset(ids) {
            return;
        }
        if executed.len() > ended {
            (since, ended) = (Instant::now(), executed.len());
        }
        assert!(since.elapsed() < PATIENCE, "{ended} of {} are executed", ids.len());
        sleep(Duration::from_millis(300)).await;
    }
}

/// Publishes that many tasks and returns their ids.
async fn publish(publisher: &Publisher, tasks: usize) -> Vec<String> {
    let published = publisher.publish_many((0..tasks).map(|_| Task::new("x")).collect::<Vec<_>>()).await;
    published.into_iter().map(|id| id.unwrap().to_string()).collect()
}

/// Returns how many of these the store knows.
async fn known(jobs: &JobController, ids: &[String]) -> usize {
    let mut known = 0;
    for id in ids {
        let status = jobs.get(&id.parse().unwrap()).await.unwrap().status;
        known += usize::from(status != JobStatus::Unknown);
    }
    known
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_process_loses_no_task_without_a_lease() {
    const PORTION: usize = 500;
    for (broker, store) in PAIRS {
        let pair = Pair::new(broker, store, "tracking").with_slow_tracking();
        let publisher = pair.queue().partitions(1).built_publisher().await;
        let jobs = pair.queue().build_jobs().await.unwrap();
        let first = publish(&publisher, SPAN).await;
        let mut ids: HashSet<String> = first.iter().cloned().collect();
        let victim = Agent::work(AGENT, &pair, WORKERS, Duration::ZERO);
        until_executed(&[&victim], &ids).await;
        assert!(known(&jobs, &first[..PORTION]).await > 0, "the first ones have a lease");

        // How soon a task needs no lease depends on how soon the ones before it are committed.
        let begun = Instant::now();
        loop {
            let portion = publish(&publisher, PORTION).await;
            ids.extend(portion.iter().cloned());
            until_executed(&[&victim], &portion.iter().cloned().collect()).await;
            if known(&jobs, &portion).await < PORTION {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "the store knows all of {} tasks", ids.len());
        }

        let (mut since, mut begun) = (Instant::now(), victim.runs());
        let enough = begun + PORTION;
        ids.extend(publish(&publisher, 8000).await);
        while begun < enough {
            sleep(Duration::from_millis(20)).await;
            if victim.runs() > begun {
                (since, begun) = (Instant::now(), victim.runs());
            }
            assert!(since.elapsed() < PATIENCE, "{begun} are begun");
        }
        victim.signal("KILL");
        let mut next = Agent::work(AGENT, &pair, WORKERS, Duration::ZERO);
        until_executed(&[&victim, &next], &ids).await;

        next.end();
        let mut runs: HashMap<String, usize> = HashMap::new();
        for line in victim.last_words().into_iter().chain(next.last_words()) {
            if let Line::Run { id, .. } = line {
                *runs.entry(id).or_default() += 1;
            }
        }
        for id in ids.iter().take(2000) {
            let status = jobs.get(&id.parse().unwrap()).await.unwrap().status;
            assert!(matches!(status, JobStatus::Unknown | JobStatus::Done), "{id} is {status:?}");
        }
        let again = runs.values().filter(|runs| **runs > 1).count();
        println!(
            "{} with {}: of {} tasks {again} were executed again after the kill",
            broker.name(),
            store.name(),
            ids.len(),
        );
        assert!(again <= SPAN, "{again}");
    }
}
