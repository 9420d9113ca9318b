//! A hundred thousand tasks, published by two processes and executed by two others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use kafkaq_tests::{Agent, BrokerKind, Line, PATIENCE, Pair, StoreKind, until};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

const TASKS: usize = 100_000;
/// How many more at a time, until both workers have executed some.
const MORE: usize = 10_000;

#[tokio::test]
async fn a_hundred_thousand_tasks_of_two_publishers_are_executed_by_two_workers() {
    let agent = env!("CARGO_BIN_EXE_agent");
    let pair = Pair::new(BrokerKind::RdKafka, StoreKind::Redis, "volume");
    let publishers =
        [Agent::publish(agent, &pair, 0, TASKS / 2), Agent::publish(agent, &pair, TASKS / 2, TASKS / 2)];
    let first = Agent::work(agent, &pair, 50, Duration::ZERO);
    until("the first worker runs", || first.runs() > 0).await;
    // The second one joins during the run, so there is a rebalance under load.
    let second = Agent::work(agent, &pair, 50, Duration::ZERO);
    let published = || publishers.iter().all(|p| p.said() == [Line::Published(TASKS / 2)]);
    until("all are published", published).await;
    // The first may have finished them before the second had joined.
    let (mut tasks, start) = (TASKS, Instant::now());
    while second.runs() == 0 {
        assert!(start.elapsed() < PATIENCE, "the second worker gets nothing");
        let more = Agent::publish(agent, &pair, tasks, MORE);
        until("more are published", || more.said() == [Line::Published(MORE)]).await;
        tasks += MORE;
    }

    let mut runs: HashMap<String, Vec<u32>> = HashMap::new();
    until("all are executed", || {
        runs.clear();
        for line in first.said().into_iter().chain(second.said()) {
            if let Line::Run { id, attempt, .. } = line {
                runs.entry(id).or_default().push(attempt);
            }
        }
        runs.len() == tasks
    })
    .await;
    let more: usize = runs.values().map(|attempts| attempts.len() - 1).sum();
    let later = runs.values().flatten().filter(|attempt| **attempt > 1).count();
    println!(
        "{tasks} tasks, {} by the first worker and {} by the second; {more} more executions than tasks, \
         {later} of them because a lease had ended before `done` was confirmed",
        first.runs(),
        second.runs(),
    );
    assert!(more < TASKS / 100, "{more} more executions than tasks");
}
