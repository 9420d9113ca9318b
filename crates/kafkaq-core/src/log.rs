//! The contract of logs: [`Log`] for every log, [`Broker`] for one with consumer groups, [`PartitionLog`] for one
//! without.
//!
//! A Kafka user's "broker" is a node of the cluster; kafkaq's [`Broker`] is a client's view of the whole log.

use crate::{Batch, NewRecord, Partition, Position, Result};
use async_trait::async_trait;
use futures_core::Stream;
use std::{fmt, pin::Pin, sync::Arc, time::Duration};

/// A topic that has to exist, and how to create it if it doesn't. `None` leaves a setting to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicSpec {
    /// Its name.
    pub name: Arc<str>,
    /// The number of partitions.
    pub partitions: Option<i32>,
    /// The replication factor.
    pub replication: Option<i16>,
    /// How long records are kept (`retention.ms`); `Duration::MAX` is forever.
    pub retention: Option<Duration>,
    /// No limit by size (`retention.bytes=-1`), whatever the server's default.
    pub unlimited_bytes: bool,
    /// The maximum size of a record (`max.message.bytes`).
    pub max_record_bytes: Option<usize>,
    /// Records get the log's time of the append, not the client's (`message.timestamp.type=LogAppendTime`).
    pub append_time: bool,
    /// Only the last record of a key is kept (`cleanup.policy=compact`). Otherwise all are (`delete`), whatever the
    /// server's default.
    pub compacted: bool,
}

impl TopicSpec {
    /// A topic with the server's defaults.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        TopicSpec {
            name: name.into(),
            partitions: None,
            replication: None,
            retention: None,
            unlimited_bytes: false,
            max_record_bytes: None,
            append_time: false,
            compacted: false,
        }
    }
}

/// An existing topic. An adapter fills in what it can find out; `None` means unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicInfo {
    /// Its name.
    pub name: Arc<str>,
    /// How many partitions it has.
    pub partitions: i32,
    /// Whether this call created it.
    pub created: bool,
    /// How long records are kept; `Duration::MAX` is forever. A log that deletes nothing reports the requested time, or
    /// `None`.
    pub retention: Option<Duration>,
    /// The size limit per partition; -1 is none.
    pub retention_bytes: Option<i64>,
    /// Whether it is compacted.
    pub compacted: Option<bool>,
    /// The maximum size of a record.
    pub max_record_bytes: Option<usize>,
    /// Whether records get the log's time.
    pub append_time: Option<bool>,
}

impl TopicInfo {
    /// A topic of which only the number of partitions is known.
    pub fn new(name: impl Into<Arc<str>>, partitions: i32) -> Self {
        TopicInfo {
            name: name.into(),
            partitions,
            created: false,
            retention: None,
            retention_bytes: None,
            compacted: None,
            max_record_bytes: None,
            append_time: None,
        }
    }
}

/// A log, with or without consumer groups.
///
/// One handle serves a whole process: many tasks make calls concurrently, and these must not wait for each other longer
/// than the server requires.
#[async_trait]
pub trait Log: Send + Sync + fmt::Debug + 'static {
    /// Creates missing topics. Returns one [`TopicInfo`] per spec, in the same order.
    ///
    /// It doesn't change existing topics and doesn't judge them: kafkaq does. Two processes that create the same topic
    /// concurrently must both succeed. When it returns, appends to every partition work. If the server lacks a setting
    /// that a spec asks for, the topic is created without it and its info says so.
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>>;

    /// Describes topics, without creating any: a running group uses it to notice added partitions and deleted topics.
    /// Returns one outcome per name, in the same order: `None` for a topic that doesn't exist.
    ///
    /// # Errors
    /// If the log can't be reached or refuses.
    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>>;

    /// Appends to one partition, in the order given. Returns one outcome per record, in the same order: its offset,
    /// which is higher than that of every earlier record, whichever client appended that. Up to 1,000 records per call.
    /// Concurrent calls have no order.
    ///
    /// *Durability:* `Ok` means that it survives whatever the log promises to survive (Kafka: `acks=all`). *Errors:*
    /// `NotApplied` only if the record certainly is not and will not be in the log; after a timeout or a broken
    /// connection it is `Unknown`, and the caller appends again. Records of one call may have different outcomes. If
    /// outcomes are missing, they count as `Unknown`. A record that is too large is refused on its own, with
    /// `TooLarge`. A topic or partition that doesn't exist is `NotFound`, and isn't created. *Bounds:* it returns
    /// within the adapter's own request timeout, even without a server. *Cancel-safety:* a dropped future may or may
    /// not have appended.
    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>>;

    /// Closes the handle. When it returns, none of its threads, tasks or connections remain; calls in flight have
    /// returned, and waiting fetches have ended. Members that joined through this handle have left. Idempotent. Later
    /// calls fail with `Closed`.
    async fn close(&self) -> Result<()>;
}

