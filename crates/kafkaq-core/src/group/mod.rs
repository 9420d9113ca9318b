//! A consumer group for a log without one, as a pure machine: who reads which partition, how far, and how a partition
//! changes hands, all by compare-and-swap on one value a partition.
//!
//! ```text
//!         swap won            start found        wanted by another       released, or time is up
//!  free ───────────▶ Locating ───────────▶ Held ─────────────────▶ Revoking ─────────────┐
//!   ▲                   │ Lost               │ Lost                  │ Lost              ▼
//!   │                   └────────────────────┴───────┬───────────────┘             Releasing
//!   │◀── the counter stood still for member_timeout ─┘                                   │
//!   └──────────────────────── the owner is cleared by a swap ◀───────────────────────────┘
//! ```
//! - An owner renews by raising the value's counter. Whoever sees the counter stand still for `member_timeout`, by its
//!   own monotonic clock, takes the partition. The owner stops earlier than that by its own clock, counted from when
//!   the last renewal was sent (hole 18).
//! - A commit is a swap too, so only the owner wins it, and it is a renewal at the same time.
//! - A member with too little asks the one with the most for one partition, by writing its name into the value. The
//!   owner finds it at its next renewal, lets go in two phases, and the partition is kept for the asker for a while.
//! - The store may forget: an owner that finds nothing, or an earlier state, writes its own again. A new owner that
//!   finds no cursor asks for the log's own checkpoint (hole 16).
//!
//! No async, no clock, no random number, no I/O: inputs are `handle_*`, outputs are `poll_*`.

mod balance;
#[cfg(feature = "planted-faults")]
mod fault;
mod slot;
mod start;
#[cfg(test)]
mod tests;
mod value;

#[cfg(feature = "planted-faults")]
pub use fault::GroupFault;
pub use start::start;
pub use value::{Cursor, Mark, Value};

use crate::{Assignment, Key, Partition, Result, Swap, Swapped, machine::Mono};
use balance::Loads;
use bytes::Bytes;
use slot::{Own, Phase, Sent, Slot};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

/// Names a member.
pub type MemberId = [u8; 16];

/// How a member behaves. The same for all members of a group.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The group's name.
    pub group: Arc<str>,
    /// This member.
    pub member: MemberId,
    /// After this long without a renewal a member counts as gone.
    pub member_timeout: Duration,
    /// How long a revoked partition may be held.
    pub release_limit: Duration,
    /// How often a cursor is put into the log.
    pub checkpoint_every: Duration,
}

/// What the member is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Ours now; reading starts there.
    Assigned(Assignment, i64),
    /// To be released.
    Revoking(Assignment),
    /// No longer ours.
    Lost(Assignment),
}

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The store holds it.
    Done,
    /// The partition is another's.
    NotOwner,
    /// The partition was lost while the commit was under way.
    Unknown,
}

/// Names the swap that an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapToken(usize);

/// Names what a read was for.
#[derive(Clone, Debug)]
pub struct ReadToken(Vec<(usize, u64)>);

/// A member of a group.
#[derive(Debug)]
pub struct Group {
    config: GroupConfig,
    slots: Vec<Slot>,
    by_partition: HashMap<Partition, usize>,
    next_read: Mono,
    reading: bool,
    leaving: bool,
    changes: VecDeque<Change>,
    answers: Vec<(u64, CommitOutcome)>,
    #[cfg(feature = "planted-faults")]
    fault: Option<GroupFault>,
}

/// A rule of the machine, unless the simulation has taken it out.
macro_rules! planted {
    ($group:expr, $fault:ident) => {{
        #[cfg(feature = "planted-faults")]
        let planted = $group.fault == Some(GroupFault::$fault);
        #[cfg(not(feature = "planted-faults"))]
        let planted = false;
        planted
    }};
}

const RETRY: Duration = Duration::from_millis(100);

impl Group {
    /// A member that knows no partition yet.
    #[must_use]
    pub fn new(config: GroupConfig) -> Self {
        Group {
            config,
            slots: Vec::new(),
            by_partition: HashMap::new(),
            next_read: Mono(0),
            reading: false,
            leaving: false,
            changes: VecDeque::new(),
            answers: Vec::new(),
            #[cfg(feature = "planted-faults")]
            fault: None,
        }
    }

    /// Takes a rule out.
    #[cfg(feature = "planted-faults")]
    pub fn plant(&mut self, fault: Option<GroupFault>) {
        self.fault = fault;
    }

    fn tick(&self) -> Duration {
        self.config.member_timeout / 10
    }

