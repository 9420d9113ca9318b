//! A log that fails when a test says so.

use crate::{
    Rig,
    common::{forward, ms, quick},
};
use async_trait::async_trait;
use kafkaq::{
    DeadLetters, Error, ErrorKind, Result,
    backend::{Batch, FetchLimit, NewRecord, Offsets, Partition, PartitionLog, Position},
    memory::MemoryLog,
};
use std::sync::{Arc, Mutex};

/// What fails next: an append to a topic, of a payload, or a fetch.
pub(crate) type Fails = fn(&str, Option<&[u8]>) -> Option<Error>;

/// A log whose calls fail as a test says, before they take effect. It refuses to read below its first record.
#[derive(Debug)]
pub(crate) struct Faulty {
    log: MemoryLog,
    pub(crate) fails: Mutex<Fails>,
}

impl Faulty {
    fn outcome(&self, topic: &str, payload: Option<&[u8]>) -> Result<()> {
        (self.fails.lock().unwrap())(topic, payload).map_or(Ok(()), Err)
    }
}

forward!(impl Log for Faulty by log {
    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        let mut outcomes = Vec::new();
        for record in records {
            outcomes.push(match self.outcome(&to.topic, record.value.as_deref()) {
                Ok(()) => self.log.append(to, std::slice::from_ref(record)).await.remove(0),
                Err(e) => Err(e),
            });
        }
        outcomes
    }
});

#[async_trait]
impl PartitionLog for Faulty {
    async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
        self.outcome("fetch", None)?;
        let first = self.log.offsets(std::slice::from_ref(&from.partition)).await.remove(0)?.first;
        if from.offset < first {
            return Err(Error::not_applied(ErrorKind::Invalid, "fetch"));
        }
        self.log.fetch(from, limit).await
    }
    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        self.log.offsets(of).await
    }
}

pub(crate) async fn faulty(rig: &Rig) -> (Arc<Faulty>, DeadLetters) {
    let faulty = Arc::new(Faulty { log: rig.log.clone(), fails: Mutex::new(|_, _| None) });
    let builder = quick(&rig.log, &rig.store).publish_timeout(ms(500));
    let dead = builder.build_dead_letters(faulty.clone()).await.unwrap();
    (faulty, dead)
}
