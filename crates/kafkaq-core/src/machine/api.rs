//! The types of the machine's surface.

use super::slab::Ref;
use crate::{
    Assignment, Error, Headers, History, Keyspace, LeaseToken, LostReason, Partition, Position, TaskId, Wall,
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
}

/// Both clocks, of two types, so that they can't be mixed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For everything that is local to the process.
    pub mono: Mono,
    /// For leases and due times.
    pub wall: Wall,
}

/// Whether the records of a partition are read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowControl {
    /// No more for now.
    Pause,
    /// Read on.
    Resume,
}

/// Names one outstanding get, swap or append. A late or repeated answer finds nothing.
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

/// Names a job for as long as the process lives.
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

/// Numbers the commands of one job, so that the answer to an `extend` whose future was dropped can't pass for the
/// answer to `done`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandId(pub u32);

/// Everything that can be set. `Default` has safe values; `process` must be random.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Random, made anew at each start of a process: the first half of every token.
    pub process: [u8; 16],
    /// How long a job is held before it is handed out again.
    pub lease: Duration,
    /// A record that isn't finished this long after its turn is copied, so that it doesn't hold back the commit.
    /// Shorter than `lease`.
    pub park_after: Duration,
    /// How long it is remembered that a task ended.
    pub done_retention: Duration,
    /// The longest that a record may overstay its due time while its lease is still remembered.
    pub max_overdue: Duration,
    /// Another process's deadline counts as past only this long after it.
    pub clock_skew: Duration,
    /// Failures after which a task goes to the dead letters: attempts that a worker reported as failed, and leases that
    /// ran out.
    pub max_failures: u32,
    /// Hand-outs after which it goes there, whatever became of them.
    pub max_handouts: u32,
    /// The longest delay; sets the number of lanes.
    pub max_delay: Duration,
    /// Jobs that are leased before somebody asks for them.
    pub prefetch: usize,
    /// When nobody has asked for a job for this long, what waits here is copied to where other processes read.
    pub hand_over_after: Duration,
    /// Records of one partition that are read and not yet below the committed offset; of the wait topic, those that are
    /// read before they may be due soon.
    pub window: usize,
    /// The most of one partition of the wait topic, whose records leave it in another order than they came.
    pub lane_window: usize,
    /// Bytes of one partition's unfinished records.
    pub window_bytes: usize,
    /// Commits of one partition are at least this far apart.
    pub commit_interval: Duration,
    /// How long a revoked partition is held, at the most, for what is under way.
    pub release_hold: Duration,
    /// A bug that the simulation has to find.
    #[cfg(feature = "planted-faults")]
    pub planted: Option<super::Fault>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            process: [0; 16],
            lease: Duration::from_secs(60),
            park_after: Duration::from_secs(10),
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
            #[cfg(feature = "planted-faults")]
            planted: None,
        }
    }
}

/// Where a queue's things lie.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Of the leases.
    pub keyspace: Keyspace,
    /// The task topic.
    pub task: Arc<str>,
    /// The wait topic.
    pub wait: Arc<str>,
    /// Its partitions, at least as many as the ladder has lanes.
    pub wait_partitions: i32,
    /// The dead-letter topic.
    pub dead: Arc<str>,
    /// Its partitions.
    pub dead_partitions: i32,
}

/// A task as its record has it, shared by the machine and whoever runs it.
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
    /// When it was published first.
    pub published: Wall,
    /// Where its first record lies.
    pub origin: Position,
}

/// A job to be handed out.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Its name in every command.
    pub job: JobKey,
    /// What to do.
    pub content: Arc<Content>,
    /// Which hand-out this is, from 1.
    pub attempt: u32,
    /// How many of the earlier ones count against the limit.
    pub failures: u32,
    /// The last of them.
    pub history: History,
    /// The lease's op.
    pub token: LeaseToken,
    /// Until when the lease holds.
    pub deadline: Wall,
    /// From here on the job is not handed out but given to [`super::Machine::handle_untaken`], which renews it.
    pub stale_at: Mono,
}

/// What the holder of a job can do with it.
#[derive(Clone, Debug)]
pub enum Command {
    /// It ran to its end.
    Done,
    /// It failed: run it again, not before this long, for this reason.
    Retry(Duration, String),
    /// It has not failed: run it again, not before this long.
    Snooze(Duration),
    /// It has not failed: somebody may run it at once.
    Release,
    /// Never run it again: to the dead letters, with a reason.
    Reject(String),
    /// Hold it for this long from now.
    Extend(Duration),
    /// The handle was dropped. Not answered.
    Abandoned,
}

/// The answer to a command.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It is so; the job is over.
    Ok,
    /// It was to be retried, and that was its last failure: it is in the dead letters.
    DeadLettered,
    /// Held until then.
    Extended(Wall),
    /// The job is somebody else's, or over.
    Lost(LostReason),
    /// It was not confirmed before the lease ended, or was refused: the error says which, and whether it took effect.
    Failed(Error),
}

/// What the driver passes on.
#[derive(Clone, Debug)]
pub enum Notice {
    /// The answer to a command.
    Answered(JobKey, CommandId, Answer),
    /// A job that somebody holds was lost; nobody had asked yet.
    LeaseLost(JobKey, LostReason),
    /// A dead letter was written.
    DeadLettered(DeadReason),
    /// An operator has to know.
    Alarm(Alarm),
}

/// Why a record went to the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadReason {
    /// The holder of its job has rejected it.
    Rejected,
    /// The failures were used up.
    Failures,
    /// The hand-outs were used up.
    Handouts,
    /// Nobody can read it.
    Unreadable,
}

/// Operator alerts: nothing is lost, but something stands still or is unusual.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Alarm {
    /// The log refuses a copy or a dead letter of a record; it stays where it is and is considered again.
    Stuck {
        /// Where it lies.
        at: Position,
        /// Why.
        error: Error,
    },
    /// The store refuses what a record needs, for a reason that no retry helps against; it is tried again.
    StoreRefuses {
        /// Where the record lies.
        at: Position,
        /// Why.
        error: Error,
    },
    /// A record or a lease was written by a later kafkaq.
    Newer {
        /// Where the record lies.
        at: Position,
        /// The version of the format.
        version: u8,
    },
    /// A record arrived at an offset below the next one, and it is no repeat: the topic was cut, or deleted and
    /// recreated. The partition is read again from where a new owner would start.
    LogReplaced {
        /// Whose records.
        assignment: Assignment,
        /// The offset that arrived.
        offset: i64,
    },
    /// A record whose kafkaq header is damaged, or that belongs to another queue, went to the dead letters.
    Undecodable {
        /// Where it lies.
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

/// What the machine knows of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionStats {
    /// Which.
    pub partition: Partition,
    /// Everything below this offset is finished; `None` until something was read.
    pub finished_below: Option<i64>,
    /// The log's end, as it was told with the last records.
    pub end: Option<i64>,
    /// When the oldest record that is not finished was appended.
    pub oldest_unfinished: Option<Wall>,
    /// Records that were read and have not come to their turn.
    pub queued: usize,
    /// Records that are being considered, or whose jobs are ready or run.
    pub in_flight: usize,
    /// No more is read for now: it is full, or what follows is not due soon.
    pub paused: bool,
}

/// What the machine holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MachineStats {
    /// The partitions that are assigned.
    pub partitions: Vec<PartitionStats>,
    /// Jobs that are held by workers.
    pub held: usize,
    /// Redeliveries that wait for a caller.
    pub waiting_for_caller: usize,
    /// Copies and dead letters that are on their way to the log.
    pub appending: usize,
}