/// A log with consumer groups: Kafka's own, or a group built over a [`PartitionLog`].
#[async_trait]
pub trait Broker: Log {
    /// Joins the group. Reading starts at the group's committed offsets; without one, at the first record (never at the
    /// end: a partition that is added later would lose its first records). A committed offset below the first record
    /// that is still there is reported by an `Err` event, and reading starts at that record.
    async fn join(&self, request: JoinRequest) -> Result<Consumer>;
}

/// A log without groups: the reader specifies the offset.
///
/// A record is the same each time it is read, including its time: this is how kafkaq recognizes a truncated or
/// recreated topic. Records become visible in the order of their offsets, and not before they are as durable as
/// [`Log::append`] says: a reader that has seen one never reads below it again.
#[async_trait]
pub trait PartitionLog: Log {
    /// Returns records from an offset on. Waits up to `limit.max_wait` for the first one; an empty batch is a valid
    /// result.
    ///
    /// At least one record is returned if there is one, even if it is larger than `limit.max_bytes`. After these,
    /// [`Batch::next`] skips offsets that have no record and never will, and no others; at the log's end it is where
    /// the fetch started. Below the first record that is still there, a fetch starts at that record or fails with
    /// `Invalid`; beyond the log's end it fails with `Invalid`. A topic or partition that doesn't exist is `NotFound`.
    /// *Bounds:* `limit.max_wait` plus the adapter's own request timeout. While it waits, it blocks no other call.
    /// *Cancel-safety:* safe, it keeps no position.
    async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch>;

    /// Returns the first and the next offset of each partition: one outcome per partition, in the same order. A topic
    /// or partition that doesn't exist is `NotFound`.
    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>>;
}

/// How much a fetch may return, and how long it may wait.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct FetchLimit {
    /// How long to wait for the first record.
    pub max_wait: Duration,
    /// The approximate maximum number of bytes.
    pub max_bytes: usize,
}

impl FetchLimit {
    /// Creates a limit.
    #[must_use]
    pub fn new(max_wait: Duration, max_bytes: usize) -> Self {
        FetchLimit { max_wait, max_bytes }
    }
}

/// The ends of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// The first record that is still there; if there is none, the same as `next`.
    pub first: i64,
    /// The offset after the last readable record: a fetch from here waits for the next one.
    pub next: i64,
}

/// The parameters of a member that joins.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JoinRequest {
    /// The group's name.
    pub group: Arc<str>,
    /// The topics it reads.
    pub topics: Vec<Arc<str>>,
    /// Identifies this member; new at every start of a process.
    pub member: [u8; 16],
    /// The most records in one [`Event::Records`].
    pub max_batch: usize,
    /// How long a revoked partition may be held before the adapter releases it by itself.
    pub release_limit: Duration,
    /// How long a member may be silent before its partitions go to others. A broker that can't set it for the group
    /// logs a message.
    pub session_timeout: Duration,
}

impl JoinRequest {
    /// A request with 500 records per batch, 5 s to release and a session timeout of 10 s.
    pub fn new(group: impl Into<Arc<str>>, topics: Vec<Arc<str>>, member: [u8; 16]) -> Self {
        JoinRequest {
            group: group.into(),
            topics,
            member,
            max_batch: 500,
            release_limit: Duration::from_secs(5),
            session_timeout: Duration::from_secs(10),
        }
    }
}

/// The events of a member, in order.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event>> + Send>>;

/// A member of a group in two halves, so that a commit can run while events are being polled, and so that a
/// dropped `next()` loses nothing: the state is in the stream, not in a future.
pub struct Consumer {
    /// The events. An `Err` with `Retry::No` is fatal and the last item; any other is reported and reading continues.
    /// The stream ends after [`Member::leave`]. Dropping it leaves the group too, in the background.
    pub events: EventStream,
    /// Everything else.
    pub member: Arc<dyn Member>,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
    }
}

