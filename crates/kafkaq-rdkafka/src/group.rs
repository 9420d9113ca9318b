//! Our part in the consumer group: what is assigned to us, and how a rebalance is answered.
//!
//! A revoke is answered in two steps. librdkafka is told that the partitions are gone only when the driver has
//! released them, or when the limit has passed; until then they are ours and a commit of them counts.

use crate::{
    locked, log,
    log::Trouble,
    member::{Shared, Slot},
    settings::{self, GroupProtocol, Settings},
};
use kafkaq_core::{Assignment, Error, ErrorKind, Event, JoinRequest, Partition, Result};
use rdkafka::{
    ClientContext, TopicPartitionList,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{
        BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol, base_consumer::PartitionQueue,
    },
    error::KafkaError,
    types::RDKafkaRespErr,
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

/// How often closing looks whether it is done; nothing rings then.
const CLOSING: Duration = Duration::from_millis(10);

/// The consumer's context. Callbacks only note what happened: they run inside `poll`, on the poll thread.
pub(crate) struct Watch {
    noted: Mutex<VecDeque<(Change, TopicPartitionList)>>,
    /// From now on rebalances are answered on the spot: closing polls by itself, and would wait for ever.
    closing: AtomicBool,
    served: AtomicU64,
    trouble: Arc<Trouble>,
}

impl Watch {
    fn new(trouble: Arc<Trouble>) -> Self {
        Watch { noted: Mutex::default(), closing: AtomicBool::new(false), served: AtomicU64::new(0), trouble }
    }

    /// Counts callbacks: a poll that returned nothing may still have taken something off the queue.
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

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.count();
        log::forward(level, facility, line);
    }

    fn stats_raw(&self, _: &[u8]) {
        self.count();
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.count();
        self.trouble.note(&error, reason);
    }
}

impl ConsumerContext for Watch {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.count();
        let change = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Change::Assign,
            _ => Change::Revoke,
        };
        if self.closing.load(SeqCst) {
            answer(consumer, change, list);
        } else {
            locked(&self.noted).push_back((change, list.clone()));
        }
    }
}

/// Tells librdkafka that we have taken note; until then the group waits.
fn answer(consumer: &BaseConsumer<Watch>, change: Change, list: &TopicPartitionList) {
    let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
    let done = match (change, cooperative) {
        (Change::Assign, true) => consumer.incremental_assign(list),
        (Change::Revoke, true) => consumer.incremental_unassign(list),
        (Change::Assign, false) => consumer.assign(list),
        (Change::Revoke, false) => consumer.unassign(),
    };
    if let Err(error) = done {
        tracing::warn!(%error, "a rebalance could not be answered");
    }
}

/// A revoke that waits for the driver.
struct Held {
    list: TopicPartitionList,
    slots: Vec<Arc<Slot>>,
    until: Instant,
}

/// One consumer of the group. Lives on the poll thread.
pub(crate) struct Group {
    // Before the consumer: they are views into it.
    pub(crate) queues: Vec<(Arc<Slot>, PartitionQueue<Watch>)>,
    pub(crate) consumer: Arc<BaseConsumer<Watch>>,
    shared: Arc<Shared>,
    held: Option<Held>,
    release_limit: Duration,
}

impl Group {
    /// One consumer for all topics, or by the classic protocol one for each. Its `cooperative-sticky` assignor evens
    /// out the sum over all topics of a consumer: whoever joins second may get all of one topic and nothing of the
    /// other. Its `range` shares each topic, and stops everybody at every change.
    pub(crate) fn join(
        settings: &Settings,
        request: &JoinRequest,
        shared: &Arc<Shared>,
        trouble: &Arc<Trouble>,
        protocol: GroupProtocol,
    ) -> Result<Vec<Self>> {
        let topics: Vec<&str> = request.topics.iter().map(|t| &**t).collect();
        let share = if protocol == GroupProtocol::Classic { 1 } else { topics.len().max(1) };
        let of_share = |topics| Group::join_as_one(settings, request, shared, trouble, protocol, topics);
        topics.chunks(share).map(of_share).collect()
    }

    fn join_as_one(
        settings: &Settings,
        request: &JoinRequest,
        shared: &Arc<Shared>,
        trouble: &Arc<Trouble>,
        protocol: GroupProtocol,
        topics: &[&str],
    ) -> Result<Self> {
        let mut config = settings.consumer(&request.group, request.member, protocol);
        if let (GroupProtocol::Classic, Some(instance)) = (protocol, config.get("group.instance.id")) {
            // No two consumers of a group may have the same.
            let instance = format!("{instance}-{}", topics.concat());
            config.set("group.instance.id", instance);
        }
        let mut consumer = BaseConsumer::from_config_and_context(&config, Watch::new(trouble.clone()))
            .map_err(|e| settings::broken(&e))?;
        let bell = shared.clone();
        consumer.set_nonempty_callback(move || bell.ring());
        let group = Group {
            queues: Vec::new(),
            consumer: Arc::new(consumer),
            shared: shared.clone(),
            held: None,
            release_limit: request.release_limit,
        };
        group
            .consumer
            .subscribe(topics)
            .map_err(|e| Error::not_applied(ErrorKind::Invalid, "join").with_source(e))?;
        Ok(group)
    }

