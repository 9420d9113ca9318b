//! A group of members ([`kafkaq_core::group::Group`]) over a hostile store, in virtual time, from one seed: calls that
//! take effect late or without an answer, a store that is away, wiped or rolled back, members that stop, wake, crash,
//! join and leave, a topic that is made anew. Then a calm phase, in which everything has to come to rest.

use crate::rng::Rng;
use bytes::Bytes;
use kafkaq_core::group::{
    Change, CommitOutcome, Cursor, Group, GroupConfig, GroupFault, Mark, ReadToken, SwapToken, Value, start,
};
use kafkaq_core::machine::Mono;
use kafkaq_core::{
    Assignment, Error, ErrorKind, Headers, Key, Offsets, Partition, Record, Result, Swap, Swapped,
};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

const MS: u64 = 1_000_000;
const STEP: u64 = 50 * MS;
const TIMEOUT: u64 = 4_000 * MS;
const HOSTILE: u64 = 60_000 * MS;
const CALM: u64 = 60_000 * MS;

/// Runs a seed and answers the first rule that was broken.
#[must_use]
pub fn run_group(seed: u64, fault: Option<GroupFault>) -> Option<String> {
    let mut world = World::new(seed, fault);
    while world.now < HOSTILE + CALM && world.violation.is_none() {
        world.step();
    }
    if world.violation.is_none() {
        world.check_rest();
    }
    world.violation
}

/// Of the topic that the cursor was made in: the log's time tells it.
fn incarnation(cursor: Cursor) -> u64 {
    cursor.mark.map_or(0, |m| m.timestamp_ms as u64)
}

/// A member's hold of a partition under an epoch, in one incarnation of the topic.
type Hold = ([u8; 16], i32, u64, u64);

struct Proc {
    id: [u8; 16],
    group: Group,
    paused_until: u64,
    /// What the member believes to hold: the epoch, and how far it has read.
    held: BTreeMap<i32, (u64, i64)>,
    commits: HashMap<u64, (i32, u64, Cursor)>,
    last_commit: u64,
    leaving: bool,
}

enum Call {
    Effect(SwapToken, Swap, Answer),
    Swapped(SwapToken, Result<Swapped>),
    Read(ReadToken, Vec<Result<Option<Bytes>>>),
    Checkpoint(Assignment, Cursor),
}

#[derive(Clone, Copy)]
enum Answer {
    Given,
    Lost,
}

struct World {
    rng: Rng,
    now: u64,
    fault: Option<GroupFault>,
    store: BTreeMap<Key, Bytes>,
    snapshot: BTreeMap<Key, Bytes>,
    /// How often the store has forgotten something.
    amnesia: u64,
    away_until: u64,
    partitions: i32,
    /// Of each partition: its incarnation and its length.
    topics: BTreeMap<i32, (u64, i64)>,
    /// The highest commit that was asked for in this incarnation of the topic.
    asked: BTreeMap<i32, i64>,
    /// The log's last checkpoint, and the incarnation that it was taken of.
    checkpoints: BTreeMap<i32, (u64, Cursor)>,
    /// When a swap of a member last took effect on a partition.
    renewed: HashMap<([u8; 16], i32), u64>,
    /// The highest that a member wrote in a hold.
    cursors: HashMap<Hold, i64>,
    /// What it wrote last, since the store last forgot something.
    written: HashMap<(u64, Hold), i64>,
    committers: HashMap<(u64, i32, u64), [u8; 16]>,
    procs: Vec<Proc>,
    calls: Vec<(u64, [u8; 16], Call)>,
    born: u8,
    violation: Option<String>,
}

impl World {
    fn new(seed: u64, fault: Option<GroupFault>) -> Self {
        let mut rng = Rng::new(seed);
        let partitions = 1 + rng.below(7) as i32;
        let mut world = World {
            now: 0,
            fault,
            store: BTreeMap::new(),
            snapshot: BTreeMap::new(),
            amnesia: 0,
            away_until: 0,
            partitions,
            topics: (0..partitions).map(|p| (p, (0, 0))).collect(),
            asked: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            renewed: HashMap::new(),
            cursors: HashMap::new(),
            written: HashMap::new(),
            committers: HashMap::new(),
            procs: Vec::new(),
            calls: Vec::new(),
            born: 0,
            violation: None,
            rng,
        };
        world.join();
        world.join();
        world
    }

    fn calm(&self) -> bool {
        self.now >= HOSTILE
    }

    fn broken(&mut self, rule: impl Into<String>) {
        let at = self.now / MS;
        self.violation.get_or_insert(format!("at {at} ms: {}", rule.into()));
    }

