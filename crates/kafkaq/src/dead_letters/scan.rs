//! Reads a topic once, from its beginning to where it ended at the start of the scan.

use super::{DeadLetter, DeadLetters, Filter, Marks};
use crate::{driver::every_answer, jobs::Attempts};
use kafkaq_core::{Error, ErrorKind, FetchLimit, Offsets, Partition, PartitionLog, Position, Record, Result};
use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    ops::Range,
    sync::Arc,
    time::Duration,
};

/// The size of one fetch: this much is held in memory, or one record if that is larger.
const FETCH_BYTES: usize = 1 << 20;
const FETCH_WAIT: Duration = Duration::from_secs(1);
/// How many times in a row a partition may return nothing although it has not ended.
const MOST_IDLE: u32 = 10;

/// Offsets of each partition.
pub(super) type Ranges = HashMap<i32, Range<i64>>;

/// Records of a topic, partition by partition, by offset.
#[derive(Debug)]
pub(super) struct Scan {
    log: Arc<dyn PartitionLog>,
    topic: Arc<str>,
    /// What remains to be read of each unfinished partition; the first is being read.
    rest: VecDeque<(i32, Offsets)>,
    read: VecDeque<Record>,
}

impl Scan {
    /// Reads the partitions' ends. A missing topic counts as empty.
    pub(super) async fn new(log: &Arc<dyn PartitionLog>, topic: &Arc<str>) -> Result<Self> {
        let mut attempts = Attempts::begin();
        let rest = loop {
            match ends(&**log, topic).await {
                Ok(rest) => break rest,
                Err(e) => attempts.again_after(e).await?,
            }
        };
        Ok(Scan { log: log.clone(), topic: topic.clone(), rest, read: VecDeque::new() })
    }

    /// The offsets that remain to be read, of each partition.
    pub(super) fn ranges(&self) -> Ranges {
        self.rest.iter().map(|(index, offsets)| (*index, offsets.first..offsets.next)).collect()
    }

    /// Leaves out what is before one place and after another.
    pub(super) fn narrow(&mut self, filter: &Filter) {
        let (start, end) = (filter.start(), filter.end());
        self.rest.retain_mut(|(index, offsets)| {
            if let Some(start) = start.filter(|s| s.partition >= *index) {
                let first = if start.partition == *index { start.offset } else { i64::MAX };
                offsets.first = offsets.first.max(first);
            }
            if let Some(end) = end.filter(|e| e.partition <= *index) {
                let next = if end.partition == *index { end.offset.saturating_add(1) } else { 0 };
                offsets.next = offsets.next.min(next);
            }
            offsets.first < offsets.next
        });
    }

    /// Returns the next record and its partition. It can be called again after an error, and after it was dropped.
    pub(super) async fn next(&mut self) -> Result<Option<(i32, Record)>> {
        let mut attempts = Attempts::begin();
        let mut idle = 0;
        loop {
            let Some((index, offsets)) = self.rest.front().copied() else { return Ok(None) };
            if let Some(record) = self.read.pop_front() {
                return Ok(Some((index, record)));
            }
            if offsets.first >= offsets.next {
                self.rest.pop_front();
                continue;
            }
            match self.fetch(index, offsets).await {
                Ok(true) => idle = 0,
                Ok(false) if idle < MOST_IDLE => idle += 1,
                Ok(false) => {
                    let e = Error::not_applied(ErrorKind::Timeout, "read dead letters");
                    return Err(e.on(self.partition(index)).with_advice("The log returned no records"));
                }
                Err(e) => attempts.again_after(e).await?,
            }
        }
    }

    /// Continues reading the first partition. Returns whether it made progress.
    async fn fetch(&mut self, index: i32, offsets: Offsets) -> Result<bool> {
        let partition = self.partition(index);
        let from = Position { partition: partition.clone(), offset: offsets.first };
        let fetched = self.log.fetch(&from, FetchLimit::new(FETCH_WAIT, FETCH_BYTES)).await;
        let (records, next) = match fetched {
            Ok(batch) if batch.next > offsets.first => (batch.records, batch.next),
            // Retention may have deleted what comes next; a truncated topic ends earlier.
            Err(e) if e.kind() != ErrorKind::Invalid => return Err(e.on(partition)),
            unmoved => {
                let now = offsets_of(&*self.log, std::slice::from_ref(&partition)).await.remove(0)?;
                let next =
                    if now.next <= offsets.first { offsets.next } else { now.first.max(offsets.first) };
                match unmoved {
                    Err(e) if next == offsets.first => return Err(e.on(partition)),
                    _ => (Vec::new(), next),
                }
            }
        };
        // Nothing is awaited from here on.
        if let Some((_, rest)) = self.rest.front_mut() {
            let within = |record: &Record| (offsets.first..rest.next).contains(&record.offset);
            self.read.extend(records.into_iter().filter(within));
            rest.first = next;
        }
        Ok(next > offsets.first)
    }

