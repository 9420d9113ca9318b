//! Where reading starts, and the small topic that remembers it when the store forgets (hole 16).

use kafkaq_core::{
    Error, ErrorKind, FetchLimit, Headers, NewRecord, Partition, PartitionLog, Position, Result,
    group::{Cursor, start},
};
use std::{sync::Arc, time::Duration};

/// How many checkpoints are looked at in one go, from the end on.
const WINDOW: i64 = 1000;

/// The topic with the group's checkpoints.
pub(super) fn checkpoint_topic(group: &str) -> Arc<str> {
    format!("{group}.cursors").into()
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

/// Where to start in `partition`: at the store's cursor, else at the log's checkpoint, else at the first record.
pub(super) async fn locate(
    log: &dyn PartitionLog,
    checkpoints: &Partition,
    partition: &Partition,
    stored: Option<Cursor>,
) -> Result<Cursor> {
    let cursor = match stored {
        Some(cursor) => Some(cursor),
        None => last_checkpoint(log, checkpoints, partition).await?,
    };
    let ends = ends(log, partition).await?;
    let mark = cursor.and_then(|c| c.mark).filter(|m| (ends.first..ends.next).contains(&m.offset));
    let at_mark = match mark {
        Some(mark) => fetch(log, partition, mark.offset, 1).await?.records.into_iter().next(),
        None => None,
    };
    Ok(start(cursor, ends, at_mark.as_ref()))
}

pub(super) async fn ends(log: &dyn PartitionLog, of: &Partition) -> Result<kafkaq_core::Offsets> {
    let answer = log.offsets(std::slice::from_ref(of)).await.into_iter().next();
    answer.unwrap_or_else(|| Err(Error::unknown(ErrorKind::Other, "offsets").on(of)))
}

async fn fetch(
    log: &dyn PartitionLog,
    of: &Partition,
    offset: i64,
    bytes: usize,
) -> Result<kafkaq_core::Batch> {
    let from = Position { partition: of.clone(), offset };
    log.fetch(&from, FetchLimit::new(Duration::from_millis(500), bytes)).await
}

/// The last one of the partition, searched from the end.
async fn last_checkpoint(
    log: &dyn PartitionLog,
    topic: &Partition,
    of: &Partition,
) -> Result<Option<Cursor>> {
    let (ends, wanted) = (ends(log, topic).await?, key(of));
    let mut until = ends.next;
    while until > ends.first {
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
