//! Decides where reading starts.

use super::{caught::in_time, checkpoints::Checkpoints, outbox::Alarm};
use kafkaq_core::{Cursor, Error, ErrorKind, Partition, PartitionLog, Result, Retry, group::start, standing};
use std::time::Duration;

/// Where reading starts, and alerts for the operator.
pub(super) struct Start {
    pub(super) at: Cursor,
    pub(super) alarm: Option<Alarm>,
    /// Why it was found without the checkpoints.
    pub(super) unread: Option<Error>,
}

/// Finds out where to start in a partition: at the store's cursor or at the log's checkpoint, whichever is further and
/// belongs to the current log, otherwise at the first record.
///
/// A store that has a cursor may have been rolled back, so the last checkpoints are checked anyway. If it has none, all
/// are. If they can't be read for `patience`, the store's cursor is used: at worst, finished tasks are repeated.
pub(super) async fn locate(
    log: &dyn PartitionLog,
    checkpoints: &Checkpoints,
    partition: &Partition,
    stored: Option<Cursor>,
    patience: Duration,
) -> Result<Start> {
    let kept = match stored {
        Some(_) => checkpoints.last_if_readable(log, partition, patience).await?,
        None => Ok(checkpoints.last(log, partition, true).await?),
    };
    let (kept, unread) = match kept {
        Ok(kept) => (kept, None),
        Err(error) => (None, Some(unread(error))),
    };
    let known = [stored, kept.filter(|kept| Some(*kept) != stored)].into_iter().flatten().collect();
    let start = in_time("find out where to start", examine(log, partition, known)).await?;
    Ok(Start { unread, ..start })
}

fn unread(error: Error) -> Error {
    Error::not_applied(error.kind(), "read the checkpoints").with_retry(Retry::Yes).with_source(error).with_advice(
        "Its partitions start at the store's cursors. If the store was rolled back, finished tasks are executed again. \
         Give the topic more than one replica",
    )
}

async fn examine(log: &dyn PartitionLog, partition: &Partition, cursors: Vec<Cursor>) -> Result<Start> {
    let mut known = Vec::new();
    for cursor in cursors {
        known.push((cursor, standing(log, partition, &cursor, None).await?));
    }
    // Read last, so that they are the ends of the log that was found to be a different one.
    let ends = log.offsets(std::slice::from_ref(partition)).await.into_iter().next();
    let ends = ends.unwrap_or_else(|| Err(Error::unknown(ErrorKind::Other, "offsets").on(partition)))?;
    let (at, told) = start(ends.first, &known);
    let alarm = told.and_then(|(cursor, standing)| Alarm::of(standing, partition, &cursor));
    Ok(Start { at, alarm, unread: None })
}
