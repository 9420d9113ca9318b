//! The small topic that keeps the group's cursors in case the store loses them.
//!
//! ```text
//!   first              begin ──at──▶ from                 to      next
//!     │  not read yet    │  a part   │        read        │  new   │
//! ```
//! It has one key per partition and is compacted, but compaction is late: there may be millions of records, of which
//! the last few contain nearly everything. So it is read from the end, in parts that double in size, each part
//! forwards; and once for all partitions of a member, even if a search is interrupted.

use super::caught::in_time;
use crate::{config::CURSORS, sync::lock};
use kafkaq_core::{
    Batch, Cursor, Error, ErrorKind, FetchLimit, Headers, NewRecord, Offsets, Partition, PartitionLog,
    Position, Result, TopicSpec,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};

/// How many offsets the first part has. If the store has a cursor, which may be an old one, only this part is read.
const FIRST_PART: i64 = 1000;
/// How many consecutive empty responses, where there must be records, count as an error.
const EMPTY_LIMIT: u32 = 10;
const MAX_BYTES: usize = 1 << 20;

/// The topic with the group's checkpoints.
pub(super) fn checkpoint_topic(group: &str, replication: Option<i16>) -> TopicSpec {
    let mut spec = TopicSpec::new(format!("{group}{CURSORS}"));
    spec.partitions = Some(1);
    spec.replication = replication;
    spec.compacted = true;
    spec.unlimited_bytes = true;
    spec
}

pub(super) struct Checkpoints {
    topic: Partition,
    /// The member's topics: nothing else is kept in memory.
    topics: Vec<Arc<str>>,
    /// Locked by the searching task; others wait and use its results.
    search: Mutex<Search>,
    unread: std::sync::Mutex<Unread>,
}

/// What is not known because the checkpoints can't be read.
#[derive(Default)]
struct Unread {
    /// Since when no attempt has succeeded, and when the last one was made.
    failing: Option<(Instant, Instant)>,
    /// Reading has started without the checkpoints of these, which may be further.
    partitions: HashSet<Partition>,
}

/// The last known checkpoint of each partition.
type Found = HashMap<Partition, Cursor>;

#[derive(Default)]
struct Search {
    /// What lies between has been read.
    from: i64,
    to: i64,
    found: Found,
    part: Option<Part>,
    /// How many offsets the next part has.
    size: i64,
}

/// A part that is being read, up to where the search has read everything.
struct Part {
    begin: i64,
    at: i64,
    found: Found,
}

impl Checkpoints {
    pub(super) fn new(topic: &TopicSpec, topics: &[Arc<str>]) -> Self {
        let topic = Partition::new(topic.name.clone(), 0);
        let (search, unread) = Default::default();
        Checkpoints { topic, topics: topics.to_vec(), search, unread }
    }

    /// Stores cursors in the log, unless it has a further one that was not read when reading started. Returns one
    /// outcome per cursor.
    pub(super) async fn append(
        &self,
        log: &dyn PartitionLog,
        cursors: &[(Partition, Cursor)],
    ) -> Vec<Result<()>> {
        let (mut records, mut passed) = (Vec::new(), Vec::new());
        for (of, at) in cursors {
            let is_passed = self.is_passed(log, of, at).await;
            if let Ok(false) = is_passed {
                let key = Some(of.to_string().into());
                records.push(NewRecord::new(key, Some(at.encode()), Headers::new()));
            }
            passed.push(is_passed);
        }
        let mut appended = Vec::new().into_iter();
        if !records.is_empty() {
            appended = log.append(&self.topic, &records).await.into_iter();
        }
        let unanswered = || Err(Error::unknown(ErrorKind::Other, "append").on(&self.topic));
        let outcomes = passed.into_iter().map(|passed| match passed? {
            true => Ok(()),
            false => appended.next().unwrap_or_else(unanswered).map(drop),
        });
        outcomes.collect()
    }

    /// Whether the log has a further checkpoint. Asks only if reading has started without it.
    async fn is_passed(&self, log: &dyn PartitionLog, of: &Partition, at: &Cursor) -> Result<bool> {
        if !lock(&self.unread).partitions.contains(of) {
            return Ok(false);
        }
        // One of an earlier log may have a higher offset, but is older.
        let time = |cursor: &Cursor| cursor.mark.map(|mark| mark.timestamp_ms);
        let is_further = |kept: &Cursor| kept.offset > at.offset && time(kept) >= time(at);
        let is_passed = self.search(log, of, false).await?.is_some_and(|kept| is_further(&kept));
        if !is_passed {
            lock(&self.unread).partitions.remove(of);
        }
        Ok(is_passed)
    }

