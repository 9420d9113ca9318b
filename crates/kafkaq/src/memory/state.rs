//! The shared state of all clients of an in-memory log: topics, records and groups, under one lock.
//!
//! One lock is enough: it is held while one batch is copied, and makes a commit and a rebalance mutually exclusive.

use super::{
    group::{Group, MemberId, Wakers, not_owner},
    lock,
};
use kafkaq_core::{
    Assignment, Batch, Commit, Error, ErrorKind, Event, JoinRequest, Offsets, Partition, Record, Result,
    TopicInfo, TopicSpec,
};
use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex},
    task::Waker,
    time::Duration,
};
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};

/// No event: the replaced waker, to be dropped outside of the lock, and when to poll again in any case.
pub(super) type Idle = (Option<Waker>, Option<Instant>);

/// The maximum record size of a topic that was created without a limit: the same as Kafka's.
const MAX_RECORD_BYTES: usize = 1_048_588;

#[derive(Default)]
pub(super) struct Shared(Mutex<State>);

impl Shared {
    /// Runs `f` under the lock, then wakes the tasks that it returns. Nobody is woken under the lock: a waker may drop
    /// a stream, which needs the lock.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let (result, wake) = {
            let mut state = lock(&self.0);
            (f(&mut state), mem::take(&mut state.wake))
        };
        wake.into_iter().for_each(Waker::wake);
        result
    }
}

#[derive(Default)]
pub(super) struct State {
    topics: HashMap<Arc<str>, Topic>,
    partitions: Vec<Records>,
    groups: Vec<Group>,
    wake: Wakers,
    /// The last number assigned to a client or a member.
    last_id: u64,
    pub(super) forget_committed: bool,
}

struct Topic {
    info: TopicInfo,
    /// The number of its first partition.
    start: usize,
}

/// The records of one partition.
pub(super) struct Records {
    partition: Partition,
    first: i64,
    records: VecDeque<Record>,
    grown: Arc<Notify>,
    max_record_bytes: usize,
    append_time: bool,
}

impl Records {
    fn new(partition: Partition, spec: &TopicSpec) -> Self {
        Records {
            partition,
            first: 0,
            records: VecDeque::new(),
            grown: Arc::default(),
            max_record_bytes: spec.max_record_bytes.unwrap_or(MAX_RECORD_BYTES),
            append_time: spec.append_time,
        }
    }

    /// Assigns the record's offset.
    fn append(&mut self, mut record: Record, now_ms: i64) -> Result<i64> {
        let (size, limit) = (record.size(), self.max_record_bytes);
        if size > limit {
            return Err(Error::not_applied(ErrorKind::TooLarge, "append").on(&self.partition).with_advice(format!(
                "The record has {size} bytes and the topic allows {limit}: make it smaller, or raise max_record_bytes"
            )));
        }
        record.offset = self.next();
        if self.append_time {
            record.timestamp_ms = now_ms;
        }
        self.records.push_back(record);
        Ok(self.next() - 1)
    }

    pub(super) fn first(&self) -> i64 {
        self.first
    }

    /// The offset of the next record.
    pub(super) fn next(&self) -> i64 {
        self.first + self.records.len() as i64
    }

    /// Returns at least one record from `from` on, if there is one.
    pub(super) fn read(&self, from: i64, max_records: usize, max_bytes: usize) -> Batch {
        let from = from.max(self.first);
        let skip = usize::try_from(from - self.first).unwrap_or(usize::MAX).min(self.records.len());
        let mut bytes = 0_usize;
        let fits = |record: &&Record| {
            let first = bytes == 0;
            bytes = bytes.saturating_add(record.size().max(1));
            first || bytes <= max_bytes
        };
        let count = self.records.range(skip..).take(max_records).take_while(fits).count();
        let records = self.records.range(skip..skip + count).cloned().collect();
        Batch::new(records, from + count as i64, Some(self.next()))
    }

    fn forget_below(&mut self, offset: i64) {
        let count = usize::try_from(offset - self.first).unwrap_or(0).min(self.records.len());
        self.records.drain(..count);
        self.first += count as i64;
    }

    fn cut_from(&mut self, offset: i64) {
        let keep = usize::try_from(offset - self.first).unwrap_or(0);
        self.records.truncate(keep);
    }
}

