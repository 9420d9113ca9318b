//! The queue under test: its clients, a process that works, and one that publishes.

use kafkaq::{
    Publisher, Queue, QueueBuilder, Task, TaskId,
    rdkafka::{GroupProtocol, RdKafka},
};
use kafkaq_tests::{BrokerKind, Kafka, PATIENCE, Pair, StoreKind, unique};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet, time::sleep};

/// How a queue's topic is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Client {
    /// Kafka's groups with KIP-848.
    Kip848,
    /// Kafka's groups with the classic protocol.
    Classic,
    /// A group that is kept in the store.
    Leased,
}

impl Client {
    pub(crate) const ALL: [Client; 3] = [Client::Kip848, Client::Classic, Client::Leased];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Client::Kip848 => "rdkafka_kip848",
            Client::Classic => "rdkafka_classic",
            Client::Leased => "rskafka_redis",
        }
    }

    pub(crate) fn backends(self) -> (BrokerKind, StoreKind) {
        match self {
            Client::Kip848 | Client::Classic => (BrokerKind::RdKafka, StoreKind::Memory),
            Client::Leased => (BrokerKind::RsKafka, StoreKind::Redis),
        }
    }
}

/// A queue of one client.
pub(crate) struct Site {
    pub(crate) client: Client,
    pub(crate) pair: Pair,
    pub(crate) partitions: i32,
    /// What was handed out.
    pub(crate) executed: Arc<Mutex<HashSet<String>>>,
    /// Until it is opened, tasks whose ids begin with [`HELD`] are not finished.
    gate: watch::Sender<bool>,
}

pub(crate) const HELD: &str = "held";
const WORKERS: usize = 24;

impl Site {
    pub(crate) fn new(client: Client, case: &str, partitions: i32) -> Site {
        let (broker, store) = client.backends();
        let pair = Pair::new(broker, store, &format!("{case}-{}", client.name().replace('_', "-")));
        Site { client, pair, partitions, executed: Arc::default(), gate: watch::channel(true).0 }
    }

    /// The same on another Kafka than the shared one.
    pub(crate) fn with_kafka(self, url: String) -> Site {
        Site { pair: self.pair.with_kafka(url), ..self }
    }

    pub(crate) fn topic(&self) -> &str {
        self.pair.name()
    }

    /// Default settings, but nothing is parked, so that only the task topic matters.
    fn builder(&self) -> QueueBuilder {
        let builder = self.pair.usual_queue().partitions(self.partitions);
        let builder = builder.lease_duration(Duration::from_secs(300)).park_after(Duration::from_secs(120));
        if self.client == Client::Leased {
            return builder;
        }
        let protocol =
            if self.client == Client::Classic { GroupProtocol::Classic } else { GroupProtocol::Consumer };
        let kafka = RdKafka::builder(self.pair.kafka()).group_protocol(protocol);
        builder.broker(kafka.build().unwrap()).member_timeout(Duration::from_secs(10))
    }

    /// Creates the topic if it is missing.
    pub(crate) async fn publisher(&self) -> Publisher {
        self.patiently(async || self.builder().build_publisher().await).await
    }

    /// A server that is busy, or has just started, may take longer than a client waits.
    async fn patiently<T>(&self, build: impl AsyncFn() -> kafkaq::Result<T>) -> T {
        let begun = Instant::now();
        loop {
            match build().await {
                Ok(built) => return built,
                Err(e) => assert!(begun.elapsed() < PATIENCE, "{}: {e}", self.client.name()),
            }
        }
    }

    pub(crate) fn gate(&self, is_open: bool) {
        self.gate.send_replace(is_open);
    }

    /// Returns the tasks in the log now, read by a new client that never saw the earlier log.
    pub(crate) async fn log(&self) -> Vec<String> {
        let (kafka, topic) = (self.pair.kafka(), self.topic().to_owned());
        let read = tokio::task::spawn_blocking(move || Kafka::read_all(&kafka, &topic)).await.unwrap();
        let payload = |record: Kafka| String::from_utf8(record.value.unwrap()).unwrap();
        read.into_iter().map(payload).collect()
    }

    /// Waits until the group has committed exactly this many.
    pub(crate) async fn until_committed(&self, count: i64, when: &str) {
        let begun = Instant::now();
        loop {
            let committed = self.pair.committed(self.partitions).await;
            if committed == count {
                return;
            }
            let name = self.client.name();
            assert!(begun.elapsed() < PATIENCE, "{name}, {when}: {committed} of {count} are committed");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until all of them were handed out.
    pub(crate) async fn until_executed(&self, ids: &[String], when: &str) {
        let begun = Instant::now();
        loop {
            let missing: Vec<_> = {
                let executed = self.executed.lock().unwrap();
                ids.iter().filter(|id| !executed.contains(*id)).collect()
            };
            if missing.is_empty() {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{}, {when}: {} of {} tasks were not executed: {missing:?}",
                self.client.name(),
                missing.len(),
                ids.len()
            );
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A process that works.
pub(crate) struct Worker {
    queue: Queue,
    workers: JoinSet<()>,
}

impl Worker {
    pub(crate) async fn start(site: &Site) -> Worker {
        let queue = site.patiently(async || site.builder().build().await).await;
        let mut workers = JoinSet::new();
        for _ in 0..WORKERS {
            let (queue, executed, mut gate) = (queue.clone(), site.executed.clone(), site.gate.subscribe());
            workers.spawn(async move {
                while let Ok(job) = queue.get_job().await {
                    let id = job.id().as_str().to_owned();
                    let is_held = id.starts_with(HELD);
                    executed.lock().unwrap().insert(id);
                    if is_held && gate.wait_for(|is_open| *is_open).await.is_err() {
                        return;
                    }
                    // The server may be down. What counts here is what is executed, not what is confirmed.
                    let _ = job.done().await;
                }
            });
        }
        Worker { queue, workers }
    }

    pub(crate) async fn end(self) {
        self.queue.shutdown(PATIENCE).await.unwrap();
        self.workers.join_all().await;
    }
}

/// Ids that no other call has returned.
pub(crate) fn ids(kind: &str, count: usize) -> Vec<String> {
    let of_this_call = unique(kind);
    (0..count).map(|n| format!("{of_this_call}-{n}")).collect()
}

fn task(id: &str) -> Task {
    Task::new(id.to_owned()).with_id(TaskId::new(id).unwrap())
}

/// Publishes until all are acknowledged, as the errors advise: the same id stays one task.
pub(crate) async fn publish(publisher: &Publisher, ids: &[String]) {
    let (begun, mut left) = (Instant::now(), ids.to_vec());
    loop {
        let outcomes = publisher.publish_many(left.iter().map(|id| task(id))).await;
        let mut outcomes = outcomes.into_iter();
        left.retain(|_| outcomes.next().unwrap().is_err());
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{} of {} tasks can't be published", left.len(), ids.len());
        sleep(Duration::from_millis(10)).await;
    }
}

/// Publishes all the time, whatever happens to the topic, until the set is dropped.
pub(crate) fn load(publisher: &Publisher) -> JoinSet<()> {
    let mut publishing = JoinSet::new();
    for _ in 0..4 {
        let publisher = publisher.clone();
        publishing.spawn(async move {
            let of_this_one = unique("load");
            for n in 0_u64.. {
                let _ = publisher.publish(task(&format!("{of_this_one}-{n}"))).await;
                sleep(Duration::from_millis(40)).await;
            }
        });
    }
    publishing
}
