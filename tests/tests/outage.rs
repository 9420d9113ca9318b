//! A server that is down for ten seconds during a run: nothing is lost, nothing is restarted, and every process of the
//! queue continues soon after the server is back. `rskafka_etcd::the_store_is_cut_off`.
//!
//! It is frozen (connections stay open without responses), or it is cut off: connections break and new ones are
//! refused. For that, a proxy is between the clients and a single store; Kafka and the nodes of a Redis Cluster give
//! clients their own addresses, so they are killed and restarted with their data. (A Redis comes back empty.)

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "these are tests")]

use kafkaq::{Queue, Task, TaskId};
use kafkaq_conformance::{Outage, Proxy};
use kafkaq_tests::{
    BrokerKind, Built, PATIENCE, Pair, StoreKind, not_asked_for, own_server, run, unique, until, until_done,
};
use libtest_mimic::{Arguments, Completion, Trial};
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};
use xtask::services::{Server, Service};

const OUTAGE: Duration = Duration::from_secs(10);
/// How many tasks have to be done in the second half of a node's outage.
const SHARE: usize = 50;
/// The longest time until each process works again, even on a busy machine: less than waiting for a Kafka session to
/// expire would take.
const RECOVERY: Duration = Duration::from_secs(30);
/// The cases mostly wait.
const AT_ONCE: usize = 4;

const BROKERS: [BrokerKind; 2] = [BrokerKind::RdKafka, BrokerKind::RsKafka];
const STORES: [(StoreKind, Service); 4] = [
    (StoreKind::Redis, Service::Redis),
    (StoreKind::RedisCluster, Service::RedisCluster),
    (StoreKind::Etcd, Service::Etcd),
    (StoreKind::ZooKeeper, Service::ZooKeeper),
];

