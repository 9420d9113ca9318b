//! The small topic that remembers how far the group has read when the store forgets.
//!
//! ```text
//!   first              begin ──at──▶ from                 to      next
//!     │  not read yet    │  a part   │        read        │  new   │
//! ```
//! It has one key a partition and is compacted, but a log is compacted late: there may be millions of records, of
//! which the last few tell nearly everything. So it is read from the end on, in parts that double, each part
//! forwards; and once for all partitions of a member, wherever a search was interrupted.

use super::caught::in_time;
use kafkaq_core::{
    Batch, Cursor, Error, ErrorKind, FetchLimit, Headers, NewRecord, Offsets, Partition, PartitionLog,
    Position, Result, TopicSpec,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// How many offsets the first part has. Where the store has a cursor, which may be an old one, no more is looked at.
const FIRST_PART: i64 = 1000;
/// Empty answers in a row, where there have to be records, until that is an error.
const EMPTY_LIMIT: u32 = 10;
const MAX_BYTES: usize = 1 << 20;

/// The topic with the group's checkpoints.
pub(super) fn checkpoint_topic(group: &str) -> TopicSpec {
    let mut spec = TopicSpec::new(format!("{group}.cursors"));
    spec.partitions = Some(1);
    spec.compacted = true;
    spec.unlimited_bytes = true;
    spec
}

pub(super) struct Checkpoints {
    topic: Partition,
    /// Those that the member reads: nothing else is kept in memory.
    topics: Vec<Arc<str>>,
    /// Locked by whoever searches; the others wait, and find what was found.
    search: Mutex<Search>,
}

/// The last checkpoint of each partition, as far as is known.
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
        Checkpoints { topic, topics: topics.to_vec(), search: Mutex::default() }
    }

    /// Remembers cursors in the log. One outcome each.
    pub(super) async fn append(
        &self,
        log: &dyn PartitionLog,
        cursors: &[(Partition, Cursor)],
    ) -> Vec<Result<()>> {
        let record = |(of, at): &(Partition, Cursor)| {
            NewRecord::new(Some(of.to_string().into()), Some(at.encode()), Headers::new())
        };
        let records: Vec<_> = cursors.iter().map(record).collect();
        let outcomes = log.append(&self.topic, &records).await;
        outcomes.into_iter().map(|outcome| outcome.map(drop)).collect()
    }

    /// The last one of a partition. `thorough`: wherever it lies; otherwise only if it is one of the last.
    ///
    /// *Cancel-safety:* what was read is not read again.
    pub(super) async fn last(
        &self,
        log: &dyn PartitionLog,
        of: &Partition,
        thorough: bool,
    ) -> Result<Option<Cursor>> {
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

    /// Notes what a batch says below `until`. What can't be read is left out: an earlier checkpoint costs repetition,
    /// never a record.
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

    /// The next records, where there are some.
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
            .with_advice("The broker answers without a record although there are some"))
    }

    async fn ends(&self, log: &dyn PartitionLog) -> Result<Offsets> {
        let ends = async { Ok(log.offsets(std::slice::from_ref(&self.topic)).await) };
        let ends = in_time("offsets", ends).await?.into_iter().next();
        ends.unwrap_or_else(|| Err(Error::unknown(ErrorKind::Other, "offsets").on(&self.topic)))
    }
}

impl Search {
    /// Goes on where it was, unless the topic is another one, or more was added than has been read: then it is less
    /// work to begin at the new end.
    fn begin(&mut self, ends: Offsets) {
        let (added, read) = (ends.next - self.to, self.to - self.from);
        if added < 0 || added > read.max(FIRST_PART) || self.size == 0 {
            *self = Search { from: ends.next, to: ends.next, size: FIRST_PART, ..Search::default() };
        }
    }
}
