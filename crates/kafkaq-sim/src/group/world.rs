//! The store, the topics and the calls in flight.

use super::{GroupStats, check::Check, member::Proc, topic::Topic};
use crate::rng::Rng;
use crate::subject::Played;
use crate::trace::{MS, SEC, Trace, Us, tr};
use bytes::Bytes;
use kafkaq_core::group::{GroupFault, ReadToken, SwapToken, Value};
use kafkaq_core::machine::Mono;
use kafkaq_core::{Assignment, Cursor, Error, ErrorKind, Key, Mark, Partition, Result, Swap, Swapped};
use std::collections::BTreeMap;

const STEP: Us = 50 * MS;
pub(super) const TIMEOUT: Us = 4 * SEC;
pub(super) const RELEASE_LIMIT: Us = SEC;
pub(super) const HOSTILE: Us = 60 * SEC;
pub(super) const END: Us = HOSTILE + 70 * SEC;
/// From then on nothing new happens: the group has to come to rest.
pub(super) const REST: Us = HOSTILE + 55 * SEC;
/// The longest that one way to the store takes.
pub(super) const WAY: u64 = 100;

pub(super) type Id = [u8; 16];

/// A member in the trace.
pub(super) struct M(pub(super) Id);

impl std::fmt::Display for M {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "m{}", self.0[0])
    }
}

pub(super) enum Call {
    /// A swap that takes place after its member sent it; `bool`: whether the answer comes.
    Effect(SwapToken, Swap, bool),
    Swapped(SwapToken, Result<Swapped>),
    Read(ReadToken, Vec<Result<Option<Bytes>>>),
    Checkpoint(Assignment, Cursor),
}

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) now: Us,
    pub(super) fault: Option<GroupFault>,
    pub(super) store: BTreeMap<Key, Bytes>,
    pub(super) snapshot: BTreeMap<Key, Bytes>,
    pub(super) away_until: Us,
    /// Until then no member can find where to start.
    pub(super) log_away_until: Us,
    pub(super) topics: BTreeMap<i32, Topic>,
    /// Topics that are deleted, and when they come back.
    pub(super) back_at: BTreeMap<i32, Us>,
    /// The log's last checkpoint of each partition.
    pub(super) checkpoints: BTreeMap<i32, Cursor>,
    pub(super) procs: Vec<Proc>,
    pub(super) calls: Vec<(Us, Id, Call)>,
    pub(super) born: u8,
    pub(super) check: Check,
    pub(super) stats: GroupStats,
    pub(super) trace: Trace,
}

impl World {
    pub(super) fn new(seed: u64, fault: Option<GroupFault>, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let partitions = 1 + rng.below(7) as i32;
        let mut world = World {
            now: 0,
            fault,
            store: BTreeMap::new(),
            snapshot: BTreeMap::new(),
            away_until: 0,
            log_away_until: 0,
            back_at: BTreeMap::new(),
            topics: (0..partitions).map(|p| (p, Topic::default())).collect(),
            checkpoints: BTreeMap::new(),
            procs: Vec::new(),
            calls: Vec::new(),
            born: 0,
            check: Check::default(),
            stats: GroupStats::default(),
            trace: Trace { on: traced, ..Trace::default() },
            rng,
        };
        world.join();
        world.join();
        world
    }

    pub(super) fn run(mut self) -> (Played<GroupStats>, Vec<String>) {
        while self.now < END && self.check.violation.is_none() {
            self.step();
        }
        if self.check.violation.is_none() {
            self.check_rest();
        }
        if let Some(broken) = &self.check.violation {
            tr!(self, "check", "{broken}");
        }
        (Played { violation: self.check.violation, stats: self.stats }, self.trace.lines)
    }

    pub(super) fn mono(&self) -> Mono {
        Mono(self.now * 1_000)
    }

    pub(super) fn calm(&self) -> bool {
        self.now >= HOSTILE
    }

    fn step(&mut self) {
        self.now += STEP;
        if self.calm() {
            self.drill();
        } else {
            self.trouble();
        }
        if self.now < REST && self.rng.chance(300) {
            let p = self.rng.below(self.topics.len() as u64) as i32;
            let count = 1 + self.rng.below(5);
            if let Some(topic) = self.topics.get_mut(&p).filter(|topic| !topic.missing) {
                topic.grow(count);
            }
        }
        let mut due = Vec::new();
        let mut n = 0;
        while n < self.calls.len() {
            if self.calls[n].0 <= self.now { due.push(self.calls.swap_remove(n)) } else { n += 1 }
        }
        for (_, id, call) in due {
            self.call(id, call);
        }
        for n in 0..self.procs.len() {
            if !self.procs[n].is_paused(self.now) {
                self.run_member(n);
            }
        }
        self.check_left();
        self.procs.retain(|p| !p.group.has_left());
        self.check_shared();
    }

    pub(super) fn forget(&mut self, left: BTreeMap<Key, Bytes>) {
        self.store = left;
        self.check.forgot(self.now);
    }