#[derive(Clone, Copy, PartialEq)]
enum Victim {
    Kafka,
    Store(Service),
    /// One of three.
    Node,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    StandsStill,
    CutOff,
}

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let mut trials = Vec::new();
    for broker in BROKERS {
        for way in [Way::StandsStill, Way::CutOff] {
            trials.extend(STORES.map(|(store, service)| trial(broker, store, Victim::Store(service), way)));
            trials.push(trial(broker, StoreKind::RedisCluster, Victim::Node, way));
            trials.push(trial(broker, StoreKind::Redis, Victim::Kafka, way));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(broker: BrokerKind, store: StoreKind, victim: Victim, way: Way) -> Trial {
    let who = match victim {
        Victim::Kafka => "kafka",
        Victim::Store(_) => "the_store",
        Victim::Node => "a_node_of_the_store",
    };
    let what = match way {
        Way::StandsStill => "stands_still",
        Way::CutOff => "is_cut_off",
    };
    let name = format!("{}_{}::{who}_{what}", broker.name(), store.name().replace('-', "_"));
    Trial::ignorable_test(name.clone(), move || {
        if let Some(why) = not_asked_for(broker, store) {
            return Ok(Completion::ignored_with(why));
        }
        run(async {
            let away = Away::start(victim, way);
            let pair = Pair::new(broker, store, "outage");
            let pair = match victim {
                Victim::Kafka => pair.with_kafka(away.url()),
                Victim::Store(_) | Victim::Node => pair.with_store(away.url()),
            };
            recovers(&name, &pair, away, victim).await;
        })?;
        Ok(Completion::Completed)
    })
}

/// A server that can be taken down and restored.
struct Away {
    victim: Server,
    /// Nodes that keep running meanwhile.
    others: Vec<Server>,
    proxy: Option<Proxy>,
    way: Way,
}

impl Away {
    fn start(victim: Victim, way: Way) -> Away {
        let service = match victim {
            Victim::Kafka => Service::Kafka,
            Victim::Store(service) => service,
            Victim::Node => Service::RedisCluster,
        };
        let whole = own_server(service);
        let (victim, others) = match victim {
            Victim::Kafka | Victim::Store(_) => (whole, Vec::new()),
            Victim::Node => {
                let mut nodes = whole.into_nodes();
                (nodes.remove(0), nodes)
            }
        };
        let names_itself = matches!(service, Service::Kafka | Service::RedisCluster);
        let proxied = way == Way::CutOff && !names_itself;
        let proxy = proxied.then(|| Proxy::to(victim.addr()).unwrap());
        Away { victim, others, proxy, way }
    }

    fn url(&self) -> String {
        if let Some(proxy) = &self.proxy {
            return self.victim.url().replace(&self.victim.addr().to_string(), &proxy.addr().to_string());
        }
        // Clients bootstrap from nodes that stay up.
        let others: Vec<_> = self.others.iter().map(Server::url).collect();
        if others.is_empty() { self.victim.url() } else { others.join(",") }
    }

    fn begin(&mut self) {
        match (self.way, &self.proxy) {
            (Way::StandsStill, _) => self.victim.pause().unwrap(),
            (Way::CutOff, Some(proxy)) => proxy.refuse(),
            (Way::CutOff, None) => self.victim.kill().unwrap(),
        }
    }

    async fn end(&mut self) {
        match (self.way, &self.proxy) {
            (Way::StandsStill, _) => self.victim.resume().unwrap(),
            (Way::CutOff, Some(proxy)) => proxy.restore().await.unwrap(),
            (Way::CutOff, None) => self.victim.start_again().unwrap(),
        }
    }
}

/// One process of the queue, with workers.
struct Process {
    queue: Queue,
    done: Arc<AtomicUsize>,
}

impl Process {
    async fn start(pair: &Pair, told: &Arc<Mutex<HashSet<TaskId>>>) -> Process {
        // Few enough to be used up by tasks whose leases can't be taken.
        let queue = pair.queue().prefetch(8).built().await;
        let count = Arc::new(AtomicUsize::new(0));
        for _ in 0..25 {
            let (queue, count, told) = (queue.clone(), count.clone(), told.clone());
            tokio::spawn(async move {
                while let Ok(job) = queue.get_job().await {
                    let id = job.id().clone();
                    sleep(Duration::from_millis(2)).await;
                    if job.done().await.is_ok() {
                        told.lock().unwrap().insert(id);
                        count.fetch_add(1, Relaxed);
                    }
                }
            });
        }
        Process { queue, done: count }
    }
}

/// Publishes up to a hundred tasks per second, even while a server is down.
struct Publishing {
    stop: Arc<AtomicBool>,
    publishers: JoinSet<Vec<TaskId>>,
}

impl Publishing {
    fn start(queue: &Queue) -> Publishing {
        let (stop, mut publishers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for _ in 0..4 {
            let (publisher, stop) = (queue.publisher(), stop.clone());
            publishers.spawn(async move {
                let mut ids = Vec::new();
                while !stop.load(Relaxed) {
                    let id = TaskId::new(unique("t")).unwrap();
                    // As the error advises: the same id stays one task. A slow Kafka may be down for longer than the
                    // publish timeout.
                    while publisher.publish(Task::new("x").with_id(id.clone())).await.is_err() {}
                    ids.push(id);
                    sleep(Duration::from_millis(40)).await;
                }
                ids
            });
        }
        Publishing { stop, publishers }
    }

    async fn end(self) -> Vec<TaskId> {
        self.stop.store(true, Relaxed);
        self.publishers.join_all().await.concat()
    }
}

async fn recovers(name: &str, pair: &Pair, mut away: Away, victim: Victim) {
    let told = Arc::default();
    let processes = [Process::start(pair, &told).await, Process::start(pair, &told).await];
    let done = || processes.each_ref().map(|p| p.done.load(Relaxed));
    let publishing = Publishing::start(&processes[0].queue);
    until("both processes work", || done().iter().all(|n| *n > 20)).await;

    away.begin();
    sleep(OUTAGE / 2).await;
    let halfway = done();
    sleep(OUTAGE / 2).await;
    if let Victim::Node = victim {
        // Two thirds of the tasks belong to the other nodes, and some hundred are published meanwhile. The outage lasts
        // until then.
        let meanwhile = || done().iter().sum::<usize>() - halfway.iter().sum::<usize>();
        until("the other nodes' share of the work continues", || meanwhile() >= SHARE).await;
        println!("{name}: {} tasks were done in the second half of the outage", meanwhile());
    } else {
        assert_eq!(halfway, done(), "it was away in mid-run");
    }
    let before = done();
    away.end().await;

    let back = Instant::now();
    let went_on = || done().into_iter().zip(before).map(|(now, before)| now > before + 20);
    until("work continues", || went_on().any(|went_on| went_on)).await;
    let first = back.elapsed();
    until("both processes continue", || went_on().all(|went_on| went_on)).await;
    let both = back.elapsed();
    let published = publishing.end().await;
    until_done(&processes[0].queue, published.iter().cloned(), &told).await;
    let all = back.elapsed();

    println!(
        "{name}: work went on {first:.1?} after the server was back, in both processes {both:.1?}; all {} tasks were \
         done {all:.1?} after it",
        published.len()
    );
    assert!(both < RECOVERY, "{both:?}");
    for Process { queue, .. } in processes {
        queue.shutdown(PATIENCE).await.unwrap();
    }
}
