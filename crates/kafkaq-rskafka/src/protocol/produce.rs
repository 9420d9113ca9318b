//! An append to one partition.

use crate::{
    failure::Failure,
    wire::{
        Api, Request,
        format::{Reader, Writer},
    },
};
use kafkaq_core::Partition;
use std::time::Duration;

const VERSIONS: [Api; 1] = [Api::new(0, 7, "Produce")];

/// Acknowledged by all in-sync replicas.
const ALL: i16 = -1;

pub(crate) struct Produce<'a> {
    pub(crate) to: &'a Partition,
    /// A record batch.
    pub(crate) batch: &'a [u8],
    /// How long the server may wait for the replicas.
    pub(crate) wait: Duration,
}

impl Request for Produce<'_> {
    /// The offset of the first record.
    type Response = i64;
    const CHANGES: bool = true;

    fn versions(&self) -> &'static [Api] {
        &VERSIONS
    }

    fn encode(&self, _: &Api, body: &mut Writer) -> Result<(), Failure> {
        // Not within a transaction.
        body.no_string();
        body.int16(ALL);
        body.int32(i32::try_from(self.wait.as_millis()).unwrap_or(i32::MAX));
        body.array(1)?;
        body.string(&self.to.topic)?;
        body.array(1)?;
        body.int32(self.to.index);
        body.byte_array(self.batch)
    }

    fn decode(&self, _: &Api, body: &mut Reader) -> Result<i64, Failure> {
        let outcomes = body.array(|topic| {
            let _name = topic.string()?;
            topic.array(|partition| {
                let (_index, code, offset) = (partition.int32()?, partition.int16()?, partition.int64()?);
                let (_time, _first) = (partition.int64()?, partition.int64()?);
                Ok((code, offset))
            })
        })?;
        let outcome = outcomes.into_iter().flatten().next();
        let (code, offset) =
            outcome.ok_or_else(|| Failure::unreadable("the response lacks the partition"))?;
        Failure::of_code(code, String::new)?;
        Ok(offset)
    }
}
