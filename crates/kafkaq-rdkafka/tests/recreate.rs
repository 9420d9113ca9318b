//! A topic that is deleted and recreated under a running member. Needs a real server: without `KAFKAQ_TEST_KAFKA` it
//! says so and does nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

mod common;

use common::*;
use futures_util::StreamExt;
use kafkaq_core::*;
use kafkaq_rdkafka::RdKafka;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    types::RDKafkaErrorCode as Code,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const PARTITIONS: i32 = 2;
/// A check comes every ten seconds; this is far more.
const FOUND: Duration = Duration::from_secs(90);

/// What was delivered, by payload, and the reported errors.
#[derive(Default)]
struct Seen {
    assigned: BTreeSet<Partition>,
    records: BTreeSet<String>,
    said: Vec<String>,
}

/// Works as the driver does: finishes everything that it reads at once, and commits all the time.
async fn work(
    kafka: RdKafka,
    request: JoinRequest,
    seen: Arc<Mutex<Seen>>,
    mut stop: tokio::sync::watch::Receiver<bool>,
) {
    let mut c = kafka.join(request).await.unwrap();
    let mut next: BTreeMap<(Partition, u64), i64> = BTreeMap::new();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    // One at a time, and nothing waits for it.
    let mut committing: Option<tokio::task::JoinHandle<()>> = None;
    let commits = |next: &BTreeMap<(Partition, u64), i64>| -> Vec<Commit> {
        let commit = |((partition, epoch), offset): (&(Partition, u64), &i64)| Commit {
            assignment: Assignment { partition: partition.clone(), epoch: *epoch },
            offset: *offset,
        };
        next.iter().map(commit).collect()
    };
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            _ = tick.tick(), if committing.is_none() => {
                let (member, commits) = (c.member.clone(), commits(&next));
                committing = Some(tokio::spawn(async move { drop(member.commit(&commits).await) }));
            }
            _ = async { if let Some(commit) = &mut committing { drop(commit.await) } }, if committing.is_some() => {
                committing = None;
            }
            event = c.events.next() => match event.unwrap() {
                Ok(Event::Records(of, batch)) => {
                    let last = next.entry((of.partition.clone(), of.epoch)).or_insert(0);
                    let mut seen = seen.lock().unwrap();
                    for record in &batch.records {
                        assert!(record.offset >= *last, "{of}: {} after {last}", record.offset);
                        *last = record.offset + 1;
                        let payload = record.value.clone().unwrap().to_vec();
                        seen.records.insert(String::from_utf8(payload).unwrap());
                    }
                }
                Ok(Event::Assigned(list)) => {
                    seen.lock().unwrap().assigned.extend(list.into_iter().map(|a| a.partition));
                }
                Ok(Event::Revoking(list)) => {
                    drop(c.member.commit(&commits(&next)).await);
                    c.member.release(&list);
                }
                Ok(Event::Lost(list)) => next.retain(|(p, e), _| !list.iter().any(|a| a.partition == *p && a.epoch == *e)),
                Ok(_) => {}
                Err(e) => {
                    assert_eq!(e.retry(), Retry::Yes, "{e}");
                    seen.lock().unwrap().said.push(e.to_string());
                }
            }
        }
    }
    kafka.close().await.unwrap();
}

struct Worker {
    stop: tokio::sync::watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Worker {
    fn start(site: &Site, seen: &Arc<Mutex<Seen>>) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let task = tokio::spawn(work(site.kafka(), site.request("g"), seen.clone(), stopped));
        Worker { stop, task }
    }

