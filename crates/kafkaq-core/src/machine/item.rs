//! An item: one record under consideration, or one job, and its operations in flight.

use super::{
    Command, CommandId, Content, DeadReason, Mono,
    rule::{Meta, ObservedLease, Take},
    slab::Ref,
    window::Seq,
};
use crate::{Error, History, Key, Lease, LeaseToken, Position, Record, Wall};
use std::{sync::Arc, time::Duration};

/// A record's place in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) window: Ref,
    pub(super) seq: Seq,
}

#[derive(Debug)]
pub(super) struct Item {
    pub(super) content: Arc<Content>,
    pub(super) key: Key,
    /// The entry of its task, shared with the task's other items.
    pub(super) task: Ref,
    pub(super) meta: Meta,
    /// The record's position, for alerts.
    pub(super) at: Position,
    /// When the record's turn came.
    pub(super) since: Mono,
    pub(super) record: RecordState,
    pub(super) stage: Stage,
    /// The lease as last read or written.
    pub(super) observed: ObservedLease,
    /// The last failures, as the record and the observed leases know of them.
    pub(super) history: History,
    /// The job has been handed out, so its attempt stays counted.
    pub(super) handed_out: bool,
    pub(super) store: StoreState,
    pub(super) append: Option<AppendOp>,
    /// Why the last attempt at an operation or an append failed.
    pub(super) last_error: Option<Error>,
    pub(super) copies: Copies,
    /// Waits until the item's other operation is over.
    pub(super) raise: Option<Raise>,
    pub(super) commands: Commands,
}

/// The state of the item's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordState {
    /// In this window, and not finished.
    Here(Place),
    Finished,
    /// Not finished, and no longer the item's: its partition was taken away, or another item considers it.
    Elsewhere,
}

/// The stage of an item.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// The record rule is being applied.
    Considered,
    /// Its lease is being read. If the store has none, it becomes a job without a lease.
    Looking(Purpose),
    /// It is taken as soon as a caller waits for a job.
    OnDemand(Take),
    /// Its lease is ours: the job is ready or handed out.
    Held(Held),
    /// Its lease is ours, and its task is being dead-lettered.
    DeadLettering(Held),
    /// Only an append is left, or the swap that records it in the lease.
    Closing,
    /// The log has refused its copy, so it is considered again here.
    Waiting { until: Mono },
}

/// A lease of this process, and who has its job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) lease: OwnLease,
    /// It was given to the driver: a caller may have it and send commands.
    pub(super) with_driver: bool,
    /// When it was last given to the driver.
    pub(super) offered_at: Option<Mono>,
    /// If nobody has taken it, it is renewed from this time on.
    pub(super) renew_at: Mono,
    /// It came back untaken while an operation was under way, and is renewed or given back after that.
    pub(super) came_back: bool,
    /// The lease is not in the store: the task is protected only by its record's assignment to this process.
    pub(super) unleased: Option<Purpose>,
}

impl Held {
    /// Creates the state of a lease that was just won.
    pub(super) fn new(lease: OwnLease) -> Self {
        let renew_at = lease.ends;
        Held { lease, with_driver: false, offered_at: None, renew_at, came_back: false, unleased: None }
    }

