//! A consumer group for a log that has none.
//!
//! ```text
//!  store ◀──read, swap──┐                        ┌──▶ Outbox ──▶ event stream
//!                       ├── run (group machine) ─┤       ▲
//!  log ◀──checkpoints───┘                        └──▶ reader a partition ◀──fetch── log
//! ```

mod caught;
mod checkpoints;
mod locate;
mod member;
mod outbox;
mod reader;
mod run;
mod topics;

use crate::{clock::Clock, sync::lock};
use async_trait::async_trait;
use checkpoints::Checkpoints;
use kafkaq_core::{
    Broker, Consumer, Error, ErrorKind, JoinRequest, LeaseStore, Log, NewRecord, OutageLog, Partition,
    PartitionLog, Result, TopicInfo, TopicSpec,
    group::{Group, GroupConfig},
};
use member::{Events, Handle, Shared};
use outbox::Outbox;
use std::{
    ops::RangeInclusive,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use topics::Topics;

const TIMES: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);

/// Turns a [`PartitionLog`] and a [`LeaseStore`] into a [`Broker`].
///
/// The members of a group share the partitions through the store, and take over from a member that is gone after
/// [`member_timeout`](LeasedGroup::with_member_timeout). The store keeps the group's position; every few seconds, and
/// when a member leaves, it is also written to the log, to the compacted topic `<group>.cursors`, so that the group
/// doesn't start from the beginning if the store is wiped or rolled back. If that topic can't be read for half of the
/// member timeout, reading starts at the store's position, and an `Err` event alerts the operator.
///
/// Every member looks for new partitions every ten seconds. It never creates a topic that it reads: a deleted one is
/// reported and its partitions are lost, and they are taken again when it is back. Equally often, at every assignment
/// and after every failure, it checks whether a partition's log is still the one that was read; if not, it is read
/// again from its first record, and an `Err` event alerts the operator.
pub struct LeasedGroup {
    log: Arc<dyn PartitionLog>,
    store: Arc<dyn LeaseStore>,
    member_timeout: Option<Duration>,
    checkpoint_every: Duration,
    replication: Option<i16>,
    members: Mutex<Vec<Weak<Shared>>>,
}

impl LeasedGroup {
    /// Creates a group over the log, with its state in the store. Pass an `Arc` to share either.
    pub fn new(log: impl PartitionLog, store: impl LeaseStore) -> Self {
        LeasedGroup {
            log: Arc::new(log),
            store: Arc::new(store),
            member_timeout: None,
            checkpoint_every: Duration::from_secs(5),
            replication: None,
            members: Mutex::default(),
        }
    }

    /// How long a member may be silent before others take its partitions. It must be the same for all members, and at
    /// least three times the store's request timeout, so that a single hanging call doesn't cost a member its
    /// partitions. It is a trade-off: the partitions of a dead member are unread for that long plus 5 %, while each
    /// member writes every partition that it holds ten times per timeout and reads the others twenty times. If the
    /// store is down for longer, the group stops. 10 ms to an hour. Default: [`JoinRequest::session_timeout`].
    #[must_use]
    pub fn with_member_timeout(mut self, timeout: Duration) -> Self {
        self.member_timeout = Some(timeout);
        self
    }

    /// How often the group's position is written to the log, if it has changed. 10 ms to an hour. Default: 5 s.
    #[must_use]
    pub fn with_checkpoint_every(mut self, every: Duration) -> Self {
        self.checkpoint_every = every;
        self
    }

    /// The replication factor that the topic `<group>.cursors` is created with. Default: the server's. A queue with
    /// [`log`](crate::QueueBuilder::log) passes its own.
    #[must_use]
    pub fn with_replication(mut self, factor: i16) -> Self {
        self.replication = Some(factor);
        self
    }
}

impl std::fmt::Debug for LeasedGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("LeasedGroup");
        f.field("log", &self.log).field("store", &self.store).finish_non_exhaustive()
    }
}

#[async_trait]
impl Log for LeasedGroup {
    async fn ensure_topics(&self, topics: &[TopicSpec]) -> Result<Vec<TopicInfo>> {
        self.log.ensure_topics(topics).await
    }

    async fn describe_topics(&self, names: &[Arc<str>]) -> Result<Vec<Option<TopicInfo>>> {
        self.log.describe_topics(names).await
    }

    async fn append(&self, to: &Partition, records: &[NewRecord]) -> Vec<Result<i64>> {
        self.log.append(to, records).await
    }

    /// Leaves with every member that joined through this handle, then closes the log. The store stays open: closing it
    /// is up to its owner.
    async fn close(&self) -> Result<()> {
        let members: Vec<_> = lock(&self.members).drain(..).filter_map(|m| m.upgrade()).collect();
        members.iter().for_each(|m| m.leave());
        for member in members {
            // What can't be released expires by itself.
            let _ = member.left().await;
        }
        self.log.close().await
    }
}

#[async_trait]
impl Broker for LeasedGroup {
    async fn join(&self, request: JoinRequest) -> Result<Consumer> {
        let member_timeout = self.member_timeout.unwrap_or(request.session_timeout);
        let times = [member_timeout, self.checkpoint_every];
        if request.topics.is_empty() || request.max_batch == 0 || !times.iter().all(|t| TIMES.contains(t)) {
            return Err(Error::not_applied(ErrorKind::Invalid, "join").on(&request.group).with_advice(
                "A member reads at least one topic, at least one record at a time; its timeout and the time between its \
                 checkpoints are 10 ms to an hour",
            ));
        }
        let outages = OutageLog::new(format!("The log of group {}", request.group));
        let checkpoint_topic = checkpoints::checkpoint_topic(&request.group, self.replication);
        let found = run::look_at_all(&*self.log, &request.topics, &checkpoint_topic).await?;
        let (mut topics, mut outbox) = (Topics::new(&request.topics), Outbox::default());
        for (of, alarm) in topics.observe(&found, Instant::now()) {
            outbox.alarm(of, alarm);
        }
        let mut group = Group::new(GroupConfig {
            group: request.group,
            member: request.member,
            member_timeout,
            release_limit: request.release_limit,
            checkpoint_every: self.checkpoint_every,
        });
        group.handle_partitions(topics.partitions());
        let shared = Arc::new(Shared {
            log: self.log.clone(),
            store: self.store.clone(),
            clock: Clock::start(),
            checkpoints: Checkpoints::new(&checkpoint_topic, &request.topics),
            locate_patience: member_timeout / 2,
            topics: request.topics,
            checkpoint_topic,
            max_batch: request.max_batch,
            group: Mutex::new(group),
            outages,
            outbox: Mutex::new(outbox),
            waiting: Mutex::default(),
            wake: Notify::new(),
            look: Notify::new(),
            leaving: watch::channel(false).0,
            ended: watch::channel(None).0,
        });
        let mut members = lock(&self.members);
        members.retain(|m| m.strong_count() > 0);
        members.push(Arc::downgrade(&shared));
        drop(members);
        tokio::spawn(run::run(shared.clone(), topics));
        Ok(Consumer { events: Box::pin(Events(shared.clone())), member: Arc::new(Handle(shared)) })
    }
}
