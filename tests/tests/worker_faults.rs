//! Workers on real servers, when something around them fails.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "these are tests")]

use kafkaq::{
    JobStatus,
    worker::{Ctx, Worker},
};
use kafkaq_tests::{
    Agent, BrokerKind, HANDLE_FAILURES, Hold, Line, PATIENCE, Pair, Rng, StoreKind, own_server, until_done,
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

/// What an agent that has ended said: the tasks that it had begun and not ended, and those that had failed before.
fn unfinished_and_charged(said: &[Line]) -> (HashSet<String>, HashSet<String>) {
    let (mut unfinished, mut charged) = (HashSet::new(), HashSet::new());
    for line in said {
        match line {
            Line::Run { id, .. } => drop(unfinished.insert(id.clone())),
            Line::Done { id, .. } => drop(unfinished.remove(id)),
            Line::Failed { id, .. } => drop(charged.insert(id.clone())),
            Line::Published(_) => {}
        }
    }
    (unfinished, charged)
}

/// A failure is charged to the tasks whose handlers ran when the process ended, and to no other that it held.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_ends_its_process_is_dead_after_its_failures_and_charges_no_neighbour() {
    for (broker, store, _) in PAIRS {
        let pair = Pair::new(broker, store, "poison");
        let queue = pair.queue().build().await.unwrap();
        let start = || Agent::handle(AGENT, &pair, 4, SECOND);
        let mut agents = vec![start(), start()];
        let poison = queue.enqueue(Hold::POISON).await.unwrap();
        let (mut ids, mut rng, begun) = (Vec::new(), Rng::seeded(), Instant::now());
        let (mut unfinished, mut charged) = (HashSet::new(), HashSet::new());
        let mut ends = 0;
        let mut end = |agent: Agent| {
            let (more_unfinished, more_charged) = unfinished_and_charged(&agent.last_words());
            unfinished.extend(more_unfinished);
            charged.extend(more_charged);
        };
        while !queue.jobs().get(&poison).await.is_ok_and(|info| info.status == JobStatus::Dead) {
            assert!(begun.elapsed() < PATIENCE, "the poison is not dead after {ends} processes");
            for agent in &mut agents {
                if agent.has_ended() {
                    ends += 1;
                    end(std::mem::replace(agent, start()));
                }
            }
            // More than can be executed at once, so that some are always held back.
            for _ in 0..8 {
                ids.push(queue.enqueue(Hold { ms: 20 + rng.below(80) }).await.unwrap());
            }
            sleep(Duration::from_millis(100)).await;
        }
        let n = ids.len();
        until_done(&queue, ids, &Mutex::default()).await;
        for agent in agents {
            agent.signal("TERM");
            end(agent);
        }
        let poison = poison.to_string();
        let wrongly: Vec<_> = charged.difference(&unfinished).collect();
        assert!(wrongly.is_empty(), "charged, though no handler of theirs was interrupted: {wrongly:?}");
        assert!(charged.contains(&poison), "the poison was executed again");
        println!(
            "{} with {}: dead {:.1?} after {HANDLE_FAILURES} processes; of {n} neighbours {} were running then",
            broker.name(),
            store.name(),
            begun.elapsed(),
            charged.len() - 1,
        );
    }
}

/// The lease is as long as the store is away, and was renewed a third of it before at the latest.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_of_three_leases_runs_once_though_the_store_is_away_for_half_a_lease() {
    const LEASE: Duration = Duration::from_secs(10);
    for (broker, store, service) in PAIRS {
        let server = own_server(service);
        let pair = Pair::new(broker, store, "away").with_store(server.url());
        let queue = pair.queue().lease_duration(LEASE).build().await.unwrap();
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
