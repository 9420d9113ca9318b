//! Disturbances: at random in the hostile phase, scheduled in the calm one.

use super::member::{LOOK_EVERY, Proc, gap};
use super::topic::Topic;
use super::world::{HOSTILE, Id, M, RELEASE_LIMIT, TIMEOUT, World};
use crate::trace::{MS, SEC, Us, tr};
use kafkaq_core::Partition;
use kafkaq_core::group::{Group, GroupConfig};
use std::collections::BTreeMap;
use std::time::Duration;

/// In the calm phase, one of each, far enough apart.
const RECREATE: Us = HOSTILE + 5 * SEC;
const CRASH: Us = HOSTILE + 15 * SEC;
const LEAVE: Us = HOSTILE + 27 * SEC;
const JOIN: Us = HOSTILE + 32 * SEC;
const GROW: Us = HOSTILE + 42 * SEC;
/// After a leave, no member waits for a timeout.
const SOON: Us = TIMEOUT / 2;
/// After this the members hold nothing of a topic that is missing.
pub(super) const NOTICED: Us = 2 * LOOK_EVERY;

impl World {
    pub(super) fn join(&mut self) {
        self.born += 1;
        self.stats.joins += 1;
        let id = [self.born; 16];
        let there = self.partitions();
        let mut group = Group::new(GroupConfig {
            group: "g".into(),
            member: id,
            member_timeout: Duration::from_micros(TIMEOUT),
            release_limit: Duration::from_micros(RELEASE_LIMIT),
            checkpoint_every: Duration::from_secs(1),
        });
        group.plant(self.fault.into());
        group.handle_partitions(there);
        tr!(self, M(id), "joins");
        let slow = self.rng.chance(150);
        self.procs.push(Proc::new(id, group, slow));
    }

    pub(super) fn partitions(&self) -> Vec<Partition> {
        let there = self.topics.iter().filter(|(_, topic)| !topic.missing);
        there.map(|(p, _)| Partition::new("t", *p)).collect()
    }

    pub(super) fn trouble(&mut self) {
        let long = self.rng.between(1, 2 * TIMEOUT / MS) * MS;
        if self.rng.chance(4) {
            self.stats.outages += 1;
            self.away_until = self.now + long;
            tr!(self, "store", "is away for {} ms", long / MS);
        }
        self.come_back();
        self.amnesia();
        self.members(long);
        self.logs();
        if self.rng.chance(1) && self.topics.len() < 9 {
            self.grow();
        }
    }

    fn logs(&mut self) {
        if self.rng.chance(4) {
            self.stats.log_outages += 1;
            let long = self.rng.between(1, TIMEOUT / MS) * MS;
            self.log_away_until = self.now + long;
            tr!(self, "log", "nobody finds a start for {} ms", long / MS);
        }
        let p = self.rng.below(self.topics.len() as u64) as i32;
        if self.topics[&p].missing {
            return;
        }
        if self.rng.chance(3) {
            let count = self.rng.below(2 * self.topics[&p].next() as u64 + 5);
            self.recreate(p, count);
            if self.rng.chance(300) {
                self.delete(p);
            }
        }
        if self.rng.chance(2) {
            self.cut(p);
        }
        // Retention deletes old records, and a recreated topic has none in a run as short as this one. (An anchor that
        // retention has deleted proves nothing.)
        if self.rng.chance(10) && !self.topics[&p].recreated {
            self.trim(p);
        }
    }

    fn amnesia(&mut self) {
        if self.rng.chance(2) {
            self.stats.wipes += 1;
            tr!(self, "store", "is wiped");
            self.forget(BTreeMap::new());
        }
        if self.rng.chance(2)
            && let Some(key) = self.store.keys().nth(self.rng.index(self.store.len().max(1))).cloned()
        {
            self.stats.evictions += 1;
            tr!(self, "store", "forgets {}", key.as_str());
            let mut rest = self.store.clone();
            rest.remove(&key);
            self.forget(rest);
        }
        if self.rng.chance(3) {
            self.snapshot = self.store.clone();
        }
        if self.rng.chance(1) {
            self.stats.rollbacks += 1;
            tr!(self, "store", "is rolled back");
            self.forget(self.snapshot.clone());
        }
    }

    fn members(&mut self, long: Us) {
        if !self.procs.is_empty() {
            let n = self.rng.index(self.procs.len());
            if self.rng.chance(8) {
                self.stats.pauses += 1;
                self.procs[n].paused_until = (self.now + long).min(HOSTILE);
                let held: Vec<_> = self.procs[n].held.keys().copied().collect();
                // Its own clock shows for how long it read nothing.
                let (now, fault) = (self.now, self.fault);
                held.into_iter().filter(|_| gap(long)).for_each(|p| self.procs[n].suspect(p, now, fault));
                tr!(self, M(self.procs[n].id), "is suspended for {} ms", long / MS);
            } else if self.rng.chance(4) {
                self.crash(n);
            } else if self.rng.chance(4) {
                self.leave(n);
            }
        }
        if self.procs.len() < 4 && self.rng.chance(15) && self.born < 200 {
            self.join();
        }
    }