    /// An owner gives up this long after its last renewal was sent: before anybody else may take over.
    fn own_limit(&self) -> Duration {
        self.config.member_timeout - self.tick()
    }

    fn slot(&mut self, partition: &Partition) -> Option<&mut Slot> {
        self.by_partition.get(partition).map(|i| &mut self.slots[*i])
    }

    /// These partitions exist. What is known already is ignored.
    pub fn handle_partitions(&mut self, partitions: impl IntoIterator<Item = Partition>) {
        for partition in partitions {
            if !self.by_partition.contains_key(&partition) {
                self.by_partition.insert(partition.clone(), self.slots.len());
                self.slots.push(Slot::new(Key::partition(&self.config.group, &partition), partition));
                self.next_read = Mono(0);
            }
        }
    }

    /// The keys to read now, if it is time. What this member holds isn't read: its renewals tell.
    pub fn poll_read(&mut self, now: Mono, max: usize) -> Option<(ReadToken, Vec<Key>)> {
        if self.reading || self.leaving || now < self.next_read {
            return None;
        }
        let asks = self.slots.iter().any(|s| s.wanted_by() == Some(self.config.member) && s.own.is_none());
        self.next_read = now.plus(if asks { self.tick() / 5 } else { self.tick() });
        let others = self.slots.iter().enumerate().filter(|(_, s)| s.own.is_none() && s.sent.is_none());
        let (token, keys): (Vec<_>, Vec<_>) =
            others.take(max).map(|(i, s)| ((i, s.version), s.key.clone())).unzip();
        self.reading = !keys.is_empty();
        self.reading.then_some((ReadToken(token), keys))
    }

    /// What a read found.
    pub fn handle_read(&mut self, token: ReadToken, outcomes: Vec<Result<Option<Bytes>>>, now: Mono) {
        self.reading = false;
        for ((i, version), outcome) in token.0.into_iter().zip(outcomes) {
            let slot = &mut self.slots[i];
            match outcome {
                Ok(raw) if slot.version == version => slot.observe(raw, now),
                // Nobody can show a sign of life through a store that doesn't answer.
                Err(_) if slot.owner().is_some() => slot.changed = now,
                _ => {}
            }
        }
    }

    /// Time passes: what could not be renewed is lost, what isn't released in time is let go.
    pub fn handle_time(&mut self, now: Mono) {
        let limit = self.own_limit();
        for i in 0..self.slots.len() {
            let slot = &mut self.slots[i];
            let Some(own) = &mut slot.own else { continue };
            let revoked = matches!(own.phase, Phase::Revoking(by) if now >= by);
            if now >= own.renewed.plus(limit) && !planted!(self, NeverStops) {
                self.lose(i, CommitOutcome::Unknown);
            } else if revoked {
                own.phase = Phase::Releasing;
                let (epoch, slot) = (own.epoch, &self.slots[i]);
                self.changes.push_back(Change::Lost(slot.assignment(epoch)));
            }
        }
    }

    fn lose(&mut self, i: usize, why: CommitOutcome) {
        let slot = &mut self.slots[i];
        if let Some(own) = slot.own.take() {
            self.answers.extend(own.commits.iter().map(|(id, _)| (*id, why)));
            if matches!(own.phase, Phase::Held | Phase::Revoking(_)) {
                self.changes.push_back(Change::Lost(slot.assignment(own.epoch)));
            }
        }
    }

    /// Swaps to make now, at most one a key at a time.
    pub fn poll_swaps(&mut self, now: Mono, max: usize, out: &mut Vec<(SwapToken, Swap)>) {
        self.handle_time(now);
        for i in 0..self.slots.len() {
            if out.len() < max
                && let Some(new) = self.renewal(i, now)
            {
                self.send(i, new, now, out);
            }
        }
        if self.leaving {
            return;
        }
        let me = self.config.member;
        let mut loads = Loads::new(&self.slots, me, |slot| self.holder(slot, now));
        // Everybody begins somewhere else, so that two members rarely want the same one.
        let begin = usize::from(me[15]);
        for n in 0..self.slots.len() {
            let i = (begin + n) % self.slots.len();
            let slot = &self.slots[i];
            if out.len() >= max || !self.is_free(slot, now) {
                continue;
            }
            let promised = slot.wanted_by() == Some(me);
            // Lost while the store was away: it is nobody else's for as long as the store has the name.
            let still_ours = slot.owner() == Some(me);
            // A partition that nobody wants although it is free goes to anybody.
            let left_over = now >= slot.changed.plus(self.config.member_timeout + self.tick() * 3);
            let topic = slot.partition.topic.clone();
            if promised || still_ours || left_over || loads.has_room(&topic, me) {
                if !promised {
                    loads.add(&topic, me);
                }
                let cursor = slot.value.as_ref().and_then(|v| v.cursor);
                let epoch = slot.epoch + 1;
                self.send(i, Value { owner: Some(me), counter: 0, epoch, wanted_by: None, cursor }, now, out);
            }
        }
        if out.len() < max
            && let Some((i, new)) = self.request(&loads, now)
        {
            self.send(i, new, now, out);
        }
    }

