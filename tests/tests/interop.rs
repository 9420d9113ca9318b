//! One queue, two clients: what is written through rdkafka is read through rskafka, and vice versa.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use kafkaq::{
    Job, JobStatus, Queue, Task, TaskId,
    backend::{FetchLimit, Partition, PartitionLog, Position},
    rskafka::RsKafka,
};
use kafkaq_tests::{BrokerKind, Built, Kafka, PATIENCE, Pair, StoreKind, kafka, kcat, until_done};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io::Write as _,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const KEY: &[u8] = b"\xffkey";
const SHORT: Duration = Duration::from_secs(5);

/// Runs a test with a queue that is used through both clients, in both directions.
async fn each_way(case: &str, test: impl AsyncFn(Pair, Pair)) {
    let [one, other] = [BrokerKind::RdKafka, BrokerKind::RsKafka];
    for (from, to) in [(one, other), (other, one)] {
        let from = Pair::new(from, StoreKind::Redis, case);
        let to = Pair::named(to, StoreKind::Redis, from.name());
        test(from, to).await;
    }
}

async fn next(queue: &Queue) -> Job {
    tokio::time::timeout(PATIENCE, queue.get_job()).await.expect("a job within the test's patience").unwrap()
}

async fn nothing_more(queue: &Queue) {
    if let Ok(job) = tokio::time::timeout(Duration::from_secs(4), queue.get_job()).await {
        panic!("{:?} was handed out", job.unwrap());
    }
}

/// A new task is handed out first, although earlier tasks with the same key are read before it.
async fn skips_what_is_done(queue: &Queue, key: &'static [u8]) {
    let new = queue.publish(Task::new("new").with_key(key)).await.unwrap();
    let job = next(queue).await;
    assert_eq!(*job.id(), new, "{job:?} was executed before");
    job.done().await.unwrap();
}

fn id(text: &str) -> TaskId {
    TaskId::new(text).unwrap()
}

fn full_task() -> Task {
    Task::new("payload").with_id(id("full")).with_key(KEY).with_header("a", "1").with_header("b", "")
}

