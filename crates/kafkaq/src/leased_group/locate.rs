//! Decides where reading starts.

use super::{caught::in_time, checkpoints::Checkpoints, outbox::Alarm};
use kafkaq_core::{Cursor, Error, ErrorKind, Partition, PartitionLog, Result, group::start, standing};

/// Where reading starts, and an alarm for the operator, if any.
pub(super) struct Start {
    pub(super) at: Cursor,
    pub(super) alarm: Option<Alarm>,
}

/// Finds out where to start in a partition: at the store's cursor or at the log's checkpoint, whichever is further and
/// belongs to the current log, otherwise at the first record.
///
/// A store that has a cursor may have been rolled back, so the last checkpoints are checked anyway. If it has none, all
/// are.
pub(super) async fn locate(
    log: &dyn PartitionLog,
    checkpoints: &Checkpoints,
    partition: &Partition,
    stored: Option<Cursor>,
) -> Result<Start> {
    let kept = match checkpoints.last(log, partition, stored.is_none()).await {
        // Somebody deleted the topic. It is recreated at the next check of the topics.
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        kept => kept?,
    };
    let known = [stored, kept.filter(|kept| Some(*kept) != stored)].into_iter().flatten().collect();
    in_time("find out where to start", examine(log, partition, known)).await
}

async fn examine(log: &dyn PartitionLog, partition: &Partition, cursors: Vec<Cursor>) -> Result<Start> {
    let mut known = Vec::new();
    for cursor in cursors {
        known.push((cursor, standing(log, partition, &cursor, None).await?));
    }
    // Read last, so that it is of the log that was found to be another one.
    let ends = log.offsets(std::slice::from_ref(partition)).await.into_iter().next();
    let ends = ends.unwrap_or_else(|| Err(Error::unknown(ErrorKind::Other, "offsets").on(partition)))?;
    let (at, told) = start(ends.first, &known);
    let alarm = told.and_then(|(cursor, standing)| Alarm::of(standing, partition, &cursor));
    Ok(Start { at, alarm })
}
