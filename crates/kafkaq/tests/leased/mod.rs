//! Shared by the tests of groups that are kept in a store: backends that fail, lose data, panic, hang and change, and a
//! member that records what it sees. Time is virtual and stands still while any task can run, so limits are exact on
//! any machine.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use kafkaq::{
    LeasedGroup,
    memory::{MemoryLog, MemoryStore},
};
use kafkaq_core::{
    Assignment, Batch, Broker, Commit, Consumer, Error, ErrorKind, Event, FetchLimit, Headers, JoinRequest,
    Key, LeaseStore, Log, NewRecord, Offsets, Partition, PartitionLog, Position, Record, Result, Retry, Swap,
    Swapped, TopicInfo, TopicSpec,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};
use tokio::time::{Instant, sleep, timeout};

pub(crate) const SEC: Duration = Duration::from_secs(1);
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) fn unavailable(op: &'static str) -> Error {
    Error::unknown(ErrorKind::Timeout, op)
}

/// A store that can be down: then every call fails after the request timeout.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) inner: MemoryStore,
    away: Arc<AtomicBool>,
}

impl Store {
    pub(crate) async fn is_away(&self) -> bool {
        let away = self.away.load(Ordering::SeqCst);
        if away {
            sleep(REQUEST_TIMEOUT).await;
        }
        away
    }

    /// The same store for another process: it can be away for that one alone.
    pub(crate) fn other(&self) -> Store {
        Store { inner: self.inner.clone(), away: Arc::default() }
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }
}

