//! The first and last offsets of logs.

use crate::{error, reader::Reader};
use futures_util::{StreamExt, stream};
use kafkaq_core::{Error, ErrorKind, Offsets, Partition, Result};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::Consumer as _,
    error::{KafkaError, KafkaResult},
    metadata::Metadata,
    types::RDKafkaErrorCode as Code,
};
use std::{collections::HashMap, time::Duration};
use tokio::task::spawn_blocking;

const OFFSETS: &str = "offsets";
/// How many partitions are in one request to their servers.
const TOGETHER: usize = 500;
/// How long it may take at most: one server that doesn't respond blocks all.
const PATIENCE: Duration = Duration::from_secs(2);
/// The first query may take this part of the request timeout. If its connection is dead, the client notices only by
/// the missing response, and makes a new one for the second query.
const SHARE: u32 = 4;
/// How many partitions are queried individually at a time.
const AT_ONCE: usize = 8;

impl Reader {
    /// The first and the next offset of each partition: queried together, and individually if that fails.
    pub(crate) async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        let mut all = Vec::with_capacity(of.len());
        for some in of.chunks(TOGETHER) {
            match some {
                [] | [_] => {}
                several => {
                    let is_found = |answer: &Result<Offsets>| {
                        !answer.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound)
                    };
                    if let Ok(answers) = self.offsets_together(several).await
                        && answers.iter().all(is_found)
                    {
                        all.extend(answers);
                        continue;
                    }
                }
            }
            let one =
                |of: Partition| async move { self.offsets_of(OFFSETS, &of).await.map_err(|e| e.on(&of)) };
            all.extend(stream::iter(some.to_vec()).map(one).buffered(AT_ONCE).collect::<Vec<_>>().await);
        }
        all
    }

    /// While a transaction is open, `next` is where it starts.
    pub(crate) async fn offsets_of(&self, op: &'static str, of: &Partition) -> Result<Offsets> {
        let (client, active) = self.client(op)?;
        let (Partition { topic, index }, limit) = (of.clone(), self.settings.request_timeout());
        let ask = move || {
            let ask = |limit| client.fetch_watermarks(&topic, index, limit);
            let fails = |answer: &KafkaResult<_>, kind| {
                answer.as_ref().is_err_and(|e| error::kind(error::code_of(e)) == kind)
            };
            let mut answer = ask(limit / SHARE);
            if fails(&answer, ErrorKind::Timeout) {
                answer = ask(limit - limit / SHARE);
            }
            // The client caches the topic, and mistakes a server that is down for a missing partition. This query makes
            // it refresh.
            if fails(&answer, ErrorKind::NotFound)
                && exists(client.fetch_metadata(Some(&topic), limit).as_ref().ok(), &topic, index)
                    != Some(false)
            {
                answer = ask(limit);
                if fails(&answer, ErrorKind::NotFound) {
                    answer = Err(KafkaError::OffsetFetch(Code::LeaderNotAvailable));
                }
            }
            drop((client, active));
            answer
        };
        let answer = spawn_blocking(ask).await;
        let answer = answer.map_err(|e| Error::not_applied(ErrorKind::Other, op).with_source(e))?;
        let (first, next) = answer.map_err(|e| self.refused(op, &e))?;
        Ok(self.learnt(of, first, next))
    }

    /// # Errors
    /// If any server doesn't respond.
    async fn offsets_together(&self, of: &[Partition]) -> Result<Vec<Result<Offsets>>> {
        let (client, active) = self.client(OFFSETS)?;
        let limit = PATIENCE.min(self.settings.request_timeout() / SHARE);
        let asked = of.to_vec();
        let ask = move || {
            // Special offsets, not times: the protocol queries both in the same way.
            let ask = |place| client.offsets_for_times(list(&asked, place)?, limit);
            let answers = ask(Offset::Beginning).and_then(|first| Ok((first, ask(Offset::End)?)));
            drop((client, active));
            answers
        };
        let answers = spawn_blocking(ask).await;
        let answers = answers.map_err(|e| Error::not_applied(ErrorKind::Other, OFFSETS).with_source(e))?;
        let (first, next) = answers.map_err(|e| self.refused(OFFSETS, &e))?;
        let (first, next) = (by_partition(&first), by_partition(&next));
        let one = |of: &Partition| {
            let found = |answers: &Answers| {
                let answer = answers.get(of).cloned();
                answer.unwrap_or(Err(KafkaError::OffsetFetch(Code::Fail)))
            };
            let ends = found(&first).and_then(|first| Ok((first, found(&next)?)));
            let (first, next) = ends.map_err(|e| self.refused(OFFSETS, &e).on(of))?;
            Ok(self.learnt(of, first, next))
        };
        Ok(of.iter().map(one).collect())
    }

    fn learnt(&self, of: &Partition, first: i64, next: i64) -> Offsets {
        self.settings.connection_errors().is_over();
        self.ends.note(of, next);
        Offsets { first, next }
    }
}

/// Whether the servers have the partition; `None` if unknown.
pub(crate) fn exists(found: Option<&Metadata>, topic: &str, index: i32) -> Option<bool> {
    let Some(found) = found?.topics().iter().find(|found| found.name() == topic) else { return Some(false) };
    match found.error().map(Code::from) {
        None => Some(found.partitions().iter().any(|partition| partition.id() == index)),
        Some(code) => (error::kind(code) == ErrorKind::NotFound).then_some(false),
    }
}

fn list(of: &[Partition], place: Offset) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(of.len());
    for Partition { topic, index } in of {
        // A partition that is queried twice gets the same result.
        if list.find_partition(topic, *index).is_none() {
            list.add_partition_offset(topic, *index, place)?;
        }
    }
    Ok(list)
}

type Answers = HashMap<Partition, KafkaResult<i64>>;

fn by_partition(list: &TopicPartitionList) -> Answers {
    let answer = |of: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
        of.error()?;
        match of.offset() {
            Offset::Offset(offset) => Ok(offset),
            _ => Err(KafkaError::OffsetFetch(Code::Fail)),
        }
    };
    list.elements().iter().map(|of| (Partition::new(of.topic(), of.partition()), answer(of))).collect()
}
