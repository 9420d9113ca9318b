//! The end of a topic's log is truncated while the broker is down, as by a crash that loses what was not on the disk
//! yet.

use crate::{
    queue::{Client, HELD, Site, Worker, ids, publish},
    segments,
};
use futures_util::future::join_all;
use kafkaq::{
    Publisher,
    backend::{FetchLimit, Partition, PartitionLog, Position},
    rskafka::RsKafka,
};
use kafkaq_conformance::{Outage, Proxy};
use kafkaq_tests::{PATIENCE, admin};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::{task::spawn_blocking, time::sleep};
use xtask::services::{Server, Service, free_port};

/// How many tasks are finished, and how many are handed out but not finished, when the broker goes down. Each is in its
/// own batch.
const FINISHED: usize = 30;
const UNFINISHED: usize = 12;

/// Where the log ends afterwards.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// Between what was committed and what was read.
    AboveCommit,
    BelowCommit,
    /// Where the last segment began.
    LastSegment,
}

/// How many tasks are published next, compared with the truncated part.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Regrown {
    Shorter,
    Equal,
    Longer,
}

impl Regrown {
    fn of(self, cut_off: i64) -> i64 {
        match self {
            Regrown::Shorter => cut_off / 2,
            Regrown::Equal => cut_off,
            Regrown::Longer => cut_off * 2 + 20,
        }
    }
}

const CASES: [(End, Regrown); 4] = [
    (End::AboveCommit, Regrown::Longer),
    (End::BelowCommit, Regrown::Longer),
    (End::BelowCommit, Regrown::Shorter),
    (End::LastSegment, Regrown::Equal),
];

/// A queue for one case, with processes that keep running while the broker is down.
struct Queue {
    site: Site,
    case: (End, Regrown),
    name: String,
    log: PathBuf,
    publisher: Publisher,
    worker: Worker,
}

impl Queue {
    async fn new(client: Client, case: (End, Regrown), server: &Server, at: &str) -> Queue {
        let site = Site::new(client, "cut", 1).with_kafka(at.to_owned());
        let name = format!("{}, cut {:?}, then {:?}", client.name(), case.0, case.1);
        let publisher = site.publisher().await;
        let worker = Worker::start(&site).await;
        let log = server.data().join(format!("{}-0", site.topic()));
        Queue { site, case, name, log, publisher, worker }
    }

    /// Publishes, executes and commits as much as needed. Returns where the log should end, and where it ends.
    async fn prepare(&self) -> (i64, i64) {
        let Queue { site, publisher, log, name, .. } = self;
        site.gate(false);
        let mut tasks = ids("finished", FINISHED);
        publish_one_by_one(publisher, &tasks).await;
        let begun = Instant::now();
        while segments::last_segment(log).unwrap() == 0 {
            assert!(begun.elapsed() < PATIENCE, "{name}: the log has one segment");
            let more = ids("finished", 1);
            publish(publisher, &more).await;
            tasks.extend(more);
            sleep(Duration::from_millis(100)).await;
        }
        site.until_executed(&tasks, name).await;
        let committed = site.log().await.len() as i64;
        site.until_committed(committed, name).await;
        let new_end = match self.case.0 {
            End::AboveCommit => {
                let held = ids(HELD, UNFINISHED);
                publish_one_by_one(publisher, &held).await;
                site.until_executed(&held, name).await;
                committed + UNFINISHED as i64 / 3
            }
            End::BelowCommit => committed - FINISHED as i64 / 2,
            End::LastSegment => segments::last_segment(log).unwrap(),
        };
        (new_end, site.log().await.len() as i64)
    }

    /// Starts to publish before the broker is back, and checks that everything in the log is executed.
    async fn recover(self, count: i64) {
        let Queue { site, name, publisher, worker, .. } = self;
        let (begun, tasks) = (Instant::now(), ids("task", count as usize));
        publish(&publisher, &tasks).await;
        let published = begun.elapsed();
        site.gate(true);
        let log = site.log().await;
        assert!(tasks.iter().all(|id| log.contains(id)), "{name}: acknowledged, and not in the log");
        site.until_executed(&log, &name).await;
        println!(
            "{name}: {count} published within {published:.1?}, all {} of the log executed after {:.1?}",
            log.len(),
            begun.elapsed()
        );
        // Where the next process starts shows whether a position in the old end was committed over the new one.
        worker.end().await;
        let few = ids("next", 3);
        publish(&publisher, &few).await;
        let worker = Worker::start(&site).await;
        site.until_executed(&few, &format!("{name}, by the next process")).await;
        worker.end().await;
    }
}

