//! The in-memory log: one client's handle.

use super::{
    consumer::consumer,
    state::{Shared, State},
};
use async_trait::async_trait;
use kafkaq_core::{
    Batch, Broker, Consumer, Error, ErrorKind, FetchLimit, JoinRequest, Log, NewRecord, Offsets, Partition,
    PartitionLog, Position, Record, Result, TopicInfo, TopicSpec,
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{sync::Notify, time::Instant};

const DEFAULT_PARTITIONS: i32 = 6;

/// An in-memory log with consumer groups: both a [`Broker`] and a [`PartitionLog`].
///
/// A clone is another client of the same topics and groups; [`Log::close`] closes one client only, and takes the
/// members that joined through it out of their groups. When members come or go, only the partitions that have to
/// move are revoked. The event stream has to be polled within a tokio runtime with time enabled.
///
/// It keeps every record, whatever the topic's retention, unless [`MemoryLog::forget_committed`] is used.
pub struct MemoryLog {
    shared: Arc<Shared>,
    client: u64,
    default_partitions: i32,
    closed: AtomicBool,
    closing: Notify,
}

impl MemoryLog {
    /// Creates a log without topics. New topics get 6 partitions unless their spec says otherwise.
    #[must_use]
    pub fn new() -> Self {
        Self::with_partitions(DEFAULT_PARTITIONS)
    }

    /// Creates a log without topics. New topics get this many partitions, at least one, unless their spec says
    /// otherwise.
    #[must_use]
    pub fn with_partitions(default: i32) -> Self {
        Self::client_of(Arc::default(), default.max(1))
    }

    /// Drops records that every group of the topic has committed, so that a long run doesn't fill the memory. A group
    /// that joins later starts at what is left.
    #[must_use]
    pub fn forget_committed(self) -> Self {
        self.shared.with(|state| state.forget_committed = true);
        self
    }

    /// Deletes a topic and its committed offsets: for tests. Recreated, it is another topic whose offsets start at 0.
    ///
    /// # Errors
    /// `NotFound`, and `Closed`.
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        let deleted = self.with("delete_topic", |state| state.delete_topic(name))?;
        deleted.iter().for_each(|waiting| waiting.notify_waiters());
        Ok(())
    }

    /// Deletes the records of a partition from `end` on, as an unclean leader election does: for tests. Their offsets
    /// are reused.
    ///
    /// # Errors
    /// `NotFound`, and `Closed`.
    pub fn truncate(&self, partition: &Partition, end: i64) -> Result<()> {
        self.with("truncate", |state| state.truncate(partition, end))
    }

    /// Deletes the records of a partition below `first`, as retention does: for tests.
    ///
    /// # Errors
    /// `NotFound`, and `Closed`.
    pub fn delete_records(&self, partition: &Partition, first: i64) -> Result<()> {
        self.with("delete_records", |state| state.delete_records(partition, first))
    }

    fn client_of(shared: Arc<Shared>, default_partitions: i32) -> Self {
        let client = shared.with(State::new_id);
        MemoryLog {
            shared,
            client,
            default_partitions,
            closed: AtomicBool::new(false),
            closing: Notify::new(),
        }
    }

    /// Runs `f` on the shared state, unless this client is closed.
    fn with<T>(&self, op: &'static str, f: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        self.shared.with(|state| match self.closed.load(Ordering::Acquire) {
            true => Err(Error::not_applied(ErrorKind::Closed, op).on("the log in memory")),
            false => f(state),
        })
    }
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for MemoryLog {
    /// Another client of the same topics and groups, open even if this one was closed.
    fn clone(&self) -> Self {
        Self::client_of(self.shared.clone(), self.default_partitions)
    }
}

impl fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLog")
            .field("client", &self.client)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        topics.iter().try_for_each(check)?;
        self.with("ensure_topics", |state| Ok(state.ensure_topics(topics, self.default_partitions)))
    }

    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        self.with("describe_topics", |state| Ok(state.describe_topics(names)))
    }

    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        let now_ms = millis(crate::clock::system_now());
        // Copied before the lock is taken.
        let copies = records.iter().map(|record| copy(record, now_ms)).collect();
        match self.with("append", |state| state.append(to, copies, now_ms)) {
            Ok((outcomes, grown)) => {
                grown.notify_waiters();
                outcomes
            }
            Err(error) => vec![Err(error); records.len()],
        }
    }

    async fn close(&self) -> Result<()> {
        self.shared.with(|state| {
            self.closed.store(true, Ordering::Release);
            state.close(self.client);
        });
        self.closing.notify_waiters();
        Ok(())
    }
}

#[async_trait]
impl Broker for MemoryLog {
    async fn join(&self, request: JoinRequest) -> Result<Consumer> {
        if request.topics.is_empty() || request.max_batch == 0 {
            return Err(Error::not_applied(ErrorKind::Invalid, "join")
                .on(&request.group)
                .with_advice("A member reads at least one topic, and at least one record at a time"));
        }
        let (group, member) = self.with("join", |state| Ok(state.join(self.client, request)))?;
        Ok(consumer(self.shared.clone(), group, member))
    }
}

#[async_trait]
impl PartitionLog for MemoryLog {
    /// An offset below the first record reads from the first; one beyond the end is `Invalid`.
    async fn fetch(&self, from: &Position, limit: FetchLimit) -> Result<Batch> {
        let Position { partition, offset } = from;
        let deadline = Instant::now().checked_add(limit.max_wait);
        loop {
            // Created before reading the records, so that nothing is missed in between.
            let closing = self.closing.notified();
            let (batch, grown) =
                self.with("fetch", |state| state.fetch(partition, *offset, limit.max_bytes))?;
            if !batch.records.is_empty() || deadline.is_some_and(|at| at <= Instant::now()) {
                return Ok(batch);
            }
            tokio::select! {
                () = grown => {}
                () = closing => {}
                () = sleep_until(deadline) => {}
            }
        }
    }

    async fn offsets(&self, of: &[Partition]) -> Vec<Result<Offsets>> {
        of.iter().map(|partition| self.with("offsets", |state| state.offsets(partition))).collect()
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Checks a spec as strictly as Kafka does, so that what works here works with Kafka.
fn check(spec: &TopicSpec) -> Result<()> {
    let invalid = |advice| {
        let error = Error::not_applied(ErrorKind::Invalid, "ensure_topics");
        Err(error.on(format_args!("topic `{}`", spec.name)).with_advice(advice))
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !(1..=249).contains(&spec.name.len())
        || !spec.name.chars().all(allowed)
        || [".", ".."].contains(&&*spec.name)
    {
        return invalid("A topic's name has 1 to 249 characters of A-Z a-z 0-9 . _ - and is not . or ..");
    }
    if spec.partitions.is_some_and(|n| n < 1) {
        return invalid("A topic has at least one partition");
    }
    Ok(())
}

/// The record without its offset.
fn copy(new: &NewRecord, now_ms: i64) -> Record {
    let timestamp_ms = new.timestamp.map_or(now_ms, millis);
    Record::new(-1, timestamp_ms, new.key.clone(), new.value.clone(), new.headers.clone())
}

fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
