//! What goes wrong: by chance in the hostile phase, by the clock in the calm one.

use super::member::Proc;
use super::world::{HOSTILE, Id, M, RELEASE_LIMIT, TIMEOUT, Topic, World};
use crate::trace::{MS, SEC, Us, tr};
use kafkaq_core::Partition;
use kafkaq_core::group::{Group, GroupConfig};
use std::collections::BTreeMap;
use std::time::Duration;

/// In the calm phase, one of each, far enough apart.
const CRASH: Us = HOSTILE + 15 * SEC;
const LEAVE: Us = HOSTILE + 27 * SEC;
const JOIN: Us = HOSTILE + 32 * SEC;
const GROW: Us = HOSTILE + 42 * SEC;
/// After a leave nobody waits for a timeout.
const SOON: Us = TIMEOUT / 2;

impl World {
    pub(super) fn join(&mut self) {
        self.born += 1;
        self.stats.joins += 1;
        let id = [self.born; 16];
        let mut group = Group::new(GroupConfig {
            group: "g".into(),
            member: id,
            member_timeout: Duration::from_micros(TIMEOUT),
            release_limit: Duration::from_micros(RELEASE_LIMIT),
            checkpoint_every: Duration::from_secs(1),
        });
        group.plant(self.fault);
        group.handle_partitions(self.partitions());
        tr!(self, M(id), "joins");
        let slow = self.rng.chance(150);
        self.procs.push(Proc::new(id, group, slow));
    }

    fn partitions(&self) -> Vec<Partition> {
        self.topics.keys().map(|p| Partition::new("t", *p)).collect()
    }

    pub(super) fn trouble(&mut self) {
        let long = self.rng.between(1, 2 * TIMEOUT / MS) * MS;
        if self.rng.chance(4) {
            self.stats.outages += 1;
            self.away_until = self.now + long;
            tr!(self, "store", "is away for {} ms", long / MS);
        }
        self.amnesia();
        self.members(long);
        if self.rng.chance(2) {
            let p = self.rng.below(self.topics.len() as u64) as i32;
            self.recreate(p);
        }
        if self.rng.chance(1) && self.topics.len() < 9 {
            self.grow();
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
            tr!(self, "store", "goes back in time");
            self.forget(self.snapshot.clone());
        }
    }

    fn members(&mut self, long: Us) {
        if !self.procs.is_empty() {
            let n = self.rng.index(self.procs.len());
            if self.rng.chance(8) {
                self.stats.pauses += 1;
                self.procs[n].paused_until = (self.now + long).min(HOSTILE);
                tr!(self, M(self.procs[n].id), "stands still for {} ms", long / MS);
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

    fn recreate(&mut self, p: i32) {
        self.stats.recreated += 1;
        let topic = self.topics.entry(p).or_default();
        *topic = Topic { incarnation: topic.incarnation + 1, end: topic.end / 2 + 3 };
        tr!(self, "log", "partition {p} is made anew, of {} records", self.topics[&p].end);
        self.check.recreated(p);
        for n in 0..self.procs.len() {
            let notices = self.now + self.rng.below(2_000) * MS;
            if let Some(held) = self.procs[n].held.get_mut(&p) {
                held.notices = Some(notices);
            }
        }
    }

    fn grow(&mut self) {
        self.stats.partitions_added += 1;
        let p = self.topics.len() as i32;
        self.topics.insert(p, Topic::default());
        tr!(self, "log", "partition {p} is added");
        let all = self.partitions();
        self.procs.iter_mut().for_each(|proc| proc.group.handle_partitions(all.iter().cloned()));
    }

    /// One thing after the other, and each has to be over in time.
    pub(super) fn drill(&mut self) {
        if self.procs.iter().all(|p| p.leaving) {
            self.join();
        }
        let Some(n) = self.procs.iter().position(|p| !p.leaving && !p.held.is_empty()) else { return };
        let alone = self.procs.iter().filter(|p| !p.leaving).count() < 2;
        match self.now {
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
