//! Where a test runs: on a mock cluster, and on a real server if `KAFKAQ_TEST_KAFKA` names one.
#![allow(dead_code, reason = "each test file uses its part")]

#[path = "../../../kafkaq-rskafka/tests/it/wire.rs"]
pub(crate) mod wire;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::join_all};
use kafkaq_core::*;
use kafkaq_rdkafka::{Builder, GroupProtocol, RdKafka};
use rdkafka::mocking::MockCluster;
use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub(crate) type Mock = MockCluster<'static, rdkafka::producer::DefaultProducerContext>;

/// Longer than anything takes that doesn't hang, even on a loaded machine.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// A server, and names of its own for one test.
pub(crate) struct Site {
    pub(crate) mock: Option<Mock>,
    pub(crate) bootstrap: String,
    pub(crate) name: String,
    pub(crate) protocol: GroupProtocol,
}

impl Site {
    pub(crate) fn topic(&self) -> Arc<str> {
        self.name.as_str().into()
    }

    pub(crate) fn builder(&self) -> Builder {
        let b = RdKafka::builder(&self.bootstrap).group_protocol(self.protocol);
        // The mock cluster's members notice a rebalance by their heartbeat.
        b.set("heartbeat.interval.ms", "300").set("session.timeout.ms", "6000")
    }

    pub(crate) fn kafka(&self) -> RdKafka {
        self.builder().build().unwrap()
    }

    /// A second topic, like a queue's wait topic.
    pub(crate) fn wait_topic(&self) -> Arc<str> {
        format!("{}.wait", self.name).into()
    }

    pub(crate) async fn with_topic(self, partitions: i32) -> Self {
        let topic = self.topic();
        self.with(topic, partitions).await
    }

    pub(crate) async fn with(self, topic: Arc<str>, partitions: i32) -> Self {
        if let Some(mock) = &self.mock {
            // It doesn't respond to queries for a topic's settings, so these take their whole time limit.
            mock.create_topic(&topic, partitions, 1).unwrap();
            return self;
        }
        let mut spec = TopicSpec::new(topic);
        spec.partitions = Some(partitions);
        let kafka = self.kafka();
        // A busy server may take longer than a call waits.
        let began = Instant::now();
        let created = loop {
            match kafka.ensure_topics(std::slice::from_ref(&spec)).await {
                Err(e) => assert!(e.retry() != Retry::No && began.elapsed() < LONG, "{e}"),
                Ok(created) => break created,
            }
        };
        assert_eq!(created[0].partitions, partitions);
        kafka.close().await.unwrap();
        self
    }

    /// Returns a request for both topics.
    pub(crate) fn request_for_both(&self, group: &str) -> JoinRequest {
        let mut request = self.request(group);
        request.topics.push(self.wait_topic());
        request
    }

    pub(crate) fn request(&self, group: &str) -> JoinRequest {
        static MEMBER: AtomicU64 = AtomicU64::new(1);
        let n = MEMBER.fetch_add(1, Relaxed).to_be_bytes();
        let mut member = [0; 16];
        member[..8].copy_from_slice(&n);
        let mut r = JoinRequest::new(format!("{}-{group}", self.name), vec![self.topic()], member);
        r.release_limit = LONG;
        r
    }

    /// The same for a member that a server on a busy machine doesn't expel. The mock cluster's classic group would
    /// rebalance only when that time is nearly over.
    pub(crate) fn lasting_request(&self, group: &str) -> JoinRequest {
        let mut r = self.request(group);
        if self.mock.is_none() {
            r.session_timeout = Duration::from_secs(45);
        }
        r
    }
}

pub(crate) fn sites(test: &str) -> Vec<Site> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    let mut all = Vec::new();
    let real = std::env::var("KAFKAQ_TEST_KAFKA").ok();
    for (on_mock, on_server) in [
        (GroupProtocol::Classic, GroupProtocol::Classic),
        // The mock cluster doesn't respond to queries for a group's settings, on which the choice depends.
        (GroupProtocol::Consumer, GroupProtocol::Auto),
    ] {
        let name = format!("{test}-{on_server:?}-{since}");
        let mock = Mock::new(1).unwrap();
        let bootstrap = mock.bootstrap_servers();
        println!("{test}: on the mock cluster, {on_mock:?}");
        all.push(Site { mock: Some(mock), bootstrap, name: name.clone(), protocol: on_mock });
        if let Some(bootstrap) = real.clone() {
            println!("{test}: on the server at {bootstrap}, {on_server:?}");
            all.push(Site { mock: None, bootstrap, name, protocol: on_server });
        }
    }
    all
}

/// Runs a test on all sites at once: most of its time is waiting.
pub(crate) async fn on_each_site(test: &str, run: impl AsyncFn(Site)) {
    on_all(sites(test), run).await;
}