    /// Until when a revoke is held, if one is.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.held.as_ref().map(|h| h.until)
    }

    /// Answers what can be answered and tells the driver. An assignment is taken up only when the driver has heard
    /// of everything before it, so what it has not heard of is bounded.
    pub(crate) fn rebalance(&mut self, has_heard: bool, tell: &mut dyn FnMut(Event)) {
        if let Some(held) = self.held.take() {
            let lost = self.consumer.assignment_lost();
            let over = held.slots.iter().all(|s| s.released.load(SeqCst) && s.committing.load(SeqCst) == 0);
            if !lost && !over && Instant::now() < held.until {
                self.held = Some(held);
                return;
            }
            self.let_go(&held.list, &held.slots, lost, tell);
        }
        let mut has_heard = has_heard;
        while self.held.is_none() {
            let change = {
                let mut noted = locked(&self.consumer.context().noted);
                match noted.front() {
                    Some((Change::Assign, _)) if !has_heard => return,
                    _ => noted.pop_front(),
                }
            };
            match change {
                Some((Change::Assign, list)) => self.take_up(&list, tell),
                Some((Change::Revoke, list)) => self.revoke(list, tell),
                None => return,
            }
            has_heard = false;
        }
    }

    fn take_up(&mut self, list: &TopicPartitionList, tell: &mut dyn FnMut(Event)) {
        let mut assigned = Vec::new();
        for element in list.elements() {
            let partition = Partition::new(element.topic(), element.partition());
            let assignment = Assignment { partition: partition.clone(), epoch: self.shared.next_epoch() };
            let slot = Arc::new(Slot::new(assignment, &self.consumer));
            // Split before the assignment: no record ever comes by the main queue, out of order with the rest.
            let Some(mut queue) = self.consumer.split_partition_queue(&partition.topic, partition.index)
            else {
                continue;
            };
            let (bell, full) = (self.shared.clone(), slot.clone());
            queue.set_nonempty_callback(move || {
                full.ready.store(true, SeqCst);
                bell.ring();
            });
            self.queues.retain(|(s, _)| s.assignment.partition != partition);
            assigned.push(slot.assignment.clone());
            self.queues.push((slot.clone(), queue));
            locked(&self.shared.owned).insert(partition, slot);
        }
        answer(&self.consumer, Change::Assign, list);
        if !assigned.is_empty() {
            tell(Event::Assigned(assigned));
        }
    }

    fn revoke(&mut self, list: TopicPartitionList, tell: &mut dyn FnMut(Event)) {
        let slots: Vec<Arc<Slot>> = {
            let owned = locked(&self.shared.owned);
            let of = |topic: &str, index| owned.get(&Partition::new(topic, index)).cloned();
            list.elements().iter().filter_map(|e| of(e.topic(), e.partition())).collect()
        };
        if slots.is_empty() || self.consumer.assignment_lost() {
            return self.let_go(&list, &slots, true, tell);
        }
        self.queues.retain(|(slot, _)| !slots.iter().any(|s| Arc::ptr_eq(s, slot)));
        tell(Event::Revoking(slots.iter().map(|s| s.assignment.clone()).collect()));
        self.held = Some(Held { list, slots, until: Instant::now() + self.release_limit });
    }

    /// Gives partitions back to the group. First no commit of ours may pass any more.
    fn let_go(
        &mut self,
        list: &TopicPartitionList,
        slots: &[Arc<Slot>],
        lost: bool,
        tell: &mut dyn FnMut(Event),
    ) {
        {
            let mut owned = locked(&self.shared.owned);
            slots.iter().for_each(|s| drop(owned.remove(&s.assignment.partition)));
        }
        self.queues.retain(|(slot, _)| !slots.iter().any(|s| Arc::ptr_eq(s, slot)));
        answer(&self.consumer, Change::Revoke, list);
        let unreleased = slots.iter().filter(|s| lost || !s.released.load(SeqCst));
        let unreleased: Vec<_> = unreleased.map(|s| s.assignment.clone()).collect();
        if !unreleased.is_empty() {
            tell(Event::Lost(unreleased));
        }
    }

    /// Everything is gone at once.
    pub(crate) fn lose_all(&mut self, tell: &mut dyn FnMut(Event)) {
        self.queues.clear();
        let lost: Vec<_> =
            locked(&self.shared.owned).drain().map(|(_, slot)| slot.assignment.clone()).collect();
        if !lost.is_empty() {
            tell(Event::Lost(lost));
        }
    }
}

/// Leaving is dropping, so that it also happens when the poll thread panics.
impl Drop for Group {
    fn drop(&mut self) {
        let context = self.consumer.context();
        context.closing.store(true, SeqCst);
        locked(&self.shared.owned).clear();
        self.queues.clear();
        if let Some(held) = self.held.take() {
            answer(&self.consumer, Change::Revoke, &held.list);
        }
        for (change, list) in locked(&context.noted).drain(..) {
            answer(&self.consumer, change, &list);
        }
        // Here and not in the consumer's own drop, which may happen where a commit ends.
        match self.consumer.close_queue() {
            Ok(()) => {
                while !self.consumer.closed() {
                    self.consumer.poll(CLOSING);
                }
            }
            Err(error) => tracing::debug!(%error, "the consumer is closed without taking its leave"),
        }
    }
}