/// A partition under an epoch. A partition that is lost and comes back has a higher epoch, so a late commit for the
/// earlier assignment can't be mistaken for a current one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Assignment {
    /// The partition.
    pub partition: Partition,
    /// Grows with each assignment of the partition to this member.
    pub epoch: u64,
}

impl fmt::Display for Assignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (epoch {})", self.partition, self.epoch)
    }
}

/// An event of a member.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// These partitions are ours now. Their records follow, from the committed offset on.
    Assigned(Vec<Assignment>),
    /// Records of one assignment, in order, without gaps between batches. If a log's offsets went back, or it is not
    /// the same log, that is a new assignment: the adapter first reports the old one lost.
    Records(Assignment, Batch),
    /// Still ours until [`Member::release`], or until `release_limit` has passed: commit what is finished, then
    /// release. No more of their records follow.
    Revoking(Vec<Assignment>),
    /// No longer ours; a commit would be refused. Also follows a release that came too late.
    Lost(Vec<Assignment>),
}

/// Everything below `offset` is finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The assignment.
    pub assignment: Assignment,
    /// The offset of the next record that the group should read.
    pub offset: i64,
}

/// A member's handle. No call of it may need the event stream to be polled in order to end.
#[async_trait]
pub trait Member: Send + Sync + 'static {
    /// Commits. Returns one outcome per commit, in the same order. `Ok` means that the next owner of the partition
    /// starts there.
    ///
    /// For an assignment other than the current one it fails with `NotOwner`, `NotApplied`. It works between
    /// [`Event::Revoking`] and the release.
    async fn commit(&self, offsets: &[Commit]) -> Vec<Result<()>>;

    /// Pauses reading. A hint that never waits; at most one more batch per assignment may still arrive, and prefetched
    /// records are not discarded. Unknown or old assignments are ignored, here and below.
    fn pause(&self, assignments: &[Assignment]);

    /// Resumes reading. Never waits.
    fn resume(&self, assignments: &[Assignment]);

    /// Releases what was announced by [`Event::Revoking`]. Never waits.
    fn release(&self, assignments: &[Assignment]);

    /// Gives up assignments and takes them again if possible, because their records don't fit what was read before: the
    /// topic may have been truncated, or deleted and recreated. For each, [`Event::Lost`] follows, and then
    /// [`Event::Assigned`] under a higher epoch if the partition still belongs to this member; reading starts where a
    /// new owner would start. Never waits.
    fn reassign(&self, assignments: &[Assignment]);

    /// Leaves the group, so that the partitions go to others at once. The stream ends after it. Idempotent, and bounded
    /// in time even without a server.
    async fn leave(&self) -> Result<()>;
}

#[async_trait]
impl<T: Log + ?Sized> Log for Arc<T> {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        (**self).ensure_topics(topics).await
    }

    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        (**self).describe_topics(names).await
    }

    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        (**self).append(to, records).await
    }

    async fn close(&self) -> Result<()> {
        (**self).close().await
    }
}

#[async_trait]
impl<T: Broker + ?Sized> Broker for Arc<T> {
    async fn join(&self, request: JoinRequest) -> Result<Consumer> {
        (**self).join(request).await
    }
}

#[async_trait]
impl<T: Member + ?Sized> Member for Arc<T> {
    async fn commit(&self, offsets: &[Commit]) -> Vec<Result<()>> {
        (**self).commit(offsets).await
    }

    fn pause(&self, assignments: &[Assignment]) {
        (**self).pause(assignments);
    }

    fn resume(&self, assignments: &[Assignment]) {
        (**self).resume(assignments);
    }

    fn release(&self, assignments: &[Assignment]) {
        (**self).release(assignments);
    }

    fn reassign(&self, assignments: &[Assignment]) {
        (**self).reassign(assignments);
    }

    async fn leave(&self) -> Result<()> {
        (**self).leave().await
    }
}

#[async_trait]
impl<T: PartitionLog + ?Sized> PartitionLog for Arc<T> {
    async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
        (**self).fetch(from, limit).await
    }

    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        (**self).offsets(of).await
    }
}
