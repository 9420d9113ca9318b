//! A consumer group over a log without one, when its backends fail, forget, panic and hang. Time is tokio's and stands
//! still while anybody has something to do, so the limits here are exact and no machine is too slow for them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use kafkaq::{
    LeasedGroup,
    memory::{MemoryLog, MemoryStore},
};
use kafkaq_core::{
    Assignment, Batch, Broker, Commit, Consumer, Error, ErrorKind, Event, FetchLimit, Headers, JoinRequest,
    Key, LeaseStore, Log, NewRecord, Offsets, Partition, PartitionLog, Position, Record, Result, Swap,
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

const SEC: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

fn unavailable(op: &'static str) -> Error {
    Error::unknown(ErrorKind::Timeout, op)
}

/// A store that can be away: then every call ends after the request timeout.
#[derive(Clone, Debug, Default)]
struct Store {
    inner: MemoryStore,
    away: Arc<AtomicBool>,
}

impl Store {
    async fn is_away(&self) -> bool {
        let away = self.away.load(Ordering::SeqCst);
        if away {
            sleep(REQUEST_TIMEOUT).await;
        }
        away
    }

    fn set_away(&self, away: bool) {
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
enum Trouble {
    Fails,
    Panics,
    Hangs,
}

const TROUBLES: [Trouble; 3] = [Trouble::Fails, Trouble::Panics, Trouble::Hangs];

/// A log whose next calls of one kind go wrong, and whose topics can be replaced by others.
#[derive(Clone, Debug)]
struct Faulty {
    inner: Arc<Mutex<MemoryLog>>,
    trouble: Arc<Mutex<Option<(&'static str, Trouble)>>>,
    left: Arc<AtomicU32>,
}

impl Faulty {
    fn new(inner: MemoryLog) -> Self {
        Faulty { inner: Arc::new(Mutex::new(inner)), trouble: Arc::default(), left: Arc::default() }
    }

    fn next_calls(&self, op: &'static str, trouble: Trouble, times: u32) {
        *self.trouble.lock().unwrap() = Some((op, trouble));
        self.left.store(times, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    fn replace(&self, by: MemoryLog) {
        *self.inner.lock().unwrap() = by;
    }

    async fn call(&self, op: &'static str) -> Result<MemoryLog> {
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
        self.call("ensure_topics").await?.ensure_topics(topics).await
    }

    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        self.call("describe_topics").await?.describe_topics(names).await
    }

    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
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
        self.call("fetch").await?.fetch(from, limit).await
    }

    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        match self.call("offsets").await {
            Ok(log) => log.offsets(of).await,
            Err(e) => vec![Err(e); of.len()],
        }
    }
}

fn partition(index: i32) -> Partition {
    Partition::new("t", index)
}

async fn memory_log(partitions: i32) -> MemoryLog {
    let log = MemoryLog::new();
    let mut topic = TopicSpec::new("t");
    topic.partitions = Some(partitions);
    log.ensure_topics(&[topic]).await.unwrap();
    log
}

/// Records that look alike in every log, so that a log can be replaced by one with the same and more.
async fn append(log: &dyn Log, index: i32, values: impl IntoIterator<Item = u64>) {
    let record = |n: u64| {
        let mut record = NewRecord::new(None, Some(n.to_string().into()), Headers::new());
        record.timestamp = Some(UNIX_EPOCH + SEC);
        record
    };
    let records: Vec<_> = values.into_iter().map(record).collect();
    log.append(&partition(index), &records).await.into_iter().for_each(|o| assert!(o.is_ok()));
}

fn value(record: &Record) -> u64 {
    std::str::from_utf8(record.value.as_ref().unwrap()).unwrap().parse().unwrap()
}

fn group(log: &Faulty, store: &Store) -> LeasedGroup {
    LeasedGroup::new(log.clone(), store.clone()).with_member_timeout(TIMEOUT)
}

async fn join(group: &LeasedGroup, member: u8) -> Consumer {
    group.join(JoinRequest::new("g", vec!["t".into()], [member; 16])).await.unwrap()
}

/// What a member has seen, each with its time. It commits what it reads.
#[derive(Default)]
struct Seen {
    held: BTreeMap<i32, Assignment>,
    values: Vec<(u64, Instant)>,
    changes: Vec<(&'static str, Instant)>,
    errors: Vec<String>,
}

#[derive(Clone, Default)]
struct View(Arc<Mutex<Seen>>);

impl View {
    fn watch(mut consumer: Consumer) -> View {
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

    fn take(&self, event: Result<Event>, now: Instant) -> (Event, Option<Commit>) {
        let mut seen = self.0.lock().unwrap();
        let event = match event {
            Ok(event) => event,
            Err(e) => {
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

    fn values(&self) -> Vec<u64> {
        self.0.lock().unwrap().values.iter().map(|(v, _)| *v).collect()
    }

    fn has(&self, value: u64) -> bool {
        self.values().contains(&value)
    }

    fn held(&self) -> usize {
        self.0.lock().unwrap().held.len()
    }

    fn last(&self, change: &str) -> Option<Instant> {
        self.0.lock().unwrap().changes.iter().rev().find(|(c, _)| *c == change).map(|(_, at)| *at)
    }

    fn errors(&self) -> usize {
        self.0.lock().unwrap().errors.len()
    }
}

/// In tokio's time.
async fn within(limit: Duration, what: &str, check: impl Fn() -> bool) {
    let poll = async {
        while !check() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(limit, poll).await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"));
}

/// The log's last checkpoint has this offset.
async fn kept(log: &Faulty) -> Option<i64> {
    let topic = Position { partition: Partition::new("g.cursors", 0), offset: 0 };
    let log = log.inner.lock().unwrap().clone();
    let batch = log.fetch(&topic, FetchLimit::new(Duration::ZERO, 1 << 20)).await.unwrap();
    let last = batch.records.last()?.value.clone()?;
    Some(i64::from_be_bytes(last[1..9].try_into().unwrap()))
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_for_half_a_minute_stops_the_group_and_loses_nothing() {
    let (log, store) = (Faulty::new(memory_log(2).await), Store::default());
    let view = View::watch(join(&group(&log, &store), 1).await);
    append(&log, 0, 0..5).await;
    within(SEC, "it reads", || view.values().len() == 5).await;
    sleep(SEC * 5).await;
    store.set_away(true);
    let begin = Instant::now();
    // Its lease still runs, so it goes on.
    append(&log, 0, [5]).await;
    within(SEC, "it goes on", || view.has(5)).await;
    within(TIMEOUT, "it stops by its own clock", || view.held() == 0).await;
    let stopped = view.last("lost").unwrap() - begin;
    assert!(stopped > TIMEOUT / 2 && stopped < TIMEOUT, "{stopped:?}");
    append(&log, 1, [6]).await;
    sleep(SEC * 30 - begin.elapsed()).await;
    assert!(!view.has(6), "nothing is handed out without a lease");
    store.set_away(false);
    within(SEC * 5, "it comes back by itself", || view.held() == 2 && view.has(6)).await;
    // What it could not commit comes again; what it had committed does not.
    assert_eq!(view.values()[..6], [0, 1, 2, 3, 4, 5]);
    assert!(view.values()[6..].iter().all(|v| *v >= 5), "{:?}", view.values());
}

#[tokio::test(start_paused = true)]
async fn a_start_that_can_not_be_found_is_tried_until_it_is() {
    for trouble in TROUBLES {
        for op in ["offsets", "fetch"] {
            let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
            append(&log, 0, 0..3).await;
            let first = group(&log, &store);
            let view = View::watch(join(&first, 1).await);
            within(SEC, "it reads", || view.values().len() == 3).await;
            sleep(SEC).await;
            first.close().await.unwrap();
            append(&log, 0, 3..5).await;
            log.next_calls(op, trouble, 3);
            let view = View::watch(join(&group(&log, &store), 2).await);
            within(SEC * 400, &format!("{op} {trouble:?}"), || view.values() == [3, 4]).await;
            assert!(log.is_over());
            assert!(view.errors() > 0, "somebody is told");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_panics_or_fails_costs_a_moment_and_no_record() {
    for trouble in [Trouble::Fails, Trouble::Panics] {
        let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
        let view = View::watch(join(&group(&log, &store), 1).await);
        append(&log, 0, 0..3).await;
        within(SEC, "it reads", || view.values().len() == 3).await;
        log.next_calls("fetch", trouble, 3);
        within(SEC * 5, "it goes wrong", || log.is_over()).await;
        append(&log, 0, 3..6).await;
        within(SEC * 5, &format!("{trouble:?}"), || (0..6).all(|n| view.has(n))).await;
        assert_eq!(view.values().len(), 6, "{:?}", view.values());
        assert!(view.errors() > 0, "somebody is told");
    }
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_goes_wrong_is_made_later() {
    for trouble in TROUBLES {
        let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
        append(&log, 0, 0..3).await;
        log.next_calls("append", trouble, 2);
        let view = View::watch(join(&group(&log, &store), 1).await);
        within(SEC, "it reads", || view.values().len() == 3).await;
        sleep(SEC * 25).await;
        assert!(log.is_over());
        assert_eq!(kept(&log).await, Some(3), "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn partitions_that_are_added_are_read_whatever_goes_wrong_once() {
    for trouble in TROUBLES {
        let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
        let view = View::watch(join(&group(&log, &store), 1).await);
        append(&log, 0, 0..3).await;
        within(SEC, "it reads", || view.values().len() == 3).await;
        let larger = memory_log(3).await;
        append(&larger, 0, 0..3).await;
        append(&larger, 2, [7]).await;
        log.replace(larger);
        log.next_calls("ensure_topics", trouble, 1);
        within(SEC * 95, &format!("{trouble:?}"), || view.held() == 3 && view.has(7)).await;
        assert_eq!(view.values(), [0, 1, 2, 7], "nothing is read twice");
    }
}

/// Shorter than the old one, as long, and longer: then no fetch fails.
#[tokio::test(start_paused = true)]
async fn a_topic_made_anew_under_a_reader_is_read_from_its_first_record() {
    for length in [2, 5, 9] {
        let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
        let view = View::watch(join(&group(&log, &store), 1).await);
        append(&log, 0, 0..5).await;
        within(SEC, "it reads", || view.values().len() == 5).await;
        sleep(SEC * 3).await;
        // While a topic is being deleted, fetches fail.
        log.next_calls("fetch", Trouble::Fails, 1);
        within(SEC, "a fetch fails", || log.is_over()).await;
        let anew = memory_log(1).await;
        append(&anew, 0, 100..100 + length).await;
        log.replace(anew);
        within(SEC * 15, &format!("{length} records"), || (100..100 + length).all(|n| view.has(n))).await;
        sleep(SEC * 30).await;
        assert_eq!(view.values().len() as u64, 5 + length, "each once: {:?}", view.values());
    }
}

/// The worst case: nothing fails, and the new topic has just as many records.
#[tokio::test(start_paused = true)]
async fn a_topic_that_was_swapped_unseen_is_noticed_within_seconds() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    let view = View::watch(join(&group(&log, &store), 1).await);
    append(&log, 0, 0..5).await;
    within(SEC, "it reads", || view.values().len() == 5).await;
    sleep(SEC * 3).await;
    let anew = memory_log(1).await;
    append(&anew, 0, 100..105).await;
    log.replace(anew);
    within(SEC * 11, "all of the new topic", || (100..105).all(|n| view.has(n))).await;
}

#[tokio::test(start_paused = true)]
async fn who_leaves_leaves_its_commit_in_the_log_before_any_checkpoint_is_due() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    append(&log, 0, 0..5).await;
    let first = group(&log, &store);
    let view = View::watch(join(&first, 1).await);
    within(SEC, "it reads", || view.values().len() == 5).await;
    first.close().await.unwrap();
    assert_eq!(kept(&log).await, Some(5));
    store.inner.clear();
    append(&log, 0, [5]).await;
    let view = View::watch(join(&group(&log, &store), 2).await);
    within(SEC, "the next goes on", || view.has(5)).await;
    assert_eq!(view.values(), [5]);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_does_not_wait_for_a_log_that_hangs() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    append(&log, 0, 0..5).await;
    let first = group(&log, &store);
    let view = View::watch(join(&first, 1).await);
    within(SEC, "it reads", || view.values().len() == 5).await;
    log.next_calls("append", Trouble::Hangs, u32::MAX);
    let begin = Instant::now();
    first.close().await.unwrap();
    assert!(begin.elapsed() < SEC * 4, "{:?}", begin.elapsed());
    let view = View::watch(join(&group(&log, &store), 2).await);
    within(SEC, "the partition is free", || view.held() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_went_back_in_time_does_not_take_the_group_back() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    let first = group(&log, &store);
    let view = View::watch(join(&first, 1).await);
    append(&log, 0, 0..2).await;
    within(SEC, "it reads", || view.values().len() == 2).await;
    sleep(SEC).await;
    let key = Key::partition("g", &partition(0));
    let old = store.inner.get(std::slice::from_ref(&key)).await.remove(0).unwrap();
    append(&log, 0, 2..50).await;
    within(SEC, "it reads", || view.values().len() == 50).await;
    first.close().await.unwrap();
    store.inner.clear();
    store.inner.swap(&[Swap::new(key, None, old, None)]).await.remove(0).unwrap();
    append(&log, 0, [50]).await;
    let view = View::watch(join(&group(&log, &store), 2).await);
    within(TIMEOUT + SEC, "the next goes on", || view.has(50)).await;
    assert_eq!(view.values(), [50], "the log's checkpoint counts");
}

#[tokio::test(start_paused = true)]
async fn commits_that_wait_for_the_store_have_a_limit() {
    let (log, store) = (Faulty::new(memory_log(1).await), Store::default());
    append(&log, 0, 0..5).await;
    let mut a = join(&group(&log, &store), 1).await;
    let Some(Ok(Event::Assigned(mine))) = a.events.next().await else { panic!("not assigned") };
    store.set_away(true);
    let commits = vec![Commit { assignment: mine[0].clone(), offset: 5 }; 10_001];
    let outcomes = a.member.commit(&commits).await;
    assert_eq!(outcomes.len(), 10_001);
    assert_eq!(outcomes[10_000].as_ref().unwrap_err().kind(), ErrorKind::Throttled);
    assert_eq!(outcomes[9_999].as_ref().unwrap_err().kind(), ErrorKind::Timeout);
}

/// No tick of anybody lies between: the long poll answers when the record is there.
#[tokio::test(start_paused = true)]
async fn a_record_of_an_owned_partition_arrives_in_no_time() {
    let (log, store) = (Faulty::new(memory_log(3).await), Store::default());
    let view = View::watch(join(&group(&log, &store), 1).await);
    within(SEC, "it has all", || view.held() == 3).await;
    for n in 0..20 {
        // At every phase of a long poll.
        sleep(Duration::from_millis(100 + (n as u64 * 173) % 1_000)).await;
        let begin = Instant::now();
        append(&log, n % 3, [n as u64]).await;
        within(SEC, "it arrives", || view.has(n as u64)).await;
        let arrived = view.0.lock().unwrap().values.last().unwrap().1;
        assert_eq!(arrived - begin, Duration::ZERO, "record {n}");
    }
}

/// From the release to the next owner's first record: a look at the store, which is due twenty times in a timeout.
#[tokio::test(start_paused = true)]
async fn after_a_change_of_hands_reading_begins_at_once() {
    let (log, store) = (Faulty::new(memory_log(2).await), Store::default());
    let (one, two) = (group(&log, &store), group(&log, &store));
    let a = View::watch(join(&one, 1).await);
    within(SEC, "the first has all", || a.held() == 2).await;
    let b = View::watch(join(&two, 2).await);
    within(SEC * 3, "they share", || a.held() == 1 && b.held() == 1).await;
    sleep(SEC * 5).await;
    let begin = Instant::now();
    one.close().await.unwrap();
    append(&log, 0, [1]).await;
    append(&log, 1, [2]).await;
    within(SEC, "the other reads both", || b.has(1) && b.has(2)).await;
    assert!(begin.elapsed() <= TIMEOUT / 20 + Duration::from_millis(10), "{:?}", begin.elapsed());
    let (taken, seen) = (b.last("assigned").unwrap(), b.0.lock().unwrap().values.last().unwrap().1);
    assert_eq!(seen - taken, Duration::ZERO, "between the assignment and the first record");
}