    /// Returns the last checkpoint of a partition of which the store has a cursor, if it is among the last records.
    /// `Ok(Err)`: no checkpoint could be read for `patience`, so reading starts without. From then on each partition
    /// waits for a tenth of it.
    pub(super) async fn last_if_readable(
        &self,
        log: &dyn PartitionLog,
        of: &Partition,
        patience: Duration,
    ) -> Result<Result<Option<Cursor>>> {
        let began = Instant::now();
        let since = {
            let mut unread = lock(&self.unread);
            let outage = unread.failing.filter(|(_, last)| began <= *last + patience);
            let (since, _) = *unread.failing.insert((outage.map_or(began, |(since, _)| since), began));
            since
        };
        let give_up_at = since + patience;
        let late = |_| Err(Error::not_applied(ErrorKind::Timeout, "fetch").on(&self.topic));
        let found = timeout_at(give_up_at.max(began + patience / 10), self.last(log, of, false)).await;
        let found = found.unwrap_or_else(late);
        let now = Instant::now();
        let mut unread = lock(&self.unread);
        match found {
            Ok(found) => {
                unread.failing = None;
                unread.partitions.remove(of);
                Ok(Ok(found))
            }
            Err(error) => {
                unread.failing = Some((since, now));
                if now < give_up_at {
                    return Err(error);
                }
                unread.partitions.insert(of.clone());
                Ok(Err(error))
            }
        }
    }

    /// Returns the last checkpoint of a partition. `thorough`: wherever it is; otherwise only if it is among the last
    /// records.
    ///
    /// *Cancel-safety:* what was read is not read again.
    pub(super) async fn last(
        &self,
        log: &dyn PartitionLog,
        of: &Partition,
        thorough: bool,
    ) -> Result<Option<Cursor>> {
        match self.search(log, of, thorough).await {
            // Somebody deleted the topic. It is recreated at the next check of the topics.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            found => found,
        }
    }

    async fn search(&self, log: &dyn PartitionLog, of: &Partition, thorough: bool) -> Result<Option<Cursor>> {
        let mut search = self.search.lock().await;
        let ends = self.ends(log).await?;
        search.begin(ends);
        while search.to < ends.next {
            let batch = self.fetch(log, search.to).await?;
            self.take(&batch, i64::MAX, &mut search.found);
            search.to = batch.next;
        }
        loop {
            let read = search.to - search.from;
            if search.found.contains_key(of) || search.from <= ends.first || (!thorough && read >= FIRST_PART)
            {
                return Ok(search.found.get(of).copied());
            }
            self.read_part(log, &mut search, ends.first).await?;
        }
    }

    async fn read_part(&self, log: &dyn PartitionLog, search: &mut Search, first: i64) -> Result<()> {
        let (from, begin) = (search.from, search.from.saturating_sub(search.size).max(first));
        let part = search.part.get_or_insert_with(|| Part { begin, at: begin, found: Found::new() });
        part.at = part.at.max(first);
        while part.at < from {
            let batch = self.fetch(log, part.at).await?;
            self.take(&batch, from, &mut part.found);
            part.at = batch.next;
        }
        search.size = search.size.saturating_mul(2);
        search.from = part.begin;
        for (partition, cursor) in search.part.take().into_iter().flat_map(|part| part.found) {
            search.found.entry(partition).or_insert(cursor);
        }
        Ok(())
    }

    /// Records the checkpoints of a batch below `until`. Unreadable ones are skipped: an earlier checkpoint costs
    /// repetition, never a record.
    fn take(&self, batch: &Batch, until: i64, found: &mut Found) {
        for record in batch.records.iter().take_while(|record| record.offset < until) {
            let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
            let Some((topic, index)) = key.and_then(|key| key.rsplit_once('/')) else { continue };
            let topic = self.topics.iter().find(|name| ***name == *topic);
            let cursor = record.value.as_deref().and_then(|value| Cursor::decode(value).ok());
            if let (Some(topic), Ok(index), Some(cursor)) = (topic, index.parse(), cursor) {
                found.insert(Partition::new(topic.clone(), index), cursor);
            }
        }
    }

    /// Returns the next records, where there must be some.
    async fn fetch(&self, log: &dyn PartitionLog, offset: i64) -> Result<Batch> {
        let from = Position { partition: self.topic.clone(), offset };
        for _ in 0..EMPTY_LIMIT {
            let batch = log.fetch(&from, FetchLimit::new(Duration::from_millis(500), MAX_BYTES));
            let batch = in_time("fetch", batch).await?;
            if batch.next > offset {
                return Ok(batch);
            }
        }
        Err(Error::not_applied(ErrorKind::Unavailable, "fetch")
            .on(&self.topic)
            .with_advice("The broker returns no record although there are some"))
    }

