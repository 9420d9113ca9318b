//! What a member knows about one partition.

use super::{CommitOutcome, MemberId, Value};
use crate::{Assignment, Cursor, DecodeError, Key, Partition, machine::Mono};
use bytes::Bytes;
use std::time::Duration;

#[derive(Debug)]
pub(super) struct PartitionView {
    pub(super) partition: Partition,
    pub(super) key: Key,
    /// The value in the store when last seen; a swap expects it.
    pub(super) raw: Option<Bytes>,
    /// `raw`, decoded. A damaged value counts as none.
    pub(super) value: Option<Value>,
    /// Whether the store was ever asked.
    pub(super) known: bool,
    /// Written by a later kafkaq: left alone.
    pub(super) newer: bool,
    /// The topic no longer has this partition.
    pub(super) gone: bool,
    /// When the value last changed, by this observer's clock, without the time in which the store was down.
    pub(super) changed: Mono,
    /// When the store last responded. The time until then counts as the owner's silence.
    pub(super) heard: Mono,
    /// The highest epoch ever seen.
    pub(super) epoch: u64,
    /// The highest counter ever sent: no two values of this member are equal.
    pub(super) counter: u64,
    pub(super) own: Option<Own>,
    /// The swap in flight; there is never a second one for the same key.
    pub(super) sent: Option<Sent>,
    pub(super) retry_at: Mono,
    /// Other members have priority until then: this member could not find out where to start.
    pub(super) avoid_until: Mono,
    /// Grows with every swap, so that a read that started before it is recognized as stale.
    pub(super) version: u64,
}

#[derive(Debug)]
pub(super) struct Sent {
    pub(super) new: Value,
    pub(super) raw: Bytes,
    pub(super) at: Mono,
    /// Whether it starts a hold.
    pub(super) take: bool,
    /// Whether its cursor is one of this hold.
    pub(super) located: bool,
}

/// A partition that this member holds.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) epoch: u64,
    pub(super) phase: Phase,
    /// When it was taken.
    pub(super) taken: Mono,
    /// How often finding the start has failed.
    pub(super) failures: u32,
    /// Whether the start was found: the cursor is this hold's own, not the last owner's.
    pub(super) located: bool,
    /// When the last successful renewal was sent: the owner's timer starts before any observer's.
    pub(super) renewed: Mono,
    /// When the last swap was sent; `None`: the next one is due.
    pub(super) beat: Option<Mono>,
    pub(super) cursor: Option<Cursor>,
    /// The cursor that the store is known to have.
    pub(super) stored: Option<Cursor>,
    pub(super) commits: Vec<(u64, i64)>,
    pub(super) checkpointed: Option<Cursor>,
    pub(super) checkpoint_at: Mono,
    pub(super) checkpointing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Taken; its start is unknown. To be determined again from then on, unless that is in progress.
    Locating(Option<Mono>),
    Held,
    /// To be released by then.
    Revoking(Mono),
    /// The owner is being cleared.
    Releasing,
}

impl PartitionView {
    pub(super) fn new(key: Key, partition: Partition) -> Self {
        PartitionView {
            partition,
            key,
            raw: None,
            value: None,
            known: false,
            newer: false,
            gone: false,
            changed: Mono(0),
            heard: Mono(0),
            epoch: 0,
            counter: 0,
            own: None,
            sent: None,
            retry_at: Mono(0),
            avoid_until: Mono(0),
            version: 0,
        }
    }

    /// Records that the store had this value, at `now` or before.
    pub(super) fn observe(&mut self, raw: Option<Bytes>, now: Mono) {
        let value = raw.as_deref().map(Value::decode);
        self.newer = matches!(value, Some(Err(DecodeError::Newer(_))));
        let value = value.and_then(Result::ok);
        let life = |v: &Option<Value>| v.as_ref().map(|v| (v.owner, v.counter, v.epoch));
        if !self.known || life(&value) != life(&self.value) {
            self.changed = now;
        }
        self.heard = now;
        self.known = true;
        if let Some(v) = &value {
            self.epoch = self.epoch.max(v.epoch);
        }
        (self.raw, self.value) = (raw, value);
    }

    /// Records that the store didn't respond. If it hasn't for longer than `patience`, no member could show a sign of
    /// life, so that time doesn't count. A single failure changes nothing: an owner that lives renews before and after.
    ///
    /// This only decides how soon a member takes over. That there are never two owners is ensured by the owner's own
    /// clock: it stops before anybody could have waited for the member timeout since its last successful renewal.
    pub(super) fn note_no_response(&mut self, now: Mono, patience: Duration) {
        let silence = now.since(self.heard);
        if silence > patience && self.owner().is_some() {
            self.changed = self.changed.plus(silence);
            self.heard = now;
        }
    }

    pub(super) fn owner(&self) -> Option<MemberId> {
        self.value.as_ref().and_then(|v| v.owner)
    }

    pub(super) fn wanted_by(&self) -> Option<MemberId> {
        self.value.as_ref().and_then(|v| v.wanted_by)
    }

    pub(super) fn assignment(&self, epoch: u64) -> Assignment {
        Assignment { partition: self.partition.clone(), epoch }
    }

    /// Writes the value again without waiting for the next renewal.
    pub(super) fn write_at_once(&mut self) {
        if let Some(own) = &mut self.own {
            own.beat = None;
        }
    }
}

impl Own {
    pub(super) fn new(epoch: u64, sent: Mono, cursor: Option<Cursor>, checkpoint_at: Mono) -> Self {
        Own {
            epoch,
            phase: Phase::Locating(Some(sent)),
            taken: sent,
            failures: 0,
            located: false,
            renewed: sent,
            beat: Some(sent),
            cursor,
            stored: cursor,
            commits: Vec::new(),
            checkpointed: None,
            checkpoint_at,
            checkpointing: false,
        }
    }

    /// Reports the commits that the store has by now.
    pub(super) fn answer_stored(&mut self, answers: &mut Vec<(u64, CommitOutcome)>) {
        let Some(stored) = self.stored else { return };
        self.commits.retain(|(id, offset)| {
            let done = *offset <= stored.offset;
            if done {
                answers.push((*id, CommitOutcome::Done));
            }
            !done
        });
    }
}
