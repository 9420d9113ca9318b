//! How a queue is set up.

use crate::{
    JobController, LeasedGroup, Publisher, Queue,
    config::Config,
    driver::{Clock, Driver, Limits, Parts, Shared},
    jobs::Memory,
    memory::{MemoryLog, MemoryStore},
    topics::{self, Topics},
};
use kafkaq_core::{
    Broker, Error, ErrorKind, JoinRequest, Keyspace, LeaseStore, Log, PartitionLog, Result,
    machine::{Layout, Machine},
};
use std::{sync::Arc, time::Duration};

/// Sets up a [`Queue`] or a [`Publisher`]. Every setting has a safe default, and the order doesn't matter.
///
/// All processes of a queue should have the same settings; only `prefetch` and the `publish_*` ones are a process's
/// own business.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct QueueBuilder {
    config: Config,
    broker: Option<Arc<dyn Broker>>,
    log: Option<Arc<dyn PartitionLog>>,
    store: Option<Arc<dyn LeaseStore>>,
}

impl QueueBuilder {
    pub(crate) fn new(name: Arc<str>) -> Self {
        QueueBuilder { config: Config::new(name), broker: None, log: None, store: None }
    }

    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// The log that the tasks are in: the client's view of the whole cluster, not one of its nodes. Default: a log
    /// in memory, if the store is in memory too.
    pub fn broker(self, broker: impl Broker) -> Self {
        self.shared_broker(Arc::new(broker))
    }

    /// Like [`broker`](QueueBuilder::broker), for one that several queues share.
    pub fn shared_broker(mut self, broker: Arc<dyn Broker>) -> Self {
        self.broker = Some(broker);
        self
    }

    /// The log that the tasks are in, if it has no consumer groups of its own: the processes of the queue share its
    /// partitions through the queue's store, by a [`LeasedGroup`]. Instead of a [`broker`](QueueBuilder::broker).
    pub fn log(self, log: impl PartitionLog) -> Self {
        self.shared_log(Arc::new(log))
    }

    /// Like [`log`](QueueBuilder::log), for one that several queues share.
    pub fn shared_log(mut self, log: Arc<dyn PartitionLog>) -> Self {
        self.log = Some(log);
        self
    }

    /// The store that the leases are in. Default: a store in memory, if the log is in memory too.
    pub fn store(self, store: impl LeaseStore) -> Self {
        self.shared_store(Arc::new(store))
    }

    /// Like [`store`](QueueBuilder::store), for one that several queues share.
    pub fn shared_store(mut self, store: Arc<dyn LeaseStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// The group of processes that share the tasks; each group of a queue executes every task. 1 to 60 of
    /// `A-Z a-z 0-9 _ -`. Default: `kafkaq`. In the log the consumer group is called `<queue>.<group>`.
    pub fn group(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|c| c.group = name.into())
    }

