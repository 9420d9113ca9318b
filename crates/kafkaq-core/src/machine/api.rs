//! The types of the machine's surface.

use super::{Fault, slab::Ref};
use crate::{
    Assignment, Error, Headers, History, Keyspace, LeaseToken, LostReason, Partition, Position, TaskId, Wall,
    faults::Planted,
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

/// Monotonic time of one process: nanoseconds since some start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mono(pub u64);

impl Mono {
    /// This long after `self`.
    #[must_use]
    pub fn plus(self, d: Duration) -> Mono {
        Mono(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Since `earlier`; zero if that is later.
    #[must_use]
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Both clocks, of two types, so that they can't be mixed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For everything that is local to the process.
    pub mono: Mono,
    /// For leases and due times.
    pub wall: Wall,
}

/// Whether reading of a partition continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowControl {
    /// Stop reading for now.
    Pause,
    /// Continue reading.
    Resume,
}

/// Names one outstanding get, swap or append. A late or repeated answer is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId(u64);

impl From<Ref> for OpId {
    fn from(r: Ref) -> Self {
        OpId(r.to_bits())
    }
}

impl From<OpId> for Ref {
    fn from(op: OpId) -> Self {
        Ref::from_bits(op.0)
    }
}

/// Names a job, uniquely while the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobKey(pub u64);

impl From<Ref> for JobKey {
    fn from(r: Ref) -> Self {
        JobKey(r.to_bits())
    }
}

impl From<JobKey> for Ref {
    fn from(job: JobKey) -> Self {
        Ref::from_bits(job.0)
    }
}

/// Numbers the commands of one job, so that the answer to an `extend` whose future was dropped isn't taken for the
/// answer to `done`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandId(pub u32);

/// The settings of a machine. `Default` has safe values, except that `process` must be random.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Random, and new at each start of a process: the first half of every token.
    pub process: [u8; 16],
    /// How long a job is held before it is redelivered.
    pub lease: Duration,
    /// A record that isn't finished this long after its turn is parked, so that it doesn't hold back the commit.
    /// Shorter than `lease`.
    pub park_after: Duration,
    /// If set, a first attempt of a task whose id its publisher numbered gets a lease only when it takes longer than this.
    /// Not longer than `park_after`.
    pub track_after: Option<Duration>,
    /// How far beyond its partition's committed offset a record may lie whose job starts without a lease. The same for
    /// all processes of a queue.
    pub unleased_span: i64,
    /// How long the store remembers that a task has ended.
    pub done_retention: Duration,
    /// How long after its due time a record still finds its lease in the store.
    pub max_overdue: Duration,
    /// How far clocks may differ: a lease of another process counts as expired only this long after its deadline.
    pub clock_skew: Duration,
    /// Failures after which a task is dead-lettered: failed attempts and expired leases.
    pub max_failures: u32,
    /// Hand-outs after which a task is dead-lettered, whatever their outcome.
    pub max_handouts: u32,
    /// The longest delay. It determines the number of lanes.
    pub max_delay: Duration,
    /// The number of jobs that are leased before a caller asks for them.
    pub prefetch: usize,
    /// When nobody has asked for a job for this long, waiting tasks are copied to partitions that other processes read.
    pub hand_over_after: Duration,
    /// The most records of one partition that are read and not yet below the committed offset. A partition of the wait
    /// topic exceeds it, up to `lane_window`, for records that may be due soon.
    pub window: usize,
    /// The most records of one partition of the wait topic, which leave it in a different order than they arrived.
    pub lane_window: usize,
    /// The most bytes of one partition's unfinished records.
    pub window_bytes: usize,
    /// The shortest time between two commits of one partition.
    pub commit_interval: Duration,
    /// The longest that a revoked partition is held to let operations in flight finish.
    pub release_hold: Duration,
    /// A deliberate bug that the simulation must find.
    pub planted: Planted<Fault>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            process: [0; 16],
            lease: Duration::from_secs(60),
            park_after: Duration::from_secs(10),
            track_after: None,
            unleased_span: 8192,
            done_retention: Duration::from_secs(3600),
            max_overdue: Duration::from_secs(3600),
            clock_skew: Duration::from_secs(1),
            max_failures: 25,
            max_handouts: 1000,
            max_delay: Duration::from_secs(7 * 24 * 3600),
            prefetch: 512,
            hand_over_after: Duration::from_secs(2),
            window: 4096,
            lane_window: 1 << 16,
            window_bytes: 16 << 20,
            commit_interval: Duration::from_millis(200),
            release_hold: Duration::from_secs(2),
            planted: Planted::NOTHING,
        }
    }
}

/// The topics and the keyspace of a queue.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The keys of its leases.
    pub keyspace: Keyspace,
    /// The task topic.
    pub task: Arc<str>,
    /// The wait topic.
    pub wait: Arc<str>,
    /// The partitions of the wait topic, at least as many as the ladder has lanes.
    pub wait_partitions: i32,
    /// The dead-letter topic.
    pub dead: Arc<str>,
    /// The partitions of the dead-letter topic.
    pub dead_partitions: i32,
}

/// A task as its record contains it, shared by the machine and the worker that runs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// The task's id.
    pub id: TaskId,
    /// The user's key.
    pub key: Option<Bytes>,
    /// The payload; `None` if a foreign record has none.
    pub payload: Option<Bytes>,
    /// The user's headers, without kafkaq's own.
    pub headers: Headers,
    /// When it was first published.
    pub published: Wall,
    /// The position of its first record.
    pub origin: Position,
}