    async fn ends(&self, log: &dyn PartitionLog) -> Result<Offsets> {
        let ends = async { Ok(log.offsets(std::slice::from_ref(&self.topic)).await) };
        let ends = in_time("offsets", ends).await?.into_iter().next();
        ends.unwrap_or_else(|| Err(Error::unknown(ErrorKind::Other, "offsets").on(&self.topic)))
    }
}

impl Search {
    /// Continues where it was, unless the topic was recreated, or more was added than has been read: then it is cheaper
    /// to start at the new end.
    fn begin(&mut self, ends: Offsets) {
        let (added, read) = (ends.next - self.to, self.to - self.from);
        if added < 0 || added > read.max(FIRST_PART) || self.to < ends.first || self.size == 0 {
            *self = Search { from: ends.next, to: ends.next, size: FIRST_PART, ..Search::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryLog;
    use async_trait::async_trait;
    use kafkaq_core::{Log, Mark, TopicInfo};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use tokio::time::timeout;

    /// Counts the records that are fetched, and stops responding at a limit.
    #[derive(Debug, Default)]
    struct Counting {
        inner: MemoryLog,
        read: AtomicUsize,
        limit: AtomicUsize,
    }

    #[async_trait]
    impl Log for Counting {
        async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
            self.inner.ensure_topics(topics).await
        }

        async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
            self.inner.describe_topics(names).await
        }

        async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
            self.inner.append(to, records).await
        }

        async fn close(&self) -> Result<()> {
            self.inner.close().await
        }
    }

    #[async_trait]
    impl PartitionLog for Counting {
        async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
            if self.read.load(SeqCst) >= self.limit.load(SeqCst) {
                std::future::pending::<()>().await;
            }
            let first = self.inner.offsets(std::slice::from_ref(&from.partition)).await.remove(0)?.first;
            assert!(from.offset >= first, "a real log refuses such a fetch");
            let batch = self.inner.fetch(from, limit).await?;
            self.read.fetch_add(batch.records.len(), SeqCst);
            Ok(batch)
        }

