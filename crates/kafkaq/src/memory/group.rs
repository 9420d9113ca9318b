//! An in-memory consumer group: who reads which partition, its offsets, and how partitions move.
//!
//! ```text
//!             poll tells            a better plan          poll tells
//!   Granted ───────────────▶ Held ───────────────▶ Recalled ────────────▶ Revoking
//!      │ a better plan, or leave    leave │     release, leave, or the time is up │
//!      └──────────────────────────────────┴───▶ free ◀────────────────────────────┘
//! ```
//! A free partition goes to the member that the plan names, under a new epoch. Nothing is queued: a member's events are
//! derived from the phases when it polls, so a member that never polls costs no memory.

use kafkaq_core::{
    Assignment, Commit, Cursor, Error, ErrorKind, Event, JoinRequest, Partition, Result, Retry, Standing,
};
use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
    task::Waker,
    time::Duration,
};
use tokio::time::Instant;

use super::state::{Idle, Records};

/// To be woken after the log's lock is released: a waker may run foreign code.
pub(super) type Wakers = Vec<Waker>;

/// Names a member within its log.
pub(super) type MemberId = u64;

pub(super) struct Group {
    pub(super) name: Arc<str>,
    members: BTreeMap<MemberId, Seat>,
    /// Every partition of the members' topics, by its number in the log.
    slots: BTreeMap<usize, Slot>,
    /// The last epoch given out.
    epoch: u64,
    /// When the next revoked partition is lost.
    deadline: Option<Instant>,
}

/// A member's place in the group.
struct Seat {
    client: u64,
    topics: Vec<Arc<str>>,
    max_batch: usize,
    release_limit: Duration,
    /// The partition that was read last; others have priority.
    last: usize,
    /// Alarms for its operator.
    alarms: Vec<Error>,
    lost: Vec<Assignment>,
    /// Whether there may be an event.
    news: bool,
    /// Whether there may be records to read.
    records: bool,
    waker: Option<Waker>,
}

struct Slot {
    partition: Partition,
    committed: Option<i64>,
    owner: Option<Owner>,
}

struct Owner {
    member: MemberId,
    epoch: u64,
    /// `None`: at the first record.
    position: Option<i64>,
    paused: bool,
    phase: Phase,
    /// Counts in the phases `Recalled` and `Revoking`; `None`: no limit.
    release_by: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Assigned, but the member hasn't been told yet.
    Granted,
    Held,
    /// To be released, but the member hasn't been told yet.
    Recalled,
    Revoking,
}

impl Owner {
    /// Whether it is about to end.
    fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Recalled | Phase::Revoking)
    }
}

impl Slot {
    fn assignment(&self, epoch: u64) -> Assignment {
        Assignment { partition: self.partition.clone(), epoch }
    }

    /// Whether the member may read it and is not at the end yet.
    fn has_records(&self, member: MemberId, log: &Records) -> bool {
        let reads = |o: &Owner| o.member == member && o.phase == Phase::Held && !o.paused;
        self.owner.as_ref().is_some_and(|o| reads(o) && o.position.unwrap_or(log.first()) < log.next())
    }

    fn grant(&mut self, member: MemberId, epoch: u64) {
        let position = self.committed;
        let phase = Phase::Granted;
        self.owner = Some(Owner { member, epoch, position, paused: false, phase, release_by: None });
    }
}

impl Group {
    pub(super) fn new(name: Arc<str>) -> Self {
        Group { name, members: BTreeMap::new(), slots: BTreeMap::new(), epoch: 0, deadline: None }
    }

    /// Adds a member. A call of [`Group::rebalance`] must follow, here and wherever a rebalance is said to be needed.
    pub(super) fn join(&mut self, id: MemberId, client: u64, request: JoinRequest) {
        let seat = Seat {
            client,
            topics: request.topics,
            max_batch: request.max_batch,
            release_limit: request.release_limit,
            last: 0,
            alarms: Vec::new(),
            lost: Vec::new(),
            news: true,
            records: true,
            waker: None,
        };
        self.members.insert(id, seat);
    }

