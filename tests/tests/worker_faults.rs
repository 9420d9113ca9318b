//! Workers on real servers, when something around them fails.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "these are tests")]

use kafkaq::{
    JobStatus,
    worker::{Ctx, Worker},
};
use kafkaq_tests::{
    Agent, BrokerKind, Built, HANDLE_FAILURES, Hold, Line, PATIENCE, Pair, Rng, StoreKind, own_server,
    until_done,
};
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::time::sleep;
use xtask::services::Service;

const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const PAIRS: [(BrokerKind, StoreKind, Service); 2] = [
    (BrokerKind::RdKafka, StoreKind::Redis, Service::Redis),
    (BrokerKind::RsKafka, StoreKind::Etcd, Service::Etcd),
];
const SECOND: Duration = Duration::from_secs(1);
/// The concurrency of each process.
const CONCURRENCY: usize = 4;

/// The output of a test's processes, after they have ended.
#[derive(Default)]
struct Said {
    /// The tasks and tokens of handlers that were started in processes killed by the poison task.
    begun: HashSet<(String, String)>,
    /// The tasks and tokens of executions with an earlier failure.
    charged: Vec<(String, String)>,
}

impl Said {
    fn add(&mut self, agent: Agent, was_poisoned: bool) {
        for line in agent.last_words() {
            match line {
                Line::Run { id, token, .. } if was_poisoned => drop(self.begun.insert((id, token))),
                Line::Failed { id, token, .. } => self.charged.push((id, token)),
                _ => {}
            }
        }
    }

    /// Returns the tasks that were charged a failure although none of their handlers was interrupted.
    fn charged_without_handler(&self) -> Vec<&str> {
        let was_begun = |id: &str, token: &str| self.begun.iter().any(|(i, t)| i == id && t != token);
        let wrongly = self.charged.iter().filter(|(id, token)| !was_begun(id, token));
        wrongly.map(|(id, _)| id.as_str()).collect()
    }
}

/// A failure is charged to the tasks whose handlers had started in the killed process, and to those that it had just
/// taken for free slots, but to no others that it held. The first attempt of the poison task may have been prefetched,
/// which isn't charged.
#[tokio::test(flavor = "multi_thread")]
async fn poison_task_is_dead_lettered_and_its_neighbors_are_not_charged() {
    for (broker, store, _) in PAIRS {
        let pair = Pair::new(broker, store, "poison");
        let queue = pair.queue().built().await;
        let start = || Agent::handle(AGENT, &pair, CONCURRENCY, SECOND);
        let mut agents = vec![start(), start()];
        let poison = queue.enqueue(Hold::POISON).await.unwrap();
        let (mut ids, mut rng, begun) = (Vec::new(), Rng::seeded(), Instant::now());
        let (mut said, mut ends) = (Said::default(), 0);
        while !queue.jobs().get(&poison).await.is_ok_and(|info| info.status == JobStatus::Dead) {
            assert!(begun.elapsed() < PATIENCE, "the poison is not dead after {ends} processes");
            for agent in &mut agents {
                if agent.has_ended() {
                    ends += 1;
                    said.add(std::mem::replace(agent, start()), true);
                }
            }
            // More than can be executed at once, so that some are always held back.
            for _ in 0..8 {
                ids.push(queue.enqueue(Hold { ms: 20 + rng.below(80) }).await.unwrap());
            }
            sleep(Duration::from_millis(100)).await;
        }
        let took = begun.elapsed();
        let n = ids.len();
        until_done(&queue, ids, &Mutex::default()).await;
        for agent in agents {
            agent.signal("TERM");
            said.add(agent, false);
        }
        let others = said.charged_without_handler();
        assert!(
            others.len() <= CONCURRENCY * ends,
            "charged, though no handler of theirs was ended: {others:?}"
        );
        let poison = poison.to_string();
        let neighbours: HashSet<_> =
            said.charged.iter().map(|(id, _)| id).filter(|id| **id != poison).collect();
        let failures = HANDLE_FAILURES as usize;
        assert!((failures..=failures + 1).contains(&ends), "it has ended {ends} processes");
        println!(
            "{} with {}: dead after {took:.1?} and {ends} processes; of {n} neighbours {} were charged, {} of them not begun",
            broker.name(),
            store.name(),
            neighbours.len(),
            others.len(),
        );
    }
}

/// Leases are renewed when two thirds of them are left, so they outlast the outage.
#[tokio::test(flavor = "multi_thread")]
async fn handler_of_three_leases_runs_once_despite_a_store_outage_of_half_a_lease() {
    const LEASE: Duration = Duration::from_secs(10);
    for (broker, store, service) in PAIRS {
        let server = own_server(service);
        let pair = Pair::new(broker, store, "away").with_store(server.url());
        let queue = pair.queue().lease_duration(LEASE).built().await;
        let runs = Arc::new(AtomicUsize::new(0));
        let count = runs.clone();
        let handler = move |_: Ctx, _: Hold| {
            count.fetch_add(1, SeqCst);
            sleep(3 * LEASE)
        };
        let mut running = Worker::builder(queue.clone()).on(handler).start().unwrap();
        let id = queue.enqueue(Hold { ms: 0 }).await.unwrap();
        while runs.load(SeqCst) == 0 {
            sleep(Duration::from_millis(10)).await;
        }
        sleep(LEASE).await;
        server.pause().unwrap();
        sleep(LEASE / 2).await;
        server.resume().unwrap();
        let begun = Instant::now();
        while !queue.jobs().get(&id).await.is_ok_and(|info| info.status == JobStatus::Done) {
            assert!(begun.elapsed() < PATIENCE, "not done");
            sleep(Duration::from_millis(50)).await;
        }
        running.stop();
        let report = running.stopped().await.unwrap();
        assert_eq!((runs.load(SeqCst), report.done, report.lost), (1, 1, 0), "{report}");
    }
}