#[async_trait]
impl LeaseStore for Store {
    async fn get(&self, keys: &[Key]) -> Vec<Result<Option<Bytes>>> {
        if self.is_away().await {
            vec![Err(unavailable("get")); keys.len()]
        } else {
            self.inner.get(keys).await
        }
    }

    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        if self.is_away().await {
            return vec![Err(unavailable("swap")); swaps.len()];
        }
        self.inner.swap(swaps).await
    }

    async fn check(&self) -> Result<Vec<String>> {
        self.inner.check().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Trouble {
    Fails,
    Panics,
    Hangs,
}

pub(crate) const TROUBLES: [Trouble; 3] = [Trouble::Fails, Trouble::Panics, Trouble::Hangs];

/// A log whose next calls of one kind fail, and whose topics can be replaced.
#[derive(Clone, Debug)]
pub(crate) struct Faulty {
    inner: Arc<Mutex<MemoryLog>>,
    trouble: Arc<Mutex<Option<(&'static str, Trouble)>>>,
    left: Arc<AtomicU32>,
    /// The number of fetches that return nothing, whatever the log contains.
    pub(crate) empty: Arc<AtomicU32>,
    /// The next check of the topics finds none.
    pub(crate) forget_once: Arc<AtomicBool>,
    /// The topics it was asked to create.
    pub(crate) made: Arc<Mutex<Vec<TopicSpec>>>,
    /// The topic of the checkpoints has no leader.
    pub(crate) no_cursors: Arc<AtomicBool>,
}

impl Faulty {
    pub(crate) fn new(inner: MemoryLog) -> Self {
        Faulty {
            inner: Arc::new(Mutex::new(inner)),
            trouble: Arc::default(),
            left: Arc::default(),
            empty: Arc::default(),
            forget_once: Arc::default(),
            made: Arc::default(),
            no_cursors: Arc::default(),
        }
    }

    /// The same log for another process, with separate failures.
    pub(crate) fn other(&self) -> Self {
        Faulty { trouble: Arc::default(), left: Arc::default(), empty: Arc::default(), ..self.clone() }
    }

    pub(crate) fn next_calls(&self, op: &'static str, trouble: Trouble, times: u32) {
        *self.trouble.lock().unwrap() = Some((op, trouble));
        self.left.store(times, Ordering::SeqCst);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    pub(crate) fn replace(&self, by: MemoryLog) {
        *self.inner.lock().unwrap() = by;
    }

    pub(crate) fn now(&self) -> MemoryLog {
        self.inner.lock().unwrap().clone()
    }

    pub(crate) fn led(&self, op: &'static str, topic: &str) -> Result<()> {
        match topic == "g.cursors" && self.no_cursors.load(Ordering::SeqCst) {
            true => Err(Error::not_applied(ErrorKind::Unavailable, op)),
            false => Ok(()),
        }
    }

    pub(crate) async fn call(&self, op: &'static str) -> Result<MemoryLog> {
        let planned = *self.trouble.lock().unwrap();
        if let Some((_, trouble)) = planned.filter(|(which, _)| *which == op)
            && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
        {
            match trouble {
                Trouble::Fails => return Err(Error::not_applied(ErrorKind::Other, op)),
                Trouble::Panics => panic!("on purpose, in {op}"),
                Trouble::Hangs => std::future::pending().await,
            }
        }
        Ok(self.inner.lock().unwrap().clone())
    }
}

#[async_trait]
impl Log for Faulty {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        self.made.lock().unwrap().extend(topics.iter().cloned());
        topics.iter().try_for_each(|topic| self.led("ensure_topics", &topic.name))?;
        self.call("ensure_topics").await?.ensure_topics(topics).await
    }

    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        let log = self.call("describe_topics").await?;
        if self.forget_once.swap(false, Ordering::SeqCst) {
            return Ok(vec![None; names.len()]);
        }
        log.describe_topics(names).await
    }

    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        if let Err(e) = self.led("append", &to.topic) {
            return vec![Err(e); records.len()];
        }
        match self.call("append").await {
            Ok(log) => log.append(to, records).await,
            Err(e) => vec![Err(e); records.len()],
        }
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl PartitionLog for Faulty {
    async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
        self.led("fetch", &from.partition.topic)?;
        let log = self.call("fetch").await?;
        if self.empty.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            sleep(limit.max_wait).await;
            return Ok(Batch::new(Vec::new(), from.offset, None));
        }
        log.fetch(from, limit).await
    }

    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        let log = match self.call("offsets").await {
            Ok(log) => log,
            Err(e) => return vec![Err(e); of.len()],
        };
        let led = |of: &Partition| self.led("offsets", &of.topic);
        log.offsets(of).await.into_iter().zip(of).map(|(found, of)| led(of).and(found)).collect()
    }
}

pub(crate) fn partition(index: i32) -> Partition {
    Partition::new("t", index)
}

pub(crate) async fn memory_log(partitions: i32) -> MemoryLog {
    let log = MemoryLog::new();
    let mut topic = TopicSpec::new("t");
    topic.partitions = Some(partitions);
    log.ensure_topics(&[topic]).await.unwrap();
    log
}

/// Records that look alike in every log, so that a log can be replaced by one with the same and more.
pub(crate) async fn append(log: &dyn Log, index: i32, values: impl IntoIterator<Item = u64>) {
    let record = |n: u64| {
        let mut record = NewRecord::new(None, Some(n.to_string().into()), Headers::new());
        record.timestamp = Some(UNIX_EPOCH + SEC);
        record
    };
    let records: Vec<_> = values.into_iter().map(record).collect();
    log.append(&partition(index), &records).await.into_iter().for_each(|o| assert!(o.is_ok()));
}

pub(crate) fn value(record: &Record) -> u64 {
    std::str::from_utf8(record.value.as_ref().unwrap()).unwrap().parse().unwrap()
}

pub(crate) fn group(log: &Faulty, store: &Store) -> LeasedGroup {
    LeasedGroup::new(log.clone(), store.clone()).with_member_timeout(TIMEOUT)
}

pub(crate) async fn join(group: &LeasedGroup, member: u8) -> Consumer {
    group.join(JoinRequest::new("g", vec!["t".into()], [member; 16])).await.unwrap()
}