/// A job to be handed out.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Names it in commands.
    pub job: JobKey,
    /// The task.
    pub content: Arc<Content>,
    /// Number of this hand-out, from 1.
    pub attempt: u32,
    /// How many earlier attempts count against the limit of failures.
    pub failures: u32,
    /// The last failures.
    pub history: History,
    /// The token of the lease.
    pub token: LeaseToken,
    /// When the lease ends.
    pub deadline: Wall,
    /// From this time on it is to be renewed: see [`Recall::ToRenew`](super::Recall::ToRenew).
    pub renew_at: Mono,
    /// From this time on the job is not handed out ([`Ready::is_fresh`]) but returned to
    /// [`super::Machine::handle_untaken`], which renews it.
    pub stale_at: Mono,
}

impl Ready {
    /// Whether the job may be handed out. By both clocks: the monotonic one stands still while the system is suspended,
    /// and meanwhile the lease ends.
    #[must_use]
    pub fn is_fresh(&self, now: Now) -> bool {
        now.mono < self.stale_at && now.wall < self.deadline
    }
}

/// A command of a job's holder.
#[derive(Clone, Debug)]
pub enum Command {
    /// The task is done.
    Done,
    /// The attempt failed for this reason: run the task again, after this delay at the earliest.
    Retry(Duration, String),
    /// Run the task again, after this delay at the earliest. Not a failure.
    Snooze(Duration),
    /// Anybody may run the task, at once. Not a failure.
    Release,
    /// Dead-letter the task for this reason.
    Reject(String),
    /// Extend the lease to this long from now.
    Extend(Duration),
    /// The handle was dropped. It gets no answer.
    Abandoned,
}

/// The answer to a command.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It took effect, and the job is over.
    Ok,
    /// It was the task's last failure: instead of being retried, the task was dead-lettered.
    DeadLettered,
    /// The lease now ends at this time.
    Extended(Wall),
    /// The lease is lost, or the job over.
    Lost(LostReason),
    /// It was refused, or not confirmed before the lease ended. The error says which, and whether it took effect.
    Failed(Error),
}

/// Something that the driver passes on.
#[derive(Clone, Debug)]
pub enum Notice {
    /// The answer to a command.
    Answered(JobKey, CommandId, Answer),
    /// The lease of a job was lost while no command was pending.
    LeaseLost(JobKey, LostReason),
    /// A dead letter was written.
    DeadLettered(DeadReason),
    /// An alert for the operator.
    Alarm(Alarm),
}

/// Why a record was dead-lettered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadReason {
    /// The job's holder rejected it.
    Rejected,
    /// It reached the limit of failures.
    Failures,
    /// It reached the limit of hand-outs.
    Handouts,
    /// The record can't be read.
    Unreadable,
}

/// Operator alerts: nothing is lost, but something is stuck or unusual.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Alarm {
    /// The log refuses a copy or a dead letter of a record. The record stays where it is and is considered again.
    Stuck {
        /// Its position.
        at: Position,
        /// Why.
        error: Error,
    },
    /// The store refuses an operation for a reason that a retry doesn't fix. It is retried anyway.
    StoreRefuses {
        /// The record's position.
        at: Position,
        /// Why.
        error: Error,
    },
    /// A record or a lease was written by a later version of kafkaq.
    Newer {
        /// The record's position.
        at: Position,
        /// The version of the format.
        version: u8,
    },
    /// A different record arrived at an offset that was read before: the topic was truncated, or deleted and recreated.
    /// The partition is read again from where a new owner would start.
    LogReplaced {
        /// The assignment.
        assignment: Assignment,
        /// The offset that arrived.
        offset: i64,
    },
    /// A record with a damaged kafkaq header, or of another queue, was dead-lettered.
    Undecodable {
        /// Its position.
        at: Position,
        /// What is wrong.
        why: String,
    },
}

impl Alarm {
    /// The partition that it is about.
    pub(super) fn partition(&self) -> &Partition {
        match self {
            Alarm::Stuck { at, .. }
            | Alarm::StoreRefuses { at, .. }
            | Alarm::Newer { at, .. }
            | Alarm::Undecodable { at, .. } => &at.partition,
            Alarm::LogReplaced { assignment, .. } => &assignment.partition,
        }
    }
}

/// Statistics of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionStats {
    /// The partition.
    pub partition: Partition,
    /// Everything below this offset is finished. `None` before the first record.
    pub finished_below: Option<i64>,
    /// The end of the log, as reported with the last records.
    pub end: Option<i64>,
    /// When the oldest unfinished record was appended.
    pub oldest_unfinished: Option<Wall>,
    /// Records that were read and are not yet considered.
    pub queued: usize,
    /// Records that are being considered, or whose jobs are ready or run.
    pub in_flight: usize,
    /// Reading is paused: the window is full, or what follows is not due soon.
    pub paused: bool,
}

/// Statistics of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MachineStats {
    /// The partitions that are assigned.
    pub partitions: Vec<PartitionStats>,
    /// Jobs that are ready or held by workers.
    pub held: usize,
    /// Redeliveries that wait for a caller.
    pub waiting_for_caller: usize,
    /// Copies and dead letters that wait for the log or are under way.
    pub appending: usize,
}