    fn join(&mut self) {
        self.born += 1;
        let id = [self.born; 16];
        let mut group = Group::new(GroupConfig {
            group: "g".into(),
            member: id,
            member_timeout: Duration::from_nanos(TIMEOUT),
            release_limit: Duration::from_millis(1_000),
            checkpoint_every: Duration::from_millis(1_000),
        });
        group.plant(self.fault);
        group.handle_partitions((0..self.partitions).map(|p| Partition::new("t", p)));
        self.procs.push(Proc {
            id,
            group,
            paused_until: 0,
            held: BTreeMap::new(),
            commits: HashMap::new(),
            last_commit: 0,
            leaving: false,
        });
    }

    fn step(&mut self) {
        self.now += STEP;
        if !self.calm() {
            self.trouble();
        }
        if self.now < HOSTILE + CALM / 2 && self.rng.chance(300) {
            let p = self.rng.below(self.partitions as u64) as i32;
            self.topics.entry(p).or_default().1 += 1 + self.rng.below(5) as i64;
        }
        let mut due = Vec::new();
        let now = self.now;
        let mut n = 0;
        while n < self.calls.len() {
            if self.calls[n].0 <= now { due.push(self.calls.swap_remove(n)) } else { n += 1 }
        }
        for (_, id, call) in due {
            self.call(id, call);
        }
        for n in 0..self.procs.len() {
            if self.procs[n].paused_until <= now || self.calm() {
                self.run(n);
            }
        }
        self.procs.retain(|p| !p.group.has_left());
    }

    fn trouble(&mut self) {
        let long = self.rng.between(1, 2 * TIMEOUT / MS) * MS;
        if self.rng.chance(4) {
            self.away_until = self.now + long;
        }
        if self.rng.chance(2) {
            self.forget(BTreeMap::new());
        }
        if self.rng.chance(2)
            && let Some(key) = self.store.keys().nth(self.rng.index(self.store.len().max(1))).cloned()
        {
            let mut rest = self.store.clone();
            rest.remove(&key);
            self.forget(rest);
        }
        if self.rng.chance(3) {
            self.snapshot = self.store.clone();
        }
        if self.rng.chance(1) {
            self.forget(self.snapshot.clone());
        }
        if !self.procs.is_empty() {
            let n = self.rng.index(self.procs.len());
            if self.rng.chance(8) {
                self.procs[n].paused_until = self.now + long;
            } else if self.rng.chance(4) {
                self.procs.swap_remove(n);
            } else if self.rng.chance(4) {
                self.procs[n].leaving = true;
                self.procs[n].group.handle_leave();
                self.procs[n].held.clear();
            }
        }
        if self.procs.len() < 4 && self.rng.chance(15) && self.born < 200 {
            self.join();
        }
        if self.rng.chance(2) {
            let p = self.rng.below(self.partitions as u64) as i32;
            let topic = self.topics.entry(p).or_default();
            *topic = (topic.0 + 1, topic.1 / 2 + 3);
            self.asked.remove(&p);
            for proc in &mut self.procs {
                if let Some((epoch, _)) = proc.held.remove(&p) {
                    proc.group.handle_broken(&Assignment { partition: Partition::new("t", p), epoch });
                }
            }
        }
    }

    fn forget(&mut self, left: BTreeMap<Key, Bytes>) {
        self.store = left;
        self.amnesia += 1;
    }

    fn later(&mut self, most: u64, id: [u8; 16], call: Call) {
        let at = self.now + self.rng.below(most) * MS;
        self.calls.push((at, id, call));
    }

    fn call(&mut self, id: [u8; 16], call: Call) {
        let now = Mono(self.now);
        if let Call::Effect(token, swap, answer) = call {
            let outcome = self.effect(id, &swap);
            if matches!(answer, Answer::Given) {
                self.later(100, id, Call::Swapped(token, Ok(outcome)));
            }
            return;
        }
        let Some(n) = self.procs.iter().position(|p| p.id == id) else { return };
        if self.procs[n].paused_until > self.now && !self.calm() {
            let at = self.procs[n].paused_until;
            return self.calls.push((at, id, call));
        }
        let group = &mut self.procs[n].group;
        match call {
            Call::Swapped(token, outcome) => group.handle_swapped(token, outcome, now),
            Call::Read(token, found) => group.handle_read(token, found, now),
            Call::Checkpoint(assignment, cursor) => {
                let p = assignment.partition.index;
                let incarnation = self.topics[&p].0;
                let same = cursor.mark.is_some_and(|m| m.timestamp_ms == incarnation as i64);
                self.checkpoints.insert(p, (if same { incarnation } else { u64::MAX }, cursor));
                group.handle_checkpointed(&assignment, cursor, true, now);
            }
            Call::Effect(..) => {}
        }
    }

    fn number(key: &Key) -> i32 {
        key.as_str().rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or_default()
    }