/// What a member has seen, each with its time. It commits what it reads.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) held: BTreeMap<i32, Assignment>,
    pub(crate) values: Vec<(u64, Instant)>,
    pub(crate) changes: Vec<(&'static str, Instant)>,
    pub(crate) errors: Vec<String>,
}

#[derive(Clone, Default)]
pub(crate) struct View(pub(crate) Arc<Mutex<Seen>>);

impl View {
    pub(crate) fn watch(mut consumer: Consumer) -> View {
        let view = View::default();
        let seen = view.clone();
        tokio::spawn(async move {
            while let Some(event) = consumer.events.next().await {
                let now = Instant::now();
                let commit = seen.take(event, now);
                if let Event::Revoking(gone) = &commit.0 {
                    consumer.member.release(gone);
                }
                if let Some(commit) = commit.1 {
                    let member = consumer.member.clone();
                    tokio::spawn(async move { member.commit(&[commit]).await });
                }
            }
        });
        view
    }

    pub(crate) fn take(&self, event: Result<Event>, now: Instant) -> (Event, Option<Commit>) {
        let mut seen = self.0.lock().unwrap();
        let event = match event {
            Ok(event) => event,
            Err(e) => {
                assert_ne!(e.retry(), Retry::No, "reading continues: {e}");
                seen.errors.push(e.to_string());
                return (Event::Lost(Vec::new()), None);
            }
        };
        let mut commit = None;
        match &event {
            Event::Assigned(mine) => {
                seen.held.extend(mine.iter().map(|a| (a.partition.index, a.clone())));
                seen.changes.push(("assigned", now));
            }
            Event::Records(assignment, batch) => {
                seen.values.extend(batch.records.iter().map(|r| (value(r), now)));
                commit = Some(Commit { assignment: assignment.clone(), offset: batch.next });
            }
            Event::Revoking(gone) | Event::Lost(gone) => {
                gone.iter().for_each(|a| drop(seen.held.remove(&a.partition.index)));
                seen.changes.push(("lost", now));
            }
            other => panic!("{other:?}"),
        }
        (event, commit)
    }

    pub(crate) fn values(&self) -> Vec<u64> {
        self.0.lock().unwrap().values.iter().map(|(v, _)| *v).collect()
    }

    pub(crate) fn read_at(&self, value: u64) -> Option<Instant> {
        self.0.lock().unwrap().values.iter().find(|(v, _)| *v == value).map(|(_, at)| *at)
    }

    pub(crate) fn has(&self, value: u64) -> bool {
        self.values().contains(&value)
    }

    pub(crate) fn held(&self) -> usize {
        self.0.lock().unwrap().held.len()
    }

    pub(crate) fn last(&self, change: &str) -> Option<Instant> {
        self.0.lock().unwrap().changes.iter().rev().find(|(c, _)| *c == change).map(|(_, at)| *at)
    }

    pub(crate) fn errors(&self) -> usize {
        self.0.lock().unwrap().errors.len()
    }

    /// Returns how many errors contain this text.
    pub(crate) fn told(&self, what: &str) -> usize {
        self.0.lock().unwrap().errors.iter().filter(|error| error.contains(what)).count()
    }
}

/// Waits in tokio's time.
pub(crate) async fn within(limit: Duration, what: &str, check: impl Fn() -> bool) {
    let poll = async {
        while !check() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(limit, poll).await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"));
}

/// Returns the offset of the log's last checkpoint.
pub(crate) async fn kept(log: &Faulty) -> Option<i64> {
    let topic = Position { partition: Partition::new("g.cursors", 0), offset: 0 };
    let log = log.inner.lock().unwrap().clone();
    let batch = log.fetch(&topic, FetchLimit::new(Duration::ZERO, 1 << 20)).await.unwrap();
    let last = batch.records.last()?.value.clone()?;
    Some(i64::from_be_bytes(last[1..9].try_into().unwrap()))
}
