//! Records of many partitions of one broker, in one request.

use crate::{
    failure::Failure,
    wire::{
        Api, Request,
        format::{Reader, TopicId, Writer},
    },
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

/// Identifies topics by id, so that a recreated topic can't be read by mistake.
const BY_ID: Api = Api::flexible(1, 13, "Fetch");
const BY_NAME: Api = Api::new(1, 11, "Fetch");

/// The field that a response has if the record before the offset is not the one that was read.
const DIVERGING_EPOCH: u32 = 0;

/// Only committed records of transactions.
const READ_COMMITTED: i8 = 1;

/// Where reading continues in one partition.
#[derive(Clone, Debug)]
pub(crate) struct From {
    pub(crate) topic: Arc<str>,
    /// If the server has ids.
    pub(crate) id: Option<TopicId>,
    pub(crate) index: i32,
    pub(crate) offset: i64,
    /// The leader epoch of the record before that, if it was read.
    pub(crate) epoch_below: Option<i32>,
    pub(crate) max_bytes: i32,
}

impl From {
    pub(crate) fn is_same_partition(&self, other: &From) -> bool {
        self.index == other.index && self.topic == other.topic
    }
}

pub(crate) struct Fetch<'a> {
    pub(crate) from: Vec<&'a From>,
    /// How long to wait for the first record.
    pub(crate) max_wait: Duration,
    pub(crate) max_bytes: i32,
}

/// One partition's part of the response.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fetched {
    pub(crate) code: i16,
    pub(crate) end: i64,
    /// The log was truncated below the offset since the record before it was read.
    pub(crate) is_cut: bool,
    /// Producers whose records are aborted from an offset on.
    pub(crate) aborted: Vec<(i64, i64)>,
    /// Record batches.
    pub(crate) records: Bytes,
}

impl Request for Fetch<'_> {
    /// In the order of `from`; `None` if the server returned nothing.
    type Response = Vec<Option<Fetched>>;

    fn versions(&self) -> &'static [Api] {
        match self.from.iter().all(|from| from.id.is_some()) {
            true => const { &[BY_ID, BY_NAME] },
            false => const { &[BY_NAME] },
        }
    }

    fn encode(&self, api: &Api, body: &mut Writer) -> Result<(), Failure> {
        let by_id = *api == BY_ID;
        // We aren't a replica.
        body.int32(-1);
        // Rounded up, or the response would arrive before the wait is over.
        body.int32(i32::try_from(self.max_wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        // The first byte ends the wait.
        body.int32(1);
        body.int32(self.max_bytes);
        body.int8(READ_COMMITTED);
        // No fetch session, which would remember the partitions.
        body.int32(0);
        body.int32(-1);
        // Each partition in an entry of its own, in our order: the first one with records gets a whole batch, however
        // large.
        body.array(self.from.len())?;
        for from in &self.from {
            match by_id {
                true => body.topic_id(from.id),
                false => body.string(&from.topic)?,
            }
            body.array(1)?;
            body.int32(from.index);
            // Whatever the epoch of the leader is.
            body.int32(-1);
            body.int64(from.offset);
            if by_id {
                body.int32(from.epoch_below.unwrap_or(-1));
            }
            // The start of a follower's log.
            body.int64(-1);
            body.int32(from.max_bytes);
            body.end();
            body.end();
        }
        // No partitions to drop from a session, and no rack.
        body.array(0)?;
        body.string("")?;
        body.end();
        Ok(())
    }

    fn decode(&self, api: &Api, body: &mut Reader) -> Result<Self::Response, Failure> {
        let by_id = *api == BY_ID;
        let (_throttled, code, _session) = (body.int32()?, body.int16()?, body.int32()?);
        Failure::of_code(code, String::new)?;
        let mut fetched = vec![None; self.from.len()];
        body.array(|topic| {
            let (id, name) = match by_id {
                true => (topic.topic_id()?, None),
                false => (None, topic.string()?),
            };
            let partitions = topic.array(|partition| {
                let (index, code) = (partition.int32()?, partition.int16()?);
                let (end, _stable_end, _first) = (partition.int64()?, partition.int64()?, partition.int64()?);
                let aborted = partition.array(|aborted| {
                    let since = (aborted.int64()?, aborted.int64()?);
                    aborted.end()?;
                    Ok(since)
                })?;
                let (_replica, records) = (partition.int32()?, partition.byte_array()?);
                let mut is_cut = false;
                partition.end_with(|tag| is_cut |= tag == DIVERGING_EPOCH)?;
                Ok((index, Fetched { code, end, is_cut, aborted, records }))
            })?;
            topic.end()?;
            for (index, part) in partitions {
                let is_asked = |from: &&From| {
                    from.index == index
                        && match by_id {
                            true => from.id == id,
                            false => Some(&*from.topic) == name.as_deref(),
                        }
                };
                if let Some(at) = self.from.iter().position(is_asked) {
                    fetched[at] = Some(part);
                }
            }
            Ok(())
        })?;
        Ok(fetched)
    }
}
