//! The tasks that were published to a queue, read from its log.

use crate::{memory::MemoryLog, worker::direct::kind};
use kafkaq_core::{Envelope, FetchLimit, HEADER, Partition, PartitionLog, Position, Result, TaskId};
use std::{collections::HashSet, sync::Arc, time::Duration};

/// The size of one fetch.
const FETCH_BYTES: usize = 1 << 20;

/// Reads the task topic of a queue. It has one partition, so that tasks have an order.
#[derive(Debug)]
pub(super) struct Published {
    log: MemoryLog,
    next: Position,
    ids: HashSet<TaskId>,
    /// Each task once, in the order in which they were published.
    pub(super) tasks: Vec<(TaskId, Option<String>)>,
}

impl Published {
    pub(super) fn new(log: MemoryLog, topic: Arc<str>) -> Self {
        let next = Position { partition: Partition::new(topic, 0), offset: 0 };
        Published { log, next, ids: HashSet::new(), tasks: Vec::new() }
    }

    /// Reads what was published since. Returns whether there was anything.
    pub(super) async fn read(&mut self) -> Result<bool> {
        let before = self.tasks.len();
        loop {
            let batch = self.log.fetch(&self.next, FetchLimit::new(Duration::ZERO, FETCH_BYTES)).await?;
            if batch.next == self.next.offset {
                return Ok(self.tasks.len() > before);
            }
            self.next.offset = batch.next;
            for record in batch.records {
                let envelope = record.headers.get(HEADER).and_then(|value| Envelope::decode(value).ok());
                if let Some(id) = envelope.map(|e| e.id)
                    && self.ids.insert(id.clone())
                {
                    self.tasks.push((id, kind(&record.headers).map(str::to_owned)));
                }
            }
        }
    }
}