    /// The topics that its members read.
    pub(super) fn topics(&self) -> Vec<Arc<str>> {
        let mut topics: Vec<_> = self.members.values().flat_map(|s| s.topics.iter().cloned()).collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    /// Adds a partition. A rebalance must follow.
    pub(super) fn add(&mut self, number: usize, partition: &Partition) {
        self.slots.entry(number).or_insert_with(|| Slot {
            partition: partition.clone(),
            committed: None,
            owner: None,
        });
    }

    /// Removes a partition of a deleted topic. A rebalance must follow.
    pub(super) fn remove(&mut self, number: usize) {
        let partition = self.slots.get(&number).map(|slot| slot.partition.clone());
        if let Some(partition) = partition {
            let alarm = Error::not_applied(ErrorKind::NotFound, "read").on(partition).with_retry(Retry::Yes);
            self.take_away(number, alarm.with_advice(
                "The topic was deleted, and its records with it. It is read from its first record once it is there again",
            ));
            self.slots.remove(&number);
        }
    }

    /// Handles the truncation of a log. A member that has read beyond the new end starts again there, under a new
    /// epoch. A rebalance must follow.
    pub(super) fn cut(&mut self, number: usize, end: i64) {
        let Some(slot) = self.slots.get_mut(&number) else { return };
        slot.committed = slot.committed.map(|offset| offset.min(end));
        let position = slot.owner.as_ref().and_then(|o| o.position).unwrap_or_default();
        let standing = Standing::Replaced { first: end };
        if position > end
            && let Some(alarm) = standing.alarm(&slot.partition, &Cursor::new(position))
        {
            self.take_away(number, alarm);
        }
    }

    /// Ends an assignment in any phase, with a reason.
    fn take_away(&mut self, number: usize, why: Error) {
        if let Some(slot) = self.slots.get_mut(&number)
            && let Some(owner) = slot.owner.take()
            && owner.phase != Phase::Granted
            && let Some(seat) = self.members.get_mut(&owner.member)
        {
            seat.alarms.push(why);
            seat.lost.push(slot.assignment(owner.epoch));
        }
    }

    /// Removes members and releases what they held. Idempotent.
    pub(super) fn leave(&mut self, who: impl Fn(MemberId, u64) -> bool, wake: &mut Wakers) {
        let before = self.members.len();
        self.members.retain(|id, seat| {
            let goes = who(*id, seat.client);
            if goes {
                wake.extend(seat.waker.take());
            }
            !goes
        });
        if self.members.len() == before {
            return;
        }
        for slot in self.slots.values_mut() {
            slot.owner.take_if(|o| !self.members.contains_key(&o.member));
        }
        self.rebalance(wake);
    }

    /// Ends assignments that were revoked and not released in time.
    pub(super) fn expire(&mut self, wake: &mut Wakers) {
        let Some(deadline) = self.deadline else { return };
        let now = Instant::now();
        if now < deadline {
            return;
        }
        for slot in self.slots.values_mut() {
            let late = |o: &mut Owner| o.is_leaving() && o.release_by.is_some_and(|at| at <= now);
            if let Some(owner) = slot.owner.take_if(late)
                && let Some(seat) = self.members.get_mut(&owner.member)
            {
                seat.lost.push(slot.assignment(owner.epoch));
            }
        }
        self.rebalance(wake);
    }

    /// Assigns free partitions, revokes those that should move, and wakes everybody.
    pub(super) fn rebalance(&mut self, wake: &mut Wakers) {
        let plan = self.plan();
        let now = Instant::now();
        for (number, slot) in &mut self.slots {
            let Some(&to) = plan.get(number) else { continue };
            match &mut slot.owner {
                Some(owner) if owner.member == to || owner.is_leaving() => {}
                Some(owner) if owner.phase == Phase::Held => {
                    let limit = self.members.get(&owner.member).map(|seat| seat.release_limit);
                    owner.phase = Phase::Recalled;
                    owner.release_by = limit.and_then(|limit| now.checked_add(limit));
                }
                _ => {
                    self.epoch += 1;
                    slot.grant(to, self.epoch);
                }
            }
        }
        let leaving = self.slots.values().filter_map(|s| s.owner.as_ref()).filter(|o| o.is_leaving());
        self.deadline = leaving.filter_map(|o| o.release_by).min();
        for seat in self.members.values_mut() {
            (seat.news, seat.records) = (true, true);
            wake.extend(seat.waker.take());
        }
    }

    /// The target assignment: members keep their partitions as long as the counts per topic differ by at most one, and,
    /// where possible, the totals too.
    fn plan(&self) -> BTreeMap<usize, MemberId> {
        let mut plan = BTreeMap::new();
        let mut loads = Loads::default();
        for (number, slot) in &self.slots {
            if let Some(owner) = slot.owner.as_ref().filter(|o| !o.is_leaving()) {
                plan.insert(*number, owner.member);
                loads.add(owner.member, &slot.partition.topic);
            }
        }
        for (number, slot) in &self.slots {
            if !plan.contains_key(number)
                && let Some(to) = self.idlest(&slot.partition.topic, &loads)
            {
                plan.insert(*number, to);
                loads.add(to, &slot.partition.topic);
            }
        }
        // Terminates, because each move makes the topics more even, or keeps them as even and makes the totals more
        // even.
        loop {
            let mut moved = false;
            for (number, slot) in &self.slots {
                let topic = &slot.partition.topic;
                let (Some(from), Some(to)) = (plan.get_mut(number), self.idlest(topic, &loads)) else {
                    continue;
                };
                let ((topic_from, all_from), (topic_to, all_to)) =
                    (loads.of(*from, topic), loads.of(to, topic));
                if topic_from > topic_to + 1 || (topic_from > topic_to && all_from > all_to + 1) {
                    loads.take(*from, topic);
                    loads.add(to, topic);
                    *from = to;
                    moved = true;
                }
            }
            if !moved {
                return plan;
            }
        }
    }

    /// The member that reads the topic and has the fewest partitions.
    fn idlest(&self, topic: &Arc<str>, loads: &Loads) -> Option<MemberId> {
        let readers = self.members.iter().filter(|(_, seat)| seat.topics.contains(topic)).map(|(id, _)| *id);
        readers.min_by_key(|id| loads.of(*id, topic))
    }

    /// A member's next event.
    pub(super) fn news(&mut self, member: MemberId) -> Option<Result<Event>> {
        let seat = self.members.get_mut(&member).filter(|seat| seat.news)?;
        if let Some(alarm) = seat.alarms.pop() {
            return Some(Err(alarm));
        }
        if !seat.lost.is_empty() {
            return Some(Ok(Event::Lost(mem::take(&mut seat.lost))));
        }
        let revoking = self.tell(member, Phase::Recalled, Phase::Revoking);
        if !revoking.is_empty() {
            return Some(Ok(Event::Revoking(revoking)));
        }
        if let Some(seat) = self.members.get_mut(&member) {
            seat.news = false;
        }
        let assigned = self.tell(member, Phase::Granted, Phase::Held);
        (!assigned.is_empty()).then_some(Ok(Event::Assigned(assigned)))
    }

    fn tell(&mut self, member: MemberId, from: Phase, to: Phase) -> Vec<Assignment> {
        let mut told = Vec::new();
        for slot in self.slots.values_mut() {
            if let Some(owner) = slot.owner.as_mut().filter(|o| o.member == member && o.phase == from) {
                owner.phase = to;
                let epoch = owner.epoch;
                told.push(slot.assignment(epoch));
            }
        }
        told
    }

    /// The next records of a member, from its partitions in turn.
    pub(super) fn read(&mut self, member: MemberId, log: &[Records]) -> Option<Result<Event>> {
        let seat = self.members.get_mut(&member).filter(|seat| seat.records)?;
        let mut in_turn = self.slots.range(seat.last + 1..).chain(self.slots.range(..=seat.last));
        let next = in_turn.find(|(number, slot)| slot.has_records(member, &log[**number]));
        seat.records = next.is_some();
        let number = *next?.0;
        let slot = self.slots.get_mut(&number)?;
        let owner = slot.owner.as_mut()?;
        let first = log[number].first();
        let position = owner.position.unwrap_or(first);
        if position < first {
            owner.position = Some(first);
            let standing = Standing::DeletedUnread { first };
            return standing.alarm(&slot.partition, &Cursor::new(position)).map(Err);
        }
        seat.last = number;
        let batch = log[number].read(position, seat.max_batch, usize::MAX);
        owner.position = Some(batch.next);
        let epoch = owner.epoch;
        Some(Ok(Event::Records(slot.assignment(epoch), batch)))
    }

    /// Whether it is still a member.
    pub(super) fn has(&self, member: MemberId) -> bool {
        self.members.contains_key(&member)
    }

    /// Registers a waker for the member's next event.
    pub(super) fn wait(&mut self, member: MemberId, waker: &Waker) -> Idle {
        let slot = self.members.get_mut(&member).map(|seat| &mut seat.waker);
        let old = match slot {
            Some(Some(same)) if same.will_wake(waker) => None,
            Some(slot) => slot.replace(waker.clone()),
            None => None,
        };
        (old, self.deadline)
    }

    /// Records that a partition may have records to read.
    pub(super) fn grown(&mut self, number: usize, wake: &mut Wakers) {
        let owner = self.slots.get(&number).and_then(|slot| slot.owner.as_ref());
        if let Some(owner) = owner.filter(|o| !o.paused && o.phase == Phase::Held)
            && let Some(seat) = self.members.get_mut(&owner.member)
        {
            seat.records = true;
            wake.extend(seat.waker.take());
        }
    }

    pub(super) fn commit(&mut self, member: MemberId, number: usize, to: &Commit, end: i64) -> Result<()> {
        let slot =
            self.owned(member, number, to.assignment.epoch).ok_or_else(|| not_owner(&to.assignment))?;
        if !(0..=end).contains(&to.offset) {
            return Err(Error::not_applied(ErrorKind::Invalid, "commit")
                .on(format_args!("{} to {}", slot.partition, to.offset))
                .with_advice("Commit the offset after a record that was read"));
        }
        slot.committed = Some(to.offset);
        Ok(())
    }

    /// The slot, if the member owns it under that epoch.
    fn owned(&mut self, member: MemberId, number: usize, epoch: u64) -> Option<&mut Slot> {
        let is = |o: &Owner| (o.member, o.epoch) == (member, epoch);
        self.slots.get_mut(&number).filter(|slot| slot.owner.as_ref().is_some_and(is))
    }

    /// The group's committed offset of a partition; `None` if it doesn't read it.
    pub(super) fn committed(&self, number: usize) -> Option<i64> {
        self.slots.get(&number).map(|slot| slot.committed.unwrap_or(0))
    }

    pub(super) fn pause(
        &mut self,
        member: MemberId,
        number: usize,
        epoch: u64,
        pause: bool,
        wake: &mut Wakers,
    ) {
        if let Some(owner) = self.owned(member, number, epoch).and_then(|slot| slot.owner.as_mut()) {
            owner.paused = pause;
            self.grown(number, wake);
        }
    }

    /// Ends an assignment, so that the next rebalance assigns the partition under a new epoch; if it did, a rebalance
    /// is needed.
    pub(super) fn reassign(&mut self, member: MemberId, number: usize, epoch: u64) -> bool {
        let Some(slot) = self.owned(member, number, epoch) else { return false };
        let told = slot.owner.take().is_some_and(|owner| owner.phase != Phase::Granted);
        let lost = slot.assignment(epoch);
        if let Some(seat) = self.members.get_mut(&member).filter(|_| told) {
            seat.lost.push(lost);
        }
        true
    }

    /// Frees a partition that was revoked; if it was, a rebalance is needed.
    pub(super) fn release(&mut self, member: MemberId, number: usize, epoch: u64) -> bool {
        let slot = self.owned(member, number, epoch);
        slot.is_some_and(|slot| slot.owner.take_if(|o| o.phase == Phase::Revoking).is_some())
    }
}

pub(super) fn not_owner(assignment: &Assignment) -> Error {
    Error::not_applied(ErrorKind::NotOwner, "commit").on(assignment)
}

/// The partition counts of the members.
#[derive(Default)]
struct Loads<'a> {
    of_topic: HashMap<(MemberId, &'a str), usize>,
    all: HashMap<MemberId, usize>,
}

impl<'a> Loads<'a> {
    fn of(&self, member: MemberId, topic: &str) -> (usize, usize) {
        let topic = self.of_topic.get(&(member, topic)).copied().unwrap_or(0);
        (topic, self.all.get(&member).copied().unwrap_or(0))
    }

    fn add(&mut self, member: MemberId, topic: &'a str) {
        *self.of_topic.entry((member, topic)).or_default() += 1;
        *self.all.entry(member).or_default() += 1;
    }

    fn take(&mut self, member: MemberId, topic: &'a str) {
        *self.of_topic.entry((member, topic)).or_default() -= 1;
        *self.all.entry(member).or_default() -= 1;
    }
}