    /// What an owner writes next, if there is anything to write.
    fn renewal(&self, i: usize, now: Mono) -> Option<Value> {
        let slot = &self.slots[i];
        let own = slot.own.as_ref().filter(|_| slot.sent.is_none() && now >= slot.retry_at)?;
        let releasing = own.phase == Phase::Releasing;
        let due =
            releasing || own.cursor != own.stored || own.beat.is_none_or(|at| now >= at.plus(self.tick()));
        due.then(|| Value {
            owner: (!releasing).then_some(self.config.member),
            counter: 0,
            epoch: own.epoch,
            wanted_by: slot.wanted_by().filter(|m| *m != self.config.member),
            cursor: own.cursor,
        })
    }

    fn send(&mut self, i: usize, mut new: Value, now: Mono, out: &mut Vec<(SwapToken, Swap)>) {
        let slot = &mut self.slots[i];
        if new.owner == Some(self.config.member) || slot.own.is_some() {
            slot.counter = slot.counter.max(slot.value.as_ref().map_or(0, |v| v.counter)) + 1;
            new.counter = slot.counter;
        }
        slot.version += 1;
        if let Some(own) = &mut slot.own {
            own.beat = Some(now);
        }
        let take = slot.own.is_none() && new.owner == Some(self.config.member);
        let located = slot.own.as_ref().is_some_and(|own| !matches!(own.phase, Phase::Locating(_)));
        let raw = new.encode();
        out.push((SwapToken(i), Swap::new(slot.key.clone(), slot.raw.clone(), Some(raw.clone()), None)));
        slot.sent = Some(Sent { new, raw, at: now, take, located });
        if planted!(self, CommitUnconfirmed)
            && let Some(own) = &mut self.slots[i].own
        {
            self.answers.extend(own.commits.drain(..).map(|(id, _)| (id, CommitOutcome::Done)));
        }
    }

    /// Whether the owner, if there is one, has shown no sign of life for too long.
    fn is_expired(&self, slot: &Slot, now: Mono) -> bool {
        let limit =
            if planted!(self, TakesFromTheLiving) { self.tick() / 2 } else { self.config.member_timeout };
        now >= slot.changed.plus(limit) && !planted!(self, NoExpiry)
    }

    fn is_free(&self, slot: &Slot, now: Mono) -> bool {
        if slot.own.is_some() || slot.sent.is_some() || !slot.known || slot.newer || now < slot.retry_at {
            return false;
        }
        match (slot.owner(), slot.wanted_by()) {
            // Its own from before it was lost, or from a swap whose answer never came.
            (Some(owner), _) if owner == self.config.member => true,
            (Some(_), _) => self.is_expired(slot, now),
            (None, Some(by)) if by != self.config.member => now >= slot.changed.plus(self.tick() * 3),
            (None, _) => true,
        }
    }

    /// Who has it, or is promised it, and is alive.
    fn holder(&self, slot: &Slot, now: Mono) -> Option<MemberId> {
        let me = self.config.member;
        let taking = slot.sent.as_ref().is_some_and(|s| s.new.owner == Some(me));
        if slot.own.is_some() || taking {
            return Some(slot.wanted_by().unwrap_or(me));
        }
        let alive = slot.value.is_some() && !self.is_free(slot, now);
        slot.wanted_by().or(slot.owner()).filter(|m| (*m != me && alive) || slot.wanted_by() == Some(me))
    }

    /// The next partition to ask another member for. Only one at a time.
    fn request(&self, loads: &Loads, now: Mono) -> Option<(usize, Value)> {
        let me = self.config.member;
        let asks = |s: &Slot| {
            s.own.is_none()
                && (s.wanted_by() == Some(me) || s.sent.as_ref().is_some_and(|s| s.new.wanted_by == Some(me)))
        };
        if planted!(self, NoBalance) || self.slots.iter().any(asks) || self.slots.iter().any(|s| !s.known) {
            return None;
        }
        let (topic, victim) = loads.victim(me)?;
        let i = self.slots.iter().position(|s| {
            let open = s.sent.is_none() && s.own.is_none() && now >= s.retry_at && !s.newer;
            open && s.partition.topic == topic && s.owner() == Some(victim) && s.wanted_by().is_none()
        })?;
        let mut new = self.slots[i].value.clone()?;
        new.wanted_by = Some(me);
        Some((i, new))
    }