/// Runs a test only on real servers, for what a mock cluster can't do.
pub(crate) async fn on_each_real_site(test: &str, run: impl AsyncFn(Site)) {
    let sites: Vec<_> = sites(test).into_iter().filter(|site| site.mock.is_none()).collect();
    if sites.is_empty() {
        println!("{test}: not run; `KAFKAQ_TEST_KAFKA` names no server");
    }
    on_all(sites, run).await;
}

/// Skips the mock cluster's classic group. It rebalances only a second before it would expel its members, so on a busy
/// machine it expels them.
pub(crate) async fn on_each_site_that_keeps_members(test: &str, run: impl AsyncFn(Site)) {
    let keeps = |site: &Site| site.mock.is_none() || site.protocol != GroupProtocol::Classic;
    on_all(sites(test).into_iter().filter(keeps).collect(), run).await;
}

async fn on_all(sites: Vec<Site>, run: impl AsyncFn(Site)) {
    let runs = sites.into_iter().map(async |site| {
        let name = format!("{} {:?}", site.bootstrap, site.protocol);
        AssertUnwindSafe(run(site)).catch_unwind().await.err().map(|_| name)
    });
    let failed: Vec<_> = join_all(runs).await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "failed on {failed:?}, for the reason above");
}

pub(crate) fn record(value: impl Into<Bytes>) -> NewRecord {
    NewRecord::new(None, Some(value.into()), Headers::new())
}

pub(crate) async fn fill(kafka: &RdKafka, to: &Partition, from: usize, n: usize) {
    let records: Vec<_> = (from..from + n).map(|i| record(i.to_string())).collect();
    for (i, outcome) in kafka.append(to, &records).await.into_iter().enumerate() {
        assert_eq!(outcome.unwrap(), i64::try_from(from + i).unwrap());
    }
}

/// Returns the next event. Reported errors after which reading continues are printed.
pub(crate) async fn next(consumer: &mut Consumer) -> Event {
    tokio::time::timeout(LONG, event(consumer)).await.expect("an event in time")
}

/// The same without a limit.
pub(crate) async fn event(consumer: &mut Consumer) -> Event {
    loop {
        match consumer.events.next().await.expect("the stream continues") {
            Ok(event) => break event,
            Err(e) => {
                println!("{e}");
                assert_eq!(e.retry(), Retry::Yes, "{e}");
            }
        }
    }
}

pub(crate) async fn assigned(consumer: &mut Consumer, n: usize) -> Vec<Assignment> {
    let mut all = Vec::new();
    while all.len() < n {
        if let Event::Assigned(more) = next(consumer).await {
            all.extend(more);
        }
    }
    all
}

pub(crate) async fn revoking(consumer: &mut Consumer) -> Vec<Assignment> {
    loop {
        if let Event::Revoking(asked) = next(consumer).await {
            break asked;
        }
    }
}

pub(crate) async fn lost(consumer: &mut Consumer) -> Vec<Assignment> {
    loop {
        if let Event::Lost(lost) = next(consumer).await {
            break lost;
        }
    }
}

/// Commits as the driver does: retries what the group refuses only because it is in the middle of a rebalance.
pub(crate) async fn commit(member: &dyn Member, commits: &[Commit]) {
    let mut refused = None;
    let committed = async {
        while let Some(e) = member.commit(commits).await.into_iter().find_map(Result::err) {
            assert_eq!(e.retry(), Retry::Yes, "{e}");
            refused = Some(e);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let is_late = tokio::time::timeout(LONG, committed).await.is_err();
    assert!(!is_late, "a commit was refused for {LONG:?}, most recently because: {refused:?}");
}

/// What a member was assigned, and where it began to read. Records of one partition arrive while others are still being
/// assigned.
#[derive(Default)]
pub(crate) struct Begun {
    pub(crate) assigned: Vec<Assignment>,
    pub(crate) first: BTreeMap<Partition, i64>,
}

impl Begun {
    /// Returns whether `n` partitions were assigned and reading of each has begun.
    pub(crate) fn is_over(&self, n: usize) -> bool {
        self.assigned.len() == n && self.assigned.iter().all(|a| self.first.contains_key(&a.partition))
    }

    pub(crate) fn take(&mut self, member: &dyn Member, event: Event) {
        match event {
            Event::Assigned(more) => self.assigned.extend(more),
            Event::Records(of, batch) => {
                self.first.entry(of.partition).or_insert(batch.records[0].offset);
            }
            Event::Revoking(gone) => {
                self.assigned.retain(|a| !gone.contains(a));
                member.release(&gone);
            }
            Event::Lost(gone) => self.assigned.retain(|a| !gone.contains(a)),
            other => panic!("{other:?}"),
        }
    }
}