impl State {
    pub(super) fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn describe_topics(&self, names: &[Arc<str>]) -> Vec<Option<TopicInfo>> {
        names.iter().map(|name| self.topics.get(name).map(|topic| topic.info.clone())).collect()
    }

    /// Creates missing topics. The specs are valid.
    pub(super) fn ensure_topics(&mut self, specs: &[TopicSpec], default_partitions: i32) -> Vec<TopicInfo> {
        let mut infos = Vec::with_capacity(specs.len());
        let mut made = false;
        for spec in specs {
            if let Some(topic) = self.topics.get(&spec.name) {
                infos.push(topic.info.clone());
                continue;
            }
            let topic =
                Topic::new(spec, spec.partitions.unwrap_or(default_partitions), self.partitions.len());
            let partitions = (0..topic.info.partitions).map(|index| Partition::new(spec.name.clone(), index));
            self.partitions.extend(partitions.map(|partition| Records::new(partition, spec)));
            let mut info = topic.info.clone();
            info.created = true;
            infos.push(info);
            self.topics.insert(spec.name.clone(), topic);
            made = true;
        }
        if made {
            (0..self.groups.len()).for_each(|group| self.rebalance(group));
        }
        infos
    }

    /// Deletes a topic. The numbers of its partitions are never reused, so they can't refer to those of a later topic.
    pub(super) fn delete_topic(&mut self, name: &str) -> Result<Vec<Arc<Notify>>> {
        let Some(topic) = self.topics.remove(name) else {
            return Err(Error::not_applied(ErrorKind::NotFound, "delete_topic").on(name));
        };
        let numbers = topic.start..topic.start + topic.info.partitions as usize;
        for group in &mut self.groups {
            numbers.clone().for_each(|number| group.remove(number));
            group.rebalance(&mut self.wake);
        }
        let deleted = self.partitions[numbers].iter_mut().map(|log| {
            (log.records, log.first) = (VecDeque::new(), 0);
            log.grown.clone()
        });
        Ok(deleted.collect())
    }

    /// Deletes the records from `end` on.
    pub(super) fn truncate(&mut self, partition: &Partition, end: i64) -> Result<()> {
        let number = self.find(partition, "truncate")?;
        self.partitions[number].cut_from(end);
        let end = self.partitions[number].next();
        for group in &mut self.groups {
            group.cut(number, end);
            group.rebalance(&mut self.wake);
        }
        Ok(())
    }

    /// Deletes the records below `first`.
    pub(super) fn delete_records(&mut self, partition: &Partition, first: i64) -> Result<()> {
        let number = self.find(partition, "delete_records")?;
        self.partitions[number].forget_below(first);
        Ok(())
    }

    /// The number of a partition.
    fn number(&self, partition: &Partition) -> Option<usize> {
        let topic = self.topics.get(&partition.topic)?;
        let there = (0..topic.info.partitions).contains(&partition.index);
        there.then_some(topic.start + partition.index as usize)
    }

    fn find(&self, partition: &Partition, op: &'static str) -> Result<usize> {
        self.number(partition).ok_or_else(|| {
            let advice = match self.topics.get(&partition.topic) {
                None => "Create the topic with ensure_topics first".into(),
                Some(topic) => format!("The topic has partitions 0 to {}", topic.info.partitions - 1),
            };
            Error::not_applied(ErrorKind::NotFound, op).on(partition).with_advice(advice)
        })
    }

    /// Appends records whose offsets are not set yet. Returns what to notify that the partition has grown.
    pub(super) fn append(
        &mut self,
        to: &Partition,
        records: Vec<Record>,
        now_ms: i64,
    ) -> Result<(Vec<Result<i64>>, Arc<Notify>)> {
        let number = self.find(to, "append")?;
        let log = &mut self.partitions[number];
        let outcomes = records.into_iter().map(|record| log.append(record, now_ms)).collect();
        for group in &mut self.groups {
            group.grown(number, &mut self.wake);
        }
        Ok((outcomes, log.grown.clone()))
    }

    /// Returns the records to read, and a future that ends when there are more.
    pub(super) fn fetch(
        &self,
        partition: &Partition,
        from: i64,
        max_bytes: usize,
    ) -> Result<(Batch, OwnedNotified)> {
        let log = &self.partitions[self.find(partition, "fetch")?];
        if from > log.next() {
            return Err(Error::not_applied(ErrorKind::Invalid, "fetch")
                .on(format_args!("{partition} from {from}"))
                .with_advice(format!("The partition ends at {}", log.next())));
        }
        Ok((log.read(from, usize::MAX, max_bytes), log.grown.clone().notified_owned()))
    }