    /// What became of a swap.
    pub fn handle_swapped(&mut self, token: SwapToken, outcome: Result<Swapped>, now: Mono) {
        let i = token.0;
        let (me, every) = (self.config.member, self.config.checkpoint_every);
        let overwrite = planted!(self, ConflictOverwritten);
        let release_by = now.plus(self.config.release_limit);
        let slot = &mut self.slots[i];
        let Some(sent) = slot.sent.take() else { return };
        slot.version += 1;
        match outcome {
            Err(_) => {
                slot.retry_at = now.plus(RETRY);
                slot.write_at_once();
            }
            Ok(Swapped::Done) => {
                slot.observe(Some(sent.raw), now);
                let won = sent.new.owner == Some(me);
                match &mut slot.own {
                    Some(own) if own.epoch == sent.new.epoch && won => {
                        own.renewed = sent.at;
                        if sent.located {
                            own.stored = sent.new.cursor;
                            own.answer_stored(&mut self.answers);
                        }
                    }
                    Some(own) if own.epoch == sent.new.epoch => {
                        own.stored = sent.new.cursor;
                        own.answer_stored(&mut self.answers);
                        self.lose(i, CommitOutcome::NotOwner);
                    }
                    Some(_) => {}
                    None if sent.take => {
                        let checkpoint_at = sent.at.plus(every);
                        let mut own = Own::new(sent.new.epoch, sent.at, sent.new.cursor, checkpoint_at);
                        if self.leaving {
                            own.phase = Phase::Releasing;
                        }
                        slot.own = Some(own);
                    }
                    // A renewal that is answered after its assignment was lost wins nothing.
                    None => {}
                }
            }
            Ok(Swapped::Conflict(current)) => {
                slot.observe(current, now);
                let Some(own) = &mut slot.own else { return };
                let ours = match &slot.value {
                    // The store forgot, or went back in time, or holds a swap whose answer was lost.
                    None => !slot.newer,
                    Some(v) => v.owner == Some(me) || v.epoch < own.epoch || overwrite,
                };
                let wanted = slot.value.as_ref().and_then(|v| v.wanted_by).is_some_and(|m| m != me);
                if !ours {
                    self.lose(i, CommitOutcome::NotOwner);
                } else if wanted && own.phase == Phase::Held {
                    own.phase = Phase::Revoking(release_by);
                    let change =
                        Change::Revoking(Assignment { partition: slot.partition.clone(), epoch: own.epoch });
                    self.changes.push_back(change);
                } else if wanted && matches!(own.phase, Phase::Locating(_)) {
                    own.phase = Phase::Releasing;
                }
                self.slots[i].write_at_once();
            }
        }
    }

    /// Partitions whose start has to be found: the cursor that the store holds, if any.
    pub fn poll_locate(&mut self, now: Mono) -> Option<(Assignment, Option<Cursor>)> {
        let ready = |own: &Own| matches!(own.phase, Phase::Locating(Some(at)) if now >= at);
        let slot = self.slots.iter_mut().find(|s| s.own.as_ref().is_some_and(ready))?;
        let own = slot.own.as_mut()?;
        own.phase = Phase::Locating(None);
        let (epoch, cursor) = (own.epoch, own.cursor);
        Some((slot.assignment(epoch), cursor))
    }

    /// Where reading starts; `None` if it could not be found out, which is tried again.
    pub fn handle_located(&mut self, assignment: &Assignment, cursor: Option<Cursor>, now: Mono) {
        let again = now.plus(RETRY);
        let Some(own) = self.slot(&assignment.partition).and_then(|s| s.held(assignment)) else { return };
        if own.phase != Phase::Locating(None) {
            return;
        }
        let Some(cursor) = cursor else {
            own.phase = Phase::Locating(Some(again));
            return;
        };
        own.phase = Phase::Held;
        // Without a mark it would be believed in a topic made anew.
        own.cursor = Some(cursor).filter(|c| c.mark.is_some());
        // A cursor of an earlier topic confirms no commit of this one.
        own.stored = own.stored.filter(|s| own.cursor == Some(*s));
        self.changes.push_back(Change::Assigned(assignment.clone(), cursor.offset));
    }

