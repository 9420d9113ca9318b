//! An item: one record under consideration, or one job, and the operations that are under way for it.

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
    /// The entry of its task, which it shares with the task's other items.
    pub(super) task: Ref,
    pub(super) meta: Meta,
    /// Where the record lies, for operators.
    pub(super) at: Position,
    /// When the record came to its turn.
    pub(super) since: Mono,
    pub(super) record: RecordState,
    pub(super) stage: Stage,
    /// The lease as last read or written.
    pub(super) observed: ObservedLease,
    /// The last failures, as the record and the observed leases know of them.
    pub(super) history: History,
    /// The job has been handed out, so its attempt is not taken back.
    pub(super) handed_out: bool,
    pub(super) store: StoreState,
    pub(super) append: Option<AppendOp>,
    /// Why the last try of an operation or of an append failed.
    pub(super) last_error: Option<Error>,
    pub(super) copies: Copies,
    /// Waits until the item's other operation is over.
    pub(super) raise: Option<Raise>,
    pub(super) commands: Commands,
}

/// What became of the item's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordState {
    /// In this window, and not finished.
    Here(Place),
    Finished,
    /// Not finished, and no longer the item's: its partition was taken away, or another item considers it.
    Elsewhere,
}

/// Where an item stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// The record rule is being applied.
    Considered,
    /// If the store knows nothing of its task, it becomes a job without a lease.
    Looking(Purpose),
    /// It is taken as soon as somebody waits for a job.
    OnDemand(Take),
    /// Its lease is ours: the job is ready or handed out.
    Held(Held),
    /// Its lease is ours, and its task on its way to the dead letters.
    DeadLettering(Held),
    /// What is left is an append, or the swap that tells the lease of it.
    Closing,
    /// The log has refused its copy, so it is considered again here.
    Waiting { until: Mono },
}

/// A lease that is this process's, and who has its job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) lease: OwnLease,
    /// It was given to the driver: somebody may have it and send commands.
    pub(super) with_driver: bool,
    /// When it was given to the driver last.
    pub(super) offered_at: Option<Mono>,
    /// If nobody has taken it, it is renewed from this time on.
    pub(super) renew_at: Mono,
    /// It came back untaken while an operation was under way, and is renewed or given back after that.
    pub(super) came_back: bool,
    /// The store has not been told of the lease: what protects the task is that its record is this process's.
    pub(super) unleased: Option<Purpose>,
}

impl Held {
    /// Of a lease that was just won.
    pub(super) fn new(lease: OwnLease) -> Self {
        let renew_at = lease.ends;
        Held { lease, with_driver: false, offered_at: None, renew_at, came_back: false, unleased: None }
    }

