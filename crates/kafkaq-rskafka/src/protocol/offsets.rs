//! The first or the next offsets of partitions.

use crate::{
    failure::Failure,
    wire::{
        Api, Request,
        format::{Reader, Writer},
    },
};
use kafkaq_core::Partition;

const VERSIONS: [Api; 1] = [Api::new(2, 2, "ListOffsets")];

/// Up to the first transaction that is still open.
const READ_COMMITTED: i8 = 1;

/// Which end is asked for, as the protocol numbers them.
#[derive(Clone, Copy)]
pub(crate) enum End {
    First = -2,
    Next = -1,
}

pub(crate) struct ListOffsets<'a> {
    pub(crate) of: Vec<&'a Partition>,
    pub(crate) end: End,
}

impl Request for ListOffsets<'_> {
    /// Code and offset, in the order of `of`; `None` if the server returned nothing.
    type Response = Vec<Option<(i16, i64)>>;

    fn versions(&self) -> &'static [Api] {
        &VERSIONS
    }

    fn encode(&self, _: &Api, body: &mut Writer) -> Result<(), Failure> {
        // We aren't a replica.
        body.int32(-1);
        body.int8(READ_COMMITTED);
        body.array(self.of.len())?;
        for partition in &self.of {
            body.string(&partition.topic)?;
            body.array(1)?;
            body.int32(partition.index);
            body.int64(self.end as i64);
        }
        Ok(())
    }

    fn decode(&self, _: &Api, body: &mut Reader) -> Result<Self::Response, Failure> {
        let _throttled = body.int32()?;
        let mut ends = vec![None; self.of.len()];
        body.array(|topic| {
            let name = topic.string()?;
            let partitions = topic.array(|partition| {
                let (index, code) = (partition.int32()?, partition.int16()?);
                let (_time, offset) = (partition.int64()?, partition.int64()?);
                Ok((index, code, offset))
            })?;
            for (index, code, offset) in partitions {
                let is_asked = |of: &&Partition| of.index == index && Some(&*of.topic) == name.as_deref();
                if let Some(at) = self.of.iter().position(is_asked) {
                    ends[at] = Some((code, offset));
                }
            }
            Ok(())
        })?;
        Ok(ends)
    }
}
