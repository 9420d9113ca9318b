//! Builds queues and other handles from settings.

use crate::{
    DeadLetters, JobController, KeyLocks, LeasedGroup, Publisher, Queue,
    clock::Clock,
    config::{Config, Tracking},
    driver::{Driver, Limits, Plan, Shared},
    jobs::Retention,
    memory::{MemoryLog, MemoryStore},
    runtime::Home,
    topics::{self, Topics},
};
use kafkaq_core::{
    Broker, Error, ErrorKind, JoinRequest, Keyspace, LeaseStore, Log, PartitionLog, Result,
    key_lock::KeyLockSettings,
    machine::{Layout, Machine},
};
use std::{sync::Arc, time::Duration};
use tokio::runtime::Handle;

/// Sets up a [`Queue`], a [`Publisher`], a [`JobController`] or [`DeadLetters`]. Every setting has a safe default, and
/// the order doesn't matter.
///
/// All processes of a queue should have the same settings; only `prefetch` and the `publish_*` settings may differ
/// between processes.
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

    #[cfg(feature = "testing")]
    pub(crate) fn task_topic_name(&self) -> Arc<str> {
        self.config.task_topic()
    }

    /// The log that the tasks are in: the client's view of the whole cluster, not one of its nodes. Several queues can
    /// share one in an [`Arc`]. Default: a log in memory, if the store is in memory too.
    pub fn broker(mut self, broker: impl Broker) -> Self {
        self.broker = Some(Arc::new(broker));
        self
    }

    /// The log that the tasks are in, if it has no consumer groups of its own: the processes of the queue share its
    /// partitions through the queue's store, by a [`LeasedGroup`]. Instead of a [`broker`](QueueBuilder::broker).
    pub fn log(mut self, log: impl PartitionLog) -> Self {
        self.log = Some(Arc::new(log));
        self
    }

    /// The store that the leases are in. Several queues can share one in an [`Arc`]. Default: a store in memory, if the
    /// log is in memory too.
    pub fn store(mut self, store: impl LeaseStore) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// The group of processes that share the tasks; each group of a queue executes every task. 1 to 60 of
    /// `A-Z a-z 0-9 _ -`. Default: `kafkaq`. In the log the consumer group is called `<queue>.<group>`, or
    /// `<queue>..<task topic>.<group>` if the task topic's name differs from the queue's.
    pub fn group(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|c| c.group = name.into())
    }

    /// The topic that tasks are published to. Default: the queue's name.
    pub fn task_topic(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|c| c.task_topic = Some(name.into()))
    }

    /// The topic of waiting tasks. Default: the name of the consumer group plus `.wait`.
    pub fn wait_topic(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|c| c.wait_topic = Some(name.into()))
    }

    /// The topic of dead letters. Default: the name of the consumer group plus `.dead`.
    pub fn dead_topic(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|c| c.dead_topic = Some(name.into()))
    }

    /// How many partitions the task topic is created with: at most this many processes read it, and the rest get only
    /// what busy processes hand over. An existing topic is left as it is. 1 to 10,000. Default: 6.
    pub fn partitions(self, partitions: i32) -> Self {
        self.with(|c| c.partitions = partitions)
    }

    /// The replication factor that topics are created with. 1 to 1,000. Default: the server's.
    pub fn replication(self, factor: i16) -> Self {
        self.with(|c| c.replication = Some(factor))
    }

    /// How long the task topic keeps its records if it is created here; `Duration::MAX` is forever. The log deletes
    /// older tasks, even those that nobody has executed, so this should be longer than all workers may ever be down. An
    /// existing topic with a shorter retention causes a warning, or is refused if it is below
    /// [`max_overdue`](QueueBuilder::max_overdue). From that to ten years. Default: 7 days, or `max_overdue` if that is
    /// longer.
    pub fn task_retention(self, duration: Duration) -> Self {
        self.with(|c| c.task_retention = Some(duration))
    }

    /// How long the dead-letter topic keeps its records if it is created here; `Duration::MAX` is forever. An existing
    /// topic with a shorter retention causes a warning. From [`max_overdue`](QueueBuilder::max_overdue) to ten years.
    /// Default: forever.
    pub fn dead_retention(self, duration: Duration) -> Self {
        self.with(|c| c.dead_retention = duration)
    }

    /// How long a job is held before its task is handed out again, unless it is extended. 10 ms to 30 days. Default:
    /// 60 s.
    pub fn lease_duration(self, duration: Duration) -> Self {
        self.with(|c| c.lease = duration)
    }

    /// How long a task may run before it stops holding back the commit of those behind it: it is then copied to the
    /// wait topic. At least 1 ms, and shorter than `lease_duration`. Default: half of that, 10 s at most.
    pub fn park_after(self, duration: Duration) -> Self {
        self.with(|c| c.park_after = Some(duration))
    }

    /// Which jobs get a lease in the store. [`Tracking::Slow`] saves the store the quick ones; its documentation says at
    /// what cost. Default: [`Tracking::Every`].
    pub fn tracking(self, tracking: Tracking) -> Self {
        self.with(|c| c.tracking = tracking)
    }

    /// With [`Tracking::Slow`], how long a job may run without a lease. The lease may come late by a second, or by a
    /// sixteenth of its duration if that is less. From 1 ms to `park_after`. Default: 1 s, or `park_after` if that is
    /// less.
    pub fn track_after(self, duration: Duration) -> Self {
        self.with(|c| c.track_after = Some(duration))
    }

    /// The minimum time for which an ended task is remembered, so that publishing its id again adds nothing. It is
    /// forgotten [`max_overdue`](QueueBuilder::max_overdue) later, when no copy of it can be left. Less than a lease and
    /// the clock skew counts as that much. At most ten years. Default: 1 h.
    pub fn done_retention(self, duration: Duration) -> Self {
        self.with(|c| c.done_retention = duration)
    }

    /// The longest time that a task may be overdue, because all workers are down or behind, and still be remembered. At
    /// most ten years. Default: 1 h.
    pub fn max_overdue(self, duration: Duration) -> Self {
        self.with(|c| c.max_overdue = duration)
    }

    /// The longest delay of a task, a retry and a snooze. A longer one is refused; a worker shortens those of its
    /// handlers and of its backoff to this. The wait topic gets a partition for each power of four seconds, and
    /// one for leases. One that exists and has fewer is refused, so add partitions before you raise this. At most ten
    /// years. Default: 7 days.
    pub fn max_delay(self, duration: Duration) -> Self {
        self.with(|c| c.max_delay = duration)
    }

    /// The largest difference between the processes' clocks. Another process's lease counts as expired only this long
    /// after its deadline; a larger difference can cost a second execution. At most 1 h. Default: 1 s.
    pub fn clock_skew(self, skew: Duration) -> Self {
        self.with(|c| c.clock_skew = skew)
    }

    /// The number of failures after which a task is dead-lettered. A retry counts as a failure, and so does an expired
    /// lease; a snooze, a release and a moved partition don't. 1 to 1,000,000. Default: 25.
    pub fn max_failures(self, failures: u32) -> Self {
        self.with(|c| c.max_failures = failures)
    }

    /// The number of hand-outs after which a task is dead-lettered, whatever their outcome: it limits tasks that are
    /// snoozed forever. From `max_failures` to 1,000,000. Default: 1,000.
    pub fn max_handouts(self, handouts: u32) -> Self {
        self.with(|c| c.max_handouts = handouts)
    }

    /// How many jobs this process leases before somebody asks for them. At most 100,000. Default: 512.
    pub fn prefetch(self, jobs: usize) -> Self {
        self.with(|c| c.prefetch = jobs)
    }

    /// The maximum size of a task's payload, key and headers together, in bytes. The topics accept 64 KiB more, for
    /// kafkaq's own headers. 1 to 33,554,432 (32 MiB). Default: 934,464.
    pub fn max_task_bytes(self, bytes: usize) -> Self {
        self.with(|c| c.max_task_bytes = bytes)
    }

    /// The longest that a `publish` takes, including waiting for buffer space. A task that the log hasn't accepted by
    /// then fails with the effect `NotApplied` if it was never sent, and `Unknown` otherwise. 1 ms to 24 h. Default: 30
    /// s.
    pub fn publish_timeout(self, timeout: Duration) -> Self {
        self.with(|c| c.publish_timeout = timeout)
    }

    /// How many bytes of tasks may be in flight before `publish` waits for buffer space: from `max_task_bytes` to
    /// 4,294,967,295. Default: 64 MiB.
    pub fn publish_buffer(self, bytes: usize) -> Self {
        self.with(|c| c.publish_buffer = bytes)
    }

    /// How long a process may be silent before the others take over what it reads. 1 s to 1 h. Default: as long as a
    /// lease, but at least 10 s and at most 45 s.
    ///
    /// If it is shorter, the tasks of a dead process are picked up sooner; if it is longer, a healthy process doesn't
    /// lose its partitions because a server is briefly slow or down. With a [`log`](QueueBuilder::log) it should be at
    /// least three times the store's request timeout: see [`LeasedGroup::with_member_timeout`]. A Kafka broker has
    /// limits of its own (`group.min.session.timeout.ms` and `group.max.session.timeout.ms`).
    pub fn member_timeout(self, timeout: Duration) -> Self {
        self.with(|c| c.member_timeout = Some(timeout))
    }

    /// How often the gauges among the [metrics](crate::guide::metrics) are published. 100 ms to 1 h. Default: 10 s.
    #[cfg(feature = "metrics")]
    pub fn metrics_interval(self, interval: Duration) -> Self {
        self.with(|c| c.metrics_interval = interval)
    }

    /// Carries the trace context of a publisher to the executions of its tasks. Default: none.
    #[cfg(feature = "spans")]
    pub fn propagator(self, propagator: impl crate::Propagator) -> Self {
        self.with(|c| c.propagator = Some(Arc::new(propagator)))
    }

    /// Checks the settings and the store, creates missing topics, and checks existing ones. Requires a tokio runtime,
    /// which the queue then runs on.
    ///
    /// The queue joins its group the first time a job is requested. A queue that is only used to publish and to query
    /// jobs never does, so it takes no share of the work.
    ///
    /// # Errors
    /// `Invalid` names the setting that is out of range or conflicts with another; `Misconfigured` says what is wrong
    /// with a topic and how to fix it; otherwise errors of the backends.
    pub async fn build(self) -> Result<Queue> {
        let keyspace = self.check()?;
        if Handle::try_current().is_err() {
            return Err(refused("this thread", "A queue runs on a tokio runtime: build it inside one"));
        }
        let home = Home::find()?;
        let QueueBuilder { config, broker, log, store } = self;
        let broker = match (broker, log, &store) {
            (None, Some(log), Some(store)) => {
                let mut group = LeasedGroup::new(log, store.clone());
                if let Some(timeout) = config.member_timeout {
                    group = group.with_member_timeout(timeout);
                }
                if let Some(factor) = config.replication {
                    group = group.with_replication(factor);
                }
                Some(Arc::new(group) as Arc<dyn Broker>)
            }
            (None, Some(_), None) => return Err(refused("a log but no store", BOTH)),
            (broker, _, _) => broker,
        };
        let (broker, store): (Arc<dyn Broker>, Arc<dyn LeaseStore>) = match (broker, store) {
            (Some(broker), Some(store)) => (broker, store),
            (None, None) => (Arc::new(MemoryLog::new()), Arc::new(MemoryStore::new())),
            (Some(_), None) => return Err(refused("a broker but no store", BOTH)),
            (None, Some(_)) => return Err(refused("a store but no broker", BOTH)),
        };
        check_store(&*store, &config).await?;
        let topics = topics::ensure(&*broker, &config).await?;
        let process = uuid::Uuid::new_v4().into_bytes();
        let read = vec![topics.task.name.clone(), topics.wait.clone()];
        let mut join = JoinRequest::new(config.consumer_group(), read, process);
        join.session_timeout = config.session_timeout();

        let limits = Limits {
            delay: config.max_delay,
            extension: config.max_delay.max(config.lease),
            #[cfg(feature = "worker")]
            handouts: config.max_handouts,
        };
        let clock = Clock::start();
        let machine = Machine::new(config.machine(process), layout(&keyspace, &topics), clock.now());
        #[cfg(feature = "metrics")]
        let (group, wait_topic, interval) =
            (config.group.clone(), topics.wait.clone(), config.metrics_interval);
        let shared = Arc::new(Shared::new(&config.queue, config.prefetch, limits, clock));
        let publisher = Publisher::new(broker.clone(), &config, topics.task, home);
        let jobs = JobController::new(store.clone(), keyspace.clone(), retention(&config));
        let locks = KeyLockSettings::new(config.lease, config.clock_skew);
        let calls = shared.counters.lock_swaps.clone();
        let locks = KeyLocks::new(store.clone(), keyspace, locks, clock, Handle::current(), calls);
        let driver = Driver::start(Plan { machine, join, broker, store, shared: shared.clone() });
        let queue = Queue::new(config.queue, publisher, jobs, locks, shared, driver);
        #[cfg(feature = "metrics")]
        crate::telemetry::publish_gauges(&queue, group, wait_topic, interval);
        Ok(queue)
    }

    /// Builds a handle that only publishes: it joins no group, needs no store, and neither creates nor checks any topic
    /// other than the task topic. Requires no runtime.
    ///
    /// # Errors
    /// The same as for [`build`](QueueBuilder::build), and `Invalid` without a broker.
    pub async fn build_publisher(self) -> Result<Publisher> {
        self.check()?;
        let log: Arc<dyn Log> = match (self.broker, self.log) {
            (Some(broker), _) => broker,
            (None, Some(log)) => log,
            (None, None) => {
                return Err(refused("no broker", "Set the broker or the log that the workers use"));
            }
        };
        // The client's connections must not belong to the caller's runtime, which may be gone at the next publish.
        let home = Home::find()?;
        let (ensured, config) = (log.clone(), self.config.clone());
        let topic = home
            .run(async move { topics::ensure_task(&*ensured, &config).await })
            .await
            .unwrap_or_else(|e| Err(Error::unknown(ErrorKind::Other, "create the topics").with_source(e)))?;
        Ok(Publisher::new(log, &self.config, topic, home))
    }

    /// Builds a handle that queries and cancels jobs: it joins no group and needs no broker. The names of the queue,
    /// the group and the task topic identify the jobs.
    ///
    /// # Errors
    /// The same as for [`build`](QueueBuilder::build), and `Invalid` without a store.
    pub async fn build_jobs(self) -> Result<JobController> {
        let keyspace = self.check()?;
        let Some(store) = self.store else {
            return Err(refused("no store", "Set the store that the workers use"));
        };
        check_store(&*store, &self.config).await?;
        Ok(JobController::new(store, keyspace, retention(&self.config)))
    }

    /// Builds a handle that browses, redrives and discards the dead letters of the group. It joins no group, needs no
    /// store, and creates no topic until letters are marked. Pass the log that the workers' broker or log is a client
    /// of: `RdKafka`, `RsKafka` and [`MemoryLog`] all implement [`PartitionLog`], also in an [`Arc`]. The
    /// [`broker`](QueueBuilder::broker), `log` and `store` of the builder are not used. Requires a tokio runtime with
    /// time enabled.
    ///
    /// # Errors
    /// The same as for [`build`](QueueBuilder::build), and `NotFound` if the dead-letter topic or the task topic is
    /// missing.
    pub async fn build_dead_letters(self, log: impl PartitionLog) -> Result<DeadLetters> {
        self.config.check()?;
        DeadLetters::new(Arc::new(log), &self.config).await
    }

    fn check(&self) -> Result<Keyspace> {
        if self.broker.is_some() && self.log.is_some() {
            return Err(refused(
                "a broker and a log",
                "Set one of them: a broker has consumer groups of its own, a log has none",
            ));
        }
        if self.log.is_some() { self.config.check_for_log() } else { self.config.check() }
    }
}

const BOTH: &str =
    "Set both, since processes that share a log must share a store; the memory module has one of each";

fn refused(what: &str, advice: &'static str) -> Error {
    Error::not_applied(ErrorKind::Invalid, "build a queue").on(what).with_advice(advice)
}

async fn check_store(store: &dyn LeaseStore, config: &Config) -> Result<()> {
    for warning in store.check().await? {
        tracing::warn!(target: "kafkaq", queue = &*config.queue, "{warning}");
    }
    Ok(())
}

fn retention(config: &Config) -> Retention {
    Retention {
        ended: config.done_retention + config.max_overdue,
        max_delay: config.max_delay,
        clock_skew: config.clock_skew,
    }
}

fn layout(keyspace: &Keyspace, topics: &Topics) -> Layout {
    Layout {
        keyspace: keyspace.clone(),
        task: topics.task.name.clone(),
        wait: topics.wait.clone(),
        wait_partitions: topics.wait_partitions,
        dead: topics.dead.clone(),
        dead_partitions: topics.dead_partitions,
    }
}