    /// The swap takes place now.
    fn effect(&mut self, id: [u8; 16], swap: &Swap) -> Swapped {
        let current = self.store.get(&swap.key).cloned();
        if current != swap.expect {
            return Swapped::Conflict(current);
        }
        let p = Self::number(&swap.key);
        let old = current.and_then(|c| Value::decode(&c).ok());
        let Some(raw) = swap.new.clone() else { return Swapped::Done };
        if let Ok(new) = Value::decode(&raw) {
            self.check_swap(id, p, old.as_ref(), &new);
        }
        self.store.insert(swap.key.clone(), raw);
        Swapped::Done
    }

    fn check_swap(&mut self, id: [u8; 16], p: i32, old: Option<&Value>, new: &Value) {
        if let Some(was) = old.and_then(|v| v.owner)
            && new.owner.is_some_and(|m| m != was)
        {
            let last = self.renewed.get(&(was, p)).copied().unwrap_or_default();
            let went_back = self.amnesia > 0 && old.is_some_and(|v| v.epoch < new.epoch);
            if self.now < last + TIMEOUT && !went_back {
                self.broken(format!("partition {p} was taken from a member that is alive"));
            }
        }
        // Who asks for a partition leaves the rest of the value as it is.
        if new.owner.is_some_and(|m| m != id) {
            return;
        }
        self.renewed.insert((id, p), self.now);
        if let Some(cursor) = new.cursor {
            let hold = (id, p, new.epoch, incarnation(cursor));
            let highest = self.cursors.entry(hold).or_insert(cursor.offset);
            *highest = (*highest).max(cursor.offset);
            // A store that went back in time lets a late swap of then succeed; the owner soon writes over it.
            let before = self.written.insert((self.amnesia, hold), cursor.offset);
            if before.is_some_and(|b| b > cursor.offset) {
                self.broken(format!("the commit of partition {p} went back within one assignment"));
            }
            if Some(cursor) == old.and_then(|v| v.cursor) {
                return;
            }
            let by = *self.committers.entry((self.amnesia, p, new.epoch)).or_insert(id);
            if by != id {
                self.broken(format!("two members committed partition {p} under epoch {}", new.epoch));
            }
        }
    }

    fn mark(&self, p: i32, offset: i64) -> Mark {
        Mark::of(&self.record(p, offset))
    }

    fn record(&self, p: i32, offset: i64) -> Record {
        Record::new(offset, self.topics[&p].0 as i64, None, Some("x".into()), Headers::new())
    }

    fn run(&mut self, n: usize) {
        let (now, id) = (Mono(self.now), self.procs[n].id);
        self.procs[n].group.handle_time(now);
        self.told(n);
        self.check_held(n);
        let away = self.now < self.away_until && !self.calm();
        if let Some((token, keys)) = self.procs[n].group.poll_read(now, 100) {
            let failed = || Err(Error::not_applied(ErrorKind::Unavailable, "get"));
            let found =
                keys.iter().map(|k| if away { failed() } else { Ok(self.store.get(k).cloned()) }).collect();
            self.later(100, id, Call::Read(token, found));
        }
        let mut swaps = Vec::new();
        self.procs[n].group.poll_swaps(now, 100, &mut swaps);
        for (token, swap) in swaps {
            self.swap(id, token, swap, away);
        }
        while let Some((assignment, stored)) = self.procs[n].group.poll_locate(now) {
            let found = self.locate(assignment.partition.index, stored);
            self.procs[n].group.handle_located(&assignment, Some(found), now);
        }
        while let Some((assignment, cursor)) = self.procs[n].group.poll_checkpoint(now) {
            self.later(100, id, Call::Checkpoint(assignment, cursor));
        }
        self.told(n);
        self.read_and_commit(n);
        for (commit, outcome) in self.procs[n].group.poll_answers() {
            let asked = self.procs[n].commits.remove(&commit);
            let Some((p, epoch, to)) = asked.filter(|_| outcome == CommitOutcome::Done) else { continue };
            let had = self.cursors.get(&(id, p, epoch, incarnation(to)));
            if had.is_none_or(|at| *at < to.offset) {
                self.broken(format!("a commit of partition {p} was confirmed that the store never had"));
            }
        }
    }

    fn swap(&mut self, id: [u8; 16], token: SwapToken, swap: Swap, away: bool) {
        let unknown = || Err(Error::unknown(ErrorKind::Timeout, "swap"));
        let pick = if self.calm() { 0 } else { self.rng.weighted(&[900, 30, 30, 20, 20]) };
        match if away { 1 + 2 * self.rng.index(2) } else { pick } {
            0 => self.later(100, id, Call::Effect(token, swap, Answer::Given)),
            1 => {
                let refused = Err(Error::not_applied(ErrorKind::Unavailable, "swap"));
                self.later(100, id, Call::Swapped(token, refused));
            }
            2 => {
                self.effect(id, &swap);
                self.later(100, id, Call::Swapped(token, unknown()));
            }
            3 => self.later(100, id, Call::Swapped(token, unknown())),
            _ => {
                self.later(3_000, id, Call::Effect(token, swap, Answer::Lost));
                self.later(100, id, Call::Swapped(token, unknown()));
            }
        }
    }

