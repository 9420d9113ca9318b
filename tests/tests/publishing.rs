//! Publishing through real clients from any kind of runtime, and while the topic grows.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use kafkaq::{
    Publisher, Task,
    backend::{Partition, PartitionLog},
    rskafka::RsKafka,
};
use kafkaq_tests::{BrokerKind, Built, PATIENCE, Pair, StoreKind, admin, kafka};
use rdkafka::admin::{AdminOptions, NewPartitions};
use std::{collections::HashSet, thread, time::Instant};
use tokio::runtime::{Builder, Runtime};

const CLIENTS: [BrokerKind; 2] = [BrokerKind::RdKafka, BrokerKind::RsKafka];

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn pair(broker: BrokerKind, case: &str) -> Pair {
    Pair::new(broker, StoreKind::Memory, case)
}

/// The ends of a topic's partitions. Those that were just added may not be known to the broker yet.
async fn ends(topic: &str, partitions: i32) -> Vec<i64> {
    let log = RsKafka::builder(kafka()).build().unwrap();
    let all: Vec<_> = (0..partitions).map(|n| Partition::new(topic, n)).collect();
    let began = Instant::now();
    loop {
        let ends: Result<Vec<_>, _> = log.offsets(&all).await.into_iter().collect();
        match ends {
            Ok(ends) => return ends.into_iter().map(|offsets| offsets.next).collect(),
            Err(e) => assert!(began.elapsed() < PATIENCE, "{e}"),
        }
    }
}

fn publish_from_runtimes(
    publisher: &Publisher,
    publish: impl Fn(&Publisher, usize) + Clone + Send + 'static,
) {
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (publisher, publish) = (publisher.clone(), publish.clone());
            thread::spawn(move || (0..10).for_each(|n| publish(&publisher, 10 * thread + n)))
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("every publish succeeds"));
}

/// Each call has a runtime that is dropped after it, or one that is idle until the next call.
#[test]
fn publisher_works_from_short_lived_and_idle_runtimes() {
    for broker in CLIENTS {
        let pair = pair(broker, "runtimes");
        let publisher = runtime().block_on(pair.queue().build_publisher()).unwrap();
        let began = Instant::now();
        publish_from_runtimes(&publisher, |publisher, n| {
            runtime().block_on(publisher.publish(Task::new(format!("{n}")))).map(drop).unwrap();
        });
        let still: HashSet<_> = (0..5)
            .map(|n| {
                let (still, publisher) = (runtime(), publisher.clone());
                still.block_on(publisher.publish(Task::new(format!("{n}")))).unwrap();
                // It is neither driven nor dropped any more.
                Box::leak(Box::new(still)).handle().id()
            })
            .collect();
        assert_eq!(still.len(), 5);
        assert!(began.elapsed() < PATIENCE, "{:?} through {}", began.elapsed(), broker.name());
        let written: i64 = runtime().block_on(ends(pair.name(), 6)).iter().sum();
        assert!(written >= 45, "{written}");
    }
}

/// The same after the runtime has gone that the publisher, and the client's connections, were built on.
#[test]
fn a_publisher_outlives_the_runtime_that_it_was_built_on() {
    for broker in CLIENTS {
        let pair = pair(broker, "outlives");
        let home = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let publisher = home.block_on(pair.queue().build_publisher()).unwrap();
        home.block_on(publisher.publish(Task::new("at home"))).unwrap();
        drop(home);
        publish_from_runtimes(&publisher, |publisher, n| {
            runtime().block_on(publisher.publish(Task::new(format!("{n}")))).map(drop).unwrap();
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_publisher_uses_partitions_that_are_added() {
    for broker in CLIENTS {
        let pair = pair(broker, "grows");
        let publisher = pair.queue().partitions(1).built_publisher().await;
        publisher.publish(Task::new("before")).await.unwrap();
        let admin = admin(&kafka()).unwrap();
        let grown = [NewPartitions::new(pair.name(), 4)];
        admin.create_partitions(&grown, &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        let grown = Instant::now();
        while ends(pair.name(), 4).await.contains(&0) {
            assert!(grown.elapsed() < PATIENCE, "through {}", broker.name());
            for outcome in publisher.publish_many((0..4).map(|_| Task::new("after"))).await {
                outcome.unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        }
        println!("through {}: after {:?}", broker.name(), grown.elapsed());
    }
}