#[track_caller]
fn assert_full(job: &Job, attempt: u32) {
    assert_eq!((job.id().as_str(), job.attempt()), ("full", attempt));
    assert_eq!(job.task(), full_task());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_arrives_through_the_other_client_as_it_was_published() {
    each_way("arrives", async |from, to| {
        let publisher = from.queue().built_publisher().await;
        publisher.publish(full_task()).await.unwrap();
        let queue = to.queue().built().await;
        let job = next(&queue).await;
        assert_full(&job, 1);
        job.done().await.unwrap();

        let bare = publisher.publish(Task::new("")).await.unwrap();
        let job = next(&queue).await;
        assert_eq!((job.id(), job.key(), job.payload().len()), (&bare, None, 0));
        assert!(job.headers().is_empty());
        assert!(job.published().elapsed().unwrap() < PATIENCE);
        job.done().await.unwrap();
        queue.shutdown(PATIENCE).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delay_written_by_one_client_is_respected_by_the_other() {
    each_way("delays", async |from, to| {
        let queue = to.queue().built().await;
        let publisher = from.queue().built_publisher().await;
        let start = Instant::now();
        publisher.publish(full_task().with_delay(Duration::from_secs(3))).await.unwrap();
        let job = next(&queue).await;
        assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
        assert_full(&job, 1);
        job.done().await.unwrap();
        queue.shutdown(PATIENCE).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_one_client_made_is_executed_by_the_other() {
    each_way("copies", async |from, to| {
        let queue = from.queue().built().await;
        queue.publish(full_task()).await.unwrap();
        let job = next(&queue).await;
        job.retry(Duration::from_secs(2), "not now").await.unwrap();
        queue.shutdown(PATIENCE).await.unwrap();

        let queue = to.queue().built().await;
        let job = next(&queue).await;
        assert_full(&job, 2);
        job.done().await.unwrap();
        nothing_more(&queue).await;
        queue.shutdown(PATIENCE).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_the_same_to_both_clients_whichever_wrote_it() {
    each_way("letters", async |from, to| {
        let queue = to.queue().built().await;
        from.queue().built_publisher().await.publish(full_task()).await.unwrap();
        let job = next(&queue).await;
        job.reject("no use").await.unwrap();
        queue.shutdown(PATIENCE).await.unwrap();

        let topic = format!("{}.kafkaq.dead", from.name());
        let [by_rdkafka, by_rskafka] = [letter_by_rdkafka(&topic), letter_by_rskafka(&topic).await];
        assert_eq!(by_rdkafka, by_rskafka);
        let (key, value, headers) = by_rdkafka;
        assert_eq!((key.as_deref(), value.as_deref()), (Some(KEY), Some(&b"payload"[..])));
        for (name, value) in [("a", "1"), ("b", ""), ("kafkaq-task-id", "full"), ("kafkaq-attempts", "1")] {
            assert_eq!(headers.get(name).map(Vec::as_slice), Some(value.as_bytes()), "{name} of {headers:?}");
        }
        assert!(headers.values().any(|value| value == b"no use"), "{headers:?}");
    })
    .await;
}

type Letter = (Option<Vec<u8>>, Option<Vec<u8>>, BTreeMap<String, Vec<u8>>);

fn letter_by_rdkafka(topic: &str) -> Letter {
    let Kafka { key, value, headers, .. } = Kafka::read(topic, 1).remove(0);
    (key, value, headers)
}

async fn letter_by_rskafka(topic: &str) -> Letter {
    let log = RsKafka::builder(kafka()).build().unwrap();
    let from = Position { partition: Partition::new(topic, 0), offset: 0 };
    let mut batch = log.fetch(&from, FetchLimit::new(SHORT, 1 << 20)).await.unwrap();
    let record = batch.records.remove(0);
    let headers = record.headers.iter();
    let headers =
        headers.map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), value.unwrap().to_vec()));
    (record.key.map(|k| k.to_vec()), record.value.map(|v| v.to_vec()), headers.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_one_task_through_both_clients() {
    each_way("ids", async |from, to| {
        let queue = to.queue().built().await;
        let publishers = [from.queue().built_publisher().await, to.queue().built_publisher().await];
        for publisher in &publishers {
            publisher.publish(full_task()).await.unwrap();
        }
        let job = next(&queue).await;
        assert_full(&job, 1);
        job.done().await.unwrap();
        for publisher in &publishers {
            publisher.publish(full_task()).await.unwrap();
        }
        nothing_more(&queue).await;
        queue.shutdown(PATIENCE).await.unwrap();
        // Each client has its own position in the log, and the other's starts at the first record.
        let other = from.queue().built().await;
        skips_what_is_done(&other, KEY).await;
        assert_eq!(other.jobs().get(&id("full")).await.unwrap().status, JobStatus::Done);
        other.shutdown(PATIENCE).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_moves_from_one_client_to_the_other_and_no_task_is_lost_or_ended_twice() {
    const TASKS: usize = 400;
    each_way("moves", async |from, to| {
        let ids: Vec<_> = (0..TASKS).map(|n| id(&format!("t{n}"))).collect();
        let (ended, twice) = (Arc::new(Mutex::new(HashSet::new())), Arc::new(Mutex::new(Vec::new())));
        let work = |queue: &Queue| {
            for _ in 0..4 {
                let (queue, ended, twice) = (queue.clone(), ended.clone(), twice.clone());
                tokio::spawn(async move {
                    while let Ok(job) = queue.get_job().await {
                        let id = job.id().clone();
                        if job.done().await.is_ok() && !ended.lock().unwrap().insert(id.clone()) {
                            twice.lock().unwrap().push(id);
                        }
                    }
                });
            }
        };
        let old = from.queue().built().await;
        work(&old);
        let (before, after) = ids.split_at(TASKS / 2);
        for id in before {
            old.publish(Task::new("x").with_id(id.clone())).await.unwrap();
        }
        // For a while both execute.
        let new = to.queue().built().await;
        work(&new);
        for id in after {
            new.publish(Task::new("x").with_id(id.clone())).await.unwrap();
        }
        old.shutdown(PATIENCE).await.unwrap();
        until_done(&new, ids, &ended).await;
        assert!(twice.lock().unwrap().is_empty(), "{:?}", twice.lock().unwrap());
        new.shutdown(PATIENCE).await.unwrap();
    })
    .await;
}

/// Keys from Kafka's own tests, with their hashes.
const VECTORS: [(&str, i32); 6] = [
    ("21", -973_932_308),
    ("foobar", -790_332_482),
    ("a-little-bit-long-string", -985_981_536),
    ("a-little-bit-longer-string", -1_486_304_829),
    ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
    ("abc", 479_470_107),
];

/// Keys of every length up to several words of the hash, and with bytes above 127.
fn keys() -> Vec<String> {
    let of_length = (1..20).map(|n| "0123456789abcdefghij"[..n].to_owned());
    let others = ["ключ", "ключик", "ä", "鍵", "with a blank"].map(str::to_owned);
    let vectors = VECTORS.map(|(key, _)| key.to_owned());
    vectors.into_iter().chain(of_length).chain(others).chain((0..100).map(|n| format!("user-{n}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_map_to_the_same_partitions_as_in_the_java_client() {
    const PARTITIONS: i32 = 7;
    each_way("keys", async |from, to| {
        let (keys, topic) = (keys(), from.name());
        for (client, pair) in [("first", &from), ("second", &to)] {
            let publisher = pair.queue().partitions(PARTITIONS).built_publisher().await;
            let tasks = keys.iter().map(|key| Task::new(client).with_key(key.clone()));
            publisher.publish_many(tasks).await.into_iter().for_each(|outcome| drop(outcome.unwrap()));
        }
        let lines = |client| keys.iter().map(|key| format!("{key}\t{client}\n")).collect::<String>();
        kcat(topic, &["-K", "\t", "-X", "partitioner=murmur2_random"], &lines("librdkafka"));
        let mut clients = vec!["first", "second", "librdkafka"];
        if publish_by_java(topic, &lines("java")) {
            clients.push("java");
        }

        let mut chosen: BTreeMap<String, BTreeMap<i32, BTreeSet<String>>> = BTreeMap::new();
        for record in Kafka::read(topic, keys.len() * clients.len()) {
            let text = |bytes: Option<Vec<u8>>| String::from_utf8(bytes.unwrap()).unwrap();
            let of_key = chosen.entry(text(record.key)).or_default();
            of_key.entry(record.partition).or_default().insert(text(record.value));
        }
        let all: BTreeSet<_> = clients.iter().map(|client| (*client).to_owned()).collect();
        for key in &keys {
            let of_key = &chosen[key];
            assert_eq!(of_key.values().collect::<Vec<_>>(), [&all], "{key}: {of_key:?}");
        }
        for (key, hash) in VECTORS {
            let partition = (hash & i32::MAX) % PARTITIONS;
            assert!(chosen[key].contains_key(&partition), "{key}: {:?} and not {partition}", chosen[key]);
        }
        println!("{} keys, the same partition with {clients:?}", keys.len());
    })
    .await;
}

/// Appends lines `key<Tab>value` by the program of Kafka's distribution, unless that is inside a container.
fn publish_by_java(topic: &str, lines: &str) -> bool {
    let program = xtask::services::kafka_program("org.apache.kafka.tools.ConsoleProducer").unwrap();
    let Some(mut program) = program else {
        println!("not compared with the Java client itself: it is inside Kafka's container");
        return false;
    };
    program.args(["--bootstrap-server", &kafka(), "--topic", topic, "--reader-property", "parse.key=true"]);
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("Java runs");
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("write");
    assert!(child.wait().expect("it ends").success());
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_another_program_is_one_task_to_both_clients() {
    each_way("foreign", async |from, to| {
        let one = from.queue().built().await;
        let options = ["-K", "\t", "-H", "trace=abc", "-X", "partitioner=murmur2_random"];
        kcat(from.name(), &options, "key\tone\nkey\ttwo\n");
        let mut ids = BTreeSet::new();
        for _ in 0..2 {
            let job = next(&one).await;
            assert_eq!(job.key().unwrap(), "key");
            assert_eq!(job.headers().get("trace").unwrap(), "abc");
            ids.insert(job.id().clone());
            job.done().await.unwrap();
        }
        assert_eq!(ids.len(), 2);
        one.shutdown(PATIENCE).await.unwrap();
        // It reads them too, and gives them the same ids.
        let other = to.queue().built().await;
        skips_what_is_done(&other, b"key").await;
        other.shutdown(PATIENCE).await.unwrap();
    })
    .await;
}

/// Larger than the topics accept, unless it is compressed. While it waits for its retry it must not hold back the
/// commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_task_that_another_program_has_compressed_is_copied() {
    each_way("compressed", async |pair, _| {
        let queue = pair.queue().partitions(1).built().await;
        let payload = "x".repeat(3_000_000);
        kcat(pair.name(), &["-z", "zstd", "-X", "message.max.bytes=8000000"], &format!("{payload}\n"));
        let job = next(&queue).await;
        assert!(job.payload() == payload.as_bytes());
        job.retry(Duration::from_secs(600), "not now").await.unwrap();
        let (begun, patience) = (Instant::now(), Duration::from_secs(120));
        while pair.committed(1).await < 1 {
            assert!(begun.elapsed() < patience, "it holds the commit while it waits");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        queue.shutdown(PATIENCE).await.unwrap();
    })
    .await;
}
