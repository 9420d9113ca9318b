//! A digest of all outputs of a run's machines, and their times: two builds whose machines behave alike have the same
//! digests.

use crate::trace::Us;
use kafkaq_core::{NewRecord, Swap, machine::Ready};
use std::hash::{DefaultHasher, Hash, Hasher};

#[derive(Debug, Default)]
pub(crate) struct Digest(DefaultHasher);

impl Digest {
    /// Adds an output of process `p` at `now`, without the ids of operations and jobs, which are internal to the
    /// machine.
    pub(crate) fn add(&mut self, now: Us, p: usize, what: &impl Hash) {
        (now, p).hash(&mut self.0);
        what.hash(&mut self.0);
    }

    pub(crate) fn swap(&mut self, now: Us, p: usize, swap: &Swap) {
        self.add(now, p, &(&swap.key, &swap.expect, &swap.new, swap.ttl));
    }

    pub(crate) fn append(&mut self, now: Us, p: usize, part: usize, record: &NewRecord) {
        self.add(now, p, &(part, &record.key, &record.value));
        record.headers.iter().for_each(|header| header.hash(&mut self.0));
    }

    pub(crate) fn ready(&mut self, now: Us, p: usize, ready: &Ready) {
        let id = ready.content.id.as_str();
        let (deadline, stale_at) = (ready.deadline, ready.stale_at.0);
        self.add(now, p, &(id, ready.attempt, ready.failures, ready.token, deadline, stale_at));
        self.add(now, p, &format!("{:?}", ready.history));
    }

    /// The digest so far.
    pub(crate) fn value(&self) -> u64 {
        self.0.finish()
    }
}
