//! An item: one record under consideration, or one job, and the operations that are under way for it.

use super::{
    CommandId, Content, DeadReason, Mono,
    rule::{Meta, Seen, Take},
    slab::Ref,
    window::Seq,
};
use crate::{Error, History, Key, Lease, LeaseToken, Position, TaskId, Wall};
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
    /// Swap to live under a new token. `bury`: only to take it to the dead letters.
    Take { take: Take, token: LeaseToken, prefetched: bool, bury: bool },
    /// Bring a deadline back that a wrong clock has set.
    Reset,
    /// Tell the lease of a durable copy.
    Raise { cover: u32 },
    /// Give a delayed task its idle lease, once a copy of it is durable.
    Announce { cover: u32, due: Wall, length: Duration, token: LeaseToken },
    /// Own lease to done.
    Done,
    /// Own lease to idle for this long. `released`: the record itself goes on, if it still is here.
    Idle { length: Duration, released: bool },
    /// Own lease to dead; the dead letter is durable.
    Dead,
    /// Own lease to a later deadline: the holder's wish, or a renewal before hand-out.
    Keep { length: Duration, renewal: bool },
    /// Own lease to idle at once, with the attempt taken back: nobody has had the job.
    GiveBack,
}

/// What is appended for an item, one at a time.
#[derive(Clone, Debug)]
pub(super) enum AppendOp {
    /// A copy for the wait topic.
    Copy(Copy),
    /// The task, for the dead-letter topic.
    DeadLetter { reason: String, why: DeadReason },
    /// A record that can't be read, whole, for the dead-letter topic.
    Whole { reason: String },
    /// A record that only a later version can read, whole, for the wait topic: it must not hold back those behind it.
    Forward { due: Wall, lane_due: Wall },
}

/// A copy of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub(super) cover: u32,
    pub(super) due: Wall,
    /// How far ahead it was due when that was decided.
    pub(super) ahead: Duration,
    pub(super) lane_due: Wall,
    /// When its record is considered again if it is not acknowledged, by this process's own time.
    pub(super) turn: Mono,
    /// The task has no lease yet.
    pub(super) announce: bool,
    /// A worker has, or had, the task under a lease that ends then.
    pub(super) running: bool,
    /// It goes to a partition of another process, which may have a caller.
    pub(super) elsewhere: bool,
}

/// Where an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The record rule is being applied.
    Considered,
    /// It may be taken as soon as somebody waits for a job.
    OnDemand(Take),
    /// Own lease; the job is ready or handed out.
    Held,
    /// Own lease; on its way to the dead letters.
    Burying,
    /// What is left is an append or a raise for it.
    Closing,
    /// The log has refused its copy: it is considered again here, at `Item::wake`.
    Waiting,
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
pub(super) struct PendingCommand {
    pub(super) id: CommandId,
    pub(super) command: super::Command,
}

/// The lease that this process has won.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) token: LeaseToken,
    pub(super) attempt: u32,
    pub(super) failures: u32,
    /// Until when it holds, whatever the store remembers of it.
    pub(super) until: Wall,
    /// The same by this process's own time, which nobody sets.
    pub(super) ends: Mono,
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
    /// The last failures, as the record and the leases that were seen know of them.
    pub(super) history: History,
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
    /// It has been handed out, so its attempt is not taken back.
    pub(super) handed_out: bool,
    pub(super) store: Option<StoreOp>,
    /// The operation has been polled and not answered; what was sent with it.
    pub(super) sent: Option<Sent>,
    /// An earlier try of the operation may have taken effect.
    pub(super) in_doubt: bool,
    /// Why the last try of an operation or an append failed.
    pub(super) last_error: Option<Error>,
    /// The operation waits for another item of the task.
    pub(super) waits: bool,
    /// The task's operations go through this item.
    pub(super) has_key: bool,
    /// Counted among the takes under way.
    pub(super) taking: bool,
    pub(super) append: Option<AppendOp>,
    /// The log has refused its copy; it is not parked again before this.
    pub(super) no_park_before: Mono,
    /// When a record in [`Stage::Waiting`] is considered again.
    pub(super) wake: Mono,
    /// The highest number of a copy that was appended for it.
    pub(super) copies: u32,
    pub(super) command: Option<PendingCommand>,
    pub(super) next_command: Option<PendingCommand>,
    /// When the last command came.
    pub(super) commanded_at: Mono,
    /// A raise that waits until the item's other operation is over.
    pub(super) raise: Option<(u32, Wall)>,
    /// A record that can't be read, kept whole.
    pub(super) whole: Option<Box<crate::Record>>,
}

impl Item {
    /// What the store holds was read, or written.
    pub(super) fn see(&mut self, seen: Seen) {
        if let Some(lease) = seen.lease() {
            self.history = self.history.later(&lease.history).clone();
        }
        self.seen = seen;
    }

    /// A lease was seen, and it is not the one under this token.
    pub(super) fn token_differs(&self, token: LeaseToken) -> bool {
        self.seen.lease().is_some_and(|l| l.token != token)
    }

    /// The last that the holder waits for is that it is done.
    pub(super) fn is_to_be_done(&self) -> bool {
        let last = self.next_command.as_ref().or(self.command.as_ref());
        last.is_some_and(|next| matches!(next.command, super::Command::Done))
    }

    /// A copy of it is on its way.
    pub(super) fn copy(&self) -> Option<&Copy> {
        match &self.append {
            Some(AppendOp::Copy(copy)) => Some(copy),
            _ => None,
        }
    }

    pub(super) fn failures(&self) -> u32 {
        let lease = self.seen.lease().map_or(0, |l| l.failures);
        self.meta.failures.max(lease).max(self.own.map_or(0, |o| o.failures))
    }

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