    pub(super) fn offsets(&self, partition: &Partition) -> Result<Offsets> {
        let log = &self.partitions[self.find(partition, "offsets")?];
        Ok(Offsets { first: log.first, next: log.next() })
    }

    /// Returns the number of the group and the member's name in it.
    pub(super) fn join(&mut self, client: u64, request: JoinRequest) -> (usize, MemberId) {
        let known = self.groups.iter().position(|g| g.name == request.group);
        let group = known.unwrap_or_else(|| {
            self.groups.push(Group::new(request.group.clone()));
            self.groups.len() - 1
        });
        let member = self.new_id();
        self.groups[group].join(member, client, request);
        self.rebalance(group);
        (group, member)
    }

    fn rebalance(&mut self, group: usize) {
        let group = &mut self.groups[group];
        for topic in group.topics().iter().filter_map(|name| self.topics.get(name)) {
            for number in topic.start..topic.start + topic.info.partitions as usize {
                group.add(number, &self.partitions[number].partition);
            }
        }
        group.rebalance(&mut self.wake);
    }

    /// Removes a client and all its members.
    pub(super) fn close(&mut self, client: u64) {
        for group in &mut self.groups {
            group.leave(|_, of| of == client, &mut self.wake);
        }
    }

    pub(super) fn leave(&mut self, group: usize, member: MemberId) {
        self.groups[group].leave(|id, _| id == member, &mut self.wake);
    }

    /// The member's next event; `None` when it has left.
    pub(super) fn poll(
        &mut self,
        group: usize,
        member: MemberId,
        waker: &Waker,
    ) -> Result<Option<Result<Event>>, Idle> {
        let group = &mut self.groups[group];
        group.expire(&mut self.wake);
        if !group.has(member) {
            return Ok(None);
        }
        let event = group.news(member).or_else(|| group.read(member, &self.partitions));
        event.map(Some).ok_or_else(|| group.wait(member, waker))
    }

    pub(super) fn commit(&mut self, group: usize, member: MemberId, to: &Commit) -> Result<()> {
        let partition = &to.assignment.partition;
        let number = self.number(partition).ok_or_else(|| not_owner(&to.assignment))?;
        self.groups[group].expire(&mut self.wake);
        self.groups[group].commit(member, number, to, self.partitions[number].next())?;
        if self.forget_committed {
            let all = self.groups.iter().filter_map(|g| g.committed(number)).min();
            self.partitions[number].forget_below(all.unwrap_or(0));
        }
        Ok(())
    }

    pub(super) fn pause(&mut self, group: usize, member: MemberId, of: &[Assignment], pause: bool) {
        for assignment in of {
            if let Some(number) = self.number(&assignment.partition) {
                self.groups[group].pause(member, number, assignment.epoch, pause, &mut self.wake);
            }
        }
    }

    pub(super) fn release(&mut self, group: usize, member: MemberId, of: &[Assignment]) {
        self.groups[group].expire(&mut self.wake);
        let mut freed = false;
        for assignment in of {
            if let Some(number) = self.number(&assignment.partition) {
                freed |= self.groups[group].release(member, number, assignment.epoch);
            }
        }
        if freed {
            self.groups[group].rebalance(&mut self.wake);
        }
    }

    pub(super) fn reassign(&mut self, group: usize, member: MemberId, of: &[Assignment]) {
        let mut taken = false;
        for assignment in of {
            if let Some(number) = self.number(&assignment.partition) {
                taken |= self.groups[group].reassign(member, number, assignment.epoch);
            }
        }
        if taken {
            self.groups[group].rebalance(&mut self.wake);
        }
    }
}

impl Topic {
    fn new(spec: &TopicSpec, partitions: i32, start: usize) -> Self {
        let mut info = TopicInfo::new(spec.name.clone(), partitions);
        info.retention = Some(spec.retention.unwrap_or(Duration::MAX));
        info.retention_bytes = Some(-1);
        info.compacted = Some(spec.compacted);
        info.max_record_bytes = Some(spec.max_record_bytes.unwrap_or(MAX_RECORD_BYTES));
        info.append_time = Some(spec.append_time);
        Topic { info, start }
    }
}