    async fn end(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

fn admin(site: &Site) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", &site.bootstrap).create().unwrap()
}

async fn create(admin: &AdminClient<DefaultClientContext>, topic: &str) {
    let topics = [NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1))];
    let until = Instant::now() + LONG;
    loop {
        let outcome = admin.create_topics(&topics, &AdminOptions::new()).await;
        match outcome.unwrap().remove(0) {
            Ok(_) => return,
            Err((_, Code::TopicAlreadyExists)) if Instant::now() < until => {}
            Err((_, e)) => panic!("{e}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Appends as a publisher does, until all are there.
async fn append(kafka: &RdKafka, to: &Partition, payloads: &[String]) {
    for chunk in payloads.chunks(500) {
        let mut left: Vec<_> = chunk.iter().map(|payload| record(payload.clone())).collect();
        while !left.is_empty() {
            let outcomes = kafka.append(to, &left).await;
            let mut failed = outcomes.iter().map(Result::is_err);
            left.retain(|_| failed.next().unwrap());
        }
    }
}

/// Publishes all the time, whatever happens to the topic.
async fn publish_all_the_time(kafka: RdKafka, topic: Arc<str>, mut stop: tokio::sync::watch::Receiver<bool>) {
    for n in 0.. {
        let to = Partition::new(topic.clone(), n % PARTITIONS);
        let _ = kafka.append(&to, &[record(format!("load-{n}"))]).await;
        if tokio::time::timeout(Duration::from_millis(10), stop.changed()).await.is_ok() {
            break;
        }
    }
    kafka.close().await.unwrap();
}

/// Returns what the log contains at this moment.
async fn content(kafka: &RdKafka, topic: &Arc<str>) -> BTreeSet<String> {
    // A client takes a while to notice that the topic is another one.
    let until = Instant::now() + LONG;
    let again = async |e: Error| {
        assert!(Instant::now() < until, "{e}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let mut all = BTreeSet::new();
    for index in 0..PARTITIONS {
        let (partition, mut offset) = (Partition::new(topic.clone(), index), 0);
        let end = async || loop {
            match kafka.offsets(std::slice::from_ref(&partition)).await.remove(0) {
                Ok(offsets) => break offsets.next,
                Err(e) => again(e).await,
            }
        };
        let mut until = end().await;
        while offset < until {
            let from = Position { partition: partition.clone(), offset };
            match kafka.fetch(&from, FetchLimit::new(Duration::from_millis(500), 1 << 20)).await {
                // That was the end of the earlier log, if it was still being served.
                Ok(batch) if batch.next == offset => until = end().await,
                Ok(batch) => {
                    offset = batch.next;
                    let payload = |r: &Record| String::from_utf8(r.value.clone().unwrap().to_vec()).unwrap();
                    all.extend(batch.records.iter().map(payload));
                }
                Err(e) => again(e).await,
            }
        }
    }
    all
}

async fn all_delivered(kafka: &RdKafka, topic: &Arc<str>, seen: &Mutex<Seen>, round: &str) {
    const SOON: Duration = Duration::from_secs(1);
    let began = Instant::now();
    loop {
        let (expected, since) = (content(kafka, topic).await, Instant::now());
        let missing =
            || -> Vec<String> { expected.difference(&seen.lock().unwrap().records).cloned().collect() };
        while !missing().is_empty() && since.elapsed() < SOON {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The earlier log is served for a while, and its records are gone with it.
        if !expected.is_subset(&content(kafka, topic).await) {
            continue;
        }
        let (missing, all) = (missing(), expected.len());
        if missing.is_empty() {
            println!("{round}: all {all} delivered after {:?}", began.elapsed());
            return;
        }
        let said = &seen.lock().unwrap().said;
        assert!(
            began.elapsed() < FOUND,
            "{round}: {} of {all} were not delivered, {missing:?}; said: {said:?}",
            missing.len()
        );
    }
}

/// How many records a topic gets after it was recreated, in each partition, how long it doesn't exist, and whether
/// the member is another one then. Before it there are 300 or as many as in the round before.
const ROUNDS: &[(usize, u64, bool)] = &[
    (10, 0, false),
    (10, 0, false),
    (500, 0, false),
    (2000, 0, true),
    (2000, 500, false),
    (100, 1000, true),
    (100, 3000, false),
    (1000, 3000, true),
    (1000, 0, true),
    (1500, 50, false),
];

async fn runs(site: Site) {
    let site = site.with_topic(PARTITIONS).await;
    let topic = site.topic();
    let (kafka, admin) = (site.kafka(), admin(&site));
    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut worker = Worker::start(&site, &seen);
    for index in 0..PARTITIONS {
        append(&kafka, &Partition::new(topic.clone(), index), &payloads(0, index, 300)).await;
    }
    all_delivered(&kafka, &topic, &seen, "before").await;
    let (stop_load, stopped) = tokio::sync::watch::channel(false);
    let load = tokio::spawn(publish_all_the_time(site.kafka(), topic.clone(), stopped));
    for (round, (n, pause, another)) in ROUNDS.iter().enumerate() {
        // The last commits.
        tokio::time::sleep(Duration::from_millis(300)).await;
        admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        tokio::time::sleep(Duration::from_millis(*pause)).await;
        create(&admin, &topic).await;
        for index in 0..PARTITIONS {
            append(&kafka, &Partition::new(topic.clone(), index), &payloads(round + 1, index, *n)).await;
        }
        if *another {
            worker.end().await;
            worker = Worker::start(&site, &seen);
        }
        all_delivered(
            &kafka,
            &topic,
            &seen,
            &format!("{:?}, round {round}: {n} after {pause} ms", site.protocol),
        )
        .await;
    }
    stop_load.send_replace(true);
    load.await.unwrap();
    worker.end().await;
    kafka.close().await.unwrap();
    let said = &seen.lock().unwrap().said;
    println!("{:?}: {} alarms, the first: {:?}", site.protocol, said.len(), said.first());
    assert!(said.iter().any(|e| e.contains("deleted and recreated")), "{said:?}");
}

fn payloads(round: usize, index: i32, n: usize) -> Vec<String> {
    (0..n).map(|i| format!("{round}-{index}-{i}")).collect()
}

/// Retention has deleted all records, so none shows in which log the member began.
async fn begins_in_an_empty_log(site: Site) {
    const DELETED: usize = 300;
    let site = site.with_topic(PARTITIONS).await;
    let topic = site.topic();
    let (kafka, admin) = (site.kafka(), admin(&site));
    let mut deleted = TopicPartitionList::new();
    for index in 0..PARTITIONS {
        append(&kafka, &Partition::new(topic.clone(), index), &payloads(0, index, DELETED)).await;
        deleted.add_partition_offset(&topic, index, Offset::Offset(DELETED as i64)).unwrap();
    }
    admin.delete_records(&deleted, &AdminOptions::new()).await.unwrap();
    let seen = Arc::default();
    let worker = Worker::start(&site, &seen);
    let assigned = || seen.lock().unwrap().assigned.len() == PARTITIONS as usize;
    let begun = Instant::now();
    while !assigned() {
        assert!(begun.elapsed() < FOUND, "nothing was assigned");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Until it knows where it begins. If that takes longer, it begins in the new log.
    tokio::time::sleep(Duration::from_secs(2)).await;
    admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    create(&admin, &topic).await;
    for index in 0..PARTITIONS {
        let partition = Partition::new(topic.clone(), index);
        // The controller knows the new topic before the broker serves it, and records appended to the earlier log are
        // gone with it.
        let begun = Instant::now();
        while !kafka.offsets(std::slice::from_ref(&partition)).await.remove(0).is_ok_and(|o| o.next == 0) {
            assert!(begun.elapsed() < FOUND, "the earlier log is still served");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        append(&kafka, &partition, &payloads(1, index, 2 * DELETED)).await;
    }
    all_delivered(&kafka, &topic, &seen, &format!("{:?}, begun in an empty log", site.protocol)).await;
    worker.end().await;
    kafka.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_delivered_when_the_earlier_log_had_no_record_left() {
    on_each_real_site("empty", begins_in_an_empty_log).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_in_a_recreated_topic_is_delivered() {
    on_each_real_site("recreate", runs).await;
}
