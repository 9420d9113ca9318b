//! An item: one record under consideration, or one job, and the operations that are under way for it.

use super::{
    AskNo, Content, Mono,
    rule::{Meta, Seen},
    slab::Ref,
    window::Seq,
};
use crate::{Fence, Key, Lease, Position, TaskId, Wall};
use std::{collections::VecDeque, sync::Arc, time::Duration};

/// A record's place in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) window: Ref,
    pub(super) seq: Seq,
}

/// What is done in the store for an item; one at a time, and one at a time for its key.
#[derive(Clone, Debug)]
pub(super) enum StoreOp {
    /// Read the lease.
    Look,
    /// Swap to live under a new fence. `bury`: only to take it to the dead letters.
    Take { attempt: u32, fence: Fence, bury: bool },
    /// Bring a deadline back that a wrong clock has set.
    Reset,
    /// Tell the lease of a durable copy.
    Raise { cover: u32, due: Wall, again: bool },
    /// Give a delayed task its idle lease, once a copy of it is durable.
    Announce { cover: u32, due: Wall, length: Duration, fence: Fence },
    /// Own lease to done.
    Done,
    /// Own lease to idle for this long.
    Idle { length: Duration },
    /// Own lease to dead; the dead letter is durable.
    Dead,
    /// Own lease to a later deadline: the holder's wish, or a renewal before hand-out.
    Keep { length: Duration },
    /// Own lease to idle at once, with the attempt taken back.
    GiveBack,
}

/// What is appended for an item, one at a time.
#[derive(Clone, Debug)]
pub(super) enum AppendOp {
    /// A copy for the wait topic, due so far ahead when it was decided. `announce`: the task has no lease yet.
    Copy { cover: u32, due: Wall, ahead: Duration, lane_due: Wall, announce: bool },
    /// The task, for the dead-letter topic.
    DeadLetter { reason: String },
    /// A record that can't be read, whole, for the dead-letter topic.
    Whole { reason: String },
}

/// Where an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The record rule is being applied.
    Considered,
    /// It may be taken as soon as somebody waits for a job.
    OnDemand,
    /// Own lease; the job is ready or handed out.
    Held,
    /// Own lease; on its way to the dead letters.
    Burying,
    /// What is left is an append or a raise for it.
    Closing,
}

/// Who may still ask for the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nobody.
    None,
    /// It was given to the driver; somebody may have it.
    Driver,
}

#[derive(Clone, Debug)]
pub(super) struct PendingAsk {
    pub(super) no: AskNo,
    pub(super) ask: super::Ask,
}

/// The lease that this process has won.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) fence: Fence,
    pub(super) attempt: u32,
    /// Until when it holds, whatever the store remembers of it.
    pub(super) until: Wall,
}

/// What was sent to the store.
#[derive(Debug)]
pub(super) enum Sent {
    Look,
    Swap(Lease),
}

#[derive(Debug)]
pub(super) struct Item {
    pub(super) content: Arc<Content>,
    pub(super) key: Key,
    pub(super) task: Ref,
    pub(super) meta: Meta,
    /// `None`: finished, or another member's now.
    pub(super) place: Option<Place>,
    /// The partition was taken away before the record was finished.
    pub(super) gone: bool,
    /// Where the record lies, for people.
    pub(super) at: Position,
    pub(super) stage: Stage,
    pub(super) turn: Mono,
    /// The lease as last seen.
    pub(super) seen: Seen,
    pub(super) own: Option<Own>,
    pub(super) holder: Holder,
    /// It came back untaken while an operation was under way.
    pub(super) renew: bool,
    pub(super) store: Option<StoreOp>,
    /// The operation has been polled and not answered; what was sent with it.
    pub(super) sent: Option<Sent>,
    /// The operation waits for another item of the task.
    pub(super) waits: bool,
    /// The task's operations go through this item.
    pub(super) has_key: bool,
    /// Counted among the takes under way.
    pub(super) taking: bool,
    pub(super) append: Option<AppendOp>,
    /// The highest number of a copy that was appended for it.
    pub(super) copies: u32,
    pub(super) ask: Option<PendingAsk>,
    pub(super) next_ask: Option<PendingAsk>,
    /// A raise that waits until the item's other operation is over.
    pub(super) raise: Option<(u32, Wall)>,
    /// A record that can't be read, kept whole.
    pub(super) whole: Option<Box<crate::Record>>,
}

impl Item {
    pub(super) fn attempt(&self) -> u32 {
        let lease = self.seen.lease().map_or(0, |l| l.attempt);
        self.meta.attempt.max(lease).max(self.own.map_or(0, |o| o.attempt))
    }

    /// The number of the next copy.
    pub(super) fn next_cover(&self) -> u32 {
        let lease = self.seen.lease().map_or(0, |l| l.cover);
        self.meta.cover.max(lease).max(self.copies) + 1
    }
}

/// All items of one task in this process.
#[derive(Debug)]
pub(super) struct TaskEntry {
    pub(super) id: TaskId,
    pub(super) items: u32,
    pub(super) busy: bool,
    pub(super) waiting: VecDeque<Ref>,
}