    /// When its job is no longer handed out: its renewal takes some time, and most of the rest is for a caller.
    pub(super) fn stale_at(&self) -> Mono {
        self.renew_at.plus(self.lease.ends.since(self.renew_at) / 3)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct OwnLease {
    pub(super) token: LeaseToken,
    pub(super) attempt: u32,
    pub(super) failures: u32,
    /// Until when it holds, whatever the store remembers of it.
    pub(super) until: Wall,
    /// The same by the monotonic clock, which nobody sets.
    pub(super) ends: Mono,
}

// ---- operations in the store

/// The item's operation on the lease: one at a time, and one at a time for its task.
#[derive(Debug, Default)]
pub(super) struct StoreState {
    pub(super) operation: Option<Operation>,
    /// Counted among the takes that are under way.
    pub(super) is_counted: bool,
    /// An earlier try of the last operation may have taken effect.
    pub(super) in_doubt: bool,
}

#[derive(Debug)]
pub(super) enum Operation {
    /// Read the lease.
    Read(Phase<()>),
    /// Replace it; what was sent is what the store then holds.
    Swap(SwapOp, Phase<Lease>),
}

#[derive(Debug)]
pub(super) enum Phase<T> {
    /// Another item of the task has an operation under way.
    WaitsForKey,
    /// To be sent.
    Queued,
    /// The last try failed, and others may go first. It doesn't count as begun.
    Failed,
    Sent(T),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum SwapOp {
    /// To live, under a new token.
    Take { take: Take, token: LeaseToken, purpose: Purpose },
    /// Bring back a deadline that a wrong clock has set.
    Reset,
    /// Tell the lease of a durable copy.
    Raise { cover: u32 },
    /// Give a delayed task its idle lease, once a copy of it is durable.
    Announce { cover: u32, due: Wall, length: Duration, token: LeaseToken },
    /// Tell the store of a lease that it has not been told of.
    Lease,
    /// Own lease to done.
    Done,
    /// Own lease to idle for this long. `released`: the record itself is considered again, if it still is here.
    Idle { length: Duration, released: bool },
    /// Own lease to dead; the dead letter is durable.
    Dead,
    /// Own lease to a later deadline, because its holder wants that.
    Extend { length: Duration },
    /// Own lease to a later deadline, since nobody has taken the job yet. `ahead`: nor does anybody wait for it.
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
    /// Nobody runs it any more.
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
    /// A record that only a later version can read, whole, for the wait topic: it must not hold back those behind it.
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
    /// The highest number that one was appended with.
    pub(super) highest: u32,
    /// The log has refused one: none is made before this.
    pub(super) not_before: Mono,
}

/// A durable copy that the lease is to be told of.
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

/// What the holder of the job wants: one command under way, and one that follows it.
#[derive(Debug, Default)]
pub(super) struct Commands {
    current: Option<PendingCommand>,
    next: Option<PendingCommand>,
    /// When the last one came.
    last_at: Mono,
    /// What was done for the one under way may have taken effect, whatever comes of the rest.
    in_doubt: bool,
}

impl Commands {
    /// An earlier command that has not begun was dropped by its caller.
    pub(super) fn push(&mut self, command: PendingCommand, now: Mono) {
        (self.next, self.last_at) = (Some(command), now);
    }

    /// The next one, if none is under way.
    pub(super) fn pop(&mut self) -> Option<PendingCommand> {
        if self.current.is_none() { self.next.take() } else { None }
    }

    /// It can't begin yet.
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

    /// Ends the one that is under way, or else the one that waits.
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

    /// The last that the holder waits for is that the job is done.
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

    /// It was sent and not answered.
    pub(super) fn is_sent(&self) -> bool {
        matches!(&self.operation, Some(Operation::Read(Phase::Sent(())) | Operation::Swap(_, Phase::Sent(_))))
    }

    /// Its last try failed, and it waits to be sent again.
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
    /// Whether a take of unknown effect may have won a lease that goes on: if it ran out, that would count as a failure
    /// of a job that nobody was given.
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

    /// The driver has its job, ready or handed out.
    pub(super) fn is_with_driver(&self) -> bool {
        self.held().is_some_and(|held| held.with_driver)
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self.stage, Stage::Held(_))
    }

    /// Its job is ready or handed out, and the store has not been told.
    pub(super) fn is_unleased(&self) -> bool {
        self.held().is_some_and(|held| held.unleased.is_some())
    }

    /// The store has been told of the lease, or may have been.
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

    /// What the store holds was read, or written.
    pub(super) fn observe(&mut self, observed: ObservedLease) {
        if let Some(lease) = observed.lease()
            && lease.history.len() > 0
        {
            self.history = self.history.later(&lease.history).clone();
        }
        self.observed = observed;
    }

    /// Nothing is known to be in the store.
    pub(super) fn has_no_lease(&self) -> bool {
        matches!(self.observed, ObservedLease::Missing)
    }

    /// A copy of it is on its way.
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

    /// The number of the next copy.
    pub(super) fn next_cover(&self) -> u32 {
        let lease = self.observed.lease().map_or(0, |l| l.cover);
        self.meta.cover.max(lease).max(self.copies.highest).saturating_add(1)
    }
}