    fn locate(&mut self, p: i32, stored: Option<Cursor>) -> Cursor {
        let (incarnation, next) = self.topics[&p];
        let kept = self.checkpoints.get(&p).copied();
        let ignored = self.fault == Some(GroupFault::CheckpointIgnored);
        let mut cursor = stored.or(kept.filter(|_| !ignored).map(|k| k.1));
        if let Some(c) = &mut cursor
            && self.fault == Some(GroupFault::MarkIgnored)
        {
            c.mark = None;
        }
        let at_mark = cursor.and_then(|c| c.mark).filter(|m| (0..next).contains(&m.offset));
        let at_mark = at_mark.map(|m| self.record(p, m.offset));
        let found = start(cursor, Offsets { first: 0, next }, at_mark.as_ref());
        if found.offset > self.asked.get(&p).copied().unwrap_or_default() {
            self.broken(format!("partition {p} is read from {}, which nobody committed", found.offset));
        }
        if stored.is_none() && kept.is_some_and(|(of, c)| of == incarnation && found.offset < c.offset) {
            self.broken(format!("partition {p} starts anew although the log has a checkpoint"));
        }
        found
    }

    fn told(&mut self, n: usize) {
        let proc = &mut self.procs[n];
        while let Some(change) = proc.group.poll_change() {
            match change {
                Change::Assigned(a, from) => {
                    proc.held.insert(a.partition.index, (a.epoch, from));
                }
                Change::Revoking(a) => {
                    proc.held.remove(&a.partition.index);
                    proc.group.handle_release(&a);
                }
                Change::Lost(a) => {
                    proc.held.remove(&a.partition.index);
                }
            }
        }
    }

    fn check_held(&mut self, n: usize) {
        let id = self.procs[n].id;
        let late = |p: &&i32| self.now >= self.renewed.get(&(id, **p)).copied().unwrap_or_default() + TIMEOUT;
        if let Some(p) = self.procs[n].held.keys().find(late).copied() {
            self.broken(format!("a member goes on with partition {p} although it could not renew"));
        }
    }

    fn read_and_commit(&mut self, n: usize) {
        let held = self.procs[n].held.clone();
        for (p, (epoch, at)) in held {
            let end = self.topics[&p].1;
            let behind = self.calm() || self.rng.chance(300);
            if at >= end || !behind || self.procs[n].leaving {
                continue;
            }
            let to = (at + 1 + self.rng.below(3) as i64).min(end);
            let cursor = Cursor { offset: to, mark: Some(self.mark(p, to - 1)) };
            let asked = self.asked.entry(p).or_default();
            *asked = (*asked).max(to);
            let now = Mono(self.now);
            let again = self.rng.chance(50);
            let proc = &mut self.procs[n];
            proc.held.insert(p, (epoch, to));
            proc.last_commit += 1;
            let id = proc.last_commit;
            proc.commits.insert(id, (p, epoch, cursor));
            let assignment = Assignment { partition: Partition::new("t", p), epoch };
            proc.group.handle_commit(id, &assignment, cursor, now);
            if again && at > 0 {
                // A caller that is late with an earlier commit.
                let earlier = Cursor { offset: at, mark: Some(self.mark(p, at - 1)) };
                self.procs[n].group.handle_commit(u64::MAX, &assignment, earlier, now);
            }
        }
    }

    fn check_rest(&mut self) {
        let mut loads = Vec::new();
        let mut owners: BTreeMap<i32, usize> = BTreeMap::new();
        for proc in &self.procs {
            loads.push(proc.held.len());
            proc.held.keys().for_each(|p| *owners.entry(*p).or_default() += 1);
        }
        if self.procs.is_empty() {
            return;
        }
        let one_each = (0..self.partitions).all(|p| owners.get(&p) == Some(&1));
        if !one_each {
            return self.broken(format!("not every partition has one owner at rest: {owners:?}"));
        }
        loads.sort_unstable();
        if loads[loads.len() - 1] - loads[0] > 1 {
            self.broken(format!("the members are not in balance at rest: {loads:?}"));
        }
        for p in 0..self.partitions {
            let end = self.topics[&p].1;
            let stored = self.store.get(&Key::partition("g", &Partition::new("t", p)));
            let at =
                stored.and_then(|v| Value::decode(v).ok()).and_then(|v| v.cursor).map_or(0, |c| c.offset);
            if at != end {
                self.broken(format!("partition {p} was committed to {at} of {end} at rest"));
            }
        }
    }
}