    /// Returns when its job is no longer handed out: the renewal takes some time, and most of the rest is for the
    /// caller.
    pub(super) fn stale_at(&self) -> Mono {
        self.renew_at.plus(self.lease.ends.since(self.renew_at) / 3)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct OwnLease {
    pub(super) token: LeaseToken,
    pub(super) attempt: u32,
    pub(super) failures: u32,
    /// When it ends, by the wall clock, whatever the store says.
    pub(super) until: Wall,
    /// The same by the monotonic clock, which nobody sets.
    pub(super) ends: Mono,
}

// ---- operations in the store

/// The item's operation on the lease: one at a time per item and per task.
#[derive(Debug, Default)]
pub(super) struct StoreState {
    pub(super) operation: Option<Operation>,
    /// Whether it is counted among the takes in flight.
    pub(super) is_counted: bool,
    /// An earlier attempt at the last operation may have taken effect.
    pub(super) in_doubt: bool,
}

#[derive(Debug)]
pub(super) enum Operation {
    /// Read the lease.
    Read(Phase<()>),
    /// Replace it with the lease that was sent.
    Swap(SwapOp, Phase<Lease>),
}

#[derive(Debug)]
pub(super) enum Phase<T> {
    /// Another item of the task has an operation under way.
    WaitsForKey,
    /// To be sent.
    Queued,
    /// The last attempt failed, and others may go first. It doesn't count as begun.
    Failed,
    Sent(T),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum SwapOp {
    /// To live, under a new token.
    Take { take: Take, token: LeaseToken, purpose: Purpose },
    /// Correct a deadline that was set by a wrong clock.
    Reset,
    /// Record a durable copy in the lease.
    Raise { cover: u32 },
    /// Give a delayed task its idle lease, once a copy of it is durable.
    Announce { cover: u32, due: Wall, length: Duration, token: LeaseToken },
    /// Write to the store the lease of a job that was started without one.
    Lease,
    /// Own lease to done.
    Done,
    /// Own lease to idle for this long. `released`: the record itself is considered again, if it is still here.
    Idle { length: Duration, released: bool },
    /// Own lease to dead; the dead letter is durable.
    Dead,
    /// Own lease to a later deadline, because its holder wants that.
    Extend { length: Duration },
    /// Own lease to a later deadline, since nobody has taken the job yet. `ahead`: and nobody waits for it.
    Renew { ahead: bool },
    /// Own lease to idle at once, with the attempt taken back: nobody has had the job.
    GiveBack,
}

/// What a lease is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A caller waits.
    Caller,
    /// Ahead of callers.
    Prefetch,
    /// To dead-letter the task.
    DeadLetter,
}

// ---- appends

/// What is appended for an item, one at a time.
#[derive(Debug)]
pub(super) enum AppendOp {
    /// A copy for the wait topic.
    Copy(Copy),
    /// The task, for the dead-letter topic.
    DeadLetter { reason: String, why: DeadReason },
    /// A record that can't be read, whole, for the dead-letter topic.
    Unreadable { record: Box<Record>, reason: String },
    /// A record that only a later version can read, whole, for the wait topic: it must not hold back the records behind
    /// it.
    Forward { record: Box<Record>, due: Wall, leaves: Wall },
}

/// A copy of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub(super) cover: u32,
    pub(super) due: Wall,
    /// How far ahead it was due when that was decided.
    pub(super) ahead: Duration,
    /// When it leaves its lane.
    pub(super) leaves: Wall,
    /// When its record is considered again if it is not acknowledged, by the monotonic clock.
    pub(super) give_up_at: Mono,
    /// The task has no lease yet.
    pub(super) announce: bool,
    /// A worker has, or had, the task under a lease that ends then.
    pub(super) running: bool,
    /// It goes to a partition of another process, which may have a caller.
    pub(super) elsewhere: bool,
}

/// The copies of an item's record.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copies {
    /// The highest cover number that a copy was appended with.
    pub(super) highest: u32,
    /// The log has refused one: none is made before this.
    pub(super) not_before: Mono,
}

/// A durable copy that is to be recorded in the lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raise {
    pub(super) cover: u32,
    pub(super) due: Wall,
}

// ---- commands

#[derive(Clone, Debug)]
pub(super) struct PendingCommand {
    pub(super) id: CommandId,
    pub(super) command: Command,
}

/// The commands of the job's holder: the current one, and one that follows it.
#[derive(Debug, Default)]
pub(super) struct Commands {
    current: Option<PendingCommand>,
    next: Option<PendingCommand>,
    /// When the last one came.
    last_at: Mono,
    /// An operation for the current command may have taken effect, whatever becomes of the rest.
    in_doubt: bool,
}

impl Commands {
    /// Queues a command. It replaces an earlier one that has not begun: its caller has dropped it.
    pub(super) fn push(&mut self, command: PendingCommand, now: Mono) {
        (self.next, self.last_at) = (Some(command), now);
    }

    /// Starts the next command, if none is in progress.
    pub(super) fn pop(&mut self) -> Option<PendingCommand> {
        if self.current.is_none() { self.next.take() } else { None }
    }

    /// Puts back a command that can't begin yet.
    pub(super) fn put_back(&mut self, command: PendingCommand) {
        self.next = Some(command);
    }

    pub(super) fn begin(&mut self, command: PendingCommand) {
        (self.current, self.in_doubt) = (Some(command), false);
    }

    pub(super) fn doubt(&mut self) {
        self.in_doubt = true;
    }

    pub(super) fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    pub(super) fn end_current(&mut self) -> Option<PendingCommand> {
        self.current.take()
    }

    /// Ends the current command, or else the one that waits.
    pub(super) fn end_first(&mut self) -> Option<PendingCommand> {
        self.current.take().or_else(|| self.next.take())
    }

    pub(super) fn end_next(&mut self) -> Option<PendingCommand> {
        self.next.take()
    }

    pub(super) fn current(&self) -> Option<&Command> {
        self.current.as_ref().map(|pending| &pending.command)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.current.is_none() && self.next.is_none()
    }

    pub(super) fn last_at(&self) -> Mono {
        self.last_at
    }

    /// Returns whether the holder's last command is `done`.
    pub(super) fn end_with_done(&self) -> bool {
        let last = self.next.as_ref().or(self.current.as_ref());
        last.is_some_and(|last| matches!(last.command, Command::Done))
    }
}