        async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
            self.inner.offsets(of).await
        }
    }

    fn partition(index: i32) -> Partition {
        Partition::new("t", index)
    }

    fn cursor(offset: i64) -> Cursor {
        let mark = Mark { offset: offset - 1, timestamp_ms: 1, hash: 2 };
        Cursor { offset, mark: Some(mark), anchor: Some(mark) }
    }

    /// A log in which partition 0 has `old` as its first checkpoint, partition 1 has many, and partition 2 none.
    async fn log(checkpoints: i64) -> (Counting, Checkpoints) {
        let (log, topic) = (Counting::default(), checkpoint_topic("g", None));
        log.limit.store(usize::MAX, SeqCst);
        log.ensure_topics(std::slice::from_ref(&topic)).await.unwrap();
        let checkpoints_of = Checkpoints::new(&topic, &["t".into()]);
        let mut all = vec![(partition(0), cursor(7))];
        all.extend((1..checkpoints).map(|n| (partition(1), cursor(n))));
        append(&log, &checkpoints_of, &all).await;
        (log, checkpoints_of)
    }

    async fn append(log: &Counting, to: &Checkpoints, cursors: &[(Partition, Cursor)]) {
        let outcomes = to.append(log, cursors).await;
        assert!(outcomes.len() == cursors.len() && outcomes.iter().all(Result::is_ok));
    }

    /// The offset of a partition's last checkpoint, and how many records it took to find it.
    async fn last(log: &Counting, of: &Checkpoints, index: i32, thorough: bool) -> (Option<i64>, usize) {
        let before = log.read.load(SeqCst);
        let found = of.last(log, &partition(index), thorough).await.unwrap();
        (found.map(|cursor| cursor.offset), log.read.load(SeqCst) - before)
    }

    const MANY: i64 = 100_000;
    /// How many records one fetch returns beyond the requested ones, at most.
    const BATCH: usize = 20_000;

    #[tokio::test]
    async fn checkpoints_near_the_end_are_found_without_reading_more() {
        let (log, checkpoints) = log(MANY).await;
        for thorough in [false, true] {
            let (found, read) = last(&log, &checkpoints, 1, thorough).await;
            assert_eq!(found, Some(MANY - 1));
            assert!(read <= 1000, "{read}");
        }
        // The store has a cursor, so the log is not searched for one.
        let (found, read) = last(&log, &checkpoints, 2, false).await;
        assert_eq!((found, read), (None, 0));
    }

    #[tokio::test]
    async fn all_partitions_of_a_member_are_found_in_one_pass() {
        let (log, checkpoints) = log(MANY).await;
        let all = async |index| last(&log, &checkpoints, index, true).await.0;
        let found = tokio::join!(all(0), all(2), all(1), all(3));
        assert_eq!(found, (Some(7), None, Some(MANY - 1), None));
        let read = log.read.load(SeqCst);
        // Each part ends within a batch, the rest of which belongs to the part that was read before.
        assert!(read <= MANY as usize + 10 * BATCH, "{read}");
        let (_, again) = last(&log, &checkpoints, 2, true).await;
        assert_eq!(again, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn interrupted_search_resumes() {
        let (log, checkpoints) = log(MANY).await;
        let mut rounds = 0;
        log.limit.store(0, SeqCst);
        loop {
            log.limit.fetch_add(BATCH, SeqCst);
            rounds += 1;
            let of = partition(0);
            let search = checkpoints.last(&log, &of, true);
            if let Ok(found) = timeout(Duration::from_secs(1), search).await {
                assert_eq!(found.unwrap().map(|cursor| cursor.offset), Some(7));
                break;
            }
            assert!(rounds < 20, "it keeps starting over");
        }
        assert!(rounds > 3, "it was not interrupted: {rounds}");
    }

    #[tokio::test]
    async fn later_checkpoints_replace_those_found_before() {
        let (log, checkpoints) = log(MANY).await;
        last(&log, &checkpoints, 2, true).await;
        append(&log, &checkpoints, &[(partition(0), cursor(9)), (partition(2), cursor(3))]).await;
        assert_eq!(last(&log, &checkpoints, 0, false).await, (Some(9), 2));
        assert_eq!(last(&log, &checkpoints, 2, true).await, (Some(3), 0));
        // And if more was added than was ever read, only the end of it is read.
        let many = vec![(partition(1), cursor(5)); MANY as usize + BATCH];
        append(&log, &checkpoints, &many).await;
        let (found, read) = last(&log, &checkpoints, 1, false).await;
        assert!(found == Some(5) && read <= 1000, "{found:?} of {read}");
        assert_eq!(last(&log, &checkpoints, 0, true).await.0, Some(9));
    }

    #[tokio::test]
    async fn recreated_topic_is_searched_again() {
        let (log, checkpoints) = log(5_000).await;
        assert_eq!(last(&log, &checkpoints, 0, true).await.0, Some(7));
        log.inner.delete_topic("g.cursors").unwrap();
        log.ensure_topics(&[checkpoint_topic("g", None)]).await.unwrap();
        append(&log, &checkpoints, &[(partition(1), cursor(3))]).await;
        assert_eq!(last(&log, &checkpoints, 0, true).await, (None, 1));
        assert_eq!(last(&log, &checkpoints, 1, true).await.0, Some(3));
    }

    /// Somebody has set a retention, or deletes records by hand.
    #[tokio::test]
    async fn a_topic_that_has_lost_its_beginning_is_searched_from_there() {
        let (log, checkpoints) = log(5_000).await;
        assert_eq!(last(&log, &checkpoints, 1, true).await.0, Some(4_999));
        let topic = Partition::new("g.cursors", 0);
        log.inner.delete_records(&topic, 4_500).unwrap();
        assert_eq!(last(&log, &checkpoints, 0, true).await.0, None);
        log.inner.delete_records(&topic, 5_000).unwrap();
        append(&log, &checkpoints, &[(partition(2), cursor(3))]).await;
        log.inner.delete_records(&topic, 5_001).unwrap();
        append(&log, &checkpoints, &[(partition(0), cursor(9))]).await;
        assert_eq!(last(&log, &checkpoints, 0, true).await.0, Some(9));
    }

    #[tokio::test]
    async fn records_other_than_checkpoints_of_the_members_topics_are_skipped() {
        let (log, checkpoints) = log(2).await;
        let foreign = [("other/1", true), ("t", true), ("t/x", true), ("t/0", false)].map(|(key, valid)| {
            let value = if valid { cursor(5).encode() } else { "junk".into() };
            NewRecord::new(Some(key.into()), Some(value), Headers::new())
        });
        log.append(&Partition::new("g.cursors", 0), &foreign)
            .await
            .into_iter()
            .for_each(|o| assert!(o.is_ok()));
        assert_eq!(last(&log, &checkpoints, 0, true).await.0, Some(7));
        assert_eq!(checkpoints.search.lock().await.found.len(), 2, "nothing else is kept");
    }
}
