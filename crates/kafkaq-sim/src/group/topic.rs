//! A partition's log: it grows, is truncated, is recreated, loses its beginning, and sometimes returns nothing.

use async_trait::async_trait;
use kafkaq_core::{
    Batch, Cursor, Error, ErrorKind, FetchLimit, Headers, Log, Mark, NewRecord, Offsets, Partition,
    PartitionLog, Position, Record, Result, TopicInfo, TopicSpec,
};
use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

/// All records are equal, except for the generation in which they were appended, which is their timestamp.
#[derive(Clone, Copy, Debug)]
struct Entry {
    generation: u64,
    /// Whether a member has read it, and so finished it.
    read: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Topic {
    /// Grows each time that offsets are reused.
    generation: u64,
    /// Whether it is another topic than the first.
    pub(super) recreated: bool,
    first: i64,
    /// From offset 0 on, including deleted ones.
    entries: Vec<Entry>,
    /// The topic is deleted, and not recreated yet.
    pub(super) missing: bool,
}

impl Topic {
    pub(super) fn first(&self) -> i64 {
        self.first
    }

    pub(super) fn next(&self) -> i64 {
        self.entries.len() as i64
    }

    pub(super) fn grow(&mut self, count: u64) {
        let entry = Entry { generation: self.generation, read: false };
        self.entries.extend((0..count).map(|_| entry));
    }

    /// Deletes the topic. It comes back with that many records.
    pub(super) fn recreate(&mut self, count: u64) {
        let generation = self.generation + 1;
        *self = Topic { generation, missing: self.missing, recreated: true, ..Topic::default() };
        self.grow(count);
    }

    /// Deletes the records from `end` on and appends others in their place.
    pub(super) fn cut(&mut self, end: i64, count: u64) {
        self.entries.truncate(end.max(self.first) as usize);
        self.generation += 1;
        self.grow(count);
    }

    /// Deletes the records below `first`. Returns how many of them were unread.
    pub(super) fn trim(&mut self, first: i64) -> usize {
        let before = self.first;
        self.first = first.clamp(self.first, self.next());
        self.unread(before, self.first)
    }

    /// Returns how many records between two offsets are unread.
    pub(super) fn unread(&self, from: i64, to: i64) -> usize {
        let (from, to) = (from.max(0) as usize, to.clamp(0, self.next()) as usize);
        self.entries.get(from..to).map_or(0, |entries| entries.iter().filter(|e| !e.read).count())
    }

    pub(super) fn mark_read(&mut self, batch: &Batch) {
        for record in &batch.records {
            if let Some(entry) = self.entries.get_mut(record.offset as usize) {
                entry.read = true;
            }
        }
    }

    fn record(&self, offset: i64) -> Option<Record> {
        let entry = self.entries.get(usize::try_from(offset).ok()?)?;
        Some(Record::new(offset, entry.generation as i64, None, Some("x".into()), Headers::new()))
    }

    /// Returns whether the cursor was made in the current log, as far as its records show. This is the simulation's own
    /// check, which never gets empty responses.
    pub(super) fn made(&self, cursor: Cursor) -> bool {
        let there = |m: Mark| m.offset < self.first || self.record(m.offset).map(|r| Mark::of(&r)) == Some(m);
        cursor.offset <= self.next() && [cursor.mark, cursor.anchor].into_iter().flatten().all(there)
    }

    /// At most `count` records from an offset on.
    pub(super) fn read(&self, from: i64, count: u64) -> Result<Batch> {
        if self.missing {
            return Err(Error::not_applied(ErrorKind::NotFound, "fetch"));
        }
        if from > self.next() {
            return Err(Error::not_applied(ErrorKind::Invalid, "fetch"));
        }
        let from = from.max(self.first);
        let to = (from + count as i64).min(self.next());
        Ok(Batch::new((from..to).filter_map(|at| self.record(at)).collect(), to, Some(self.next())))
    }

    /// Returns the log as the production code reads it. The next `empty` fetches return nothing.
    pub(super) fn as_log(&self, empty: u32) -> Snapshot {
        Snapshot { topic: self.clone(), empty: AtomicU32::new(empty) }
    }
}

#[derive(Debug)]
pub(super) struct Snapshot {
    topic: Topic,
    empty: AtomicU32,
}

/// Returns the outcome of a call that never waits.
pub(super) fn at_once<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    match pin!(call).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => Err(Error::unknown(ErrorKind::Timeout, "a log that answers at once")),
    }
}

#[async_trait]
impl Log for Snapshot {
    async fn ensure_topics(&self, _: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        Ok(Vec::new())
    }

    async fn describe_topics(&self, _: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        Ok(Vec::new())
    }

    async fn append(&self, _: &Partition, _: &[NewRecord]) -> Vec<Result<i64>> {
        Vec::new()
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl PartitionLog for Snapshot {
    async fn fetch(&self, from: &Position, _: FetchLimit) -> Result<Batch> {
        if self.empty.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() {
            return Ok(Batch::new(Vec::new(), from.offset, None));
        }
        self.topic.read(from.offset, 1)
    }

    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        let missing = || Err(Error::not_applied(ErrorKind::NotFound, "offsets"));
        let ends = Offsets { first: self.topic.first, next: self.topic.next() };
        of.iter().map(|_| if self.topic.missing { missing() } else { Ok(ends) }).collect()
    }
}