impl StoreState {
    pub(super) fn swap(&self) -> Option<&SwapOp> {
        match &self.operation {
            Some(Operation::Swap(op, _)) => Some(op),
            _ => None,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.operation.is_none()
    }

    /// Returns whether it was sent and not answered.
    pub(super) fn is_sent(&self) -> bool {
        matches!(&self.operation, Some(Operation::Read(Phase::Sent(())) | Operation::Swap(_, Phase::Sent(_))))
    }

    /// Returns whether its last attempt failed and it waits to be sent again.
    pub(super) fn has_failed(&self) -> bool {
        matches!(&self.operation, Some(Operation::Read(Phase::Failed) | Operation::Swap(_, Phase::Failed)))
    }

    /// Ends the read that was sent. Returns whether there is one.
    pub(super) fn end_read(&mut self) -> bool {
        let sent = matches!(&self.operation, Some(Operation::Read(Phase::Sent(()))));
        if sent {
            self.operation = None;
        }
        sent
    }

    /// Ends the swap that was sent, and returns it with what it has written.
    pub(super) fn end_swap(&mut self) -> Option<(SwapOp, Lease)> {
        match self.operation.take() {
            Some(Operation::Swap(op, Phase::Sent(lease))) => Some((op, lease)),
            other => {
                self.operation = other;
                None
            }
        }
    }
}

impl Operation {
    pub(super) fn swap(op: SwapOp) -> Self {
        Operation::Swap(op, Phase::Queued)
    }

    pub(super) fn set_waiting(&mut self) {
        match self {
            Operation::Read(phase) => *phase = Phase::WaitsForKey,
            Operation::Swap(_, phase) => *phase = Phase::WaitsForKey,
        }
    }

    pub(super) fn set_queued(&mut self) {
        match self {
            Operation::Read(phase) => *phase = Phase::Queued,
            Operation::Swap(_, phase) => *phase = Phase::Queued,
        }
    }
}

impl Item {
    /// Returns whether a take of unknown effect may have won a lease that is still live: if it expired, that would
    /// count as a failure of a job that nobody was given.
    pub(super) fn may_have_lease(&self, now: Mono, lease: Duration) -> bool {
        matches!(self.stage, Stage::Considered) && self.store.in_doubt && now < self.since.plus(lease)
    }

    pub(super) fn place(&self) -> Option<Place> {
        match self.record {
            RecordState::Here(place) => Some(place),
            RecordState::Finished | RecordState::Elsewhere => None,
        }
    }

    pub(super) fn held(&self) -> Option<&Held> {
        match &self.stage {
            Stage::Held(held) | Stage::DeadLettering(held) => Some(held),
            _ => None,
        }
    }

    pub(super) fn held_mut(&mut self) -> Option<&mut Held> {
        match &mut self.stage {
            Stage::Held(held) | Stage::DeadLettering(held) => Some(held),
            _ => None,
        }
    }

    pub(super) fn own(&self) -> Option<OwnLease> {
        self.held().map(|held| held.lease)
    }

    /// Returns whether the driver has its job, ready or handed out.
    pub(super) fn is_with_driver(&self) -> bool {
        self.held().is_some_and(|held| held.with_driver)
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self.stage, Stage::Held(_))
    }

    /// Returns whether its job is ready or handed out without a lease in the store.
    pub(super) fn is_unleased(&self) -> bool {
        self.held().is_some_and(|held| held.unleased.is_some())
    }

    /// Records that the lease is or may be in the store.
    pub(super) fn may_be_leased(&mut self) {
        if let Some(held) = self.held_mut() {
            held.unleased = None;
        }
    }

    pub(super) fn is_dead_lettering(&self) -> bool {
        matches!(self.stage, Stage::DeadLettering(_))
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.stage, Stage::Closing)
    }

    /// Records what the store holds, as read or written.
    pub(super) fn observe(&mut self, observed: ObservedLease) {
        if let Some(lease) = observed.lease()
            && lease.history.len() > 0
        {
            self.history = self.history.later(&lease.history).clone();
        }
        self.observed = observed;
    }

    /// Returns whether no lease is known to be in the store.
    pub(super) fn has_no_lease(&self) -> bool {
        matches!(self.observed, ObservedLease::Missing)
    }

    /// Returns its copy that is being appended.
    pub(super) fn copy(&self) -> Option<&Copy> {
        match &self.append {
            Some(AppendOp::Copy(copy)) => Some(copy),
            _ => None,
        }
    }

    pub(super) fn failures(&self) -> u32 {
        let lease = self.observed.lease().map_or(0, |l| l.failures);
        self.meta.failures.max(lease).max(self.own().map_or(0, |own| own.failures))
    }

    pub(super) fn attempt(&self) -> u32 {
        let lease = self.observed.lease().map_or(0, |l| l.attempt);
        self.meta.attempt.max(lease).max(self.own().map_or(0, |own| own.attempt))
    }

    /// Returns the cover number of the next copy.
    pub(super) fn next_cover(&self) -> u32 {
        let lease = self.observed.lease().map_or(0, |l| l.cover);
        self.meta.cover.max(lease).max(self.copies.highest).saturating_add(1)
    }
}