    fn crash(&mut self, n: usize) -> Proc {
        self.stats.crashes += 1;
        let proc = self.procs.swap_remove(n);
        tr!(self, M(proc.id), "dies");
        proc
    }

    fn leave(&mut self, n: usize) {
        if !self.procs[n].leaving {
            self.stats.leaves += 1;
            tr!(self, M(self.procs[n].id), "leaves");
            self.procs[n].leaving = true;
            self.procs[n].left_in_peace = self.calm();
            self.procs[n].group.handle_leave();
        }
    }

    /// It may go unnoticed: no call fails, and the new topic may be longer than the old one.
    fn recreate(&mut self, p: i32, count: u64) {
        self.stats.recreated += 1;
        self.topics.entry(p).or_default().recreate(count);
        tr!(self, "log", "partition {p} is recreated with {count} records");
        self.check.replaced(p);
    }

    /// Deletes a topic, which stays missing for a while.
    fn delete(&mut self, p: i32) {
        self.stats.deleted += 1;
        let away = self.rng.between(100, 8_000) * MS;
        tr!(self, "log", "partition {p} is missing for {} ms", away / MS);
        self.topics.entry(p).or_default().missing = true;
        self.back_at.insert(p, (self.now + away).min(HOSTILE));
        self.check.missing(p, self.now + NOTICED);
    }

    fn come_back(&mut self) {
        let back: Vec<_> = self.back_at.iter().filter(|(_, at)| **at <= self.now).map(|(p, _)| *p).collect();
        for p in back {
            tr!(self, "log", "partition {p} is there again");
            self.back_at.remove(&p);
            self.topics.entry(p).or_default().missing = false;
            self.check.is_back(p);
        }
    }

    /// A leader that was not in sync has taken over: its clients notice that they have to find a new one.
    fn cut(&mut self, p: i32) {
        self.stats.cuts += 1;
        let topic = &self.topics[&p];
        let end = topic.first() + self.rng.below((topic.next() - topic.first()) as u64 + 1) as i64;
        let count = self.rng.below(20);
        self.topics.entry(p).or_default().cut(end, count);
        tr!(self, "log", "partition {p} is truncated at {end} and grows by {count} records");
        self.check.replaced(p);
        let (now, fault) = (self.now, self.fault);
        self.procs.iter_mut().for_each(|proc| proc.suspect(p, now, fault));
    }

    fn trim(&mut self, p: i32) {
        let first = self.topics[&p].first() + self.rng.below(40) as i64;
        let unread = self.topics.entry(p).or_default().trim(first);
        tr!(self, "log", "partition {p} begins at {}; {unread} were not read", self.topics[&p].first());
        self.stats.trims += 1;
        self.stats.deleted_unread += unread as u64;
    }

    fn grow(&mut self) {
        self.stats.partitions_added += 1;
        let p = self.topics.len() as i32;
        self.topics.insert(p, Topic::default());
        tr!(self, "log", "partition {p} is added");
    }

    /// One disturbance after the other, each of which has to be resolved in time.
    pub(super) fn drill(&mut self) {
        self.come_back();
        if self.procs.iter().all(|p| p.leaving) {
            self.join();
        }
        let Some(n) = self.procs.iter().position(|p| !p.leaving && !p.held.is_empty()) else { return };
        let alone = self.procs.iter().filter(|p| !p.leaving).count() < 2;
        match self.now {
            RECREATE => {
                let longer = self.topics[&0].next() as u64 + 7;
                self.recreate(0, longer);
            }
            CRASH if !alone => {
                let proc = self.crash(n);
                self.orphaned(&proc, TIMEOUT + SEC);
            }
            LEAVE if !alone => {
                self.leave(n);
                let id = self.procs[n].id;
                let held = self.procs[n].held.keys().copied().collect::<Vec<_>>();
                self.check.orphaned(id, held, self.now + SOON);
            }
            JOIN => self.join(),
            GROW => {
                self.grow();
                let p = self.topics.len() as i32 - 1;
                self.check.orphaned(Id::default(), [p], self.now + SOON);
            }
            _ => {}
        }
    }

    fn orphaned(&mut self, proc: &Proc, limit: Us) {
        self.check.orphaned(proc.id, proc.held.keys().copied(), self.now + limit);
    }
}