    /// Everything below the cursor is finished. Answered by [`Group::poll_answers`] under `id`.
    pub fn handle_commit(&mut self, id: u64, assignment: &Assignment, cursor: Cursor, now: Mono) {
        self.handle_time(now);
        let back = planted!(self, CursorGoesBack);
        let Some(i) = self.by_partition.get(&assignment.partition).copied() else {
            return self.answers.push((id, CommitOutcome::NotOwner));
        };
        let held =
            self.slots[i].held(assignment).filter(|o| matches!(o.phase, Phase::Held | Phase::Revoking(_)));
        let Some(own) = held else { return self.answers.push((id, CommitOutcome::NotOwner)) };
        if back || own.cursor.is_none_or(|c| cursor.offset > c.offset) {
            own.cursor = Some(cursor);
        }
        own.commits.push((id, cursor.offset));
        own.answer_stored(&mut self.answers);
    }

    /// The member lets go of what was being revoked.
    pub fn handle_release(&mut self, assignment: &Assignment) {
        if let Some(own) = self.slot(&assignment.partition).and_then(|s| s.held(assignment))
            && matches!(own.phase, Phase::Revoking(_))
        {
            own.phase = Phase::Releasing;
        }
    }

    /// Reading can't go on where it was: the topic was made anew, or its beginning deleted. The partition is lost and
    /// won again, with a fresh look at where to start.
    pub fn handle_broken(&mut self, assignment: &Assignment) {
        if let Some(i) = self.by_partition.get(&assignment.partition).copied()
            && self.slots[i].held(assignment).is_some()
        {
            self.lose(i, CommitOutcome::Unknown);
        }
    }

    /// Takes nothing more, and lets go of everything.
    pub fn handle_leave(&mut self) {
        self.leaving = true;
        self.slots.iter_mut().filter_map(|s| s.own.as_mut()).for_each(|own| own.phase = Phase::Releasing);
    }

    /// Whether nothing is left to let go of.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.leaving && self.slots.iter().all(|s| s.own.is_none() && s.sent.is_none())
    }

    /// What the member is told next.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// Commits that have come to their end.
    pub fn poll_answers(&mut self) -> Vec<(u64, CommitOutcome)> {
        std::mem::take(&mut self.answers)
    }

    /// A cursor to be put into the log now.
    pub fn poll_checkpoint(&mut self, now: Mono) -> Option<(Assignment, Cursor)> {
        let due = |own: &Own| {
            own.stored.is_some()
                && own.stored != own.checkpointed
                && !own.checkpointing
                && now >= own.checkpoint_at
        };
        let slot = self.slots.iter_mut().find(|s| s.own.as_ref().is_some_and(due))?;
        let own = slot.own.as_mut()?;
        own.checkpointing = true;
        let (epoch, cursor) = (own.epoch, own.stored?);
        Some((slot.assignment(epoch), cursor))
    }

    /// Whether the log has it.
    pub fn handle_checkpointed(&mut self, assignment: &Assignment, cursor: Cursor, ok: bool, now: Mono) {
        let next = now.plus(self.config.checkpoint_every);
        if let Some(own) = self.slot(&assignment.partition).and_then(|s| s.held(assignment)) {
            own.checkpointing = false;
            own.checkpoint_at = next;
            if ok {
                own.checkpointed = Some(cursor);
            }
        }
    }

    /// When to come back, if nothing happens before.
    #[must_use]
    pub fn next_time(&self, now: Mono) -> Option<Mono> {
        let (tick, timeout) = (self.tick(), self.config.member_timeout);
        let read = (!self.reading && !self.leaving).then_some(self.next_read);
        let slots = self.slots.iter().filter_map(|slot| match &slot.own {
            Some(own) => {
                let written = match slot.sent {
                    Some(_) => own.renewed.plus(self.own_limit()),
                    None if own.cursor != own.stored || own.phase == Phase::Releasing => slot.retry_at,
                    None => slot.retry_at.max(own.beat.map_or(Mono(0), |at| at.plus(tick))),
                };
                let phase = match own.phase {
                    Phase::Revoking(by) => by,
                    Phase::Locating(Some(at)) => at,
                    _ => written,
                };
                let lost = own.renewed.plus(self.own_limit());
                let checkpoint =
                    (own.stored != own.checkpointed && !own.checkpointing).then_some(own.checkpoint_at);
                Some(written.min(phase).min(lost).min(checkpoint.unwrap_or(lost)))
            }
            None if slot.owner().is_some_and(|m| m != self.config.member) && slot.sent.is_none() => {
                Some(slot.changed.plus(timeout).max(slot.retry_at)).filter(|at| *at > now)
            }
            None => None,
        });
        read.into_iter().chain(slots).min()
    }
}