    fn partition(&self, index: i32) -> Partition {
        Partition::new(self.topic.clone(), index)
    }
}

async fn ends(log: &dyn PartitionLog, topic: &Arc<str>) -> Result<VecDeque<(i32, Offsets)>> {
    let found = log.describe_topics(std::slice::from_ref(topic)).await?.into_iter().next().flatten();
    let partitions = found.map_or(0, |topic| topic.partitions);
    let partitions: Vec<_> = (0..partitions).map(|index| Partition::new(topic.clone(), index)).collect();
    let offsets = offsets_of(log, &partitions).await;
    (0..).zip(offsets).map(|(index, offsets)| Ok((index, offsets?))).collect()
}

/// One outcome per partition, whatever the log returns.
async fn offsets_of(log: &dyn PartitionLog, partitions: &[Partition]) -> Vec<Result<Offsets>> {
    let outcomes = every_answer(Ok::<_, Infallible>(log.offsets(partitions).await));
    let named = partitions.iter().zip(outcomes);
    named.map(|(partition, outcome)| outcome.map_err(|e| e.on(partition))).collect()
}

/// Dead letters that a filter selects, by partition and offset: see [`DeadLetters::letters`].
///
/// It holds one batch of records, about 1 MiB, and some 50 bytes for each letter that was redriven or discarded.
///
/// [`DeadLetters::letters`]: super::DeadLetters::letters
#[derive(Debug)]
#[must_use = "it reads nothing until `next` is called"]
pub struct Letters {
    scan: Scan,
    filter: Filter,
    marks: Marks,
    /// The offsets of the letters that existed when browsing started.
    ranges: Ranges,
}

impl Letters {
    /// Creates an iterator over the letters that the scan is about to read, with their marks.
    pub(super) async fn new(dead: &DeadLetters, mut scan: Scan, filter: Filter) -> Result<Self> {
        let ranges = scan.ranges();
        let marks = dead.marks_in(&ranges).await?;
        scan.narrow(&filter);
        Ok(Letters { scan, filter, marks, ranges })
    }

    /// Reads the marks again: others may have handled letters since.
    pub(super) async fn update_marks(&mut self, dead: &DeadLetters) -> Result<()> {
        self.marks = dead.marks_in(&self.ranges).await?;
        Ok(())
    }

    /// The letter, with what its mark says.
    pub(super) fn judged(&self, mut letter: DeadLetter) -> DeadLetter {
        letter.handled = self.marks.get(&letter);
        letter
    }

    pub(super) fn selects(&self, letter: &DeadLetter) -> bool {
        self.filter.selects(letter)
    }

    /// Returns the next letter, and `None` after the last one that was there when browsing started.
    ///
    /// *Cancel-safety:* safe. A dropped future has skipped no letter.
    ///
    /// # Errors
    /// The log's own. Calling it again continues with the same letter.
    pub async fn next(&mut self) -> Result<Option<DeadLetter>> {
        while let Some((partition, record)) = self.scan.next().await? {
            let letter = self.judged(DeadLetter::new(partition, record));
            if self.selects(&letter) {
                return Ok(Some(letter));
            }
        }
        Ok(None)
    }

    /// Returns the next letters, at most `max`; fewer, or none, at the end.
    ///
    /// *Cancel-safety:* not safe: letters that were read are lost with the future. Continue after the last one seen
    /// with [`Filter::after`].
    ///
    /// # Errors
    /// The same as for [`next`](Letters::next), if an error precedes the first letter. A later one ends the page, and
    /// the next call returns it if it persists.
    pub async fn next_page(&mut self, max: usize) -> Result<Vec<DeadLetter>> {
        let mut page = Vec::new();
        while page.len() < max {
            match self.next().await {
                Ok(Some(letter)) => page.push(letter),
                Err(e) if page.is_empty() => return Err(e),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(page)
    }
}