    pub(super) fn later(&mut self, most_ms: u64, id: Id, call: Call) {
        let at = self.now + self.rng.below(most_ms) * MS;
        self.calls.push((at, id, call));
    }

    fn call(&mut self, id: Id, call: Call) {
        let now = self.mono();
        if let Call::Effect(token, swap, answered) = call {
            let outcome = self.effect(id, &swap);
            if answered {
                self.later(WAY, id, Call::Swapped(token, Ok(outcome)));
            }
            return;
        }
        let Some(n) = self.procs.iter().position(|p| p.id == id) else { return };
        if self.procs[n].is_paused(self.now) {
            let at = self.procs[n].paused_until;
            return self.calls.push((at, id, call));
        }
        match call {
            Call::Swapped(token, outcome) => {
                self.stats.conflicts += u64::from(matches!(outcome, Ok(Swapped::Conflict(_))));
                self.procs[n].group.handle_swapped(token, outcome, now);
            }
            Call::Read(token, found) => self.procs[n].group.handle_read(token, found, now),
            Call::Checkpoint(assignment, cursor) => {
                let ok = self.calm() || !self.rng.chance(50);
                tr!(self, M(id), "checkpoint of {}: {}, {ok}", assignment.partition, self::cursor(cursor));
                if ok {
                    self.stats.checkpoints += 1;
                    self.checkpoints.insert(assignment.partition.index, cursor);
                } else {
                    self.stats.checkpoints_failed += 1;
                }
                self.procs[n].group.handle_checkpointed(&assignment, cursor, ok, now);
            }
            Call::Effect(..) => {}
        }
    }

    fn number(key: &Key) -> i32 {
        key.as_str().rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or_default()
    }

    /// The swap takes place now.
    fn effect(&mut self, id: Id, swap: &Swap) -> Swapped {
        let current = self.store.get(&swap.key).cloned();
        if current != swap.expect {
            return Swapped::Conflict(current);
        }
        let Some(raw) = swap.new.clone() else { return Swapped::Done };
        let p = Self::number(&swap.key);
        let old = current.and_then(|c| Value::decode(&c).ok());
        if let Ok(new) = Value::decode(&raw) {
            tr!(self, M(id), "partition {p} := {}", shown(&new));
            self.check_swap(id, p, old.as_ref(), &new);
        }
        self.store.insert(swap.key.clone(), raw);
        Swapped::Done
    }

    /// A member sends a swap, whose fate is random.
    pub(super) fn send(&mut self, id: Id, token: SwapToken, swap: Swap, away: bool) {
        if let Some(Ok(new)) = swap.new.as_deref().map(Value::decode) {
            self.check_sent(id, Self::number(&swap.key), &new);
        }
        let unknown = || Err(Error::unknown(ErrorKind::Timeout, "swap"));
        let pick = if self.calm() { 0 } else { self.rng.weighted(&[900, 30, 30, 20, 20]) };
        match if away { 1 + 2 * self.rng.index(2) } else { pick } {
            0 => self.later(WAY, id, Call::Effect(token, swap, true)),
            1 => {
                let refused = Err(Error::not_applied(ErrorKind::Unavailable, "swap"));
                self.later(WAY, id, Call::Swapped(token, refused));
            }
            2 => {
                self.stats.swap_unknown_applied += 1;
                self.effect(id, &swap);
                self.later(WAY, id, Call::Swapped(token, unknown()));
            }
            3 => {
                self.stats.swap_unknown_lost += 1;
                self.later(WAY, id, Call::Swapped(token, unknown()));
            }
            _ => {
                self.stats.swap_late += 1;
                self.later(3_000, id, Call::Effect(token, swap, false));
                self.later(WAY, id, Call::Swapped(token, unknown()));
            }
        }
    }

    pub(super) fn stored(&self, p: i32) -> Option<Value> {
        let raw = self.store.get(&Key::partition("g", &Partition::new("t", p)))?;
        Value::decode(raw).ok()
    }
}

/// Describes a value for the trace.
pub(super) fn shown(value: &Value) -> String {
    let name = |m: Option<Id>| m.map_or("nobody".into(), |m| M(m).to_string());
    let wanted = value.wanted_by.map_or(String::new(), |m| format!(", wanted by {}", M(m)));
    let cursor = value.cursor.map_or("none".into(), cursor);
    format!("{} #{} under epoch {}, cursor {cursor}{wanted}", name(value.owner), value.counter, value.epoch)
}

pub(super) fn cursor(cursor: Cursor) -> String {
    let of = |m: Mark| format!("{} of {}", m.offset, m.timestamp_ms);
    let mark = cursor.mark.map_or(String::new(), |m| format!(" after {}", of(m)));
    let anchor = cursor.anchor.map_or(String::new(), |m| format!(", anchor {}", of(m)));
    format!("{}{mark}{anchor}", cursor.offset)
}