    /// The topic that tasks are published to. Default: the queue's name.
    pub fn task_topic(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|c| c.task_topic = Some(name.into()))
    }

    /// The topic of the tasks that wait. Default: `<queue>.<group>.wait`.
    pub fn wait_topic(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|c| c.wait_topic = Some(name.into()))
    }

    /// The topic of the tasks that were given up. Default: `<queue>.<group>.dead`.
    pub fn dead_topic(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|c| c.dead_topic = Some(name.into()))
    }

    /// How many partitions the task topic is made with: no more processes than this share the work. An existing
    /// topic stays as it is. Default: 6.
    pub fn partitions(self, partitions: i32) -> Self {
        self.with(|c| c.partitions = partitions)
    }

    /// The replication factor that topics are made with. Default: the server's.
    pub fn replication(self, factor: i16) -> Self {
        self.with(|c| c.replication = Some(factor))
    }

    /// How long a job is held before its task is handed out again, unless it is extended. Default: 60 s.
    pub fn lease_duration(self, duration: Duration) -> Self {
        self.with(|c| c.lease = duration)
    }

    /// How long a task may run before it stops holding back the commit of those behind it: it is then copied to the
    /// wait topic. Shorter than `lease_duration`. Default: half of that, 10 s at most.
    pub fn park_after(self, duration: Duration) -> Self {
        self.with(|c| c.park_after = Some(duration))
    }

    /// How long it is remembered that a task has ended, so that publishing its id again adds nothing. Default: 1 h.
    pub fn done_retention(self, duration: Duration) -> Self {
        self.with(|c| c.done_retention = duration)
    }

    /// The longest that a task may wait beyond its time, while all workers are away or behind, and still be
    /// remembered. Default: 1 h.
    pub fn max_overdue(self, duration: Duration) -> Self {
        self.with(|c| c.max_overdue = duration)
    }

    /// The longest delay of a task and of a retry. The wait topic gets a partition for each power of four seconds.
    /// Default: 7 days.
    pub fn max_delay(self, duration: Duration) -> Self {
        self.with(|c| c.max_delay = duration)
    }

    /// How far the processes' clocks may be apart. Another process's lease counts as ended only this long after
    /// its deadline; more can cost a second execution. Default: 1 s.
    pub fn clock_skew(self, skew: Duration) -> Self {
        self.with(|c| c.clock_skew = skew)
    }

    /// After how many failures a task goes to the dead-letter topic. A retry is a failure, and so is a lease that runs
    /// out; a snooze, a release and a partition that moves are none. Default: 25.
    pub fn max_failures(self, failures: u32) -> Self {
        self.with(|c| c.max_failures = failures)
    }

    /// After how many hand-outs a task goes to the dead-letter topic, whatever became of them: against tasks that are
    /// snoozed for ever. Default: 1,000.
    pub fn max_handouts(self, handouts: u32) -> Self {
        self.with(|c| c.max_handouts = handouts)
    }

    /// How many jobs this process leases before somebody asks for them. Default: 512.
    pub fn prefetch(self, jobs: usize) -> Self {
        self.with(|c| c.prefetch = jobs)
    }

    /// The largest payload, key and headers of a task together, in bytes. The topics take 64 KiB more, for
    /// kafkaq's own headers. Default: 934,464.
    pub fn max_task_bytes(self, bytes: usize) -> Self {
        self.with(|c| c.max_task_bytes = bytes)
    }

    /// How long a `publish` tries again before it fails. Default: 30 s.
    pub fn publish_timeout(self, timeout: Duration) -> Self {
        self.with(|c| c.publish_timeout = timeout)
    }

    /// How many bytes of tasks may be under way before `publish` waits for room. Default: 64 MiB.
    pub fn publish_buffer(self, bytes: usize) -> Self {
        self.with(|c| c.publish_buffer = bytes)
    }

    /// How long a process may be silent before the others take over what it reads, if the tasks are in a
    /// [`log`](QueueBuilder::log): its group is kept in the store. A [`broker`](QueueBuilder::broker) has a session
    /// timeout of its own. Default: 10 s.
    ///
    /// Shorter, and the tasks of a process that died are picked up sooner; longer, and a store that is slow or away
    /// for a moment doesn't cost a healthy process its partitions. A second to an hour, and at least three times the
    /// store's request timeout. See [`LeasedGroup::with_member_timeout`].
    pub fn member_timeout(self, timeout: Duration) -> Self {
        self.with(|c| c.member_timeout = Some(timeout))
    }

    /// Makes the topics that are missing, checks what is there, and joins the group. Needs a tokio runtime.
    ///
    /// # Errors
    /// `Invalid` names the setting that makes no sense; `Misconfigured` says what is wrong with a topic and how to
    /// mend it; otherwise the backend's own.
    pub async fn build(self) -> Result<Queue> {
        let keyspace = self.check()?;
        let QueueBuilder { config, broker, log, store } = self;
        let broker = match (broker, log, &store) {
            (None, Some(log), Some(store)) => {
                let mut group = LeasedGroup::new(log, store.clone());
                if let Some(timeout) = config.member_timeout {
                    group = group.with_member_timeout(timeout);
                }
                Some(Arc::new(group) as Arc<dyn Broker>)
            }
            (None, Some(_), None) => return Err(incomplete("a log but no store")),
            (broker, _, _) => broker,
        };
        let (broker, store): (Arc<dyn Broker>, Arc<dyn LeaseStore>) = match (broker, store) {
            (Some(broker), Some(store)) => (broker, store),
            (None, None) => (Arc::new(MemoryLog::new()), Arc::new(MemoryStore::new())),
            (Some(_), None) => return Err(incomplete("a broker but no store")),
            (None, Some(_)) => return Err(incomplete("a store but no broker")),
        };
        for warning in store.check().await? {
            tracing::warn!(target: "kafkaq", queue = &*config.queue, "{warning}");
        }
        let topics = topics::ensure(&*broker, &config).await?;
        let process = uuid::Uuid::new_v4().into_bytes();
        let read = vec![topics.task.clone(), topics.wait.clone()];
        let consumer = broker.join(JoinRequest::new(config.consumer_group(), read, process)).await?;

        let limits = Limits { delay: config.max_delay, extension: config.max_delay.max(config.lease) };
        let clock = Clock::start();
        let machine = Machine::new(config.machine(process), layout(&keyspace, &topics), clock.now());
        let shared = Arc::new(Shared::new(config.prefetch, limits, clock));
        let publisher = Publisher::new(broker.clone(), &config, &topics);
        let memory = Memory {
            retention: config.done_retention + config.max_overdue,
            max_delay: config.max_delay,
            clock_skew: config.clock_skew,
        };
        let jobs = JobController::new(store.clone(), keyspace, memory);
        let driver = Driver::start(Parts { machine, consumer, log: broker, store, shared: shared.clone() });
        Ok(Queue::new(config.queue, publisher, jobs, shared, driver))
    }

    /// A handle that only publishes: joins no group and needs no store. Needs a tokio runtime.
    ///
    /// # Errors
    /// As [`build`](QueueBuilder::build), and `Invalid` without a broker.
    pub async fn build_publisher(self) -> Result<Publisher> {
        self.check()?;
        let log: Arc<dyn Log> = match (self.broker, self.log) {
            (Some(broker), _) => broker,
            (None, Some(log)) => log,
            (None, None) => return Err(incomplete("no broker")),
        };
        let topics = topics::ensure(&*log, &self.config).await?;
        Ok(Publisher::new(log, &self.config, &topics))
    }

    fn check(&self) -> Result<Keyspace> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::not_applied(ErrorKind::Invalid, "build a queue")
                .on("this thread")
                .with_advice("A queue lives on a tokio runtime: build it inside one"));
        }
        if self.broker.is_some() && self.log.is_some() {
            return Err(Error::not_applied(ErrorKind::Invalid, "build a queue")
                .on("a broker and a log")
                .with_advice("Give one of them: a broker has consumer groups of its own, a log has none"));
        }
        if self.config.member_timeout.is_some() && self.log.is_none() {
            return Err(Error::not_applied(ErrorKind::Invalid, "build a queue")
                .on("member_timeout")
                .with_advice(
                    "It is for a `log`, whose group is kept in the store; set a broker's own session timeout",
                ));
        }
        self.config.check()
    }
}

fn layout(keyspace: &Keyspace, topics: &Topics) -> Layout {
    Layout {
        keyspace: keyspace.clone(),
        task: topics.task.clone(),
        wait: topics.wait.clone(),
        wait_partitions: topics.wait_partitions,
        dead: topics.dead.clone(),
        dead_partitions: topics.dead_partitions,
    }
}

fn incomplete(what: &str) -> Error {
    Error::not_applied(ErrorKind::Invalid, "build a queue").on(what).with_advice(
        "Give both, since processes that share a log must share a store; the memory module has one of each",
    )
}
