//! Where reading starts, and the small topic that remembers it when the store forgets (hole 16).

use kafkaq_core::{
    Batch, Cursor, Error, ErrorKind, FetchLimit, Headers, Mark, NewRecord, Offsets, Partition, PartitionLog,
    Position, Record, Result, TopicSpec, group::start,
};
use std::time::Duration;

/// How many checkpoints are looked at in one go, from the end on.
const WINDOW: i64 = 1000;

/// The topic with the group's checkpoints.
pub(super) fn checkpoint_topic(group: &str) -> TopicSpec {
    let mut spec = TopicSpec::new(format!("{group}.cursors"));
    spec.partitions = Some(1);
    spec.compacted = true;
    spec.unlimited_bytes = true;
    spec
}

fn key(partition: &Partition) -> bytes::Bytes {
    partition.to_string().into()
}

/// Remembers a cursor in the log.
pub(super) async fn checkpoint(
    log: &dyn PartitionLog,
    to: &Partition,
    of: &Partition,
    at: Cursor,
) -> Result<()> {
    let record = NewRecord::new(Some(key(of)), Some(at.encode()), Headers::new());
    match log.append(to, &[record]).await.into_iter().next() {
        Some(outcome) => outcome.map(drop),
        None => Err(Error::unknown(ErrorKind::Other, "append a checkpoint").on(to)),
    }
}

/// Where to start in `partition`: at the store's cursor or at the log's checkpoint, whichever is further, else at the
/// first record.
///
/// A store that has a cursor may have gone back in time, so a few checkpoints are looked at all the same. If it has none,
/// all are.
pub(super) async fn locate(
    log: &dyn PartitionLog,
    checkpoints: &Partition,
    partition: &Partition,
    stored: Option<Cursor>,
) -> Result<Cursor> {
    let windows = if stored.is_some() { 1 } else { usize::MAX };
    let kept = match last_checkpoint(log, checkpoints, partition, windows).await {
        // Somebody deleted the topic. It is made again at the next look for partitions.
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        kept => kept?,
    };
    let ends = ends(log, partition).await?;
    let mut cursors = Vec::new();
    for cursor in [stored, kept].into_iter().flatten() {
        let at_mark = match cursor.mark {
            Some(mark) => record_at(log, partition, ends, mark).await?,
            None => None,
        };
        cursors.push((cursor, at_mark));
    }
    Ok(start(ends, &cursors))
}

/// Whether reading can go on at `at`: it lies inside of the log, and `last`, the last record that was read, is still
/// where it was. Otherwise the topic was made anew, or its beginning deleted.
pub(super) async fn goes_on(log: &dyn PartitionLog, at: &Position, last: Option<Mark>) -> Result<bool> {
    let ends = ends(log, &at.partition).await?;
    if !(ends.first..=ends.next).contains(&at.offset) {
        return Ok(false);
    }
    let Some(mark) = last.filter(|m| m.offset >= ends.first) else { return Ok(true) };
    let there = record_at(log, &at.partition, ends, mark).await?;
    Ok(there.as_ref().map(Mark::of) == Some(mark))
}

/// The first record from the mark on.
async fn record_at(
    log: &dyn PartitionLog,
    of: &Partition,
    ends: Offsets,
    mark: Mark,
) -> Result<Option<Record>> {
    if !(ends.first..ends.next).contains(&mark.offset) {
        return Ok(None);
    }
    Ok(fetch(log, of, mark.offset, 1).await?.records.into_iter().next())
}

async fn ends(log: &dyn PartitionLog, of: &Partition) -> Result<Offsets> {
    let answer = log.offsets(std::slice::from_ref(of)).await.into_iter().next();
    answer.unwrap_or_else(|| Err(Error::unknown(ErrorKind::Other, "offsets").on(of)))
}

async fn fetch(log: &dyn PartitionLog, of: &Partition, offset: i64, bytes: usize) -> Result<Batch> {
    let from = Position { partition: of.clone(), offset };
    log.fetch(&from, FetchLimit::new(Duration::from_millis(500), bytes)).await
}

/// The last one of the partition, searched from the end in that many windows.
async fn last_checkpoint(
    log: &dyn PartitionLog,
    topic: &Partition,
    of: &Partition,
    mut windows: usize,
) -> Result<Option<Cursor>> {
    let (ends, wanted) = (ends(log, topic).await?, key(of));
    let mut until = ends.next;
    while until > ends.first && windows > 0 {
        windows -= 1;
        let begin = (until - WINDOW).max(ends.first);
        let (mut at, mut found) = (begin, None);
        while at < until {
            let batch = fetch(log, topic, at, 1 << 20).await?;
            if batch.next <= at {
                break;
            }
            at = batch.next;
            let ours = batch.records.iter().filter(|r| r.key.as_ref() == Some(&wanted));
            // One that can't be read is left out: an earlier one costs repetition, never a record.
            found = ours.filter_map(|r| Cursor::decode(r.value.as_deref()?).ok()).last().or(found);
        }
        if found.is_some() {
            return Ok(found);
        }
        until = begin;
    }
    Ok(None)
}