async fn publish_one_by_one(publisher: &Publisher, ids: &[String]) {
    for id in ids {
        publish(publisher, std::slice::from_ref(id)).await;
    }
}

pub(crate) async fn nothing_is_lost() {
    let ports = [(); 3].map(|()| free_port().unwrap());
    let [plain, _, direct] = ports;
    let proxy = Proxy::to(("127.0.0.1", plain)).unwrap();
    let (at, proxy_port) = (proxy.addr().to_string(), proxy.addr().port());
    let mut server = spawn_blocking(move || start(ports, proxy_port)).await.unwrap();
    let mut queues = Vec::new();
    for (client, case) in Client::ALL.into_iter().flat_map(|client| CASES.map(|case| (client, case))) {
        queues.push(Queue::new(client, case, &server, &at).await);
    }
    let ends = join_all(queues.iter().map(Queue::prepare)).await;
    let reader = RsKafka::builder(&*at).build().unwrap();
    let mut read = Vec::new();
    for queue in queues.iter().filter(|queue| queue.case.1 == Regrown::Longer) {
        read.push(read_to_the_end(&reader, queue.site.topic()).await);
    }

    proxy.cut().await.unwrap();
    server.kill().unwrap();
    let cut = |(queue, (new_end, end)): (&Queue, (i64, i64))| {
        let new_end = segments::cut(&queue.log, new_end).unwrap();
        assert!(new_end < end, "{}: nothing was truncated", queue.name);
        queue.case.1.of(end - new_end)
    };
    let counts: Vec<_> = queues.iter().zip(ends).map(cut).collect();
    let restart = async {
        let restarted = spawn_blocking(move || {
            server.start_again().unwrap();
            until_led(&format!("127.0.0.1:{direct}"));
            server
        });
        let server = restarted.await.unwrap();
        proxy.restore().await.unwrap();
        server
    };
    let recover = queues.into_iter().zip(counts).map(|(queue, count)| queue.recover(count));
    let (_server, _) = tokio::join!(restart, join_all(recover));
    for position in read {
        let e = reader.fetch(&position, FetchLimit::new(Duration::ZERO, 1)).await.unwrap_err();
        assert!(e.to_string().contains("was truncated"), "{e}");
    }
}

/// Starts a Kafka on `plain` that sends its clients to a proxy, and clients on `direct` back to `direct`. Its logs soon
/// have several segments.
fn start([plain, inner, direct]: [u16; 3], proxy: u16) -> Server {
    let settings = [
        "log.roll.ms=1000".to_owned(),
        format!(
            "listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{inner},DIRECT://127.0.0.1:{direct}"
        ),
        format!("advertised.listeners=PLAINTEXT://127.0.0.1:{proxy},DIRECT://127.0.0.1:{direct}"),
        format!("controller.quorum.voters=1@127.0.0.1:{inner}"),
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,DIRECT:PLAINTEXT".to_owned(),
    ];
    let options: Vec<&str> = settings.iter().flat_map(|setting| ["--override", setting]).collect();
    Service::Kafka.own_with(Some(plain), &options).unwrap()
}

/// Waits until each partition has a leader. No client of the queues may connect earlier: librdkafka may crash the
/// process on a response in which some partitions have a leader and others have none (librdkafka#5280).
fn until_led(kafka: &str) {
    let (begun, admin) = (Instant::now(), admin(kafka).unwrap());
    let is_led = || {
        let found = admin.inner().fetch_metadata(None, Duration::from_secs(5));
        found.is_ok_and(|found| {
            let mut partitions = found.topics().iter().flat_map(|topic| topic.partitions());
            partitions.all(|partition| partition.leader() >= 0)
        })
    };
    while !is_led() {
        assert!(begun.elapsed() < PATIENCE, "partitions have no leader");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Reads a log to its end. Returns the position.
async fn read_to_the_end(log: &RsKafka, topic: &str) -> Position {
    let mut at = Position { partition: Partition::new(topic, 0), offset: 0 };
    loop {
        let batch = log.fetch(&at, FetchLimit::new(Duration::ZERO, 1 << 20)).await.unwrap();
        if batch.next == at.offset {
            return at;
        }
        at.offset = batch.next;
    }
}
