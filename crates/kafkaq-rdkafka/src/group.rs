//! Our member of the consumer group: its assignments, and how it handles rebalances.
//!
//! A revoke is handled in two steps. librdkafka is told that the partitions are gone only when the driver has released
//! them, or when the limit has passed; until then they are ours, and commits count.

use crate::{
    check::{Checker, Start},
    commit::Committer,
    error::code_of,
    heartbeat::{Heartbeat, is_lost_answer},
    log::ConnectionErrors,
    lost_brokers::{self, LostBrokers},
    member::Shared,
    plan::Plan,
    session,
    settings::{self, GroupProtocol},
    slot::{Doubt, Slot},
};
use kafkaq_core::{Assignment, Error, ErrorKind, Event, JoinRequest, Partition, Result, lock};
use rdkafka::{
    ClientContext, Offset, Statistics, TopicPartitionList,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{
        BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol, base_consumer::PartitionQueue,
    },
    error::{KafkaError, KafkaResult},
    types::{RDKafkaErrorCode as Code, RDKafkaRespErr},
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

/// How often closing checks whether it is done; there is no notification for that.
const CLOSING: Duration = Duration::from_millis(10);

/// How soon to retry a request that the client doesn't fulfill at once.
const AGAIN: Duration = Duration::from_millis(50);
/// How long the client may take to fulfill it.
const ASKED: Duration = Duration::from_secs(1);
/// A consumer that has lived this long has not failed immediately.
const HEALTHY: Duration = Duration::from_secs(60);

pub(crate) type Client = BaseConsumer<Callbacks>;

/// Events other than batches that have not entered the stream yet. [`Group::rebalance`] bounds them.
pub(crate) type Pending = VecDeque<Result<Event>>;

/// The consumer's context. Callbacks only note what happened: they run inside `poll`, on the poll thread.
pub(crate) struct Callbacks {
    noted: Mutex<VecDeque<(Change, TopicPartitionList)>>,
    /// From now on rebalances are handled immediately: closing polls by itself, and would wait forever.
    closing: AtomicBool,
    /// Held during a commit, and when closing starts. librdkafka aborts the process if a commit reaches a consumer that
    /// is almost closed.
    commits: Mutex<()>,
    served: AtomicU64,
    connection_errors: Arc<ConnectionErrors>,
    lost_brokers: LostBrokers,
    /// The text of the last error event. The poller takes it from here.
    reason: Mutex<String>,
    ends: Mutex<HashMap<Partition, i64>>,
    /// When a response of the group was lost that may have contained this member's assignment.
    unsure: Mutex<Option<Instant>>,
    /// The group has refused a commit, because this is no longer a member.
    expelled: AtomicBool,
}

impl Callbacks {
    fn new(connection_errors: Arc<ConnectionErrors>) -> Self {
        Callbacks {
            noted: Mutex::default(),
            closing: AtomicBool::new(false),
            commits: Mutex::default(),
            served: AtomicU64::new(0),
            connection_errors,
            lost_brokers: LostBrokers::default(),
            reason: Mutex::default(),
            ends: Mutex::default(),
            unsure: Mutex::default(),
            expelled: AtomicBool::new(false),
        }
    }

    fn note(&self, change: Change, partitions: TopicPartitionList) {
        // The group has sent the whole assignment.
        *lock(&self.unsure) = None;
        lock(&self.noted).push_back((change, partitions));
    }

    /// Makes a commit, unless the consumer is being closed.
    pub(crate) fn unless_closing(&self, commit: impl FnOnce() -> KafkaResult<()>) -> Option<KafkaResult<()>> {
        let _commits = lock(&self.commits);
        let made = (!self.closing.load(SeqCst)).then(commit);
        let code = made.as_ref().and_then(|made| made.as_ref().err()).map(code_of);
        if matches!(code, Some(Code::UnknownMemberId | Code::FencedMemberEpoch)) {
            self.expelled.store(true, SeqCst);
        }
        made
    }

    /// Waits for the commit in flight, and prevents others.
    fn close(&self) {
        self.closing.store(true, SeqCst);
        drop(lock(&self.commits));
    }

    pub(crate) fn take_reason(&self) -> String {
        std::mem::take(&mut *lock(&self.reason))
    }

    /// Returns the log's end as of some seconds ago; librdkafka reports it from time to time.
    pub(crate) fn end_of(&self, partition: &Partition) -> Option<i64> {
        lock(&self.ends).get(partition).copied()
    }

    /// Counts callbacks: a poll that returned nothing may still have consumed something from the queue.
    pub(crate) fn served(&self) -> u64 {
        self.served.load(SeqCst)
    }

    fn count(&self) {
        self.served.fetch_add(1, SeqCst);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Change {
    Assign,
    Revoke,
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.count();
        if is_lost_answer(facility, line) {
            *lock(&self.unsure) = Some(Instant::now());
        }
        self.connection_errors.log(level, facility, line);
    }

    fn stats(&self, statistics: Statistics) {
        self.count();
        self.connection_errors.look_at(&statistics);
        self.lost_brokers.look_at(&statistics);
        let topics = statistics.topics.values();
        let partitions = topics.flat_map(|topic| topic.partitions.values().map(|of| (&*topic.topic, of)));
        let ends = partitions.filter_map(|(topic, of)| {
            let end = if of.ls_offset >= 0 { of.ls_offset } else { of.hi_offset };
            (of.fetch_state == "active" && end >= 0).then(|| (Partition::new(topic, of.partition), end))
        });
        *lock(&self.ends) = ends.collect();
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.count();
        reason.clone_into(&mut lock(&self.reason));
        self.connection_errors.note(&error, reason);
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(&self, consumer: &Client, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.count();
        let change = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Change::Assign,
            _ => Change::Revoke,
        };
        if self.closing.load(SeqCst) {
            if let Err(error) = answer(consumer, change, list) {
                tracing::debug!(%error, "a rebalance could not be answered while closing");
            }
        } else {
            self.note(change, list.clone());
        }
    }
}

/// Acknowledges a rebalance to librdkafka; until then the group waits.
fn answer(consumer: &Client, change: Change, list: &TopicPartitionList) -> KafkaResult<()> {
    let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
    match (change, cooperative) {
        (Change::Assign, true) => consumer.incremental_assign(list),
        (Change::Revoke, true) => consumer.incremental_unassign(list),
        (Change::Assign, false) => consumer.assign(list),
        (Change::Revoke, false) => consumer.unassign(),
    }
}

fn new_slot(shared: &Shared, committer: &Arc<Committer>, partition: Partition, doubt: Doubt) -> Arc<Slot> {
    let assignment = Assignment { partition, epoch: shared.next_epoch() };
    Arc::new(Slot::new(assignment, doubt, Arc::downgrade(committer)))
}

fn wake_by(shared: &Arc<Shared>, slot: &Arc<Slot>, queue: &mut PartitionQueue<Callbacks>) {
    let (bell, full) = (shared.clone(), slot.clone());
    queue.set_nonempty_callback(move || {
        full.ring();
        bell.ring();
    });
}

fn assignments<'a>(slots: impl IntoIterator<Item = &'a Arc<Slot>>) -> Vec<Assignment> {
    slots.into_iter().map(|slot| slot.assignment.clone()).collect()
}

/// A revoke that waits for the driver.
struct Held {
    list: TopicPartitionList,
    slots: Vec<Arc<Slot>>,
    until: Instant,
}

fn subscribe(consumer: &Client, plan: &Plan) -> KafkaResult<()> {
    let names: Vec<&str> = plan.topics.iter().map(|t| &**t).collect();
    consumer.subscribe(&names)
}

/// One consumer of the group. Lives on the poll thread, but may be dropped elsewhere, and that drop may never return:
/// so it owns nothing whose end the poll thread waits for, such as a [`Checker`].
///
/// A partition is assigned to the client at offset 0 and paused until the log was compared with what was committed:
/// then the client is told where to start. It never chooses a position by itself.
pub(crate) struct Group {
    // Before the consumer: they are views into it.
    pub(crate) queues: Vec<(Arc<Slot>, PartitionQueue<Callbacks>)>,
    pub(crate) consumer: Arc<Client>,
    committer: Arc<Committer>,
    from: Plan,
    shared: Arc<Shared>,
    held: Option<Held>,
    release_limit: Duration,
    /// Where partitions are to start, and when the client may be told.
    beginning: Vec<(Arc<Slot>, Start, Instant)>,
    /// The client has not accepted a response: it and the group are out of sync.
    broken: Option<KafkaError>,
    born: Instant,
    /// `None` with the classic protocol, in which the member sets its own interval.
    heartbeat: Option<Heartbeat>,
}

impl Group {
    pub(crate) fn join(
        request: &JoinRequest,
        plan: Plan,
        shared: &Arc<Shared>,
        connection_errors: &Arc<ConnectionErrors>,
        protocol: GroupProtocol,
    ) -> Result<Self> {
        let mut config = shared.settings.consumer(&request.group, request.member, protocol);
        match protocol {
            GroupProtocol::Classic => session::set_classic(&mut config, request.session_timeout),
            GroupProtocol::Consumer | GroupProtocol::Auto => {
                session::set_rebalance_limit(&mut config, request);
            }
        }
        let now = Instant::now();
        let heartbeat = (protocol != GroupProtocol::Classic).then(|| Heartbeat::begin(&mut config, now));
        if let (GroupProtocol::Classic, Some(instance)) = (protocol, config.get("group.instance.id")) {
            // Must be unique in the group.
            let instance = format!("{instance}-{}", plan.topics.concat());
            config.set("group.instance.id", instance);
        }
        let mut consumer =
            Client::from_config_and_context(&config, Callbacks::new(connection_errors.clone()))
                .map_err(|e| settings::broken(&e))?;
        let bell = shared.clone();
        consumer.set_nonempty_callback(move || bell.ring());
        let consumer = Arc::new(consumer);
        let failed = |e| Error::not_applied(ErrorKind::Other, "join").with_source(e);
        let committer = Committer::start(&consumer).map_err(failed)?;
        let refused = |e| Error::not_applied(ErrorKind::Invalid, "join").with_source(e);
        subscribe(&consumer, &plan).map_err(refused)?;
        Ok(Group {
            queues: Vec::new(),
            consumer,
            committer,
            from: plan,
            shared: shared.clone(),
            held: None,
            release_limit: request.release_limit,
            beginning: Vec::new(),
            broken: None,
            born: now,
            heartbeat,
        })
    }

    /// Polls the group for changes, if that is due.
    pub(crate) fn ask(&mut self, now: Instant) {
        if self.heartbeat.as_mut().is_some_and(|heartbeat| heartbeat.take(now))
            && let Err(error) = subscribe(&self.consumer, &self.from)
        {
            tracing::debug!(%error, "the group can't be polled for changes now");
        }
    }

    /// Whether the client may have missed something that the group won't send again.
    pub(crate) fn is_unsure(&self, patience: Duration) -> bool {
        lock(&self.consumer.context().unsure).is_some_and(|since| since.elapsed() >= patience)
    }

    /// The plan of the next consumer.
    pub(crate) fn plan(&self) -> Plan {
        let mut plan = self.from.clone();
        if self.born.elapsed() >= HEALTHY {
            plan.failures = 0;
        }
        plan
    }

    /// Returns whether a revoke waits for the driver.
    pub(crate) fn is_holding(&self) -> bool {
        self.held.is_some()
    }

    pub(crate) fn has(&self, slot: &Arc<Slot>) -> bool {
        self.queues.iter().any(|(s, _)| Arc::ptr_eq(s, slot))
    }

    /// When there is something to do without a notification.
    pub(crate) fn due(&self) -> Option<Instant> {
        let beginning = self.beginning.iter().map(|(.., at)| *at);
        let heartbeat = self.heartbeat.as_ref().map(Heartbeat::due);
        self.held.iter().map(|h| h.until).chain(beginning).chain(heartbeat).min()
    }

    /// Why the consumer is unusable, if it is.
    pub(crate) fn broken(&self) -> Option<(Code, String)> {
        let broken = self.broken.as_ref();
        let broken = broken.map(|e| (code_of(e), format!("the client could not handle a rebalance: {e}")));
        let has_lost_brokers = self.consumer.context().lost_brokers.is_certain();
        broken.or(has_lost_brokers.then(|| (Code::BrokerTransportFailure, lost_brokers::WHY.into())))
    }

    /// Handles what can be handled and tells the driver. An assignment is accepted only when the driver has received
    /// everything before it, so what is pending is bounded.
    pub(crate) fn rebalance(&mut self, checker: &Checker, pending: &mut Pending) {
        let mut has_heard = pending.is_empty();
        if let Some(held) = self.held.take() {
            // librdkafka finds out only now that it was expelled.
            let lost = self.consumer.assignment_lost() || self.consumer.context().expelled.load(SeqCst);
            let over = held.slots.iter().all(|s| s.is_released() && s.committing.load(SeqCst) == 0);
            if !lost && !over && Instant::now() < held.until {
                self.held = Some(held);
                return;
            }
            self.give_back(&held.list, &held.slots, lost, pending);
        }
        while self.held.is_none() {
            let change = {
                let mut noted = lock(&self.consumer.context().noted);
                match noted.front() {
                    Some((Change::Assign, _)) if !has_heard => return,
                    _ => noted.pop_front(),
                }
            };
            if let (Some(_), Some(heartbeat)) = (&change, &mut self.heartbeat) {
                heartbeat.changed(Instant::now());
            }
            match change {
                Some((Change::Assign, list)) => self.assigned(list, checker, pending),
                Some((Change::Revoke, list)) => self.revoke(list, pending),
                None => return,
            }
            has_heard = false;
        }
    }

    fn assigned(&mut self, mut list: TopicPartitionList, checker: &Checker, pending: &mut Pending) {
        let mut slots = Vec::new();
        for element in list.elements() {
            let partition = Partition::new(element.topic(), element.partition());
            // The old view is dropped before the new one is created: dropping it silences the queue that they share.
            self.queues.retain(|(s, _)| s.assignment.partition != partition);
            let doubt = self.from.doubt(&partition);
            let slot = new_slot(&self.shared, &self.committer, partition, doubt);
            let Partition { topic, index } = &slot.assignment.partition;
            // Split before the assignment: no record ever arrives through the main queue, out of order with the rest.
            let Some(mut queue) = self.consumer.split_partition_queue(topic, *index) else { continue };
            wake_by(&self.shared, &slot, &mut queue);
            self.queues.push((slot.clone(), queue));
            slots.push(slot);
        }
        let answered = list
            .set_all_offsets(Offset::Offset(0))
            .and_then(|()| self.consumer.pause(&list))
            .and_then(|()| answer(&self.consumer, Change::Assign, &list));
        if let Err(e) = answered {
            self.broken = Some(e);
            return;
        }
        if slots.is_empty() {
            return;
        }
        pending.push_back(Ok(Event::Assigned(assignments(&slots))));
        self.own(&slots);
        checker.locate(Arc::downgrade(&self.consumer), slots);
    }

    /// Gives up partitions whose records don't fit what was read, and takes them again under a new epoch.
    pub(crate) fn reassign(&mut self, checker: &Checker, pending: &mut Pending) {
        let (mut old, mut new) = (Vec::new(), Vec::new());
        let mut list = TopicPartitionList::new();
        for (was, queue) in self.queues.iter_mut().filter(|(slot, _)| slot.doubted.load(SeqCst)) {
            let partition = was.assignment.partition.clone();
            list.add_partition(&partition.topic, partition.index);
            let slot = new_slot(&self.shared, &self.committer, partition, Doubt::Records);
            wake_by(&self.shared, &slot, queue);
            new.push(slot.clone());
            old.push(std::mem::replace(was, slot));
        }
        if new.is_empty() {
            return;
        }
        // This discards what was read ahead.
        if let Err(e) = self.consumer.pause(&list) {
            self.broken = Some(e);
        }
        self.own(&new);
        old.iter().for_each(|slot| self.part(slot));
        pending.push_back(Ok(Event::Lost(assignments(&old))));
        pending.push_back(Ok(Event::Assigned(assignments(&new))));
        checker.locate(Arc::downgrade(&self.consumer), new);
    }

    /// The start of a partition was determined.
    pub(crate) fn begin(&mut self, slot: Arc<Slot>, start: Start) {
        self.beginning.push((slot, start, Instant::now()));
    }

    /// Tells the client where to start, and returns messages about that.
    pub(crate) fn begin_reading(&mut self) -> Vec<Error> {
        let (mut alarms, began) = (Vec::new(), Instant::now());
        for (slot, start, due) in std::mem::take(&mut self.beginning) {
            if slot.gone.load(SeqCst) || !self.has(&slot) {
                continue;
            }
            // A client that is slow to respond must be polled in between.
            if due > Instant::now() || began.elapsed() >= ASKED {
                self.beginning.push((slot, start, due));
                continue;
            }
            if let Err(error) = self.seek(&slot, start.at.offset) {
                // It is still ending the partition's earlier assignment.
                tracing::debug!(%error, partition = %slot.assignment, "the client can't begin to read yet");
                self.beginning.push((slot, start, Instant::now() + AGAIN));
                continue;
            }
            lock(&slot.trail).begin(start.at, start.first);
            slot.ready.store(true, SeqCst);
            alarms.extend(start.alarm);
        }
        alarms
    }

    /// Only while it is paused: otherwise it would read from where it was assigned.
    fn seek(&self, slot: &Slot, offset: i64) -> KafkaResult<()> {
        let Partition { topic, index } = &slot.assignment.partition;
        self.consumer.seek(topic, *index, Offset::Offset(offset), ASKED)?;
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, *index);
        self.consumer.resume(&list)?;
        // A resume doesn't wake the fetching thread, which may sleep for a second. A seek does, but in librdkafka 2.12
        // not one to offset 0. It can't fail anymore, so nobody waits for it.
        let offset = if offset == 0 { Offset::Beginning } else { Offset::Offset(offset) };
        if let Err(error) = self.consumer.seek(topic, *index, offset, Duration::ZERO) {
            tracing::debug!(%error, partition = %slot.assignment, "reading may begin a second later");
        }
        Ok(())
    }

    fn revoke(&mut self, list: TopicPartitionList, pending: &mut Pending) {
        let slots: Vec<Arc<Slot>> = {
            let owned = lock(&self.shared.owned);
            let of = |topic: &str, index| owned.get(&Partition::new(topic, index)).cloned();
            list.elements().iter().filter_map(|e| of(e.topic(), e.partition())).collect()
        };
        if slots.is_empty() || self.consumer.assignment_lost() {
            return self.give_back(&list, &slots, true, pending);
        }
        self.queues.retain(|(slot, _)| !slots.iter().any(|s| Arc::ptr_eq(s, slot)));
        self.consumer.context().expelled.store(false, SeqCst);
        pending.push_back(Ok(Event::Revoking(assignments(&slots))));
        self.held = Some(Held {
            list,
            slots,
            until: Instant::now() + self.release_limit.min(session::MAX_REBALANCE),
        });
    }

    /// Gives partitions back to the group. Before that, our commits must be blocked.
    fn give_back(
        &mut self,
        list: &TopicPartitionList,
        slots: &[Arc<Slot>],
        lost: bool,
        pending: &mut Pending,
    ) {
        self.disown(slots);
        self.queues.retain(|(slot, _)| !slots.iter().any(|s| Arc::ptr_eq(s, slot)));
        if let Err(e) = answer(&self.consumer, Change::Revoke, list) {
            self.broken = Some(e);
        }
        let unreleased = slots.iter().filter(|s| lost || !s.released.load(SeqCst) || s.doubted.load(SeqCst));
        let unreleased = assignments(unreleased);
        if !unreleased.is_empty() {
            pending.push_back(Ok(Event::Lost(unreleased)));
        }
    }

    fn own(&self, slots: &[Arc<Slot>]) {
        let owned = slots.iter().map(|slot| (slot.assignment.partition.clone(), slot.clone()));
        lock(&self.shared.owned).extend(owned);
    }

    fn disown(&mut self, slots: &[Arc<Slot>]) {
        let shared = self.shared.clone();
        let mut owned = lock(&shared.owned);
        for slot in slots {
            owned.remove(&slot.assignment.partition);
            self.part(slot);
        }
    }

    /// Records the position of an epoch that ends.
    fn part(&mut self, slot: &Slot) {
        slot.gone.store(true, SeqCst);
        if self.shared.past_positions.leave(slot) {
            self.from.was_read(&slot.assignment.partition);
        }
    }

    /// Loses all partitions at once.
    pub(crate) fn lose_all(&mut self, pending: &mut Pending) {
        let lost = assignments(&self.disown_all());
        if !lost.is_empty() {
            pending.push_back(Ok(Event::Lost(lost)));
        }
    }

    fn disown_all(&mut self) -> Vec<Arc<Slot>> {
        let held = self.held.iter().flat_map(|held| &held.slots);
        let slots: Vec<_> = self.queues.iter().map(|(slot, _)| slot).chain(held).cloned().collect();
        self.disown(&slots);
        self.queues.clear();
        slots
    }
}

/// Leaving happens on drop, so that it also happens when the poll thread panics.
impl Drop for Group {
    fn drop(&mut self) {
        // First, so that no more commits queue up behind one that may hang.
        self.disown_all();
        let context = self.consumer.context();
        context.close();
        let held = self.held.take().map(|held| (Change::Revoke, held.list));
        for (change, list) in held.into_iter().chain(lock(&context.noted).drain(..)) {
            if let Err(error) = answer(&self.consumer, change, &list) {
                tracing::debug!(%error, "a rebalance could not be answered while closing");
            }
        }
        // Here and not in the consumer's own drop, which may happen at the end of a commit.
        match self.consumer.close_queue() {
            Ok(()) => {
                while !self.consumer.closed() {
                    self.consumer.poll(CLOSING);
                }
            }
            Err(error) => tracing::debug!(%error, "the consumer is closed without leaving its group"),
        }
    }
}
