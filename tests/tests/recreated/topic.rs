//! The topic is deleted and recreated.

use crate::queue::{Client, Site, Worker, ids, load, publish};
use kafkaq_tests::delete_topic;
use std::{
    collections::HashSet,
    time::{Duration, Instant},
};
use tokio::time::sleep;

const PARTITIONS: i32 = 2;
/// Tasks in the first log.
const FIRST: usize = 300;

/// How many tasks the new log gets at once, besides the load, compared with the earlier log.
#[derive(Clone, Copy, Debug)]
enum Length {
    Shorter,
    Equal,
    Longer,
}

/// What happens to the worker process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Process {
    /// It continues.
    Stays,
    /// Another one starts when the new log exists.
    IsReplaced,
    /// There is none while the topic is deleted and refilled.
    IsAway,
}

/// Each with the time for which the topic is missing, in milliseconds.
const ROUNDS: [(Length, u64, Process); 10] = [
    (Length::Shorter, 0, Process::Stays),
    (Length::Equal, 0, Process::Stays),
    (Length::Longer, 0, Process::Stays),
    (Length::Shorter, 0, Process::IsReplaced),
    (Length::Equal, 500, Process::Stays),
    (Length::Longer, 0, Process::IsAway),
    (Length::Shorter, 3000, Process::Stays),
    (Length::Equal, 1000, Process::IsReplaced),
    (Length::Longer, 3000, Process::IsAway),
    (Length::Equal, 50, Process::Stays),
];

impl Length {
    fn of(self, earlier: usize) -> usize {
        match self {
            Length::Shorter => earlier / 4,
            Length::Equal => earlier,
            Length::Longer => earlier * 2,
        }
    }
}

pub(crate) async fn nothing_is_lost(client: Client) {
    let site = Site::new(client, "recreated", PARTITIONS);
    let publisher = site.publisher().await;
    let mut worker = Some(Worker::start(&site).await);
    publish(&publisher, &ids("first", FIRST)).await;
    let load = load(&site.publisher().await);
    let mut earlier = site.log().await;
    site.until_executed(&earlier, "in the first log").await;
    for (round, (length, missing, process)) in ROUNDS.into_iter().enumerate() {
        let when = format!("round {round}, {length:?} after {missing} ms, the process {process:?}");
        if process == Process::IsAway {
            worker.take().unwrap().end().await;
        }
        delete_topic(&site.pair.kafka(), site.topic()).await.unwrap();
        sleep(Duration::from_millis(missing)).await;
        drop(site.publisher().await);
        let recreated = Instant::now();
        let tasks = ids("task", length.of(earlier.len()));
        publish(&publisher, &tasks).await;
        let published = recreated.elapsed();
        if process == Process::IsReplaced {
            worker.take().unwrap().end().await;
        }
        if worker.is_none() {
            worker = Some(Worker::start(&site).await);
        }
        let log = site.log().await;
        let held: HashSet<_> = log.iter().collect();
        let kept = tasks.iter().filter(|id| held.contains(id)).count();
        assert!(kept * 2 > tasks.len(), "{when}: the new log has {kept} of {} tasks", tasks.len());
        site.until_executed(&log, &when).await;
        println!(
            "{}, {when}: {kept} of {} published within {published:.1?}; all {} of the log executed after {:.1?}",
            client.name(),
            tasks.len(),
            log.len(),
            recreated.elapsed()
        );
        earlier = log;
    }
    drop(load);
    let last = site.log().await;
    site.until_executed(&last, "in the last log").await;
    worker.unwrap().end().await;
}
